"""Letters to ids, one a letter.

A vocabulary is data: a tuple of tokens, whose place is their id; "" is an id that is never made.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError

HELIX: tuple[str, ...] = (
    *("[BOS]", "[SEP]", "[CLS]", "[MASK]", "", "[RESERVED]", "[UNK]"),
    *("A", "C", "G", "U", "N", "E", ""),  # E stands before each codon; [PAD] has the id of [SEP]
)
"""The 14 tokens of the published hybrid."""

MAMBA2: tuple[str, ...] = (
    *("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"),
    *("A", "C", "G", "U", "N", ""),
)
"""The 13 tokens of the published pure Mamba-2 model."""

VOCABULARIES: dict[str, tuple[str, ...]] = {"helix-mrna": HELIX, "mamba2-mrna": MAMBA2}
_FOREIGN = -1  # no letter at all


class Tokenizer:
    """One id a letter.

    Lower case is read as upper case and T as U. A letter that the vocabulary lacks is `unknown_id`; any other
    character is an error. Nothing is put around a sequence: the model is causal, so an end token after the
    last letter changes no letter's row. Who wants one appends `sep_id`.

    letters : id to token
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    mask_id: int | None = None  # the model predicts the next letter, it fills no gap

    def __init__(self, vocabulary: Sequence[str] = HELIX) -> None:
        ids = {token: k for k, token in enumerate(vocabulary) if token}
        absent = [token for token in ("[SEP]", "[UNK]", *"ACGU") if token not in ids]
        if absent:
            raise ConfigError(f"the vocabulary lacks {', '.join(absent)}")
        self.letters = tuple(vocabulary)
        self.unknown_id = ids["[UNK]"]
        self.sep_id = ids["[SEP]"]
        self.bos_id = ids.get("[BOS]")
        self.cls_id = ids.get("[CLS]")
        self.pad_id = ids.get("[PAD]", self.sep_id)
        self._table = self._letter_ids(ids)

    def encode(self, sequence: str) -> npt.NDArray[np.int64]:
        """(letters,) ids.

        Raises
        ------
        InputError : empty, or a character that is no letter.
        """
        if not sequence:
            raise InputError("an empty sequence")
        points = np.frombuffer(sequence.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._table[np.minimum(points, 255)]
        if (ids < 0).any():
            place = int(np.flatnonzero(ids < 0)[0])
            raise InputError(
                f"{sequence[place]!r} at letter {place + 1:,} is not a nucleotide",
                hint="letters are A C G U (or T), N, E before a codon, and the IUPAC codes; "
                "take out gaps, digits and blanks",
            )
        return ids

    def _letter_ids(self, ids: dict[str, int]) -> npt.NDArray[np.int64]:
        table = np.full(256, _FOREIGN, dtype=np.int64)
        for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            letter = "U" if upper == "T" else upper
            table[[ord(upper), ord(upper.lower())]] = ids.get(letter, self.unknown_id)
        return table

"""Letters (RNA-FM) or codons (mRNA-FM) to ids.

A vocabulary is data: a tuple of tokens, whose place is their id. The authors' two are here, and the two that
MultiMolecule's folders use today; older folders bring their own in `vocab.txt`.
"""

import re
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError

_NULLS = ("<null_1>", "<null_2>", "<null_3>", "<null_4>")  # filled the table up to a multiple of 8
_CODONS = """
GAG AAG GAA CUG CAG GAU AAA GUG GAC AUG GCC AAC GCU AAU AUC UUC GGA AUU GGC UUU CCA AGC GCA UCU CUC ACC CAA
CCU UCC ACA UUG GUU CUU UAC ACU CCC UCA GUC GGU CAC AGU UAU AGA CAU GGG UGG UGC AGG UGU AUA CGC UUA GCG CGG
CCG GUA CUA ACG UCG CGA CGU UGA UAA UAG
"""
_MULTIMOLECULE_SPECIAL = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>")

RNA: tuple[str, ...] = ("<cls>", "<pad>", "<eos>", "<unk>", *"ACGURYKMSWBDHVN-", *_NULLS, "<mask>")
"""The 25 tokens of the published RNA-FM."""

CODON: tuple[str, ...] = ("<cls>", "<pad>", "<eos>", "<unk>", *_CODONS.split(), *_NULLS, "<mask>")
"""The 73 tokens of the published mRNA-FM."""

MULTIMOLECULE_RNA: tuple[str, ...] = (*_MULTIMOLECULE_SPECIAL, *"ACGUNRYSWKMBDHVIX|.*-?")
"""The 28 tokens of MultiMolecule's RNA-FM since May 2026."""

MULTIMOLECULE_CODON: tuple[str, ...] = (
    *_MULTIMOLECULE_SPECIAL,
    *("".join(triplet) for triplet in product("ACGUN", repeat=3)),
)
"""The 131 tokens of MultiMolecule's mRNA-FM."""

_MASK = re.compile("<mask>", re.IGNORECASE)
_MARK = "\0"  # stands for <mask> while a sequence is looked up
_FOREIGN = -1  # neither a letter nor in the vocabulary
_MASKED = 31  # the mask among the codes of the 26 letters


def reads_codons(vocabulary: Sequence[str]) -> bool:
    """Whether the tokens of this vocabulary are codons."""
    return any(len(token) == 3 for token in vocabulary)


def check_vocabulary(vocabulary: Sequence[str]) -> None:
    """Raise `ConfigError` for a vocabulary with a token twice, or without the special tokens."""
    if len(set(vocabulary)) != len(vocabulary):
        raise ConfigError("the vocabulary has a token twice")
    absent = [token for token in ("<cls>", "<eos>", "<unk>", "<mask>") if token not in vocabulary]
    if absent:
        raise ConfigError(f"the vocabulary lacks {', '.join(absent)}")


class Tokenizer:
    """One id a letter, or one a codon.

    Lower case is read as upper case and T as U. `<mask>` in a sequence is one letter (one codon). A letter
    that the vocabulary lacks is `unknown_id`; any other character is an error.

    letters : id to token
    prefix, suffix : ids that the network expects around a sequence
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        check_vocabulary(vocabulary)
        ids = {token: k for k, token in enumerate(vocabulary)}
        self.letters = tuple(vocabulary)
        self.codon = reads_codons(vocabulary)
        self.prefix = (ids["<cls>"],)
        self.suffix = (ids["<eos>"],)
        self.mask_id = ids["<mask>"]
        self.unknown_id = ids["<unk>"]
        self._codes = _letter_codes() if self.codon else self._letter_ids(ids)
        self._codons = self._codon_ids(ids)

    def encode(self, sequence: str) -> npt.NDArray[np.int64]:
        """(letters,) or (codons,) ids, without the special tokens around them.

        Raises
        ------
        InputError : empty, a character that is no letter, or (codons) a length that is no multiple of 3.
        """
        codes = self._lookup(sequence)
        if not self.codon:
            return codes
        if over := len(codes) % 3:
            raise InputError(
                f"{len(codes):,} nt is not a whole number of codons ({over} nt over)",
                hint="this model reads codons: give the coding sequence, from its start codon, in frame",
            )
        triplets = codes.reshape(-1, 3)
        if ((triplets == _MASKED).sum(1) % 3).any():
            raise InputError("<mask> stands inside a codon", hint="it takes the place of one whole codon")
        return self._codons[triplets @ np.array([1024, 32, 1])]

    def split(self, sequence: str) -> list[str]:
        """The letters (codons) of a sequence as the user wrote them, one for each id of `encode`."""
        unit = "..." if self.codon else "."
        return re.findall(f"<mask>|{unit}", sequence, re.IGNORECASE | re.DOTALL)

    def _lookup(self, sequence: str) -> npt.NDArray[np.int64]:
        text = sequence
        if "<" in sequence and _MARK not in sequence:
            text = _MASK.sub(_MARK * (3 if self.codon else 1), sequence)
        if not text:
            raise InputError("an empty sequence")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        codes = self._codes[np.minimum(points, 255)]
        if (codes < 0).any() or _MARK in sequence:
            place = int(np.flatnonzero((codes < 0) | (points == 0))[0])
            raise InputError(
                f"{text[place]!r} at letter {place + 1:,} is not a nucleotide",
                hint="letters are A C G U (or T) and the IUPAC codes; take out gaps, digits and blanks",
            )
        return codes

    def _letter_ids(self, ids: dict[str, int]) -> npt.NDArray[np.int64]:
        table = np.where(_letter_codes() >= 0, self.unknown_id, _FOREIGN)
        for token, k in ids.items():
            if len(token) == 1 and ord(token) < 255:
                table[[ord(token), ord(token.lower())]] = k
        table[[ord("T"), ord("t")]] = table[ord("U")]
        table[0] = self.mask_id
        return table

    def _codon_ids(self, ids: dict[str, int]) -> npt.NDArray[np.int64]:
        table = np.full(32**3, self.unknown_id, dtype=np.int64)
        code = _letter_codes()
        for token, k in ids.items():
            if len(token) == 3 and token.isascii() and token.isalpha():
                first, second, third = (int(code[ord(base)]) for base in token)
                table[first * 1024 + second * 32 + third] = k
        table[-1] = self.mask_id
        return table


def _letter_codes() -> npt.NDArray[np.int64]:
    """(256,) character to 0 ... 25 for a letter of either case, with T as U."""
    table = np.full(256, _FOREIGN, dtype=np.int64)
    for k in range(26):
        table[[ord("A") + k, ord("a") + k]] = k
    table[[ord("T"), ord("t")]] = ord("U") - ord("A")
    table[0] = _MASKED
    return table

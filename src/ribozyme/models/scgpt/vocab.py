"""The gene vocabulary of an scGPT model: `vocab.json` (gene to id), or the published one in the package."""

import json
import lzma
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ribozyme.checkpoint import read_json
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.files import AtomicFile

PAD, CLS, EOC = "<pad>", "<cls>", "<eoc>"
CENSUS_SIZE = 60_697
CENSUS_FILE = "census_vocab.txt.xz"


class Vocabulary:
    """Tokens by id: genes, then the special tokens.

    tokens : token of each id
    ids : id of each token; exact, case-sensitive names
    pad_id, cls_id : ids of the special tokens `<pad>` and `<cls>`
    eoc_id : id of `<eoc>`, or None (no model uses it)
    """

    def __init__(self, tokens: Iterable[str], *, pad: str = PAD) -> None:
        self.tokens: tuple[str, ...] = tuple(tokens)
        self.ids: dict[str, int] = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise ConfigError("a vocabulary names each token once")
        if missing := [token for token in (pad, CLS) if token not in self.ids]:
            raise ConfigError(f"the vocabulary lacks {' and '.join(missing)}")
        self.pad, self.pad_id, self.cls_id = pad, self.ids[pad], self.ids[CLS]
        self.eoc_id: int | None = self.ids.get(EOC)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.tokens, self.pad) == (other.tokens, other.pad)

    def __hash__(self) -> int:
        return hash((self.tokens, self.pad))

    @cached_property
    def is_gene(self) -> npt.NDArray[np.bool_]:
        """(vocab_size,): true but for the special tokens."""
        special = {self.pad_id, self.cls_id, self.eoc_id}
        return np.array([i not in special for i in range(len(self))])

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """The tokens without the special ones, by id."""
        return tuple(token for token, gene in zip(self.tokens, self.is_gene) if gene)

    def lookup(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """The id of each gene name, -1 where there is none (special tokens are no genes)."""
        found = np.fromiter((self.ids.get(name, -1) for name in names), dtype=np.int64)
        return np.where((found >= 0) & self.is_gene[found], found, -1)

    @classmethod
    def of(cls, ids: Mapping[str, object], *, pad: str = PAD, where: object = "vocabulary") -> "Vocabulary":
        """From token to id, in any order.

        Raises
        ------
        CheckpointError : the ids are not the whole numbers from 0 on, each once; a special token is missing.
        """
        tokens: list[str | None] = [None] * len(ids)
        for token, i in ids.items():
            if type(i) is not int or not 0 <= i < len(tokens) or tokens[i] is not None:
                raise CheckpointError(
                    f"{where}: {token!r} has id {i!r}",
                    hint=f"the ids of its {len(ids):,} tokens must be 0 to {len(ids) - 1:,}, each once",
                )
            tokens[i] = token
        try:
            return cls([token for token in tokens if token is not None], pad=pad)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error.message}") from error

    @classmethod
    def read(cls, path: Path, *, pad: str = PAD) -> "Vocabulary":
        """From a `vocab.json`; the order of its lines carries no meaning."""
        return cls.of(read_json(path), pad=pad, where=path)

    @classmethod
    def census(cls) -> "Vocabulary":
        """The published vocabulary of 60,694 genes and 3 special tokens (see NOTICE.md)."""
        packed = files(__package__).joinpath(CENSUS_FILE).read_bytes()
        return cls(lzma.decompress(packed).decode("utf-8").splitlines())

    def write(self, path: Path) -> None:
        """As `vocab.json`, in the order of the ids; it appears whole or not at all."""
        with AtomicFile(path) as temporary:
            temporary.write_text(json.dumps(self.ids, indent=2), encoding="utf-8")

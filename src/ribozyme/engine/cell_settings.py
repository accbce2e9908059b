"""How cells become embeddings."""

from dataclasses import dataclass
from typing import Literal

from ribozyme.errors import ConfigError
from ribozyme.pp.tokens import Reading

CellPooling = Literal["cls", "mean", "max"]
POOLINGS: tuple[CellPooling, ...] = ("cls", "mean", "max")


@dataclass(frozen=True, slots=True)
class Settings:
    """How cells become embeddings: the arguments of `embed`, each checked and decided."""

    pooling: CellPooling
    layer: int
    reading: Reading
    gene_column: str | None
    batch_column: str | None
    modality: str | None
    batch_tokens: int
    strict: bool


def choose_pooling(pooling: str) -> CellPooling:
    """The pooling of that name; `first` is the row of `<cls>`."""
    how = "cls" if pooling == "first" else pooling
    if how not in POOLINGS:
        raise ConfigError(
            f"pooling {pooling!r} does not exist for cells",
            hint=f"one of {', '.join(POOLINGS)}; for a row a gene, output='genes'",
        )
    return how

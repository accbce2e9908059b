"""From sequences to results: cut, plan, pack, run, put back in order.

A *piece* is what goes through the network at once: a whole sequence, or one window of a long one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribozyme.engine.parts import Budget, in_batches
from ribozyme.errors import ConfigError, InputError
from ribozyme.packing import Packed
from ribozyme.report import Report

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Overlong = Literal["error", "truncate", "window"]
OVERLONG: tuple[Overlong, ...] = ("error", "truncate", "window")


class Tokenizer(Protocol):
    """What a sequence family's tokenizer offers (see `ribozyme.models`)."""

    letters: tuple[str, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    mask_id: int | None
    unknown_id: int

    def encode(self, sequence: str) -> Ids: ...


class Framed(Protocol):
    """Whatever has special tokens in front of the letters and behind them."""

    @property
    def prefix(self) -> tuple[int, ...]: ...
    @property
    def suffix(self) -> tuple[int, ...]: ...


Compute = Callable[[Packed, tuple[int, ...]], Tensor | Sequence[Tensor]]
"""From a batch (with special tokens) and the letters of each sequence to one tensor with a row a sequence, or
to a tensor of rows for each sequence."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Letters [start, start + len(ids)) of an input; `ids` has no special tokens."""

    ids: Ids
    start: int = 0


@dataclass(frozen=True, slots=True)
class Cutter:
    """How inputs longer than the network's window are handled.

    longest : letters that fit, None for no limit
    overlong : `error`, `truncate` (the first `longest` letters, counted) or `window` (overlapping windows)
    overlap : letters that neighbouring windows share; 0 where there are none
    """

    longest: int | None
    overlong: Overlong = "error"
    overlap: int = 256

    def __post_init__(self) -> None:
        if self.overlong not in OVERLONG:
            raise ConfigError(
                f"overlong {self.overlong!r} does not exist", hint=f"one of {', '.join(OVERLONG)}"
            )
        if self.longest is not None and not 0 <= self.overlap < self.longest:
            raise ConfigError(f"overlap {self.overlap} must be from 0 to {self.longest - 1}")

    def cut(self, name: str, ids: Ids, report: Report) -> list[Piece]:
        """The pieces of one input."""
        if self.longest is None or len(ids) <= self.longest:
            return [Piece(ids)]
        if self.overlong == "error":
            raise InputError(
                f"{name!r} has {len(ids):,} letters; the model reads at most {self.longest:,}",
                hint=("choose 'window' (averages overlaps) or " if self.overlap else "choose ")
                + "'truncate' (keeps the 5' end, counted)",
            )
        if self.overlong == "truncate":
            report.add("letters cut off at the 3' end", name, len(ids) - self.longest)
            return [Piece(ids[: self.longest])]
        count = -(-(len(ids) - self.overlap) // (self.longest - self.overlap))
        starts = np.linspace(0, len(ids) - self.longest, count).astype(int).tolist()
        return [Piece(ids[s : s + self.longest], s) for s in starts]


@torch.inference_mode()
def run(
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    device: torch.device,
    budget: Budget,
    compute: Compute,
) -> list[Array]:
    """`compute` on packed batches of `pieces`: an array a piece, in order; equal pieces are run once."""
    place: dict[bytes, int] = {}
    places = [place.setdefault(piece.ids.tobytes(), len(place)) for piece in pieces]
    distinct = [np.frombuffer(key, np.int64) for key in place]
    prefix, suffix = np.array(tokenizer.prefix, np.int64), np.array(tokenizer.suffix, np.int64)

    def batch(group: list[int]) -> Tensor | Sequence[Tensor]:
        packed = Packed.of([np.concatenate([prefix, distinct[g], suffix]) for g in group]).to(device)
        return compute(packed, tuple(len(distinct[g]) for g in group))

    results: dict[int, Array] = {}
    single: list[tuple[list[int], Tensor]] = []
    around = len(prefix) + len(suffix)
    for group, outputs in in_batches([len(ids) + around for ids in distinct], budget, batch):
        if isinstance(outputs, Tensor):
            single.append((group, outputs))
        else:
            rows = _on_host(torch.cat(list(outputs)))
            ends = np.cumsum([len(one) for one in outputs])
            results.update(zip(group, np.split(rows, ends[:-1])))
    if single:  # small, so they wait on the device: it is waited for once, not after each batch
        rows = _on_host(torch.cat([outputs for _, outputs in single]))
        results.update(zip((k for group, _ in single for k in group), rows))
    return [results[k] for k in places]


def _on_host(rows: Tensor) -> Array:
    return rows.float().cpu().numpy()


def letter_rows(rows: Tensor, batch: Packed, framed: Framed) -> Tensor:
    """(T, ...) without the rows of special tokens: one row a letter."""
    before, after = len(framed.prefix), len(framed.suffix)
    if not before and not after:
        return rows
    ends = np.cumsum(batch.lengths)
    keep = [
        np.arange(end - length + before, end - after) for end, length in zip(ends.tolist(), batch.lengths)
    ]
    return rows[torch.from_numpy(np.concatenate(keep)).to(rows.device)]


def stitch(pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
    """Rows of overlapping windows into rows of the whole input, averaged where windows overlap."""
    if len(pieces) == 1:
        return rows[0]
    length = max(p.start + len(p.ids) for p in pieces)
    total = np.zeros((length, *rows[0].shape[1:]), np.float32)
    seen = np.zeros((length,) + (1,) * (rows[0].ndim - 1), np.float32)
    for piece, part in zip(pieces, rows):
        inside = slice(piece.start, piece.start + len(piece.ids))
        total[inside] += part
        seen[inside] += 1
    return np.divide(total, seen, dtype=np.float32)

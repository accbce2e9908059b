"""A batch is packed, never padded: sequences lie end to end, `cu_seqlens` says where each begins.

Every layer of every model works on `(T, d)`, T letters of all sequences together. Only attention, the
causal convolution and the state-space scan look at `cu_seqlens`. There is no padding, so there is no
mask, no wasted arithmetic, and one answer for an input, whatever it is batched with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribozyme.errors import ConfigError

Pooling = Literal["mean", "first", "last", "max", "none"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first", "last", "max", "none")


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences end to end.

    ids : (T,) int64, the tokens of all sequences
    cu_seqlens : (n + 1,) int32, where each sequence begins, and T at the end
    lengths : n tokens counts, the same facts on the host, so that nobody waits for a device to read them
    values : (T,) float32 or None, a number beside each token (the expression of a gene)
    """

    ids: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    values: Tensor | None = None

    @classmethod
    def of(
        cls, ids: Sequence[npt.NDArray[np.int64]], values: Sequence[npt.NDArray[np.float32]] | None = None
    ) -> "Packed":
        """Pack one array of ids a sequence, and their values if they have any."""
        lengths = tuple(len(one) for one in ids)
        return cls(
            ids=torch.from_numpy(np.concatenate([np.asarray(one, dtype=np.int64) for one in ids])),
            cu_seqlens=cumulative(lengths),
            lengths=lengths,
            values=None
            if values is None
            else torch.from_numpy(np.concatenate([np.asarray(one, dtype=np.float32) for one in values])),
        )

    def to(self, device: torch.device) -> "Packed":
        """The same batch on another device."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            values=None if self.values is None else self.values.to(device, non_blocking=True),
        )

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    def split(self, rows: Tensor) -> list[Tensor]:
        """(T, ...) into one (length_i, ...) a sequence."""
        return list(rows.split(self.lengths))


def cumulative(lengths: Sequence[int]) -> Tensor:
    """(n + 1,) int32 `cu_seqlens` of n lengths."""
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32)


def bounds(cu_seqlens: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of each sequence, as Python integers."""
    return pairwise(cu_seqlens.tolist())


def positions(cu_seqlens: Tensor) -> Tensor:
    """(T,) int64: the place of each token in its own sequence, from 0."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    total = int(cu_seqlens[-1])
    return torch.arange(total, device=cu_seqlens.device) - starts.repeat_interleave(
        lengths, output_size=total
    )


def pool(rows: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """One vector a sequence from packed rows.

    rows : (T, d), already without the rows of special tokens
    Returns (n, d) float32; the sums of `mean` are float32 whatever the type of `rows`.
    """
    sizes = torch.tensor(lengths, device=rows.device)
    ends = sizes.cumsum(0)
    if pooling == "first":
        return rows[ends - sizes].float()
    if pooling == "last":
        return rows[ends - 1].float()
    if pooling in ("mean", "max"):
        return torch.segment_reduce(rows.float(), pooling, lengths=sizes)
    raise ConfigError(f"pooling {pooling!r} does not exist", hint=f"one of {', '.join(POOLINGS)}")


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group inputs of like length into batches of at most `budget` tokens.

    Returns lists of positions in `lengths`, longest first; an input longer than the budget is a batch alone.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or lengths[index] > room:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches

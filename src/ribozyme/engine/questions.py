"""What can be asked of a network: a row a sequence or a row a letter, also of inputs read in windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribozyme.engine.embed import Array, Compute, Piece, Tokenizer, letter_rows, run, stitch
from ribozyme.engine.parts import Budget
from ribozyme.packing import Packed, Pooling, pool


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the network.

    single : of inputs that fit its window; windowed : of the windows of others, joined by `whole`
    """

    single: Compute
    windowed: Compute
    whole: Callable[[Sequence[Piece], Sequence[Array]], Array]


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its letters, on its device."""

    module: Any
    tokenizer: Tokenizer
    device: torch.device

    def run(self, pieces: Sequence[Piece], compute: Compute, budget: Budget) -> list[Array]:
        """`compute` of all pieces, in order."""
        return run(pieces, self.tokenizer, self.device, budget, compute)

    def by_sequence(self, rows: Tensor, batch: Packed, letters: tuple[int, ...]) -> list[Tensor]:
        """Rows of the letters of each sequence of a batch."""
        return list(letter_rows(rows, batch, self.tokenizer).split(letters))

    def per_letter(self, head: Callable[[Tensor], Tensor]) -> Compute:
        """`head` of the last layer, a row a letter."""

        def compute(batch: Packed, letters: tuple[int, ...]) -> Sequence[Tensor]:
            rows = letter_rows(self.module.encode(batch), batch, self.tokenizer)
            return list(head(rows).split(letters))

        return compute


def embedding(network: Network, pooling: Pooling, layer: int) -> Question:
    """One vector an input, or one a letter with `none`."""
    module, tokenizer = network.module, network.tokenizer

    def pooled(batch: Packed, letters: tuple[int, ...]) -> Tensor:
        if pooling in ("first", "last"):  # of the last layer, these rows alone are computed
            cu, after = batch.cu_seqlens.long(), len(tokenizer.suffix)
            rows = cu[:-1] if pooling == "first" else cu[1:] - 1 - after
            return module.encode(batch, layer=layer, rows=rows).float()
        rows = module.encode(batch, layer=layer)
        return pool(letter_rows(rows, batch, tokenizer), letters, pooling)

    def each(batch: Packed, letters: tuple[int, ...]) -> Sequence[Tensor]:
        return network.by_sequence(module.encode(batch, layer=layer), batch, letters)

    if pooling == "none":
        return Question(each, each, stitch)
    if pooling == "first":
        return Question(pooled, pooled, _mean if tokenizer.prefix else _first)
    return Question(pooled, each, _pool_windows(pooling))


def letters(network: Network, head: Callable[[Tensor], Tensor]) -> Question:
    """`head` of the last layer, a row a letter."""
    each = network.per_letter(head)
    return Question(each, each, stitch)


def next_letters(network: Network) -> Question:
    """(2,) an input: the log-likelihood of its letters but the first, and how many those are."""

    def compute(batch: Packed, letters: tuple[int, ...]) -> Tensor:
        logs = network.module.logits(network.module.encode(batch)).float().log_softmax(-1)
        of_next = logs.gather(1, batch.ids.roll(-1)[:, None])[:, 0]
        sums = [(one[:-1].sum(), one.new_tensor(len(one) - 1)) for one in of_next.split(letters)]
        return torch.stack([torch.stack(pair) for pair in sums])

    return Question(compute, compute, _summed)


def _pool_windows(how: Pooling) -> Callable[[Sequence[Piece], Sequence[Array]], Array]:
    """Pool an input that was read in windows: its stitched letter rows, pooled as if read at once."""

    def whole(pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
        letters = torch.from_numpy(stitch(pieces, rows))
        return pool(letters, [len(letters)], how)[0].numpy()

    return whole


def _mean(pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
    """`<cls>` sees only its own window, so windows are averaged."""
    return np.mean(rows, axis=0, dtype=np.float32)


def _first(pieces: Sequence[Piece], rows: Sequence[Array]) -> Array:
    """The first letter is in the first window."""
    return rows[0]


def _summed(pieces: Sequence[Piece], sums: Sequence[Array]) -> Array:
    return np.sum(sums, axis=0, dtype=np.float32)

"""How an example becomes tokens: a random part of it, drawn from its key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ribozyme.packing import Packed
from ribozyme.pp.window import draws, in_window
from ribozyme.train.feed import Keys

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# what random numbers are for: numbers of different use are independent
CROP, CHOOSE, KIND, OTHER, DROP, SPLIT, VIEW = range(7)


@dataclass(frozen=True, slots=True)
class Example:
    """One input without special tokens: letters, or genes with bins (`values`).

    label : of the batch that a cell is from; kind : its class
    measured : ids in rising order, if genes that the cell does not express are to be read too, at 0
    """

    ids: Ids
    values: npt.NDArray[Any] | None = None
    label: int = 0
    kind: int = 0
    measured: Ids | None = None


class Draws:
    """Random numbers for the examples of a batch, from their keys."""

    def __init__(self, keys: Keys, lengths: Sequence[int]) -> None:
        self.keys = keys
        self.ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.places = np.arange(self.ends[-1]) - np.repeat(self.ends[:-1], np.diff(self.ends))

    def tokens(self, use: int) -> Floats:
        """(T,) from [0, 1), one a token."""
        return draws(self.keys, self.places, self.ends, stream=use)

    def examples(self, use: int) -> Floats:
        """(n,) from [0, 1), one an example."""
        return each(self.keys, use)


def each(keys: Keys, use: int) -> Floats:
    """(n,) from [0, 1), one an example."""
    count = len(keys)
    return draws(keys, np.zeros(count, np.int64), np.arange(count + 1), stream=1000 + use)


def of_views(keys: Any, views: int) -> Keys:
    """(n views,) a key for each view of each example."""
    far_apart = np.arange(views, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.add.outer(np.atleast_1d(keys), far_apart).ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """How a sequence becomes tokens: a random part of at most `longest` letters, between special tokens.

    optional : a letter that is left out, with all its like, of a share of the sequences, such as the E in
        front of codons
    views : parts that are taken of a sequence, each at random; of several, each has at least half of its
        letters
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    longest: int = 1 << 30
    optional: tuple[int, float] | None = None
    views: int = 1

    def length(self, example: Example) -> int:
        """Tokens of an example, at most."""
        around = len(self.prefix) + len(self.suffix)
        return self.views * (min(len(example.ids), self.longest) + around)

    def read(self, examples: Sequence[Example], keys: Keys) -> Packed:
        """The examples as a batch, views of one beside each other."""
        dropped = each(keys, DROP)
        parts = []
        for one, key, drop in zip(examples, keys, dropped):
            ids = one.ids
            if self.optional is not None and drop < self.optional[1]:
                ids = ids[ids != self.optional[0]]
            own = of_views(key, self.views)
            for larger, where in zip(each(own, VIEW), each(own, CROP)):
                size = min(len(ids), self.longest)
                if self.views > 1:
                    size = max(1, math.ceil(size * (0.5 + 0.5 * larger)))
                start = int(where * (len(ids) - size + 1))
                parts.append(np.concatenate([self.prefix, ids[start : start + size], self.suffix]))
        return Packed.of(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Genes:
    """How a cell becomes tokens: `<cls>`, then a sample of at most `longest` genes with their bins.

    Genes are those that a cell expresses, or all that were `measured` where its example says so.
    """

    cls_id: int
    cls_value: float
    longest: int = 1_199

    def length(self, example: Example) -> int:
        """Tokens of a cell."""
        genes = example.ids if example.measured is None else example.measured
        return 1 + min(len(genes), self.longest)

    def read(self, examples: Sequence[Example], keys: Keys) -> Packed:
        """The cells as a batch."""
        cells = [_with_zeros(one) for one in examples]
        ids = np.concatenate([genes for genes, _ in cells]).astype(np.int64)
        values = np.concatenate([bins for _, bins in cells])
        ends = np.concatenate([[0], np.cumsum([len(genes) for genes, _ in cells])])
        keep = in_window(ids, values, ends, keys, genes=self.longest)
        ends = np.concatenate([[0], np.cumsum(keep)])[ends]
        ids, values = ids[keep], values[keep]
        spans = [slice(a, b) for a, b in pairwise(ends)]
        return Packed.of(
            [np.concatenate([[self.cls_id], ids[s]]) for s in spans],
            [np.concatenate([[self.cls_value], values[s]]).astype(np.float32) for s in spans],
        )


def _with_zeros(cell: Example) -> tuple[Ids, npt.NDArray[Any]]:
    """The genes that are read, with their bins."""
    assert cell.values is not None
    if cell.measured is None:
        return cell.ids, cell.values
    bins = np.zeros(len(cell.measured), dtype=cell.values.dtype)
    bins[np.searchsorted(cell.measured, cell.ids)] = cell.values
    return cell.measured, bins

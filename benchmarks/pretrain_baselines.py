"""Simple models of what is held out: letters from the letters around them, bins from the gene and like cells.

All are fitted on the training part of a corpus in one pass, in memory that does not grow with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Ints = npt.NDArray[Any]
Floats = npt.NDArray[Any]
OTHER = 4
"""In the place of A C G U (0-3): a mask, N, the outside of a sequence."""
STRENGTHS = (1.0, 4.0, 16.0, 64.0)
MOST_CELLS = 20_000


@dataclass(frozen=True, slots=True)
class Text:
    """Sequences side by side, and the letters in them that are asked for.

    seen : letters 0-3 and OTHER, with `GAP` of OTHER around each sequence
    places, letters : (t,) what is asked for: where in `seen`, and which letter it is
    phases : (t,) its place in a codon, 1-3, or 0
    """

    seen: Ints
    places: Ints
    letters: Ints
    phases: Ints


GAP = 12


def side_by_side(seen: Sequence[Ints], asked: Sequence[Ints], clean: Sequence[Ints], phases: Any) -> Text:
    """A text of sequences; `asked` is true where a letter is asked for."""
    gap = np.full(GAP, OTHER, np.int8)
    starts = np.cumsum([GAP, *(len(one) + GAP for one in seen)])
    places = np.concatenate([start + np.flatnonzero(one) for start, one in zip(starts, asked)])
    chosen = np.concatenate(asked)
    whole = np.concatenate([gap, *(part for one in seen for part in (one, gap))])
    return Text(whole, places, np.concatenate(clean)[chosen], np.concatenate(phases)[chosen])


class Contexts:
    """p(letter | k letters around) = (n(context, letter) + a p(letter | k - 1 letters)) / (n(context) + a).

    offsets : where those letters are, nearest first; k is up to all of them. Order k of a Markov chain has
        -1, ..., -k.
    phased : the place in the codon is known too
    Source: a Dirichlet prior around the shorter context (MacKay & Peto 1995, doi:10.1017/S1351324900000218).
    """

    def __init__(self, offsets: Sequence[int], *, phased: bool = False) -> None:
        assert max(map(abs, offsets), default=0) <= GAP
        self.offsets, self.phased = tuple(offsets), phased
        sizes = [4 * (4 if phased else 1) * 5**k for k in range(len(offsets) + 1)]
        self.counts = [np.zeros(size, np.int32) for size in sizes]
        self.order, self.strength = len(offsets), STRENGTHS[0]

    def add(self, text: Text) -> None:
        """Count the letters that are asked for."""
        for counts, codes in zip(self.counts, self._codes(text)):
            np.add.at(counts, codes * 4 + text.letters, 1)

    def tune(self, text: Text) -> None:
        """Take the order and the strength of the prior that tell this text, which was not counted, best."""
        rows = np.arange(len(text.letters))
        losses = {
            (order, strength): float(-np.log(found[rows, text.letters]).mean())
            for strength in STRENGTHS
            for order, found in enumerate(self._by_order(text, strength))
        }
        self.order, self.strength = min(losses, key=losses.__getitem__)

    def __call__(self, text: Text) -> Floats:
        """(t, 4) probabilities."""
        *_, last = self._by_order(text, self.strength, self.order)
        return last

    def _by_order(self, text: Text, strength: float, most: int | None = None) -> Iterator[Floats]:
        found: Floats = np.full((len(text.letters), 4), 0.25)
        for order, (counts, codes) in enumerate(zip(self.counts, self._codes(text))):
            if most is not None and order > most:
                return
            seen = counts.reshape(-1, 4)[codes]
            found = (seen + strength * found) / (seen.sum(1, keepdims=True) + strength)
            yield found

    def _codes(self, text: Text) -> Iterator[Ints]:
        """(t,) number of the context of each order."""
        codes = text.phases.astype(np.int64) if self.phased else np.zeros(len(text.places), np.int64)
        yield codes
        for offset in self.offsets:
            codes = codes * 5 + text.seen[text.places + offset]
            yield codes


class GeneMeans:
    """The mean bin of each gene, drawn a little to the mean of all."""

    def __init__(self, genes: int, strength: float = 10.0) -> None:
        self.sums, self.counts, self.strength = np.zeros(genes), np.zeros(genes), strength

    def add(self, ids: Ints, bins: Ints) -> None:
        """Count a cell."""
        np.add.at(self.sums, ids, bins)
        np.add.at(self.counts, ids, 1)

    @property
    def overall(self) -> float:
        return float(self.sums.sum() / max(1, self.counts.sum()))

    def __call__(self, ids: Ints) -> Floats:
        """Expected bins of these genes."""
        return (self.sums + self.strength * self.overall)[ids] / (self.counts + self.strength)[ids]


class LikeCells:
    """The mean bin of a gene in the `k` training cells that are most like what is seen of a cell.

    A cell is its bins less the means of their genes; likeness is the cosine. Drawn to the gene's mean.
    """

    def __init__(self, means: GeneMeans, k: int = 20, strength: float = 4.0) -> None:
        self.means, self.k, self.strength = means, k, strength
        self.ids: list[Ints] = []
        self.bins: list[Ints] = []

    def add(self, ids: Ints, bins: Ints) -> None:
        """Keep a cell, of the first 20,000."""
        if len(self.ids) < MOST_CELLS:
            self.ids.append(ids.astype(np.int32))
            self.bins.append(bins.astype(np.uint8))

    def ready(self) -> None:
        """When all cells are there."""
        values = [bins - self.means(ids) for ids, bins in zip(self.ids, self.bins)]
        self.cells = self._matrix(self.ids, values)
        self.there = self.cells.astype(bool).astype(np.float32)
        self.unit = _unit(self.cells)

    def __call__(self, ids: Ints, bins: Ints, hidden: Ints) -> Floats:
        """Expected bins of the hidden genes of one cell, of which `ids` and `bins` are seen."""
        seen = _unit(self._matrix([ids], [bins - self.means(ids)]))
        alike = np.asarray((self.unit @ seen.T).todense()).ravel()
        best = np.argpartition(-alike, min(self.k, len(alike) - 1))[: self.k]
        sums = np.asarray(self.cells[best].sum(0)).ravel()[hidden]
        counts = np.asarray(self.there[best].sum(0)).ravel()[hidden]
        return self.means(hidden) + sums / (counts + self.strength)

    def _matrix(self, ids: Sequence[Ints], values: Sequence[Floats]) -> Any:
        ends = np.cumsum([0, *map(len, ids)])
        data = np.concatenate(values).astype(np.float32)
        return sparse.csr_matrix((data, np.concatenate(ids), ends), shape=(len(ids), len(self.means.sums)))


def _unit(rows: Any) -> Any:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    return sparse.diags(1 / np.maximum(norms, 1e-9)) @ rows

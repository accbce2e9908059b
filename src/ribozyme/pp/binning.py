"""Expression as scGPT sees it: each value of a cell becomes its quantile bin among the cell's own values.

The published rule (Cui et al., 2024): edges are the `n_bins - 1` quantiles of a cell's non-zero values,
`left` counts the edges <= x and `right` those < x, and the bin is ceil(left - u (left - right)). A value that
lies on no edge, or on one, has one bin whatever u is. A tied value lies on many edges; the published code
draws u anew for each, so that nine of ten values of an ordinary cell are random. Here ties share their
middle bin (u = 0.5), unless draws are asked for.

Here all cells of a batch are binned at once, without a loop over cells: equal values of a cell are a group,
and only groups, a few dozen in a cell, meet the edges.
"""

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ribozyme.errors import ConfigError, InputError

Ties = Literal["mid", "random"]
TIES: tuple[Ties, ...] = ("mid", "random")
Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
EXACT = 2**24
"""Whole numbers below it are exact in float32, and so are their differences."""
MOST_COUNTERS = 4
"""Values are counted, not sorted, while there are no more than this many counters a value."""


def binning(
    X: Any, *, n_bins: int = 51, ties: Ties = "mid", rng: np.random.Generator | None = None
) -> sparse.csr_matrix:
    """Bins of the non-zero values of each cell.

    Parameters
    ----------
    X : (cells, genes) counts or log-normalised values, dense or sparse; it is not changed
    n_bins : bins, zero among them; the published models have 51
    ties : `mid`: equal values share the middle of their bins. `random`: each draws one of them from `rng`,
        as published.

    Returns
    -------
    (cells, genes) float32 CSR, 1 to `n_bins - 1` where X is not zero.

    Raises
    ------
    InputError : a value is negative or not finite; the message names the cell by its row.

    Source: Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0.
    """
    rows = sparse.csr_matrix(X, copy=sparse.issparse(X))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    check_values(rows)
    u: float | Floats = 0.5
    if ties == "random":
        if rng is None:
            raise ConfigError("ties='random' needs rng", hint="rng=np.random.default_rng(seed)")
        u = rng.random(rows.nnz)
    elif ties != "mid":
        raise ConfigError(f"ties {ties!r} does not exist", hint="one of mid, random")
    bins = bin_rows(rows.data, rows.indptr, n_bins=n_bins, u=u).astype(np.float32)
    return sparse.csr_matrix((bins, rows.indices, rows.indptr), shape=rows.shape)


def bin_rows(values: Floats, indptr: Ints, *, n_bins: int = 51, u: float | Floats = 0.5) -> Ints:
    """Bin of each value among those of its row, for all rows at once.

    values : (T,) positive, rows end to end; indptr : (n + 1,) where each row begins
    u : 0.5 for the middle of ties, or (T,) draws from [0, 1)
    Returns (T,) int64, 1 to `n_bins - 1`.
    """
    if n_bins < 3:
        raise ConfigError(f"n_bins {n_bins} must be at least 3")
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    sizes = np.diff(indptr)
    sizes = sizes[sizes > 0]
    groups = _counted(values, sizes) or _sorted(values, sizes)
    left, right = _ranks(groups, sizes, n_bins - 1)
    if isinstance(u, float):
        return groups.to_values(np.ceil(u * (right - left) + left).astype(np.int64))
    return np.ceil(u * groups.to_values(right - left) + groups.to_values(left)).astype(np.int64)


def check_values(rows: sparse.csr_matrix, names: npt.ArrayLike | None = None) -> None:
    """Raise an `InputError` that names the first cell with a value that is negative or not finite."""
    values = rows.data
    if len(values) == 0 or (values.min() >= 0 and values.max() < np.inf):  # false for NaN
        return
    bad = ~(np.isfinite(values) & (values >= 0))
    place = int(np.argmax(bad))
    cell = int(np.searchsorted(rows.indptr, place, side="right")) - 1
    name = f"row {cell:,}" if names is None else repr(str(np.asarray(names)[cell]))
    raise InputError(
        f"cell {name} has the value {values[place]} ({int(bad.sum()):,} such values in this part)",
        hint="give counts, or log-normalised values that were not scaled to mean 0",
    )


class _Groups(NamedTuple):
    """Equal values of a row are a group; groups are in the order of the rows, and of the values in a row.

    slot : (G,) a number of each group, which rises; of : (T,) the slot of each value's group
    value, size : (G,); rows : (n,) how many groups each row has
    """

    slot: Ints
    of: Ints
    value: Floats
    size: Ints
    rows: Ints

    def to_values(self, numbers: Ints) -> Ints:
        """(G,) one number a group to (T,), that of each value's group."""
        table = np.empty(self.slot[-1] + 1, dtype=numbers.dtype)
        table[self.slot] = numbers
        return table.take(self.of)


def _counted(values: Floats, sizes: Ints) -> _Groups | None:
    """Groups of small whole numbers, as counts are, without a sort: a counter for each row and number."""
    if values.max() >= EXACT:
        return None
    whole = values.astype(np.int64)
    counters = np.maximum.reduceat(whole, np.cumsum(sizes) - sizes) + 1
    if counters.sum() > MOST_COUNTERS * len(values) or (whole != values).any():
        return None
    starts = np.cumsum(counters) - counters
    whole += np.repeat(starts, sizes)
    counts = np.bincount(whole)
    filled = np.flatnonzero(counts)
    rows = np.diff(np.searchsorted(filled, starts), append=len(filled))
    value = (filled - np.repeat(starts, rows)).astype(np.float64)
    return _Groups(filled, whole, value, counts[filled], rows)


def _sorted(values: Floats, sizes: Ints) -> _Groups:
    """Groups of any numbers, by a sort of each row."""
    values = np.ascontiguousarray(values, dtype=None if values.dtype.kind == "f" else np.float64)
    starts = np.cumsum(sizes) - sizes
    cuts = pairwise([*starts.tolist(), len(values)])
    order = np.concatenate([np.argsort(values[start:end]) + start for start, end in cuts])
    ordered = values[order]
    first = np.append(True, ordered[1:] != ordered[:-1])
    first[starts] = True
    firsts = np.flatnonzero(first)
    size = np.diff(firsts, append=len(values))
    of = np.empty(len(values), dtype=np.int64)
    of[order] = np.repeat(firsts, size)
    return _Groups(firsts, of, ordered[firsts], size, np.add.reduceat(first, starts, dtype=np.int64))


def _ranks(groups: _Groups, sizes: Ints, count: int) -> tuple[Ints, Ints]:
    """For each group how many of the `count` edges of its row are at most its value, and how many below it.

    The edges are `np.quantile(row, linspace(0, 1, count))` to the last bit. In a row of n sorted values an
    edge lies between two known neighbours, so no search is needed.
    """
    at = np.repeat(np.arange(len(groups.size)), groups.size)  # the group at each place of the sorted rows
    starts = np.cumsum(sizes) - sizes
    place = (sizes - 1)[:, None] * np.linspace(0, 1, count)
    below = np.floor(place).astype(np.int64)
    t = place - below
    last = (sizes - 1)[:, None]
    low = at[np.minimum(below, last) + starts[:, None]]
    high = at[np.minimum(below + 1, last) + starts[:, None]]
    a, b = groups.value[low], groups.value[high]
    step = b - a
    edges = np.where(t >= 0.5, b - step * (1 - t), a + step * t)  # two forms, as numpy, so no edge passes b
    home = np.where(edges == a, low, high)  # the group that an edge equals, or the next one up
    total = len(groups.size)
    left = np.cumsum(np.bincount(home.ravel(), minlength=total))
    left -= np.repeat(np.arange(len(sizes)) * count, groups.rows)
    return left, left - np.bincount(home[(edges == a) | (edges == b)], minlength=total)

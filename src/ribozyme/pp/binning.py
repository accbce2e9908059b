"""Expression as scGPT sees it: each value of a cell becomes its quantile bin among the cell's own values.

The published rule (Cui et al., 2024): edges are the `n_bins - 1` quantiles of a cell's non-zero values,
`left` counts the edges <= x and `right` those < x, and the bin is ceil(left - u (left - right)). A value that
lies on no edge, or on one, has one bin whatever u is. A tied value lies on many edges; the published code
draws u anew for each, so that nine of ten values of an ordinary cell are random. Here ties share their
middle bin (u = 0.5), unless draws are asked for.

Here all cells of a batch are binned at once, without a loop over cells. In a row of n sorted values edge k
lies between two known neighbours, so no search is needed: each edge is counted at the group of equal values
that it equals or precedes, and the running count over the groups is `left`.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ribozyme.errors import ConfigError, InputError

Ties = Literal["mid", "random"]
TIES: tuple[Ties, ...] = ("mid", "random")
Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


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
    values = np.ascontiguousarray(values, dtype=None if values.dtype.kind == "f" else np.float64)
    sizes = np.diff(indptr).astype(np.int64)
    sizes = sizes[sizes > 0]
    starts = np.cumsum(sizes) - sizes
    row = np.repeat(np.arange(len(sizes)), sizes)
    order = _order(values, row)
    ordered = values[order]
    first = np.ones(len(ordered), dtype=bool)  # of a group of equal values
    first[1:] = (ordered[1:] != ordered[:-1]) | (row[1:] != row[:-1])
    group = np.cumsum(first) - 1
    low, high, edges = _edges(ordered, starts, sizes, n_bins - 1)
    on_low = edges == ordered[low]
    at = np.where(on_low, group[low], group[high])  # the group that an edge equals, or the next one up
    equal = on_low | (edges == ordered[high])
    groups = int(first.sum())
    left = np.cumsum(np.bincount(at, minlength=groups)) - np.repeat(
        np.arange(len(sizes)) * (n_bins - 1), np.add.reduceat(first, starts, dtype=np.int64)
    )
    right = left - np.bincount(at[equal], minlength=groups)
    bins = np.empty(len(values), dtype=np.int64)
    if isinstance(u, float):
        bins[order] = np.ceil(u * (right - left) + left).astype(np.int64)[group]
    else:
        bins[order] = np.ceil(u[order] * (right - left)[group] + left[group]).astype(np.int64)
    return bins


def check_values(rows: sparse.csr_matrix, names: npt.ArrayLike | None = None) -> None:
    """Raise an `InputError` that names the first cell with a value that is negative or not finite."""
    bad = ~(np.isfinite(rows.data) & (rows.data >= 0))
    if not bad.any():
        return
    place = int(np.argmax(bad))
    cell = int(np.searchsorted(rows.indptr, place, side="right")) - 1
    name = f"row {cell:,}" if names is None else repr(str(np.asarray(names)[cell]))
    raise InputError(
        f"cell {name} has the value {rows.data[place]} ({int(bad.sum()):,} such values in this part)",
        hint="give counts, or log-normalised values that were not scaled to mean 0",
    )


def _order(values: Floats, row: Ints) -> Ints:
    """The order of the values inside each row, rows in place."""
    if values.dtype != np.float32:
        return np.lexsort((values, row))
    # the bits of positive float32 numbers sort as the numbers do, and one sort of integers is 3 times faster
    return np.argsort(row.astype(np.uint64) << np.uint64(32) | values.view(np.uint32))


def _edges(ordered: Floats, starts: Ints, sizes: Ints, count: int) -> tuple[Ints, Ints, Floats]:
    """`np.quantile(row, linspace(0, 1, count))` of each row of sorted values, to the last bit.

    Returns for every edge of every row the positions of the two values around it, and the edge.
    """
    place = (sizes - 1)[:, None] * np.linspace(0, 1, count)
    low = np.floor(place).astype(np.int64)
    t = place - low
    last = (sizes - 1)[:, None]
    high = np.minimum(low + 1, last) + starts[:, None]
    low = np.minimum(low, last) + starts[:, None]
    a, b = ordered[low], ordered[high]
    step = b - a
    edges = np.where(t >= 0.5, b - step * (1 - t), a + step * t)  # two forms, as numpy, so no edge passes b
    return low.ravel(), high.ravel(), edges.ravel()

"""Cells as scGPT reads them: matched genes, expression in bins, a window of genes, `<cls>` in front.

Genes are matched in `genes.py`, values binned in `binning.py`, the window chosen in `window.py`. Every step
is a function of the cell alone, so a cell's tokens do not depend on the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ribozyme.errors import ConfigError
from ribozyme.packing import Packed
from ribozyme.pp.binning import TIES, Ties, bin_rows, check_values
from ribozyme.pp.genes import GeneMatch
from ribozyme.pp.window import SELECTIONS, Select, content_keys, draws, in_window
from ribozyme.report import Report

Array = npt.NDArray[np.float32]
BLOCK = 2**16
"""Expressed genes, of all cells, that are worked on at a time, so that they stay in the caches."""
MAX_LENGTH = 1_200
"""Tokens of a cell in pretraining, `<cls>` among them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a cell becomes tokens.

    max_length : tokens of a cell at most, `<cls>` among them
    select : the genes that stay when there are more: a `sample`, or the `top` values
    ties : equal values share their middle bin (`mid`), or each draws one (`random`, as published)
    seed : of the sample and of random ties; the numbers depend on it and on the cell, on nothing else
    zero_genes : matched genes that a cell does not express are read too, in the bin 0; a cell that expresses
        none stays empty
    """

    n_bins: int
    cls_id: int
    cls_value: float
    max_length: int = MAX_LENGTH
    select: Select = "sample"
    ties: Ties = "mid"
    seed: int = 0
    zero_genes: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length {self.max_length} leaves no room for a gene beside <cls>")
        for name, value, choices in (("select", self.select, SELECTIONS), ("ties", self.ties, TIES)):
            if value not in choices:
                raise ConfigError(f"{name} {value!r} does not exist", hint=f"one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Cells as the network reads them, end to end; each begins with `<cls>`, an empty one has nothing else.

    names : (n,) of the cells; ids, values : (T,); indptr : (n + 1,) where each cell begins
    labels : (n,) of their batches, or None
    """

    names: npt.NDArray[Any]
    ids: npt.NDArray[np.int64]
    values: Array
    indptr: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) tokens of each cell, `<cls>` among them."""
        return np.diff(self.indptr)

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """(n,) true for a cell that expresses nothing that the model knows."""
        return self.lengths == 1

    def split(self) -> tuple[list[npt.NDArray[np.int64]], list[Array]]:
        """Ids and values, one array a cell."""
        places = self.indptr[1:-1]
        return np.split(self.ids, places), np.split(self.values, places)

    def pack(self, chosen: Sequence[int]) -> Packed:
        """The chosen cells as one batch."""
        spans = [slice(self.indptr[k], self.indptr[k + 1]) for k in chosen]
        return Packed.of([self.ids[s] for s in spans], [self.values[s] for s in spans])


def tokenise(
    rows: sparse.csr_matrix, names: npt.NDArray[Any], match: GeneMatch, reading: Reading, report: Report
) -> Tokens:
    """Tokens of cells: matched genes in column order, expression in bins, no more than the window holds."""
    check_values(rows, names)
    each = len(match.genes) if reading.zero_genes else None
    parts = [_part(block, match, reading) for block in _blocks(rows, each)]
    genes = np.concatenate([np.empty(0, np.int64), *(part.genes for part in parts)])
    long = genes > reading.max_length - 1
    if long.any():
        kept = "a sample" if reading.select == "sample" else "the highest"
        kind = f"cells with more than {reading.max_length - 1:,} genes, of which {kept} was read"
        report.add(kind, str(names[np.argmax(long)]), int(long.sum()))
    return Tokens(
        names,
        np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
        np.concatenate([[0], np.cumsum(np.minimum(genes, reading.max_length - 1) + 1)]),
    )


class _Part(NamedTuple):
    """Tokens of some cells: `genes` (n,) read before the window, ids and values (T,) after it."""

    genes: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    values: Array


def _blocks(rows: sparse.csr_matrix, each: int | None = None) -> Iterator[sparse.csr_matrix]:
    """Rows, not copied, in blocks of about `BLOCK` numbers, of which a row has `each`, or those in it."""
    start, bounds = 0, rows.indptr
    counts = bounds if each is None else np.arange(len(bounds)) * each
    while start < rows.shape[0]:
        end = max(start + 1, int(np.searchsorted(counts, counts[start] + BLOCK, side="right")) - 1)
        part, shape = slice(bounds[start], bounds[end]), (end - start, rows.shape[1])
        arrays = rows.data[part], rows.indices[part], bounds[start : end + 1] - bounds[start]
        block = sparse.csr_matrix(arrays, shape=shape, copy=False)
        block.has_canonical_format = rows.has_canonical_format
        yield block
        start = end


def _part(rows: sparse.csr_matrix, match: GeneMatch, reading: Reading) -> _Part:
    ids, values, indptr = match.select(rows)
    u: Any = 0.5
    if reading.ties == "random":
        u = draws(content_keys(ids, values, indptr, reading.seed), ids, indptr, stream=0)
    bins = bin_rows(values, indptr, n_bins=reading.n_bins, u=u).astype(np.float32)
    if reading.zero_genes:
        ids, values, bins, indptr = _with_zeros(ids, values, bins, indptr, match.genes)
    genes, room = np.diff(indptr), reading.max_length - 1
    long = genes > room
    if long.any():
        keep = _in_windows(ids, values, genes, long, reading)
        ids, bins = ids[keep], bins[keep]
        indptr = np.concatenate([[0], np.cumsum(np.minimum(genes, room))])
    starts = indptr[:-1]
    return _Part(genes, np.insert(ids, starts, reading.cls_id), np.insert(bins, starts, reading.cls_value))


def _with_zeros(ids: Any, values: Any, bins: Any, indptr: Any, genes: Any) -> tuple[Any, Any, Any, Any]:
    """The same with all `genes` in each cell that has any."""
    column = np.empty(int(genes.max(initial=0)) + 1, dtype=np.int64)
    column[genes] = np.arange(len(genes))
    full = np.diff(indptr) > 0
    row = np.repeat(np.cumsum(full) - 1, np.diff(indptr))
    table = np.zeros((2, int(full.sum()), len(genes)), dtype=np.result_type(values, bins))
    table[:, row, column[ids]] = values, bins
    ends = np.concatenate([[0], np.cumsum(full * len(genes))])
    return np.tile(genes, len(table[0])), table[0].ravel(), table[1].ravel().astype(np.float32), ends


def _in_windows(ids: Any, values: Any, genes: Any, long: Any, reading: Reading) -> npt.NDArray[np.int64]:
    """Places of the tokens that stay; only those of `long` cells are looked at."""
    keep = np.ones(len(ids), dtype=bool)
    chosen = np.repeat(long, genes)
    ids, values, indptr = ids[chosen], values[chosen], np.concatenate([[0], np.cumsum(genes[long])])
    keys = content_keys(ids, values, indptr, reading.seed)
    room = reading.max_length - 1
    keep[chosen] = in_window(ids, values, indptr, keys, genes=room, select=reading.select)
    return np.flatnonzero(keep)

"""Principal components of a corpus of cells: what a cell embedding can be taught without labels.

They come from the corpus alone, in a minute, and lay cells of a kind together as well as any linear map. A
network that must tell them from a part of a cell's genes, some of them hidden, learns to read a cell whole.

n cells, V genes, d components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from ribozyme.errors import InputError

Floats = npt.NDArray[Any]

MOST_CELLS = 20_000
SMALLEST_SPREAD = 0.1
"""Of a gene, in units of all bins: one that is nearly always absent would be all noise at unit spread."""


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Directions of the cells of a corpus.

    directions : (V, d) of binned expression, in units of all bins, the first d components; by the root of
        their size, so that the first few do not outweigh the others
    centre : (d,) where the mean cell lies
    """

    directions: Tensor
    centre: Tensor

    def of(self, cells: Sequence[Any], bins: int) -> Tensor:
        """(n, d) where each of the examples lies, of length sqrt(d): as long as a layer-normed row."""
        ids = torch.from_numpy(np.concatenate([one.ids for one in cells]).astype(np.int64))
        values = torch.from_numpy(np.concatenate([one.values for one in cells]).astype(np.float32)) / bins
        starts = torch.from_numpy(np.cumsum([0, *(len(one.ids) for one in cells[:-1])]))
        rows = F.embedding_bag(ids, self.directions, starts, mode="sum", per_sample_weights=values)
        return F.normalize(rows - self.centre, dim=1) * len(self.centre) ** 0.5

    def gene_rows(self, generator: torch.Generator) -> Tensor:
        """(V, d) rows for a table of genes to start from, as small as fresh ones.

        One random row is added to all, so that a layer norm behind them keeps long what is long here: the
        rows of genes that tell cells apart.
        """
        common = torch.randint(2, (1, self.directions.shape[1]), generator=generator) * 2.0 - 1
        return 0.06 * (common + self.directions / self.directions.square().mean().sqrt())


def principal_components(corpus: Any, genes: int, bins: int, count: int) -> Components:
    """Of the first 20,000 examples of a corpus, each gene in units of its spread.

    genes : rows of the model's table; bins : of expression; count : d
    """
    read = corpus.read(np.random.default_rng(0))
    cells = list(islice((one for one in read if one is not None), MOST_CELLS))
    if len(cells) <= count:
        raise InputError(f"{corpus.where}: {count} components need more than {len(cells)} cells")
    ends = np.cumsum([0, *(len(one.ids) for one in cells)])
    ids = np.concatenate([one.ids for one in cells])
    values = np.concatenate([one.values for one in cells]).astype(np.float32) / bins
    table = sparse.csr_array((values, ids, ends), shape=(len(cells), genes))
    mean = table.mean(0)
    spread = np.sqrt(np.maximum(table.power(2).mean(0) - mean**2, 0)) + SMALLEST_SPREAD
    found = principal_directions(table.multiply(1 / spread).tocsr(), mean / spread, count)
    directions = (found / spread[:, None]).astype(np.float32)
    return Components(torch.from_numpy(directions), torch.from_numpy((mean @ directions).astype(np.float32)))


def principal_directions(table: Any, mean: Floats, count: int) -> Floats:
    """(features, count) of the rows of a sparse table around their mean, by the root of their size."""
    centred = LinearOperator(
        table.shape,
        dtype=np.float32,
        matvec=lambda v: table @ v.ravel() - mean @ v.ravel(),  # a column comes as (n, 1)
        rmatvec=lambda v: table.T @ v.ravel() - mean * v.sum(),
    )
    _, sizes, found = svds(centred, k=count, random_state=0)
    return np.asarray((found / np.sqrt(sizes)[:, None]).T)

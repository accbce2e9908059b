"""From the tokens of cells to rows: one a cell, or one a gene in the context of cells."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.engine.cell_settings import Settings
from ribozyme.engine.parts import Budget, Prepared, budgeted, in_batches
from ribozyme.packing import Packed, pool
from ribozyme.pp.tokens import Tokens
from ribozyme.report import Report

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
T = TypeVar("T")


@torch.inference_mode()
def cell_rows(module: Any, device: torch.device, tokens: Tokens, how: Settings, budget: Budget) -> Array:
    """(n, dim) of length 1; NaN for empty cells."""

    def pooled(batch: Packed, **told: Tensor) -> Tensor:
        if how.pooling == "cls":  # of the last layer, these rows alone are computed
            return module.encode(batch, layer=how.layer, rows=batch.cu_seqlens[:-1].long(), **told).float()
        rows = module.encode(batch, layer=how.layer, **told)[_is_gene(batch)]
        return pool(rows, [length - 1 for length in batch.lengths], how.pooling)

    out = np.full((len(tokens), module.config.dim), np.nan, dtype=np.float32)
    places, rows = [], []
    for chosen, vectors in _batches(tokens, device, budget, pooled):
        places.extend(chosen)
        rows.append(vectors)
    if rows:
        out[places] = F.normalize(torch.cat(rows), dim=1).cpu().numpy()
    return out


@torch.inference_mode()
def gene_rows(
    module: Any, device: torch.device, parts: Iterable[Prepared], genes: Ids, how: Settings, report: Report
) -> tuple[Ids, Array]:
    """Of `genes` those that any cell expresses, and the mean row of each over the cells that do.

    Sums are float64, so that their order leaves no trace.
    """
    place = np.full(int(genes.max()) + 1, -1, dtype=np.int64)
    place[genes] = np.arange(len(genes))
    place_of = torch.from_numpy(place).to(device)
    sums = torch.zeros(len(genes), module.config.dim, dtype=torch.float64, device=device)
    counts = torch.zeros(len(genes), dtype=torch.float64, device=device)

    def found(batch: Packed, **told: Tensor) -> tuple[Tensor, Tensor]:
        rows, gene = module.encode(batch, layer=how.layer, **told), _is_gene(batch) & (batch.values != 0)
        return place_of[batch.ids[gene]], rows[gene]

    with budgeted(how.batch_tokens, device) as budget:
        for part in parts:
            for _, (where, rows) in _batches(part.inputs, device, budget, found):
                sums.index_add_(0, where, rows.double())
                counts.index_add_(0, where, torch.ones_like(where, dtype=torch.float64))
            report.merge(part.report)
    seen = (counts > 0).cpu().numpy()
    return genes[seen], (sums / counts[:, None]).float().cpu().numpy()[seen]


def _batches(
    tokens: Tokens, device: torch.device, budget: Budget, compute: Callable[..., T]
) -> Iterator[tuple[list[int], T]]:
    """Places of cells, and `compute` of the batch of them (and their `labels`); empty cells are in none."""
    full = np.flatnonzero(~tokens.empty)

    def of_group(group: list[int]) -> T:
        batch = tokens.pack(full[group].tolist()).to(device)
        if tokens.labels is None:
            return compute(batch)
        return compute(batch, labels=torch.from_numpy(tokens.labels[full[group]]).to(device))

    for group, result in in_batches(tokens.lengths[full].tolist(), budget, of_group):
        yield full[group].tolist(), result


def _is_gene(batch: Packed) -> Tensor:
    """(T,) false for the first token of each cell."""
    gene = torch.ones(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    gene[batch.cu_seqlens[:-1].long()] = False
    return gene

"""What a user holds after `load` of scGPT: a model of cells with one verb.

From cells to embeddings: rows in chunks (`io/cells.py`), the tokens of each cell (`pp/tokens.py`), batches
filled to a token budget, results in the order of the cells. Every step is a function of the cell alone, so a
cell's embedding does not depend on the others.
"""

import copy
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.engine.family import depth, formats_of
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.cells import CHUNK, Cells, open_cells
from ribozyme.packing import Packed, plan, pool
from ribozyme.pp.binning import Ties
from ribozyme.pp.genes import GeneLookup, GeneMatch, match_genes
from ribozyme.pp.tokens import MAX_LENGTH, Reading, Tokens, tokenise
from ribozyme.pp.window import Select
from ribozyme.registry import Model
from ribozyme.report import Report

Array = npt.NDArray[np.float32]
CellPooling = Literal["cls", "mean", "max"]
POOLINGS: tuple[CellPooling, ...] = ("cls", "mean", "max")
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}


class CellModel:
    """A model of cells, ready to use.

    module : the network, a `torch.nn.Module`; `config` its sizes; `vocabulary` the genes it knows
    record : its line in the registry, or None for a local file
    """

    reads: ClassVar[str] = "cells"

    def __init__(
        self, module: nn.Module, vocabulary: Any, device: torch.device, record: Model | None = None
    ) -> None:
        self.module: Any = module.to(device).eval()
        self.vocabulary = vocabulary
        self.device = device
        self.record = record

    @property
    def config(self) -> Any:
        """The network's sizes (a frozen dataclass of its family)."""
        return self.module.config

    @cached_property
    def lookup(self) -> GeneLookup:
        """Every gene name that leads into the vocabulary."""
        return GeneLookup(self.vocabulary.ids)

    def embed(
        self,
        cells: Any,
        *,
        pooling: str = "cls",
        output: Literal["cells", "genes"] = "cells",
        key_added: str | None = None,
        layer: int = -1,
        gene_column: str | None = None,
        modality: str | None = None,
        max_length: int | None = None,
        select: Select = "sample",
        ties: Ties = "mid",
        seed: int = 0,
        batch_tokens: int | None = None,
        strict: bool = False,
    ) -> Any:
        """Embeddings of cells, or of genes in the context of these cells.

        Parameters
        ----------
        cells : AnnData (in memory, backed or a view), MuData, or a path that `read_cells` takes. Counts or
            log-normalised values; only their order within a cell counts. They are not changed.
        pooling : `cls`, the published cell embedding; `mean` or `max` over the rows of the cell's genes
        output : `genes` gives instead the mean of each gene's rows over the cells that express it
        key_added : also write `obsm[key_added]`, and the settings into `uns[key_added]`
        layer : 0 is the input embedding, 1 ... the layers, -1 the last
        gene_column : column of `var` with gene names (symbols or Ensembl ids), `index` for `var_names`; by
            default the one that the model knows best
        modality : of MuData and 10x files, RNA by default
        max_length : genes of a cell, and one for `<cls>`, at most; by default 1,200, as published
        select : which genes stay then: a `sample`, or the `top` values
        ties : equal values share their middle bin (`mid`), or each draws one (`random`, as published)
        seed : of the sample and of random ties; a cell gets the same ones in any company
        batch_tokens : tokens of a batch; by default what suits the device
        strict : unknown genes, genes beyond the window and empty cells are errors instead of one warning

        Returns
        -------
        (n, dim) float32, each row of length 1, in the order of the cells; NaN for a cell without any gene
        that the model knows. With `output="genes"` a DataFrame of (genes, dim), a row for each gene that
        some cell expresses, called as the vocabulary calls it.

        Raises
        ------
        InputError : a value is negative or not finite, no gene is known, or the file cannot be used.

        Source: scGPT, Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0.
        """
        how, layer = _pooling(pooling), depth(layer, self.config.layers)
        reading = self._reading(max_length, select, ties, seed)
        if output not in ("cells", "genes"):
            raise ConfigError(f"output {output!r} does not exist", hint="one of cells, genes")
        target = None if key_added is None else _target(cells, modality, output)
        budget, report = self._budget(batch_tokens), Report(strict)
        with open_cells(cells, modality=modality) as source:
            match = self._match(source, gene_column, report)
            if output == "genes":
                table = self._genes(source, match, reading, report, layer, budget)
                report.finish()
                return table
            vectors = np.empty((len(source), self.config.dim), dtype=np.float32)
            for start, tokens in self._tokens(source, match, reading, report):
                vectors[start : start + len(tokens)] = self._vectors(tokens, how, layer, budget)
        if target is not None:
            empty = int(np.isnan(vectors[:, 0]).sum())
            target.obsm[key_added] = vectors
            target.uns[key_added] = {"params": self._params(reading, match, how, layer, empty)}
        report.finish()
        return vectors

    def stream(
        self,
        cells: Any,
        *,
        pooling: str = "cls",
        layer: int = -1,
        gene_column: str | None = None,
        modality: str | None = None,
        max_length: int | None = None,
        select: Select = "sample",
        ties: Ties = "mid",
        seed: int = 0,
        batch_tokens: int | None = None,
        strict: bool = False,
    ) -> Iterator[tuple[str, Array]]:
        """As `embed`, one (name of the cell, embedding) at a time, in flat memory."""
        how, layer = _pooling(pooling), depth(layer, self.config.layers)
        reading = self._reading(max_length, select, ties, seed)
        budget, report = self._budget(batch_tokens), Report(strict)
        with open_cells(cells, modality=modality) as source:
            match = self._match(source, gene_column, report)
            for _, tokens in self._tokens(source, match, reading, report):
                yield from zip(map(str, tokens.names), self._vectors(tokens, how, layer, budget))
        report.finish()

    def tokens(
        self,
        cells: Any,
        *,
        gene_column: str | None = None,
        modality: str | None = None,
        max_length: int | None = None,
        select: Select = "sample",
        ties: Ties = "mid",
        seed: int = 0,
        strict: bool = False,
    ) -> Iterator[Tokens]:
        """Cells as the network reads them, a chunk at a time; parameters as in `embed`."""
        reading, report = self._reading(max_length, select, ties, seed), Report(strict)
        with open_cells(cells, modality=modality) as source:
            match = self._match(source, gene_column, report)
            for _, tokens in self._tokens(source, match, reading, report):
                yield tokens
        report.finish()

    def untrained(self, seed: int = 0) -> "CellModel":
        """The same network with fresh random weights, to see what training gave."""
        module = copy.deepcopy(self.module).cpu()
        module.initialise(torch.Generator().manual_seed(seed))
        return CellModel(module, self.vocabulary, self.device)

    def save(self, folder: str | Path, *, layout: str = "native") -> None:
        """Write weights, sizes and vocabulary; `load(folder)` gives the same model back."""
        formats_of(self.module).save(self.module, self.vocabulary, Path(folder), layout=layout)

    def _reading(self, max_length: int | None, select: Select, ties: Ties, seed: int) -> Reading:
        return Reading(
            n_bins=self.config.n_bins,
            cls_id=self.vocabulary.cls_id,
            cls_value=self.config.pad_value,  # as published: <cls> carries the value of padding
            max_length=MAX_LENGTH if max_length is None else max_length,
            select=select,
            ties=ties,
            seed=seed,
        )

    def _budget(self, batch_tokens: int | None) -> int:
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"batch_tokens {batch_tokens} must be positive")
        return batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])

    def _match(self, source: Cells, column: str | None, report: Report) -> GeneMatch:
        match = match_genes(source.var, self.lookup, column=column)
        unknown = match.examples("unmatched")
        if not len(match.genes):
            raise InputError(
                f"{source.where}: the model knows none of the {len(source.var):,} genes "
                f"(such as {', '.join(unknown)}; looked in {match.source!r})",
                hint="name the column of var with human gene symbols or Ensembl ids: gene_column=...",
            )
        kind = "genes that the model does not know, left out"
        report.add(kind, f"{source.where}: {', '.join(unknown)}", match.counts.get("unmatched", 0))
        return match

    def _tokens(
        self, source: Cells, match: GeneMatch, reading: Reading, report: Report
    ) -> Iterator[tuple[int, Tokens]]:
        """(first cell, tokens) of each chunk."""
        for start, rows in source.chunks(CHUNK):
            names = source.names[start : start + rows.shape[0]]
            try:
                tokens = tokenise(rows, names, match, reading, report)
            except InputError as error:
                error.add_note(f"in {source.where}")
                raise
            kind = "cells without any gene that the model knows; their embedding is NaN"
            if tokens.empty.any():
                report.add(kind, str(names[np.argmax(tokens.empty)]), int(tokens.empty.sum()))
            yield start, tokens

    def _batches(self, tokens: Tokens, budget: int) -> Iterator[tuple[list[int], Packed]]:
        """Places of cells, and the batch of them; empty cells are in none."""
        full = np.flatnonzero(~tokens.empty)
        for group in plan(tokens.lengths[full].tolist(), budget):
            chosen = full[group].tolist()
            yield chosen, tokens.pack(chosen).to(self.device)

    @torch.inference_mode()
    def _vectors(self, tokens: Tokens, pooling: CellPooling, layer: int, budget: int) -> Array:
        """(n, dim) of length 1; NaN for empty cells."""
        out = np.full((len(tokens), self.config.dim), np.nan, dtype=np.float32)
        places, parts = [], []
        for chosen, batch in self._batches(tokens, budget):
            places.extend(chosen)
            parts.append(_pooled(self.module.encode(batch, layer=layer), batch, pooling))
        if parts:
            out[places] = F.normalize(torch.cat(parts), dim=1).cpu().numpy()
        return out

    @torch.inference_mode()
    def _genes(
        self, source: Cells, match: GeneMatch, reading: Reading, report: Report, layer: int, budget: int
    ) -> pd.DataFrame:
        """Mean row of each gene over the cells; sums in float64, so that their order leaves no trace."""
        place = np.full(int(match.genes.max()) + 1, -1, dtype=np.int64)
        place[match.genes] = np.arange(len(match.genes))
        place_of = torch.from_numpy(place).to(self.device)
        sums = torch.zeros(len(match.genes), self.config.dim, dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(match.genes), dtype=torch.float64, device=self.device)
        for _, tokens in self._tokens(source, match, reading, report):
            for _, batch in self._batches(tokens, budget):
                gene = _is_gene(batch)
                where = place_of[batch.ids[gene]]
                sums.index_add_(0, where, self.module.encode(batch, layer=layer)[gene].double())
                counts.index_add_(0, where, torch.ones_like(where, dtype=torch.float64))
        seen = (counts > 0).cpu().numpy()
        means = (sums / counts[:, None]).float().cpu().numpy()[seen]
        names = [self.vocabulary.tokens[i] for i in match.genes[seen]]
        return pd.DataFrame(means, index=pd.Index(names, name="gene"))

    def _params(
        self, reading: Reading, match: GeneMatch, pooling: str, layer: int, empty: int
    ) -> dict[str, Any]:
        return {
            "model": self.record.name if self.record else type(self.module).__name__,
            "pooling": pooling,
            "layer": layer,
            "max_length": reading.max_length,
            "select": reading.select,
            "ties": reading.ties,
            "seed": reading.seed,
            "gene_column": match.source,
            "genes": {str(how): count for how, count in match.counts.items()},
            "genes_summed": match.duplicates,
            "cells_empty": empty,
        }


def _pooling(pooling: str) -> CellPooling:
    how = "cls" if pooling == "first" else pooling
    if how not in POOLINGS:
        raise ConfigError(
            f"pooling {pooling!r} does not exist for cells",
            hint=f"one of {', '.join(POOLINGS)}; for a row a gene, output='genes'",
        )
    return how


def _pooled(rows: Tensor, batch: Packed, pooling: CellPooling) -> Tensor:
    """(T, d) rows to (n, d) float32; the `<cls>` row is not among the genes."""
    if pooling == "cls":
        return rows[batch.cu_seqlens[:-1].long()].float()
    return pool(rows[_is_gene(batch)], [length - 1 for length in batch.lengths], pooling)


def _is_gene(batch: Packed) -> Tensor:
    """(T,) false for the first token of each cell."""
    gene = torch.ones(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    gene[batch.cu_seqlens[:-1].long()] = False
    return gene


def _target(cells: Any, modality: str | None, output: str) -> Any:
    """The AnnData that `key_added` is written to."""
    from ribozyme.io.matrices import choose_modality

    if output == "genes":
        raise ConfigError("key_added is for cells", hint="output='genes' gives a table")
    if hasattr(cells, "mod"):
        return cells.mod[choose_modality(list(cells.mod), modality, "the MuData")]
    if not hasattr(cells, "obsm"):
        raise ConfigError("key_added needs an AnnData", hint="read the file first: read_cells(path)")
    return cells

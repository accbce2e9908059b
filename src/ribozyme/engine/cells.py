"""What a user holds after `load` of scGPT: a model of cells with one verb.

From cells to embeddings: rows in chunks (`io/cells.py`), the tokens of each cell (`pp/tokens.py`), batches
filled to a token budget, results in the order of the cells. Every step is a function of the cell alone, so a
cell's embedding does not depend on the others.
"""

import copy
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ribozyme.engine.cell_parts import Matched, match_cells
from ribozyme.engine.cell_rows import cell_rows, gene_rows
from ribozyme.engine.cell_settings import Settings, choose_pooling
from ribozyme.engine.device import batch_tokens as choose_batch_tokens
from ribozyme.engine.family import depth, formats_of
from ribozyme.engine.parts import (
    Budget,
    OnError,
    Part,
    Prepared,
    check_on_error,
    computed,
    one_by_one,
    prefetch,
)
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.cells import Cells, open_cells
from ribozyme.io.matrices import choose_modality
from ribozyme.pp.binning import Ties
from ribozyme.pp.genes import GeneLookup, GeneMatch
from ribozyme.pp.tokens import MAX_LENGTH, Reading, Tokens
from ribozyme.pp.window import Select
from ribozyme.registry import Model
from ribozyme.report import Report

Array = npt.NDArray[np.float32]


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
        batch_column: str | None = None,
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
        batch_column : column of `obs` with the batch of each cell, for a model that norms by it (DSBN)
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
        if output not in ("cells", "genes"):
            raise ConfigError(f"output {output!r} does not exist", hint="one of cells, genes")
        target = None if key_added is None else _target(cells, modality, output)
        how = self.settings(
            pooling=pooling,
            layer=layer,
            gene_column=gene_column,
            batch_column=batch_column,
            modality=modality,
            max_length=max_length,
            select=select,
            ties=ties,
            seed=seed,
            batch_tokens=batch_tokens,
            strict=strict,
        )
        report = Report(strict)
        with open_cells(cells, modality=modality) as source:
            matched = self._matched(source, how, report)
            with closing(prefetch(matched.parts(how))) as ready:
                if output == "genes":
                    genes, rows = gene_rows(self.module, self.device, ready, matched.match.genes, how, report)
                    report.finish()
                    names = pd.Index([self.vocabulary.tokens[k] for k in genes], name="gene")
                    return pd.DataFrame(rows, index=names)
                vectors = np.empty((len(source), self.config.dim), dtype=np.float32)
                for part in computed(self, how, ready):
                    vectors[part.start : part.end] = part.rows
                    report.merge(part.report)
        if target is not None:
            empty = int(np.isnan(vectors[:, 0]).sum())
            target.obsm[key_added] = vectors
            target.uns[key_added] = {"params": self._params(matched.match, how, empty)}
        report.finish()
        return vectors

    def stream(self, cells: Any, **settings: Any) -> Iterator[tuple[str, Array]]:
        """As `embed`, one (name of the cell, embedding) at a time, in flat memory."""
        return one_by_one(self.parts(cells, **settings))

    def parts(
        self, cells: Any, *, start: int = 0, on_error: OnError = "fail", **settings: Any
    ) -> Generator[Part, None, None]:
        """As `embed`, one `Part` at a time; the next one is prepared while one is computed.

        Parameters
        ----------
        start : the place of the first cell wanted; a place where some part ends, so that the parts from there
            on are the same as they are from the beginning
        on_error : `fail`, or `skip`, which puts bad cells into `Part.rejected` with the reason
        settings : those of `embed`
        """
        how = self.settings(**settings)
        with closing(prefetch(self.prepare(cells, how, start=start, on_error=on_error))) as ready:
            yield from computed(self, how, ready)

    def settings(
        self,
        *,
        pooling: str = "cls",
        layer: int = -1,
        gene_column: str | None = None,
        batch_column: str | None = None,
        modality: str | None = None,
        max_length: int | None = None,
        select: Select = "sample",
        ties: Ties = "mid",
        seed: int = 0,
        batch_tokens: int | None = None,
        strict: bool = False,
    ) -> Settings:
        """The arguments of `embed`, checked, with what is decided by the model and the device."""
        budget = choose_batch_tokens(self.device, batch_tokens)
        reading = self._reading(max_length, select, ties, seed)
        layer = depth(layer, self.config.layers)
        self._check_batches(batch_column)
        columns = gene_column, batch_column
        return Settings(choose_pooling(pooling), layer, reading, *columns, modality, budget, strict)

    def prepare(
        self, cells: Any, how: Settings, *, start: int = 0, on_error: OnError = "fail"
    ) -> Iterator[Prepared]:
        """Cells of one part after the other, as tokens; the network is not needed for it."""
        check_on_error(on_error)
        report = Report(how.strict)
        with open_cells(cells, modality=how.modality) as source:
            matched = self._matched(source, how, report)
            for part in matched.parts(how, start, on_error):
                if part.start == 0:  # what concerns all cells is counted in the first part
                    part.report.merge(report)
                yield part

    def compute(self, prepared: Prepared, how: Settings, budget: Budget) -> Part:
        """The embeddings of what `prepare` gave; `budget` learns what fits into memory."""
        rows = cell_rows(self.module, self.device, prepared.inputs, how, budget)
        budget.note(prepared.report)
        return Part(prepared.start, prepared.end, prepared.names, rows, prepared.rejected, prepared.report)

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
            matched = match_cells(source, self.lookup, gene_column, report, self.config.zero_genes)
            yield from matched.chunks(reading, report)
        report.finish()

    def count(self, cells: Any, how: Settings) -> int:
        """How many cells there are."""
        with open_cells(cells, modality=how.modality) as source:
            return len(source)

    def describe(self, cells: Any, how: Settings, empty: int) -> dict[str, Any]:
        """How embeddings of these cells were made, as `embed` writes it into `uns`; `empty` have none."""
        with open_cells(cells, modality=how.modality) as source:
            matched = self._matched(source, how, Report())
            return self._params(matched.match, how, empty)

    def untrained(self, seed: int = 0) -> "CellModel":
        """The same network with fresh random weights, to see what training gave."""
        module = copy.deepcopy(self.module).cpu()
        module.initialise(torch.Generator().manual_seed(seed))
        return CellModel(module, self.vocabulary, self.device)

    def save(self, folder: str | Path, *, layout: str = "native") -> None:
        """Write weights, sizes and vocabulary; `load(folder)` gives the same model back."""
        formats_of(self.module).save(self.module, self.vocabulary, Path(folder), layout=layout)

    def _matched(self, source: Cells, how: Settings, report: Report) -> Matched:
        matched = match_cells(source, self.lookup, how.gene_column, report, self.config.zero_genes)
        if how.batch_column is None:
            return matched
        labels = source.codes(how.batch_column, self.config.known_batches)
        if untrained := {*self.module.untrained_domains()} & {*labels.tolist()}:
            names = [self.config.known_batches[k] for k in sorted(untrained)]
            raise InputError(
                f"{source.where}: the model saw no cell of batch {names[0]!r} in its training, so it cannot "
                "norm those here",
                hint="leave them out, or train it on some",
            )
        return replace(matched, labels=labels)

    def _check_batches(self, column: str | None) -> None:
        if self.config.domains and column is None:
            raise ConfigError(
                "this model norms each cell by its batch, which is not said",
                hint=f"batch_column, of obs, with {', '.join(self.config.known_batches[:20])}",
            )
        if column is not None and not self.config.domains:
            raise ConfigError(
                "to this model the batch of a cell makes no difference", hint="leave batch_column out"
            )

    def _reading(self, max_length: int | None, select: Select, ties: Ties, seed: int) -> Reading:
        return Reading(
            n_bins=self.config.n_bins,
            cls_id=self.vocabulary.cls_id,
            cls_value=self.config.pad_value,  # as published: <cls> carries the value of padding
            max_length=MAX_LENGTH if max_length is None else max_length,
            select=select,
            ties=ties,
            seed=seed,
            zero_genes=bool(self.config.zero_genes),
        )

    def _params(self, match: GeneMatch, how: Settings, empty: int) -> dict[str, Any]:
        batch = {} if how.batch_column is None else {"batch_column": how.batch_column}
        return batch | {
            "model": self.record.name if self.record else type(self.module).__name__,
            "pooling": how.pooling,
            "layer": how.layer,
            "max_length": how.reading.max_length,
            "select": how.reading.select,
            "ties": how.reading.ties,
            "seed": how.reading.seed,
            "gene_column": match.source,
            "genes": {str(kind): count for kind, count in match.counts.items()},
            "genes_summed": match.duplicates,
            "cells_empty": empty,
        }


def _target(cells: Any, modality: str | None, output: str) -> Any:
    """The AnnData that `key_added` is written to."""
    if output == "genes":
        raise ConfigError("key_added is for cells", hint="output='genes' gives a table")
    if hasattr(cells, "mod"):
        return cells.mod[choose_modality(list(cells.mod), modality, "the MuData")]
    if not hasattr(cells, "obsm"):
        raise ConfigError("key_added needs an AnnData", hint="read the file first: read_cells(path)")
    return cells

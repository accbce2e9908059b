"""What a user holds after `load` of scGPT: a model of cells with one verb.

From cells to embeddings: rows in chunks (`io/cells.py`), the tokens of each cell (`pp/tokens.py`), batches
filled to a token budget, results in the order of the cells. Every step is a function of the cell alone, so a
cell's embedding does not depend on the others.
"""

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from ribozyme.engine.family import depth, formats_of
from ribozyme.engine.parts import PART, Budget, OnError, Part, Prepared, check_on_error, in_batches, prefetch
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.cells import CHUNK, Cells, open_cells
from ribozyme.packing import Packed, pool
from ribozyme.pp.binning import Ties
from ribozyme.pp.genes import GeneLookup, GeneMatch, match_genes
from ribozyme.pp.tokens import MAX_LENGTH, Reading, Tokens, tokenise
from ribozyme.pp.window import Select
from ribozyme.registry import Model
from ribozyme.report import Rejected, Report

Array = npt.NDArray[np.float32]
CellPooling = Literal["cls", "mean", "max"]
POOLINGS: tuple[CellPooling, ...] = ("cls", "mean", "max")
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """How cells become embeddings: the arguments of `embed`, each checked and decided."""

    pooling: CellPooling
    layer: int
    reading: Reading
    gene_column: str | None
    modality: str | None
    batch_tokens: int
    strict: bool


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
        if output not in ("cells", "genes"):
            raise ConfigError(f"output {output!r} does not exist", hint="one of cells, genes")
        target = None if key_added is None else _target(cells, modality, output)
        how = self.settings(
            pooling=pooling,
            layer=layer,
            gene_column=gene_column,
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
            match = self._match(source, gene_column, report)
            if output == "genes":
                table = self._genes(source, match, how, report)
                report.finish()
                return table
            vectors = np.empty((len(source), self.config.dim), dtype=np.float32)
            for part in self._parts(self._prepared(source, match, how), how):
                vectors[part.start : part.end] = part.rows
                report.merge(part.report)
        if target is not None:
            target.obsm[key_added] = vectors
            target.uns[key_added] = {"params": self._params(match, how, int(np.isnan(vectors[:, 0]).sum()))}
        report.finish()
        return vectors

    def stream(self, cells: Any, **settings: Any) -> Iterator[tuple[str, Array]]:
        """As `embed`, one (name of the cell, embedding) at a time, in flat memory."""
        report = Report()
        for part in self.parts(cells, **settings):
            yield from zip(part.names, part.rows)
            report.merge(part.report)
        report.finish()

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
        yield from self._parts(self.prepare(cells, how, start=start, on_error=on_error), how)

    def settings(
        self,
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
    ) -> Settings:
        """The arguments of `embed`, checked, with what is decided by the model and the device."""
        default = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        budget = default if batch_tokens is None else batch_tokens
        if budget < 1:
            raise ConfigError(f"batch_tokens {batch_tokens} must be positive")
        reading = self._reading(max_length, select, ties, seed)
        layer = depth(layer, self.config.layers)
        return Settings(_pooling(pooling), layer, reading, gene_column, modality, budget, strict)

    def prepare(
        self, cells: Any, how: Settings, *, start: int = 0, on_error: OnError = "fail"
    ) -> Iterator[Prepared]:
        """Cells of one part after the other, as tokens; the network is not needed for it."""
        check_on_error(on_error)
        report = Report(how.strict)
        with open_cells(cells, modality=how.modality) as source:
            match = self._match(source, how.gene_column, report)
            for part in self._prepared(source, match, how, start, on_error):
                if part.start == 0:  # what concerns all cells is counted in the first part
                    part.report.merge(report)
                yield part

    def compute(self, prepared: Prepared, how: Settings, budget: Budget) -> Part:
        """The embeddings of what `prepare` gave; `budget` learns what fits into memory."""
        before = budget.halved
        rows = self._vectors(prepared.inputs, how, budget)
        if budget.halved > before:
            budget.note(prepared.report, before)
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
            match = self._match(source, gene_column, report)
            for first, rows in source.chunks(CHUNK):
                places = np.arange(first, first + rows.shape[0])
                yield self._tokens(source, places, rows, match, reading, report)
        report.finish()

    def count(self, cells: Any, how: Settings) -> int:
        """How many cells there are."""
        with open_cells(cells, modality=how.modality) as source:
            return len(source)

    def describe(self, cells: Any, how: Settings, empty: int) -> dict[str, Any]:
        """How embeddings of these cells were made, as `embed` writes it into `uns`; `empty` have none."""
        with open_cells(cells, modality=how.modality) as source:
            return self._params(self._match(source, how.gene_column, Report()), how, empty)

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

    def _parts(self, prepared: Iterator[Prepared], how: Settings) -> Iterator[Part]:
        budget = Budget(how.batch_tokens)
        with closing(prefetch(prepared)) as ready:
            for one in ready:
                yield self.compute(one, how, budget)

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

    def _prepared(
        self,
        source: Cells,
        match: GeneMatch,
        how: Settings,
        start: int = 0,
        on_error: OnError = "fail",
    ) -> Iterator[Prepared]:
        """Chunks of cells cut into parts, from cell `start` on."""
        for first, rows in source.chunks(CHUNK, start):
            places, report = np.arange(first, first + rows.shape[0]), Report(how.strict)
            rejected: list[Rejected] = []
            try:
                tokens = self._tokens(source, places, rows, match, how.reading, report)
            except InputError:
                if on_error == "fail":
                    raise
                rejected = list(self._bad(source, first, rows, match, how))
                good = np.delete(places, [one.position - first for one in rejected])
                tokens = self._tokens(source, good, rows[good - first], match, how.reading, report)
                places = good
            for part in _cut(tokens, places, (first, first + rows.shape[0]), PART * how.batch_tokens):
                part.report, report = report, Report(how.strict)
                part.rejected = [one for one in rejected if part.start <= one.position < part.end]
                if part.start >= start:
                    yield part

    def _bad(
        self, source: Cells, first: int, rows: sparse.csr_matrix, match: GeneMatch, how: Settings
    ) -> Iterator[Rejected]:
        """The cells that cannot be read, found by halving."""
        places = np.arange(first, first + rows.shape[0])
        try:
            self._tokens(source, places, rows, match, how.reading, Report(how.strict))
        except InputError as error:
            if len(places) == 1:
                yield Rejected(first, str(source.names[first]), error.message)
                return
            middle = len(places) // 2
            yield from self._bad(source, first, rows[:middle], match, how)
            yield from self._bad(source, first + middle, rows[middle:], match, how)

    def _tokens(
        self,
        source: Cells,
        places: npt.NDArray[np.int64],
        rows: sparse.csr_matrix,
        match: GeneMatch,
        reading: Reading,
        report: Report,
    ) -> Tokens:
        """Tokens of the cells at `places`, whose `rows` these are."""
        names = source.names[places]
        try:
            tokens = tokenise(rows, names, match, reading, report)
        except InputError as error:
            error.add_note(f"in {source.where}")
            raise
        kind = "cells without any gene that the model knows; their embedding is NaN"
        if tokens.empty.any():
            report.add(kind, str(names[np.argmax(tokens.empty)]), int(tokens.empty.sum()))
        return tokens

    def _batches(
        self, tokens: Tokens, budget: Budget, compute: Callable[[Packed], T]
    ) -> Iterator[tuple[list[int], T]]:
        """Places of cells, and `compute` of the batch of them; empty cells are in none."""
        full = np.flatnonzero(~tokens.empty)

        def of_group(group: list[int]) -> T:
            return compute(tokens.pack(full[group].tolist()).to(self.device))

        for group, result in in_batches(tokens.lengths[full].tolist(), budget, of_group):
            yield full[group].tolist(), result

    @torch.inference_mode()
    def _vectors(self, tokens: Tokens, how: Settings, budget: Budget) -> Array:
        """(n, dim) of length 1; NaN for empty cells."""

        def pooled(batch: Packed) -> Tensor:
            if how.pooling == "cls":  # of the last layer, these rows alone are computed
                return self.module.encode(batch, layer=how.layer, rows=batch.cu_seqlens[:-1].long()).float()
            rows = self.module.encode(batch, layer=how.layer)[_is_gene(batch)]
            return pool(rows, [length - 1 for length in batch.lengths], how.pooling)

        out = np.full((len(tokens), self.config.dim), np.nan, dtype=np.float32)
        places, rows = [], []
        for chosen, vectors in self._batches(tokens, budget, pooled):
            places.extend(chosen)
            rows.append(vectors)
        if rows:
            out[places] = F.normalize(torch.cat(rows), dim=1).cpu().numpy()
        return out

    @torch.inference_mode()
    def _genes(self, source: Cells, match: GeneMatch, how: Settings, report: Report) -> pd.DataFrame:
        """Mean row of each gene over the cells; sums in float64, so that their order leaves no trace."""
        place = np.full(int(match.genes.max()) + 1, -1, dtype=np.int64)
        place[match.genes] = np.arange(len(match.genes))
        place_of = torch.from_numpy(place).to(self.device)
        sums = torch.zeros(len(match.genes), self.config.dim, dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(match.genes), dtype=torch.float64, device=self.device)

        def add(batch: Packed) -> None:
            rows = self.module.encode(batch, layer=how.layer)
            gene = _is_gene(batch)
            where = place_of[batch.ids[gene]]
            sums.index_add_(0, where, rows[gene].double())
            counts.index_add_(0, where, torch.ones_like(where, dtype=torch.float64))

        budget = Budget(how.batch_tokens)
        with closing(prefetch(self._prepared(source, match, how))) as ready:
            for part in ready:
                deque(self._batches(part.inputs, budget, add), maxlen=0)
                report.merge(part.report)
        seen = (counts > 0).cpu().numpy()
        means = (sums / counts[:, None]).float().cpu().numpy()[seen]
        names = [self.vocabulary.tokens[i] for i in match.genes[seen]]
        return pd.DataFrame(means, index=pd.Index(names, name="gene"))

    def _params(self, match: GeneMatch, how: Settings, empty: int) -> dict[str, Any]:
        return {
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


def _cut(
    tokens: Tokens, places: npt.NDArray[np.int64], span: tuple[int, int], limit: int
) -> Iterator[Prepared]:
    """The cells of a chunk in parts of about `limit` tokens.

    places : of the cells in the input; span : of the chunk, where some cells may have been left out
    """
    inner = np.searchsorted(tokens.indptr, np.arange(limit, tokens.indptr[-1], limit))
    cuts = sorted({0, *inner.tolist(), len(tokens)})
    bounds = [span[0], *(int(places[k]) for k in cuts[1:-1]), span[1]]
    for (a, b), (start, end) in zip(pairwise(cuts) if len(tokens) else [(0, 0)], pairwise(bounds)):
        begin, stop = tokens.indptr[a], tokens.indptr[b]
        some = Tokens(
            tokens.names[a:b],
            tokens.ids[begin:stop],
            tokens.values[begin:stop],
            tokens.indptr[a : b + 1] - begin,
        )
        yield Prepared(start, end, [str(name) for name in some.names], some)


def _pooling(pooling: str) -> CellPooling:
    how = "cls" if pooling == "first" else pooling
    if how not in POOLINGS:
        raise ConfigError(
            f"pooling {pooling!r} does not exist for cells",
            hint=f"one of {', '.join(POOLINGS)}; for a row a gene, output='genes'",
        )
    return how


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

"""From cells to the parts of a job: genes matched, rows tokenised chunk by chunk, chunks cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ribozyme.engine.cell_settings import Settings
from ribozyme.engine.parts import PART, OnError, Prepared
from ribozyme.errors import InputError
from ribozyme.io.cells import CHUNK, Cells
from ribozyme.pp.genes import GeneLookup, GeneMatch, match_genes
from ribozyme.pp.tokens import Reading, Tokens, tokenise
from ribozyme.report import Rejected, Report


@dataclass(frozen=True, slots=True)
class Matched:
    """Cells of a source, which of its genes the model knows, and of which batch (n,) each is, or None."""

    source: Cells
    match: GeneMatch
    labels: npt.NDArray[np.int64] | None = None

    def chunks(self, reading: Reading, report: Report) -> Iterator[Tokens]:
        """All cells as the network reads them."""
        for first, rows in self.source.chunks(CHUNK):
            yield self._tokens(np.arange(first, first + rows.shape[0]), rows, reading, report)

    def parts(self, how: Settings, start: int = 0, on_error: OnError = "fail") -> Iterator[Prepared]:
        """Chunks of cells cut into parts, from cell `start` on."""
        for first, rows in self.source.chunks(CHUNK, start):
            places, report = np.arange(first, first + rows.shape[0]), Report(how.strict)
            rejected: list[Rejected] = []
            try:
                tokens = self._tokens(places, rows, how.reading, report)
            except InputError:
                if on_error == "fail":
                    raise
                rejected = list(self._bad(first, rows, how))
                good = np.delete(places, [one.position - first for one in rejected])
                tokens = self._tokens(good, rows[good - first], how.reading, report)
                places = good
            for part in _cut(tokens, places, (first, first + rows.shape[0]), PART * how.batch_tokens):
                part.report, report = report, Report(how.strict)
                part.rejected = [one for one in rejected if part.start <= one.position < part.end]
                if part.start >= start:
                    yield part

    def _bad(self, first: int, rows: sparse.csr_matrix, how: Settings) -> Iterator[Rejected]:
        """The cells that cannot be read, found by halving."""
        places = np.arange(first, first + rows.shape[0])
        try:
            self._tokens(places, rows, how.reading, Report(how.strict))
        except InputError as error:
            if len(places) == 1:
                yield Rejected(first, str(self.source.names[first]), error.message)
                return
            middle = len(places) // 2
            yield from self._bad(first, rows[:middle], how)
            yield from self._bad(first + middle, rows[middle:], how)

    def _tokens(
        self,
        places: npt.NDArray[np.int64],
        rows: sparse.csr_matrix,
        reading: Reading,
        report: Report,
    ) -> Tokens:
        """Tokens of the cells at `places`, whose `rows` these are."""
        names = self.source.names[places]
        try:
            tokens = tokenise(rows, names, self.match, reading, report)
        except InputError as error:
            error.add_note(f"in {self.source.where}")
            raise
        kind = "cells without any gene that the model knows; their embedding is NaN"
        if tokens.empty.any():
            report.add(kind, str(names[np.argmax(tokens.empty)]), int(tokens.empty.sum()))
        return tokens if self.labels is None else replace(tokens, labels=self.labels[places])


def match_cells(
    source: Cells, lookup: GeneLookup, column: str | None, report: Report, only: Sequence[int] = ()
) -> Matched:
    """The genes of a source found in the vocabulary.

    only : ids of the genes that the model reads in every cell, if it reads no others

    Raises
    ------
    InputError : none of them is known.
    """
    match = match_genes(source.var, lookup, column=column)
    unknown = match.examples("unmatched")
    if not len(match.genes):
        raise InputError(
            f"{source.where}: the model knows none of the {len(source.var):,} genes "
            f"(such as {', '.join(unknown)}; looked in {match.source!r})",
            hint="name the column of var with human gene symbols or Ensembl ids: gene_column=...",
        )
    kind = "genes that the model does not know, left out"
    report.add(kind, f"{source.where}: {', '.join(unknown)}", match.counts.get("unmatched", 0))
    return Matched(source, _chosen(match, only, source.where, report) if only else match)


def _chosen(match: GeneMatch, only: Sequence[int], where: str, report: Report) -> GeneMatch:
    """The genes that the model reads; those that are not there, and others that are, are counted."""
    chosen = match.only(only)
    if not len(chosen.genes):
        raise InputError(
            f"{where}: there is none of the {len(only):,} genes that the model reads",
            hint="it was trained on chosen genes (zero_genes), which its cells must have",
        )
    missing = len(only) - len(chosen.genes)
    report.add("genes that the model reads in every cell, but are not there", where, missing)
    if others := len(match.genes) - len(chosen.genes):
        report.note("genes beside those that the model was trained to read, left out", where, others)
    return chosen


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
            None if tokens.labels is None else tokens.labels[a:b],
        )
        yield Prepared(start, end, [str(name) for name in some.names], some)

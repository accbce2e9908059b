"""What a network is pretrained on, read as it is needed: sequences or cells, from files of any size.

A row that is not trained on (held out, or nothing in it) is read as None, so that a place in a corpus is a
number of rows, whoever reads it.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ribozyme.engine.cell_parts import match_cells
from ribozyme.errors import ConfigError, InputError
from ribozyme.files import digest_all
from ribozyme.io.cells import Cells, open_cells
from ribozyme.io.sequences import choose_columns, has_columns, read_record, read_sequences
from ribozyme.pp.codons import mark_codons
from ribozyme.pp.genes import GeneLookup, match_genes
from ribozyme.pp.tokens import Reading, tokenise
from ribozyme.report import Report
from ribozyme.train.objectives import Example
from ribozyme.train.tables import read_text, readable

Coding = Literal["whole", "mark", "only"]
CODINGS: tuple[Coding, ...] = ("whole", "mark", "only")
FRAMES = {"cds_start": float, "cds_end": float}
"""Numbers, missing where a row has no coding sequence."""
SPREAD = 16
"""Held-out sequences that are read for each one that is looked at."""
ROWS, CELLS = 4_096, 1_024
"""Rows of a table, and cells, that are read at a time."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table, of `var` or of `obs` to read: sequences, gene names, batches, classes."""

    sequence: str | None = None
    gene: str | None = None
    batch: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceCorpus:
    """Sequences as examples.

    source : whatever `read_sequences` takes. The rows of a parquet file are read group by group, the groups
        in random order; other files from beginning to end.
    coding : of a table with columns `cds_start` and `cds_end`: `whole` sequences; `mark`, an E before each
        codon; `only`, the coding sequences alone
    held : the share of sequences that is held out (by a hash, so equal ones share their fate)
    wanted : read the `training` part, or the one `held` out
    """

    source: Any
    tokenizer: Any
    sequence_column: str | None = None
    coding: Coding = "whole"
    held: float = 0.0
    wanted: Literal["training", "held"] = "training"

    def __post_init__(self) -> None:
        if self.coding not in CODINGS:
            raise ConfigError(f"coding {self.coding!r} does not exist", hint=f"one of {', '.join(CODINGS)}")

    @property
    def where(self) -> str:
        """The source, for messages."""
        return str(self.source) if isinstance(self.source, str | Path) else "the sequences"

    def read(self, generator: np.random.Generator, skip: int = 0) -> Iterator[Example | None]:
        """The sequences of an epoch from row `skip` on; None for those that are not wanted."""
        for name, sequence, frame in self._rows(generator, skip):
            if self.coding == "only":
                sequence = "" if frame is None else sequence[frame[0] : frame[1]]
            if not sequence or held_out(sequence, self.held) != (self.wanted == "held"):
                yield None
                continue
            try:
                if self.coding == "mark" and frame is not None:
                    sequence = mark_codons(sequence, *frame)
                ids = self.tokenizer.encode(sequence)
            except InputError as error:
                error.add_note(f"in sequence {name!r} of {self.where}")
                raise
            yield Example(ids.astype(np.min_scalar_type(len(self.tokenizer.letters))))

    def _rows(
        self, generator: np.random.Generator, skip: int
    ) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
        """Name, sequence, and start and end of its CDS."""
        if hasattr(self.source, "columns"):
            if skip < len(self.source):
                yield from _framed(
                    self.source.iloc[skip:], self.sequence_column, self.coding, "the DataFrame", skip
                )
        elif isinstance(self.source, str | Path) and str(self.source).lower().endswith(".parquet"):
            for table in _tables(Path(self.source), generator, skip):
                yield from _framed(table, self.sequence_column, self.coding, f"{self.source}, some rows", 0)
        elif self.coding != "whole" and isinstance(self.source, str | Path) and has_columns(self.source):
            for table in _text_tables(Path(self.source), skip):
                yield from _framed(table, self.sequence_column, self.coding, str(self.source), skip)
                skip += len(table)
        else:
            _check_frames(self.coding)
            records = read_sequences(self.source, sequence_column=self.sequence_column)
            yield from ((one.name, one.sequence, None) for one in islice(records, skip, None))


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCorpus:
    """Cells as examples: the ids of their genes, and the bins of their expression.

    source : whatever `open_cells` takes; of a file only some cells at a time are in memory, and these parts
        are read in random order
    held, wanted : as of `SequenceCorpus`; which cells is decided by their names
    batch_column, class_column : of `obs`, with the `label` and the `kind` of each cell, which are its places
        among `batch_names` and `class_names`
    zero_genes : ids of the genes to read in every cell, and no others; by default those that it expresses
    """

    source: Any
    lookup: GeneLookup
    n_bins: int
    gene_column: str | None = None
    batch_column: str | None = None
    batch_names: tuple[str, ...] = ()
    class_column: str | None = None
    class_names: tuple[str, ...] = ()
    zero_genes: tuple[int, ...] = ()
    held: float = 0.0
    wanted: Literal["training", "held"] = "training"

    @property
    def where(self) -> str:
        """The source, for messages."""
        return str(self.source) if isinstance(self.source, str | Path) else "the cells"

    def read(self, generator: np.random.Generator, skip: int = 0) -> Iterator[Example | None]:
        """The cells of an epoch from number `skip` on; None for those that are not wanted."""
        with open_cells(self.source) as cells:
            yield from self._examples(cells, _parts(len(cells), generator, skip))

    def sample(self, most: int) -> list[Example]:
        """At most so many of the wanted cells, from everywhere in the source."""
        with open_cells(self.source) as cells:
            wanted = [k for k, name in enumerate(cells.names) if self._wants(name)]
            chosen = sorted(np.random.default_rng(0).permutation(wanted)[:most].astype(int).tolist())
            rows = self._examples(cells, ((k, k + 1) for k in chosen))
            return [one for one in rows if one is not None]

    def _examples(self, cells: Cells, spans: Iterable[tuple[int, int]]) -> Iterator[Example | None]:
        """The cells from a start to an end, of each span."""
        match = match_cells(cells, self.lookup, self.gene_column, Report(), self.zero_genes).match
        measured = np.sort(match.genes).astype(np.int32) if self.zero_genes else None
        labels, kinds = self.labels(cells)
        # <cls> is put in front, and the window chosen, when a cell is used
        reading = Reading(n_bins=self.n_bins, cls_id=0, cls_value=0.0, max_length=1 << 30)
        kind_of_bins = np.min_scalar_type(self.n_bins)
        for start, end in spans:
            for first, rows in _some(cells, start, end).chunks(CELLS):
                here = slice(start + first, start + first + rows.shape[0])
                tokens = tokenise(rows, cells.names[here], match, reading, Report())
                each = zip(cells.names[here], *tokens.split(), labels[here], kinds[here])
                for name, ids, bins, label, kind in each:
                    genes, values = ids[1:].astype(np.int32), bins[1:].astype(kind_of_bins)
                    one = Example(genes, values, int(label), int(kind), measured)
                    yield one if self._wants(name) and len(ids) > 1 else None

    def _wants(self, name: Any) -> bool:
        return held_out(str(name), self.held) == (self.wanted == "held")

    def labels(self, cells: Cells) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The batch and the class of each cell; 0 where no column says them."""
        told = (self.batch_column, self.batch_names), (self.class_column, self.class_names)
        nothing = np.zeros(len(cells), dtype=np.int64)
        labels, kinds = (nothing if column is None else cells.codes(column, names) for column, names in told)
        return labels, kinds


def held_out(text: str, share: float) -> bool:
    """Whether a sequence, or a cell by its name, is held out: decided by a hash of its letters."""
    return share > 0 and zlib.crc32(text.upper().replace("T", "U").encode()) < share * 2**32


def held_examples(corpus: SequenceCorpus | CellCorpus, most: int) -> list[Example]:
    """At most so many of what is held out, from everywhere: files are often sorted.

    Of cells from the whole source, of sequences from the first that are held out, `SPREAD` times as many.
    """
    held = replace(corpus, wanted="held")
    if isinstance(held, CellCorpus):
        return held.sample(most)
    rows = held.read(np.random.default_rng(0))
    some = list(islice((one for one in rows if one is not None), SPREAD * most))
    chosen = sorted(np.random.default_rng(0).permutation(len(some))[:most].tolist())
    return [some[k] for k in chosen]


def described(source: Any) -> Any:
    """What of a corpus, or of anything else that a run is made of, must be the same for the run to go on.

    Of a file its name and digest, of what is in memory its type and a digest, beside how a corpus reads it.
    """
    if source is None:
        return None
    if isinstance(source, str | Path):
        return [Path(source).name, digest_all(Path(source))[:16]]
    if isinstance(source, SequenceCorpus):
        return [described(source.source), source.coding, source.sequence_column, source.held, source.wanted]
    if isinstance(source, CellCorpus):
        return _described_cells(source)
    found = hashlib.sha256()
    _digest_into(found, source)
    return [type(source).__name__, found.hexdigest()[:16]]


def _described_cells(corpus: CellCorpus) -> list[Any]:
    found, where = hashlib.sha256(), corpus.source
    how = [getattr(corpus, one.name) for one in fields(corpus) if one.name not in ("source", "lookup")]
    _digest_into(found, how)
    if isinstance(where, str | Path):
        return [*described(where), found.hexdigest()[:16]]
    with open_cells(where) as cells:
        match = match_genes(cells.var, corpus.lookup, column=corpus.gene_column)
        _digest_into(found, [match.ids, *corpus.labels(cells), list(cells.names)])
        for _, rows in cells.chunks():
            _digest_into(found, rows)
    return [corpus.where, found.hexdigest()[:16]]


def _digest_into(found: Any, source: Any) -> None:
    """Arrays, tables, cells, strings, numbers, lists and dataclasses of them; of other objects the type."""
    if isinstance(source, np.ndarray | torch.Tensor) and getattr(source.dtype, "kind", "") != "O":
        array = np.ascontiguousarray(source)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    elif hasattr(source, "indptr"):
        _digest_into(found, [source.indptr, source.indices, source.data])
    elif hasattr(source, "iloc"):
        found.update(pd.util.hash_pandas_object(source).to_numpy().tobytes())
    elif is_dataclass(source) and not isinstance(source, type):
        _digest_into(found, [getattr(source, one.name) for one in fields(source)])
    elif isinstance(source, list | tuple | np.ndarray):
        for one in source:
            _digest_into(found, one)
            found.update(b",")
    elif isinstance(source, str | bytes | int | float | None):
        found.update(repr(source).encode())
    else:
        found.update(type(source).__name__.encode())


def _framed(
    table: Any, column: str | None, coding: Coding, where: str, done: int
) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
    """Of each row name, sequence, and start and end of its CDS; `done` rows of `where` came before."""
    sequence, name = choose_columns(where, [str(one) for one in table.columns], column)
    names = [None] * len(table) if name is None else table[name]
    rows = zip(names, table[sequence], count(done + 1))
    records = (read_record(called, text, where, number) for called, text, number in rows)
    if not {"cds_start", "cds_end"} <= set(table.columns):
        _check_frames(coding)
        yield from ((one.name, one.sequence, None) for one in records)
        return
    for one, start, end in zip(records, table["cds_start"], table["cds_end"]):
        whole = start >= 0 and end > start and (end - start) % 3 == 0
        yield one.name, one.sequence, (int(start), int(end)) if whole else None


def _tables(path: Path, generator: np.random.Generator, skip: int) -> Iterator[Any]:
    """Rows of a parquet file as tables, from row `skip` of a random order of its row groups on."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        counts = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        order = generator.permutation(len(counts)).tolist()
        while order and skip >= counts[order[0]]:
            skip -= counts[order.pop(0)]
        for batch in file.iter_batches(ROWS, row_groups=order) if order else ():
            if skip < batch.num_rows:
                yield batch.slice(skip).to_pandas()
            skip = max(0, skip - batch.num_rows)


def _text_tables(path: Path, skip: int) -> Iterator[Any]:
    """Rows of a .csv or .tsv as tables, from row `skip` on."""
    how = {"chunksize": ROWS, "skiprows": range(1, skip + 1), "dtype": FRAMES}
    with readable(path), read_text(path, **how) as tables:
        yield from tables


def _check_frames(coding: str) -> None:
    if coding != "whole":
        raise ConfigError(
            f"coding {coding!r} needs to know where coding sequences are",
            hint="a table with columns cds_start and cds_end, in letters from 0; or coding='whole'",
        )


def _parts(count: int, generator: np.random.Generator, skip: int) -> Iterator[tuple[int, int]]:
    """Start and end of parts of `count` rows in random order, from row `skip` of that order on."""
    for start in (generator.permutation(-(-count // CELLS)) * CELLS).tolist():
        end = min(start + CELLS, count)
        if skip < end - start:
            yield start + skip, end
        skip = max(0, skip - (end - start))


def _some(cells: Cells, start: int, end: int) -> Cells:
    return replace(cells, names=cells.names[start:end], rows=lambda a, b: cells.rows(start + a, start + b))

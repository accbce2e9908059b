"""`ribozyme embed | demo`: the main job, and a look at it."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ribozyme.cli.language import Device, Dtype, Overlong, Strict
from ribozyme.errors import ConfigError, InputError

CELL_SUFFIXES = (".h5ad", ".h5mu", ".h5", ".zarr", ".loom", ".mtx", ".mtx.gz")
TABLE_SUFFIXES = tuple(kind + packed for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz"))
T = TypeVar("T")


def embed(
    input: Annotated[
        str, typer.Argument(help="sequences (FASTA, table, text, -) or cells (.h5ad, 10x, ...)")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the suffix chooses the format")],
    model: Annotated[
        str, typer.Option(help="name, folder, file or hub id; by default a mini model")
    ] = "auto",
    pooling: Annotated[str, typer.Option(help="mean, first, last, max, none, cls; cells: cls")] = "auto",
    layer: Annotated[int, typer.Option(help="0 the input embedding, 1 ..., -1 the last layer")] = -1,
    overlong: Overlong = "error",
    batch_tokens: Annotated[int | None, typer.Option(help="tokens of a batch; default by device")] = None,
    sequence_column: Annotated[
        str | None, typer.Option(help="column of a table that holds sequences")
    ] = None,
    gene_column: Annotated[
        str | None, typer.Option(help="var column with gene names; default: the best")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="of .h5mu and 10x files; RNA by default")] = None,
    max_length: Annotated[int | None, typer.Option(help="genes of a cell plus one; default 1200")] = None,
    key_added: Annotated[str, typer.Option(help="obsm key in a .h5ad output")] = "X_ribozyme",
    strict: Strict = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Embed sequences or cells."""
    from ribozyme.engine.load import load
    from ribozyme.io.tables import check_output

    if input != "-" and not Path(input).exists():
        raise InputError(f"{input}: there is no such file or folder")
    cells, table = _holds_cells(input), input.endswith(TABLE_SUFFIXES)
    if not ((cells or table) and output.suffix == ".h5ad"):
        check_output(output)
    name = model if model != "auto" else "scgpt-mini" if cells else "rnafm-mini"
    loaded = load(name, device=device, dtype=dtype)
    cells = cells or (table and loaded.reads == "cells")  # a table holds what the model reads
    holds = "cells" if cells else "sequences"
    if loaded.reads != holds:
        raise ConfigError(f"{name} reads {loaded.reads}, and {input} holds {holds}")
    how = pooling if pooling != "auto" else "cls" if cells else "mean"
    common = {"pooling": how, "layer": layer, "batch_tokens": batch_tokens, "strict": strict}
    if not cells:
        sequences = Column(input, sequence_column) if sequence_column else input
        stream = loaded.stream(sequences, overlong=overlong, **common)
        _write_stream(output, stream, holds, ragged=how == "none")
        return
    settings = {**common, "gene_column": gene_column, "modality": modality, "max_length": max_length}
    if output.suffix == ".h5ad":
        _write_h5ad(loaded, input, output, key_added, settings)
    else:
        _write_stream(output, loaded.stream(input, **settings), holds, ragged=False)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures and embeddings")] = Path(
        "demo"
    ),
) -> None:
    """Embed the example RNAs and cells with the models in the package; print a table, write pictures."""
    from ribozyme.demo import report, run

    report(run(output), output)


def _holds_cells(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        return True
    return source.endswith(CELL_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, read anew each time it is gone through."""

    source: str
    name: str

    def __iter__(self) -> Iterator[Any]:
        from ribozyme.io.sequences import read_sequences

        return iter(read_sequences(self.source, sequence_column=self.name))


def _write_stream(output: Path, stream: Iterable[tuple[str, Any]], unit: str, *, ragged: bool) -> None:
    from ribozyme.io.tables import open_writer

    with _progress(unit) as advance, open_writer(output, ragged=ragged) as writer:
        for name, array in stream:
            writer.write(name, array)
            advance(1)


@contextmanager
def _progress(unit: str) -> Iterator[Any]:
    """A counter with a rate on stderr when that is a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} " + unit), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(unit, total=None)
        yield lambda count: progress.advance(task, count)


def _write_h5ad(model: Any, source: str, output: Path, key: str, settings: dict[str, Any]) -> None:
    """The input with the embeddings in `obsm[key]`."""
    from ribozyme.files import AtomicFile
    from ribozyme.io.cells import read_cells

    cells = read_cells(source, modality=settings["modality"])
    model.embed(cells, key_added=key, **settings)
    with AtomicFile(output) as temporary:
        cells.write_h5ad(temporary, compression="gzip")

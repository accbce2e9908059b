"""`ribozyme embed | demo`: the main job, and a look at it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.cli.language import Device, Dtype, Overlong, SequenceColumn, Strict


def embed(
    input: Annotated[
        str,
        typer.Argument(
            help="sequences (FASTA, table, text, -) or cells (.h5ad, 10x, ...); also a folder, pattern or URL"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the suffix chooses the format")],
    model: Annotated[
        str, typer.Option(help="name, folder, file or hub id; by default a mini model")
    ] = "auto",
    pooling: Annotated[str, typer.Option(help="mean, first, last, max, none, cls; cells: cls")] = "auto",
    layer: Annotated[int, typer.Option(help="0 the input embedding, 1 ..., -1 the last layer")] = -1,
    overlong: Overlong = "error",
    batch_tokens: Annotated[int | None, typer.Option(help="tokens of a batch; default by device")] = None,
    sequence_column: SequenceColumn = None,
    gene_column: Annotated[
        str | None, typer.Option(help="var column with gene names; default: the best")
    ] = None,
    batch_column: Annotated[
        str | None, typer.Option(help="obs column with batches, for a model that norms by them")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="of .h5mu and 10x files; RNA by default")] = None,
    max_length: Annotated[int | None, typer.Option(help="genes of a cell plus one; default 1200")] = None,
    key_added: Annotated[str, typer.Option(help="obsm key in a .h5ad output")] = "X_ribozyme",
    on_error: Annotated[str, typer.Option(help="a bad record: fail, or skip (listed beside)")] = "fail",
    engine: Annotated[str, typer.Option(help="local, or ray: many processes or machines")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="of a running cluster; default: one here")] = None,
    workers: Annotated[int | None, typer.Option(help="of Ray; default: one a GPU or 4 cores")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="leave an output that is whole as it is")] = False,
    strict: Strict = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Embed sequences or cells. A job that was stopped goes on when the same command is given again."""
    from ribozyme.engine.job import embed_file, stopped_by_signals
    from ribozyme.engine.sink import parts_folder
    from ribozyme.report import counted

    settings = {
        "pooling": (pooling, "auto"),
        "layer": (layer, -1),
        "overlong": (overlong, "error"),
        "batch_tokens": (batch_tokens, None),
        "sequence_column": (sequence_column, None),
        "gene_column": (gene_column, None),
        "batch_column": (batch_column, None),
        "modality": (modality, None),
        "max_length": (max_length, None),
        "strict": (strict, False),
    }
    given: dict[str, Any] = {name: value for name, (value, default) in settings.items() if value != default}
    with _progress() as advance, stopped_by_signals() as stop:
        outcome = embed_file(
            model,
            input,
            output,
            resume=resume,
            on_error=on_error,
            key_added=key_added,
            device=device,
            dtype=dtype,
            engine=engine,
            ray_address=ray_address,
            workers=workers,
            stop=stop,
            advance=advance,
            **given,
        )
    if outcome.existed:
        print(f"{output} is whole already and was left as it is", file=sys.stderr)
    if outcome.rejected:
        left_out = counted(outcome.rejected, "records left out")
        print(f"{left_out}, see {output}.rejected.jsonl", file=sys.stderr)
    if outcome.stopped is not None:
        kept = f"{outcome.rows:,} results are kept in {parts_folder(output)}"
        again = (
            "standard input cannot be resumed" if input == "-" else "to resume, give the same command again"
        )
        print(f"stopped; {kept}; {again}", file=sys.stderr)
        raise typer.Exit(128 + outcome.stopped)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures and embeddings")] = Path(
        "demo"
    ),
) -> None:
    """Embed the example RNAs and cells with the models in the package; print a table, write pictures."""
    from ribozyme.demo import report, run

    report(run(output), output)


@contextmanager
def _progress() -> Iterator[Any]:
    """A counter with the time on stderr when that is a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} embedded"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("embed", total=None)
        yield lambda count: progress.advance(task, count)

"""`ribozyme score | fill`: what a language model says about sequences."""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.files import AtomicFile

Input = Annotated[str, typer.Argument(help="FASTA, FASTQ, table or text file; - for standard input")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="a .tsv file; standard output if left out")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32 (exact) or bfloat16")]
Overlong = Annotated[str, typer.Option(help="inputs past the model's window: error, truncate or window")]
SequenceColumn = Annotated[str | None, typer.Option(help="column of a table that holds sequences")]
Strict = Annotated[bool, typer.Option("--strict", help="unknown letters and truncation are errors")]


def score(
    input: Input,
    output: Output = None,
    sequence_column: SequenceColumn = None,
    model: Annotated[str, typer.Option(help="name, folder, file or hub id")] = "helix-mrna-mini",
    overlong: Overlong = "error",
    strict: Strict = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Log-likelihood of each sequence, in nats per letter; a masked model takes a pass for each letter."""
    loaded, records = _prepare(model, input, sequence_column, device, dtype)
    scores = loaded.score(records, overlong=overlong, strict=strict)
    rows = [(record.name, f"{value:.6f}") for record, value in zip(records, scores)]
    _write(output, ("id", "score"), rows)


def fill(
    input: Input,
    output: Output = None,
    sequence_column: SequenceColumn = None,
    model: Annotated[str, typer.Option(help="name, folder, file or hub id")] = "rnafm-mini",
    top: Annotated[int, typer.Option(help="letters to list a mask", min=1)] = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Rank the letters (codons) at each <mask> of each sequence; positions count from 0."""
    loaded, records = _prepare(model, input, sequence_column, device, dtype)
    rows = [
        (record.name, one.position, rank + 1, letter, f"{probability:.6f}")
        for record, masks in zip(records, loaded.fill(records, top=top))
        for one in masks
        for rank, (letter, probability) in enumerate(zip(one.letters, one.probabilities))
    ]
    _write(output, ("id", "position", "rank", "letter", "probability"), rows)


def _prepare(
    model: str, source: str, sequence_column: str | None, device: str, dtype: str
) -> tuple[Any, list[Any]]:
    from ribozyme.engine.load import load
    from ribozyme.io.sequences import read_sequences

    records = list(read_sequences(source, sequence_column=sequence_column))
    return load(model, device=device, dtype=dtype), records


def _write(output: Path | None, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    if output is None:
        _write_rows(sys.stdout, header, rows)
        return
    with AtomicFile(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, header, rows)


def _write_rows(file: Any, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)

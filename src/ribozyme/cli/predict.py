"""`ribozyme predict`: a table of predictions for new inputs."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.cli.language import Device
from ribozyme.cli.runs import Overlong, Run, check_choice, read_about

CHUNK = 4096
"""Inputs that are predicted before they are written."""


def predict(
    run: Run,
    input: Annotated[str, typer.Argument(help="sequences (FASTA, table, text) or cells (.h5ad, 10x)")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".csv, .tsv, .parquet or .json")],
    sequence_column: Annotated[
        str | None, typer.Option(help="column of sequences in a table; default: that of the run")
    ] = None,
    overlong: Overlong = None,
    device: Device = "auto",
) -> None:
    """Predict for new inputs with a trained run."""
    from ribozyme.files import AtomicFile
    from ribozyme.io.sequences import has_columns
    from ribozyme.io.tables import check_file
    from ribozyme.loading import load

    suffix = output.suffix.lower()
    check_choice("suffix", suffix, (".csv", ".tsv", ".parquet", ".json"))
    check_file(output)
    about = read_about(run)
    estimator = load(run, device=device)
    estimator.overlong = overlong or estimator.overlong
    targets = about["target"].split(",")
    if sequence_column is None and has_columns(input):
        sequence_column = about["sequence_column"]
    with AtomicFile(output) as temporary:
        _write_frames(
            temporary,
            suffix,
            (_frame(estimator, names, X, targets) for names, X in _chunks(estimator, input, sequence_column)),
        )


def _chunks(estimator: Any, source: str, sequence_column: str | None) -> Iterator[tuple[list[str], Any]]:
    """Names and inputs, some at a time."""
    if estimator.tuned_.model.reads == "cells":
        from ribozyme.io.cells import read_cells

        cells = read_cells(source)
        yield [str(name) for name in cells.obs_names], cells
        return
    from ribozyme.io.sequences import read_sequences

    records = iter(read_sequences(source, sequence_column=sequence_column))
    while chunk := list(islice(records, CHUNK)):
        yield [one.name for one in chunk], [(one.name, one.sequence) for one in chunk]


def _frame(estimator: Any, names: list[str], X: Any, targets: list[str]) -> Any:
    """A row an input: id, the prediction, and probabilities of the classes."""
    import numpy as np
    import pandas as pd

    labels, outputs = estimator.tuned_.labels, estimator.tuned_.outputs(X, overlong=estimator.overlong)
    predicted = labels.decode(outputs)
    frame: dict[str, Any] = {"id": names}
    if labels.level == "token":
        frame[targets[0] if len(targets) == 1 else "prediction"] = [
            one if isinstance(one, str) else np.asarray(one).tolist() for one in predicted
        ]
        return pd.DataFrame(frame)
    columns = np.asarray(predicted).reshape(len(names), -1)
    frame |= {name: columns[:, k] for k, name in enumerate(targets)}
    if labels.task != "regression":
        chances = labels.probabilities(outputs)
        frame |= {f"p_{name}": chances[:, k] for k, name in enumerate(labels.classes)}
    return pd.DataFrame(frame)


def _write_frames(path: Path, suffix: str, frames: Iterator[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    if suffix == ".json":
        import pandas as pd

        pd.concat(list(frames)).to_json(path, orient="records", indent=1)
        return
    if suffix == ".parquet":
        first = pa.Table.from_pandas(next(frames), preserve_index=False)
        with pa.parquet.ParquetWriter(path, first.schema) as writer:
            writer.write_table(first)
            for frame in frames:
                writer.write_table(pa.Table.from_pandas(frame, first.schema, preserve_index=False))
        return
    separator = "\t" if suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        for place, frame in enumerate(frames):
            frame.to_csv(file, sep=separator, index=False, header=place == 0)

"""`ribozyme finetune | predict | evaluate`: a predictor of your labels, in three commands.

A run is a folder: the predictor (what `rz.load` reads), `data.json`, which says what it was trained on,
`metrics.json`, and `training/` with the log, the picture of the losses, and the checkpoint to go on from.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.cli.language import Device
from ribozyme.errors import ConfigError, InputError

DATA, METRICS, TRAINING = "data.json", "metrics.json", "training"
CHUNK = 4096
"""Inputs that are predicted before they are written."""
Table = Annotated[
    Path, typer.Argument(help="table with sequences and labels (.csv, .tsv, .parquet), or .h5ad")
]
Run = Annotated[Path, typer.Argument(help="folder of a run")]


def finetune(
    table: Table,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the run")],
    target: Annotated[str, typer.Option(help="column of labels; several: a,b,c")],
    task: Annotated[str, typer.Option(help="regression, classification, or token: labels of letters")],
    model: Annotated[str, typer.Option(help="name, folder, file or hub id")] = "auto",
    head: Annotated[str, typer.Option(help="linear, mlp, textcnn, attention")] = "linear",
    layers: Annotated[
        str, typer.Option(help="trained beside the head: 0, a number of last layers, all")
    ] = "0",
    lora_rank: Annotated[int | None, typer.Option(help="train LoRA adapters of this rank")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, max, first, last, cls, mean+last ...")] = None,
    epochs: Annotated[int | None, typer.Option(help="at most; default 100 of a head alone, else 20")] = None,
    patience: Annotated[int, typer.Option(help="epochs that are no better after which to stop")] = 10,
    learning_rate: Annotated[float | None, typer.Option(help="default: by what is trained")] = None,
    batch_size: Annotated[int, typer.Option(help="inputs of a step")] = 16,
    class_weight: Annotated[str | None, typer.Option(help="balanced: all classes count alike")] = None,
    sequence_column: Annotated[str | None, typer.Option(help="column of sequences")] = None,
    split_column: Annotated[str | None, typer.Option(help="column with train, val, test")] = None,
    group_column: Annotated[str | None, typer.Option(help="rows of a group stay in one part")] = None,
    split: Annotated[str, typer.Option(help="clusters (alike sequences stay together), random")] = "clusters",
    validation: Annotated[float, typer.Option(help="share to choose the best epoch by")] = 0.1,
    test: Annotated[float, typer.Option(help="share to test on")] = 0.1,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="leave out rows without label")
    ] = False,
    overlong: Annotated[str, typer.Option(help="sequences past the window: error, truncate")] = "error",
    baselines: Annotated[bool, typer.Option("--baselines", help="also fit simple predictors")] = False,
    seed: Annotated[int, typer.Option(help="of parts, first weights and order")] = 0,
    device: Device = "auto",
) -> None:
    """Train a predictor of a column of a table; stopped, the same command goes on."""
    from ribozyme.train.tables import groups_of, parts_of, read_labelled

    _check_choice("task", task, ("regression", "classification", "token"))
    _check_choice("split", split, ("clusters", "random"))
    source = {
        "target": target,
        "task": task,
        "sequence_column": sequence_column,
        "split_column": split_column,
        "group_column": group_column,
        "drop_missing": drop_missing,
    }
    data = read_labelled(table, **_columns(source))
    estimator = _estimator(task, data.y)(
        model if model != "auto" else "scgpt-mini" if hasattr(data.X, "obs") else "rnafm-mini",
        head=head,
        layers=_layers(layers),
        lora_rank=lora_rank,
        pooling=pooling,
        epochs=epochs,
        patience=patience,
        learning_rate=learning_rate,
        batch_size=batch_size,
        overlong=overlong,
        seed=seed,
        device=device,
        **({"class_weight": class_weight} if class_weight else {}),
    )
    groups = groups_of(data, split)
    parts = parts_of(data, groups, validation=validation, test=test, seed=seed)
    training, held, tested = (data.of(rows) for rows in (parts.train, parts.validation, parts.test))
    output.mkdir(parents=True, exist_ok=True)
    sizes = f"{len(training):,} inputs to train on, {len(held):,} to validate, {len(tested):,} to test"
    print(f"{output}: {sizes}", file=sys.stderr)
    estimator.validation = 0
    estimator.fit(
        training.X,
        training.y,
        groups=None if groups is None else groups[parts.train],
        validation_data=(held.X, held.y) if len(held) else None,
        folder=output / TRAINING,
    )
    estimator.save(output)
    rows = {name: getattr(parts, name).tolist() for name in ("train", "validation", "test")}
    about = {"table": str(table.resolve()), **source, "digest": _digest(table), "parts": rows}
    _write_json(output / DATA, about)
    judged, name = (tested, "test") if len(tested) else (held, "validation")
    if len(judged):
        _report(estimator, judged, training if baselines else None, output / METRICS, name, seed)
    print(f"{output}: predict with `ribozyme predict {output} INPUT -o OUTPUT`", file=sys.stderr)


def predict(
    run: Run,
    input: Annotated[str, typer.Argument(help="sequences (FASTA, table, text) or cells (.h5ad, 10x)")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".csv, .tsv, .parquet or .json")],
    sequence_column: Annotated[str | None, typer.Option(help="column of sequences in a table")] = None,
    device: Device = "auto",
) -> None:
    """Predict for new inputs with a trained run."""
    from ribozyme.files import AtomicFile
    from ribozyme.loading import load

    _check_choice("suffix", output.suffix, (".csv", ".tsv", ".parquet", ".json"))
    about = _about(run)
    estimator = load(run, device=device)
    targets = about["target"].split(",")
    with AtomicFile(output) as temporary:
        _write_frames(
            temporary,
            output.suffix,
            (_frame(estimator, names, X, targets) for names, X in _chunks(estimator, input, sequence_column)),
        )


def evaluate(
    run: Run,
    input: Table,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="a .json file")] = None,
    part: Annotated[
        str, typer.Option(help="train, validation, test, all; default: test where there is one")
    ] = "auto",
    baselines: Annotated[bool, typer.Option("--baselines", help="beside simple predictors")] = False,
    training: Annotated[
        Path | None, typer.Option(help="the training table, if it is not where it was")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the intervals")] = 0,
    device: Device = "auto",
) -> None:
    """Score a run on labelled inputs, with intervals; print a table, write JSON."""
    from ribozyme.loading import load
    from ribozyme.train.tables import read_labelled

    _check_choice("part", part, ("auto", "train", "validation", "test", "all"))
    about = _about(run)
    known = _digest(input) == about["digest"]
    columns = dict(about) if known else {**about, "split_column": None}
    data = read_labelled(input, **_columns(columns))
    if known and part != "all":
        part = "test" if part == "auto" and about["parts"]["test"] else part
        part = "validation" if part == "auto" and about["parts"]["validation"] else part
        if part != "auto":
            data = data.of(about["parts"][part])
    elif part not in ("auto", "all"):
        raise InputError(f"{input} is not the table of the run, so it has no {part!r} part")
    if not len(data):
        raise InputError(f"there are no rows in the {part!r} part")
    fitted = None
    if baselines:
        fitted = _training(about, training)
    _report(load(run, device=device), data, fitted, output, part if known and part != "auto" else "", seed)


def _training(about: dict[str, Any], path: Path | None) -> Any:
    """The rows that the run was trained on."""
    from ribozyme.train.tables import read_labelled

    path = path or Path(about["table"])
    if not path.exists():
        raise InputError(f"{path}: the training table is not there any more", hint="name it: --training")
    if _digest(path) != about["digest"]:
        raise InputError(f"{path}: this is not the table that the run was trained on; it was changed")
    return read_labelled(path, **_columns(about)).of(about["parts"]["train"])


def _report(estimator: Any, data: Any, training: Any, output: Path | None, part: str, seed: int) -> None:
    """Scores on stdout and in a file."""
    from rich.console import Console

    from ribozyme.train.evaluation import evaluate as scored
    from ribozyme.train.evaluation import table

    found = scored(estimator, data, training, seed=seed)
    console = Console(width=None if sys.stdout.isatty() else 200)
    title = f"{part + ': ' if part else ''}{len(data):,} inputs, 95 % intervals"
    console.print(title, highlight=False)
    console.print(table(found, console.width))
    if found.gain is not None:
        console.print(f"\n{found.by} above the best baseline: {found.gain}", highlight=False)
    if output is not None:
        _write_json(output, {"part": part or "all", "n": len(data), **found.to_dict()})


def _estimator(task: str, y: Any) -> Any:
    from ribozyme.train.estimators import Classifier, Regressor, TokenClassifier, TokenRegressor

    if task != "token":
        return Regressor if task == "regression" else Classifier
    text = any(isinstance(label, str) for one in y for label in one)
    return TokenClassifier if text else TokenRegressor


def _columns(about: dict[str, Any]) -> dict[str, Any]:
    """What `read_labelled` is told."""
    kept = {key: about[key] for key in ("sequence_column", "split_column", "group_column", "drop_missing")}
    return {"targets": about["target"].split(","), "kind": about["task"], **kept}


def _layers(layers: str) -> int | None:
    if layers == "all":
        return None
    if not layers.isdecimal():
        raise ConfigError(f"layers {layers!r} is no number", hint="0, 1, 2, ..., or all")
    return int(layers)


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ConfigError(f"{name} {given!r} does not exist", hint=f"one of {', '.join(choices)}")


def _about(run: Path) -> dict[str, Any]:
    from ribozyme.checkpoint import read_json

    if not (run / DATA).is_file():
        raise InputError(
            f"{run}: this is not the folder of a finished run", hint="made by `ribozyme finetune`"
        )
    about: dict[str, Any] = read_json(run / DATA)
    return about


def _digest(path: Path) -> str:
    from ribozyme.files import digest

    return digest(path) if path.is_file() else ""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from ribozyme.files import AtomicFile

    with AtomicFile(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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

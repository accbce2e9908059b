"""`ribozyme finetune`: from a table to a predictor of a column, in the folder of a run (`runs.py`)."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.cli.language import Device
from ribozyme.cli.runs import (
    DATA,
    METRICS,
    TRAINING,
    DropMissing,
    Table,
    check_choice,
    columns_of,
    digest_of,
    is_finished,
    read_about,
    report,
    write_json,
)
from ribozyme.errors import ConfigError


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
    lora_rank: Annotated[int | None, typer.Option(help="train LoRA adapters of this rank", min=1)] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, max, first, last, cls, frame, mean+last ...")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="at most; default 100 of a head alone, else 20", min=1)
    ] = None,
    patience: Annotated[int, typer.Option(help="epochs that are no better after which to stop", min=1)] = 10,
    learning_rate: Annotated[float | None, typer.Option(help="default: by what is trained")] = None,
    batch_size: Annotated[int, typer.Option(help="inputs of a step", min=1)] = 16,
    class_weight: Annotated[str | None, typer.Option(help="balanced: all classes count alike")] = None,
    sequence_column: Annotated[str | None, typer.Option(help="column of sequences")] = None,
    split_column: Annotated[str | None, typer.Option(help="column with train, val, test")] = None,
    group_column: Annotated[str | None, typer.Option(help="rows of a group stay in one part")] = None,
    split: Annotated[str, typer.Option(help="clusters (alike sequences stay together), random")] = "clusters",
    validation: Annotated[float, typer.Option(help="share to choose the best epoch by")] = 0.1,
    test: Annotated[float, typer.Option(help="share to test on")] = 0.1,
    drop_missing: DropMissing = False,
    precision: Annotated[str, typer.Option(help="of a descent: auto, float32 or bfloat16")] = "float32",
    overlong: Annotated[str, typer.Option(help="sequences past the window: error, truncate")] = "error",
    baselines: Annotated[bool, typer.Option("--baselines", help="also fit simple predictors")] = False,
    seed: Annotated[int, typer.Option(help="of parts, first weights and order", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Train a predictor of a column of a table; stopped, the same command goes on."""
    from ribozyme.train.tables import groups_of, parts_of, read_labelled

    check_choice("task", task, ("regression", "classification", "token"))
    check_choice("split", split, ("clusters", "random"))
    if output.is_file():
        raise ConfigError(f"{output} is a file", hint="a run is kept in a folder")
    source = {
        "target": target,
        "task": task,
        "sequence_column": sequence_column,
        "split_column": split_column,
        "group_column": group_column,
        "drop_missing": drop_missing,
    }
    data, digest = read_labelled(table, **columns_of(source)), digest_of(table)
    _check_same(output, {**source, "split": split})
    chosen = model if model != "auto" else "scgpt-mini" if hasattr(data.X, "obs") else "rnafm-mini"
    estimator = _estimator(task, data.y, class_weight)(
        chosen,
        head=head,
        layers=_layers(layers),
        lora_rank=lora_rank,
        pooling=pooling,
        epochs=epochs,
        patience=patience,
        learning_rate=learning_rate,
        batch_size=batch_size,
        validation=0,  # its part is given
        precision=precision,
        overlong=overlong,
        seed=seed,
        device=device,
    )
    data = replace(data, groups=groups_of(data, split))
    parts = parts_of(data, validation=validation, test=test, seed=seed)
    rows = {name: getattr(parts, name).tolist() for name in ("train", "validation", "test")}
    training, held, tested = (data.of(of) for of in (parts.train, parts.validation, parts.test))
    estimator.check(data.X, data.y, training.y)  # the test part too, before anything long
    _fit(estimator, training, held, output)
    sizes = ", ".join(f"{name} {len(of):,}" for name, of in rows.items())
    print(f"{output}: {sizes} inputs", file=sys.stderr)
    about = {"table": str(table.resolve()), **source, "split": split, "digest": digest, "parts": rows}
    seen = sorted({*training.digests(), *held.digests()})
    write_json(output / DATA, {**about, "seen": seen}, indent=None)  # long lists
    judged, name = (tested, "test") if len(tested) else (held, "validation")
    if len(judged):
        report(estimator, judged, training if baselines else None, output / METRICS, name, seed)
    print(f"{output}: predict with `ribozyme predict {output} INPUT -o OUTPUT`", file=sys.stderr)


def _check_same(output: Path, source: dict[str, Any]) -> None:
    """Raise `ConfigError` where the folder has a finished run that learnt other columns."""
    if not is_finished(output):
        return
    about = read_about(output)
    for name, wanted in source.items():
        if about[name] != wanted:
            option = name.replace("_", "-")
            raise ConfigError(
                f"{output}: has a run with --{option} {about[name]}, not {wanted}",
                hint="choose another folder for this one",
            )


def _fit(estimator: Any, training: Any, held: Any, output: Path) -> None:
    """Train in a folder, or go on there, and save."""
    estimator.fit(
        training.X,
        training.y,
        groups=training.groups,
        validation_data=(held.X, held.y) if len(held) else None,
        folder=output / TRAINING,
    )
    estimator.save(output)


def _estimator(task: str, y: Any, class_weight: str | None) -> Any:
    """The kind of estimator that learns such labels."""
    from functools import partial

    from ribozyme.train.estimators import Classifier, Regressor, TokenClassifier, TokenRegressor

    if task == "regression":
        kind: Any = Regressor
    elif task == "classification":
        kind = Classifier
    else:
        text = any(isinstance(label, str) for one in y for label in one)
        kind = TokenClassifier if text else TokenRegressor
    if class_weight and not issubclass(kind, Classifier):
        raise ConfigError("class weights are of classes; these labels are numbers", hint="leave it out")
    return partial(kind, class_weight=class_weight) if class_weight else kind


def _layers(layers: str) -> int | None:
    if layers == "all":
        return None
    if not layers.isdecimal():
        raise ConfigError(f"layers {layers!r} is no number", hint="0, 1, 2, ..., or all")
    return int(layers)

"""The folder of a run: the predictor (what `rz.load` reads), and files that say how it came about.

::

    data.json       the table, its columns, and the rows of each part
    metrics.json    scores on the test part
    training/       the log, the picture of the losses, and the checkpoint to go on from
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.errors import ConfigError, InputError

DATA, METRICS, TRAINING = "data.json", "metrics.json", "training"
Table = Annotated[
    Path, typer.Argument(help="table with sequences and labels (.csv, .tsv, .parquet), or .h5ad")
]
Run = Annotated[Path, typer.Argument(help="folder of a run")]


def read_about(run: Path) -> dict[str, Any]:
    from ribozyme.checkpoint import read_json

    if not (run / DATA).is_file():
        raise InputError(
            f"{run}: this is not the folder of a finished run", hint="made by `ribozyme finetune`"
        )
    about: dict[str, Any] = read_json(run / DATA)
    return about


def training_part(about: dict[str, Any], path: Path | None) -> Any:
    """The rows that the run was trained on, with their groups."""
    from dataclasses import replace

    from ribozyme.train.tables import groups_of, read_labelled

    path = path or Path(about["table"])
    if not path.exists():
        raise InputError(f"{path}: the training table is not there any more", hint="name it: --training")
    if digest_of(path) != about["digest"]:
        raise InputError(f"{path}: this is not the table that the run was trained on; it was changed")
    data = read_labelled(path, **columns_of(about))
    groups = groups_of(data, about.get("split", "random"))
    return replace(data, groups=groups).of(about["parts"]["train"])


def columns_of(about: dict[str, Any]) -> dict[str, Any]:
    """What `read_labelled` is told."""
    kept = {key: about[key] for key in ("sequence_column", "split_column", "group_column", "drop_missing")}
    return {"targets": about["target"].split(","), "kind": about["task"], **kept}


def digest_of(path: Path) -> str:
    from ribozyme.files import digest

    return digest(path) if path.is_file() else ""


def write_json(path: Path, content: dict[str, Any]) -> None:
    from ribozyme.files import AtomicFile

    with AtomicFile(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def report(estimator: Any, data: Any, training: Any, output: Path | None, part: str, seed: int) -> None:
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
        write_json(output, {"part": part or "all", "n": len(data), **found.to_dict()})


def check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ConfigError(f"{name} {given!r} does not exist", hint=f"one of {', '.join(choices)}")

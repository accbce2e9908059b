"""The folder of a run: the predictor (what `rz.load` reads), and files that say how it came about.

::

    data.json       the table, its columns, the rows of each part, and what tells the inputs that were learnt
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
COLUMNS = ("sequence_column", "split_column", "group_column", "drop_missing")
ABOUT = ("table", "target", "task", "split", "digest", "parts", "seen", *COLUMNS)
Table = Annotated[
    Path, typer.Argument(help="table with sequences and labels (.csv, .tsv, .parquet), or .h5ad")
]
Run = Annotated[Path, typer.Argument(help="folder of a run")]
DropMissing = Annotated[bool, typer.Option("--drop-missing", help="leave out rows without label")]
Overlong = Annotated[
    str | None, typer.Option(help="sequences past the window: error, truncate; default: as of the run")
]


def is_finished(run: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    from ribozyme.loading import ESTIMATOR

    return (run / DATA).is_file() and (run / ESTIMATOR).is_file()


def read_about(run: Path) -> dict[str, Any]:
    from ribozyme.checkpoint import read_json

    if not is_finished(run):
        raise InputError(
            f"{run}: this is not the folder of a finished run", hint="made by `ribozyme finetune`"
        )
    about: dict[str, Any] = read_json(run / DATA)
    if missing := [name for name in ABOUT if name not in about]:
        raise InputError(f"{run / DATA}: is damaged, it does not say {missing[0]!r}", hint="train anew")
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
    groups = groups_of(data, about["split"])
    return replace(data, groups=groups).of(about["parts"]["train"])


def columns_of(about: dict[str, Any]) -> dict[str, Any]:
    """What `read_labelled` is told."""
    kept = {key: about[key] for key in COLUMNS}
    return {"targets": about["target"].split(","), "kind": about["task"], **kept}


def digest_of(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    from ribozyme.files import digest_all

    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    return digest_all(path)


def warn_of_seen(data: Any, about: dict[str, Any], where: Path) -> None:
    """Say how many inputs are among those that the run learnt from, or chose its epoch by."""
    import warnings

    from ribozyme.errors import InputWarning

    seen = set(about["seen"])
    if count := sum(one in seen for one in data.digests()):
        warnings.warn(
            f"{where}: {count:,} of {len(data):,} inputs were in the training of the run; scores with them "
            "say little of new inputs",
            InputWarning,
            stacklevel=2,
        )


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    from ribozyme.files import AtomicFile

    with AtomicFile(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


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

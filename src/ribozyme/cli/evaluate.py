"""`ribozyme evaluate`: how good a run is on labelled inputs."""

from pathlib import Path
from typing import Annotated

import typer

from ribozyme.cli.language import Device
from ribozyme.cli.runs import (
    Run,
    Table,
    check_choice,
    columns_of,
    digest_of,
    read_about,
    report,
    training_part,
)
from ribozyme.errors import InputError


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

    check_choice("part", part, ("auto", "train", "validation", "test", "all"))
    about = read_about(run)
    known = digest_of(input) == about["digest"]
    columns = dict(about) if known else {**about, "split_column": None}
    data = read_labelled(input, **columns_of(columns))
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
        fitted = training_part(about, training)
    report(load(run, device=device), data, fitted, output, part if known and part != "auto" else "", seed)

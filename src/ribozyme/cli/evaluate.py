"""`ribozyme evaluate`: how good a run is on labelled inputs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ribozyme.cli.language import Device
from ribozyme.cli.runs import (
    DropMissing,
    Overlong,
    Run,
    Table,
    check_choice,
    columns_of,
    digest_of,
    read_about,
    report,
    training_part,
    warn_of_seen,
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
    sequence_column: Annotated[
        str | None, typer.Option(help="column of sequences; default: that of the run")
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="rows of a group are drawn together; default: that of the run, if any")
    ] = None,
    drop_missing: DropMissing = False,
    overlong: Overlong = None,
    seed: Annotated[int, typer.Option(help="of the intervals", min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Score a run on labelled inputs, with intervals; print a table, write JSON."""
    from ribozyme.io.tables import check_file
    from ribozyme.loading import load
    from ribozyme.train.tables import groups_of, read_labelled

    check_choice("part", part, ("auto", "train", "validation", "test", "all"))
    about = read_about(run)
    if output is not None:
        check_file(output)
    known = digest_of(input) == about["digest"]
    given = {"sequence_column": sequence_column or about["sequence_column"]}
    given |= {"group_column": group_column or about["group_column"]}
    if not known:
        given |= {"split_column": None, "drop_missing": drop_missing}
    columns = columns_of(about | given)
    data = read_labelled(input, **columns, groups_optional=group_column is None, as_written=True)
    if known:
        data = replace(data, groups=groups_of(data, about["split"]))
    if known and part != "all":
        part = "test" if part == "auto" and about["parts"]["test"] else part
        part = "validation" if part == "auto" and about["parts"]["validation"] else part
        if part != "auto":
            data = data.of(about["parts"][part])
    elif part not in ("auto", "all"):
        raise InputError(f"{input} is not the table of the run, so it has no {part!r} part")
    if not len(data):
        raise InputError(f"there are no rows in the {part!r} part")
    if not known:
        warn_of_seen(data, about, input)
    fitted = None
    if baselines:
        fitted = training_part(about, input if known and training is None else training)
    estimator = load(run, device=device)
    estimator.overlong = overlong or estimator.overlong
    report(estimator, data, fitted, output, part if known and part != "auto" else "", seed)

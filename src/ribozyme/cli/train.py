"""`ribozyme pretrain`: train a model on a corpus."""

import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ribozyme.cli.language import Device, SequenceColumn
from ribozyme.errors import ConfigError, InputError

AROUND = (
    *("scratch", "validation", "batch_tokens", "save_every", "log_every"),
    *("sequence_column", "gene_column", "batch_column", "class_column", "device"),
)
"""Options that are settings of `pretrain` beside the recipe."""


def pretrain(
    corpus: Annotated[
        str, typer.Argument(help="sequences (FASTA, table, text) or cells (.h5ad, 10x, ...), of any size")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the run, and of the model")],
    model: Annotated[str, typer.Option(help="name, folder, file or hub id of what to begin with")],
    scratch: Annotated[
        bool, typer.Option("--scratch", help="begin with fresh weights of the model's sizes")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="only go on with a run that is there; running again does so too")
    ] = False,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 10_000,
    step_tokens: Annotated[int, typer.Option(help="tokens of a step, over all processes")] = 8_192,
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="tokens at once; bounds the memory, and what is compared"),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(help="letters or genes of an input; of longer ones a random part")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="next, masked, values, generative; by default what the model is for")
    ] = None,
    contrast: Annotated[
        float, typer.Option(help="masked: weight of telling two parts of a sequence from others")
    ] = 0.0,
    parts: Annotated[
        str | None,
        typer.Option(help="cells: parts of the loss, such as expression=1,mvc=1,similarity=0.004"),
    ] = None,
    threshold: Annotated[float, typer.Option(help="cells: cosine that similarity moves away from")] = 0.8,
    dsbn: Annotated[bool, typer.Option("--dsbn", help="cells: norm the input by the batch")] = False,
    zero_genes: Annotated[
        bool, typer.Option("--zero-genes", help="cells: read genes that a cell does not express, too")
    ] = False,
    share: Annotated[float | None, typer.Option(help="of letters or bins that are masked")] = None,
    coding: Annotated[
        str,
        typer.Option(help="tables with cds_start, cds_end: whole, mark (E before codons), only (the CDS)"),
    ] = "whole",
    learning_rate: Annotated[float, typer.Option(help="highest")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="of matrices")] = 0.01,
    schedule: Annotated[str, typer.Option(help="wsd, cosine, linear, constant")] = "wsd",
    warmup: Annotated[int | None, typer.Option(help="steps; 2 % of all by default")] = None,
    decay: Annotated[float, typer.Option(help="wsd: share of the steps in which the rate falls")] = 0.4,
    clip: Annotated[float, typer.Option(help="longest gradient")] = 1.0,
    held: Annotated[float, typer.Option(help="share of the corpus that is held out")] = 0.005,
    validation: Annotated[
        str | None, typer.Option(help="another corpus to validate on, instead of a held-out part")
    ] = None,
    validate_every: Annotated[int, typer.Option(help="steps")] = 500,
    patience: Annotated[
        int | None, typer.Option(help="validations that are no better after which to stop")
    ] = None,
    save_every: Annotated[int, typer.Option(help="steps between checkpoints")] = 500,
    log_every: Annotated[int, typer.Option(help="steps between lines of the log")] = 50,
    sequence_column: SequenceColumn = None,
    gene_column: Annotated[str | None, typer.Option(help="var column with gene names")] = None,
    batch_column: Annotated[str | None, typer.Option(help="obs column with the batch of a cell")] = None,
    class_column: Annotated[
        str | None, typer.Option(help="obs column with the class of a cell, for the part classes")
    ] = None,
    buffer: Annotated[int, typer.Option(help="inputs that are shuffled together, in memory")] = 65_536,
    sorted_steps: Annotated[
        int, typer.Option(help="steps whose inputs are sorted by length together; faster")
    ] = 1,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = "auto",
) -> None:
    """Pretrain a model on a corpus; the same command again goes on where it was stopped.

    Several processes: torchrun --nproc-per-node 2 -m ribozyme.cli pretrain ..., or accelerate launch.
    """
    given = dict(locals())
    from ribozyme.train.processes import end_processes, first_process
    from ribozyme.train.recipe import Recipe
    from ribozyme.train.run import CHECKPOINT

    if resume and not (output / CHECKPOINT).is_file():
        raise InputError(f"{output}: there is no run to go on with", hint="leave out --resume to begin one")
    settings = {one.name: given[one.name] for one in fields(Recipe)}
    history = _train(
        model,
        corpus,
        output,
        Recipe(**settings | {"parts": None if parts is None else _coefficients(parts)}),
        **{name: given[name] for name in AROUND},
    )
    if first_process():
        print(_summary(output, history), file=sys.stderr)
    end_processes()


def _coefficients(text: str) -> dict[str, float]:
    """`expression=1,mvc=0.5` as a dict."""
    found: dict[str, float] = {}
    for one in text.split(","):
        name, _, value = (piece.strip() for piece in one.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or math.isnan(number) or name in found:
            raise ConfigError(
                f"parts {text!r}: {one!r} is no part with a coefficient",
                hint="such as expression=1,mvc=1, each part once",
            )
        found[name] = number
    return found


def _train(model: str, corpus: str, output: Path, recipe: Any, **around: Any) -> Any:
    """The history of the training; one that was asked to stop ends the program."""
    from ribozyme.train.pretrain import pretrain as train

    try:
        return train(model, corpus, output, recipe, **around)
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"stopped; the run is kept in {output}; to go on, give the same command again", file=sys.stderr)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None


def _summary(output: Path, history: Any) -> str:
    """How the training went, and where that can be looked at."""
    from ribozyme.train.run import BOARD, PICTURE

    held_out = history.validation_loss
    board = output / BOARD
    return (
        f"{output}: {history.steps[-1]:,} steps, {history.tokens[-1]:,} tokens, "
        f"loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f}"
        + (f"; held out {held_out[0]:.4f} -> {min(held_out):.4f}" if held_out else "")
        + f"\ncurve: {output / PICTURE}; "
        + (f"tensorboard --logdir {board}" if board.is_dir() else "for TensorBoard: pip install tensorboard")
    )

"""The command line. Results go to stdout or a file; everything said to people goes to stderr."""

import logging
import sys
import warnings
from typing import Annotated

import typer

from ribozyme import __version__
from ribozyme.cli import catalogue, embed, evaluate, finetune, language, predict, train
from ribozyme.errors import RibozymeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="RNA and single-cell foundation models: embed, score, fill; from FASTA, tables and AnnData.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of every command."""


app.command()(embed.embed)
app.command()(language.score)
app.command()(language.fill)
app.command()(train.pretrain)
app.command()(finetune.finetune)
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(catalogue.models)
app.command()(catalogue.info)
app.command()(catalogue.convert)
app.command()(embed.demo)


def main() -> None:
    """Run the command line; our own errors become one message and exit status 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    warnings.showwarning = _said_plainly
    try:
        app()
    except RibozymeError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        print(f"error: {error.message}{notes}{hint}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _said_plainly(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)

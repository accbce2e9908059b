"""Real files through `ribozyme embed`: what each costs, and everything that the command says.

    python benchmarks/real_data.py --rows 20 -o real_data.json

Every table of RNA and file of cells in RIBOZYME_DATA, with the models in the package and with full-size
checkpoints of random weights in their published layouts. From a large file some rows are taken (`--rows`,
`--mini-rows`); `--largest` reads the largest file of each kind whole, with a model in the package. The
command runs as a user runs it, in a process of its own; its output is read back: a row an input, in order,
finite.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

import ribozyme as rz

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from ribozyme.cli import main; main()", "embed"]
CODON_MODELS = ("mrnafm",)
WINDOWED = ("rnafm-mini", "rnafm", "mrnafm")
SHORT_CELLS = 65
"""Tokens of a cell for full-size models in `cells/formats`, whose files are not cut but have 120 cells."""
LARGEST = {"rnafm-mini": "ncrna/corpus.parquet", "helix-mrna-mini": "mrna/corpus.parquet"}
LARGEST["scgpt-mini"] = "cells/corpus/corpus_cells.h5ad"


@dataclass(frozen=True, slots=True)
class Job:
    """One file for one model. rows : how many are taken, None for the whole file."""

    model: str
    weights: str
    file: Path
    rows: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the command gave.

    rows, tokens : read (letters or codons; genes of cells, with `<cls>`)
    left_out : rows that cannot be read by this kind of model (a codon model and no whole codons)
    said : lines on stderr; wrong : what is wrong with status or output, "" for nothing
    """

    model: str
    file: str
    rows: int
    tokens: int
    left_out: int = 0
    seconds: float = 0.0
    peak: int = 0
    said: tuple[str, ...] = ()
    wrong: str = ""


# ---------------------------------------------------------------------------------------------------- jobs


def data_folder() -> Path:
    """RIBOZYME_DATA, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; set RIBOZYME_DATA")
    return folder


def sequence_files(data: Path) -> list[Path]:
    return sorted([*data.glob("mrna/*.parquet"), *data.glob("ncrna/*.parquet")])


def cell_files(data: Path) -> list[Path]:
    whole = [p for p in data.glob("cells/*") if p.suffix in (".h5ad", ".h5mu")]
    formats = [p for p in data.glob("cells/formats/*") if p.name not in ("README.md",)]
    return sorted([*whole, *data.glob("cells/corpus/*.h5ad"), *formats])


def minis() -> dict[str, str]:
    """The models whose weights are in the package: name to what they read."""
    folder = resources.files("ribozyme") / "weights"
    models = {"rnafm-mini": "sequences", "helix-mrna-mini": "sequences", "scgpt-mini": "cells"}
    return {k: v for k, v in models.items() if (folder / k / "model.safetensors").is_file()}


def make_rnafm(folder: Path) -> Path:
    """RNA-FM as its authors publish it."""
    return _rnafm(folder, {}, "RNA-FM_pretrained.pth")


def make_mrnafm(folder: Path) -> Path:
    """mRNA-FM as its authors publish it."""
    from ribozyme.models.rnafm.tokenizer import CODON

    sizes = {"dim": 1280, "vocabulary": CODON, "embed_norm": False}
    return _rnafm(folder, sizes, "mRNA-FM_pretrained.pth")


def _rnafm(folder: Path, sizes: dict[str, Any], name: str) -> Path:
    from ribozyme.models.rnafm import formats
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    module = _fresh(lambda: RNAFM(Config(**sizes)))
    formats.save(module, Tokenizer(module.config.vocabulary), folder, layout="fairseq")
    return folder / name


def make_helix(folder: Path, layout: str = "M+M*M+M+") -> Path:
    """The hybrid as a folder of the Hub."""
    from ribozyme.models.helix import formats
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import HELIX, MAMBA2, Tokenizer

    vocabulary = MAMBA2 if set(layout) == {"M"} else HELIX
    module = _fresh(lambda: HelixMRNA(Config(layout=layout, vocab_size=len(vocabulary))))
    formats.save(module, Tokenizer(vocabulary), folder, layout="hf")
    return folder


def make_mamba2(folder: Path) -> Path:
    """The pure model as a folder of the Hub."""
    return make_helix(folder, "M" * 16)


def make_scgpt(folder: Path) -> Path:
    """The whole-human model: best_model.pt, args.json, vocab.json."""
    from ribozyme.models.scgpt import formats
    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary

    formats.save(_fresh(lambda: ScGPT(Config())), Vocabulary.census(), folder, layout="scgpt")
    return folder


def _fresh(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu").initialise(torch.Generator().manual_seed(0))
    return module.eval()


FULL: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "rnafm": ("sequences", make_rnafm),
    "mrnafm": ("sequences", make_mrnafm),
    "helix-mrna": ("sequences", make_helix),
    "mamba2-mrna": ("sequences", make_mamba2),
    "scgpt": ("cells", make_scgpt),
}


def jobs(
    data: Path, work: Path, only: str, rows: int, mini_rows: int, full: bool, largest: bool
) -> Iterator[Job]:
    """Model by model: its weights are made when its first file is due."""
    files = {"sequences": sequence_files(data), "cells": cell_files(data)}
    for model, kind in minis().items():
        for file in files[kind]:
            if only in f"{model} {file}":
                yield Job(model, model, file, mini_rows or None)
        if largest and only in f"{model} {LARGEST[model]}":
            yield Job(model, model, data / LARGEST[model], None)
    for model, (kind, make) in FULL.items() if full else ():
        wanted = [file for file in files[kind] if only in f"{model} {file}"]
        weights = str(make(work / model)) if wanted else ""
        yield from (Job(model, weights, file, rows) for file in wanted)


# ------------------------------------------------------------------------------------------- one file, once


def run(job: Job, work: Path, device: str) -> Outcome:
    """Take rows, run the command, read back what it wrote."""
    is_table = job.file.suffix == ".parquet"
    prepare = prepare_sequences if is_table else prepare_cells
    source, names, tokens, left_out = prepare(job, work)
    outcome = Outcome(job.model, _short(job.file), len(names), tokens, left_out)
    if not names:
        return replace(outcome, said=("no row is of whole codons",))
    output = work / "out.parquet"
    output.unlink(missing_ok=True)
    command = [*COMMAND, str(source), "-o", str(output), "--model", job.weights, "--device", device]
    if job.model in WINDOWED:
        command += ["--overlong", "window"]
    if (longest := _longest(job)) is not None:
        command += ["--max-length", str(longest)]
    measure = [sys.executable, str(Path(__file__).with_name("measured.py")), *command]
    environment = {**os.environ, "RIBOZYME_CACHE": str(work / "cache")}
    done = subprocess.run(measure, capture_output=True, text=True, check=False, env=environment)
    found = json.loads(done.stdout)
    said = tuple(line for line in done.stderr.splitlines() if line.strip())
    wrong = f"status {found['status']}" if found["status"] else check(output, names)
    return replace(outcome, seconds=found["seconds"], peak=found["peak"], said=said, wrong=wrong)


def prepare_sequences(job: Job, work: Path) -> tuple[Path, list[str], int, int]:
    """The file, or a table with some of its rows; its names, letters (codons), and rows left out."""
    table = pd.read_parquet(job.file)
    unit = 3 if job.model in CODON_MODELS else 1
    fits = table.sequence.str.len() % unit == 0
    some = table[fits]
    if job.rows is not None and job.rows < len(some):
        some = some.sample(job.rows, random_state=0)
    path = job.file
    if len(some) < len(table):
        path = work / job.file.name
        some.to_parquet(path)
    return path, some.id.astype(str).tolist(), int(some.sequence.str.len().sum()) // unit, int((~fits).sum())


def prepare_cells(job: Job, work: Path) -> tuple[Path, list[str], int, int]:
    """The file, or one with some of its cells; names of the cells, and tokens that a model reads."""
    path = job.file
    if job.rows is not None and path.suffix in (".h5ad", ".h5mu") and "formats" not in path.parts:
        path = work / job.file.name
        write_some_cells(job.file, path, job.rows)
    model = rz.load(job.weights, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command says them again
        try:
            chunks = list(model.tokens(path, max_length=_longest(job)))
        except rz.errors.RibozymeError:
            return path, ["unread"], 0, 0
    names = [str(name) for chunk in chunks for name in chunk.names]
    return path, names, sum(len(chunk.ids) for chunk in chunks), 0


def _longest(job: Job) -> int | None:
    return SHORT_CELLS if job.model == "scgpt" and "formats" in job.file.parts else None


def write_some_cells(source: Path, target: Path, rows: int) -> None:
    if source.suffix == ".h5mu":
        import mudata

        mudata.set_options(pull_on_update=False)
        cells = mudata.read_h5mu(source)
    else:
        import anndata

        cells = anndata.read_h5ad(source)
    chosen = np.random.default_rng(0).choice(cells.n_obs, min(rows, cells.n_obs), replace=False)
    cells[np.sort(chosen)].copy().write(target)


def check(output: Path, names: Sequence[str]) -> str:
    """What is wrong with an output: a row is missing, misplaced, or not of numbers."""
    if not output.exists():
        return "no output"
    table = pd.read_parquet(output)
    if len(table) != len(names):
        return f"{len(table):,} rows for {len(names):,} inputs"
    if table.id.astype(str).tolist() != list(names):
        return "names differ"
    missing = int(np.isnan(np.stack(table.embedding)).any(1).sum())
    return f"{missing:,} rows are NaN" if missing else ""


def _short(file: Path) -> str:
    parts = file.parts
    start = max((k for k, part in enumerate(parts) if part in ("mrna", "ncrna", "cells")), default=0)
    return "/".join(parts[start:])


# -------------------------------------------------------------------------------------------------- results


def print_outcome(outcome: Outcome, console: Console) -> None:
    """One line a run, and below it what the command said."""
    rate = outcome.tokens / outcome.seconds if outcome.seconds else 0
    console.print(
        f"{outcome.model:16s} {outcome.file:44s} {outcome.rows:7,d} rows {outcome.tokens:12,d} tokens "
        f"{outcome.seconds:8.1f} s {outcome.peak / 2**20:7,.0f} MiB {rate:9,.0f} tokens/s"
        + (f"  left out {outcome.left_out:,}" if outcome.left_out else "")
        + (f"  [red]{outcome.wrong}[/]" if outcome.wrong else ""),
        highlight=False,
        soft_wrap=True,
    )
    for line in outcome.said:
        console.print(f"    | {line}", markup=False, highlight=False, soft_wrap=True)


def print_summary(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table("model", "files", "rows", "tokens", "seconds", "highest peak (MiB)", "said", "wrong")
    for model in dict.fromkeys(o.model for o in outcomes):
        some = [o for o in outcomes if o.model == model]
        table.add_row(
            model,
            str(len(some)),
            f"{sum(o.rows for o in some):,}",
            f"{sum(o.tokens for o in some):,}",
            f"{sum(o.seconds for o in some):,.0f}",
            f"{max(o.peak for o in some) / 2**20:,.0f}",
            str(sum(bool(o.said) for o in some)),
            str(sum(bool(o.wrong) for o in some)),
        )
    console.print(table)


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every run")] = None,
    rows: Annotated[int, typer.Option(help="rows of each file for full-size models")] = 20,
    mini_rows: Annotated[int, typer.Option(help="rows for the models in the package; 0: whole files")] = 200,
    only: Annotated[str, typer.Option(help="only runs with this in 'model path'")] = "",
    full: Annotated[bool, typer.Option(help="full-size models of random weights too")] = True,
    largest: Annotated[bool, typer.Option("--largest", help="the largest files whole")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "auto",
) -> None:
    """Embed real files; exit status 1 if a run failed or its output is wrong."""
    console, outcomes = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["RIBOZYME_CACHE"] = str(work / "cache")  # random weights are not worth keeping
        for job in jobs(data_folder(), work, only, rows, mini_rows, full, largest):
            outcomes.append(run(job, work, device))
            print_outcome(outcomes[-1], console)
    if not outcomes:
        raise typer.BadParameter(f"no run has {only!r} in its model and path")
    print_summary(outcomes, console)
    if output is not None:
        output.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    if any(o.wrong for o in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

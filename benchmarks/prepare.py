"""How fast cells become what the network reads, beside the data paths of scGPT and helical.

    python benchmarks/prepare.py --scgpt SCGPT/bin/python --helical HELICAL/bin/python -o prepare.json

Real cells in memory: genes matched, values in bins, a window of genes, batches. Each program runs its own
call for embeddings, with a network that answers zeros at once (`our_prepare.py`, `peer_prepare.py`);
processes, turns and ratios are those of `embed.py`. One thread. Bins of all cells that the window holds are
compared, with 1/2 in the place of the peers' random draws for ties. Exit status 1 where a bin differs;
whatever the speed, 0.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from embed import (
    Figure,
    about,
    as_json,
    describe,
    measure,
    print_figures,
    print_ratios,
    print_versions,
    ratio,
)
from embed_tasks import Pair, Program, Task, hardware, write_cells
from parity import wide_console

from ribozyme.engine.cells import CellModel
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary

TARGET, RATE = 10, 13_000
BATCH_TOKENS, BATCH = 65_536, 64
"""Tokens of our batches; cells of theirs, the default of `embed_data`: about as many."""


def tasks(
    work: Path, count: int, windows: list[int], scgpt: str | None, helical: str | None
) -> Iterator[Task]:
    """The same cells with each window."""
    inputs, vocab, weights = work / "cells.npz", work / "vocab.json", work / "weights"
    genes = write_cells(inputs, count)
    module, vocabulary = ScGPT(Config(dim=8, layers=1, heads=1, ffn_dim=8)), Vocabulary.census()
    module.initialise(torch.Generator().manual_seed(0))
    CellModel(module, vocabulary, torch.device("cpu")).save(weights)
    vocab.write_text(json.dumps(dict(vocabulary.ids)), encoding="utf-8")
    for window in windows:
        common = {"inputs": str(inputs), "vocab": str(vocab), "window": window, "batch": BATCH}
        mine = {"weights": str(weights), "batch_tokens": BATCH_TOKENS}
        programs = [Program("ribozyme", sys.executable, "our_prepare.py", "ours", common | mine)]
        if scgpt is not None:
            for name, workers in (("scgpt (a worker, its default)", True), ("scgpt (no worker)", False)):
                programs.append(
                    Program(name, scgpt, "peer_prepare.py", "scgpt", common | {"workers": workers})
                )
        if helical is not None:
            programs.append(Program("helical", helical, "peer_prepare.py", "helical", common))
        alike = tuple(np.flatnonzero(genes < window).tolist())
        pairs = [Pair("ribozyme", peer.name, TARGET, alike) for peer in programs[1:]]
        title = f"cells to batches, window {window:,}"
        yield Task(f"window {window}", title, "cells", len(genes), int(genes.sum()), programs, pairs)


Python = Annotated[str | None, typer.Option(help="python that has the published program")]


def main(
    scgpt: Python = None,
    helical: Python = None,
    cells: Annotated[int, typer.Option(help="cells, in even steps of their size")] = 2_000,
    rounds: Annotated[int, typer.Option(help="medians are of these")] = 5,
    windows: Annotated[str, typer.Option(help="tokens of a cell at most")] = "1200,3000",
    clock: Annotated[str, typer.Option(help="wall, or cpu where other programs run beside")] = "cpu",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every run")] = None,
) -> None:
    """Print cells a second and ratios; exit status 1 where bins differ."""
    console = wide_console()
    found, ratios, rates = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [int(one) for one in windows.split(",")]
        for task in tasks(Path(folder), cells, sizes, scgpt, helical):
            measured = measure(task, 1, rounds, Path(folder), console)
            found.append(measured)
            ratios += [ratio(measured, pair, clock) for pair in task.pairs]
            for program in task.programs:
                rate = task.count / median(measured.times(program.name, clock))
                target = RATE if program is task.programs[0] else None
                rates.append(Figure(task.name, 1, program.name, rate, "cells/s", target))
    console.print(describe(about(), hardware()))
    print_versions(found, console)
    print_ratios(ratios, console)
    print_figures(rates, console)
    if output is not None:
        content: dict[str, Any] = {
            "machine": about(),
            "clock": clock,
            "runs": [as_json(one) for one in found],
        }
        content |= {"ratios": [asdict(one) for one in ratios], "rates": [asdict(one) for one in rates]}
        output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    wrong = [one for one in ratios if one.difference]
    for one in wrong:
        console.print(f"[red]{one.task}: bins differ from those of {one.peer} by up to {one.difference}[/]")
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)

"""How fast a training step is on this processor, beside the loops that people use: same weights, same inputs.

    python benchmarks/train_speed.py --peers PEERS/bin/python --scgpt SCGPT/bin/python \\
        --helical HELICAL/bin/python

A run is a pass over the inputs, in steps of the same examples with the same hidden letters or bins, from the
same first weights, in float32, without dropout (`peer_train.py`, `our_train.py`); `embed.py` says how runs
take turns. The inputs are drawn from the corpora as they come, so their lengths are mixed. Tokens are those
of the inputs, without padding. The difference is that of the loss of the first step.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from embed import (
    Figure,
    Measured,
    Output,
    Python,
    Ratio,
    Work,
    about,
    as_json,
    measure,
    print_figures,
    print_ratios,
    print_versions,
    ratio,
)
from embed_tasks import HERE, Pair, Program, Task
from parity import ask, data_folder, wide_console

import ribozyme as rz
from ribozyme.engine.cells import CellModel

RATIO, MEMORY = 3.0, 50.0
"""Times as fast at least; per cent of the peer's memory at most."""
NEEDS = {"letters": "peers", "cells": "scgpt", "numbers": "helical"}
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "mini": {
        "letters": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
        | {"intermediate_size": 512},
        "cells": {"genes": 12_000, "dim": 128, "heads": 4, "ffn": 256, "layers": 4},
        "numbers": {"hidden_size": 128, "num_heads": 8, "head_dim": 32, "state_size": 64}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 512},
    },
    "full": {
        "letters": {},
        "cells": {"genes": 60_694, "dim": 512, "heads": 8, "ffn": 512, "layers": 12},
        "numbers": {"hidden_size": 256, "num_heads": 16, "head_dim": 32, "state_size": 128}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 1024},
    },
}
"""Of the models in the package, and as published."""
COUNTS = {
    "mini": {"letters": 64, "cells": 64, "numbers": 8},
    "full": {"letters": 16, "cells": 16, "numbers": 4},
}
BATCHES = {"letters": 8, "cells": 16, "numbers": 4}
LONGEST_RNA, LONGEST_MRNA, WINDOW = 1_022, 250, 1_200


@dataclass(frozen=True, slots=True)
class Bench:
    """Where, and how large."""

    work: Path
    pythons: dict[str, str | None]
    size: str
    small: bool

    def count(self, task: str) -> int:
        return 2 if self.small else COUNTS[self.size][task]

    def made(self, task: str, network: str) -> Path:
        """The peer's checkpoint; one that is there is taken."""
        folder = self.work / f"{network}-{self.size}"
        if not folder.exists():
            python = self.pythons[NEEDS[task]]
            ask(
                str(python),
                HERE / "peer_train.py",
                f"make-{network}",
                folder,
                json.dumps(SIZES[self.size][task]),
            )
        return folder

    def task(
        self,
        name: str,
        title: str,
        unit: str,
        weights: Path,
        inputs: list[dict[str, Any]],
        tokens: int,
        peers: dict[str, dict[str, Any]],
    ) -> Task:
        """Ours beside peers, which have the kind of program and its settings."""
        path = self.work / f"{name}.json"
        path.write_text(json.dumps(inputs), encoding="utf-8")
        common: dict[str, Any] = {"weights": str(weights), "inputs": str(path), "device": "cpu"}
        common |= {"batch": BATCHES[name], "window": WINDOW}
        ours = Program("ribozyme", sys.executable, "our_train.py", name, common)
        python = str(self.pythons[NEEDS[name]])
        others = [
            Program(who, python, "peer_train.py", how["kind"], common | how) for who, how in peers.items()
        ]
        alike = (0,) if name != "numbers" else ()
        pairs = [Pair(ours.name, one.name, RATIO, alike) for one in others]
        return Task(name, f"{title} ({self.size})", unit, len(inputs), tokens, [ours, *others], pairs)


# --------------------------------------------------------------------------------------------------- tasks


def letters(bench: Bench) -> Task:
    """Masked letters of RNA-FM: transformers' Trainer over multimolecule, with both of its attentions."""
    sequences = drawn("ncrna", bench.count("letters"), LONGEST_RNA)
    inputs: list[dict[str, Any]] = [{"sequence": one} for one in sequences]
    peers: dict[str, dict[str, Any]] = {
        "multimolecule, Trainer (eager)": {"kind": "multimolecule", "attention": "eager"},
        "multimolecule, Trainer (sdpa)": {"kind": "multimolecule", "attention": "sdpa"},
    }
    weights = bench.made("letters", "rnafm")
    return bench.task("letters", "RNA-FM", "RNAs", weights, inputs, total(sequences), peers)


def cells(bench: Bench) -> Task:
    """Hidden bins of scGPT, from the gene rows and from the cell: `scgpt.trainer.train`."""
    inputs = binned_cells(bench.count("cells"), SIZES[bench.size]["cells"]["genes"])
    peers: dict[str, dict[str, Any]] = {"scgpt.trainer": {"kind": "scgpt"}}
    tokens = sum(len(one["ids"]) for one in inputs)
    return bench.task("cells", "scGPT", "cells", bench.made("cells", "scgpt"), inputs, tokens, peers)


def numbers(bench: Bench) -> Task:
    """A number for each short mRNA from all of Helix-mRNA: `HelixmRNAFineTuningModel.train`."""
    sequences = drawn("mrna", bench.count("numbers"), LONGEST_MRNA)
    labels = np.random.default_rng(1).normal(size=len(sequences)).tolist()
    inputs = [{"sequence": one, "label": label} for one, label in zip(sequences, labels)]
    peers = {"helical 1.3.0": {"kind": "helical"}}
    weights = bench.made("numbers", "helix")
    return bench.task("numbers", "Helix-mRNA", "mRNAs", weights, inputs, total(sequences), peers)


TASKS: dict[str, Callable[[Bench], Task]] = {"letters": letters, "cells": cells, "numbers": numbers}


def drawn(kind: str, count: int, longest: int) -> list[str]:
    """Sequences of a corpus at random; parts of the examples in the package where there is no corpus."""
    import pandas as pd

    data, generator = data_folder(), np.random.default_rng(0)
    if data is not None:
        sequences = pd.read_parquet(data / kind / "corpus.parquet", columns=["sequence"])["sequence"]
    else:
        table = rz.data.rnas() if kind == "ncrna" else rz.data.mrnas()
        cuts = generator.integers(60, longest, len(table)) if kind == "mrna" else [longest] * len(table)
        sequences = pd.Series([one[:cut] for one, cut in zip(table["sequence"], cuts)])
    plain = sequences.str.replace("T", "U")
    fitting = plain[(plain.str.len() <= longest) & plain.str.fullmatch("[ACGU]+")].to_numpy()
    return [str(one) for one in generator.choice(fitting, count)]


def total(sequences: Sequence[str]) -> int:
    return sum(map(len, sequences))


def binned_cells(count: int, genes: int) -> list[dict[str, Any]]:
    """Cells as the tokens of ours: genes by number, and bins."""
    import anndata
    import torch

    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary

    data = data_folder()
    path = rz.data.path("cells.h5ad") if data is None else data / "cells" / "corpus" / "corpus_cells.h5ad"
    adata = anndata.read_h5ad(path)
    common = np.argsort(-np.asarray((adata.X > 0).sum(0)).ravel(), kind="stable")[:genes]
    adata = adata[:, np.sort(common)].copy()
    fitting = np.flatnonzero(np.asarray((adata.X > 0).sum(1)).ravel() < WINDOW)
    adata = adata[np.random.default_rng(0).choice(fitting, count)].copy()
    adata.obs_names = [f"cell {k}" for k in range(count)]
    vocabulary = Vocabulary([*adata.var_names, "<pad>", "<cls>", "<eoc>"])
    module = ScGPT(Config(vocab_size=len(vocabulary), layers=1, dim=8, heads=1, ffn_dim=8))
    model = CellModel(module, vocabulary, torch.device("cpu"))
    found = []
    for tokens in model.tokens(adata):
        for ids, bins in zip(*tokens.split()):
            found.append({"ids": ids[1:].tolist(), "bins": bins[1:].astype(int).tolist()})
    return found


# ------------------------------------------------------------------------------------------------- figures


def figures(found: Measured, clock: str) -> Iterator[Figure]:
    """Tokens a second, loss and memory of each program; our memory as a share of each peer's."""
    task, threads = found.task, found.threads
    peaks = {name: max(run.peak for run in runs) for name, runs in found.runs.items()}
    for name in found.runs:
        speed = task.tokens / median(found.times(name, clock))
        yield Figure(task.name, threads, name, speed, "tokens/s", None)
        yield Figure(task.name, threads, f"{name}, mean loss", float(found.vectors[name].mean()), "", None)
        yield Figure(task.name, threads, f"{name}, peak memory", peaks[name] / 2**20, "MiB", None)
    for name in list(found.runs)[1:]:
        share = 100 * peaks["ribozyme"] / peaks[name]
        yield Figure(task.name, threads, f"memory, ours of {name}", share, "%", MEMORY, at_least=False)


def main(
    peers: Python = None,
    scgpt: Python = None,
    helical: Python = None,
    only: Annotated[str, typer.Option(help=f"tasks with this in the name: {', '.join(TASKS)}")] = "",
    size: Annotated[
        str, typer.Option(help="of the networks: mini, those in the package; full, published")
    ] = "mini",
    rounds: Annotated[int, typer.Option(help="of each task; medians are of these")] = 5,
    threads: Annotated[int, typer.Option(help="of each program")] = 1,
    small: Annotated[
        bool, typer.Option("--small", help="two inputs a task, two rounds: that it runs")
    ] = False,
    clock: Annotated[str, typer.Option(help="wall, or cpu where other programs run beside")] = "wall",
    work: Work = None,
    output: Output = None,
) -> None:
    """Print ratios with their spread, speed, loss and memory; exit status 1 only if a program fails."""
    if size not in SIZES:
        raise typer.BadParameter(f"--size is one of {', '.join(SIZES)}, not {size!r}")
    console, pythons = wide_console(), {"peers": peers, "scgpt": scgpt, "helical": helical}
    measured: list[Measured] = []
    ratios: list[Ratio] = []
    some: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(work or Path(folder), pythons, size, small)
        bench.work.mkdir(parents=True, exist_ok=True)
        for name in TASKS:
            if only not in name:
                continue
            if pythons[NEEDS[name]] is None:
                console.print(f"{name} is left out: it needs --{NEEDS[name]}")
                continue
            task = TASKS[name](bench)
            measured.append(measure(task, threads, 2 if small else rounds, bench.work, console))
            ratios += [ratio(measured[-1], pair, clock) for pair in task.pairs]
            some += figures(measured[-1], clock)
    print_versions(measured, console)
    print_ratios(ratios, console)
    print_figures(some, console)
    if output is not None:
        found = {"ratios": [asdict(one) for one in ratios], "figures": [asdict(one) for one in some]}
        found |= {"tasks": [as_json(one) for one in measured]}
        whole = {"machine": about(), "clock": clock, "size": size} | found
        output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

"""The rates that a plan for a job of 100 million RNAs, or of 33 million cells, starts from.

    RIBOZYME_DATA=... python benchmarks/scale.py [--rnas 48] [--cells 16] [-o scale.json]

One thread. Full-size networks with random weights (speed does not depend on their values), real inputs.
Seconds are processor time of the process, so that other work on the machine counts less. The plan that is
made of these rates is in docs/scale.md.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch

from ribozyme.engine.cells import CellModel
from ribozyme.engine.parts import Budget
from ribozyme.engine.sequences import SequenceModel
from ribozyme.io.tables import open_writer
from ribozyme.models.rnafm.config import Config as RnafmConfig
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import Tokenizer
from ribozyme.models.scgpt.config import Config as ScgptConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary

DATA = Path(os.environ.get("RIBOZYME_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROUNDS = 3
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rnas", type=int, default=48, help="RNAs that are embedded in a round")
    parser.add_argument("--cells", type=int, default=16, help="cells that are embedded in a round")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = {
        "machine": {"processor": processor(), "torch": torch.__version__, "threads": 1},
        "rnas": rnas(given.rnas),
        "cells": cells(given.cells),
    }
    for kind, lines in measured.items():
        print(kind)
        for name, value in lines.items():
            print(
                f"  {name:<42}{value:>18,.1f}" if isinstance(value, float) else f"  {name:<42}{value!s:>18}"
            )
    if given.output:
        given.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def rnas(count: int) -> dict[str, float]:
    """RNA-FM on ncRNAs of at most 1,022 nt, evenly taken from all of them."""
    config = RnafmConfig()
    model = SequenceModel(RNAFM(config), Tokenizer(config.vocabulary), CPU)
    table = pd.read_parquet(DATA / "ncrna" / "corpus.parquet", columns=["id", "sequence"])
    table = table[table["sequence"].str.len() <= 1_022]
    inputs = list(zip(table["id"], table["sequence"]))
    lengths = table["sequence"].str.len().to_numpy()
    some = [inputs[k] for k in np.linspace(0, len(inputs) - 1, count).astype(int)]
    rate = computed(model, some)
    letters = sum(len(sequence) for _, sequence in some)
    how = model.settings(overlong="window")
    ready = seconds(lambda: sum(len(part.names) for part in model.prepare(iter(inputs), how)))
    return {
        "inputs that were looked at": float(len(inputs)),
        "nucleotides of one, mean": float(lengths.mean()),
        "nucleotides of those embedded, mean": letters / count,
        "computed, nucleotides a core and second": letters / rate,
        "prepared, nucleotides a core and second": float(lengths.sum()) / ready,
        "prepared, RNAs a core and second": len(inputs) / ready,
        "read, bytes an RNA (gzip FASTA)": packed(f">{name}\n{sequence}\n" for name, sequence in inputs),
        **written(config.dim),
    }


def cells(count: int) -> dict[str, float]:
    """scGPT with its window of 1,200 on cells of many tissues."""
    import anndata as ad

    vocabulary = Vocabulary.census()
    model = CellModel(ScGPT(ScgptConfig(vocab_size=len(vocabulary))), vocabulary, CPU)
    path = DATA / "cells" / "corpus" / "corpus_cells.h5ad"
    whole = ad.read_h5ad(path)
    chosen = np.linspace(0, len(whole) - 1, count).astype(int)
    tokens = np.concatenate([part.lengths for part in model.tokens(whole)])
    rate = computed(model, whole[chosen].copy())
    how = model.settings()
    ready = seconds(lambda: sum(len(part.names) for part in model.prepare(path, how)))
    return {
        "inputs that were looked at": float(len(whole)),
        "tokens of one, mean": float(tokens.mean()),
        "tokens of those embedded, mean": float(tokens[chosen].mean()),
        "computed, tokens a core and second": float(tokens[chosen].sum()) / rate,
        "computed, cells a core and second": count / rate,
        "prepared, cells a core and second": len(whole) / ready,
        "read, bytes a cell (.h5ad, as it is)": path.stat().st_size / len(whole),
        **written(model.config.dim),
    }


def computed(model: Any, inputs: Any) -> float:
    """Seconds for the embeddings of what was prepared before."""
    how = model.settings()
    ready = list(model.prepare(inputs, how))

    def once() -> None:
        for one in ready:
            model.compute(one, how, Budget(how.batch_tokens))

    return seconds(once)


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds, the median of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        start = process_time()
        run()
        taken.append(process_time() - start)
    return median(taken)


def packed(lines: Iterator[str]) -> float:
    """Bytes an input of the first 20,000, in gzip."""
    import gzip

    some = list(islice(lines, 20_000))
    return len(gzip.compress("".join(some).encode(), 6)) / len(some)


def written(dim: int) -> dict[str, float]:
    """Of a Parquet output with numbers as mixed as those of embeddings."""
    rows = np.random.default_rng(0).standard_normal((20_000, dim), np.float32)
    names = [f"URS{k:010d}" for k in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.parquet"

        def write() -> None:
            with open_writer(path) as writer:
                writer.extend(names, rows, [1] * len(rows))

        taken = seconds(write)
        return {
            "written, bytes a row (Parquet)": path.stat().st_size / len(rows),
            "written, rows a core and second": len(rows) / taken,
        }


def processor() -> str:
    """Its name and what it multiplies with."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()

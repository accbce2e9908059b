"""What `embed.py` and `embed_gpu.py` compare: inputs, checkpoints, programs, and the ratios that we want.

A task is one network with one set of inputs. Its checkpoint has random weights and full size, made by the
peer (as for `parity.py`), so that all programs of a task read the same file.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from parity import ask, data_folder

import ribozyme as rz

HERE = Path(__file__).parent
Hardware = Literal["amx", "avx512", "float32", "cuda", "untold"]
Targets = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Program:
    """One program as it is run. name : for people; script, kind, settings : what starts it."""

    name: str
    python: str
    script: str
    kind: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """Ours against one peer, by the names of their programs.

    target : the peer's time over ours at least, None where none was set for this hardware
    alike : the inputs for which both compute the same, so that their numbers can be compared
    """

    ours: str
    peer: str
    target: float | None
    alike: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One network, one set of inputs, several programs.

    unit : what the inputs are; count, tokens : how many, and letters (genes) in them
    flops : of the arithmetic that the answer needs, 0 where the share of the peak is not asked for
    share : of the measured peak of matrix products, at least, by hardware
    rate : (what, a second at least) for a GPU, where absolute figures count
    """

    name: str
    title: str
    unit: str
    count: int
    tokens: int
    programs: Sequence[Program]
    pairs: Sequence[Pair]
    flops: float = 0.0
    share: Targets = field(default_factory=dict)
    rate: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """Ours in one type of numbers. hardware : whose targets it is held to"""

    name: str
    dtype: str
    hardware: Hardware


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how large. peers, scgpt, helical : pythons, None for rows that are left out.

    size : 1 for about an hour of all tasks with one thread and two; 4 for 32 RNAs, 48 cells, 20 mRNAs
    count : so many inputs in every task instead, of all lengths that ours reads
    small : two short inputs a task
    """

    work: Path
    hardware: Hardware
    peers: str | None = None
    scgpt: str | None = None
    helical: str | None = None
    size: float = 1.0
    count: int | None = None
    small: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.hardware == "cuda" else "cpu"

    def forms(self, exact: bool = False) -> list["Form"]:
        """Ours as it comes and, where that is bfloat16, in float32 too.

        exact : the network stays in float32 on a CPU, whatever the CPU can
        """
        if self.hardware == "float32" or (exact and self.device == "cpu"):
            return [Form("ribozyme (float32)", "auto", self.hardware)]
        other: Hardware = "float32" if self.device == "cpu" else "untold"
        usual = Form("ribozyme (bfloat16)", "auto", self.hardware)
        return [usual, Form("ribozyme (float32)", "float32", other)]

    def many(self, on_cpu: int, on_gpu: int) -> int:
        """Inputs of a task."""
        usual = on_cpu if self.device == "cpu" else on_gpu
        return 2 if self.small else self.count or max(2, round(usual * self.size))

    def longest(self, most: int) -> int:
        """Letters of the longest input, `most` where peers have to read it."""
        return 150 if self.small else 12_000 if self.count else most

    def against(
        self, peer: str, targets: Targets, alike: Sequence[int], exact: bool = False
    ) -> Iterator[Pair]:
        """Every form of ours against one peer; ratios have targets on a CPU alone."""
        for form in self.forms(exact):
            target = targets.get(form.hardware, targets.get("any")) if self.device == "cpu" else None
            yield Pair(form.name, peer, target, tuple(alike))


def hardware() -> Hardware:
    """How fast this processor is at bfloat16, by its own flags."""
    able = torch.cpu.get_capabilities()
    return "amx" if able.get("amx_bf16") else "avx512" if able.get("avx512_bf16") else "float32"


# --------------------------------------------------------------------------------------------------- inputs


def spread(sequences: Sequence[str], low: int, high: int, count: int) -> list[str]:
    """`count` different sequences with lengths in even steps of their logarithm, in mixed order."""
    plain = sorted({s.replace("T", "U") for s in sequences if not set(s) - set("ACGUT")}, key=len)
    lengths = np.array([len(s) for s in plain])
    chosen: list[int] = []
    free = (lengths >= low) & (lengths <= high)
    for length in np.geomspace(low, high, count):
        places = np.flatnonzero(free)
        if not len(places):
            break
        best = int(places[np.argmin(np.abs(lengths[places] - length))])
        free[best] = False
        chosen.append(best)
    return [plain[k] for k in np.random.default_rng(0).permutation(chosen)]


def rnas(count: int, high: int = 1022) -> list[str]:
    """Real non-coding RNAs that fit the window."""
    data = data_folder()
    if data is None:
        return spread(list(rz.data.rnas().sequence), 50, high, count)
    return spread(_table(data / "ncrna" / "corpus.parquet").sequence.tolist(), 50, high, count)


def mrnas(count: int, high: int) -> list[str]:
    """Real mRNAs from 200 nt to `high`."""
    data, low = data_folder(), min(200, high // 2)
    if data is None:
        return spread(list(rz.data.mrnas().sequence), low, high, count)
    table = _table(data / "mrna" / "corpus.parquet")
    return spread(table.sequence[table.kind == "mrna"].tolist(), low, high, count)


def _table(path: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(path)


def write_sequences(path: Path, sequences: Sequence[str]) -> Path:
    path.write_text(json.dumps(list(sequences)), encoding="utf-8")
    return path


def write_cells(path: Path, count: int, largest: float = 0.95) -> np.ndarray:
    """Real cells in even steps of their size; known genes only. Returns how many each expresses.

    largest : the size of the largest, as a share of all cells that are smaller
    """
    import anndata

    from ribozyme.models.scgpt.vocab import Vocabulary

    data = data_folder()
    where = rz.data.path("cells.h5ad") if data is None else data / "cells" / "corpus" / "corpus_cells.h5ad"
    cells = anndata.read_h5ad(where)
    vocabulary = Vocabulary.census()
    known = np.array([name in vocabulary for name in cells.var_names])
    rows = cells.X[:, known].tocsr()
    order = np.argsort(np.diff(rows.indptr), kind="stable")
    steps = np.linspace(0.05, largest, count) * (len(order) - 1)
    chosen = np.random.default_rng(0).permutation(order[np.unique(steps.astype(int))])
    genes = np.array(cells.var_names[known], dtype=str)
    np.savez(path, matrix=rows[chosen].toarray(), genes=genes)
    return np.diff(rows[chosen].indptr)


# --------------------------------------------------------------------------------------------------- RNA-FM

DIM, FFN, LAYERS = 640, 5120, 12
RNAFM_SHAPES = ((DIM, 3 * DIM), (DIM, DIM), (DIM, FFN), (FFN, DIM))
RNAFM_SHARE = {"float32": 0.78, "amx": 0.55, "avx512": 0.55, "cuda": 0.50}


def rnafm(bench: Bench) -> Task:
    """RNA-FM as multimolecule writes and reads it."""
    weights = made_by(bench.peers, "rnafm folder", bench.work / "rnafm") / "weights"
    sequences = rnas(bench.many(8, 4_000), min(1_022, bench.longest(1_022)))
    inputs = write_sequences(bench.work / "rnafm.json", sequences)
    everything = range(len(sequences))

    def peer(name: str, **settings: Any) -> Program:
        return peer_program(bench, name, bench.peers, "multimolecule", weights, inputs, **settings)

    batch = 8 if bench.device == "cpu" else 32
    usual = peer("multimolecule as it comes (eager, batch 8)", batch=8)
    sdpa = peer("multimolecule, sdpa, batch 8", batch=8, attention="sdpa")
    programs = [*ours(bench, "sequences", weights, inputs), usual, sdpa]
    pairs = [
        *bench.against(usual.name, {"amx": 15, "avx512": 7, "float32": 4}, everything),
        *bench.against(sdpa.name, {"amx": 9, "avx512": 4.5, "float32": 2.6}, everything),
    ]
    for form in bench.forms():
        dtype = "float32" if "float32" in form.name else "bfloat16"
        size = 1 if bench.device == "cpu" else batch
        how = "one by one" if size == 1 else f"batch {size}"
        best = peer(f"multimolecule, sdpa, {how}, {dtype}", batch=size, attention="sdpa", dtype=dtype)
        programs.append(best)
        target = {"amx": 1.6, "avx512": 1.3, "float32": 1.15}.get(form.hardware)
        pairs.append(Pair(form.name, best.name, target, tuple(everything)))
    programs += peak(bench, RNAFM_SHAPES, inputs)
    lengths = np.array([len(s) + 2 for s in sequences], dtype=np.float64)
    products = 2 * lengths.sum() * LAYERS * sum(a * b for a, b in RNAFM_SHAPES)
    flops = float(products + 4 * (lengths**2).sum() * DIM * LAYERS)
    letters = int(lengths.sum()) - 2 * len(lengths)
    return Task(
        "rnafm",
        "RNA-FM",
        "RNAs",
        len(sequences),
        letters,
        programs,
        pairs,
        flops,
        RNAFM_SHARE,
        ("tokens", 2e6),
    )


def rnafm_pth(bench: Bench) -> Task:
    """RNA-FM in the authors' file, against their package."""
    folder = made_by(bench.peers, "rnafm.pth", bench.work / "rnafm-pth")
    weights = folder / "RNA-FM_pretrained.pth"
    sequences = rnas(bench.many(8, 4_000), min(1_022, bench.longest(1_022)))
    inputs = write_sequences(bench.work / "rnafm.json", sequences)
    name = "rna-fm package (batch 8)"
    peer = peer_program(bench, name, bench.peers, "rna-fm", weights, inputs, batch=8)
    programs = [*ours(bench, "sequences", weights, inputs), peer]
    pairs = [*bench.against(name, {"amx": 12, "avx512": 6}, range(len(sequences)))]
    letters = sum(map(len, sequences))
    return Task("rnafm-pth", "RNA-FM (.pth)", "RNAs", len(sequences), letters, programs, pairs)


# ---------------------------------------------------------------------------------------------------- scGPT

CELL_DIM = 512
SCGPT_SHAPES = ((CELL_DIM, 3 * CELL_DIM), *[(CELL_DIM, CELL_DIM)] * 3)
SCGPT_TARGET = {"amx": 10, "avx512": 5, "float32": 2.5}
HELICAL_TARGET = {"amx": 8, "avx512": 4, "float32": 2.5}
SCGPT_SHARE = {"float32": 0.78, "amx": 0.55, "avx512": 0.55, "cuda": 0.40}


def scgpt(bench: Bench, window: int) -> Task:
    """scGPT from a matrix of cells to cell embeddings, both with a window of so many tokens."""
    weights = made_by(bench.scgpt, "whole-human", bench.work / "scgpt") / "weights"
    inputs = bench.work / f"cells-{window}.npz"
    count = bench.many(12 if window == 1_200 else 4, 1_000)
    genes = write_cells(inputs, count, largest=0.3 if bench.small else 0.95)
    alike = np.flatnonzero(genes < window).tolist()
    settings: dict[str, Any] = {"window": window, "batch": 64}

    def peer(name: str, python: str | None, kind: str, **more: Any) -> Program:
        return peer_program(bench, name, python, kind, weights, inputs, **{**settings, **more})

    usual = peer("scgpt embed_data as it comes (batch 64)", bench.scgpt, "scgpt")
    programs = [*ours(bench, "cells", weights, inputs, window=window), usual]
    pairs = [*bench.against(usual.name, SCGPT_TARGET, alike)]
    if bench.device == "cpu":
        best = peer("scgpt, plain layers, one by one", bench.scgpt, "scgpt", batch=1, fast=False)
        programs.append(best)
        pairs += bench.against(best.name, {}, alike)
    if bench.helical:
        helical = peer("helical 1.3.0 (batch 24)", bench.helical, "helical-scgpt", batch=24)
        programs.append(helical)
        pairs += bench.against(helical.name, HELICAL_TARGET, alike)
    programs += peak(bench, SCGPT_SHAPES, inputs)
    lengths = np.minimum(genes + 1, window).astype(np.float64)
    # of the last layer only keys and values of all tokens are needed; the rest of it is one token a cell
    each = LAYERS * sum(a * b for a, b in SCGPT_SHAPES) - 4 * CELL_DIM**2
    flops = float(2 * lengths.sum() * each + 4 * (lengths**2).sum() * CELL_DIM * (LAYERS - 1))
    title, rate = f"scGPT, window {window:,}", ("cells", 3_800.0) if window == 1200 else None
    return Task(
        f"scgpt-{window}",
        title,
        "cells",
        len(genes),
        int(lengths.sum()),
        programs,
        pairs,
        flops,
        SCGPT_SHARE,
        rate,
    )


# ---------------------------------------------------------------------------------------------------- Helix


def mamba2(bench: Bench) -> Task:
    """The pure Mamba-2 model; longer mRNAs in larger samples, up to 12,000 nt."""
    weights = made_by(bench.peers, "mamba2 folder", bench.work / "mamba2") / "weights"
    most = 12_000 if bench.device == "cuda" else min(12_000, max(1_000, round(3_000 * bench.size)))
    sequences = mrnas(bench.many(5, 200), bench.longest(most))
    inputs = write_sequences(bench.work / "mamba2.json", sequences)
    programs, pairs = [*ours(bench, "sequences", weights, inputs, exact=True)], []
    for batch, how, target in ((1, "one by one", 5.0), (8, "batch 8, padded", 10.0)):
        name = f"transformers Mamba2Model, {how}"
        programs.append(peer_program(bench, name, bench.peers, "transformers", weights, inputs, batch=batch))
        pairs += bench.against(name, {"any": target}, range(len(sequences)), exact=True)
    letters = sum(map(len, sequences))
    return Task("mamba2", "pure Mamba-2", "mRNAs", len(sequences), letters, programs, pairs)


def hybrid(bench: Bench) -> Task:
    """Helix-mRNA; helical needs some 3 MB a nucleotide, so the mRNAs are short."""
    weights = made_by(bench.peers, "hybrid folder", bench.work / "hybrid") / "weights"
    most = 4_000 if bench.device == "cuda" else 1_500
    sequences = mrnas(bench.many(4, 200), bench.longest(most))
    inputs = write_sequences(bench.work / "hybrid.json", sequences)
    name = "helical 1.3.0, one by one"
    peer = peer_program(bench, name, bench.helical, "helical-helix", weights, inputs)
    # past one chunk of 256 tokens helical's torch path is wrong, in every version; <sep> is a token too
    alike = [k for k, s in enumerate(sequences) if len(s) < 256]
    programs = [*ours(bench, "sequences", weights, inputs, exact=True), peer]
    pairs = [*bench.against(name, {"any": 20}, alike, exact=True)]
    letters = sum(map(len, sequences))
    rate = ("nucleotides", 5e6)
    return Task("hybrid", "Helix-mRNA", "mRNAs", len(sequences), letters, programs, pairs, rate=rate)


# ------------------------------------------------------------------------------------------------- programs


def made_by(python: str | None, layout: str, folder: Path) -> Path:
    """A checkpoint with random weights in this layout; one that is there is taken."""
    if not folder.exists():
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        if layout == "whole-human":
            ask(str(python), HERE / "peer_cells.py", part)
        else:
            write_sequences(part / "sequences.json", [])
            ask(str(python), HERE / "peer_sequences.py", layout, part)
        part.rename(folder)
    return folder


def ours(
    bench: Bench, kind: str, weights: Path, inputs: Path, exact: bool = False, **settings: Any
) -> Iterator[Program]:
    for form in bench.forms(exact):
        common = {"weights": str(weights), "inputs": str(inputs), "device": bench.device}
        common |= {"dtype": form.dtype, **settings}
        yield Program(form.name, sys.executable, "our_embed.py", kind, common)


def peer_program(
    bench: Bench, name: str, python: str | None, kind: str, weights: Path, inputs: Path, **settings: Any
) -> Program:
    common = {"weights": str(weights), "inputs": str(inputs), "device": bench.device}
    return Program(name, str(python), "peer_embed.py", kind, common | settings)


def peak(bench: Bench, shapes: Sequence[tuple[int, int]], inputs: Path) -> Iterator[Program]:
    """Matrix products of a network's own shapes, for each form of ours; named after it."""
    for form in bench.forms():
        settings = {"inputs": str(inputs), "device": bench.device, "shapes": shapes}
        settings |= {"dtype": "float32" if "float32" in form.name else "bfloat16"}
        settings |= {"tokens": 2_048 if bench.device == "cpu" else 32_768}
        yield Program(peak_of(form.name), sys.executable, "our_embed.py", "products", settings)


def peak_of(name: str) -> str:
    return name.replace("ribozyme", "matrix products")


@dataclass(frozen=True, slots=True)
class Entry:
    """needs : pythons without which there is no task; minutes : of 5 rounds with one thread, about"""

    needs: tuple[str, ...]
    make: Callable[[Bench], Task]
    minutes: float


TASKS: dict[str, Entry] = {
    "rnafm": Entry(("peers",), rnafm, 8),
    "rnafm-pth": Entry(("peers",), rnafm_pth, 5),
    "scgpt-1200": Entry(("scgpt",), lambda bench: scgpt(bench, 1_200), 7),
    "scgpt-3000": Entry(("scgpt",), lambda bench: scgpt(bench, 3_000), 7),
    "mamba2": Entry(("peers",), mamba2, 7),
    "hybrid": Entry(("peers", "helical"), hybrid, 5),
}
"""Minutes are of an idle Zen 3 at 2.4 GHz, which reaches 75 GFLOP/s a core in float32, at size 1."""


def expected_minutes(names: Sequence[str], size: float, rounds: int, threads: Sequence[int]) -> float:
    """Of all these tasks, in this many rounds, with each number of threads; a minute more to load each."""
    work = sum(TASKS[name].minutes for name in names) * size * rounds / 5
    return work * sum(1 / count for count in threads) + len(names) * len(threads)

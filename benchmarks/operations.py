"""Where the time of an embedding goes: the operations of torch, by their share of it.

    python benchmarks/operations.py -o operations.json
    python benchmarks/operations.py --only mamba2

Networks of published size with random weights, real inputs (RIBOZYME_DATA, else the examples in the package),
one thread. Shares are of the time that torch's profiler saw inside operations, which leaves out Python. It
also counts the arithmetic of matrix products: their speed stands beside that of a large product alone.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from embed_tasks import mrnas, rnas, write_cells
from parity import machine
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import ribozyme as rz
from ribozyme.engine.cells import CellModel
from ribozyme.engine.device import keep_freed_memory
from ribozyme.engine.sequences import SequenceModel

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
SHOWN = 0.01
"""Operations below this share are in one line."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of torch in one embedding run. share : of the time inside operations."""

    model: str
    name: str
    share: float
    seconds: float
    calls: int


@dataclass(frozen=True, slots=True)
class Products:
    """Matrix products of one run, in operations a second; largest : of the largest product alone."""

    model: str
    flops: float
    largest: float


def rnafm() -> Callable[[], Any]:
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    config = Config()
    model, inputs = SequenceModel(started(RNAFM(config)), Tokenizer(config.vocabulary), CPU), rnas(8)
    return lambda: model.embed(inputs)


def helix(**sizes: Any) -> Callable[[], Any]:
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import Tokenizer

    model, inputs = SequenceModel(started(HelixMRNA(Config(**sizes))), Tokenizer(), CPU), mrnas(5, 3_000)
    return lambda: model.embed(inputs)


def scgpt() -> Callable[[], Any]:
    import anndata as ad
    import pandas as pd

    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary

    vocabulary = Vocabulary.census()
    model = CellModel(started(ScGPT(Config(vocab_size=len(vocabulary)))), vocabulary, CPU)
    with tempfile.TemporaryDirectory() as folder:
        write_cells(Path(folder) / "cells.npz", 12)
        content = np.load(Path(folder) / "cells.npz")
        cells = ad.AnnData(content["matrix"], var=pd.DataFrame(index=content["genes"]))
    return lambda: model.embed(cells)


CPU = torch.device("cpu")
MODELS: dict[str, Callable[[], Callable[[], Any]]] = {
    "rnafm": rnafm,
    "scgpt": scgpt,
    "mamba2": lambda: helix(layout="M" * 16),
    "hybrid": helix,
}


def started(module: torch.nn.Module) -> torch.nn.Module:
    """With random weights."""
    module.initialise(torch.Generator().manual_seed(0))  # type: ignore[operator]
    return module


def operations(name: str, embed: Callable[[], Any]) -> tuple[list[Operation], Products]:
    """One warm run, seen by the profiler."""
    embed()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        embed()
    events = [event for event in seen.key_averages() if event.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in events)
    found = [
        Operation(name, e.key, e.self_cpu_time_total / total, e.self_cpu_time_total / 1e6, e.count)
        for e in sorted(events, key=lambda e: -e.self_cpu_time_total)
    ]
    products = [event for event in events if event.key in PRODUCTS]
    flops = sum(e.flops for e in products) / sum(e.self_cpu_time_total for e in products) * 1e6
    return found, Products(name, flops, largest())


def largest(seconds: float = 1.0) -> float:
    """Operations a second of one product of 2,048 x 2,048 matrices."""
    a, b, times, start = torch.randn(2048, 2048), torch.randn(2048, 2048), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        times += 1
    return times * 2 * 2048**3 / (time.perf_counter() - start)


def shown(found: list[Operation], products: Products) -> Table:
    table = Table("operation", "share", "s", "calls", title=products.model)
    for one in found:
        if one.share >= SHOWN:
            table.add_row(one.name, f"{one.share:.1%}", f"{one.seconds:.2f}", f"{one.calls:,}")
    rest = [one for one in found if one.share < SHOWN]
    table.add_row(f"{len(rest)} others", f"{sum(one.share for one in rest):.1%}")
    table.caption = f"matrix products at {products.flops / 1e9:.0f} of {products.largest / 1e9:.0f} GFLOP/s"
    return table


def main(
    only: Annotated[str, typer.Option(help=f"models, joined by commas: {', '.join(MODELS)}")] = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every operation")] = None,
) -> None:
    """Print which operations take the time."""
    warnings.simplefilter("ignore", rz.InputWarning)  # that large cells are sampled is known here
    torch.set_num_threads(1)
    keep_freed_memory()
    console, content = Console(width=90), {"machine": machine(), "operations": [], "products": []}
    for name in only.split(",") if only else MODELS:
        found, products = operations(name, MODELS[name]())
        console.print(shown(found, products))
        content["operations"] += [asdict(one) for one in found]
        content["products"].append(asdict(products))
    if output is not None:
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

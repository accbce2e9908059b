"""How fast we embed on a CUDA device: absolute figures, and the peers' own way on the same device.

    python benchmarks/embed_gpu.py --peers PEERS/bin/python --scgpt SCGPT/bin/python

The tasks, programs and protocol of `embed.py` with larger samples, on the first CUDA device, with all CPU
threads. Peers run as they come and, RNA-FM, as well as they can be used there (sdpa, batch 32, bfloat16). A
python of a peer makes the checkpoints of its tasks, so a task needs at least that one.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from embed import Only, Output, Python, Results, Work, about, chosen, run_all
from embed_tasks import Bench
from parity import wide_console


def main(
    peers: Python = None,
    scgpt: Python = None,
    helical: Python = None,
    only: Only = "",
    rounds: Annotated[int, typer.Option(help="of each task; medians are of these")] = 5,
    size: Annotated[float, typer.Option(help="of the samples; 1: 4,000 RNAs, 1,000 cells, 200 mRNAs")] = 1.0,
    small: Annotated[bool, typer.Option("--small", help="two short inputs a task, two rounds")] = False,
    work: Work = None,
    output: Output = None,
) -> None:
    """Print tokens, cells and nucleotides a second; exit status 1 only if a program fails."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device; embed.py measures on the CPU")
    console, results = wide_console(), Results()
    device = torch.cuda.get_device_properties(0)
    named = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(work or Path(folder), "cuda", peers, scgpt, helical, size, small=small)
        bench.work.mkdir(parents=True, exist_ok=True)
        names = list(chosen(bench, only, console))
        console.print(f"{named}; {about()['processor']}, torch {torch.__version__}")
        for results in run_all(bench, names, 2 if small else rounds, [None], "wall", console):
            results.write(output, bench, "wall", gpu=named)
        results.print(console)
    if results.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

"""Jobs of all three small models, killed with SIGKILL at random moments until so many kills are done.

    python kill_jobs.py FOLDER KILLS

Each job is started again after every kill (one to five of them), then left in peace: its output must be that
of a job that was never killed, bit for bit. Exits with 1 and one line where it is not.
"""

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

import ribozyme as rz
from ribozyme.engine import sink
from ribozyme.engine.job import embed_file

sink.SHARD_SECONDS = 0.02
FORMATS = (".parquet", ".npz", ".zarr", ".csv", ".json")


def inputs(folder: Path, rng: random.Random) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each small model with a file that it works on for half a second, and settings that make many parts."""
    fasta = folder / "rnas.fa"
    lengths = [rng.randint(5, 60) for _ in range(40)]
    fasta.write_text("".join(f">r{k}\n{''.join(rng.choices('ACGU', k=n))}\n" for k, n in enumerate(lengths)))
    cells = rz.data.cells()[:40]
    cells.write_h5ad(folder / "cells.h5ad")
    return {
        "rnafm-mini": (fasta, {"batch_tokens": 30}),
        "helix-mrna-mini": (fasta, {"batch_tokens": 30}),
        "scgpt-mini": (folder / "cells.h5ad", {"batch_tokens": 40, "max_length": 40}),
    }


def contents(path: Path) -> list[tuple[str, bytes]]:
    """Names and numbers of an output."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return [(name, np.float32(row).tobytes()) for name, row in zip(table["id"], table["embedding"])]
    if path.suffix == ".h5ad":
        table = ad.read_h5ad(path)
        return [(name, row.tobytes()) for name, row in zip(table.obs_names, table.obsm["X_ribozyme"])]
    if path.suffix == ".csv":
        table = pd.read_csv(path, index_col="id", dtype={"id": str})
        return [(name, row.tobytes()) for name, row in zip(table.index, table.to_numpy(np.float32))]
    if path.suffix == ".json":
        table = pd.read_json(path, dtype={"id": str})
        return [(name, np.float32(row).tobytes()) for name, row in zip(table["id"], table["embedding"])]
    if path.suffix == ".zarr":
        import zarr

        content = zarr.open(path, mode="r")
    else:
        content = np.load(path)
    return [(str(name), row.tobytes()) for name, row in zip(content["names"][:], content["embeddings"][:])]


def run_and_kill(job: Callable[[], Any], after: float) -> bool:
    """Run `job` in a process of its own and kill it after some seconds; was it still at work?"""
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the job failed")
    return os.WIFSIGNALED(status)


def main(folder: Path, kills: int) -> None:
    """Kill jobs until so many kills are done; every output is looked at."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng = random.Random(0)
    work = inputs(folder, rng)
    models = {name: rz.load(name) for name in work}
    done = jobs = 0
    spent: dict[str, float] = {}
    expected: dict[str, list[tuple[str, bytes]]] = {}
    for name, (source, how) in work.items():
        begun = time.monotonic()
        embed_file(models[name], source, folder / f"{name}.npz", **how)
        spent[name], expected[name] = time.monotonic() - begun, contents(folder / f"{name}.npz")
    while done < kills:
        name = list(work)[jobs % len(work)]
        source, how = work[name]
        suffix = ".h5ad" if name == "scgpt-mini" and rng.random() < 0.3 else rng.choice(FORMATS)
        output = folder / f"out{jobs}{suffix}"
        jobs += 1

        def job() -> None:
            embed_file(models[name], source, output, **how)  # noqa: B023, called before the loop goes on

        for _ in range(rng.randint(1, 5)):
            if done < kills and not output.exists():
                done += run_and_kill(job, rng.uniform(0, 1.1) * spent[name])
        job()
        if contents(output) != expected[name]:
            sys.exit(f"{name}: {output} is not what an undisturbed job gives")
        left = [path.name for path in folder.iterdir() if ".tmp" in path.name or path.name.endswith(".parts")]
        if left:
            sys.exit(f"{left} were left behind")
    print(f"{done} kills, {jobs} jobs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

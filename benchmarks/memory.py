"""Is memory flat? Resident memory against rows done, for cells from .h5ad and RNAs from .fa.gz.

    python benchmarks/memory.py -o memory.json

makes a file of 1,200,000 cells (2,000 genes, 150 of them expressed) and one of 3,000,000 RNAs of 20 to 60
letters, a third or more of what is promised, and sends them through tiny networks: by `stream`, and as
`ribozyme embed` does, into a Parquet file. Each job is a process of its own, which notes its memory while it
works.

The slope is fitted to means of stretches of the run, after the first quarter. It is zero within noise where
it is less than three of its standard errors, or than a byte a row: ten million rows would add 10 MB. What
assembling the output takes at the end is beside it. Exit status 1 where memory grows.

The first quarter is where a job takes what it takes once: the chunks of cells (20,000 of them), the first
shard, and torch's preparations of matrix products, of which it keeps the last 1,024 (5 MB). With several
threads that takes 300,000 cells. With fewer rows these, and the steps of 2 MB in which an allocator takes
memory, show as growth. A shard is written every five seconds here instead of every 30: these jobs are so
short that the rows which wait for their shard, 64 MB at most, would look like growth too.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import pandas as pd
import torch
import typer
from parity import machine, wide_console
from rich.console import Console
from rich.table import Table
from scipy import sparse

import ribozyme as rz
from ribozyme.engine import sink

GENES, EXPRESSED, PIECE = 2_000, 150, 10_000
SHORTEST, LONGEST = 20, 60
SAMPLES, STRETCHES, SKIPPED = 400, 12, 0.25
"""Looks at the memory in a run; stretches that the fit is through; share of the run before them."""
ERRORS, BYTES = 3.0, 1.0
"""The slope is zero within so many standard errors, or bytes a row."""
SHARD_SECONDS = 5.0
KINDS = ("cells, stream", "cells, embed", "RNAs, stream", "RNAs, embed")


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory of one job, in bytes.

    peak : while it worked; assembling : how much higher it was when the output was put together
    slope, error : bytes a row, and their standard error
    """

    job: str
    rows: int
    peak: int
    slope: float
    error: float
    assembling: int

    @property
    def flat(self) -> bool:
        return self.slope < max(ERRORS * self.error, BYTES)


# -------------------------------------------------------------------------------------------------- inputs


def write_cells(path: Path, count: int) -> Path:
    """Counts of random genes, written in pieces."""
    from anndata.io import sparse_dataset, write_elem

    from ribozyme.models.scgpt.vocab import Vocabulary

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", pd.DataFrame(index=[f"cell-{k:09d}" for k in range(count)]))
        write_elem(file, "var", pd.DataFrame(index=list(Vocabulary.census().genes[:GENES])))
        for k, start in enumerate(range(0, count, PIECE)):
            rows = random_counts(min(PIECE, count - start), k)
            if k == 0:
                write_elem(file, "X", rows, dataset_kwargs={"compression": "lzf"})
            else:
                sparse_dataset(file["X"]).append(rows)
    return path


def random_counts(count: int, seed: int) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.integers(0, GENES, (count, EXPRESSED)), axis=1)
    data = rng.geometric(0.5, genes.size).astype(np.float32)
    bounds = np.arange(count + 1, dtype=np.int64) * EXPRESSED
    rows = sparse.csr_matrix((data, genes.ravel().astype(np.int32), bounds), shape=(count, GENES))
    rows.sum_duplicates()
    rows.indptr = rows.indptr.astype(np.int64)  # so that it can be appended to
    return rows


def write_rnas(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for start in range(0, count, PIECE):
            lengths = rng.integers(SHORTEST, LONGEST + 1, min(PIECE, count - start))
            letters = "".join(np.array(list("ACGU"))[rng.integers(0, 4, lengths.sum())])
            ends = np.cumsum(lengths)
            file.writelines(
                f">rna-{start + k:09d}\n{letters[end - length : end]}\n"
                for k, (length, end) in enumerate(zip(lengths, ends))
            )
    return path


def save_models(folder: Path) -> None:
    """Networks so small that the rest of the program is what takes time and memory."""
    from ribozyme.engine.cells import CellModel
    from ribozyme.engine.sequences import SequenceModel
    from ribozyme.models.rnafm import config as rnafm
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer
    from ribozyme.models.scgpt import config as scgpt
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary

    cells = ScGPT(scgpt.Config(dim=8, layers=1, heads=1, ffn_dim=8))
    sizes = rnafm.Config(layers=1, dim=8, heads=1, ffn_dim=8, contact_head=False)
    rnas, cpu = RNAFM(sizes), torch.device("cpu")
    for module in (cells, rnas):
        module.initialise(torch.Generator().manual_seed(0))
    CellModel(cells, Vocabulary.census(), cpu).save(folder / "cells")
    SequenceModel(rnas, Tokenizer(sizes.vocabulary), cpu).save(folder / "RNAs")


# ---------------------------------------------------------------------------------------------------- a job


def resident() -> int:
    """Bytes of memory that this process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def most_resident() -> int:
    """Bytes of memory that this process has had at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def job(kind: str, folder: Path, source: Path, count: int) -> dict[str, Any]:
    """(rows done, resident bytes) all along, and peaks before and after the output is put together."""
    import pyarrow.parquet  # noqa: F401 - the first shard would load it in the middle of the run

    sink.SHARD_SECONDS = SHARD_SECONDS
    what, how = kind.split(", ")
    model = rz.load(folder / what, device="cpu")
    samples, done, step = [], 0, max(1, count // SAMPLES)

    def advance(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done // step > before // step:
            samples.append((done, resident(), most_resident()))

    if how == "stream":
        for _ in model.stream(source):
            advance(1)
    else:
        rz.embed_file(model, source, folder / f"{what}.parquet", advance=advance)
    assert done == count
    return {"samples": samples, "peak": most_resident()}


def growth(kind: str, found: dict[str, Any]) -> Growth:
    """The slope through means of stretches: neighbouring looks are alike, and would make the error small."""
    rows, resident, peaks = np.array(found["samples"], dtype=np.float64).T
    late = rows > SKIPPED * rows[-1]
    stretch = np.array_split(np.flatnonzero(late), STRETCHES)
    x, y = (np.array([values[part].mean() for part in stretch]) for values in (rows, resident))
    x0 = x - x.mean()
    slope = float((x0 * y).sum() / (x0**2).sum())
    rest = y - y.mean() - slope * x0
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / (x0**2).sum()))
    return Growth(kind, int(rows[-1]), int(peaks[-1]), slope, error, int(found["peak"] - peaks[-1]))


def in_a_process(kind: str, folder: Path, source: Path, count: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--job", kind, "--folder", str(folder), "--source", str(source)]
    command += ["--count", str(count), "--threads", str(threads)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{kind} ended with status {answer.returncode}:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout)


def jobs(folder: Path, cells: int, rnas: int, only: str) -> Iterator[tuple[str, Path, int]]:
    if of_cells := [kind for kind in KINDS[:2] if only in kind]:
        source = write_cells(folder / "cells.h5ad", cells)
        yield from ((kind, source, cells) for kind in of_cells)
    if of_rnas := [kind for kind in KINDS[2:] if only in kind]:
        source = write_rnas(folder / "rnas.fa.gz", rnas)
        yield from ((kind, source, rnas) for kind in of_rnas)


def print_growths(growths: list[Growth], console: Console) -> None:
    table = Table("job", "rows", "peak", "bytes a row (+- standard error)", "at the end", "")
    for one in growths:
        table.add_row(
            one.job,
            f"{one.rows:,}",
            f"{one.peak / 2**20:,.0f} MiB",
            f"{one.slope:.2f} +- {one.error:.2f}",
            f"+{one.assembling / 2**20:,.0f} MiB",
            "[green]flat[/]" if one.flat else "[red]grows[/]",
        )
    console.print(table)


def main(
    cells: Annotated[int, typer.Option(help="cells of the .h5ad file")] = 1_200_000,
    rnas: Annotated[int, typer.Option(help="RNAs of the .fa.gz file")] = 3_000_000,
    only: Annotated[str, typer.Option(help="jobs with this in the name: cells, RNAs, stream, embed")] = "",
    threads: Annotated[int, typer.Option(help="of torch; with several, batches are side by side")] = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every look")] = None,
    job_: Annotated[str, typer.Option("--job", hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
    source: Annotated[Path, typer.Option(hidden=True)] = Path(),
    count: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Print peak and slope of each job; exit status 1 where memory grows with the rows."""
    if job_:
        torch.set_num_threads(threads)
        print(json.dumps(job(job_, folder, source, count)))
        return
    console, found, growths = wide_console(), {}, []
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name))
        for kind, source, count in jobs(Path(name), cells, rnas, only):
            found[kind] = in_a_process(kind, Path(name), source, count, threads)
            growths.append(growth(kind, found[kind]))
            console.print(f"{kind}: {count:,} rows, {growths[-1].slope:.2f} bytes a row")
    print_growths(growths, console)
    if output is not None:
        content = {
            "machine": machine(),
            "threads": threads,
            "jobs": [asdict(one) for one in growths],
            "looks": found,
        }
        output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    raise typer.Exit(not all(one.flat for one in growths))


if __name__ == "__main__":
    typer.run(main)

"""Features that do not change while a head alone is trained: each input goes through the network once."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribozyme.errors import InputWarning
from ribozyme.packing import Packed
from ribozyme.train.heads import Network
from ribozyme.train.inputs import Inputs, run
from ribozyme.train.linear import Rows
from ribozyme.train.processes import first_process
from ribozyme.train.supervised import Examples

MOST_ROWS = 200_000
"""Rows that a linear head is solved for; of more, so many are drawn."""
CHUNK = 1_024
"""Inputs that are computed before the rows to keep are chosen."""

Array = npt.NDArray[np.float32]


def features(
    network: Network,
    inputs: Inputs,
    device: torch.device,
    budget: int,
    kept: Sequence[npt.NDArray[np.int64]] | None = None,
) -> list[Array]:
    """(rows_i, width) an input, what the head reads of it; of each only the rows `kept`, if that is given."""
    network.eval()
    found: list[Array] = []
    with _counter(len(inputs)) as tell:

        def compute(batch: Packed) -> Sequence[Tensor]:
            rows = network.features(batch)
            tell(len(rows))
            return rows

        for start in range(0, len(inputs), CHUNK):
            places = range(start, min(start + CHUNK, len(inputs)))
            some = run(inputs.chosen(places), compute, device, budget)
            found += some if kept is None else [rows[kept[k]] for k, rows in zip(places, some)]
    return found


def solvable(
    network: Network, examples: Examples, device: torch.device, budget: int, seed: int
) -> tuple[Rows, Rows | None]:
    """What `fit_linear` takes: rows to learn from, and to validate on; of too many, some drawn by `seed`."""
    counts = np.array(network.pooler.counts(examples.inputs.lengths))
    kept = _drawn(counts, examples.learnt, np.random.default_rng(seed))
    found = features(network, examples.inputs, device, budget, kept)
    owner = np.repeat(np.arange(len(kept)), [len(one) for one in kept])
    if isinstance(examples.targets, Tensor):
        targets = examples.targets.numpy()[owner]
    else:
        targets = np.concatenate([one.numpy()[rows] for one, rows in zip(examples.targets, kept)])
    every = Rows(np.concatenate(found), targets, examples.groups[owner])
    learnt = owner < examples.learnt
    held = None if learnt.all() else every.of(np.flatnonzero(~learnt))
    return every.of(np.flatnonzero(learnt)), held


def _drawn(
    counts: npt.NDArray[np.int64], learnt: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Of each input the rows to keep: all, or a random share of all."""
    total = int(counts[:learnt].sum())
    if total <= MOST_ROWS:
        return [np.arange(count) for count in counts]
    warnings.warn(
        f"the linear head is solved for {MOST_ROWS:,} of {total:,} rows, drawn at random",
        InputWarning,
        stacklevel=4,
    )
    return [np.flatnonzero(generator.random(count) < MOST_ROWS / total) for count in counts]


@contextlib.contextmanager
def _counter(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal, that is told of inputs that are done."""
    if not (first_process() and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("features"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("features", total=total)
        yield lambda count: progress.advance(task, count)

"""What each step of a training is made of: an order of examples that is a function of the seed alone.

An epoch is read in blocks (a block is the shuffle buffer), a block is shuffled and cut into steps. Where a
run stands is three numbers, its `Place`: a run that goes on draws nothing again and reads one block again.
Every process of a run plans the same steps, and takes its own share of each.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError

Unit = Literal["tokens", "examples"]
Keys = npt.NDArray[np.uint64]
Item = TypeVar("Item")
BUFFER = 65_536
"""Examples that are shuffled together, and held in memory, at a time."""


class Corpus(Protocol):
    """Examples that can be gone through again and again; `where` names them in messages."""

    @property
    def where(self) -> str: ...

    def read(self, generator: np.random.Generator, skip: int = 0) -> Iterator[Any]:
        """An epoch from row `skip` on, None for a row without example; `generator` may draw its order."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a run has come: full epochs, blocks of the epoch, steps of the block."""

    epoch: int = 0
    block: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The examples of one step, for all processes together.

    lengths : tokens of each example
    keys : (n,) 64 bits an example and epoch, from which all random numbers about it are made
    after : the place where the run stands when the step is done
    """

    examples: Sequence[Any]
    lengths: Sequence[int]
    keys: Keys
    after: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The steps of a training.

    size, unit : tokens, or examples, of a step over all processes
    buffer : rows of the corpus that are shuffled together
    sorted_steps : steps of examples that are sorted by length before they are cut into steps: like lengths
        run faster together, and see each other's gradients more often
    """

    corpus: Corpus
    size: int
    unit: Unit = "tokens"
    buffer: int = BUFFER
    sorted_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.size, self.buffer, self.sorted_steps) < 1:
            raise ConfigError(
                f"a step of {self.size}, a buffer of {self.buffer} and {self.sorted_steps} sorted steps "
                "must be positive"
            )

    def steps(self, length: Any, place: Place | None = None) -> Iterator[Step]:
        """Steps without end, from a place on; `length` gives the tokens of an example.

        Raises
        ------
        InputError : there is no example.
        """
        epoch, block, done = (place.epoch, place.block, place.step) if place else (0, 0, 0)
        while True:
            nothing, number = block == 0, block
            for examples in self._blocks(epoch, block):
                nothing = nothing and not examples
                generator = np.random.default_rng([self.seed, epoch, number])
                keys = generator.integers(2**64, size=len(examples), dtype=np.uint64)
                lengths = np.array([length(one) for one in examples])
                counted = lengths if self.unit == "tokens" else np.ones_like(lengths)
                groups = cut(counted, self.size, generator, lengths, self.sorted_steps)
                if self.unit == "tokens":
                    groups = joined(groups, counted, self.size)
                if self.sorted_steps > 1:
                    groups = [groups[i] for i in generator.permutation(len(groups))]
                for k, group in islice(enumerate(groups, start=1), done, None):
                    chosen = [examples[i] for i in group]
                    yield Step(chosen, lengths[group].tolist(), keys[group], Place(epoch, number, k))
                done, number = 0, number + 1
                del examples  # before the next block is read: one is in memory at a time
            if nothing:
                raise InputError(f"{self.corpus.where}: there is nothing to train on")
            epoch, block = epoch + 1, 0

    def _blocks(self, epoch: int, first: int) -> Iterator[list[Any]]:
        generator = np.random.default_rng([self.seed, epoch])
        rows = self.corpus.read(generator, skip=first * self.buffer)
        while block := list(islice(rows, self.buffer)):
            yield [one for one in block if one is not None]
            del block


def cut(
    counted: npt.NDArray[np.int64],
    size: int,
    generator: np.random.Generator,
    lengths: npt.NDArray[np.int64] | None = None,
    sorted_steps: int = 1,
) -> list[npt.NDArray[np.int64]]:
    """Positions in random order, cut into steps whose counts sum to at most `size`; a larger one is alone."""
    order = generator.permutation(len(counted))
    if sorted_steps > 1 and lengths is not None:
        chunk = np.cumsum(counted[order]) // (size * sorted_steps)
        order = order[np.lexsort((lengths[order], chunk))]
    starts, total = [0], 0
    for place, count in enumerate(counted[order].tolist()):
        if total and total + count > size:
            starts.append(place)
            total = 0
        total += count
    return np.split(order, starts[1:]) if len(order) else []


def joined(
    groups: list[npt.NDArray[np.int64]], counted: npt.NDArray[np.int64], size: int
) -> list[npt.NDArray[np.int64]]:
    """The same, but a last step of less than half of `size` joins the one before: small steps are noisy."""
    if len(groups) > 1 and 2 * counted[groups[-1]].sum() < size:
        return [*groups[:-2], np.concatenate(groups[-2:])]
    return groups


def deal(loads: Sequence[int], workers: int) -> list[list[int]]:
    """Positions of `loads` for each worker, each to the one that has least so far."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    sums = [0] * workers
    for place in sorted(range(len(loads)), key=lambda k: (-loads[k], k)):
        least = sums.index(min(sums))
        shares[least].append(place)
        sums[least] += loads[place]
    return [sorted(share) for share in shares]


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; a thread makes the next one while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@dataclass(frozen=True, slots=True)
class InMemory:
    """A sequence of examples as a corpus."""

    examples: Sequence[Any]
    where: str = "the data"

    def read(self, generator: np.random.Generator, skip: int = 0) -> Iterator[Any]:
        """Every example once, in its place."""
        return islice(self.examples, skip, None)

"""Parts: runs of inputs whose results depend on nothing but those inputs.

Where a part ends follows from the input alone, counted from its beginning. So a job that is taken up again
where a part begins computes the same batches and gives the same bits, on this machine or another.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, TypeVar

import torch

from ribozyme.engine.threads import BatchThreads, batch_threads
from ribozyme.errors import ConfigError, DeviceError, RibozymeError
from ribozyme.packing import plan
from ribozyme.report import Rejected, Report

PART = 8
"""Batches of a part: enough to fill them well, few enough that the part in hand is soon done after Ctrl-C."""
IN_HAND = 2
"""Parts at once where batches run side by side, so that no thread waits for the last batch of a part."""

LONG = 2_000
"""Tokens of an input at which attention costs about as much as all the rest."""

OnError = Literal["fail", "skip"]
ON_ERROR: tuple[OnError, ...] = ("fail", "skip")
T = TypeVar("T")
_END: Any = object()


@dataclass(slots=True)
class Prepared:
    """Inputs `start` to `end` of a job, ready for the network.

    names, inputs : of those that have a result; inputs are in the form of the model's family
    rejected : those that have none (`on_error="skip"`)
    report : what was changed in these inputs
    """

    start: int
    end: int
    names: list[str] = field(default_factory=list)
    inputs: Any = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, slots=True)
class Part:
    """Results of the inputs `start` to `end`: one row a name, an array (n, dim) or a list of arrays."""

    start: int
    end: int
    names: Sequence[str]
    rows: Any
    rejected: Sequence[Rejected] = ()
    report: Report = field(default_factory=Report)


def check_on_error(on_error: str) -> None:
    """Raise a `ConfigError` unless this is a way to deal with bad inputs."""
    if on_error not in ON_ERROR:
        raise ConfigError(f"on_error {on_error!r} does not exist", hint=f"one of {', '.join(ON_ERROR)}")


def prefetch(items: Iterable[T], ahead: int = 1) -> Generator[T, None, None]:
    """The same items, made in a thread up to `ahead` early; its errors come here, closing ends it."""
    source = iter(items)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
            coming = deque(thread.submit(next, source, _END) for _ in range(ahead))
            while (item := coming.popleft().result()) is not _END:
                coming.append(thread.submit(next, source, _END))
                yield item
    finally:
        getattr(source, "close", lambda: None)()  # a generator lets go of its files


def computed(model: Any, how: Any, prepared: Iterable[Prepared]) -> Generator[Part, None, None]:
    """`model.compute` of each of `prepared`, in order; the batches of two parts share the threads."""
    with ThreadPoolExecutor(IN_HAND, "part") as hands, budgeted(how.batch_tokens, model.device) as budget:
        coming, errors = deque[Future[Part]](), list[Exception]()
        source = until_error(prepared, errors)
        begin = list(islice(source, 1 if budget.threads is None else IN_HAND))
        alone = len(begin) < IN_HAND
        for one in chain(begin, source):
            if alone:
                yield model.compute(one, how, budget)
                continue
            coming.append(hands.submit(model.compute, one, how, budget))
            if len(coming) == IN_HAND:
                yield coming.popleft().result()
        yield from (part.result() for part in coming)
        for error in errors:
            raise error


def until_error(items: Iterable[T], errors: list[Exception]) -> Iterator[T]:
    """The items; a bad record or file among them is put aside, so that what came before it is not lost."""
    try:
        yield from items
    except (RibozymeError, OSError) as error:
        errors.append(error)


def one_by_one(parts: Iterable[Part]) -> Iterator[tuple[str, Any]]:
    """(name, row) of all parts, and at the end one warning of what was changed."""
    report = Report()
    for part in parts:
        yield from zip(part.names, part.rows)
        report.merge(part.report)
    report.finish()


@dataclass(slots=True)
class Budget:
    """Tokens of a batch; halved when memory does not suffice, which `halved` counts.

    threads : for batches side by side; without them they are computed one after the other
    noted : how many of the halvings are in a report
    """

    tokens: int
    threads: BatchThreads | None = None
    halved: int = 0
    noted: int = 0

    def map(self, function: Callable[[Any], T], items: Sequence[Any], costs: Sequence[float]) -> Iterator[T]:
        """`function` of each, in order."""
        return map(function, items) if self.threads is None else self.threads.map(function, items, costs)

    def halve(self, tokens: int) -> None:
        """After a batch of `tokens` that memory did not suffice for."""
        if self.tokens > (half := max(1, tokens // 2)):  # else another part has done so
            self.tokens, self.halved = half, self.halved + 1

    def note(self, report: Report) -> None:
        """Count new halvings in `report`."""
        new, self.noted = self.halved - self.noted, self.halved
        if new:
            kind = "times memory did not suffice and the tokens of a batch were halved"
            report.note(kind, f"batches of {self.tokens:,} from then on", new)


@contextmanager
def budgeted(tokens: int, device: torch.device) -> Iterator[Budget]:
    """A budget with threads, where the device has several; batches that wait at the end are dropped."""
    threads = batch_threads(device)
    try:
        yield Budget(tokens, threads)
    finally:
        if threads is not None:
            threads.close()


def in_batches(
    lengths: Sequence[int], budget: Budget, compute: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """(places in `lengths`, `compute` of them), batch by batch, with smaller ones where memory ends.

    Raises
    ------
    DeviceError : a single input does not fit into memory.
    """
    rest = list(range(len(lengths)))
    while rest:
        groups = [[rest[k] for k in group] for group in plan([lengths[k] for k in rest], budget.tokens)]
        costs = [sum(lengths[k] * (lengths[k] + LONG) for k in group) for group in groups]
        for done, result in enumerate(budget.map(partial(_unless_out_of_memory, compute), groups, costs)):
            if result is _END:
                break
            yield groups[done], result
        else:
            return
        if len(groups[done]) == 1:
            raise DeviceError(
                f"memory does not suffice for one input of {lengths[groups[done][0]]:,} tokens",
                hint="read it in windows (overlong, max_length), or use a machine with more memory",
            )
        budget.halve(sum(lengths[k] for k in groups[done]))
        rest = [k for group in groups[done:] for k in group]


@torch.inference_mode()
def _unless_out_of_memory(compute: Callable[[list[int]], Any], group: list[int]) -> Any:
    try:
        return compute(group)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # here the error, and with it the tensors of its frames, is gone
        torch.cuda.empty_cache()
    return _END


def is_out_of_memory(error: BaseException) -> bool:
    """Is it memory that was missing? torch has a class for GPUs, and words for CPUs."""
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and ("DefaultCPUAllocator" in said or "not enough memory" in said or "alloc_cpu" in said)
    )

"""Parts: runs of inputs whose results depend on nothing but those inputs.

Where a part ends follows from the input alone, counted from its beginning. So a job that is taken up again
where a part begins computes the same batches and gives the same bits, on this machine or another.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from ribozyme.errors import ConfigError, DeviceError
from ribozyme.packing import plan
from ribozyme.report import Rejected, Report

PART = 8
"""Batches of a part: enough to fill them well, few enough that the part in hand is soon done after Ctrl-C."""

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
    """`model.compute` of each of `prepared`, in order."""
    budget = Budget(how.batch_tokens)
    for one in prepared:
        yield model.compute(one, how, budget)


def one_by_one(parts: Iterable[Part]) -> Iterator[tuple[str, Any]]:
    """(name, row) of all parts, and at the end one warning of what was changed."""
    report = Report()
    for part in parts:
        yield from zip(part.names, part.rows)
        report.merge(part.report)
    report.finish()


@dataclass(slots=True)
class Budget:
    """Tokens of a batch; halved when memory does not suffice, which `halved` counts."""

    tokens: int
    halved: int = 0

    def note(self, report: Report, before: int) -> None:
        """Count in `report` the halvings after the first `before`."""
        kind = "times memory did not suffice and the tokens of a batch were halved"
        report.note(kind, f"batches of {self.tokens:,} from then on", self.halved - before)


def in_batches(
    lengths: Sequence[int], budget: Budget, compute: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """(places in `lengths`, `compute` of them), batch by batch, with smaller ones where memory ends.

    Raises
    ------
    DeviceError : a single input does not fit into memory.
    """
    waiting = plan(lengths, budget.tokens)
    while waiting:
        result = _unless_out_of_memory(compute, waiting[0])
        if result is not _END:
            yield waiting.pop(0), result
            continue
        if len(waiting[0]) == 1:
            raise DeviceError(
                f"memory does not suffice for one input of {lengths[waiting[0][0]]:,} tokens",
                hint="read it in windows (overlong, max_length), or use a machine with more memory",
            )
        budget.tokens = max(1, min(budget.tokens, sum(lengths[k] for k in waiting[0])) // 2)
        budget.halved += 1
        rest = [k for group in waiting for k in group]
        waiting = [[rest[k] for k in group] for group in plan([lengths[k] for k in rest], budget.tokens)]


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

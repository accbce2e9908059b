"""Batches side by side: threads with a batch each waste less time than all of them on one batch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch

MOST = 8
"""Batches at once. Each needs memory of its own, and Python can only start so many operations."""

UNEVEN = 1.3
"""How much more than its fair share the longest batch may take, lest the others wait for it too long."""

T = TypeVar("T")


class BatchThreads:
    """Threads of Python that share the threads of torch.

    How many torch uses is a number of each thread of Python, once that has asked for it: in these it is their
    share, elsewhere it stays what it is.
    """

    def __init__(self, count: int) -> None:
        self.count, threads = count, torch.get_num_threads()
        begun = Barrier(count + 1)

        def begin() -> None:
            torch.get_num_threads()
            torch.set_num_threads(max(1, threads // count))
            begun.wait()

        self._pool = ThreadPoolExecutor(count, "batch", begin)
        for _ in range(count):  # each begins a thread, for none is free before all of them have begun
            self._pool.submit(int)
        begun.wait()
        torch.set_num_threads(threads)  # what threads that begin from now on take over

    def map(self, function: Callable[[Any], T], items: Sequence[Any], costs: Sequence[float]) -> Iterator[T]:
        """`function` of each, in order; where one costs too much one after the other, on all threads."""
        even = self.count * max(costs) < UNEVEN * sum(costs)
        return self._pool.map(function, items) if even else map(function, items)

    def close(self) -> None:
        """Wait for what has begun, and drop the rest."""
        self._pool.shutdown(cancel_futures=True)


def batch_threads(device: torch.device) -> BatchThreads | None:
    """As many as torch has, up to `MOST`; None where that is one, or on a GPU."""
    count = min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1
    return BatchThreads(count) if count > 1 else None

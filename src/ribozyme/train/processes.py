"""Around the loop: the processes of a training, the signals that stop it, the bar that shows it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from ribozyme.engine.device import fast_bfloat16
from ribozyme.errors import ConfigError
from ribozyme.train.history import State


class Workers:
    """The processes of a training (Accelerate), and what they do together."""

    def __init__(self, device: torch.device, precision: str = "float32") -> None:
        from accelerate import PartialState

        self.state = PartialState(cpu=device.type == "cpu")
        self.device = device
        self.rank, self.count = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "auto" and asked not in ("no", "bf16"):
            raise ConfigError(
                f"mixed precision {asked!r} does not exist here", hint="no or bf16; or give a precision"
            )
        fast = asked == "bf16" or (asked == "no" and fast_bfloat16(device))
        self.bfloat16 = precision == "bfloat16" or (precision == "auto" and fast)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Products in bfloat16, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def total(self, mine: Any) -> Any:
        """A tensor, or each number of a dictionary, summed over the processes."""
        if self.count == 1:
            return mine
        if isinstance(mine, dict):
            numbers = self.total(torch.tensor(list(mine.values()), dtype=torch.float64, device=self.device))
            return dict(zip(mine, numbers.tolist()))
        from accelerate.utils import reduce

        return reduce(mine.clone(), "sum")

    def total_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients summed over the processes; a parameter that none of them used keeps none."""
        if self.count == 1:
            return
        used = torch.tensor([p.grad is not None for p in parameters], device=self.device).float()
        reached = [p for p, any_used in zip(parameters, self.total(used).tolist()) if any_used]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
        flat = self.total(torch.cat([part.flatten() for part in parts]))
        for parameter, part in zip(reached, flat.split([p.numel() for p in reached])):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """For all processes to come here."""
        self.state.wait_for_everyone()

    def share(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the parameters of the first."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data.clone()))


def first_process() -> bool:
    """Whether this process is the one of several that writes files."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or int(os.environ.get("RANK", "0")) == 0


def end_processes() -> None:
    """Leave the group of processes, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def process_device(name: str) -> str:
    """The device of this process: of several, each has the GPU of its number."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "auto" and rank is not None and torch.cuda.is_available() else name


@contextlib.contextmanager
def own_dropout(device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators: they are seeded at each micro-batch, and given back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def interrupts(wanted: bool) -> Iterator[list[int]]:
    """Signals that ask to stop, as they come: the step is finished then; a second one is not waited for."""
    asked: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise stopped([number])
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(asked: Sequence[int]) -> BaseException:
    """What a signal does to a program; SIGTERM (128 + 15) if another process was asked."""
    return KeyboardInterrupt() if signal.SIGINT in asked else SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def bar(total: int, begun: State, workers: Workers, *, stays: bool) -> Iterator[Callable[[State], None]]:
    """A progress bar on stderr where that is a terminal; it `stays` there, or goes when it is full."""
    if not (workers.main and sys.stderr.isatty()):
        yield lambda state: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    tokens, seconds = begun.tokens, begun.seconds
    with Progress(*columns, console=Console(stderr=True), transient=not stays) as progress:
        task = progress.add_task("step", total=total, completed=begun.step, told="")

        def show(state: State) -> None:
            speed = (state.tokens - tokens) / max(1e-9, state.seconds - seconds)
            told = f"loss {state.loss:.4f}  {speed:,.0f} tokens/s"
            progress.update(task, completed=state.step, told=told)

        yield show

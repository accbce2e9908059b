"""The folder of a training: it survives any interruption, and tells how the training went.

::

    run.json                the settings that the run was begun with
    checkpoint.safetensors  weights, optimizer, place in the data, history: one file, replaced whole
    best-N.safetensors      the weights of the best validation, that of step N
    log.csv, curve.json, curve.png   losses, rate and speed; tensorboard/ where that is installed
    failed-step-N.safetensors        the batch at which the loss was no number

Nothing is pickled: an optimizer's state is tensors and numbers, and is written as such. No random state is
kept, as all random numbers of a training are functions of its seed and step (`feed.py`, `loop.py`).
"""

import contextlib
import csv
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.files import AtomicFile, folder_lock
from ribozyme.tensors import Tensors
from ribozyme.train.history import History, State
from ribozyme.train.schedule import Schedule
from ribozyme.train.snapshot import (
    learnt,
    load_learnt,
    packed_optimizer,
    read_sealed,
    unpack_optimizer,
    write_sealed,
)

SETTINGS, CHECKPOINT = "run.json", "checkpoint.safetensors"
LOG, CURVE, PICTURE, BOARD = "log.csv", "curve.json", "curve.png", "tensorboard"
FORMAT = 1
PICTURE_SECONDS = 60


class Run:
    """A folder that is begun, or gone on with.

    settings : what must be the same for the run to go on (plain JSON)
    schedule : if the `steps` among the settings may change, as long as the rates of the done steps do not
    writes : whether this process writes the files (one of several does)
    also : called when the training ends or stops, to write more

    Raises
    ------
    InputError : `folder` is a file.
    ConfigError : it holds a run with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        *,
        schedule: Schedule | None = None,
        writes: bool = True,
        also: Callable[[], object] | None = None,
    ) -> None:
        self.folder, self.writes, self.also = Path(folder), writes, also
        if self.folder.is_file():
            raise InputError(f"{folder} is a file", hint="a training is kept in a folder")
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        self._board: Any = None
        self._drawn = time.monotonic()
        self._schedule, self._held = schedule, False
        self._check_settings()

    def save(
        self, state: State, network: nn.Module, optimizer: torch.optim.Optimizer, *, finished: bool = False
    ) -> None:
        """Write the checkpoint; the one before stays until this one is whole."""
        if not self.writes:
            return
        tensors = {f"network.{name}": tensor for name, tensor in learnt(network).items()}
        moments, groups = packed_optimizer(optimizer)
        about = {"state": state.to_json(), "optimizer": json.dumps(groups)}
        write_sealed(self.folder / CHECKPOINT, tensors | moments, about)
        for path in self.folder.glob("best-*.safetensors"):
            if path != self._best(state.history.best_step):
                path.unlink()  # no checkpoint is of it any more
        self.write_curve(state.history, picture=finished)

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer, fresh: State) -> State:
        """Put the checkpoint, if there is one, into network and optimizer; without one the state is `fresh`.

        Raises
        ------
        CheckpointError : it is damaged, or of another network.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            state = fresh
        else:
            tensors, state, groups = _read_checkpoint(path)
            weights = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
            load_learnt(network, weights, path)
            unpack_optimizer(optimizer, tensors, groups, path)
            if state.history.best is not None:
                read_sealed(self._best(state.history.best_step))  # damage is found now, not in the end
        self._begin_log(state.history)
        return state

    def save_best(self, network: nn.Module, step: int) -> None:
        """Keep the weights of the best validation; the one before stays until the next checkpoint."""
        if self.writes:
            write_sealed(self._best(step), learnt(network), {})

    def record(self, history: History) -> None:
        """Log and curve of a training that was done at once."""
        self._begin_log(history)
        self.write_curve(history, picture=True)

    def finish(self) -> None:
        """The network is as it will be: write what the run is for."""
        if self.writes and self.also is not None:
            self.also()

    def load_best(self, network: nn.Module, step: int) -> None:
        """Put them back."""
        path = self._best(step)
        load_learnt(network, read_sealed(path)[0], path)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step}.safetensors"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The settings are written, and no other training writes here meanwhile; within itself it is nothing.

        Raises
        ------
        ConfigError : one does already, or has left a run with other settings.
        """
        if not self.writes or self._held:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = folder_lock(self.folder)
        if lock is None:
            raise ConfigError(
                f"{self.folder}: another process trains here",
                hint="wait for its end, or choose another folder",
            )
        self._held = True
        try:
            if self._check_settings() != self.settings:
                with AtomicFile(self.folder / SETTINGS) as temporary:
                    temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            yield
        finally:
            self._held = False
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()  # while it is ours
            lock.release()

    def log(self, history: History) -> None:
        """Add the last line of the history to the log, and to TensorBoard where that is installed."""
        if not self.writes:
            return
        row = history.rows()[-1]
        with (self.folder / LOG).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        if self._board is not None:
            for name, value in zip(history.columns, row):
                if name not in ("step", "epoch", "tokens", "seconds") and value is not None:
                    self._board.add_scalar(name, value, row[0])
            self._board.flush()  # a run that is killed has told what its log tells

    def save_failed(self, step: int, rank: int, batches: Sequence[Tensors]) -> Path:
        """Keep the batches at which a loss was no number."""
        path = self.folder / f"failed-step-{step}{f'-process-{rank}' if rank else ''}.safetensors"
        tensors = {f"{k}.{name}": tensor for k, one in enumerate(batches) for name, tensor in one.items()}
        write_sealed(path, tensors, {"step": str(step)})
        return path

    def write_curve(self, history: History, *, picture: bool) -> None:
        """`curve.json`; and, at the end and every minute, a picture of it."""
        if not self.writes or not history.steps:
            return
        columns = dict(zip(history.columns, zip(*history.rows())))
        with AtomicFile(self.folder / CURVE) as temporary:
            temporary.write_text(json.dumps(columns) + "\n", encoding="utf-8")
        if picture or time.monotonic() - self._drawn > PICTURE_SECONDS:
            draw(history, self.folder / PICTURE)
            self._drawn = time.monotonic()

    def _check_settings(self) -> dict[str, Any] | None:
        """The settings in the folder, if there are some; those of a run that did something must be ours."""
        found = read_settings(self.folder)
        if found is not None and has_begun(self.folder):
            self._check(found, self._schedule)
        return found

    def _check(self, found: dict[str, Any], schedule: Schedule | None) -> None:
        """Raise `ConfigError` if the run in the folder cannot go on with our settings."""
        found, wanted = _flat(found), _flat(self.settings)
        differ = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if differ == ["steps"] and schedule is not None:
            path = self.folder / CHECKPOINT
            done = _read_checkpoint(path)[1].step if path.is_file() else 0
            schedule.check_goes_on(replace(schedule, steps=int(found["steps"])), done, str(self.folder))
        elif differ:
            name = min(differ, key=_derived)  # first what was asked for, then what follows from it
            more = f" (and {len(differ) - 1} more settings differ)" if len(differ) > 1 else ""
            raise ConfigError(
                f"{self.folder}: holds a run with {name} {_short(found.get(name))}, "
                f"not {_short(wanted.get(name))}{more}",
                hint="go on with the settings in its run.json, or choose another folder",
            )

    def _begin_log(self, history: History) -> None:
        """The log again as of the checkpoint: lines that were written after it come again."""
        if not self.writes:
            return
        for path in self.folder.glob(".*.tmp"):
            path.unlink()  # of a file that was being written when the process was killed
        with (
            AtomicFile(self.folder / LOG) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(history.columns)
            writer.writerows(history.rows())
        self._board = _board(self.folder / BOARD, history.steps[-1] + 1 if history.steps else 0)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings within settings by their joint names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}{name} ") if isinstance(value, dict) else {before + name: value}
    return flat


def _derived(name: str) -> int:
    """How far a setting is from what was asked for."""
    return next((k for k, one in enumerate(DERIVED, start=1) if name.startswith(one)), 0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


DERIVED = ("corpus", "validation", "batch_tokens", "first weights", "network ")
"""Settings that follow from others, and from what is in files, the nearest first."""


def draw(history: History, path: Path) -> None:
    """The losses over the steps, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    axes.plot(history.steps, history.loss, label="training", color="tab:blue")
    if history.best is not None:
        axes.plot(history.validation_steps, history.validation_loss, label="validation", color="tab:orange")
        axes.axvline(history.best_step, color="0.7", zorder=0, label=f"best, step {history.best_step:,}")
    axes.legend(frameon=False)
    with AtomicFile(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def has_begun(folder: Path) -> bool:
    """Whether a folder holds anything that a training made, beside its settings."""
    return any((folder / name).exists() for name in (CHECKPOINT, CURVE))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder was begun with, None where there is none."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _read_checkpoint(path: Path) -> tuple[Tensors, State, dict[str, Any]]:
    """Tensors, where the training stood, and the numbers of the optimizer."""
    tensors, about = read_sealed(path)
    try:
        return tensors, State.from_json(about["state"]), json.loads(about["optimizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its state is damaged ({error})") from error


def _board(folder: Path, first: int) -> Any:
    """A TensorBoard writer where that is installed, else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(folder), purge_step=first)

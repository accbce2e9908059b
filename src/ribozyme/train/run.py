"""The folder of a training: it survives any interruption, and tells how the training went.

::

    run.json                the settings that the run was begun with
    checkpoint.safetensors  weights, optimizer, place in the data, history: one file, replaced whole
    best.safetensors        the weights of the best validation
    log.csv, curve.json, curve.png   losses, rate and speed; tensorboard/ where that is installed
    failed-step-N.safetensors        the batch at which the loss was no number

Nothing is pickled: an optimizer's state is tensors and numbers, and is written as such. No random state is
kept, as all random numbers of a training are functions of its seed and step (`feed.py`, `loop.py`).
"""

import csv
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.files import AtomicFile
from ribozyme.train.feed import Place

SETTINGS, CHECKPOINT, BEST = "run.json", "checkpoint.safetensors", "best.safetensors"
LOG, CURVE, PICTURE, BOARD = "log.csv", "curve.json", "curve.png", "tensorboard"
FORMAT = 1
PICTURE_SECONDS = 60
COLUMNS = ("step", "epoch", "tokens", "seconds", "rate", "norm", "loss", "validation_loss")

Tensors = dict[str, Tensor]


@dataclass(slots=True)
class History:
    """What was seen while training, every `log_every` steps (of a fine-tuning: once an epoch).

    steps, epochs, tokens, seconds : done by then, since the beginning
    loss, rate, norm : mean training loss since the last time, learning rate, length of the last gradient
    validation_steps, validation_loss : of each validation
    """

    steps: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        """The place of the lowest validation loss (the first of equal ones), None before any."""
        if not self.validation_loss:
            return None
        return self.validation_loss.index(min(self.validation_loss))

    @property
    def best_step(self) -> int:
        """The step whose weights count: that of the best validation, or the last."""
        if self.best is not None:
            return self.validation_steps[self.best]
        return self.steps[-1] if self.steps else 0

    @property
    def best_epoch(self) -> int:
        """The same of a training that looks at its validation once an epoch, from 1."""
        return len(self.loss) if self.best is None else self.best + 1

    def rows(self) -> list[tuple[Any, ...]]:
        """As in `log.csv`, a row for each step that was looked at; None for what was not."""
        held = dict(zip(self.validation_steps, self.validation_loss))
        lists = (self.epochs, self.tokens, self.seconds, self.rate, self.norm, self.loss)
        trained = dict(zip(self.steps, zip(*lists)))
        nothing = (None,) * len(lists)
        return [
            (step, *trained.get(step, nothing), held.get(step))
            for step in sorted(trained.keys() | held.keys())
        ]

    def to_frame(self) -> Any:
        """The same as a DataFrame, which `rz.pl.training_curve` draws."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=list(COLUMNS), dtype=float)


@dataclass(slots=True)
class State:
    """Where a training stands; all of it that is no tensor.

    loss : of the last step
    since : sum of loss x examples, and examples, since the last line of the log
    """

    step: int = 0
    place: Place = field(default_factory=Place)
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    since: tuple[float, float] = (0.0, 0.0)
    history: History = field(default_factory=History)

    def to_json(self) -> str:
        """For `from_json`; numbers come back to the last bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "State":
        """What `to_json` wrote."""
        found = json.loads(text)
        found["place"], found["history"] = Place(**found["place"]), History(**found["history"])
        found["since"] = tuple(found["since"])
        return cls(**found)


class Run:
    """A folder that is begun, or gone on with.

    settings : what must be the same for the run to go on (plain JSON)
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
        writes: bool = True,
        also: Callable[[], object] | None = None,
    ) -> None:
        self.folder, self.writes, self.also = Path(folder), writes, also
        if self.folder.is_file():
            raise InputError(f"{folder} is a file", hint="a training is kept in a folder")
        self.settings = json.loads(json.dumps({"format": FORMAT, **settings}))
        self._board: Any = None
        self._drawn = time.monotonic()
        found = _read_settings(self.folder / SETTINGS)
        if found is not None:
            _check_same(self.folder, found, self.settings)
        elif writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            with AtomicFile(self.folder / SETTINGS) as temporary:
                temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def save(
        self, state: State, network: nn.Module, optimizer: torch.optim.Optimizer, *, finished: bool = False
    ) -> None:
        """Write the checkpoint; the one before stays until this one is whole."""
        if not self.writes:
            return
        tensors = {f"network.{name}": tensor for name, tensor in learnt(network).items()}
        moments, groups = packed_optimizer(optimizer)
        about = {"state": state.to_json(), "optimizer": json.dumps(groups)}
        _write(self.folder / CHECKPOINT, tensors | moments, about)
        self.write_curve(state.history, picture=finished)

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Put the checkpoint, if there is one, into network and optimizer.

        Raises
        ------
        CheckpointError : it is damaged, or of another network.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            state = State()
        else:
            tensors, about = _read(path)
            try:
                state = State.from_json(about["state"])
                groups = json.loads(about["optimizer"])
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}: its state is damaged ({error})") from error
            weights = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
            load_learnt(network, weights, path)
            unpack_optimizer(optimizer, tensors, groups, path)
        self._begin_log(state.history)
        return state

    def save_best(self, network: nn.Module) -> None:
        """Keep the weights of the best validation."""
        if self.writes:
            _write(self.folder / BEST, learnt(network), {})

    def record(self, history: History) -> None:
        """Log and curve of a training that was done at once."""
        self._begin_log(history)
        self.write_curve(history, picture=True)

    def finish(self) -> None:
        """The network is as it will be: write what the run is for."""
        if self.writes and self.also is not None:
            self.also()

    def load_best(self, network: nn.Module) -> None:
        """Put them back."""
        load_learnt(network, _read(self.folder / BEST)[0], self.folder / BEST)

    def log(self, history: History) -> None:
        """Add the last line of the history to the log, and to TensorBoard where that is installed."""
        if not self.writes:
            return
        row = history.rows()[-1]
        with (self.folder / LOG).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        if self._board is not None:
            for name, value in zip(COLUMNS, row):
                if name in ("rate", "norm", "loss", "validation_loss") and value is not None:
                    self._board.add_scalar(name, value, row[0])

    def save_failed(self, step: int, rank: int, batches: Sequence[Tensors]) -> Path:
        """Keep the batches at which a loss was no number."""
        path = self.folder / f"failed-step-{step}{f'-process-{rank}' if rank else ''}.safetensors"
        tensors = {f"{k}.{name}": tensor for k, one in enumerate(batches) for name, tensor in one.items()}
        _write(path, tensors, {"step": str(step)})
        return path

    def write_curve(self, history: History, *, picture: bool) -> None:
        """`curve.json`; and, at the end and every minute, a picture of it."""
        if not self.writes or not history.steps:
            return
        columns = dict(zip(COLUMNS, zip(*history.rows())))
        with AtomicFile(self.folder / CURVE) as temporary:
            temporary.write_text(json.dumps(columns) + "\n", encoding="utf-8")
        if picture or time.monotonic() - self._drawn > PICTURE_SECONDS:
            draw(history, self.folder / PICTURE)
            self._drawn = time.monotonic()

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
            writer.writerow(COLUMNS)
            writer.writerows(history.rows())
        self._board = _board(self.folder / BOARD, history.steps[-1] + 1 if history.steps else 0)


def learnt(network: nn.Module) -> Tensors:
    """What training changes: parameters that are trained, and statistics."""
    state = network.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in state.items()
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }


def load_learnt(network: nn.Module, tensors: Tensors, path: Path) -> None:
    """Put what `learnt` gave back into a network that is trained in the same parts."""
    expected = {name: tuple(tensor.shape) for name, tensor in learnt(network).items()}
    if (found := {name: tuple(tensor.shape) for name, tensor in tensors.items()}) != expected:
        odd = sorted(expected.items() ^ found.items())
        raise CheckpointError(
            f"{path}: is of another network ({len(odd)} tensors differ, such as {odd[0][0]!r})"
        )
    network.load_state_dict(tensors, strict=False)


def packed_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """The state of any of torch's optimizers as tensors with names, and the rest as plain JSON."""
    whole = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for place, state in whole["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{place}.{name}"] = value
            else:
                plain.setdefault(str(place), {})[name] = value
    groups = {"groups": whole["param_groups"], "plain": plain}
    try:
        json.dumps(groups)
    except TypeError as error:
        raise ConfigError(f"the state of {type(optimizer).__name__} cannot be saved ({error})") from error
    return tensors, groups


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Tensors, groups: dict[str, Any], path: Path
) -> None:
    """Put what `packed_optimizer` gave into an optimizer of the same parameters."""
    state: dict[int, dict[str, Any]] = {int(place): dict(of) for place, of in groups["plain"].items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            place, _, key = rest.partition(".")
            state.setdefault(int(place), {})[key] = tensor
    param_groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups["groups"]
    ]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is of another optimizer ({error})") from error


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


def _write(path: Path, tensors: Tensors, about: dict[str, str]) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with AtomicFile(path) as temporary:
        save_file(whole, temporary, metadata={"format": "pt", **about})


def _read(path: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error})", hint="begin anew in another folder"
        ) from error


def _read_settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differ = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if differ:
        name = differ[0]
        more = f" (and {len(differ) - 1} more settings differ)" if len(differ) > 1 else ""
        raise ConfigError(
            f"{folder}: holds a run with {name} {found.get(name)!r}, not {wanted.get(name)!r}{more}",
            hint="go on with the settings in its run.json, or choose another folder",
        )


def _board(folder: Path, first: int) -> Any:
    """A TensorBoard writer where that is installed, else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(folder), purge_step=first)

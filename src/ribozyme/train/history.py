"""What was seen while training, and where a training stands."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ribozyme.train.feed import Place

COLUMNS = ("step", "epoch", "tokens", "seconds", "rate", "norm", "loss", "validation_loss")


@dataclass(slots=True)
class History:
    """What was seen while training, every `log_every` steps (of a fine-tuning: once an epoch).

    steps, epochs, tokens, seconds : done by then, since the beginning
    loss, rate, norm : mean training loss since the last time, learning rate, length of the last gradient
    validation_steps, validation_loss : of each validation; without parts that the objective is `against`
    parts : of a loss of several parts the mean of each since the last time, without its coefficient
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
    parts: dict[str, list[float]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """What `rows` hold."""
        return (*COLUMNS, *self.parts)

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
        parts = dict(zip(self.steps, zip(*self.parts.values())))
        no_line, no_parts = (None,) * len(lists), (None,) * len(self.parts)
        return [
            (step, *trained.get(step, no_line), held.get(step), *parts.get(step, no_parts))
            for step in sorted(trained.keys() | held.keys())
        ]

    def to_frame(self) -> Any:
        """The same as a DataFrame, which `rz.pl.training_curve` draws."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=list(self.columns), dtype=float)


@dataclass(slots=True)
class State:
    """Where a training stands; all of it that is no tensor.

    loss : of the last step
    since : sum of loss x examples, and examples, since the last line of the log
    parts : the same sum of each part of the loss, of a loss of several
    """

    step: int = 0
    place: Place = field(default_factory=Place)
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    since: tuple[float, float] = (0.0, 0.0)
    parts: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)

    def saw(self, loss: float, parts: Mapping[str, float], examples: int) -> None:
        """Add a step to what was seen since the last line."""
        self.loss = loss
        self.since = (self.since[0] + loss * examples, self.since[1] + examples)
        for part in self.history.parts:
            self.parts[part] = self.parts.get(part, 0.0) + parts[part] * examples

    def means(self) -> tuple[float, dict[str, float]]:
        """The loss and its parts since the last line, which is now."""
        total, examples = self.since
        parts = {part: value / examples for part, value in self.parts.items()}
        self.since, self.parts = (0.0, 0.0), {}
        return total / examples, parts

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

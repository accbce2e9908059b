"""How fast to learn: the rate over the steps of a training, and which parameters decay.

A rate is a function of the step alone, so a training that goes on has nothing to restore.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ribozyme.errors import ConfigError

KINDS: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda done, share: 1.0,
    "linear": lambda done, share: 1.0 - done,
    "cosine": lambda done, share: 0.5 + 0.5 * math.cos(math.pi * done),
    "wsd": lambda done, share: min(1.0, (1.0 - done) / share) if share else 1.0,
}
"""The factor after a share of the steps past the warm-up; `wsd` falls in the last `share` of them."""

NO_DECAY = ("norm", "bias", "A_log", "D", "dt_bias")
"""Parameters with one of these among the parts of their name do not decay, nor do vectors and numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The factor of the learning rate at each step, counted from 0.

    steps : of the whole training
    kind : `constant`, `linear`, `cosine`, or `wsd`: warm up, stay, decay linearly (arXiv:2404.06395)
    warmup : steps of rising rate, s + 1 of warmup + 1 at step s
    decay : of `wsd`, the share of the steps past the warm-up in which the rate falls
    """

    steps: int
    kind: str = "constant"
    warmup: int = 0
    decay: float = 0.4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"schedule {self.kind!r} does not exist", hint=f"one of {', '.join(KINDS)}")
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise ConfigError(
                f"a schedule of {self.steps} steps with a warm-up of {self.warmup} and a decay over "
                f"{self.decay} of the rest makes no sense"
            )

    def factor(self, step: int) -> float:
        """Of the learning rate at `step`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return KINDS[self.kind](min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup)), self.decay)

    def check_goes_on(self, before: "Schedule", done: int, where: str) -> None:
        """Raise `ConfigError` unless the `done` steps of another schedule have the same rates in this one."""
        if done > self.steps:
            raise ConfigError(f"{where}: {done:,} steps are done, more than {self.steps:,}")
        odd = next((step for step in range(done) if self.factor(step) != before.factor(step)), None)
        if odd is not None:
            raise ConfigError(
                f"{where}: {done:,} of {before.steps:,} steps are done; had there been {self.steps:,}, "
                f"schedule {self.kind!r} would have had another rate from step {odd + 1:,} on",
                hint=f"train its weights further in another folder (--model {where}); steps can be changed "
                "while the rate is constant, as before the decay of wsd",
            )


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """For an optimizer: matrices decay; norms, biases and the rates of state-space layers do not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in parameters:
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter."""
    return parameter.ndim > 1 and not set(name.split(".")) & set(NO_DECAY)

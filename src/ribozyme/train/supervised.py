"""Inputs with their labels, and the objective of learning the ones from the others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ribozyme.errors import InputError
from ribozyme.metrics.score import group_codes
from ribozyme.packing import Packed
from ribozyme.train.inputs import Inputs
from ribozyme.train.loop import Batch

Targets = Tensor | list[Tensor]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs to learn from and, behind them, inputs to validate on.

    targets : what `Labels.encode` made of the labels, of letters one tensor an input
    learnt : how many are learnt from
    groups : (n,) those of one group are not apart when something is held back
    """

    inputs: Inputs
    targets: Targets
    learnt: int
    groups: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)

    def before(self, held: "Examples") -> "Examples":
        """These, with others behind them to validate on."""
        ours, theirs = self.inputs.values, held.inputs.values
        values = None if ours is None or theirs is None else [*ours, *theirs]
        if isinstance(self.targets, Tensor) and isinstance(held.targets, Tensor):
            targets: Targets = torch.cat([self.targets, held.targets])
        else:
            targets = [*self.targets, *held.targets]
        inputs = Inputs([*self.inputs.ids, *held.inputs.ids], values, self.inputs.special)
        groups = np.concatenate([self.groups, self.groups.max() + 1 + held.groups])
        return Examples(inputs, targets, self.learnt, groups)

    def digest(self) -> str:
        """What tells one data set from another."""
        found = hashlib.sha256(np.asarray([self.learnt, *self.inputs.lengths]).tobytes())
        for part in (self.inputs.ids, self.inputs.values or ()):
            for one in part:
                found.update(np.ascontiguousarray(one).tobytes())
        for target in self.targets:
            found.update(target.numpy().tobytes())
        if len(np.unique(self.groups)) < len(self.groups):
            found.update(self.groups.tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Supervised:
    """The objective of a fine-tuning: the mean loss of inputs with labels. An example is a place in the data.

    lengths : tokens of each input; of features that were computed once, their rows
    pack : places to a batch of inputs; features : rows of each input, where they were computed once
    goal : labels as numbers, of letters one tensor an input
    loss : the mean over some inputs, from outputs in units of the labels, labels, and letters of each input
    """

    lengths: Sequence[int]
    pack: Callable[[Sequence[int]], Packed]
    goal: Targets
    outputs: Callable[[Batch], Tensor]
    loss: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    features: Sequence[Tensor] | None = None
    parts: ClassVar[dict[str, float]] = {"labels": 1.0}

    def length(self, example: int) -> int:
        """Tokens of an input."""
        return self.lengths[example]

    def batch(self, examples: Sequence[int], keys: Any) -> Batch:
        """Inputs with their labels; nothing about them is random."""
        own = [self.goal[k] for k in examples]
        goal = torch.stack(own) if isinstance(self.goal, Tensor) else torch.cat(own)
        targets = {"labels": goal}
        if self.features is not None:
            targets["features"] = torch.cat([self.features[k] for k in examples])
        return Batch(self.pack(examples), targets, {"labels": float(len(examples))})

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sum over the inputs."""
        counts = batch.inputs.lengths
        return {"labels": self.loss(self.outputs(batch), batch.targets["labels"], counts) * len(counts)}


def own_groups(groups: Any, count: int) -> npt.NDArray[np.int64]:
    """(n,) the group of each input as a number; without groups each is one by itself."""
    if groups is None:
        return np.arange(count)
    return group_codes(groups, count)


def check_known(inputs: Inputs) -> None:
    """Raise `InputError` for an input in which there is nothing to learn from."""
    if inputs.empty.any():
        raise InputError(
            f"{int(inputs.empty.sum()):,} inputs have nothing that the model knows, the first at position "
            f"{int(inputs.empty.argmax())}",
            hint="leave them, and their labels, out of the training",
        )

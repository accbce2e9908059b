"""A batch with what is asked of it, the objective that makes it, and the loss of many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ribozyme.packing import Packed, plan
from ribozyme.tensors import Tensors
from ribozyme.train.feed import Keys, deal
from ribozyme.train.processes import Workers


@dataclass(frozen=True, slots=True)
class Batch:
    """A packed micro-batch with what its network is asked for.

    targets : tensors beside the tokens or the inputs
    weights : how many examples (or tokens, or units of any kind) each part of the loss is summed over
    """

    inputs: Packed
    targets: dict[str, Tensor]
    weights: dict[str, float]

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.targets.items()}
        return Batch(self.inputs.to(device), moved, self.weights)

    def tensors(self) -> Tensors:
        """Everything in it, to be kept."""
        packed = {name: getattr(self.inputs, name) for name in ("ids", "cu_seqlens", "values")}
        return {name: tensor for name, tensor in packed.items() if tensor is not None} | self.targets


class Objective(Protocol):
    """What is learnt.

    It may have two attributes more: `compares`, true where the inputs of a micro-batch are compared with each
    other, and `against`, parts that two sides of a network pull apart: how good one is says nothing of it, so
    a validation leaves them out.

    parts : each part of the loss with its coefficient: the loss of a step is the sum over the parts of
        coefficient x (sum over the step) / (weight of the step)
    """

    @property
    def parts(self) -> Mapping[str, float]: ...

    def length(self, example: Any) -> int:
        """Tokens that an example takes in a batch."""

    def batch(self, examples: Sequence[Any], keys: Keys) -> Batch:
        """Examples ready for the network; random numbers are made from the keys."""

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sum of each part over the batch."""


def micro_batches(objective: Objective, lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of examples that go through the network together, of at most `most` tokens.

    Where an objective compares inputs (`compares`) none is alone: two go together, though they are longer.
    """
    groups = plan(lengths, most)
    if not getattr(objective, "compares", False):
        return groups
    alone = [k for group in groups if len(group) == 1 for k in group]
    groups = [group for group in groups if len(group) > 1]
    if groups and len(alone) % 2:
        groups[-1].append(alone.pop())  # the shortest to the shortest
    groups += [alone[i : i + 2] for i in range(0, len(alone), 2)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        last = groups.pop()
        groups[-1] += last
    return groups


@torch.no_grad()
def evaluate(
    network: nn.Module,
    objective: Objective,
    examples: Sequence[Any],
    batch_tokens: int,
    workers: Workers | None = None,
    seed: int = 0,
) -> float:
    """The loss of all `examples` as one step; the masks are a function of `seed`.

    Without parts that the objective is `against`.
    """
    device = next(network.parameters()).device
    workers = workers or Workers(device)
    keys = np.random.default_rng(seed).integers(2**64, size=len(examples), dtype=np.uint64)
    groups = micro_batches(objective, [objective.length(one) for one in examples], batch_tokens)
    sums = {f"{part} {what}": 0.0 for part in objective.parts for what in ("loss", "weight")}
    for place in deal([len(group) for group in groups], workers.count)[workers.rank]:
        batch = objective.batch([examples[k] for k in groups[place]], keys[groups[place]])
        with workers.autocast():
            values = objective(network, batch.to(device))
        for part in objective.parts:
            sums[f"{part} loss"] += values[part].item()
            sums[f"{part} weight"] += batch.weights[part]
    sums = workers.total(sums)
    judged = {p: c for p, c in objective.parts.items() if p not in getattr(objective, "against", ())}
    return sum(c * sums[f"{part} loss"] / (sums[f"{part} weight"] or 1.0) for part, c in judged.items())


def combined(objective: Objective, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """(parts,) what a micro-batch adds to each part of the loss of its step."""
    parts = [c * sums[part].float() / (weights[part] or 1.0) for part, c in objective.parts.items()]
    return torch.stack(parts)

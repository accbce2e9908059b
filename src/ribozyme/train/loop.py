"""The loop of fine-tuning: shuffled steps of whole inputs, run a packed batch at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ribozyme.errors import ConfigError
from ribozyme.packing import plan

Decay = Literal["constant", "linear", "cosine"]
DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}
"""The factor of the learning rate after a share of the steps past the warm-up."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class History:
    """Losses of each epoch; `best_epoch` (from 1) is the one whose weights were kept."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs with their labels, and how the network is run on some of them."""

    lengths: Sequence[int]  # tokens of each input
    targets: Tensor
    run: Callable[[Sequence[int]], Tensor]  # positions of inputs to their outputs

    def batches(self, chosen: Sequence[int], budget: int) -> list[list[int]]:
        """The chosen inputs in groups of at most `budget` tokens."""
        return [[chosen[k] for k in group] for group in plan([self.lengths[k] for k in chosen], budget)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """How long and in which steps to train; the fields are those of `FineTuned.fit`."""

    epochs: int
    batch_size: int
    budget: int
    clip: float
    warmup: int = 0
    decay: str = "constant"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.budget) < 1:
            raise ConfigError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and batch_tokens {self.budget} "
                "must be positive"
            )
        if self.decay not in DECAYS:
            raise ConfigError(f"decay {self.decay!r} does not exist", hint=f"one of {', '.join(DECAYS)}")

    def train(
        self,
        network: nn.Module,
        examples: Examples,
        held: Examples | None,
        *,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        generator: torch.Generator,
    ) -> History:
        """Train what `optimizer` holds; of a validated training the best epoch's weights are kept."""
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor(len(examples.lengths)))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        history, lowest = History(), math.inf
        best: dict[str, Tensor] = {}
        for epoch in range(1, self.epochs + 1):
            network.train()
            order = torch.randperm(len(examples.lengths), generator=generator).tolist()
            total = 0.0
            for start in range(0, len(order), self.batch_size):
                group = order[start : start + self.batch_size]
                optimizer.zero_grad(set_to_none=True)
                for part in examples.batches(group, self.budget):
                    value = loss(examples.run(part), examples.targets[part]) * len(part)
                    (value / len(group)).backward()
                    total += value.item()
                if not math.isfinite(total):
                    raise ConfigError(
                        f"the loss became {total} in epoch {epoch}", hint="use a lower learning rate"
                    )
                nn.utils.clip_grad_norm_(parameters, self.clip)
                optimizer.step()
                scheduler.step()
            history.loss.append(total / len(order))
            network.eval()
            history.best_epoch = epoch
            if held is not None:
                history.validation_loss.append(self._validate(held, loss))
                if history.validation_loss[-1] < lowest:
                    lowest = history.validation_loss[-1]
                    best = _learnt(network)
        if best:
            history.best_epoch = 1 + history.validation_loss.index(lowest)
            network.load_state_dict(best, strict=False)
        return history

    @torch.no_grad()
    def _validate(self, held: Examples, loss: Loss) -> float:
        groups = held.batches(range(len(held.lengths)), self.budget)
        total = sum(loss(held.run(group), held.targets[group]).item() * len(group) for group in groups)
        return total / len(held.lengths)

    def _factor(self, count: int) -> Callable[[int], float]:
        last = self.epochs * -(-count // self.batch_size)

        def factor(step: int) -> float:
            if step < self.warmup:
                return (step + 1) / (self.warmup + 1)
            return DECAYS[self.decay](min(1.0, (step - self.warmup) / max(1, last - self.warmup)))

        return factor


def _learnt(network: nn.Module) -> dict[str, Tensor]:
    """A copy of what training changes: parameters that are trained, and statistics."""
    state = network.state_dict(keep_vars=True)
    return {
        name: tensor.detach().clone()
        for name, tensor in state.items()
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }

"""How a head, and what is trained beside it, descends: steps, rates, and what may not change underway."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ribozyme.errors import ConfigError
from ribozyme.train.feed import Feed, InMemory
from ribozyme.train.heads import Network
from ribozyme.train.history import History
from ribozyme.train.loop import Loop
from ribozyme.train.processes import first_process
from ribozyme.train.run import Run
from ribozyme.train.schedule import Schedule, parameter_groups
from ribozyme.train.supervised import Examples, Supervised

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """The settings of `FineTuned.fit` that say how to descend; `seed` orders the inputs and draws dropout."""

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup: int
    decay: str
    batch_size: int
    batch_tokens: int
    clip: float
    patience: int | None
    optimizer: Optimizer | None
    save_every: int
    precision: str
    sorted_steps: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.batch_tokens) < 1:
            raise ConfigError(
                f"epochs {self.epochs}, batch_size {self.batch_size} and batch_tokens {self.batch_tokens} "
                "must be positive"
            )
        if not (0 <= self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ConfigError(
                f"learning_rate {self.learning_rate} and weight_decay {self.weight_decay} must be 0 or above"
            )

    def loop(self, count: int, *, validate_first: bool = False) -> Loop:
        """Over `count` examples; what an epoch is, is looked at after each."""
        every = -(-count // self.batch_size)
        return Loop(
            schedule=Schedule(steps=self.epochs * every, kind=self.decay, warmup=self.warmup),
            batch_tokens=self.batch_tokens,
            clip=self.clip,
            log_every=every,
            validate_every=every,
            validate_first=validate_first,
            save_every=self.save_every or every,
            patience=self.patience,
            precision=self.precision,
            seed=self.seed,
        )

    def begin(
        self, network: Network, count: int, folder: Path | None, about: dict[str, Any]
    ) -> tuple[torch.optim.Optimizer, Run | None]:
        """The optimizer of what has gradients, and the folder of a training over `count` examples.

        about : what must be the same, beside these settings, to go on in the folder
        """
        optimizer = self._optimizer(network)
        if folder is None:
            return optimizer, None
        schedule = asdict(self.loop(count).schedule)
        own = ("batch_size", "clip", "patience", "precision", "seed", "weight_decay", "sorted_steps")
        settings = {
            **about,
            "rate": [type(optimizer).__name__, *(group["lr"] for group in optimizer.param_groups)],
            "schedule": schedule.pop("kind"),
            **schedule,
            **{name: getattr(self, name) for name in own},
        }
        return optimizer, Run(folder, settings, writes=first_process())

    def train(
        self,
        network: Network,
        objective: Supervised,
        examples: Examples,
        optimizer: torch.optim.Optimizer,
        run: Run | None,
        *,
        validate_first: bool = False,
    ) -> History:
        """Train what has gradients."""
        loop = self.loop(examples.learnt, validate_first=validate_first)
        feed = Feed(
            corpus=InMemory(range(examples.learnt)),
            size=self.batch_size,
            unit="examples",
            buffer=examples.learnt,
            sorted_steps=self.sorted_steps,
            seed=self.seed,
        )
        held = range(examples.learnt, len(examples))
        return loop.train(network, objective, feed, optimizer, held=held, run=run)

    def _optimizer(self, network: Network) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer([p for p in network.parameters() if p.requires_grad])
        groups = parameter_groups(network.named_parameters(), self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate)

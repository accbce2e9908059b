"""How a head, and what is trained beside it, descends: steps, rates, and what may not change underway."""

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

    def train(
        self,
        network: Network,
        objective: Supervised,
        examples: Examples,
        folder: Path | None,
        about: dict[str, Any],
        *,
        validate_first: bool = False,
    ) -> History:
        """Train what has gradients; `about` must be the same to go on in a folder."""
        loop = self.loop(examples.learnt, validate_first=validate_first)
        feed = Feed(
            corpus=InMemory(range(examples.learnt)),
            size=self.batch_size,
            unit="examples",
            buffer=examples.learnt,
            sorted_steps=self.sorted_steps,
            seed=self.seed,
        )
        descent = self._optimizer(network)
        settings = {
            **about,
            "rate": [type(descent).__name__, *(group["lr"] for group in descent.param_groups)],
            **asdict(loop.schedule),
            **{name: getattr(self, name) for name in ("batch_size", "clip", "patience", "precision", "seed")},
        }
        return loop.train(
            network,
            objective,
            feed,
            descent,
            held=range(examples.learnt, len(examples)),
            run=None if folder is None else Run(folder, settings, writes=first_process()),
        )

    def _optimizer(self, network: Network) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer([p for p in network.parameters() if p.requires_grad])
        groups = parameter_groups(network.named_parameters(), self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate)

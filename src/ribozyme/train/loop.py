"""The one loop of training: fine-tuning and pretraining differ in what they feed it and in their objective.

A step is a global batch of examples. It is cut into packed micro-batches of at most `batch_tokens` tokens,
which are dealt over the processes (`accelerate launch`, `torchrun`); its loss is the mean over all its
examples (or tokens), however it was cut and dealt. Every random number is a function of the seed and of where
it is used: order and keys of the examples in `feed.py`, masks and crops from those keys, dropout from the
step and the micro-batch. So nothing random needs to be saved, and a run that was stopped at any moment goes
on from its last checkpoint to the very weights it would have come to.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ribozyme.errors import ConfigError
from ribozyme.train.batch import Batch, Objective, evaluate, micro_batches
from ribozyme.train.feed import Feed, Place, ahead, deal
from ribozyme.train.history import History, State
from ribozyme.train.processes import Workers, bar, interrupts, own_dropout, stopped
from ribozyme.train.run import Run
from ribozyme.train.schedule import Schedule
from ribozyme.train.training import Share, Training

__all__ = ["Batch", "Loop", "Objective", "Training", "evaluate"]

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """How long, in which steps and with what care to train.

    schedule : its `steps` are the steps of the training
    batch_tokens : tokens that go through the network at once; bounds the memory, not the result
    clip : longest gradient
    log_every, validate_every, save_every : steps; 0 for the end only
    validate_first : also before the first step
    patience : validations without a better one after which to stop; None to go on to the end
    precision : `float32`; `bfloat16`, products in bfloat16, weights and sums in float32; `auto`, what
        `accelerate launch --mixed_precision` says, else bfloat16 where the processor multiplies it fast
    """

    schedule: Schedule
    batch_tokens: int
    clip: float = 1.0
    log_every: int = 50
    validate_every: int = 0
    validate_first: bool = False
    save_every: int = 500
    patience: int | None = None
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens {self.batch_tokens} must be positive")
        if min(self.log_every, self.validate_every, self.save_every) < 0 or self.seed < 0:
            raise ConfigError(
                f"log_every {self.log_every}, validate_every {self.validate_every}, save_every "
                f"{self.save_every} and seed {self.seed} must be 0 or above"
            )
        if not self.clip > 0 or (self.patience is not None and self.patience < 1):
            raise ConfigError(f"clip {self.clip} and patience {self.patience} must be positive")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision {self.precision!r} does not exist", hint=f"one of {', '.join(PRECISIONS)}"
            )

    def train(
        self,
        network: nn.Module,
        objective: Objective,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        *,
        held: Sequence[Any] = (),
        run: Run | None = None,
        watch: Callable[[State], None] | None = None,
    ) -> History:
        """Train what `optimizer` holds; of a validated training the weights of the best validation are kept.

        held : examples to validate on; run : the folder that the training is kept in, and gone on from
        watch : called after each line of the log

        Raises
        ------
        ConfigError : the loss became infinite or NaN; weights and checkpoint are those before that step. Or
            another process trains in the folder.
        InputError : an example that cannot be read; the checkpoint of the step before was written.
        KeyboardInterrupt, SystemExit : Ctrl-C or SIGTERM, after the checkpoint was written (with `run`).
        """
        if self.patience is not None and not len(held):
            raise ConfigError(
                f"patience {self.patience} needs a validation, and nothing is held out",
                hint="hold out more, give a validation, or leave patience out",
            )
        with contextlib.nullcontext() if run is None else run.alone():
            return self._train(network, objective, feed, optimizer, held, run, watch)

    def _train(
        self,
        network: nn.Module,
        objective: Objective,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        held: Sequence[Any],
        run: Run | None,
        watch: Callable[[State], None] | None,
    ) -> History:
        work = Training(self, network, objective, optimizer, run)
        state, total = work.state, self.schedule.steps
        with (
            interrupts(run is not None) as asked,
            own_dropout(work.device),
            bar(total, state, work.workers, stays=run is not None) as show,
            contextlib.closing(ahead(self._shares(feed, objective, state.place, work.workers))) as shares,
        ):
            if self.validate_first and len(held) and not state.step:
                work.validate(held)
                work.tell()
            while state.step < total and not self._enough(state.history):
                stop = work.step(work.read(shares), asked)
                show(state)
                last = state.step == total
                look = last or _due(state.step, self.validate_every)
                if look and len(held):
                    work.validate(held)
                if look or _due(state.step, self.log_every):
                    work.log(watch)
                last = last or self._enough(state.history)
                if last or stop or _due(state.step, self.save_every):
                    work.save(finished=last or stop)
                if stop and not last:
                    work.leave()
                    raise stopped(asked)
            if state.step == total:
                self._complete(work, held, watch)
        work.finish()
        return state.history

    def _complete(self, work: Training, held: Sequence[Any], watch: Callable[[State], None] | None) -> None:
        """What the last step calls for, of a training that had been stopped at what is its last step now."""
        history, step = work.state.history, work.state.step
        validated, logged = step in history.validation_steps or not len(held), step in history.steps
        if validated and logged:
            return
        if not validated:
            work.validate(held)
        if logged:
            work.tell()
        else:
            work.log(watch)
        work.save(finished=True)

    def _shares(self, feed: Feed, objective: Objective, place: Place, workers: Workers) -> Iterator[Share]:
        """The steps from `place` on: of each the micro-batches of this process."""
        for step in feed.steps(objective.length, place):
            groups = micro_batches(objective, step.lengths, self.batch_tokens)
            mine = deal([sum(step.lengths[k] for k in group) for group in groups], workers.count)[
                workers.rank
            ]
            batches = [
                objective.batch([step.examples[k] for k in groups[i]], step.keys[groups[i]]) for i in mine
            ]
            yield Share(mine, batches, len(step.examples), step.after)

    def _enough(self, history: History) -> bool:
        """Whether the last `patience` validations were no better than the one before them."""
        if self.patience is None or history.best is None:
            return False
        return len(history.validation_loss) - 1 - history.best >= self.patience


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

"""The one loop of training: fine-tuning and pretraining differ in what they feed it and in their objective.

A step is a global batch of examples. It is cut into packed micro-batches of at most `batch_tokens` tokens,
which are dealt over the processes (`accelerate launch`, `torchrun`); its loss is the mean over all its
examples (or tokens), however it was cut and dealt. Every random number is a function of the seed and of where
it is used: order and keys of the examples in `feed.py`, masks and crops from those keys, dropout from the
step and the micro-batch. So nothing random needs to be saved, and a run that was stopped at any moment goes
on from its last checkpoint to the very weights it would have come to.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ribozyme.errors import ConfigError
from ribozyme.packing import Packed, plan
from ribozyme.tensors import Tensors
from ribozyme.train.feed import Feed, Keys, Place, ahead, deal
from ribozyme.train.history import History, State
from ribozyme.train.processes import Workers, bar, interrupts, own_dropout, stopped
from ribozyme.train.run import Run
from ribozyme.train.schedule import Schedule
from ribozyme.train.snapshot import learnt

PRECISIONS = ("auto", "float32", "bfloat16")


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
        ConfigError : the loss became infinite or NaN; weights and checkpoint are those before that step.
        KeyboardInterrupt, SystemExit : Ctrl-C or SIGTERM, after the checkpoint was written (with `run`).
        """
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
                stop = work.step(next(shares), asked)
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
        work.finish()
        return state.history

    def _shares(self, feed: Feed, objective: Objective, place: Place, workers: Workers) -> Iterator["Share"]:
        """The steps from `place` on: of each the micro-batches of this process."""
        for step in feed.steps(objective.length, place):
            groups = plan(step.lengths, self.batch_tokens)
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


class Training:
    """A training under way: what a step does, and what is done between steps."""

    def __init__(
        self,
        loop: Loop,
        network: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        run: Run | None,
    ) -> None:
        self.loop, self.network, self.objective, self.optimizer, self.run = (
            loop,
            network,
            objective,
            optimizer,
            run,
        )
        self.device = next(network.parameters()).device
        self.workers = Workers(self.device, loop.precision)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.state = State() if run is None else run.restore(network, optimizer)
        self.workers.share(self.parameters)
        self.best = Best() if run is None else run
        self.norm, self.began = 0.0, time.monotonic() - self.state.seconds

    def step(self, share: "Share", asked: Sequence[int]) -> bool:
        """One step; True if some process was asked to stop."""
        state = self.state
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * self.loop.schedule.factor(state.step)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals = self.workers.total(self._mine(share, asked))
        losses = self._backward(share, totals)
        self.workers.total_gradients(self.parameters)
        self.norm = nn.utils.clip_grad_norm_(self.parameters, self.loop.clip).item()
        loss = self.workers.total(losses.sum()).item()
        if not (math.isfinite(loss) and math.isfinite(self.norm)):
            raise self._failed(share, losses, loss)
        self.optimizer.step()
        state.step, state.place, state.loss = state.step + 1, share.after, loss
        state.tokens += int(totals["tokens"])
        state.seconds = time.monotonic() - self.began
        state.since = (state.since[0] + loss * share.examples, state.since[1] + share.examples)
        return bool(totals["stop"])

    def _mine(self, share: "Share", asked: Sequence[int]) -> dict[str, float]:
        """What this process adds to the step: the weights of the parts, tokens, and whether it must stop."""
        sums = {part: sum(batch.weights[part] for batch in share.batches) for part in self.objective.parts}
        tokens = sum(len(batch.inputs.ids) for batch in share.batches)
        return {**sums, "tokens": float(tokens), "stop": float(bool(asked))}

    def _backward(self, share: "Share", weights: Mapping[str, float]) -> Tensor:
        """(micro-batches,) what each adds to the loss of the step; gradients are in the parameters."""
        losses = torch.zeros(len(share.batches), device=self.device, dtype=torch.float64)
        for k, (place, batch) in enumerate(zip(share.places, share.batches)):
            torch.manual_seed(_hash(self.loop.seed, self.state.step, place))  # dropout
            with self.workers.autocast():
                sums = self.objective(self.network, batch.to(self.device))
            loss = combined(self.objective, sums, weights)
            loss.backward()
            losses[k] = loss.detach()
        return losses

    def validate(self, held: Sequence[Any]) -> None:
        """The loss on `held`; the weights are kept if it is the lowest."""
        history, loop = self.state.history, self.loop
        self.network.eval()
        loss = evaluate(self.network, self.objective, held, loop.batch_tokens, self.workers, loop.seed)
        if not math.isfinite(loss):
            raise ConfigError(
                f"the validation loss became {loss} in step {self.state.step:,}",
                hint="use a lower learning rate",
            )
        history.validation_loss.append(loss)
        history.validation_steps.append(self.state.step)
        if history.best_step == self.state.step:
            self.best.save_best(self.network)

    def log(self, watch: Callable[[State], None] | None) -> None:
        """A line in history and log."""
        state, history = self.state, self.state.history
        history.steps.append(state.step)
        history.epochs.append(state.place.epoch + 1)
        history.tokens.append(state.tokens)
        history.seconds.append(round(state.seconds, 3))
        history.loss.append(state.since[0] / state.since[1])
        history.rate.append(self.optimizer.param_groups[0]["lr"])
        history.norm.append(self.norm)
        state.since = (0.0, 0.0)
        self.tell()
        if watch is not None:
            watch(state)

    def tell(self) -> None:
        """The last line of the history in the log, of a training in a folder."""
        if self.run is not None:
            self.run.log(self.state.history)

    def save(self, *, finished: bool) -> None:
        """The checkpoint, of a training in a folder."""
        if self.run is not None:
            self.run.save(self.state, self.network, self.optimizer, finished=finished)

    def leave(self) -> None:
        """Write the network as it is, to look at."""
        self.network.eval()
        if self.run is not None:
            self.run.finish()

    def finish(self) -> None:
        """The weights of the best validation into the network."""
        self.workers.wait()  # until the first process has written them
        if self.state.history.best is not None:
            self.best.load_best(self.network)
        self.leave()

    def _failed(self, share: "Share", losses: Tensor, loss: float) -> ConfigError:
        """The error for a loss that is no number; what led to it is kept."""
        what = f"the gradient became {self.norm}" if math.isfinite(loss) else f"the loss became {loss}"
        place = f"step {self.state.step + 1:,} (epoch {self.state.place.epoch + 1})"
        error = ConfigError(f"{what} in {place}", hint="use a lower learning rate")
        if self.run is not None:
            odd = [batch for batch, value in zip(share.batches, losses.tolist()) if not math.isfinite(value)]
            batches = [batch.tensors() for batch in odd or share.batches]
            path = self.run.save_failed(self.state.step + 1, self.workers.rank, batches)
            self.save(finished=True)  # the weights are still those of the last good step
            self.leave()
            error.add_note(
                f"the batch is in {path}; the weights before that step are in the run's checkpoint"
            )
        return error


@torch.no_grad()
def evaluate(
    network: nn.Module,
    objective: Objective,
    examples: Sequence[Any],
    batch_tokens: int,
    workers: Workers | None = None,
    seed: int = 0,
) -> float:
    """The loss of all `examples` as one step; the masks are a function of `seed`."""
    device = next(network.parameters()).device
    workers = workers or Workers(device)
    keys = np.random.default_rng(seed).integers(2**64, size=len(examples), dtype=np.uint64)
    groups = plan([objective.length(one) for one in examples], batch_tokens)
    sums = {f"{part} {what}": 0.0 for part in objective.parts for what in ("loss", "weight")}
    for place in deal([len(group) for group in groups], workers.count)[workers.rank]:
        batch = objective.batch([examples[k] for k in groups[place]], keys[groups[place]])
        with workers.autocast():
            values = objective(network, batch.to(device))
        for part in objective.parts:
            sums[f"{part} loss"] += values[part].item()
            sums[f"{part} weight"] += batch.weights[part]
    sums = workers.total(sums)
    return sum(
        c * sums[f"{part} loss"] / (sums[f"{part} weight"] or 1.0) for part, c in objective.parts.items()
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does in a step.

    places : of its micro-batches among those of all processes; examples : of the whole step
    """

    places: Sequence[int]
    batches: Sequence[Batch]
    examples: int
    after: Place


def combined(objective: Objective, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """What a micro-batch adds to the loss of its step."""
    parts = [c * sums[part].float() / (weights[part] or 1.0) for part, c in objective.parts.items()]
    return torch.stack(parts).sum()


class Best:
    """The best weights in memory, for a training without a folder."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def save_best(self, network: nn.Module) -> None:
        """Keep a copy."""
        self.tensors = {name: tensor.clone() for name, tensor in learnt(network).items()}

    def load_best(self, network: nn.Module) -> None:
        """Put it back."""
        network.load_state_dict(self.tensors, strict=False)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _hash(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

"""A training under way: what a step does, and what is done between steps."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ribozyme.errors import ConfigError, RibozymeError
from ribozyme.tensors import Tensors
from ribozyme.train.batch import Batch, Objective, combined, evaluate
from ribozyme.train.feed import Place
from ribozyme.train.history import History, State
from ribozyme.train.processes import Workers
from ribozyme.train.run import Run
from ribozyme.train.snapshot import learnt

if TYPE_CHECKING:
    from ribozyme.train.loop import Loop


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does in a step.

    places : of its micro-batches among those of all processes; examples : of the whole step
    """

    places: Sequence[int]
    batches: Sequence[Batch]
    examples: int
    after: Place


class Training:
    """A training under way: what a step does, and what is done between steps."""

    def __init__(
        self,
        loop: "Loop",
        network: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        run: Run | None,
    ) -> None:
        self.loop, self.network, self.objective = loop, network, objective
        self.optimizer, self.run = optimizer, run
        self.device = next(network.parameters()).device
        self.workers = Workers(self.device, loop.precision)
        if self.workers.count > 1 and any(isinstance(part, _BatchNorm) for part in network.modules()):
            raise ConfigError("batch norms (DSBN) are trained in one process: each would see its own cells")
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.rates = [group["lr"] for group in optimizer.param_groups]
        parts = tuple(objective.parts) if len(objective.parts) > 1 else ()
        fresh = State(history=History(parts={part: [] for part in parts}))
        self.state = fresh if run is None else run.restore(network, optimizer, fresh)
        self.workers.share(self.parameters)
        self.best = Best() if run is None else run
        self.norm, self.began = 0.0, time.monotonic() - self.state.seconds

    def read(self, shares: Iterator[Share]) -> Share:
        """The next step; where it cannot be read, what was trained is kept."""
        try:
            return next(shares)
        except RibozymeError as error:
            if self.run is not None and self.state.step:
                self.save(finished=True)
                self.leave()
                error.add_note(
                    f"the {self.state.step:,} steps before it are kept in {self.run.folder}; once the corpus "
                    "is mended, train these weights further (--model) in another folder"
                )
            raise

    def step(self, share: Share, asked: Sequence[int]) -> bool:
        """One step; True if some process was asked to stop."""
        state = self.state
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * self.loop.schedule.factor(state.step)
        self.network.train()
        statistics = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        totals = self.workers.total(self._mine(share, asked))
        losses = self._backward(share, totals)
        self.workers.total_gradients(self.parameters)
        self.norm = nn.utils.clip_grad_norm_(self.parameters, self.loop.clip).item()
        added = self.workers.total(losses.sum(0)).tolist()  # by each part
        loss = sum(added)
        if not (math.isfinite(loss) and math.isfinite(self.norm)):
            for buffer, before in statistics:
                buffer.copy_(before)
            raise self._failed(share, losses, loss)
        self.optimizer.step()
        state.step, state.place = state.step + 1, share.after
        state.tokens += int(totals["tokens"])
        state.seconds = time.monotonic() - self.began
        parts = {part: value / (c or 1.0) for (part, c), value in zip(self.objective.parts.items(), added)}
        state.saw(loss, parts, share.examples)
        return bool(totals["stop"])

    def _mine(self, share: Share, asked: Sequence[int]) -> dict[str, float]:
        """What this process adds to the step: the weights of the parts, tokens, and whether it must stop."""
        sums = {part: sum(batch.weights[part] for batch in share.batches) for part in self.objective.parts}
        tokens = sum(len(batch.inputs.ids) for batch in share.batches)
        return {**sums, "tokens": float(tokens), "stop": float(bool(asked))}

    def _backward(self, share: Share, weights: Mapping[str, float]) -> Tensor:
        """(micro-batches, parts) what each adds to the loss of the step; gradients are in the parameters."""
        shape = len(share.batches), len(self.objective.parts)
        losses = torch.zeros(shape, device=self.device, dtype=torch.float64)
        for k, (place, batch) in enumerate(zip(share.places, share.batches)):
            torch.manual_seed(_hash(self.loop.seed, self.state.step, place))  # dropout
            with self.workers.autocast():
                sums = self.objective(self.network, batch.to(self.device))
            parts = combined(self.objective, sums, weights)
            parts.sum().backward()
            losses[k] = parts.detach()
        return losses

    def validate(self, held: Sequence[Any]) -> None:
        """The loss on `held`; the weights are kept if it is the lowest."""
        state, history, loop = self.state, self.state.history, self.loop
        self.network.eval()
        loss = evaluate(self.network, self.objective, held, loop.batch_tokens, self.workers, loop.seed)
        if not math.isfinite(loss):
            self.save(finished=True)
            self.leave()
            raise ConfigError(
                f"the validation loss became {loss} in step {state.step:,}",
                hint="use a lower learning rate",
            )
        history.validation_loss.append(loss)
        history.validation_steps.append(state.step)
        if history.best_step == state.step:
            self.best.save_best(self.network, state.step)

    def log(self, watch: Callable[[State], None] | None) -> None:
        """A line in history and log."""
        state, history = self.state, self.state.history
        history.steps.append(state.step)
        history.epochs.append(state.place.epoch + 1)
        history.tokens.append(state.tokens)
        history.seconds.append(round(state.seconds, 3))
        loss, parts = state.means()
        history.loss.append(loss)
        history.rate.append(self.optimizer.param_groups[0]["lr"])
        history.norm.append(self.norm)
        for part, value in parts.items():
            history.parts[part].append(value)
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
            self.best.load_best(self.network, self.state.history.best_step)
        self.leave()

    def _failed(self, share: Share, losses: Tensor, loss: float) -> ConfigError:
        """The error for a loss that is no number; what led to it is kept."""
        what = f"the gradient became {self.norm}" if math.isfinite(loss) else f"the loss became {loss}"
        place = f"step {self.state.step + 1:,} (epoch {self.state.place.epoch + 1})"
        error = ConfigError(f"{what} in {place}", hint="use a lower learning rate")
        if self.run is not None:
            each = zip(share.batches, losses.sum(1).tolist())
            odd = [batch for batch, value in each if not math.isfinite(value)]
            batches = [batch.tensors() for batch in odd or share.batches]
            path = self.run.save_failed(self.state.step + 1, self.workers.rank, batches)
            self.save(finished=True)  # the weights are still those of the last good step
            self.leave()
            error.add_note(
                f"the batch is in {path}; the weights before that step are in the run's checkpoint"
            )
        return error


class Best:
    """The best weights in memory, for a training without a folder."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def save_best(self, network: nn.Module, step: int) -> None:
        """Keep a copy."""
        self.tensors = {name: tensor.clone() for name, tensor in learnt(network).items()}

    def load_best(self, network: nn.Module, step: int) -> None:
        """Put it back."""
        network.load_state_dict(self.tensors, strict=False)


def _hash(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

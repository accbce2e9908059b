"""One call of `FineTuned.fit`, once its inputs are read: a head is solved, or descends with the layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ribozyme.packing import Packed
from ribozyme.train.descent import Descent, Loss
from ribozyme.train.features import features, solvable
from ribozyme.train.heads import Network
from ribozyme.train.history import History
from ribozyme.train.labels import Labels
from ribozyme.train.linear import Solution, fit_linear
from ribozyme.train.loop import Batch
from ribozyme.train.processes import first_process
from ribozyme.train.run import CHECKPOINT, Run
from ribozyme.train.supervised import Examples, Supervised

MEASURED = 512
"""Inputs that features are standardised by, where not all of them are computed."""
MOST_KEPT = 2**30
"""Bytes of features that are kept in memory while a head alone descends."""

MeanLoss = Callable[[Tensor, Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """What is fitted to what.

    standardise : features are measured for the head, as before its first training
    about : what must be the same for a training in `folder` to go on
    """

    network: Network
    labels: Labels
    examples: Examples
    how: Descent
    device: torch.device
    generator: torch.Generator
    standardise: bool
    folder: Path | None
    about: dict[str, Any]

    def solve(self) -> History:
        """The best linear head on features that stay."""
        if self.folder is None:
            return self.linear().history()
        run = Run(self.folder, {**self.about, "solved": True}, writes=first_process())
        with run.alone():
            history = self.linear().history()
            run.record(history)
        return history

    def linear(self) -> Solution:
        """Put the solution into the head."""
        rows, held = solvable(self.network, self.examples, self.device, self.how.batch_tokens, self.how.seed)
        scaler = self.network.scaler
        if self.standardise:
            scaler.measure(rows.features)
        held = None if held is None else held.seen_by(scaler)
        solution = fit_linear(rows.seen_by(scaler), self.labels, held, seed=self.how.seed)
        solution.into(self.network.head)
        return solution

    def going_on(self) -> bool:
        """Whether there is a checkpoint, which holds all that a training begins from."""
        return self.folder is not None and (self.folder / CHECKPOINT).is_file()

    def measure(self) -> None:
        """Standardise by some of the inputs to learn from."""
        if not self.standardise:
            return
        order = torch.randperm(self.examples.learnt, generator=self.generator)
        some = self.examples.inputs.chosen(order[:MEASURED].tolist())
        found = features(self.network, some, self.device, self.how.batch_tokens)
        self.network.scaler.measure(np.concatenate(found))

    def begin(self) -> tuple[torch.optim.Optimizer, Run | None]:
        """What `descend` needs; a folder with another training is an error here, before anything long."""
        return self.how.begin(self.network, self.examples.learnt, self.folder, self.about)

    def descend(
        self, own: Loss | None, optimizer: torch.optim.Optimizer, run: Run | None, *, validate_first: bool
    ) -> History:
        """Train what has gradients. `validate_first`: weights that never get better are kept."""
        objective = self._through_network(own) if self._is_whole() else self._on_features(own)
        return self.how.train(
            self.network, objective, self.examples, optimizer, run, validate_first=validate_first
        )

    def _is_whole(self) -> bool:
        """Whether inputs go through the network at each step, not their features through the head."""
        rows = self.network.pooler.counts(self.examples.inputs.lengths)
        kept = 4 * self.network.pooler.width * sum(rows)
        return self.network.trained_layers != 0 or self.network.adapted or kept > MOST_KEPT

    def _through_network(self, own: Loss | None) -> Supervised:
        data, loss = self.examples.inputs, self._loss(own)

        def outputs(batch: Batch) -> Tensor:
            return self.labels.in_units(self.network(batch.inputs))

        def of_letters(found: Tensor, goal: Tensor, counts: Sequence[int]) -> Tensor:
            return loss(found, goal, [count - data.special for count in counts])

        return Supervised(data.lengths, data.pack, self.examples.targets, outputs, of_letters)

    def _on_features(self, own: Loss | None) -> Supervised:
        rows = features(self.network, self.examples.inputs, self.device, self.how.batch_tokens)
        found = [torch.from_numpy(one) for one in rows]
        counts = [len(one) for one in found]

        def read(batch: Batch) -> Tensor:
            return self.labels.in_units(self.network.read(batch.targets["features"], batch.inputs.lengths))

        def places(chosen: Sequence[int]) -> Packed:
            return Packed.of([np.full(counts[k], k, np.int64) for k in chosen])

        return Supervised(counts, places, self.examples.targets, read, self._loss(own), found)

    def _loss(self, own: Loss | None) -> MeanLoss:
        """The mean over some inputs, by default what the task says."""
        if own is not None:
            return lambda outputs, goal, counts: own(outputs, goal)
        return lambda outputs, goal, counts: self.labels.losses(outputs, goal, counts).mean()

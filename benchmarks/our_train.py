"""`ribozyme.train` as one of the programs that `train_speed.py` asks, in the manner of `peer_train.py`.

python our_train.py letters|cells|numbers SETTINGS
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peer_embed import Embed, Settings, serve
from peer_train import BINS, CLIP, LETTERS, RATE, hidden

import ribozyme as rz
from ribozyme.engine.device import batch_tokens
from ribozyme.train.feed import Keys, Place, Step
from ribozyme.train.finetune import FineTuned
from ribozyme.train.loop import Batch, Loop
from ribozyme.train.objectives import Example, MaskedLetters, MaskedValues
from ribozyme.train.pretrain import Recipe, objective_of
from ribozyme.train.schedule import Schedule, parameter_groups


@dataclass(frozen=True, slots=True)
class InOrder:
    """Steps of `size` examples in the order of the input, as the peers take them."""

    examples: Sequence[Example]
    size: int

    def steps(self, length: Any, place: Place) -> Iterator[Step]:
        for start in range(0, len(self.examples), self.size):
            some = self.examples[start : start + self.size]
            keys = np.zeros(len(some), np.uint64)
            yield Step(some, [length(one) for one in some], keys, Place(0, 0, start))


class GivenLetters(MaskedLetters):
    """The masks are those of `hidden`; the label of an example is its number."""

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        clean = self.reading.read(examples, keys)
        masks = [hidden(one.label, len(one.ids), LETTERS) for one in examples]
        around = [len(self.reading.prefix), len(self.reading.suffix)]
        rows = torch.from_numpy(np.flatnonzero(np.concatenate([np.pad(mask, around) for mask in masks])))
        seen = replace(clean, ids=clean.ids.index_fill(0, rows, self.mask_id))
        return Batch(seen, {"rows": rows, "letters": clean.ids[rows]}, {"masked": float(len(rows))})


class GivenValues(MaskedValues):
    """The same of bins."""

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        clean = self.reading.read(examples, keys)
        assert clean.values is not None
        masks = [np.pad(hidden(one.label, len(one.ids), BINS), (1, 0)) for one in examples]  # <cls> is seen
        rows = torch.from_numpy(np.flatnonzero(np.concatenate(masks)))
        inputs = replace(clean, values=clean.values.index_fill(0, rows, self.mask_value))
        weights = dict.fromkeys(self.parts, float(len(rows)))
        return Batch(inputs, {"rows": rows, "values": clean.values[rows]}, weights)


def steps(model: Any, objective: Any, examples: Sequence[Example], size: int) -> np.ndarray:
    """The loss of each step over the examples, once."""
    groups = parameter_groups(model.module.named_parameters(), 0.0)
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = Schedule(steps=-(-len(examples) // size))
    loop = Loop(schedule=schedule, batch_tokens=batch_tokens(model.device), clip=CLIP, log_every=1)
    history = loop.train(model.module, objective, InOrder(examples, size), optimizer)  # type: ignore[arg-type]
    return np.array(history.loss)


def letters(settings: Settings) -> Embed:
    """Masked letters. batch."""
    model = rz.load(settings["weights"], device="cpu", dtype="float32")
    first = copy.deepcopy(model.module.state_dict())
    usual = objective_of(model, Recipe())
    assert isinstance(usual, MaskedLetters)
    objective = GivenLetters(usual.reading, usual.mask_id, usual.letters)

    def train(inputs: list[dict[str, Any]]) -> np.ndarray:
        torch.set_grad_enabled(True)
        model.module.load_state_dict(first)
        examples = [Example(model.tokenizer.encode(one["sequence"]), label=k) for k, one in enumerate(inputs)]
        return steps(model, objective, examples, settings["batch"])

    return train


def cells(settings: Settings) -> Embed:
    """Hidden bins, from the gene rows and from the cell. batch, window."""
    model = rz.load(settings["weights"], device="cpu", dtype="float32")
    first = copy.deepcopy(model.module.state_dict())
    usual = objective_of(model, Recipe(longest=settings["window"] - 1))
    assert isinstance(usual, MaskedValues)
    objective = GivenValues(usual.reading, usual.mask_value, usual.bins, usual.share)

    def train(inputs: list[dict[str, Any]]) -> np.ndarray:
        torch.set_grad_enabled(True)
        model.module.load_state_dict(first)
        examples = [
            Example(np.array(one["ids"]), np.array(one["bins"], np.float32), label=k)
            for k, one in enumerate(inputs)
        ]
        # as scgpt counts: bins, not shares of all bins
        return steps(model, objective, examples, settings["batch"]) * usual.bins**2

    return train


def numbers(settings: Settings) -> Embed:
    """Fine-tuning of everything on one number a sequence. batch."""
    model = rz.load(settings["weights"], device="cpu", dtype="float32")

    def train(inputs: list[dict[str, Any]]) -> np.ndarray:
        torch.set_grad_enabled(True)
        tuned = FineTuned(model, task="regression", pooling="mean+last")
        sequences, labels = [one["sequence"] for one in inputs], [one["label"] for one in inputs]
        history = tuned.fit(
            sequences,
            labels,
            layers=None,
            epochs=1,
            batch_size=settings["batch"],
            learning_rate=RATE,
        )
        return np.array(history.loss)

    return train


if __name__ == "__main__":
    serve({"letters": letters, "cells": cells, "numbers": numbers})

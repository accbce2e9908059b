"""Objectives of sequences: the next letter, masked letters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.engine.embed import letter_rows
from ribozyme.packing import Packed, pool
from ribozyme.train.batch import Batch
from ribozyme.train.feed import Keys
from ribozyme.train.kmer_components import KmerComponents
from ribozyme.train.objectives.reading import CHOOSE, KIND, OTHER, Draws, Example, Letters, of_views


@dataclass(frozen=True, slots=True)
class NextLetter:
    """Each letter from those before it: - sum_t w(x_t) log p(x_t | x_<t) / sum_t w(x_t).

    weights : (V,) w of each letter; 1 by default
    components : also learnt: the squared error of these, told by the mean row of the letters
    """

    reading: Letters
    weights: tuple[float, ...] | None = None
    components: KmerComponents | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The next letters, and the components where there are some."""
        return {"next": 1.0} | ({} if self.components is None else {"components": 1.0})

    def length(self, example: Example) -> int:
        """Tokens of an example."""
        return self.reading.length(example)

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        """Letters, and which of them are asked for: all but the first of each sequence."""
        inputs = self.reading.read(examples, keys)
        asked = torch.ones(len(inputs.ids), dtype=torch.bool)
        asked[inputs.cu_seqlens[:-1].long()] = False
        rows = asked.nonzero()[:, 0] - 1  # the row that says the next letter
        targets = inputs.ids[asked]
        weight = len(targets) if self.weights is None else float(torch.tensor(self.weights)[targets].sum())
        asks, weights = {"rows": rows, "letters": targets}, {"next": float(weight)}
        if self.components is not None:
            asks |= _whole(self.components, inputs, self.reading)
            weights["components"] = float(len(inputs.lengths))
        return Batch(inputs, asks, weights)

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums of the cross-entropies, and of the squared errors."""
        rows = network.encode(batch.inputs)
        logits = network.logits(rows[batch.targets["rows"]])
        weights = None if self.weights is None else logits.new_tensor(self.weights, dtype=torch.float32)
        letters = batch.targets["letters"]
        sums = {"next": F.cross_entropy(logits.float(), letters, weight=weights, reduction="sum")}
        if self.components is not None:
            sums["components"] = _told(rows, batch, self.reading)
        return sums


@dataclass(frozen=True, slots=True)
class MaskedLetters:
    """BERT (arXiv:1810.04805): `share` of the letters, 80 % masked, 10 % swapped, 10 % left: what were they?

    letters : ids that may be chosen and that replace, without special tokens. Over a vocabulary of codons
        whole codons are masked.
    contrast : coefficient of telling, by the mean rows, which two views are of one sequence (`info_nce`
        among those of the micro-batch, so `batch_tokens` matters); the reading then gives two views
    components : also learnt: the squared error of these, of the whole sequence, told by the mean row of its
        letters
    """

    reading: Letters
    mask_id: int
    letters: tuple[int, ...]
    share: float = 0.15
    contrast: float = 0.0
    components: KmerComponents | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The masked letters, and contrast and components where they are asked for."""
        contrast = {"contrast": self.contrast} if self.contrast else {}
        return {"masked": 1.0} | contrast | ({} if self.components is None else {"components": 1.0})

    @property
    def compares(self) -> bool:
        """Whether an input alone in a micro-batch says nothing."""
        return self.contrast > 0

    def length(self, example: Example) -> int:
        """Tokens of an example."""
        return self.reading.length(example)

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        """Corrupted letters, and where which letter stood."""
        clean = self.reading.read(examples, keys)
        views = self.reading.views
        own = of_views(keys, views)
        drawn = Draws(own, clean.lengths)
        ids, letters = clean.ids.numpy(), np.array(self.letters)
        chosen = np.isin(ids, letters) & (drawn.tokens(CHOOSE) < self.share)
        kind = drawn.tokens(KIND)
        other = letters[(drawn.tokens(OTHER) * len(letters)).astype(np.int64)]
        seen = np.where(chosen & (kind < 0.8), self.mask_id, ids)
        seen = np.where(chosen & (kind >= 0.9), other, seen)
        rows = torch.from_numpy(np.flatnonzero(chosen))
        weights = {"masked": float(len(rows))}
        if self.contrast:
            weights["contrast"] = float(len(own))
        asks = {"rows": rows, "letters": clean.ids[rows]}
        if self.components is not None:
            asks |= _whole(self.components, clean, self.reading)
            weights["components"] = float(len(own))
        return Batch(replace(clean, ids=torch.from_numpy(seen)), asks, weights)

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums of the cross-entropies."""
        rows = network.encode(batch.inputs)
        logits = network.logits(rows[batch.targets["rows"]])
        sums = {"masked": F.cross_entropy(logits.float(), batch.targets["letters"], reduction="sum")}
        if self.contrast:
            sums["contrast"] = info_nce(pool(rows, batch.inputs.lengths, "mean")) * len(batch.inputs.lengths)
        if self.components is not None:
            sums["components"] = _told(rows, batch, self.reading)
        return sums


def _whole(components: KmerComponents, clean: Packed, reading: Letters) -> dict[str, Tensor]:
    """The components of each sequence."""
    ids = letter_rows(clean.ids, clean, reading).split(_letters(clean, reading))
    return {"components": components.of([one.numpy() for one in ids])}


def _told(rows: Tensor, batch: Batch, reading: Letters) -> Tensor:
    """Sum over the sequences of the mean squared error of their components."""
    inputs = batch.inputs
    means = pool(letter_rows(rows, inputs, reading), _letters(inputs, reading), "mean")
    return (means - batch.targets["components"]).square().mean(1).sum()


def _letters(inputs: Packed, reading: Letters) -> list[int]:
    """How many letters each sequence has."""
    around = len(reading.prefix) + len(reading.suffix)
    return [length - around for length in inputs.lengths]


def info_nce(rows: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy of finding the other view of an input among all (InfoNCE, arXiv:2002.05709).

    rows : (2 n, d), where rows 2 k and 2 k + 1 are two views of input k
    """
    rows = F.normalize(rows, dim=1)
    alike = (rows @ rows.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(alike, torch.arange(len(rows), device=rows.device) ^ 1)

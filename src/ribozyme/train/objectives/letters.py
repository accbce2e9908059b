"""Objectives of sequences: the next letter, masked letters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.packing import pool
from ribozyme.train.batch import Batch
from ribozyme.train.feed import Keys
from ribozyme.train.objectives.reading import CHOOSE, KIND, OTHER, Draws, Example, Letters, of_views


@dataclass(frozen=True, slots=True)
class NextLetter:
    """Each letter from those before it: - sum_t w(x_t) log p(x_t | x_<t) / sum_t w(x_t).

    weights : (V,) w of each letter; 1 by default
    """

    reading: Letters
    weights: tuple[float, ...] | None = None
    parts: dict[str, float] = field(default_factory=lambda: {"next": 1.0})

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
        return Batch(inputs, {"rows": rows, "letters": targets}, {"next": float(weight)})

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sum of the cross-entropies."""
        logits = network.logits(network.encode(batch.inputs)[batch.targets["rows"]])
        weights = None if self.weights is None else logits.new_tensor(self.weights, dtype=torch.float32)
        letters = batch.targets["letters"]
        return {"next": F.cross_entropy(logits.float(), letters, weight=weights, reduction="sum")}


@dataclass(frozen=True, slots=True)
class MaskedLetters:
    """BERT (arXiv:1810.04805): `share` of the letters, 80 % masked, 10 % swapped, 10 % left: what were they?

    letters : ids that may be chosen and that replace, without special tokens. Over a vocabulary of codons
        whole codons are masked.
    contrast : coefficient of telling, by the mean rows, which two views are of one sequence (`info_nce`
        among those of the micro-batch); the reading then gives two views
    """

    reading: Letters
    mask_id: int
    letters: tuple[int, ...]
    share: float = 0.15
    contrast: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """The masked letters, and the contrast where there is one."""
        return {"masked": 1.0} | ({"contrast": self.contrast} if self.contrast else {})

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
        inputs = replace(clean, ids=torch.from_numpy(seen))
        return Batch(inputs, {"rows": rows, "letters": clean.ids[rows]}, weights)

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums of the cross-entropies."""
        rows = network.encode(batch.inputs)
        logits = network.logits(rows[batch.targets["rows"]])
        sums = {"masked": F.cross_entropy(logits.float(), batch.targets["letters"], reduction="sum")}
        if self.contrast:
            sums["contrast"] = info_nce(pool(rows, batch.inputs.lengths, "mean")) * len(batch.inputs.lengths)
        return sums


def info_nce(rows: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy of finding the other view of an input among all (InfoNCE, arXiv:2002.05709).

    rows : (2 n, d), where rows 2 k and 2 k + 1 are two views of input k
    """
    rows = F.normalize(rows, dim=1)
    alike = (rows @ rows.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(alike, torch.arange(len(rows), device=rows.device) ^ 1)

"""Pretraining from scratch: the objectives of the three models, and one plain loop over packed batches."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from ribozyme.packing import Packed, pool

Ids = npt.NDArray[np.int64]
Loss = Callable[[Packed], Tensor]
NO_DECAY = ("norm", "bias", "A_log", "D", "dt_bias")
"""Parameters whose name ends in, or has a part of, one of these are not decayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A warmup-stable-decay schedule for AdamW (arXiv:2404.06395)."""

    steps: int
    learning_rate: float = 1e-3
    warmup: float = 0.02
    decay: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step: up over `warmup`, level, linearly to zero over the last `decay`."""
        done = (step + 1) / self.steps
        rising = min(1.0, done / self.warmup) if self.warmup else 1.0
        falling = min(1.0, (1 - done) / self.decay + 1 / self.steps) if self.decay else 1.0
        return self.learning_rate * min(rising, falling)


@dataclass(slots=True)
class History:
    """What was seen while training: steps, tokens, seconds, losses."""

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def pretrain(
    module: nn.Module,
    batches: Iterable[Packed],
    loss: Loss,
    recipe: Recipe,
    *,
    log: Callable[[History], None] | None = None,
    every: int = 50,
) -> History:
    """Train `module` on `batches` for `recipe.steps` steps; `log` is called every `every` steps.

    Raises
    ------
    FloatingPointError : the loss became NaN or infinite.
    """
    optimizer = torch.optim.AdamW(_groups(module, recipe.weight_decay), lr=0.0, betas=(0.9, 0.98))
    history, recent, tokens, begin = History(), [], 0, time.monotonic()
    module.train()
    for step, batch in zip(range(recipe.steps), batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(batch)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the loss is {value.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        recent.append(value.item())
        tokens += len(batch.ids)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            history.steps.append(step + 1)
            history.tokens.append(tokens)
            history.seconds.append(time.monotonic() - begin)
            history.losses.append(float(np.mean(recent)))
            recent = []
            if log is not None:
                log(history)
    module.eval()
    return history


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        plain = parameter.ndim < 2 or any(part in name.split(".") for part in NO_DECAY)
        groups[plain].append(parameter)
    return [
        {"params": groups[False], "weight_decay": weight_decay},
        {"params": groups[True], "weight_decay": 0.0},
    ]


def shuffled(
    sequences: Sequence[Ids], budget: int, longest: int, generator: np.random.Generator
) -> Iterator[Packed]:
    """Endless packed batches of about `budget` tokens; of a sequence past `longest` a random part."""
    held: list[Ids] = []
    size = 0
    while True:
        for index in generator.permutation(len(sequences)):
            ids = sequences[index]
            start = int(generator.integers(len(ids) - longest + 1)) if len(ids) > longest else 0
            held.append(ids[start : start + longest])
            size += len(held[-1])
            if size >= budget:
                yield Packed.of(held)
                held, size = [], 0


def shuffled_cells(
    bins: sparse.csr_matrix,
    gene_ids: Ids,
    first: tuple[int, float],
    budget: int,
    longest: int,
    generator: np.random.Generator,
) -> Iterator[Packed]:
    """Endless packed batches of cells; of a cell with more than `longest` genes a random part.

    bins : (cells, genes) binned expression; gene_ids : (genes,) their ids
    first : id and value of the token in front of each cell, `<cls>`
    """
    ids: list[Ids] = []
    values: list[npt.NDArray[np.float32]] = []
    while True:
        for cell in generator.permutation(bins.shape[0]):
            inside = np.arange(bins.indptr[cell], bins.indptr[cell + 1])
            if len(inside) > longest:
                inside = np.sort(generator.choice(inside, longest, replace=False))
            ids.append(np.concatenate([[first[0]], gene_ids[bins.indices[inside]]]))
            values.append(np.concatenate([[first[1]], bins.data[inside]]).astype(np.float32))
            if sum(map(len, ids)) >= budget:
                yield Packed.of(ids, values)
                ids, values = [], []


def next_letter(module: nn.Module, weights: Tensor | None = None) -> Loss:
    """Cross-entropy of each letter given those before it; `weights` (vocabulary,) weighs the letters."""

    def loss(batch: Packed) -> Tensor:
        rows = module.encode(batch)  # type: ignore[operator]
        last = batch.cu_seqlens[1:].long() - 1
        inner = torch.ones(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
        inner[last] = False
        target = batch.ids.roll(-1)[inner]
        return F.cross_entropy(module.logits(rows[inner]), target, weight=weights)  # type: ignore[operator]

    return loss


def masked_letters(
    module: nn.Module,
    mask_id: int,
    letters: Tensor,
    generator: torch.Generator,
    share: float = 0.15,
    weight: float = 0.0,
) -> Loss:
    """Cross-entropy at `share` of the letters: 80 % masked, 10 % swapped, 10 % left (arXiv:1810.04805).

    letters : ids that may be chosen and that replace, without special tokens
    weight : of `contrast` between the mean rows, for batches whose sequences come in two views
    """

    def loss(batch: Packed) -> Tensor:
        ids = batch.ids
        draw = torch.rand(ids.shape, generator=generator)
        chosen = (draw < share) & torch.isin(ids, letters)
        kind = torch.rand(ids.shape, generator=generator)
        other = letters[torch.randint(len(letters), ids.shape, generator=generator)]
        seen = torch.where(chosen & (kind < 0.8), mask_id, ids)
        seen = torch.where(chosen & (kind >= 0.9), other, seen)
        rows = module.encode(replace(batch, ids=seen))  # type: ignore[operator]
        hidden = F.cross_entropy(module.logits(rows[chosen]), ids[chosen])  # type: ignore[operator]
        return hidden if weight == 0 else hidden + weight * contrast(pool(rows, batch.lengths, "mean"))

    return loss


def masked_values(
    module: nn.Module, mask_value: float, bins: int, generator: torch.Generator, share: float = 0.4
) -> Loss:
    """Squared error of hidden expression bins (scGPT), from each gene's row and from the cell alone.

    `share` of the values are replaced by `mask_value`; errors are in units of all bins.
    """

    def loss(batch: Packed) -> Tensor:
        assert batch.values is not None
        hidden = torch.rand(len(batch.ids), generator=generator) < share
        hidden[batch.cu_seqlens[:-1].long()] = False  # `<cls>` has no expression
        seen = torch.where(hidden, mask_value, batch.values)
        output = module(replace(batch, values=seen), heads=("expression", "mvc"))
        target = batch.values[hidden] / bins
        both = (output.expression.value, output.mvc.value)
        return sum((F.mse_loss(one[hidden] / bins, target) for one in both), torch.zeros(()))

    return loss


def contrast(rows: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of finding the other view of an input among all (InfoNCE, arXiv:2002.05709).

    rows : (2 n, d), where rows 2 k and 2 k + 1 are two views of input k
    """
    rows = F.normalize(rows, dim=1)
    alike = (rows @ rows.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(alike, torch.arange(len(rows), device=rows.device) ^ 1)


def cropped(batch: Packed, generator: np.random.Generator, least: float = 0.5) -> Packed:
    """Two random parts, of at least the share `least`, of each sequence, between its first and last token."""
    views = []
    for ids in batch.split(batch.ids):
        inner = ids[1:-1].numpy()
        for _ in range(2):
            length = int(np.ceil(len(inner) * generator.uniform(least, 1)))
            start = int(generator.integers(len(inner) - length + 1))
            views.append(np.concatenate([ids[:1], inner[start : start + length], ids[-1:]]))
    return Packed.of(views)

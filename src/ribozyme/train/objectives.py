"""What a network is trained for: each objective is a few lines with its formula and source.

An objective turns examples into a `Batch` and a batch into sums, part by part; the loop divides them by the
weight of the whole step. All random numbers (masks, crops, samples of genes) are functions of an example's
key and of the place in it, so they do not depend on how a step is cut into batches, or on processes.

T tokens of all examples end to end, n examples, d width, V letters in the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.errors import ConfigError
from ribozyme.models.scgpt.heads import contrastive_loss, elastic_similarity_loss
from ribozyme.packing import Packed, pool
from ribozyme.pp.window import draws, in_window
from ribozyme.train.components import Components
from ribozyme.train.feed import Keys
from ribozyme.train.loop import Batch

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# what random numbers are for: numbers of different use are independent
CROP, CHOOSE, KIND, OTHER, DROP, SPLIT, VIEW = range(7)


@dataclass(frozen=True, slots=True)
class Example:
    """One input without special tokens: letters, or genes with bins (`values`).

    label : of the batch that a cell is from; kind : its class
    """

    ids: Ids
    values: npt.NDArray[np.float32] | None = None
    label: int = 0
    kind: int = 0


class Draws:
    """Random numbers for the examples of a batch, from their keys."""

    def __init__(self, keys: Keys, lengths: Sequence[int]) -> None:
        self.keys = keys
        self.ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.places = np.arange(self.ends[-1]) - np.repeat(self.ends[:-1], np.diff(self.ends))

    def tokens(self, use: int) -> Floats:
        """(T,) from [0, 1), one a token."""
        return draws(self.keys, self.places, self.ends, stream=use)

    def examples(self, use: int) -> Floats:
        """(n,) from [0, 1), one an example."""
        return each(self.keys, use)


def each(keys: Keys, use: int) -> Floats:
    """(n,) from [0, 1), one an example."""
    count = len(keys)
    return draws(keys, np.zeros(count, np.int64), np.arange(count + 1), stream=1000 + use)


def of_views(keys: Any, views: int) -> Keys:
    """(n views,) a key for each view of each example."""
    far_apart = np.arange(views, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.add.outer(np.atleast_1d(keys), far_apart).ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """How a sequence becomes tokens: a random part of at most `longest` letters, between special tokens.

    optional : a letter that is left out, with all its like, of a share of the sequences, such as the E in
        front of codons
    views : parts that are taken of a sequence, each at random; of several, each has at least half of its
        letters
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    longest: int = 1 << 30
    optional: tuple[int, float] | None = None
    views: int = 1

    def length(self, example: Example) -> int:
        """Tokens of an example, at most."""
        around = len(self.prefix) + len(self.suffix)
        return self.views * (min(len(example.ids), self.longest) + around)

    def read(self, examples: Sequence[Example], keys: Keys) -> Packed:
        """The examples as a batch, views of one beside each other."""
        dropped = each(keys, DROP)
        parts = []
        for one, key, drop in zip(examples, keys, dropped):
            ids = one.ids
            if self.optional is not None and drop < self.optional[1]:
                ids = ids[ids != self.optional[0]]
            own = of_views(key, self.views)
            for larger, where in zip(each(own, VIEW), each(own, CROP)):
                size = min(len(ids), self.longest)
                if self.views > 1:
                    size = max(1, math.ceil(size * (0.5 + 0.5 * larger)))
                start = int(where * (len(ids) - size + 1))
                parts.append(np.concatenate([self.prefix, ids[start : start + size], self.suffix]))
        return Packed.of(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Genes:
    """How a cell becomes tokens: `<cls>`, then a sample of at most `longest` genes with their bins."""

    cls_id: int
    cls_value: float
    longest: int = 1_199

    def length(self, example: Example) -> int:
        """Tokens of a cell."""
        return 1 + min(len(example.ids), self.longest)

    def read(self, examples: Sequence[Example], keys: Keys) -> Packed:
        """The cells as a batch."""
        ids = np.concatenate([one.ids for one in examples]).astype(np.int64)
        values = np.concatenate([one.values for one in examples if one.values is not None])
        ends = np.concatenate([[0], np.cumsum([len(one.ids) for one in examples])])
        keep = in_window(ids, values, ends, keys, genes=self.longest)
        ends = np.concatenate([[0], np.cumsum(keep)])[ends]
        ids, values = ids[keep], values[keep]
        spans = [slice(a, b) for a, b in pairwise(ends)]
        return Packed.of(
            [np.concatenate([[self.cls_id], ids[s]]) for s in spans],
            [np.concatenate([[self.cls_value], values[s]]).astype(np.float32) for s in spans],
        )


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


@dataclass(frozen=True, slots=True)
class MaskedValues:
    """scGPT's training on masked expression (doi:10.1038/s41592-024-02201-0): `share` of the bins are hidden.

    parts : any of these with their coefficients, by default the first two

        expression, mvc : squared error of the hidden bins, in units of all bins, from the gene's own row
            (published as GEP), and from the cell embedding alone (GEPC)
        zero, mvc_zero : of a network with `explicit_zero`, - log p(expressed or not) of the hidden bins
        classes : cross-entropy of each cell's `kind` (CLS)
        batches : cross-entropy of its batch `label` behind reversed gradients (DAB): cells forget it
        similarity : mean of 1 - (cos - threshold)^2 over pairs of cells of the micro-batch (ECS)
        contrast : finding each cell again in a second pass with other dropout (CCE)
        components : squared error of `components` of the whole cell, told by the cell embedding

    A network with `domains` norms each cell by its batch label (DSBN).
    """

    reading: Genes
    mask_value: float
    bins: int
    share: float = 0.4
    parts: dict[str, float] = field(default_factory=lambda: {"expression": 1.0, "mvc": 1.0})
    threshold: float = 0.8
    components: Components | None = None

    def __post_init__(self) -> None:
        if unknown := [part for part in self.parts if part not in {*OF_GENES, *OF_CELLS}]:
            known = ", ".join([*OF_GENES, *OF_CELLS])
            raise ConfigError(f"part {unknown[0]!r} does not exist", hint=f"any of {known}")
        if ("components" in self.parts) != (self.components is not None):
            raise ConfigError("part 'components' and components go together")

    def length(self, example: Example) -> int:
        """Tokens of a cell."""
        return self.reading.length(example)

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        """Cells with hidden bins, and what they were."""
        clean = self.reading.read(examples, keys)
        assert clean.values is not None
        hidden = torch.from_numpy(Draws(keys, clean.lengths).tokens(CHOOSE) < self.share)
        hidden[clean.cu_seqlens[:-1].long()] = False  # `<cls>` has no expression
        inputs = replace(clean, values=torch.where(hidden, self.mask_value, clean.values))
        rows = hidden.nonzero()[:, 0]
        kinds = torch.tensor([one.kind for one in examples])
        targets = {"rows": rows, "values": clean.values[rows], "labels": _labels(examples), "kinds": kinds}
        if self.components is not None:
            targets["components"] = self.components.of(examples, self.bins)
        counts = {part: float(len(rows) if part in OF_GENES else len(examples)) for part in self.parts}
        return Batch(inputs, targets, counts)

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums over the hidden bins, or over the cells."""
        side = _side(network, batch)
        heads = tuple({head for part in self.parts if (head := HEADS.get(part))})
        output = network(batch.inputs, heads=heads, **side)
        sums: dict[str, Tensor] = {}
        for part in self.parts:
            if part in OF_GENES:
                head = getattr(output, HEADS[part])
                sums[part] = OF_GENES[part](head, batch.targets["rows"], batch.targets["values"], self.bins)
            elif part == "contrast":
                again = network(batch.inputs, heads=(), **side)
                sums[part] = contrastive_loss(output.cell, again.cell) * len(output.cell)
            elif part == "similarity":
                sums[part] = elastic_similarity_loss(output.cell, self.threshold) * len(output.cell)
            elif part == "components":
                sums[part] = (output.cell.float() - batch.targets[part]).square().mean(1).sum()
            else:
                goal = batch.targets["kinds" if part == "classes" else "labels"]
                sums[part] = F.cross_entropy(getattr(output, HEADS[part]).float(), goal, reduction="sum")
        return sums


@dataclass(frozen=True, slots=True)
class Generative:
    """scGPT's generative pretraining: a share of the genes is given with its bins, the others are generated.

    The given tokens (`<cls>` among them) see each other; each other gene sees those and itself
    (`given=` of `ScGPT.encode`). Parts, squared errors of generated bins in units of all bins: `generated`
    from the gene's row, `mvc` from the cell embedding, and `prompted`, generated again in a second pass from
    the cell embedding of the first (its gradient stopped) in the place of `<cls>`. As in the published
    training, the second pass may be left out in the beginning: train without `prompted` first.

    shares : of the genes to generate; each cell draws one of them
    """

    reading: Genes
    bins: int
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    parts: dict[str, float] = field(default_factory=lambda: {"generated": 1.0, "mvc": 1.0, "prompted": 1.0})

    def length(self, example: Example) -> int:
        """Tokens of a cell."""
        return self.reading.length(example)

    def batch(self, examples: Sequence[Example], keys: Keys) -> Batch:
        """Cells with the given genes in front, and the bins of the others."""
        clean = self.reading.read(examples, keys)
        assert clean.values is not None
        drawn = Draws(keys, clean.lengths)
        ratio = np.array(self.shares)[(drawn.examples(SPLIT) * len(self.shares)).astype(int)]
        lots = drawn.tokens(CHOOSE)
        lots[drawn.ends[:-1]] = -1.0  # `<cls>` stays in front
        cell = np.repeat(np.arange(len(keys)), clean.lengths)
        order = torch.from_numpy(np.lexsort((lots, cell)))
        lengths = np.array(clean.lengths)
        given = lengths - ((lengths - 1) * ratio).astype(np.int64)
        rows = torch.from_numpy(np.flatnonzero(drawn.places >= np.repeat(given, clean.lengths)))
        inputs = replace(clean, ids=clean.ids[order], values=clean.values[order])
        assert inputs.values is not None
        targets = {
            "rows": rows,
            "values": inputs.values[rows],
            "given": torch.from_numpy(given),
            "labels": _labels(examples),
        }
        # the values of the others are ignored by the network; they are taken away all the same
        hidden = inputs.values.index_fill(0, rows, 0.0)
        return Batch(replace(inputs, values=hidden), targets, dict.fromkeys(self.parts, float(len(rows))))

    def __call__(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Sums of the squared errors."""
        rows, values, inputs = batch.targets["rows"], batch.targets["values"], batch.inputs
        side, given = _side(network, batch), batch.targets["given"].tolist()
        output = network(inputs, heads=("expression", "mvc"), given=given, **side)
        sums = {
            "generated": squared(output.expression.value[rows], values, self.bins),
            "mvc": squared(output.mvc.value[rows], values, self.bins),
        }
        if "prompted" in self.parts:
            again = network(inputs, heads=("expression",), given=given, cell=output.cell.detach(), **side)
            sums["prompted"] = squared(again.expression.value[rows], values, self.bins)
        return {part: sums[part] for part in self.parts}


def expressed(probability: Tensor, bins: Tensor) -> Tensor:
    """Sum of - log p where a gene is expressed, - log (1 - p) where it is not."""
    return F.binary_cross_entropy(probability.float(), (bins > 0).float(), reduction="sum")


def squared(predicted: Tensor, bins: Tensor, count: int) -> Tensor:
    """Sum of ((y - x) / count)^2, the masked error of scGPT in units of all `count` bins."""
    return F.mse_loss(predicted.float() / count, bins / count, reduction="sum")


HEADS = {
    "expression": "expression",
    "zero": "expression",
    "mvc": "mvc",
    "mvc_zero": "mvc",
    "classes": "classes",
    "batches": "adversary",
}
"""The head of scGPT that a part of the loss reads."""

OF_GENES: dict[str, Callable[[Any, Tensor, Tensor, int], Tensor]] = {
    "expression": lambda head, rows, bins, count: squared(head.value[rows], bins, count),
    "mvc": lambda head, rows, bins, count: squared(head.value[rows], bins, count),
    "zero": lambda head, rows, bins, count: expressed(head.nonzero[rows], bins),
    "mvc_zero": lambda head, rows, bins, count: expressed(head.nonzero[rows], bins),
}
"""Parts that are sums over hidden bins."""

OF_CELLS = {"classes", "batches", "similarity", "contrast", "components"}
"""Parts that are sums over cells."""


def info_nce(rows: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean cross-entropy of finding the other view of an input among all (InfoNCE, arXiv:2002.05709).

    rows : (2 n, d), where rows 2 k and 2 k + 1 are two views of input k
    """
    rows = F.normalize(rows, dim=1)
    alike = (rows @ rows.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(alike, torch.arange(len(rows), device=rows.device) ^ 1)


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([one.label for one in examples])


def _side(network: Any, batch: Batch) -> dict[str, Tensor]:
    """The batch labels, for a network that has a part for them."""
    wants = network.config.batches or network.config.domains
    return {"labels": batch.targets["labels"]} if wants else {}

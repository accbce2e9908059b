"""Objectives of cells: masked values with parts of many kinds, genes from other genes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.errors import ConfigError
from ribozyme.models.scgpt.heads import contrastive_loss, elastic_similarity_loss
from ribozyme.train.batch import Batch
from ribozyme.train.components import Components
from ribozyme.train.feed import Keys
from ribozyme.train.objectives.reading import CHOOSE, SPLIT, Draws, Example, Genes


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

    Published coefficients are beside errors in bins: here `expression` and `mvc` are divided by `bins`^2, so
    other parts are to be as well. `similarity` and `contrast` compare the cells of a micro-batch, so they
    depend on `batch_tokens`; so does a network with `domains`, which norms each cell by its batch label over
    the micro-batch (DSBN), in one process.
    """

    reading: Genes
    mask_value: float
    bins: int
    share: float = 0.4
    parts: dict[str, float] = field(default_factory=lambda: {"expression": 1.0, "mvc": 1.0})
    threshold: float = 0.8
    components: Components | None = None
    against: ClassVar[frozenset[str]] = frozenset({"batches"})

    def __post_init__(self) -> None:
        _check_parts(self.parts, (*OF_GENES, *OF_CELLS))
        if ("components" in self.parts) != (self.components is not None):
            raise ConfigError("part 'components' and components go together")

    @property
    def compares(self) -> bool:
        """Whether an input alone in a micro-batch says nothing."""
        return bool({"similarity", "contrast"} & self.parts.keys())

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
    parts : any of these with their coefficients, by default all
    """

    reading: Genes
    bins: int
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GENERATED, 1.0))

    def __post_init__(self) -> None:
        _check_parts(self.parts, GENERATED)

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
        heads = tuple(head for part, head in GENERATED.items() if part in self.parts and head)
        output = network(inputs, heads=heads, given=given, **side)
        sums: dict[str, Tensor] = {}
        for part in self.parts:
            head = GENERATED[part]
            told = (
                network(inputs, given=given, cell=output.cell.detach(), **side).expression
                if head is None
                else getattr(output, head)
            )
            sums[part] = squared(told.value[rows], values, self.bins)
        return sums


def expressed(probability: Tensor, bins: Tensor) -> Tensor:
    """Sum of - log p where a gene is expressed, - log (1 - p) where it is not."""
    with torch.autocast(probability.device.type, enabled=False):  # which it refuses on a GPU
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

OF_CELLS = ("classes", "batches", "similarity", "contrast", "components")
"""Parts that are sums over cells."""


GENERATED: dict[str, str | None] = {"generated": "expression", "mvc": "mvc", "prompted": None}
"""Parts of `Generative`, each with the head of the first pass that it reads, or of none."""


def _check_parts(parts: Mapping[str, float], known: Iterable[str]) -> None:
    if unknown := [part for part in parts if part not in known]:
        raise ConfigError(f"part {unknown[0]!r} does not exist", hint=f"any of {', '.join(known)}")


def _labels(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([one.label for one in examples])


def _side(network: Any, batch: Batch) -> dict[str, Tensor]:
    """The batch labels, for a network that has a part for them."""
    wants = network.config.batches or network.config.domains
    return {"labels": batch.targets["labels"]} if wants else {}

"""Cells after a perturbation, from cells before it, by an scGPT with the perturbation parts."""

from typing import Literal

import torch
from torch import Tensor

from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.packing import Packed, cumulative

Shown = Literal["all", "expressed"]


@torch.no_grad()
def predict_perturbation(
    model: ScGPT,
    values: Tensor,
    perturbed: Tensor,
    genes: Tensor,
    *,
    shown: Shown = "all",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expression of each cell after its perturbation.

    Parameters
    ----------
    values : (n, g), expression before, on the scale of training (log1p)
    perturbed : (n, g), 1 where a gene of a cell is perturbed, else 0
    genes : (g,), the id of each gene in the vocabulary, -1 where it has none
    shown : what the network reads: `all` known genes of a cell, or those `expressed`, and the perturbed ones
    generator : draws expressed or not, for a model with zero probabilities; without one, the mean of both

    Returns
    -------
    (n, g) float32. A gene that is not shown keeps its value: 0 where it is not expressed (as published), and
    the value before where the vocabulary lacks it (the published code shows all of those as `<pad>`). A cell
    is predicted from itself alone, whatever the other cells of the batch express.

    Raises
    ------
    CheckpointError : the model has no perturbation parts.
    InputError : the shapes do not fit, or a perturbed gene is unknown to the vocabulary.
    """
    if model.perturbations is None:
        raise CheckpointError(f"{model.source} has no 'pert_encoder' tensors, which this needs")
    if values.shape != perturbed.shape or values.shape[1:] != genes.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (values, perturbed, genes))
        raise InputError(f"values, perturbed and genes have shapes {shapes}, not (n, g), (n, g), (g,)")
    known, marked = genes >= 0, perturbed != 0
    if (lost := (marked & ~known).sum(0)).any():
        raise InputError(
            f"a perturbed gene (column {int(lost.nonzero()[0])}) is not in the vocabulary of the model",
            hint="its effect cannot be predicted; leave those cells out",
        )
    if shown not in ("all", "expressed"):
        raise ConfigError(f"shown {shown!r} does not exist", hint="one of all, expressed")
    mask = known if shown == "all" else known & ((values != 0) | marked)
    mask = mask.expand_as(values)
    column = mask.nonzero()[:, 1]
    lengths = tuple(mask.sum(1).tolist())
    batch = Packed(genes[column], cumulative(lengths).to(genes.device), lengths, values[mask].float())
    rows = model.encode(batch, perturbed=perturbed[mask].long())
    found = model.expression(rows, batch)
    after = values.float().clone()
    after[mask] = (found.expected() if generator is None else found.sample(generator)).float()
    return after

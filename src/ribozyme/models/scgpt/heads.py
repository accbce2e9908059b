"""The parts around scGPT's layers: tables and value encoders before, decoders and classifiers after.

T tokens of all cells end to end, n cells, d width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.models.scgpt.config import Config
from ribozyme.nn.embedding import Embedding
from ribozyme.nn.linear import Linear
from ribozyme.packing import Packed

MOST_EXPRESSED = 512  # larger values are clipped, as published
QUERY_DIM = 64  # of the query decoders, whatever the width of the model


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` in the type of its weights, which stay float32 where products are bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def per_token(rows: Tensor, batch: Packed) -> Tensor:
    """(n, ...) one row a cell to (T, ...) one row a token."""
    lengths = batch.cu_seqlens.diff().long()
    return rows.repeat_interleave(lengths, dim=0, output_size=len(batch.ids))


def per_cell(rows: Tensor, batch: Packed) -> Tensor:
    """(T, ...) to the sums (n, ...) over the tokens of each cell."""
    cell = per_token(torch.arange(len(batch.lengths), device=rows.device), batch)
    return rows.new_zeros(len(batch.lengths), *rows.shape[1:]).index_add(0, cell, rows)


class Table(nn.Module):
    """A row for each gene, expression bin, batch or modality, layer-normed."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.table = Embedding(rows, dim)
        self.norm = LayerNorm(dim)

    def forward(self, ids: Tensor) -> Tensor:  # (T,) -> (T, d)
        return self.norm(self.table(ids))


class ContinuousValues(nn.Module):
    """A small network from a number to a row; pad and mask values are numbers like any other."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(1, dim)
        self.down = Linear(dim, dim)
        self.norm = LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:  # (T,) -> (T, d)
        if self.training or torch.is_grad_enabled():
            return self.dropout(self.rows(values))
        distinct, place = values.unique(return_inverse=True)  # of binned expression some fifty
        return self.rows(distinct)[place]

    def rows(self, values: Tensor) -> Tensor:
        """(n,) -> (n, d), a row for each value on its own."""
        x = values.clamp(max=MOST_EXPRESSED)[:, None]
        return self.norm(self.down(F.relu(self.up(x))))


def value_encoder(config: Config) -> nn.Module | None:
    """The encoder of expression values; scaling multiplies the gene's row and needs none."""
    if config.value_style == "continuous":
        return ContinuousValues(config.dim, config.dropout)
    if config.value_style == "category":
        return Table(config.n_bins + 2, config.dim)  # + 2: pad and mask
    return None


class DomainBatchNorm(nn.Module):
    """Batch norm with statistics for each domain; every cell is normed by those of its own."""

    def __init__(self, domains: int, dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim, eps=eps, affine=False) for _ in range(domains))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:  # (T, d), (T,) -> (T, d)
        out = torch.empty_like(x)
        for k in domain.unique().tolist():
            mine = (domain == k).nonzero().squeeze(1)
            out = out.index_copy(0, mine, self.norms[k](x[mine]))
        return out


@dataclass(frozen=True, slots=True)
class Prediction:
    """Expression of each token.

    value : (T,), in bins (or whatever the values of the input are)
    nonzero : (T,) or None, the probability that the gene is expressed at all
    """

    value: Tensor
    nonzero: Tensor | None = None

    def expected(self) -> Tensor:
        """(T,): the mean over expressed or not."""
        return self.value if self.nonzero is None else self.value * self.nonzero

    def sample(self, generator: torch.Generator) -> Tensor:
        """(T,): expressed or not drawn at random, as published for use after training."""
        if self.nonzero is None:
            return self.value
        return self.value * torch.bernoulli(self.nonzero, generator=generator)


class ExpressionDecoder(nn.Module):
    """A number a row, and with `explicit_zero` the probability that it is not zero."""

    def __init__(self, width: int, dim: int, *, explicit_zero: bool) -> None:
        super().__init__()
        self.value = self._network(width, dim)
        self.nonzero = self._network(width, dim) if explicit_zero else None

    @staticmethod
    def _network(width: int, dim: int) -> nn.Sequential:
        return nn.Sequential(
            Linear(width, dim), nn.LeakyReLU(), Linear(dim, dim), nn.LeakyReLU(), Linear(dim, 1)
        )

    def forward(self, rows: Tensor) -> Prediction:  # (T, width)
        value = self.value(rows).squeeze(-1).to(rows.dtype)
        if self.nonzero is None:
            return Prediction(value)
        return Prediction(value, self.nonzero(rows).squeeze(-1).to(rows.dtype).sigmoid())


class AffineDecoder(nn.Module):
    """Expression after a perturbation: a * value + b, with a and b decoded from each row."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, zero = config.dim, config.explicit_zero
        self.coeff = ExpressionDecoder(d, d, explicit_zero=zero)
        self.bias = ExpressionDecoder(d, d, explicit_zero=zero)  # its zero network is published, and unused
        name = config.decoder_activation
        self.activation: nn.Module = nn.Identity() if name is None else getattr(nn, name)()
        self.adaptive = config.adaptive_bias

    def forward(self, rows: Tensor, batch: Packed) -> Prediction:
        assert batch.values is not None
        a, b = self.coeff(rows), self.bias(rows)
        values, bias = batch.values.to(rows.dtype), self.activation(b.value)
        if self.adaptive:
            expressed = per_cell((values != 0).to(rows.dtype), batch).clamp(min=1)
            bias = bias * per_token(per_cell(values, batch) / expressed, batch)
        return Prediction(self.activation(a.value) * values + bias, a.nonzero)


class CellToGenes(nn.Module):
    """Expression of genes from the cell embedding alone (published as MVC)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.style = config.mvc_style
        cell = 2 * config.dim if config.labelled else config.dim
        gene = 2 * config.dim if config.mvc_joint else config.dim
        if self.style.startswith("inner product"):
            self.gene2query = Linear(gene, gene)
            self.W = Linear(gene, cell, bias=False)
            self.W_zero_logit = Linear(gene, cell) if config.explicit_zero else None
            return
        concat = self.style == "concat query"
        self.gene2query = Linear(gene, QUERY_DIM if concat else gene)
        self.fc1 = Linear(cell + QUERY_DIM if concat else cell, QUERY_DIM)
        self.hidden_activation = nn.PReLU()
        self.fc2 = Linear(QUERY_DIM, 1)

    def forward(self, cell: Tensor, genes: Tensor, batch: Packed) -> Prediction:  # (n, ..), (T, ..)
        genes = genes.detach() if self.style.endswith("detach") else genes
        query = self.gene2query(genes).sigmoid()
        cells = per_token(cell, batch)
        if self.style.startswith("inner product"):
            value = (self.W(query) * cells).sum(-1)
            if self.W_zero_logit is None:
                return Prediction(value)
            return Prediction(value, (self.W_zero_logit(query) * cells).sum(-1).sigmoid())
        joined = torch.cat([cells, query], -1) if self.style == "concat query" else cells + query
        hidden = self.hidden_activation(self.fc1(joined).to(cell.dtype))
        return Prediction(self.fc2(hidden).squeeze(-1).to(cell.dtype))


class Classifier(nn.Module):
    """Class scores of each cell, from `layers - 1` hidden layers."""

    def __init__(self, dim: int, classes: int, layers: int, activation: type[nn.Module]) -> None:
        super().__init__()
        hidden = [
            part for _ in range(layers - 1) for part in (Linear(dim, dim), activation(), LayerNorm(dim))
        ]
        self.layers = nn.Sequential(*hidden)
        self.out = Linear(dim, classes)

    def forward(self, cell: Tensor) -> Tensor:  # (n, d) -> (n, classes)
        return self.out(self.layers(cell)).to(cell.dtype)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """`x` itself; its gradient changes sign, so that what reads `x` well teaches it to be unreadable."""
    return _ReverseGradient.apply(x, scale)


def elastic_similarity_loss(cell: Tensor, threshold: float) -> Tensor:
    """Mean of 1 - (cos - threshold)^2 over all pairs of cells (published as ECS).

    Negative cosines and the diagonal count as 0.
    """
    with torch.autocast(cell.device.type, enabled=False):  # cells differ in the third digit of a cosine
        unit = F.normalize(_at_least_float32(cell), dim=1)
        cosine = (unit @ unit.T).fill_diagonal_(0).relu()
        return (1 - (cosine - threshold) ** 2).mean()


def contrastive_loss(cell: Tensor, again: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross entropy of finding each cell among its batch from a second dropout pass (published as CCE)."""
    cell, again = _at_least_float32(cell), _at_least_float32(again)
    cosine = F.cosine_similarity(cell[:, None], again[None], dim=-1) / temperature
    return F.cross_entropy(cosine, torch.arange(len(cell), device=cell.device))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

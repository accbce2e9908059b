"""scGPT: a transformer over the genes of a cell (Cui et al., 2024, doi:10.1038/s41592-024-02201-0).

A token is a gene with a value, its expression; the first token of a cell is `<cls>`. There are no
positions: the order of the genes means nothing.

T tokens of all cells end to end, n cells, d width, H heads, e = d / H.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.errors import CheckpointError, InputError
from ribozyme.models.scgpt.config import CellStyle, Config
from ribozyme.models.scgpt.heads import (
    AffineDecoder,
    CellToGenes,
    Classifier,
    DomainBatchNorm,
    ExpressionDecoder,
    LayerNorm,
    Prediction,
    Table,
    per_cell,
    per_token,
    reverse_gradient,
    value_encoder,
)
from ribozyme.nn.attention import attention
from ribozyme.nn.embedding import Embedding
from ribozyme.nn.linear import Linear
from ribozyme.packing import Packed, bounds, positions

Head = Literal["expression", "mvc", "classes", "adversary"]
Part = TypeVar("Part", bound=nn.Module)
GENERATE = 1  # row of the flag table for a value to be generated; row 0 was never used
BATCH_NORM_EPS = 6.1e-5


def prompted_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, given: Sequence[int], dropout: float = 0.0
) -> Tensor:
    """Attention where the first `given` tokens of a cell see each other, and every other those and itself."""
    parts = []
    for (start, end), known in zip(bounds(cu_seqlens), given, strict=True):
        seen = torch.eye(end - start, dtype=torch.bool, device=q.device)
        seen[:, :known] = True
        qh, kh, vh = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        one = F.scaled_dot_product_attention(qh, kh, vh, attn_mask=seen, dropout_p=dropout)
        parts.append(one[0].transpose(0, 1))
    return torch.cat(parts)


class Layer(nn.Module):
    """Post-norm: x = norm1(x + attention(x)); x = norm2(x + ffn(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.qkv = Linear(d, 3 * d)
        self.out = Linear(d, d)
        self.norm1 = LayerNorm(d)
        self.up = Linear(d, config.ffn_dim)
        self.down = Linear(config.ffn_dim, d)
        self.norm2 = LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor, given: Sequence[int] | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """(T, d) -> (T, d), or (m, d) of the m tokens `rows` alone."""
        wanted = slice(None) if rows is None else rows
        if given is None:
            mixed = self.attend(x, cu_seqlens, rows)
        else:
            mixed = self.attend_prompt(x, cu_seqlens, given)[wanted]
        x = self.norm1(x[wanted] + self.dropout(mixed))
        hidden = F.relu(self.up(x), inplace=True)
        return self.norm2(x + self.dropout(self.down(self.dropout(hidden))))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of each token, (T, H, e)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return q, k, v

    def attend(self, x: Tensor, cu_seqlens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Each token, or each of `rows`, sees every token of its cell."""
        q, k, v = self.project(x)
        q = q if rows is None else q[rows]
        mixed = attention(q, k, v, cu_seqlens, rows=rows, dropout=self._attention_dropout)
        return self.out(mixed.flatten(1))

    def attend_prompt(self, x: Tensor, cu_seqlens: Tensor, given: Sequence[int]) -> Tensor:
        """The given tokens see each other; one to be generated sees those and itself, with no `out`."""
        q, k, v = self.project(x)
        mixed = prompted_attention(q, k, v, cu_seqlens, given, self._attention_dropout).flatten(1)
        # the published layer has no output projection on this path, and its weights were trained so
        return torch.where(is_given(cu_seqlens, given)[:, None], self.out(mixed), mixed)

    @property
    def _attention_dropout(self) -> float:
        return self.dropout.p if self.training else 0.0


def is_given(cu_seqlens: Tensor, given: Sequence[int]) -> Tensor:
    """(T,): true for the first `given` tokens of each cell."""
    counts = torch.tensor(given, device=cu_seqlens.device)
    place = positions(cu_seqlens)
    return place < counts.repeat_interleave(cu_seqlens.diff().long(), output_size=len(place))


@dataclass(frozen=True, slots=True)
class Output:
    """What the heads that were asked for say; `rows` (T, d) and `cell` (n, d) are always there."""

    rows: Tensor
    cell: Tensor
    expression: Prediction | None = None
    mvc: Prediction | None = None
    classes: Tensor | None = None
    adversary: Tensor | None = None


class ScGPT(nn.Module):
    """scGPT with the optional parts that its config names.

    Beside a batch, whose `values` are the expressions, some parts need: `labels` (n,), the batch label of
    each cell; `modalities` (T,), the kind of each token; `perturbed` (T,), 1 where the gene is perturbed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.source = config, "this model"
        d, c = config.dim, config
        self.genes = Table(c.vocab_size, d)
        self.values = value_encoder(c)
        self.perturbations = Embedding(3, d, padding_idx=c.pert_pad_id) if c.perturbation else None
        self.flags = Embedding(2, d) if c.flag else None
        self.input_norm = nn.BatchNorm1d(d, eps=BATCH_NORM_EPS) if c.batch_norm else None
        self.domains = DomainBatchNorm(c.domains, d, BATCH_NORM_EPS) if c.domains else None
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.batches = Table(c.batches, d) if c.batches else None
        self.modalities = Table(c.modalities, d) if c.modalities else None
        self.decoder: ExpressionDecoder | AffineDecoder | None = None
        if c.decoder == "plain":
            self.decoder = ExpressionDecoder(2 * d if c.labelled else d, d, explicit_zero=c.explicit_zero)
        elif c.decoder == "affine":
            self.decoder = AffineDecoder(c)
        self.mvc_decoder = CellToGenes(c) if c.mvc else None
        self.classifier = Classifier(d, c.n_cls, c.n_cls_layers, nn.ReLU) if c.n_cls else None
        self.discriminator = Classifier(d, c.adversary, 3, nn.LeakyReLU) if c.adversary else None

    def forward(
        self,
        batch: Packed,
        *,
        heads: tuple[Head, ...] = ("expression",),
        labels: Tensor | None = None,
        modalities: Tensor | None = None,
        perturbed: Tensor | None = None,
        cell: Tensor | None = None,
        given: Sequence[int] | None = None,
    ) -> Output:
        """Rows, cells and the heads asked for, for training; `cell` and `given` as in `encode`."""
        rows = self.encode(batch, labels=labels, perturbed=perturbed, cell=cell, given=given)
        pooled = self.pool(rows, batch)
        side = {"labels": labels, "modalities": modalities}
        return Output(
            rows,
            pooled,
            self.expression(rows, batch, **side) if "expression" in heads else None,
            self.mvc(pooled, batch, **side) if "mvc" in heads else None,
            self.classify(pooled) if "classes" in heads else None,
            self.discriminate(pooled) if "adversary" in heads else None,
        )

    def encode(
        self,
        batch: Packed,
        layer: int = -1,
        *,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
        perturbed: Tensor | None = None,
        cell: Tensor | None = None,
        given: Sequence[int] | None = None,
    ) -> Tensor:
        """(T, d) rows after a layer: 0 is the layers' input, 1 the first layer, -1 the last.

        rows : (m,) int64, the tokens that are wanted: (m, d) in this order; the last layer computes no others
        cell : (n, d) rows to put in the place of each cell's first token, before the layers
        given : tokens of each cell, from its first, whose values are known; those of the others are ignored,
            and to be generated: a given token never sees them, and they see it and themselves
        """
        x = self.embed(batch, labels=labels, perturbed=perturbed, given=given)
        if cell is not None:
            x = x.index_copy(0, batch.cu_seqlens[:-1].long(), cell.to(x.dtype))
        depth = range(len(self.layers) + 1)[layer]
        for k, block in enumerate(self.layers[:depth], start=1):
            x = block(x, batch.cu_seqlens, given, rows if k == depth else None)
        return x[rows] if depth == 0 and rows is not None else x

    def embed(
        self,
        batch: Packed,
        *,
        labels: Tensor | None = None,
        perturbed: Tensor | None = None,
        given: Sequence[int] | None = None,
    ) -> Tensor:
        """(T, d) input rows of the layers: gene and value; a batch without values is its genes alone."""
        x = self.genes(batch.ids)
        if batch.values is not None and self.values is None:
            x = x * batch.values[:, None]
        elif batch.values is not None and self.values is not None:
            values = self.values(
                batch.values.long() if self.config.value_style == "category" else batch.values
            )
            if given is not None:
                flag = self._part(self.flags, "flag_encoder").weight[GENERATE]
                values = torch.where(is_given(batch.cu_seqlens, given)[:, None], values, flag)
            x = x + values
        if self.perturbations is not None:
            x = x + self.perturbations(_needed(perturbed, "a perturbation flag for each token"))
        if self.domains is not None:
            return self.domains(x, per_token(self._labels(labels), batch))
        return x if self.input_norm is None else self.input_norm(x)

    def cell_embedding(
        self,
        batch: Packed,
        *,
        style: CellStyle | None = None,
        normalise: bool = True,
        labels: Tensor | None = None,
        perturbed: Tensor | None = None,
    ) -> Tensor:
        """(n, d) embeddings of cells, of length 1 unless `normalise` is off; `style` as in the config."""
        if (style or self.config.cell_style) == "cls":
            first = batch.cu_seqlens[:-1].long()
            cell = self.encode(batch, rows=first, labels=labels, perturbed=perturbed)
        else:
            cell = self.pool(self.encode(batch, labels=labels, perturbed=perturbed), batch, style)
        return F.normalize(cell, dim=1) if normalise else cell

    def pool(self, rows: Tensor, batch: Packed, style: CellStyle | None = None) -> Tensor:
        """(T, d) to (n, d): the `<cls>` row, the mean row, or the sum weighted by values (of length 1)."""
        style = style or self.config.cell_style
        if style == "cls":
            return rows[batch.cu_seqlens[:-1].long()]
        if style == "avg-pool":
            return per_cell(rows, batch) / batch.cu_seqlens.diff()[:, None]
        values = _needed(batch.values, "the values of its tokens")
        return F.normalize(per_cell(rows * values[:, None], batch), dim=1)

    def expression(
        self, rows: Tensor, batch: Packed, *, labels: Tensor | None = None, modalities: Tensor | None = None
    ) -> Prediction:
        """Expression of every token from its own row."""
        decoder = self._part(self.decoder, "decoder")
        if isinstance(decoder, AffineDecoder):
            _needed(batch.values, "the values of its tokens")
            return decoder(rows, batch)
        side = self._label_rows(batch, labels, modalities)
        return decoder(rows if side is None else torch.cat([rows, side], 1))

    def mvc(
        self, cell: Tensor, batch: Packed, *, labels: Tensor | None = None, modalities: Tensor | None = None
    ) -> Prediction:
        """Expression of every gene of the batch from the (n, d) cell embeddings (not normalised) alone."""
        decoder, genes = self._part(self.mvc_decoder, "mvc_decoder"), self.genes(batch.ids)
        if (side := self._label_rows(batch, labels, modalities)) is not None:
            cell = torch.cat([cell, self.pool(side, batch)], 1)
            genes = torch.cat([genes, side], 1) if self.config.mvc_joint else genes
        return decoder(cell, genes, batch)

    def classify(self, cell: Tensor) -> Tensor:
        """(n, n_cls) scores of the cell embeddings (not normalised)."""
        return self._part(self.classifier, "cls_decoder")(cell)

    def discriminate(self, cell: Tensor) -> Tensor:
        """(n, adversary) scores of the batch labels; the gradient into the cells is reversed."""
        return self._part(self.discriminator, "grad_reverse_discriminator")(reverse_gradient(cell))

    def generate(self, cell: Tensor, batch: Packed, *, labels: Tensor | None = None) -> Prediction:
        """Expression of the genes of a batch (mostly without values) in cells that are known by embedding.

        One plain pass with the embedding in the place of `<cls>`, as in the published fine-tuning class. A
        model from generative pretraining is prompted with `encode(..., cell=cell, given=...)` instead.
        """
        return self.expression(self.encode(batch, labels=labels, cell=cell), batch, labels=labels)

    def untrained_domains(self) -> list[int]:
        """Batch labels of `domains` whose norm has seen no cell."""
        if self.domains is None:
            return []
        return [k for k, norm in enumerate(self.domains.norms) if not norm.num_batches_tracked]

    def initialise(self, generator: torch.Generator) -> None:
        """Starting weights for training from scratch, drawn as the published code draws them."""
        for part in self.modules():
            if isinstance(part, Linear):
                bound = 1 / math.sqrt(part.in_features)
                for tensor in part.parameters(recurse=False):
                    nn.init.uniform_(tensor, -bound, bound, generator=generator)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, generator=generator)
                if part.padding_idx is not None:
                    nn.init.zeros_(part.weight[part.padding_idx])
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, nn.BatchNorm1d):
                part.reset_parameters()  # and the running statistics
            elif isinstance(part, nn.PReLU):
                nn.init.constant_(part.weight, 0.25)
        nn.init.uniform_(self.genes.table.weight, -0.1, 0.1, generator=generator)

    def _label_rows(self, batch: Packed, labels: Tensor | None, modalities: Tensor | None) -> Tensor | None:
        """(T, d) sum of the batch's and the modality's row of each token."""
        side = None if self.batches is None else per_token(self.batches(self._labels(labels)), batch)
        if self.modalities is None:
            return side
        rows = self.modalities(_needed(modalities, "a modality for each token"))
        return rows if side is None else side + rows

    def _labels(self, labels: Tensor | None) -> Tensor:
        labels = _needed(labels, "a batch label for each cell")
        known = min(x for x in (self.config.batches, self.config.domains) if x)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < known:
            raise InputError(
                f"batch labels reach from {int(labels.min())} to {int(labels.max())}; "
                f"the model knows 0 to {known - 1}"
            )
        return labels

    def _part(self, part: Part | None, published: str) -> Part:
        if part is None:
            raise CheckpointError(
                f"{self.source} has no {published!r} tensors, which this needs",
                hint="train this part, or load a checkpoint that has it",
            )
        return part


def _needed(given: Tensor | None, what: str) -> Tensor:
    if given is None:
        raise InputError(f"this model needs {what}")
    return given

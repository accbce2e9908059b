"""RNA-FM (arXiv:2204.00300): a BERT with the norm before each sublayer. mRNA-FM is the same over codons.

T tokens end to end, d width, H heads, e = d / H; L layers, V tokens in the vocabulary, n letters a sequence.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.structure import StructureHead
from ribozyme.nn.attention import attention
from ribozyme.nn.embedding import Embedding
from ribozyme.nn.linear import Linear
from ribozyme.packing import Packed, positions

FIRST_POSITION = 2  # fairseq keeps rows 0 and 1 of the position table for padding
MASKED_IN_TRAINING = 0.15 * 0.8  # share of letters that training replaced by <mask>


class Attention(nn.Module):
    """Multi-head attention; q, k and v come from one product."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (T, d) -> q, k, v: (T, H, e)
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        return q, k, v

    def forward(self, x: Tensor, cu_seqlens: Tensor, rows: Tensor | None = None) -> Tensor:
        """(T, d) -> (T, d), or (m, d) of the m tokens `rows`; those look at all of their sequence."""
        q, k, v = self.split(x)
        q = q if rows is None else q[rows]
        return self.out(attention(q, k, v, cu_seqlens, rows=rows).flatten(1))

    def weights(self, x: Tensor) -> Tensor:  # (T, d) of one sequence -> (H, T, T)
        q, k, _ = self.split(x)
        scores = torch.einsum("ihe,jhe->hij", q.float(), k.float()) / math.sqrt(q.shape[-1])
        return scores.softmax(-1)


class FeedForward(nn.Module):
    """W_down gelu(W_up x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = Linear(config.dim, config.ffn_dim)
        self.down = Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # (T, d) -> (T, d)
        x = self.up(x)
        # in place where no gradient needs the input: half the memory of the widest rows
        return self.down(F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed copy of the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, cu_seqlens: Tensor, rows: Tensor | None = None) -> Tensor:
        """(T, d) -> (T, d), or (m, d) of the m tokens `rows` alone."""
        mixed = self.attention(self.norm1(x), cu_seqlens, rows)
        x = (x if rows is None else x[rows]) + mixed
        return x + self.ffn(self.norm2(x))


class LMHead(nn.Module):
    """The masked language model: LN(gelu(W x + b)) E^T + b_v, with E the embedding table."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.bias = nn.Parameter(torch.zeros(len(config.vocabulary)))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # (T, d), (V, d) -> (T, V)
        return F.linear(self.norm(F.gelu(self.dense(x)).to(table.dtype)), table, self.bias)


class RNAFM(nn.Module):
    """The encoder with the heads that its checkpoint brought: `lm_head`, `contact`, `structure`, or None."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.mask_id = config.vocabulary.index("<mask>")
        self.tokens = Embedding(len(config.vocabulary), config.dim)
        self.positions = Embedding(config.positions, config.dim)
        self.embed_norm = nn.LayerNorm(config.dim, eps=config.eps) if config.embed_norm else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.lm_head = LMHead(config) if config.lm_head else None
        self.contact = nn.Linear(config.layers * config.heads, 1) if config.contact_head else None
        self.structure = StructureHead(config) if config.structure_blocks else None

    def embed(self, batch: Packed) -> Tensor:
        """(T, d): what the first layer reads."""
        x = self.tokens(batch.ids)
        if self.config.token_dropout:
            x = self._rescaled(x, batch)
        x = x + self.positions(positions(batch.cu_seqlens) + FIRST_POSITION)
        return x if self.embed_norm is None else self.embed_norm(x)

    def encode(self, batch: Packed, layer: int = -1, *, rows: Tensor | None = None) -> Tensor:
        """(T, d) after `layer`: 0 the embeddings, 1 ... L-1 the raw stream, L (or -1) after the last norm.

        rows : (m,) int64, the tokens that are wanted: (m, d) in this order; the last layer computes no others

        Raises
        ------
        ConfigError : there is no such layer.
        """
        depth = layer + len(self.layers) + 1 if layer < 0 else layer
        if not 0 <= depth <= len(self.layers):
            raise ConfigError(f"layer {layer} does not exist", hint=f"0 to {len(self.layers)}, or -1")
        x = self.embed(batch)
        for k, block in enumerate(self.layers[:depth], start=1):
            x = block(x, batch.cu_seqlens, rows if k == depth else None)
        if depth == 0 and rows is not None:
            return x[rows]
        return self.norm(x) if depth == len(self.layers) else x

    def logits(self, rows: Tensor) -> Tensor:
        """(T, d) rows of the last layer to (T, V) scores of every token of the vocabulary.

        Raises
        ------
        CheckpointError : the checkpoint came without the head.
        """
        if self.lm_head is None:
            raise CheckpointError(
                "these weights have no language-model head: they embed, but cannot predict letters",
                hint="use a checkpoint with its head, such as `rnafm` or `mrnafm`",
            )
        return self.lm_head(rows, self.tokens.weight)

    def attentions(self, ids: Tensor) -> Tensor:
        """(n + 2,) ids of one sequence, with `<cls>` and `<eos>`, to (L, H, n + 2, n + 2) attention maps."""
        return torch.stack(list(self._attention_maps(ids)))

    def contacts(self, ids: Tensor) -> Tensor:
        """(n + 2,) ids of one sequence to (n, n) contact probabilities.

        The published weights of this head were never trained (ml4bio/RNA-FM issue 19): the result is here to
        compare with other programs, not to be believed. Base pairs come from the secondary-structure head.

        Raises
        ------
        CheckpointError : the checkpoint came without the head.
        """
        if self.contact is None:
            raise CheckpointError("these weights have no contact head")
        logits: Tensor = self.contact.bias
        for maps, weights in zip(self._attention_maps(ids), self.contact.weight[0].split(self.config.heads)):
            inner = maps[:, 1:-1, 1:-1]
            logits = logits + torch.einsum("h,hij->ij", weights, _without_background(inner + inner.mT))
        return logits.sigmoid()

    def pair_logits(self, ids: Tensor) -> Tensor:
        """(n + 2,) ids of one sequence to (n, n) symmetric base-pair scores; their sigmoid is a probability.

        Raises
        ------
        CheckpointError : the checkpoint came without the secondary-structure head.
        """
        if self.structure is None:
            raise CheckpointError(
                "these weights have no secondary-structure head", hint="load `rnafm-ss` to predict base pairs"
            )
        return self.structure(self.encode(_alone(ids))[1:-1])

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: matrices and tables normal with deviation 0.02, norms 1, biases 0."""
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02, generator=generator)
            elif isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
                part.reset_parameters()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _attention_maps(self, ids: Tensor) -> Iterator[Tensor]:
        batch = _alone(ids)
        x = self.embed(batch)
        for block in self.layers:
            assert isinstance(block, Block)
            yield block.attention.weights(block.norm1(x))
            x = block(x, batch.cu_seqlens)

    def _rescaled(self, x: Tensor, batch: Packed) -> Tensor:
        """Masked letters as zeros, and each sequence scaled to what training saw of its letters."""
        masked = batch.ids == self.mask_id
        lengths = batch.cu_seqlens.diff().long()
        share = torch.segment_reduce(masked.float(), "mean", lengths=lengths)
        scale = (1 - MASKED_IN_TRAINING) / (1 - share).repeat_interleave(lengths, output_size=len(x))
        return x.masked_fill(masked[:, None], 0.0) * scale[:, None]


def _alone(ids: Tensor) -> Packed:
    cu_seqlens = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
    return Packed(ids, cu_seqlens, (len(ids),))


def _without_background(maps: Tensor) -> Tensor:
    """Average product correction (doi:10.1093/bioinformatics/btm604) of (..., n, n) maps."""
    rows, columns = maps.sum(-1, keepdim=True), maps.sum(-2, keepdim=True)
    return maps - rows * columns / maps.sum((-2, -1), keepdim=True)

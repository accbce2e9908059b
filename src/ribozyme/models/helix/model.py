"""Helix-mRNA (arXiv:2502.13785), a stack of Mamba-2 (arXiv:2405.21060), MLP and attention blocks.

T tokens end to end, d width; Mamba-2 with inner width i = expand d = H P, H heads of P channels, G groups of
heads that share B and C, N numbers of state, K taps of convolution. n sequences, V tokens in the vocabulary.

Causal, and without any encoding of position. The stream h is float32 whatever the type of the matrices.
`forward` reads all tokens of all sequences at once and also returns what is to be remembered of them; `step`
reads one more token of each sequence.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.helix.config import Config
from ribozyme.nn.attention import attention
from ribozyme.nn.conv import causal_conv
from ribozyme.nn.embedding import Embedding
from ribozyme.nn.linear import Linear
from ribozyme.nn.norm import GatedRMSNorm, RMSNorm, at_least_float32
from ribozyme.nn.ssd import Chunks, Piece, pieces, ssd
from ribozyme.packing import Packed

RECOMPUTE = 16_384  # tokens; for the gradient of more, the inside of Mamba-2 is computed twice
Cut = tuple[Piece, ...]


@dataclass(slots=True)
class Recent:
    """What a Mamba-2 block remembers: its last K - 1 inputs of the convolution, and its state."""

    inputs: Tensor  # (n, K - 1, c)
    state: Tensor  # (n, H, P, N)

    @classmethod
    def joined(cls, parts: list["Recent"]) -> "Recent":
        """The sequences of all parts."""
        return cls(torch.cat([one.inputs for one in parts]), torch.cat([one.state for one in parts]))


@dataclass(slots=True)
class Past:
    """What an attention block remembers: every key and value so far; unpacked, with room for more."""

    k: Tensor  # (T, G, e), then (n, room, G, e)
    v: Tensor  # (T, G, e), then (n, room, G, e)

    def unpacked(self, lengths: tuple[int, ...]) -> "Past":
        """One row of keys and values a sequence."""
        k, v = (nn.utils.rnn.pad_sequence(list(m.split(lengths)), batch_first=True) for m in (self.k, self.v))
        return Past(k, v)


@dataclass(slots=True)
class State:
    """Where n sequences stand: their lengths, and what each block remembers (MLPs: nothing)."""

    lengths: Tensor  # (n,)
    longest: int
    blocks: list[Any]


class Mamba2(nn.Module):
    """The mixer: project, convolve, scan, gate, project back."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_proj = Linear(config.dim, config.inner + config.conv_dim + config.heads, bias=config.bias)
        self.conv = nn.Conv1d(
            config.conv_dim,
            config.conv_dim,
            config.conv_kernel,
            groups=config.conv_dim,
            bias=config.conv_bias,
        )
        self.dt_bias = nn.Parameter(torch.zeros(config.heads))
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = GatedRMSNorm(config.inner, config.groups, config.eps)
        self.out_proj = Linear(config.inner, config.dim, bias=config.bias)

    def forward(
        self, u: Tensor, chunks: Chunks, recent: Recent | None, remember: bool
    ) -> tuple[Tensor, Recent | None]:
        z, xBC, dt = self._project(u)
        weight, bias = self._taps()
        state, before, cu_seqlens = None, 0, chunks.cu_seqlens
        if recent is not None:
            state, before = recent.state, recent.inputs.shape[1]
            xBC = torch.cat([recent.inputs[0], xBC])
            cu_seqlens = torch.cat([cu_seqlens[:1], cu_seqlens[1:] + before])
        x, B, C = self._split(causal_conv(xBC, weight, bias, cu_seqlens, silu=True)[before:])
        y, state = ssd(x, dt, -self.A_log.exp(), B, C, chunks, state, final=remember)
        y = self._finish(y, x, z)
        if state is None:
            return y, None
        return y, Recent(_ends(xBC, cu_seqlens, weight.shape[1] - 1), state)

    def step(self, u: Tensor, recent: Recent) -> Tensor:  # (n, d) -> (n, d)
        """One more token of each sequence; `recent` is brought up to date."""
        z, xBC, dt = self._project(u)
        weight, bias = self._taps()
        inputs = torch.cat([recent.inputs, xBC[:, None]], dim=1)  # (n, K, c)
        recent.inputs = inputs[:, 1:]
        x, B, C = self._split(F.silu((inputs * weight.T).sum(1) + bias))
        B, C = (m.repeat_interleave(x.shape[1] // m.shape[1], dim=1) for m in (B, C))
        decay = torch.exp(-dt * self.A_log.exp())[..., None, None]
        recent.state = decay * recent.state + (dt[..., None] * x)[..., None] * B[:, :, None]
        return self._finish((recent.state @ C[..., None])[..., 0], x, z)

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        widths = [self.config.inner, self.config.conv_dim, self.config.heads]
        z, xBC, dt = self.in_proj(u).split(widths, dim=-1)
        dt = F.softplus(at_least_float32(dt) + self.dt_bias)
        low, high = self.config.time_step_limit
        if low > 0 or high < math.inf:
            dt = dt.clamp(low, high)
        return z, at_least_float32(xBC), dt

    def _taps(self) -> tuple[Tensor, Tensor]:  # (c, K), (c,)
        weight = self.conv.weight[:, 0]
        return weight, weight.new_zeros(len(weight)) if self.conv.bias is None else self.conv.bias

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (T, c) -> (T, H, P), twice (T, G, N)
        shared = self.config.groups * self.config.state
        x, B, C = xBC.split([self.config.inner, shared, shared], dim=-1)
        heads, groups = (self.config.heads, -1), (self.config.groups, -1)
        return x.unflatten(-1, heads), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _finish(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        y = torch.addcmul(y, x, self.D[:, None]).flatten(1)
        return self.out_proj(self.norm(y, z))


class Attention(nn.Module):
    """Causal attention, several query heads to one key head; q, k and v come from one product."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.attention_heads,
            config.kv_heads,
            config.dim // config.attention_heads,
        )
        self.qkv = Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Past]:  # (T, d) -> (T, d)
        q, k, v = self._split(x)
        y = attention(q, k, v, cu_seqlens, causal=True)
        return self.out(y.flatten(1)), Past(k, v)

    def step(self, x: Tensor, past: Past, lengths: Tensor, longest: int) -> Tensor:  # (n, d) -> (n, d)
        """One more token of each sequence; `past` is brought up to date."""
        q, k, v = self._split(x)
        if longest == past.k.shape[1]:
            past.k, past.v = (F.pad(m, (0, 0, 0, 0, 0, longest)) for m in (past.k, past.v))  # twice the room
        rows = torch.arange(len(x), device=x.device)
        past.k[rows, lengths], past.v[rows, lengths] = k, v
        k, v = (m[:, : longest + 1].transpose(1, 2) for m in (past.k, past.v))
        seen = torch.arange(longest + 1, device=x.device) <= lengths[:, None]
        y = F.scaled_dot_product_attention(
            q[:, :, None], k, v, attn_mask=seen[:, None, None], enable_gqa=self.heads != self.kv_heads
        )
        return self.out(y.flatten(1))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (T, d) -> (T, H, e), twice (T, G, e)
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return q, k, v


class MLP(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_up = Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (T, d) -> (T, d)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MambaBlock(nn.Module):
    """`M`: h + mixer(norm h), piece after piece."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, config.eps)
        self.mixer = Mamba2(config)

    def forward(
        self, h: Tensor, batch: Packed, cut: Cut, remember: bool = False
    ) -> tuple[Tensor, Recent | None]:
        rows, memories = [], list[Recent]()
        recent: Recent | None = None
        again = torch.is_grad_enabled() and len(h) > RECOMPUTE
        for piece in cut:
            before = None if piece.begins else recent
            inputs = h[piece.tokens], piece.chunks, before, remember or not piece.ends
            if again:  # keep the inputs alone, compute the rest once more for the gradient
                y, recent = checkpoint(self._piece, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                y, recent = self._piece(*inputs)
            rows.append(y)
            if piece.ends and recent is not None:
                memories.append(recent)
        return torch.cat(rows), Recent.joined(memories) if memories else None

    def _piece(
        self, h: Tensor, chunks: Chunks, recent: Recent | None, remember: bool
    ) -> tuple[Tensor, Recent | None]:
        y, recent = self.mixer(self.norm(h), chunks, recent, remember)
        return h + y, recent

    def step(self, h: Tensor, state: State, recent: Recent) -> Tensor:  # (n, d) -> (n, d)
        """One more token of each sequence."""
        return h + self.mixer.step(self.norm(h), recent)


class MLPBlock(nn.Module):
    """`+`: h + mlp(norm h), whose inner rows are wide: so many at a time as stay in a cache."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, config.eps)
        self.mlp = MLP(config)

    def forward(self, h: Tensor, batch: Packed, cut: Cut, remember: bool = False) -> tuple[Tensor, None]:
        return torch.cat([rows + self.mlp(self.norm(rows)) for rows in h.split(at_once(h.device))]), None

    def step(self, h: Tensor, state: State, memory: None) -> Tensor:  # (n, d) -> (n, d)
        """One more token of each sequence."""
        return h + self.mlp(self.norm(h))


class AttentionBlock(nn.Module):
    """`*`: h + attention(norm1 h), then h + mlp(norm2 h)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim, config.eps)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.dim, config.eps)
        self.mlp = MLP(config)

    def forward(self, h: Tensor, batch: Packed, cut: Cut, remember: bool = False) -> tuple[Tensor, Past]:
        y, past = self.attention(self.norm1(h), batch.cu_seqlens)
        h = h + y
        return torch.cat([rows + self.mlp(self.norm2(rows)) for rows in h.split(at_once(h.device))]), past

    def step(self, h: Tensor, state: State, past: Past) -> Tensor:  # (n, d) -> (n, d)
        """One more token of each sequence."""
        h = h + self.attention.step(self.norm1(h), past, state.lengths, state.longest)
        return h + self.mlp(self.norm2(h))


BLOCKS = {"M": MambaBlock, "+": MLPBlock, "*": AttentionBlock}


class HelixMRNA(nn.Module):
    """The hybrid "M+M*M+M+", the pure "MMMMMMMMMMMMMMMM", or any other layout."""

    float32_on_cpu = True  # bfloat16 gains a tenth there, and costs two digits
    chunk_size = 64  # the result does not depend on it

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(BLOCKS[letter](config) for letter in config.layout)
        self.norm = RMSNorm(config.dim, config.eps)
        self.lm_head = Linear(config.dim, config.vocab_size, bias=False) if config.head == "own" else None

    def encode(self, batch: Packed, layer: int = -1, *, rows: Tensor | None = None) -> Tensor:
        """(T, d) after `layer`: 0 the embeddings, 1 ... L-1 the raw stream, L (or -1) after the last norm.

        rows : (m,) int64, tokens; only theirs are returned, (m, d), and computed where no other needs them

        Raises
        ------
        ConfigError : there is no such layer.
        """
        depth = layer + len(self.layers) + 1 if layer < 0 else layer
        if not 0 <= depth <= len(self.layers):
            raise ConfigError(f"layer {layer} does not exist", hint=f"0 to {len(self.layers)}, or -1")
        mixing = len(self.config.layout[:depth].rstrip("+"))  # from here on, each row is for itself
        cut = self._cut(batch)
        h = at_least_float32(self.tokens(batch.ids))
        for block in self.layers[:mixing]:
            h, _ = block(h, batch, cut)
        h = h if rows is None else h[rows]
        for block in self.layers[mixing:depth]:
            h, _ = block(h, batch, cut)
        return self.norm(h) if depth == len(self.layers) else h

    def logits(self, rows: Tensor) -> Tensor:
        """(T, d) rows of the last layer to (T, V) scores of the token that comes next.

        Raises
        ------
        CheckpointError : the checkpoint came without the head.
        """
        if self.config.head == "none":
            raise CheckpointError(
                "these weights have no language-model head: they embed, but cannot predict letters",
                hint="use a checkpoint with its head, such as `helix-mrna`",
            )
        if self.lm_head is None:
            return F.linear(rows.to(self.tokens.weight.dtype), self.tokens.weight)
        return self.lm_head(rows)

    def prefill(self, batch: Packed) -> tuple[Tensor, State]:
        """`encode`, and the state from which `step` goes on."""
        cut, blocks = self._cut(batch), []
        h = at_least_float32(self.tokens(batch.ids))
        for block in self.layers:
            h, memory = block(h, batch, cut, remember=True)
            blocks.append(memory.unpacked(batch.lengths) if isinstance(memory, Past) else memory)
        return self.norm(h), State(batch.cu_seqlens.diff().long(), batch.max_seqlen, blocks)

    def step(self, state: State, ids: Tensor) -> Tensor:
        """(n,) the next token of each sequence to its (n, d) row; `state` is brought up to date."""
        h = at_least_float32(self.tokens(ids))
        for block, memory in zip(self.layers, state.blocks):
            h = block.step(h, state, memory)  # type: ignore[operator]
        state.lengths = state.lengths + 1
        state.longest += 1
        return self.norm(h)

    @torch.no_grad()
    def generate(
        self,
        batch: Packed,
        tokens: int,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        allowed: Tensor | None = None,
        stop_id: int | None = None,
    ) -> list[Tensor]:
        """Go on from each sequence by up to `tokens` tokens, drawn by their probability.

        temperature : 0 takes the likeliest token every time
        top_k : draw among this many likeliest tokens
        allowed : ids that may be drawn, else all
        stop_id : a sequence ends before this token

        Returns the new ids of each sequence.
        """
        if tokens < 1 or temperature < 0 or (top_k is not None and top_k < 1):
            raise ConfigError("tokens and top_k must be positive, temperature not negative")
        rows, state = self.prefill(batch)
        rows = rows[batch.cu_seqlens[1:].long() - 1]
        drawn: list[Tensor] = []
        while True:
            drawn.append(_draw(self.logits(rows).float().cpu(), generator, temperature, top_k, allowed))
            if len(drawn) == tokens or (stop_id is not None and _all_stopped(drawn, stop_id)):
                return [_before(ids, stop_id) for ids in torch.stack(drawn, dim=1)]
            rows = self.step(state, drawn[-1].to(rows.device))

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: decay rates from 1 to 16 a step unit, step sizes from 0.001 to 0.1, as in Mamba-2.

        Matrices are normal with deviation 1 / sqrt(fan-in), those that write to the stream smaller by the
        square root of their number.
        """
        writers = sum(2 if letter == "*" else 1 for letter in self.config.layout)
        for name, part in self.named_modules():
            if isinstance(part, Linear | nn.Conv1d):
                fan_in = part.weight[0].numel()
                scale = writers if name.endswith(("out_proj", ".out", ".down")) else 1
                nn.init.normal_(part.weight, std=(fan_in * scale) ** -0.5, generator=generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, RMSNorm | GatedRMSNorm):
                nn.init.ones_(part.weight)
            elif isinstance(part, Mamba2):
                _initialise_scan(part, generator)
        nn.init.normal_(
            self.tokens.weight, std=0.02 if self.config.head == "tied" else 1.0, generator=generator
        )

    def _cut(self, batch: Packed) -> Cut:
        device = batch.ids.device
        alone = (
            256 if device.type == "cpu" else batch.max_seqlen + 1
        )  # a GPU wants few steps, a CPU no copies
        cut = pieces(batch.lengths, at_once(device), self.chunk_size, alone)
        return tuple(replace(piece, chunks=piece.chunks.to(device)) for piece in cut)


def at_once(device: torch.device) -> int:
    """Tokens that go through a block together: as many as a cache holds, or as fill a GPU."""
    return 1_024 if device.type == "cpu" else 65_536


@torch.no_grad()
def _initialise_scan(mixer: Mamba2, generator: torch.Generator) -> None:
    nn.init.ones_(mixer.D)
    nn.init.uniform_(mixer.A_log, 1, 16, generator=generator).log_()
    step = torch.empty_like(mixer.dt_bias)
    step = nn.init.uniform_(step, math.log(0.001), math.log(0.1), generator=generator).exp().clamp(min=1e-4)
    mixer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # its softplus is the step


def _ends(x: Tensor, cu_seqlens: Tensor, count: int) -> Tensor:
    """(n, count, c) the last rows of each sequence, zeros in front where it has fewer."""
    rows = cu_seqlens[1:, None].long() - count + torch.arange(count, device=x.device)
    before = rows < cu_seqlens[:-1, None]
    return x[rows.clamp(min=0)].masked_fill(before[..., None], 0)


def _draw(
    logits: Tensor, generator: torch.Generator, temperature: float, top_k: int | None, allowed: Tensor | None
) -> Tensor:
    """(n, V) -> (n,) ids."""
    if allowed is not None:
        barred = torch.ones(logits.shape[-1], dtype=torch.bool).index_fill(0, allowed.cpu(), False)
        logits = logits.masked_fill(barred, -torch.inf)
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _all_stopped(drawn: list[Tensor], stop_id: int) -> bool:
    return bool((torch.stack(drawn) == stop_id).any(0).all())


def _before(ids: Tensor, stop_id: int | None) -> Tensor:
    stops = (ids == stop_id).nonzero()[:, 0] if stop_id is not None else ids[:0]
    return ids[: int(stops[0])] if len(stops) else ids

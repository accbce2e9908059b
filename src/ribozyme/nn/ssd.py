"""State-space duality, the scan of Mamba-2 (arXiv:2405.21060), over packed sequences.

T tokens end to end, H heads of P channels, G groups of heads that share B and C, N numbers of state:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t        S (H, P, N), 0 before a sequence

`ssd_reference` is this recurrence. `ssd` cuts each sequence into chunks of Q tokens, counted from its own
start, and turns the recurrence into matrix products. With s the running sum of dt A inside a chunk:

    y_i = sum_{j<=i} (C_i . B_j) exp(s_i - s_j) dt_j x_j  +  exp(s_i) C_i . S      S: state before the chunk
    S'  = exp(s_Q) S + sum_j exp(s_Q - s_j) dt_j x_j B_j^T                         S': state after it

For one head the decay exp(s_i - s_j) is a full matrix. Taken apart, exp(s_i + r) exp(s_Q + r - s_j), it
leaves products that all heads of a group share: with r = -s_Q / 2, exact while both factors can be written
down. A head that forgets too fast for it in a chunk (|s_Q| > 120) gets its own matrix there instead, r = 60,
and S' = exp(-r) (exp(-r) S + sum_j exp(s_Q + r - s_j) dt_j x_j B_j^T), which is within exp(-120) S.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ribozyme.nn.norm import at_least_float32
from ribozyme.packing import bounds, cumulative

Array = npt.NDArray[np.int64]

TRITON = False
"""Whether `ssd` takes the kernel of `ssd_triton` where it can: on CUDA, without gradients. Off: Triton's
interpreter has run it, no GPU yet."""
SEPARABLE = 120.0  # exp(60) = 1e26: float32 can hold sums of such terms, and one part in 1e26 still


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    cu_seqlens: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token; shapes as in `ssd`."""
    heads, dim = x.shape[1:]
    B, C = (m.repeat_interleave(heads // m.shape[1], dim=1) for m in (B, C))
    if state is None:
        state = x.new_zeros(len(cu_seqlens) - 1, heads, dim, B.shape[-1])
    rows, last = [], []
    for (start, end), S in zip(bounds(cu_seqlens), state):
        for t in range(start, end):
            decay = torch.exp(dt[t] * A)
            S = decay[:, None, None] * S + torch.einsum("h,hp,hn->hpn", dt[t], x[t], B[t])
            rows.append(torch.einsum("hpn,hn->hp", S, C[t]))
        last.append(S)
    return torch.stack(rows), torch.stack(last)


@dataclass(frozen=True, slots=True)
class Block:
    """R chunks of Q tokens that are computed together, chunk number by chunk number.

    shape : (R, Q)
    tokens : the R Q tokens, a slice where they stand end to end; past the end of a sequence its last again
    padding : (R, Q, 1) True there, or None if there is no such place
    steps : how many of the R chunks have the same number; never rises, the sequences keep their order
    """

    shape: tuple[int, int]
    tokens: Tensor | slice
    padding: Tensor | None
    steps: tuple[int, ...]

    @classmethod
    def of(cls, starts: Array, members: Array, size: int) -> "Block":
        """All chunks of the sequences `members`, longest first, in a batch with these `starts`."""
        lengths = starts[members + 1] - starts[members]
        size = int(min(size, -(-lengths[0] // 8) * 8))  # a lone chunk needs no more room than its tokens
        steps = [int((lengths > first).sum()) for first in range(0, int(lengths[0]), size)]
        number = np.repeat(np.arange(len(steps)), steps)
        member = np.concatenate([np.arange(count) for count in steps])
        end = starts[members + 1][member][:, None]
        tokens = (starts[members][member] + number * size)[:, None] + np.arange(size)
        padding = tokens >= end
        return cls(
            shape=tokens.shape,
            tokens=torch.from_numpy(np.minimum(tokens, end - 1).ravel()),
            padding=torch.from_numpy(padding)[..., None] if padding.any() else None,
            steps=tuple(steps),
        )

    @classmethod
    def alone(cls, start: int, rows: int, size: int) -> "Block":
        """Chunks of one sequence, from token `start` on."""
        tokens = slice(start, start + rows * size)
        return cls((rows, size), tokens, None, (1,) * rows)

    def to(self, device: torch.device) -> "Block":
        """The same block on another device."""
        return replace(
            self,
            tokens=self.tokens if isinstance(self.tokens, slice) else self.tokens.to(device),
            padding=None if self.padding is None else self.padding.to(device),
        )

    def read(self, rows: Tensor) -> Tensor:
        """(T, ...) -> (R, Q, ...)."""
        own = rows[self.tokens] if isinstance(self.tokens, slice) else rows.index_select(0, self.tokens)
        return own.unflatten(0, self.shape)


@dataclass(frozen=True, slots=True)
class Chunks:
    """How sequences are cut for `ssd`; made once for all layers, from what is known without the device.

    The cuts of a sequence depend on its length alone. A long one is read where it stands, chunk after
    chunk, without any padding. Shorter ones run together, longest first, so that the carry runs over all
    of them at once.

    groups : sequences (by number) that run together, with their blocks in order of time
    places : (T,) where the row of each token comes out, counted over all blocks; None if in place
    """

    cu_seqlens: Tensor
    groups: tuple[tuple[Tensor, tuple[Block, ...]], ...]
    places: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int], size: int = 64, alone: int = 256) -> "Chunks":
        """Cut into chunks of `size` tokens; sequences of `alone` tokens or more run by themselves."""
        cu_seqlens, sizes = cumulative(lengths), np.asarray(lengths)
        starts = cu_seqlens.numpy().astype(np.int64)
        groups = [
            (torch.tensor([k]), _alone(int(starts[k]), int(sizes[k]), size))
            for k in np.flatnonzero(sizes >= alone)
        ]
        shorter = np.flatnonzero(sizes < alone)
        if len(shorter):
            longest_first = shorter[np.argsort(-sizes[shorter], kind="stable")]
            groups.append((torch.from_numpy(longest_first), (Block.of(starts, longest_first, size),)))
        return cls(cu_seqlens, tuple(groups), _places([block for _, blocks in groups for block in blocks]))

    def to(self, device: torch.device) -> "Chunks":
        """The same cuts on another device."""
        groups = (
            (members.to(device), tuple(b.to(device) for b in blocks)) for members, blocks in self.groups
        )
        places = None if self.places is None else self.places.to(device)
        return Chunks(self.cu_seqlens.to(device), tuple(groups), places)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that a block of the network works on together: some whole sequences, or a part of a long one.

    begins, ends : whether no piece before, or after, holds a part of the same sequence
    """

    tokens: slice
    chunks: Chunks
    begins: bool
    ends: bool


def pieces(lengths: Sequence[int], most: int, size: int = 64, alone: int = 256) -> Iterator[Piece]:
    """Cut a batch into pieces of about `most` tokens; a part of a sequence is a number of whole chunks.

    Few enough tokens stay in a cache from one operation to the next. Which parts a sequence has depends on
    its length alone.
    """
    start = 0
    for held in _held(lengths, most):
        parts = [held] if len(held) > 1 else [[part] for part in _parts(held[0], most, size)]
        for k, part in enumerate(parts):
            tokens = slice(start, start := start + sum(part))
            yield Piece(tokens, Chunks.of(part, size, alone), k == 0, k == len(parts) - 1)


def _held(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Runs of sequences that hold no more than `most` tokens together, or one that holds more."""
    held, total = list[int](), 0
    for length in lengths:
        if held and total + length > most:
            yield held
            held, total = [], 0
        held.append(length)
        total += length
    yield held


def _parts(length: int, most: int, size: int) -> list[int]:
    """About length / most parts, as even as whole chunks can be."""
    chunks = -(-length // size)
    count = min(chunks, max(1, round(length / most)))
    return np.diff([*(size * (chunks * k // count) for k in range(count)), length]).tolist()


def _alone(start: int, length: int, size: int) -> tuple[Block, ...]:
    """The blocks of one sequence: whole chunks, and what is left."""
    whole, rest = divmod(length, size)
    blocks = [Block.alone(start, whole, size)] if whole else []
    return (*blocks, Block.alone(start + length - rest, 1, rest)) if rest else tuple(blocks)


def _places(blocks: list[Block]) -> Tensor | None:
    """Where each token first stands; its repeats, which fill the padding, come after it."""
    if all(isinstance(block.tokens, slice) for block in blocks):
        return None
    each = [
        np.arange(tokens.start, tokens.stop) if isinstance(tokens, slice) else tokens.numpy()
        for tokens in (block.tokens for block in blocks)
    ]
    return torch.from_numpy(np.unique(np.concatenate(each), return_index=True)[1])


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunks: Chunks,
    state: Tensor | None = None,
    *,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The scan in chunks.

    x : (T, H, P); dt : (T, H), not negative; A : (H,), negative
    B, C : (T, G, N); head h reads group h // (H / G)
    state : (n, H, P, N) of each sequence before its first token, else 0
    final : whether the last states are wanted; without them short sequences cost less

    Returns y (T, H, P), and the state of each sequence after its last token or None; float32 at least.
    """
    x, dt, A, B, C = (at_least_float32(one) for one in (x, dt, A, B, C))
    if TRITON and x.is_cuda and not torch.is_grad_enabled():
        from ribozyme.nn.ssd_triton import fits, ssd_triton

        if fits(x, B):
            return ssd_triton(x, dt, A, B, C, chunks.cu_seqlens, state, final=final)
    dim, groups = x.shape[2], B.shape[1]
    if state is not None:
        state = (
            state.to(x.dtype).unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)
        )  # (n, G, N, K P)
    rows, finals, order = [], list[Tensor | None](), []
    with torch.autocast(x.device.type, enabled=False):
        for members, blocks in chunks.groups:
            carried = None if state is None else state[members]
            for block in blocks:
                y, carried = _scan(x, dt, A, B, C, carried, block, final or block is not blocks[-1])
                rows.append(y)
            finals.append(carried)
            order.append(members)
    y = rows[0] if len(rows) == 1 else torch.cat(rows)
    if chunks.places is not None:
        y = y.index_select(0, chunks.places)
    if not final:
        return y, None
    last = torch.cat(finals)[torch.cat(order).argsort()]  # type: ignore[arg-type]
    return y, last.unflatten(3, (-1, dim)).permute(0, 1, 3, 4, 2).flatten(1, 2)


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, block: Block, go_on: bool
) -> tuple[Tensor, Tensor | None]:
    """One block of R chunks: y (R Q, H, P), and the states (m, G, N, K P) of its m sequences after it."""
    rows, (heads, dim), groups = block.shape[0], x.shape[1:], B.shape[1]
    x, dt, B, C = (block.read(one) for one in (x, dt, B, C))
    if block.padding is not None:
        dt = dt.masked_fill(block.padding, 0)  # no decay and no input: the state stays as it is
    B, C = (one.transpose(1, 2).flatten(0, 1) for one in (B, C))  # (R G, Q, N)
    s = (dt * A).double().cumsum(1)  # (R, Q, H); in float32 a difference of two sums would lose digits
    end = s[:, -1]
    fast = end < -SEPARABLE  # (R, H)

    r = (end / -2).clamp(max=SEPARABLE / 2)  # (R, H)
    of_y, of_u = (  # bounds for fast heads alone: tiny numbers cost much time
        one.clamp(min=-SEPARABLE / 2).exp().to(x.dtype)[..., None]
        for one in (s + r[:, None], end[:, None] + r[:, None] - s)
    )
    u = _by_group(x * (dt[..., None] * of_u), groups)  # (R G, Q, K P)
    factor = _per_channel(torch.exp(-r).to(x.dtype), groups, dim)
    state = None if state is None else state.flatten(0, 1)
    y, last = _carry(state, B, C, u, factor, [count * groups for count in block.steps], go_on)
    products = torch.bmm(C, B.mT).tril_()  # (R G, Q, Q), shared by the heads of a group
    chunk, head = fast.nonzero(as_tuple=True)
    from_before = _by_head(y, rows, dim)[chunk, :, head] if len(chunk) else None
    y = _by_head(y.baddbmm_(products, u), rows, dim)
    y = y.mul_(of_y)  # (R, Q, H, P)
    if from_before is not None:
        shared = products.unflatten(0, (rows, groups))[chunk, head // (heads // groups)]
        within = _within(shared, s[chunk, :, head], dt[chunk, :, head], x[chunk, :, head])
        y[chunk, :, head] = torch.addcmul(within, from_before, of_y[chunk, :, head])
    return y.flatten(0, 1), None if last is None else last.unflatten(0, (-1, groups))


def _within(products: Tensor, s: Tensor, dt: Tensor, x: Tensor) -> Tensor:
    """The part of y from the same chunk, (h, Q, P), with a full matrix of decays for each of h heads.

    products : (h, Q, Q); s, dt : (h, Q); x : (h, Q, P)
    """
    exponents = (s[:, :, None] - s[:, None, :]).to(x.dtype)
    decay = exponents.clamp(-SEPARABLE / 2, 0).exp()  # `products` is 0 where j > i
    return torch.bmm(products * decay, dt[..., None] * x)


def _carry(
    state: Tensor | None,
    B: Tensor,
    C: Tensor,
    u: Tensor,
    factor: Tensor,
    steps: Sequence[int],
    go_on: bool,
) -> tuple[Tensor, Tensor | None]:
    """C factor S, S the state before each of the R G chunks, and the last states, if there is to be one.

    S' = factor (factor S + B^T u), chunk after chunk, for all sequences at once; the shortest leave first.
    """
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_  # the gradient needs what is read
    read, ended = [], list[Tensor]()
    parts = zip(*(one.split(list(steps)) for one in (B, C, u, factor)))
    for step, (b, c, added, by) in enumerate(parts, 1):
        if state is None:
            read.append(torch.zeros_like(added))
        else:
            ended.insert(0, state[len(c) :])
            state = state[: len(c)] * by
            read.append(torch.bmm(c, state))
        if step == len(steps) and not go_on:
            return torch.cat(read), None
        state = torch.bmm(b.mT, added) if state is None else add(state, b.mT, added)
        state = state.mul_(by)
    assert state is not None
    return torch.cat(read), torch.cat([state, *ended])


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(R, Q, H, P) -> (R G, Q, K P), K heads a group."""
    return x.flatten(2).unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _by_head(x: Tensor, rows: int, dim: int) -> Tensor:
    """(R G, Q, K P) -> (R, Q, H, P)."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).unflatten(3, (-1, dim)).flatten(2, 3)


def _per_channel(x: Tensor, groups: int, dim: int) -> Tensor:
    """(R, H) -> (R G, 1, K P): the number of each head for all its channels."""
    return x[..., None].expand(*x.shape, dim).reshape(len(x) * groups, 1, -1)

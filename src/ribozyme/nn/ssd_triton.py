"""The scan of Mamba-2 as one kernel of Triton, for CUDA: `ssd` calls it, see `ribozyme.nn.ssd.TRITON`.

A program has one head of one sequence. It goes through the sequence chunk by chunk with the state in its
registers, so that neither states nor decays are ever written, and no sequence knows of another. The formulas
are those of `ribozyme.nn.ssd`, with the decay of each head as a matrix of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64
LEAST = 16
"""Numbers along each side of a product that a kernel can compute."""


def fits(x: Tensor, B: Tensor) -> bool:
    """Whether the kernel takes these: float32; channels and state are powers of two, from 16 on."""
    return x.dtype == torch.float32 and all(
        size >= LEAST and size & (size - 1) == 0 for size in (x.shape[2], B.shape[2])
    )


def ssd_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    cu_seqlens: Tensor,
    state: Tensor | None = None,
    *,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The same numbers as `ribozyme.nn.ssd.ssd`, shapes as there, without gradients; all are float32."""
    x, dt, A, B, C = (one.contiguous() for one in (x, dt, A, B, C))
    heads, dim, count, (_, groups, width) = x.shape[1], x.shape[2], len(cu_seqlens) - 1, B.shape
    y, last = torch.empty_like(x), x.new_empty(count, heads, dim, width) if final else None
    before = None if state is None else state.to(x.dtype).contiguous()
    _scan[(count, heads)](
        *(x, dt, A, B, C, cu_seqlens, before, y, last),
        *(heads, groups),
        P=dim,
        N=width,
        Q=CHUNK,
        BEFORE=before is not None,
        LAST=last is not None,
    )
    return y, last


@triton.jit
def _scan(
    x_at,
    dt_at,
    A_at,
    B_at,
    C_at,
    bounds_at,
    before_at,
    y_at,
    last_at,
    heads,
    groups,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    BEFORE: tl.constexpr,
    LAST: tl.constexpr,
):
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start, end = tl.load(bounds_at + sequence), tl.load(bounds_at + sequence + 1)
    group = head // (heads // groups)
    a = tl.load(A_at + head)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    of_state = ((sequence * heads + head) * P + p[None, :]) * N + n[:, None]  # (N, P)
    S = tl.zeros((N, P), dtype=tl.float32)
    if BEFORE:
        S = tl.load(before_at + of_state)
    for first in range(start, end, Q):
        t = first + q
        there = t < end
        dt = tl.load(dt_at + t * heads + head, mask=there, other=0.0)
        row = there[:, None]
        u = dt[:, None] * tl.load(x_at + ((t * heads + head) * P)[:, None] + p[None, :], mask=row, other=0.0)
        of_group = ((t * groups + group) * N)[:, None] + n[None, :]
        B = tl.load(B_at + of_group, mask=row, other=0.0)
        C = tl.load(C_at + of_group, mask=row, other=0.0)
        step = (dt * a).to(tl.float64)  # in float32 a difference of two sums would lose digits
        s, total = tl.cumsum(step, 0), tl.sum(step, 0)
        gap = tl.where(q[:, None] >= q[None, :], s[:, None] - s[None, :], -float("inf"))
        within = tl.dot(C, tl.trans(B), input_precision="ieee") * tl.exp(gap.to(tl.float32))
        y = tl.dot(within, u, input_precision="ieee")
        y += tl.exp(s.to(tl.float32))[:, None] * tl.dot(C, S, input_precision="ieee")
        tl.store(y_at + ((t * heads + head) * P)[:, None] + p[None, :], y, mask=row)
        left = tl.exp((total - s).to(tl.float32))[:, None] * u
        S = tl.exp(total.to(tl.float32)) * S + tl.dot(tl.trans(B), left, input_precision="ieee")
    if LAST:
        tl.store(last_at + of_state, S)

"""Attention over packed sequences. T tokens end to end, H heads, G key/value heads, e numbers a head."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

VARLEN = False
"""Whether `attention` takes `attention_varlen` where it can. Off: that has not been run on a GPU yet."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(e)) v inside each sequence.

    q : (m, H, e); k, v : (T, G, e) with H a multiple of G: query head h reads key head h // (H / G).
    rows : (m,) int64, the tokens that `q` is of, in any order; without it all of them, m = T.
    dropout : the share of the probabilities that is zeroed, in training.
    Returns (m, H, e). A token never sees another sequence. On a CPU, half precision with gradients is
    computed in float32: the kernel's gradient takes up to four times as long in bfloat16.
    """
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            y = attention(
                q.float(), k.float(), v.float(), cu_seqlens, rows=rows, causal=causal, dropout=dropout
            )
        return y.to(q.dtype)
    if rows is not None:
        rows, order = rows.sort()
        return _attention(q[order], k, v, cu_seqlens, rows, causal, dropout)[order.argsort()]
    return _attention(q, k, v, cu_seqlens, None, causal, dropout)


def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_queries: Tensor, cu_seqlens: Tensor, *, causal: bool = False
) -> Tensor:
    """The same in one call, by torch's flash kernel of CUDA for half precision; see `VARLEN`.

    cu_queries : (n + 1,) where the queries of each sequence begin; as many as keys if `causal`
    """
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_queries.int(),
        cu_seqlens.int(),
        int(cu_queries.diff().max()),
        int(cu_seqlens.diff().max()),
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
        num_splits=1,  # the answer for a sequence does not depend on its batch
    )
    assert isinstance(out, Tensor)
    return out


def _attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, rows: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """`attention` of rows in rising order, one sequence after the other."""
    cu_queries = cu_seqlens if rows is None else torch.searchsorted(rows, cu_seqlens.long())
    if VARLEN and q.is_cuda and q.dtype.itemsize == 2 and not dropout and not (causal and rows is not None):
        return attention_varlen(q, k, v, cu_queries, cu_seqlens, causal=causal)
    width, grouped = q.shape[-1], q.shape[1] != k.shape[1]
    if q.device.type == "cpu" and (room := -width % 16):
        q, k, v = (F.pad(x, (0, room)) for x in (q, k, v))  # 8 wide, the kernel takes 1.6 times as long
    masked = causal and rows is not None
    sizes = list(zip(cu_queries.diff().tolist(), cu_seqlens.diff().tolist(), strict=True))
    runs = [(*size, 1) for size in sizes] if masked or dropout else list(_runs(sizes))
    asked = q.split([queries * count for queries, _, count in runs])
    keys, values = (x.split([seen * count for _, seen, count in runs]) for x in (k, v))
    parts = [q[:0]]
    start = first = 0
    for (queries, length, count), *one in zip(runs, asked, keys, values):
        if queries:
            seen = None
            if masked:
                assert rows is not None
                places = torch.arange(start, start + length, device=q.device)
                seen = places <= rows[first : first + queries, None]
            qh, kh, vh = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in one)
            out = F.scaled_dot_product_attention(
                qh,
                kh,
                vh,
                attn_mask=seen,
                dropout_p=dropout,
                is_causal=causal and seen is None,
                enable_gqa=grouped,
                scale=width**-0.5,
            )
            parts.append(out.transpose(1, 2).flatten(0, 1))
        start, first = start + length * count, first + queries * count
    return torch.cat(parts)[..., :width]


def _runs(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Sequences of one size beside each other go through the kernel together, without other results."""
    for (queries, length), some in groupby(sizes):
        yield queries, length, len(list(some))


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, causal: bool = False
) -> Tensor:
    """The same from its definition, any dtype, every score in memory."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    sequence = torch.repeat_interleave(cu_seqlens.diff().long())
    seen = sequence[:, None] == sequence[None, :]
    if causal:
        seen = seen.tril()
    scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hij,jhe->ihe", scores.masked_fill(~seen, -math.inf).softmax(-1), v)

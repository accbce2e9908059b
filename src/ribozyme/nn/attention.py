"""Attention over packed sequences. T tokens end to end, H heads, G key/value heads, e numbers a head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.packing import bounds

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
    Returns (m, H, e). A token never sees another sequence.
    """
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
    parts = [q[:0]]
    for (first, last), (start, end) in zip(bounds(cu_queries), bounds(cu_seqlens), strict=True):
        if first == last:
            continue
        seen = None
        if causal and rows is not None:
            seen = torch.arange(start, end, device=q.device) <= rows[first:last, None]
        qh, kh, vh = (x.transpose(0, 1)[None] for x in (q[first:last], k[start:end], v[start:end]))
        one = F.scaled_dot_product_attention(
            qh,
            kh,
            vh,
            attn_mask=seen,
            dropout_p=dropout,
            is_causal=causal and seen is None,
            enable_gqa=grouped,
            scale=width**-0.5,
        )
        parts.append(one[0].transpose(0, 1))
    return torch.cat(parts)[..., :width]


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

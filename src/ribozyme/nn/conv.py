"""Short causal convolution of each channel with itself, over packed sequences.

T tokens end to end, c channels, K taps; the last tap meets the token itself:
y[t] = bias + sum_k weight[:, K-1-k] x[t-k], over the k for which t-k lies in the same sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.packing import bounds


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, cu_seqlens: Tensor, *, silu: bool = False) -> Tensor:
    """(T, c), (c, K), (c,) -> (T, c), followed by SiLU where asked for."""
    convolve = _CausalConv.apply if torch.is_grad_enabled() else _CausalConv.forward
    y: Tensor = convolve(x, weight, bias, cu_seqlens)
    return F.silu(y, inplace=not torch.is_grad_enabled()) if silu else y


def causal_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor, cu_seqlens: Tensor, *, silu: bool = False
) -> Tensor:
    """The same, one sequence after the other."""
    channels, taps = weight.shape
    parts = []
    for start, end in bounds(cu_seqlens):
        padded = F.pad(x[start:end].T[None], (taps - 1, 0))
        parts.append(F.conv1d(padded, weight[:, None], bias, groups=channels)[0].T)
    y = torch.cat(parts)
    return F.silu(y) if silu else y


class _CausalConv(torch.autograd.Function):
    """K shifted multiply-adds over all tokens at once, then the few rows near a sequence's edge anew."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, cu_seqlens: Tensor) -> Tensor:
        taps = weight.T.flip(0).contiguous()  # (K, c), taps[k] meets x[t-k]
        y = torch.addcmul(bias, x, taps[0])
        for k in range(1, min(len(taps), len(x))):
            y[k:].addcmul_(x[:-k], taps[k])
        if len(cu_seqlens) > 2:  # before the first sequence there is nothing to take back
            rows, first, last = _edges(cu_seqlens, len(taps) - 1, at_start=True)
            y[rows] = bias + _windows(x, taps, rows, -1, first, last)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, cu_seqlens = inputs
        ctx.save_for_backward(x, weight, cu_seqlens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        (dy,) = grads
        x, weight, cu_seqlens = ctx.saved_tensors
        taps = weight.T.flip(0).contiguous()
        dx = dy * taps[0]
        dtaps = [(dy * x).sum(0)]
        own, starts = dy.clone(), cu_seqlens[:-1].long()
        for k in range(1, len(taps)):
            dx[:-k].addcmul_(dy[k:], taps[k])
            own[(starts + k - 1).clamp(max=len(x) - 1)] = 0  # tokens t and t-k are of two sequences
            dtaps.append((own[k:] * x[:-k]).sum(0))
        rows, first, last = _edges(cu_seqlens, len(taps) - 1, at_start=False)
        dx[rows] = _windows(dy, taps, rows, 1, first, last)
        return dx, torch.stack(dtaps).flip(0).T, dy.sum(0), None


def _edges(cu_seqlens: Tensor, reach: int, *, at_start: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows within `reach` of the start (or the end) of a sequence, with the first and last row of theirs.

    A row of a very short sequence may come twice.
    """
    starts, offsets = cu_seqlens.long(), torch.arange(reach, device=cu_seqlens.device)
    rows = starts[:-1, None] + offsets if at_start else starts[1:, None] - 1 - offsets
    rows = torch.minimum(rows.flatten().clamp(min=0), starts[-1] - 1)
    sequence = torch.searchsorted(starts, rows, right=True) - 1
    return rows, starts[sequence], starts[sequence + 1] - 1


def _windows(x: Tensor, taps: Tensor, rows: Tensor, sign: int, first: Tensor, last: Tensor) -> Tensor:
    """sum_k taps[k] x[row + sign k] over the k that stay between `first` and `last`, for each row."""
    source = rows[:, None] + sign * torch.arange(len(taps), device=rows.device)
    inside = (source >= first[:, None]) & (source <= last[:, None])
    values = x[source.clamp(0, len(x) - 1)].masked_fill(~inside[..., None], 0)
    return (values * taps).sum(1)

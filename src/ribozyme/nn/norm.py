"""Root-mean-square norms. T tokens end to end, d width; the arithmetic is float32 at least."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (T, d) -> (T, d)
        x = at_least_float32(x)
        return _rms_norm(x, self.weight.to(x.dtype), self.eps)


class GatedRMSNorm(nn.Module):
    """The norm at the end of a Mamba-2 mixer: gate first, then norm in each group of channels."""

    def __init__(self, dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # (T, d), (T, d) -> (T, d)
        y = F.silu(at_least_float32(z)).mul_(at_least_float32(y))
        weight = self.weight.to(y.dtype)
        if self.groups == 1:
            return _rms_norm(y, weight, self.eps)
        y, weight = (one.unflatten(-1, (self.groups, -1)) for one in (y, weight))
        return _rms_norm(y, weight, self.eps).flatten(-2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., d), (d,) or (G, d) -> (..., d). On a CPU `F.rms_norm` passes over the rows twice as often."""
    if x.device.type == "cpu":
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.rsqrt(size.square() / x.shape[-1] + eps)).mul_(weight)
    if weight.dim() == 1:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays; shorter types become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

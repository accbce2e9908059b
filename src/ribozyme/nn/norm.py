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
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class GatedRMSNorm(nn.Module):
    """The norm at the end of a Mamba-2 mixer: gate first, then norm in each group of channels."""

    def __init__(self, dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.groups = groups
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # (T, d), (T, d) -> (T, d)
        y = at_least_float32(y) * F.silu(at_least_float32(z))
        y = y.unflatten(-1, (self.groups, -1))
        weight = self.weight.to(y.dtype).view(self.groups, -1)
        if self.groups == 1:
            return F.rms_norm(y, y.shape[-1:], weight[0], self.eps).flatten(-2)
        return (F.rms_norm(y, y.shape[-1:], None, self.eps) * weight).flatten(-2)


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays; shorter types become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))

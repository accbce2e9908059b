"""Matrix multiplies in the type of their weights, everything else in the type of the stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` that casts its input to the type of its weight: a float32 stream, bfloat16 products."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(input.device.type):  # which casts both by itself
            input = input.to(self.weight.dtype)
        return F.linear(input, self.weight, self.bias)


def set_matmul_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of every `Linear` of `module` in `dtype`; norms and tables stay as they are."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.to(dtype)

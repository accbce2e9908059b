"""What the tests of several families watch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """The types that tensors are cast to inside a `with`, in order, and the types attention works in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []
        self.attention: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.seen.append(kwargs["dtype"])
        elif "scaled_dot_product" in str(func):
            self.attention |= {x.dtype for x in args[:3]}
        return func(*args, **(kwargs or {}))


@pytest.fixture
def casts() -> Casts:
    return Casts()

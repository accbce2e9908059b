"""What sits on a network when it is fine-tuned: rows to one vector an input, one vector to outputs.

T tokens of all inputs end to end, n inputs, d width of the network, k outputs.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ribozyme.errors import ConfigError
from ribozyme.packing import POOLINGS, Packed, pool

HEADS = ("linear", "mlp")


class Pooler(nn.Module):
    """(T, d) rows to one vector an input, without its special tokens.

    pooling : `mean`, `max`, `first`, `last` over the letters (genes); `cls`, the row of the first special
        token; or several joined by `+`, such as `mean+last`
    dim : d
    before, after : special tokens in front of and behind an input
    """

    def __init__(self, pooling: str, dim: int, before: int, after: int) -> None:
        super().__init__()
        self.parts = tuple(pooling.split("+"))
        self.before, self.after = before, after
        self.width = dim * len(self.parts)
        known = {*POOLINGS, "cls"} - {"none"} if before else {*POOLINGS} - {"none"}
        if wrong := [part for part in self.parts if part not in known]:
            raise ConfigError(
                f"pooling {wrong[0]!r} does not exist for this model",
                hint=f"{', '.join(sorted(known))}, or several joined by +",
            )

    def forward(self, rows: Tensor, batch: Packed) -> Tensor:  # (T, d) -> (n, width)
        letters = [length - self.before - self.after for length in batch.lengths]
        inner = torch.cat([one[self.before : len(one) - self.after] for one in batch.split(rows)])
        first = rows[batch.cu_seqlens[:-1].long()].float() if "cls" in self.parts else rows
        return torch.cat([first if how == "cls" else pool(inner, letters, how) for how in self.parts], dim=1)  # type: ignore[arg-type]  # checked above


class Network(nn.Module):
    """A trained network with a fresh head: (T tokens) to (n, k)."""

    def __init__(self, backbone: nn.Module, pooler: Pooler, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.pooler, self.head = backbone, pooler, head
        self.trained_layers: int | None = 0

    def pooled(self, batch: Packed) -> Tensor:
        """(n, width) vectors that the head reads."""
        return self.pooler(self.backbone.encode(batch), batch)  # type: ignore[operator]

    def forward(self, batch: Packed) -> Tensor:
        return self.head(self.pooled(batch))

    def train_layers(self, count: int | None) -> None:
        """Let gradients into the head and the last `count` layers with the final norm (None: everything).

        Raises
        ------
        ConfigError : there are not so many layers.
        """
        deepest = self.depth
        if count is not None and not 0 <= count <= deepest:
            raise ConfigError(
                f"layers {count} cannot be trained", hint=f"0 (the head alone) to {deepest}, or None for all"
            )
        self.trained_layers = count
        chosen = [f"layers.{k}." for k in range(deepest - (count or 0), deepest)] + ["norm."] * bool(count)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(count is None or name.startswith(tuple(chosen)))
        self.head.requires_grad_(True)

    @property
    def depth(self) -> int:
        """Layers of the backbone."""
        return len(self.backbone.layers)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "Network":
        """As of any module, but layers that are not trained stay as at inference, without dropout."""
        super().train(mode)
        if mode and self.trained_layers is not None:
            self.backbone.eval()
            for layer in list(self.backbone.layers)[self.depth - self.trained_layers :]:  # type: ignore[arg-type]
                layer.train()
        return self


def make_head(
    kind: str, width: int, outputs: int, *, hidden: int | None, dropout: float, generator: torch.Generator
) -> nn.Sequential:
    """`linear`: dropout, W x + b; `mlp`: dropout, W1 x + b1, GELU, dropout, W2 x + b2."""
    if kind not in HEADS:
        raise ConfigError(f"head {kind!r} does not exist", hint=f"one of {', '.join(HEADS)}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout {dropout} must be from 0 to below 1")
    sizes = [width, outputs] if kind == "linear" else [width, hidden or width, outputs]
    layers: list[nn.Module] = []
    for rows_in, rows_out in pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, rows_in, rows_out)
        bound = rows_in**-0.5  # what nn.Linear draws from, here from a generator of our own
        for tensor in linear.parameters():
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        layers += [nn.Dropout(dropout), linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])

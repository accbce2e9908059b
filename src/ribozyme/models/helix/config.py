"""The sizes of a Helix-mRNA network."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ribozyme.errors import ConfigError

Head = Literal["own", "tied", "none"]
HYBRID = "M+M*M+M+"

_LARGEST = {
    "dim": 16_384,
    "expand": 16,
    "heads": 4_096,
    "head_dim": 1_024,
    "state": 1_024,
    "groups": 256,
    "conv_kernel": 64,
    "attention_heads": 1_024,
    "kv_heads": 1_024,
    "mlp_dim": 131_072,
    "vocab_size": 65_536,
}
MOST_LAYERS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A stack of Mamba-2, MLP and attention blocks; the defaults are the published hybrid.

    layout : a letter a block: `M` Mamba-2, `+` MLP, `*` attention followed by its own MLP
    expand, heads, head_dim, state, groups, conv_kernel : Mamba-2, where expand x dim = heads x head_dim
    attention_heads, kv_heads : query heads, and the fewer key and value heads that they share
    mlp_dim : inner width of the MLPs, 0 for 4 x dim
    bias, conv_bias : whether the projections and the convolution of Mamba-2 add one
    time_step_limit : bounds of the step size of Mamba-2
    head : logits from a matrix of its `own`, from the `tied` embedding table, or `none`
    """

    layout: str = HYBRID
    dim: int = 256
    expand: int = 2
    heads: int = 16
    head_dim: int = 32
    state: int = 128
    groups: int = 1
    conv_kernel: int = 4
    attention_heads: int = 32
    kv_heads: int = 8
    mlp_dim: int = 0
    vocab_size: int = 14
    eps: float = 1e-5
    bias: bool = False
    conv_bias: bool = True
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    head: Head = "own"

    def __post_init__(self) -> None:
        self._check_types()
        if self.heads * self.head_dim != self.inner:
            raise ConfigError(
                f"heads {self.heads} x head_dim {self.head_dim} is not expand {self.expand} x dim {self.dim}"
            )
        if self.heads % self.groups:
            raise ConfigError(f"heads {self.heads} is not a multiple of groups {self.groups}")
        if "*" in self.layout and (self.dim % self.attention_heads or self.attention_heads % self.kv_heads):
            raise ConfigError(
                f"dim {self.dim}, attention_heads {self.attention_heads} and kv_heads {self.kv_heads} "
                "are not multiples of one another"
            )

    def _check_types(self) -> None:
        if type(self.layout) is not str or not self.layout or set(self.layout) - set("M+*"):
            raise ConfigError(f"layout {self.layout!r} is not a string of M, + and *")
        if len(self.layout) > MOST_LAYERS:
            raise ConfigError(f"layout has {len(self.layout):,} blocks, more than {MOST_LAYERS}")
        for name, most in _LARGEST.items():
            value, least = getattr(self, name), 0 if name == "mlp_dim" else 1
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} {value!r} is not a whole number from {least} to {most:,}")
        if type(self.eps) not in (int, float) or not 0 < self.eps < 1:
            raise ConfigError(f"eps {self.eps!r} is not a number between 0 and 1")
        for name in ("bias", "conv_bias"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} {getattr(self, name)!r} is neither true nor false")
        limit = self.time_step_limit
        if type(limit) is not tuple or len(limit) != 2 or not all(type(x) in (int, float) for x in limit):
            raise ConfigError(f"time_step_limit {limit!r} is not a pair of numbers")
        if not 0 <= limit[0] < limit[1]:
            raise ConfigError(f"time_step_limit {limit!r} is not a range of positive numbers")
        if self.head not in ("own", "tied", "none"):
            raise ConfigError(f"head {self.head!r} does not exist", hint="own, tied or none")

    @property
    def layers(self) -> int:
        """Blocks, one a letter of the layout."""
        return len(self.layout)

    @property
    def inner(self) -> int:
        """Width inside a Mamba-2 block."""
        return self.expand * self.dim

    @property
    def conv_dim(self) -> int:
        """Channels of its convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def ffn_dim(self) -> int:
        """Inner width of the MLPs."""
        return self.mlp_dim or 4 * self.dim

    @property
    def causal(self) -> bool:
        """A letter sees only those before it."""
        return True

    @property
    def max_letters(self) -> None:
        """There is no longest sequence."""
        return None

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """From a `config.json` of ours.

        Raises
        ------
        ConfigError : a setting that is unknown or makes no sense.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown[:6])}")
        limit = settings.get("time_step_limit", [0.0, None])
        return cls(**{**settings, "time_step_limit": time_step_limit(limit)})

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads: strict JSON, with null for a limit that is infinite."""
        low, high = self.time_step_limit
        return {**asdict(self), "time_step_limit": [low, None if math.isinf(high) else high]}


def time_step_limit(pair: Any) -> tuple[float, float]:
    """The two bounds, with infinity in any of the ways in which JSON files write it."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ConfigError(f"time_step_limit {pair!r} is not a pair of numbers")
    bounds = [one.get("__float__") if isinstance(one, dict) else one for one in pair]
    low, high = (math.inf if one is None or one in ("Infinity", "inf") else one for one in bounds)
    return low, high

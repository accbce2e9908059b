"""What the engine asks of any family of models: its readers and writers, and which of its layers is meant."""

from importlib import import_module
from typing import Any

from torch import nn

from ribozyme.errors import ConfigError


def formats(family: str) -> Any:
    """The readers and writers of a family, imported when asked for."""
    return import_module(f"ribozyme.models.{family}.formats")


def formats_of(module: nn.Module) -> Any:
    """The readers and writers of the family that a network belongs to."""
    return import_module(type(module).__module__.rpartition(".")[0] + ".formats")


def depth(layer: int, deepest: int) -> int:
    """A layer counted from the input, 0 to `deepest`, where -1 means the last.

    Raises
    ------
    ConfigError : there is no such layer.
    """
    if not -deepest - 1 <= layer <= deepest:
        raise ConfigError(
            f"layer {layer} does not exist", hint=f"0 (input embedding) to {deepest}, or -1 for the last"
        )
    return layer if layer >= 0 else deepest + 1 + layer

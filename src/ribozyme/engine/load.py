"""`load`: a name, folder, file or hub id becomes a model that is ready to use."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from ribozyme import registry
from ribozyme.checkpoint import Checkpoint, open_checkpoint
from ribozyme.engine.device import choose_device, choose_dtype, keep_freed_memory
from ribozyme.engine.family import formats
from ribozyme.errors import CheckpointError
from ribozyme.hub import resolve
from ribozyme.nn.linear import set_matmul_dtype

CLASSES = {
    "sequences": ("ribozyme.engine.sequences", "SequenceModel"),
    "cells": ("ribozyme.engine.cells", "CellModel"),
}
"""What a user holds, by what it reads: a module, imported when asked for, and the class in it."""
CACHE_LINE = 64
"""Bytes."""


def load(name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Any:
    """The model of that name, folder, file or hub id; arguments and errors as in `ribozyme.load`."""
    where = choose_device(device)
    keep_freed_memory()
    resolved = resolve(str(name))
    checkpoint = open_checkpoint(resolved.path)
    family = resolved.model.family if resolved.model else recognise(checkpoint)
    module, tokens = formats(family).load(checkpoint)
    module.float()  # weights published in two bytes widen exactly
    align(module)
    float32_on_cpu = getattr(module, "float32_on_cpu", False)
    set_matmul_dtype(module, choose_dtype(dtype, where, float32_on_cpu=float32_on_cpu))
    home, kind = CLASSES[registry.FAMILIES[family]]
    return getattr(import_module(home), kind)(module, tokens, where, resolved.model)


def align(module: nn.Module) -> None:
    """Have all weights begin where a cache line does, wherever they begin in a mapped file.

    Matrix products go through them in another order otherwise, so the last digit would depend on the file.
    """
    for parameter in module.parameters():
        if parameter.data_ptr() % CACHE_LINE:
            parameter.data = parameter.data.clone()


def recognise(checkpoint: Checkpoint) -> str:
    """The family whose layout this is."""
    for family in registry.FAMILIES:
        if formats(family).recognises(checkpoint):
            return family
    some = ", ".join(list(checkpoint.tensors)[:4])
    raise CheckpointError(
        f"{checkpoint.path}: its tensors ({some} ...) are of no model known here",
        hint=f"layouts of {', '.join(registry.FAMILIES)} are read; see `ribozyme models`",
    )

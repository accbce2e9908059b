"""`load`: a name, folder, file or hub id becomes a model that is ready to use."""

from pathlib import Path
from typing import Any

from ribozyme import registry
from ribozyme.checkpoint import Checkpoint, open_checkpoint
from ribozyme.engine.device import choose_device, choose_dtype
from ribozyme.engine.family import formats
from ribozyme.errors import CheckpointError
from ribozyme.hub import resolve
from ribozyme.nn.linear import set_matmul_dtype


def load(name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Any:
    """Load a model by name, from a local folder or file, or from a hub id `org/name[@revision]`.

    Parameters
    ----------
    device : `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ...
    dtype : the type of matrix products: `auto`, `float32` (exact) or `bfloat16`

    Returns
    -------
    a `SequenceModel` (Helix-mRNA, RNA-FM) or a `CellModel` (scGPT).

    Raises
    ------
    HubError : the name is unknown, or its files cannot be had.
    CheckpointError : the files are damaged, incomplete, or of no model known here.
    DeviceError : a device that this machine lacks.
    """
    where = choose_device(device)
    resolved = resolve(str(name))
    checkpoint = open_checkpoint(resolved.path)
    family = resolved.model.family if resolved.model else recognise(checkpoint)
    module, tokens = formats(family).load(checkpoint)
    module.float()  # weights published in two bytes widen exactly
    float32_on_cpu = getattr(module, "float32_on_cpu", False)
    set_matmul_dtype(module, choose_dtype(dtype, where, float32_on_cpu=float32_on_cpu))
    if registry.FAMILIES[family] == "cells":
        from ribozyme.engine.cells import CellModel

        return CellModel(module, tokens, where, resolved.model)
    from ribozyme.engine.sequences import SequenceModel

    return SequenceModel(module, tokens, where, resolved.model)


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

"""LoRA by PEFT: a linear layer learns a product of two thin matrices beside its weights (arXiv:2106.09685).

The adapters live only while a training runs; then they are added to the weights, so that a tuned network is
as fast, and is saved, as any other.
"""

from typing import Any

import torch
from torch import nn

from ribozyme.errors import ConfigError, MissingExtraError


def add_lora(
    backbone: nn.Module, rank: int, generator: torch.Generator, *, alpha: float | None = None
) -> int:
    """Put adapters beside every linear layer of `backbone.layers`; how many there are then.

    At first they change nothing. Nothing but them is trained, unless gradients are let in again.

    alpha : the product counts `alpha` / `rank`; by default twice

    Raises
    ------
    MissingExtraError : PEFT is not installed.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank {rank} must be at least 1")
    peft = _peft()
    targets = [
        name
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("layers.")
    ]
    if not targets:
        raise ConfigError("the network has no linear layers for LoRA")
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws from torch's global generator; ours draw below
        peft.inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(drawn)
    return len(targets)


def merge_lora(backbone: nn.Module) -> None:
    """Add the products to the weights and take the adapters out; a network without any is left as it is."""
    for name, part in list(backbone.named_modules()):
        if hasattr(part, "lora_A") and hasattr(part, "get_base_layer"):
            part.merge()
            parent, _, own = name.rpartition(".")
            setattr(backbone.get_submodule(parent), own, part.get_base_layer())


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return ".lora_" in name


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "lora", "LoRA") from error
    return peft

"""A network under training and its optimizer as tensors with names, in a file that notices damage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ribozyme.errors import CheckpointError, ConfigError, OutputError
from ribozyme.files import AtomicFile
from ribozyme.tensors import Tensors, add_tensors, read_safetensors, write_safetensors


def learnt(network: nn.Module) -> Tensors:
    """What training changes: parameters that are trained, and statistics."""
    state = network.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in state.items()
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }


def weights_digest(network: nn.Module) -> str:
    """What tells a network with its weights from another."""
    found = hashlib.sha256()
    add_tensors(found, network.state_dict())
    return found.hexdigest()[:16]


def load_learnt(network: nn.Module, tensors: Tensors, path: Path) -> None:
    """Put what `learnt` gave back into a network that is trained in the same parts."""
    expected = {name: tuple(tensor.shape) for name, tensor in learnt(network).items()}
    if (found := {name: tuple(tensor.shape) for name, tensor in tensors.items()}) != expected:
        odd = sorted(expected.items() ^ found.items())
        raise CheckpointError(
            f"{path}: is of another network ({len(odd)} tensors differ, such as {odd[0][0]!r})"
        )
    network.load_state_dict(tensors, strict=False)


def packed_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """The state of any of torch's optimizers as tensors with names, and the rest as plain JSON."""
    whole = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for place, state in whole["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{place}.{name}"] = value
            else:
                plain.setdefault(str(place), {})[name] = value
    groups = {"groups": whole["param_groups"], "plain": plain}
    try:
        json.dumps(groups)
    except TypeError as error:
        raise ConfigError(f"the state of {type(optimizer).__name__} cannot be saved ({error})") from error
    return tensors, groups


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Tensors, groups: dict[str, Any], path: Path
) -> None:
    """Put what `packed_optimizer` gave into an optimizer of the same parameters."""
    state: dict[int, dict[str, Any]] = {int(place): dict(of) for place, of in groups["plain"].items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            place, _, key = rest.partition(".")
            state.setdefault(int(place), {})[key] = tensor
    param_groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups["groups"]
    ]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is of another optimizer ({error})") from error


def write_sealed(path: Path, tensors: Tensors, about: dict[str, str]) -> None:
    """A file that is there whole or not at all, and that notices a bit that changes later.

    Raises
    ------
    OutputError : it cannot be written, as on a full disk; what was there before still is.
    """
    try:
        with AtomicFile(path) as temporary:
            write_safetensors(temporary, tensors, **about)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be written ({error})",
            hint="make room, and give the same command again: it goes on from the last checkpoint",
        ) from error


def read_sealed(path: Path) -> tuple[Tensors, dict[str, str]]:
    """What `write_sealed` was given.

    Raises
    ------
    CheckpointError : the file is not there, or is not what was written.
    """
    try:
        tensors, _ = read_safetensors(path)
        with safe_open(path, "pt") as file:
            return tensors, file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", hint=ANEW) from error
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=ANEW) from error


ANEW = "put a copy of it back, or begin anew in another folder"

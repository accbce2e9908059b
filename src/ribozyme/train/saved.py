"""The folder of a predictor: safetensors and JSON, nothing that is executed.

::

    estimator.json     of an estimator: its parameters, metrics, and versions of what made it; written last
    finetuned.json     what the head is and what its outputs mean; written after the tensors
    head.safetensors   the head, and what features are standardised by
    backbone/          the network, as `save` of the model writes it
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ribozyme.checkpoint import open_checkpoint, read_json, shapes_of
from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.files import AtomicFile
from ribozyme.metrics import Score
from ribozyme.tensors import write_safetensors
from ribozyme.train.heads import Network
from ribozyme.train.labels import Labels

FORMAT = 1
ESTIMATOR, SETTINGS, HEAD, BACKBONE = "estimator.json", "finetuned.json", "head.safetensors", "backbone"
OWN = "own"  # the kind of a head that the user made
SCALER = "scaler."
PACKAGES = ("ribozyme", "torch", "numpy", "scikit-learn", "safetensors")
TYPES: dict[str, Any] = {
    "pooling": str, "head": str, "dropout": int | float, "standardise": bool, "hidden": int | None,
}  # fmt: skip


def write(folder: Path, model: Any, network: Network, labels: Labels, settings: Mapping[str, Any]) -> None:
    """Backbone, head and settings."""
    if folder.is_file():
        raise InputError(f"{folder} is a file", hint="a fine-tuned model is saved as a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ESTIMATOR, SETTINGS):  # written last: a save that was cut short is no model
        (folder / name).unlink(missing_ok=True)
    for path in (folder / BACKBONE).glob(".*.tmp"):
        path.unlink()  # of a save that was killed
    model.save(folder / BACKBONE)
    parts = {**network.head.state_dict(), **network.scaler.state_dict(prefix=SCALER)}
    with AtomicFile(folder / HEAD) as temporary:
        write_safetensors(temporary, parts)
    write_json(folder / SETTINGS, {"format": FORMAT, **settings, "labels": asdict(labels)})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A file that is there whole or not at all."""
    with AtomicFile(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an estimator as JSON has them: numbers of Python, a weight by class as pairs."""

    def one(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        return str(value) if isinstance(value, PathLike | torch.device) else value

    found = {name: one(value) for name, value in params.items()}
    if isinstance(weights := found.get("class_weight"), dict):
        found["class_weight"] = [[one(name), one(weight)] for name, weight in weights.items()]
    return found


def as_params(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `plain` was given."""
    params = dict(found)
    if isinstance(weights := params.get("class_weight"), list):
        params["class_weight"] = dict(weights)
    return params


def read_settings(folder: Path) -> tuple[dict[str, Any], Labels]:
    """What `write` was told.

    Raises
    ------
    CheckpointError : there is no such folder, or it is damaged or of another format.
    """
    path = folder / SETTINGS
    settings = read_saved(path, FORMAT)
    if not (folder / BACKBONE).is_dir():
        raise CheckpointError(f"{folder}: there is no folder {BACKBONE!r} in it")
    try:
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings["labels"].items()
        }
        settings = {"hidden": None, "standardise": False, **settings}
        if wrong := [name for name, kind in TYPES.items() if not isinstance(settings[name], kind)]:
            raise TypeError(f"{wrong[0]} is {settings[wrong[0]]!r}")
        return settings, Labels(**kept)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its settings are damaged ({error})") from error


def read_head(folder: Path, network: Network) -> None:
    """The tensors of the head into a network."""
    path = folder / HEAD
    found = dict(open_checkpoint(path).tensors)
    scaler = {name: found.pop(name, torch.empty(0)) for name in network.scaler.state_dict(prefix=SCALER)}
    if any(t.shape != (network.pooler.width,) for t in scaler.values()):
        raise CheckpointError(f"{path}: its {SCALER[:-1]} does not fit")
    if (shapes := {n: tuple(t.shape) for n, t in found.items()}) != shapes_of(network.head):
        raise CheckpointError(f"{path}: tensors {shapes} do not fit the head that the settings name")
    network.scaler.load_state_dict({name.removeprefix(SCALER): t for name, t in scaler.items()})
    network.head.load_state_dict(found)


def read_saved(path: Path, form: int) -> dict[str, Any]:
    """What `save` wrote beside the weights, if it is of the format that is known here.

    Raises
    ------
    CheckpointError : there is no such file, or it is damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: there is no {path.name}", hint="is it a folder that save wrote?"
        )
    settings = read_json(path)
    if settings.get("format") != form:
        raise CheckpointError(
            f"{path}: format {settings.get('format')!r} is not understood", hint="update ribozyme"
        )
    return settings


def write_estimator(
    folder: Path, kind: str, params: Mapping[str, Any], scores: Mapping[str, Score], held: list[int]
) -> None:
    """What an estimator is, beside its network."""
    about = {
        "format": FORMAT,
        "estimator": kind,
        "params": params,
        "metrics": {name: score.to_dict() for name, score in scores.items()},
        "held_back": held,
        "versions": versions(),
    }
    write_json(folder / ESTIMATOR, about)


def read_estimator(folder: Path) -> tuple[str, dict[str, Any], dict[str, Score], list[int]]:
    """What `write_estimator` was told: kind, parameters, scores, and the positions held back.

    Raises
    ------
    CheckpointError : it is not there, or damaged.
    """
    about = read_saved(folder / ESTIMATOR, FORMAT)
    parts = {"estimator": str, "params": dict, "metrics": dict, "held_back": list}
    try:
        if wrong := [name for name, kind in parts.items() if not isinstance(about.get(name), kind)]:
            raise TypeError(wrong[0])
        scores = {name: Score.from_dict(one) for name, one in about["metrics"].items()}
        return about["estimator"], about["params"], scores, [int(k) for k in about["held_back"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / ESTIMATOR}: its settings are damaged ({error})") from error


def versions() -> dict[str, str]:
    """Of what made a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

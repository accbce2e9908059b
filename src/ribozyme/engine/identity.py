"""What makes two jobs the same: input, weights, settings and version, as digests."""

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ribozyme.engine.inputs import is_url, marks
from ribozyme.engine.manifest import Job
from ribozyme.files import digest


def job_of(model: Any, files: list[str], how: Any) -> Job:
    """What results depend on: input, weights, settings, and the version of this library."""
    return {
        "input": digests(files),
        "model": {
            "name": model.record.name if model.record else type(model.module).__name__,
            "weights": weights_digest(model),
            "dtype": "/".join(
                sorted({str(w.dtype).removeprefix("torch.") for w in model.module.parameters()})
            ),
        },
        "settings": asdict(how),
        "ribozyme": version("ribozyme"),
    }


def digests(files: list[str]) -> dict[str, Any]:
    """The sha256 of a file with its name, or one of all files with their number."""
    if files == ["-"]:
        return {"standard input": os.urandom(8).hex()}
    if len(files) == 1:
        return {Path(files[0]).name: _digest(files[0])}
    whole = "".join(f"{Path(file).name} {_digest(file)}\n" for file in files)
    return {"files": len(files), "all of them": hashlib.sha256(whole.encode()).hexdigest()}


def _digest(file: str) -> Any:
    """sha256 of a file or of all in a folder; of a file behind a URL what its server tells of it."""
    if is_url(file):
        return marks(file)
    path = Path(file)
    if path.is_file():
        return digest(path)
    whole = hashlib.sha256()
    for one in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(f"{one.relative_to(path)} {digest(one)}\n".encode())
    return whole.hexdigest()


def weights_digest(model: Any) -> str:
    """sha256 of the network as it is in memory: sizes, vocabulary, every tensor."""
    tokens = model.vocabulary.tokens if model.reads == "cells" else model.tokenizer.letters
    whole = hashlib.sha256(json.dumps([repr(model.config), list(tokens)]).encode())
    for name, tensor in sorted(model.module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()

"""What makes two jobs the same: input, weights, settings and version, as digests."""

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ribozyme.engine.inputs import is_url, marks
from ribozyme.engine.manifest import Job
from ribozyme.files import digest_all
from ribozyme.tensors import add_tensors


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
    return marks(file) if is_url(file) else digest_all(Path(file))


def weights_digest(model: Any) -> str:
    """sha256 of the network as it is in memory: sizes, vocabulary, every tensor."""
    tokens = model.vocabulary.tokens if model.reads == "cells" else model.tokenizer.letters
    whole = hashlib.sha256(json.dumps([repr(model.config), list(tokens)]).encode())
    add_tensors(whole, model.module.state_dict())
    return whole.hexdigest()

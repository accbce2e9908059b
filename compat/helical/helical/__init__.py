"""ribozyme under the names of helical. Nothing is computed here: each class calls the native one.

Names are imported when they are first used; importing changes nothing in the process.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "HelixmRNA": "helix_mrna",
    "HelixmRNAConfig": "helix_mrna",
    "HelixmRNAFineTuningModel": "helix_mrna",
    "Mamba2mRNA": "mamba2_mrna",
    "Mamba2mRNAConfig": "mamba2_mrna",
    "Mamba2mRNAFineTuningModel": "mamba2_mrna",
    "RNAFM": "rnafm",
    "RNAFMConfig": "rnafm",
    "RNAFMFineTuningModel": "rnafm",
    "scGPT": "scgpt",
    "scGPTConfig": "scgpt",
    "scGPTFineTuningModel": "scgpt",
}

__all__ = list(_HOME)
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"helical.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'helical' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)

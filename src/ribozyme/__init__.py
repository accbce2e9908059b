"""RNA and single-cell foundation models, packed.

>>> import ribozyme as rz
>>> model = rz.load("rnafm-mini")
>>> model.embed(["GGGAAACCC"]).shape[0]
1

Names are imported when they are first used: `import ribozyme` loads neither torch nor any model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from ribozyme import data, metrics, models, pl, pp
    from ribozyme.engine.job import Outcome, embed_file
    from ribozyme.errors import InputWarning, RibozymeError
    from ribozyme.io.cells import read_cells
    from ribozyme.io.sequences import read_sequences
    from ribozyme.loading import load
    from ribozyme.train.estimators import Classifier, Regressor, TokenClassifier, TokenRegressor

_HOME = {
    "Outcome": "ribozyme.engine.job",
    "embed_file": "ribozyme.engine.job",
    "Classifier": "ribozyme.train.estimators",
    "Regressor": "ribozyme.train.estimators",
    "TokenClassifier": "ribozyme.train.estimators",
    "TokenRegressor": "ribozyme.train.estimators",
    "load": "ribozyme.loading",
    "read_cells": "ribozyme.io.cells",
    "read_sequences": "ribozyme.io.sequences",
    "InputWarning": "ribozyme.errors",
    "RibozymeError": "ribozyme.errors",
}
_MODULES = ("data", "metrics", "models", "pl", "pp")

__all__ = [
    "Classifier",
    "InputWarning",
    "Outcome",
    "Regressor",
    "RibozymeError",
    "TokenClassifier",
    "TokenRegressor",
    "__version__",
    "data",
    "embed_file",
    "load",
    "metrics",
    "models",
    "pl",
    "pp",
    "read_cells",
    "read_sequences",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"ribozyme.{name}")
    raise AttributeError(f"module 'ribozyme' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

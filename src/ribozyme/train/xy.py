"""X and y as scikit-learn hands them over: inputs that can be counted, with their labels."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np

from ribozyme.errors import ConfigError, InputError
from ribozyme.io.sequences import read_sequences
from ribozyme.train.labels import Labels
from ribozyme.train.splits import Rows


def take(labels: Any, rows: Rows) -> Any:
    """The labels of some inputs, in whatever holds them."""
    if hasattr(labels, "iloc"):
        return labels.iloc[rows]
    return labels[rows] if isinstance(labels, np.ndarray) else [labels[k] for k in rows]


def examples(X: Any, y: Any) -> tuple[Any, Any]:
    """Inputs that can be counted, and labels, of cells maybe by the name of their column."""
    if isinstance(y, str):
        if not hasattr(X, "obs"):
            raise InputError(
                f"labels are the string {y!r}", hint="only of cells a column of obs can be named"
            )
        if y not in X.obs:
            known = ", ".join(map(repr, X.obs.columns[:10]))
            raise InputError(f"obs has no column {y!r}; it has {known}")
        y = X.obs[y]
    if y is None:
        raise InputError("there are no labels", hint="requires y, one label an input")
    if isinstance(X, str | PathLike) or (isinstance(X, Iterable) and not hasattr(X, "__len__")):
        X = list(read_sequences(X))
    return X, y if hasattr(y, "__len__") else list(y)


def pair(given: Any) -> tuple[Any, Any]:
    """Inputs and labels to validate on."""
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise ConfigError("the validation data are a pair of inputs and labels", hint="give (inputs, labels)")
    inputs, labels = given
    return inputs, labels


def count_of(X: Any) -> int:
    if not hasattr(X, "__len__") and not hasattr(X, "shape"):
        raise InputError(f"inputs of type {type(X).__name__} cannot be read")
    count = int(X.shape[0]) if hasattr(X, "shape") else len(X)
    if count == 0:
        raise InputError("there are no inputs")
    return count


def columns_of(y: Any) -> int:
    """Of a table of labels, how many there are an input."""
    try:
        shape = tuple(y.shape if hasattr(y, "shape") else np.shape(y))
    except ValueError:  # lists of different lengths, of which Labels says what is wrong
        return 1
    return int(shape[1]) if len(shape) == 2 else 1


def as_labels(y: Any, labels: Labels) -> Any:
    """Labels as the metrics compare them with predictions."""
    if labels.task != "classification":
        return np.asarray(y, dtype=float)
    return np.array(labels.classes)[labels.encode(y, len(y)).numpy()]

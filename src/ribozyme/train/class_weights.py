"""How much each class counts: `balanced`, or as it is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ribozyme.errors import ConfigError
from ribozyme.train.label_arrays import Class, Values, usual


def class_weights(class_weight: Any, classes: Sequence[Class], names: Sequence[Class]) -> tuple[float, ...]:
    """How much each of `classes` counts, `names` being the labels; nothing where all count alike."""
    if class_weight is None:
        return ()
    if class_weight == "balanced":
        counts = pd.Series(names, dtype=object).value_counts()
        return tuple(len(names) / (len(counts) * int(counts.get(name, 1))) for name in classes)
    return given_weights(class_weight, classes)


def given_weights(class_weight: Any, classes: Sequence[Class]) -> tuple[float, ...]:
    """The weight of each class as it is given, 1 where there is none; `ConfigError` for what is no weight."""
    if not isinstance(class_weight, dict):
        raise ConfigError(
            f"class_weight {class_weight!r} does not exist", hint="'balanced', or a weight by class"
        )
    try:
        given = {usual(name): float(weight) for name, weight in class_weight.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a class weight is no number ({error})") from error
    if odd := given.keys() - {usual(name) for name in classes}:
        raise ConfigError(f"class_weight names {min(odd, key=str)!r}, which is not among the labels")
    weights = tuple(given.get(usual(name), 1.0) for name in classes)
    if min(weights) < 0 or not np.isfinite(weights).all():
        raise ConfigError("a class weight is negative or infinite")
    return weights


def positive_weights(class_weight: Any, table: Values, names: Sequence[Class]) -> tuple[float, ...]:
    """How much a 1 counts in each column of several labels."""
    if class_weight is None:
        return ()
    if class_weight == "balanced":
        ones = table.sum(0)
        return tuple(((len(table) - ones) / np.maximum(ones, 1)).clip(min=1e-3).tolist())
    return given_weights(class_weight, names)

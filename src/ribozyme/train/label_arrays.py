"""Labels as people have them (lists, arrays, Series, tensors, strings) as arrays, with what is wrong said."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from ribozyme.errors import InputError

WHOLE = re.compile(r"[+-]?(0|[1-9]\d{,14})(\.0*)?")
TRUTH = {"true": 1, "false": 0}
Level = Literal["input", "token"]
Class = str | int
Values = npt.NDArray[Any]


def usual(name: Any) -> Class:
    """A class as a number where its text is a whole one, or true or false; else its text."""
    text = str(name)
    if WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    return TRUTH.get(text.lower(), text)


def named(labels: Any, count: int, level: Level) -> list[Class | None]:
    """The class of each input, or of each letter of all inputs."""
    if level == "input":
        return list(_classes(labels, count))
    return [name for one in letter_classes(labels, count) for name in one]


def as_array(labels: Any) -> Values:
    """Labels as an array; `InputError` for rows of different lengths, and for dates."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise InputError(
            f"labels do not make a table: {error}", hint="one label, or one row, an input"
        ) from error
    if array.dtype.kind in "mM":
        raise InputError("labels are dates or times", hint="give classes as text, or numbers")
    return array


def _counted(labels: Any, count: int) -> Values:
    array = as_array(labels)
    if array.ndim == 0 or len(array) != count:
        given = "a single value" if array.ndim == 0 else f"{len(array):,} labels"
        raise InputError(f"{given} for {count:,} inputs", hint="one label an input, in the same order")
    return array


def _as_numbers(array: Values, count: int) -> npt.NDArray[np.float64]:
    if array.ndim > 2:
        raise InputError(f"labels of shape {array.shape}", hint="(n,) or (n, outputs)")
    try:
        if array.dtype.kind in "SU":
            raise ValueError
        return array.astype(np.float64).reshape(count, -1)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"labels such as {array.reshape(-1)[:1].tolist()[0]!r} are not numbers, which regression needs",
            hint="convert them, or use classification",
        ) from error


def numbers_of(labels: Any, count: int) -> npt.NDArray[np.float64]:
    """(n, k) finite numbers."""
    numbers = _as_numbers(_counted(labels, count), count)
    if len(bad := np.flatnonzero(~np.isfinite(numbers).all(1))):
        raise InputError(
            f"{len(bad):,} labels are missing or infinite, the first at position {bad[0]}",
            hint="leave these inputs out",
        )
    return numbers


def indicators_of(labels: Any, count: int) -> npt.NDArray[np.float64]:
    """(n, k) of 0 and 1."""
    array = _counted(labels, count)
    if array.ndim != 2:
        raise InputError(
            f"labels of shape {array.shape}; several labels an input are a table",
            hint="(n, labels) of 0 and 1",
        )
    numbers = numbers_of(array, count)
    if odd := sorted(set(np.unique(numbers).tolist()) - {0.0, 1.0}):
        raise InputError(f"a table of several labels holds 0 and 1, not {odd[0]:g}")
    return numbers


def _letters(labels: Any, count: int) -> Sequence[Any]:
    if isinstance(labels, str) or not hasattr(labels, "__len__") or len(labels) != count:
        given = f"{len(labels):,} labels" if hasattr(labels, "__len__") else "a single value"
        raise InputError(f"{given} for {count:,} inputs", hint="one list of labels an input, one a letter")
    return list(labels)


def check_letters(rows: Sequence[Tensor], letters: Sequence[int] | None) -> None:
    """Raise `InputError` for an input that has another number of labels than of letters."""
    for place, (one, expected) in enumerate(zip(rows, [] if letters is None else letters)):
        if len(one) != expected:
            raise InputError(
                f"input {place} has {expected:,} letters and {len(one):,} labels",
                hint="give one label a letter; NaN (or None, of classes) where there is none",
            )


def letter_numbers(labels: Any, count: int) -> list[npt.NDArray[np.float64]]:
    """(letters, k) an input; NaN where there is no label."""
    rows = []
    for place, one in enumerate(_letters(labels, count)):
        array = as_array(one)
        if array.ndim == 0:
            raise InputError(f"input {place} has a single label", hint="give one a letter")
        numbers = _as_numbers(array, len(array))
        if np.isinf(numbers).any():
            raise InputError(f"input {place} has an infinite label")
        rows.append(numbers)
    return rows


def letter_classes(labels: Any, count: int) -> list[list[Class | None]]:
    """The class of each letter of each input; None where there is no label."""
    found: list[list[Class | None]] = []
    for place, one in enumerate(_letters(labels, count)):
        letters = list(one) if isinstance(one, str) else as_array(one).tolist()
        if not isinstance(letters, list):
            raise InputError(f"input {place} has a single label", hint="give one a letter")
        found.append([None if _is_missing(label) else _class(label, place) for label in letters])
    return found


def _classes(labels: Any, count: int) -> list[Class]:
    array = _counted(labels, count)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(
            f"labels of shape {array.shape}; classification takes one class an input",
            hint="of rows of 0 and 1, or of probabilities, give the argmax of each row",
        )
    return [_class(label, place) for place, label in enumerate(array.tolist())]


def _is_missing(label: Any) -> bool:
    return label == "" if isinstance(label, str) else bool(pd.isna(label))


def _class(label: Any, place: int) -> Class:
    if _is_missing(label):
        raise InputError(f"the label at position {place} is missing", hint="leave such inputs out")
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, str):
        return label
    if isinstance(label, int | float) and float(label).is_integer():
        return int(label)
    raise InputError(
        f"the label {label!r} at position {place} is no class",
        hint="a class is a string or a whole number; use regression for other numbers",
    )

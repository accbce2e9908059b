"""Labels as people have them (lists, arrays, Series, tensors, strings) into numbers that a head can learn."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ribozyme.errors import ConfigError, InputError

Task = Literal["regression", "classification"]
TASKS: tuple[Task, ...] = ("regression", "classification")
Class = str | int
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the outputs of a head mean.

    classes : of a classification, the class of each output; else empty
    mean, scale : of a regression, in the units of the labels: the head learns (y - mean) / scale
    flat : labels were one number an input, so predictions are too
    """

    task: Task
    outputs: int
    classes: tuple[Class, ...] = ()
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    flat: bool = True

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task {self.task!r} does not exist", hint=f"one of {', '.join(TASKS)}")
        if self.outputs < 1:
            raise ConfigError(f"a head has at least one output, not {self.outputs}")
        sizes = {len(self.classes)} if self.task == "classification" else {len(self.mean), len(self.scale)}
        if sizes != {self.outputs}:
            raise ConfigError(f"{self.outputs} outputs do not fit what is said of them")

    @classmethod
    def blank(cls, task: Task, outputs: int) -> "Labels":
        """Before any label was seen: classes 0, 1, ..., or numbers as they are."""
        if task == "classification":
            return cls(task=task, outputs=outputs, classes=tuple(range(outputs)))
        return cls(task=task, outputs=outputs, mean=(0.0,) * outputs, scale=(1.0,) * outputs)

    @classmethod
    def seen(cls, task: Task, labels: Any, count: int, outputs: int | None = None) -> "Labels":
        """From the labels of `count` training inputs; `outputs`, if given, must fit them.

        Raises
        ------
        InputError : another number of labels, a missing or infinite one, text where numbers are needed ...
        """
        if task == "regression":
            numbers = _numbers(labels, count)
            if outputs not in (None, numbers.shape[1]):
                raise InputError(
                    f"labels have {numbers.shape[1]} columns, but the head has {outputs} outputs"
                )
            deviation = numbers.std(0)
            return cls(
                task=task,
                outputs=numbers.shape[1],
                mean=tuple(numbers.mean(0).tolist()),
                scale=tuple(np.where(deviation > 0, deviation, 1.0).tolist()),
                flat=_array(labels).ndim == 1,
            )
        names = _classes(labels, count)
        classes: list[Class] = sorted(set(names), key=lambda name: (isinstance(name, str), name))
        if outputs is not None and all(isinstance(c, int) and 0 <= c < outputs for c in classes):
            classes = list(range(outputs))
        elif outputs not in (None, len(classes)):
            some = ", ".join(map(str, classes[:5]))
            raise InputError(
                f"labels have {len(classes)} classes ({some}), but the head has {outputs} outputs",
                hint="give as many outputs as classes, or classes 0, 1, ... below the number of outputs",
            )
        return cls(task=task, outputs=len(classes), classes=tuple(classes))

    def encode(self, labels: Any, count: int) -> Tensor:
        """What the loss compares with: (n, k) float32 in the units of the labels, or (n,) int64 classes."""
        if self.task == "regression":
            numbers = _numbers(labels, count)
            if numbers.shape[1] != self.outputs:
                raise InputError(
                    f"labels have {numbers.shape[1]} columns; the head has {self.outputs} outputs"
                )
            return torch.from_numpy(numbers).float()
        place = {name: k for k, name in enumerate(self.classes)}
        names = _classes(labels, count)
        if unseen := sorted({str(name) for name in names if name not in place}):
            raise InputError(
                f"labels have {len(unseen)} classes that the head does not know: {', '.join(unseen[:5])}",
                hint="every class must be among the training labels",
            )
        return torch.tensor([place[name] for name in names])

    def decode(self, outputs: npt.NDArray[np.float32]) -> Values:
        """Predictions from (n, k) outputs: the likeliest class (None where they are NaN), or the numbers."""
        if self.task == "classification":
            chosen = np.array(self.classes)[outputs.argmax(1)]
            unknown = np.isnan(outputs).any(1)
            if unknown.any():
                chosen = chosen.astype(object)
                chosen[unknown] = None
            return chosen
        return outputs[:, 0] if self.flat and self.outputs == 1 else outputs


def _array(labels: Any) -> Values:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    try:
        return np.asarray(labels)
    except ValueError as error:
        raise InputError(
            f"labels do not make a table: {error}", hint="one label, or one row, an input"
        ) from error


def _counted(labels: Any, count: int) -> Values:
    array = _array(labels)
    if array.ndim == 0 or len(array) != count:
        given = "a single value" if array.ndim == 0 else f"{len(array):,} labels"
        raise InputError(f"{given} for {count:,} inputs", hint="one label an input, in the same order")
    return array


def _numbers(labels: Any, count: int) -> npt.NDArray[np.float64]:
    array = _counted(labels, count)
    if array.ndim > 2:
        raise InputError(f"labels of shape {array.shape}", hint="(n,) or (n, outputs)")
    try:
        if array.dtype.kind in "SU":
            raise ValueError
        numbers = array.astype(np.float64).reshape(count, -1)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"labels such as {array.reshape(-1)[0]!r} are not numbers, which regression needs",
            hint="convert them, or use classification",
        ) from error
    if len(bad := np.flatnonzero(~np.isfinite(numbers).all(1))):
        raise InputError(
            f"{len(bad):,} labels are missing or infinite, the first at position {bad[0]}",
            hint="leave these inputs out",
        )
    return numbers


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


def _class(label: Any, place: int) -> Class:
    if pd.isna(label) or label == "":
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

"""Labels into numbers that a head can learn, and what a head gives into labels again.

How labels may be given: `label_arrays.py`; how much each class counts: `class_weights.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.class_weights import class_weights, positive_weights
from ribozyme.train.label_arrays import (
    Class,
    Level,
    Values,
    as_array,
    check_letters,
    indicators_of,
    letter_classes,
    letter_numbers,
    named,
    numbers_of,
    usual,
)

Task = Literal["regression", "classification", "multilabel"]
__all__ = ["LEVELS", "TASKS", "UNLABELLED", "Class", "Labels", "Level", "Task"]
TASKS: tuple[Task, ...] = ("regression", "classification", "multilabel")
LEVELS: tuple[Level, ...] = ("input", "token")
UNLABELLED = -100  # the class of a letter without a label
LEAST_SPREAD = 1e-5
"""Deviation of labels beside their mean, below which float32 loses more than 1 % of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the outputs of a head mean.

    level : what has a label: each input, or each of its letters (`token`)
    classes : of a classification, the class of each output; else empty, but for names of columns
    mean, scale : of a regression, in the units of the labels: the head learns (y - mean) / scale
    weights : of a classification, how much each class counts; of several labels, how much a 1 counts
    flat : labels were one number an input (a letter), so predictions are too
    text : labels of letters were strings, one character a letter, so predictions are too
    """

    task: Task
    outputs: int
    level: Level = "input"
    classes: tuple[Class, ...] = ()
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    flat: bool = True
    text: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task {self.task!r} does not exist", hint=f"one of {', '.join(TASKS)}")
        if self.level not in LEVELS or (self.level == "token" and self.task == "multilabel"):
            raise ConfigError(f"a {self.task} of each {self.level!r} does not exist")
        if self.outputs < 1:
            raise ConfigError(f"a head has at least one output, not {self.outputs}")
        sizes = {len(self.mean), len(self.scale)} if self.task == "regression" else {len(self.classes)}
        if sizes != {self.outputs} or len(self.weights) not in (0, self.outputs):
            raise ConfigError(f"{self.outputs} outputs do not fit what is said of them")

    @classmethod
    def blank(cls, task: Task, outputs: int, level: Level = "input") -> "Labels":
        """Before any label was seen: classes 0, 1, ..., or numbers as they are."""
        if task == "regression":
            mean, scale = (0.0,) * outputs, (1.0,) * outputs
            return cls(task=task, outputs=outputs, level=level, mean=mean, scale=scale)
        return cls(task=task, outputs=outputs, level=level, classes=tuple(range(outputs)))

    @classmethod
    def seen(
        cls,
        task: Task,
        labels: Any,
        count: int,
        outputs: int | None = None,
        level: Level = "input",
        class_weight: Any = None,
    ) -> "Labels":
        """From the labels of `count` training inputs; `outputs`, if given, must fit them.

        class_weight : `balanced`, so that all classes count alike in sum, or a weight by class

        Raises
        ------
        InputError : another number of labels, a missing or infinite one, text where numbers are needed ...
        """
        if task not in TASKS:
            raise ConfigError(f"task {task!r} does not exist", hint=f"one of {', '.join(TASKS)}")
        if task == "regression":
            return _seen_numbers(labels, count, outputs, level)
        if task == "multilabel":
            return _seen_columns(labels, count, outputs, class_weight)
        names = [name for name in named(labels, count, level) if name is not None]
        if any(isinstance(name, str) for name in names):  # numbers among them are names too
            names = [str(name) for name in names]
        classes = _placed(names, outputs)
        return cls(
            task=task,
            outputs=len(classes),
            level=level,
            classes=classes,
            weights=class_weights(class_weight, classes, names),
            text=level == "token" and all(isinstance(one, str) for one in labels),
        )

    def encode(self, labels: Any, count: int, letters: Sequence[int] | None = None) -> Any:
        """What the loss compares with, in the order of the inputs.

        letters : how many each input has, which labels of letters must fit

        Returns
        -------
        (n, k) float32, numbers in the units of the labels, or 0 and 1 of several labels; (n,) int64 classes;
        of letters a list of such, where a missing number is NaN and a missing class `UNLABELLED`.
        """
        if self.level == "token":
            rows = self._encode_letters(labels, count)
            check_letters(rows, letters)
            return rows
        if self.task == "classification":
            return torch.tensor(self._place(named(labels, count, "input")))
        numbers = numbers_of(labels, count) if self.task == "regression" else indicators_of(labels, count)
        self._check_columns(numbers)
        return torch.from_numpy(numbers).float()

    def losses(self, outputs: Tensor, targets: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """(n,) the loss of each input: squared error in units of the scale, or cross-entropy.

        outputs : (n, k), or (L, k) of letters, of which each input has `counts`; those of a regression in the
            units of the labels
        targets : what `encode` made of the labels of these inputs, one after the other

        Of an input with labels of its letters it is the mean over the letters that have one.
        """
        if self.task == "classification":
            weight = outputs.new_tensor(self.weights) if self.weights else None
            each = F.cross_entropy(outputs, targets, weight=weight, reduction="none", ignore_index=UNLABELLED)
            known = targets != UNLABELLED
        elif self.task == "multilabel":
            weight = outputs.new_tensor(self.weights) if self.weights else None
            each = F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight, reduction="none")
            return each.mean(1)
        else:
            known = ~targets.isnan()
            scale = outputs.new_tensor(self.scale)
            each = torch.where(known, (outputs - targets.nan_to_num()) / scale, 0.0).square()
            each, known = each.sum(1) / known.sum(1).clamp(min=1), known.any(1)
        if self.level == "input":
            return each
        sizes = torch.tensor(counts, device=outputs.device)
        total = torch.segment_reduce(each * known, "sum", lengths=sizes)
        return total / torch.segment_reduce(known.to(each.dtype), "sum", lengths=sizes).clamp(min=1)

    def in_units(self, outputs: Tensor) -> Tensor:
        """What a head gives, of a regression in the units of the labels."""
        if self.task != "regression":
            return outputs
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)

    def decode(self, outputs: Any) -> Any:
        """Predictions from (n, k) outputs: the likeliest class (None where they are NaN), or the numbers.

        Of letters from and to a list, one array (or string) an input; of several labels (n, k) of 0 and 1.
        """
        if self.level == "token":
            return [self._decode_letters(one) for one in outputs]
        if self.task == "classification":
            return self._likeliest(outputs)
        if self.task == "multilabel":
            return (outputs > 0).astype(np.int64)
        return outputs[:, 0] if self.flat and self.outputs == 1 else outputs

    def probabilities(self, outputs: Values) -> Values:
        """(n, k) float32 from outputs; of several labels the probability of each by itself."""
        logits = torch.from_numpy(outputs)
        return (logits.sigmoid() if self.task == "multilabel" else logits.softmax(-1)).numpy()

    def _likeliest(self, outputs: Values) -> Values:
        chosen = np.array(self.classes)[outputs.argmax(1)]
        unknown = np.isnan(outputs).any(1)
        if unknown.any():
            chosen = chosen.astype(object)
            chosen[unknown] = None
        return chosen

    def _decode_letters(self, outputs: Values) -> Any:
        if self.task == "classification":
            chosen = self._likeliest(outputs)
            return "".join(chosen) if self.text else chosen
        return outputs[:, 0] if self.flat and self.outputs == 1 else outputs

    def _encode_letters(self, labels: Any, count: int) -> list[Tensor]:
        if self.task == "classification":
            given = letter_classes(labels, count)
            return [torch.tensor(self._place(one), dtype=torch.int64) for one in given]
        rows = letter_numbers(labels, count)
        for one in rows:
            self._check_columns(one)
        return [torch.from_numpy(one).float() for one in rows]

    def _check_columns(self, numbers: Values) -> None:
        if numbers.shape[1] != self.outputs:
            raise InputError(f"labels have {numbers.shape[1]} columns; the head has {self.outputs} outputs")

    def _place(self, names: Sequence[Class | None]) -> list[int]:
        exact = {str(name): k for k, name in enumerate(self.classes)}
        alike = {usual(name): k for k, name in reversed(list(enumerate(self.classes)))}
        place = {name: exact.get(str(name), alike.get(usual(name))) for name in set(names)}
        place[None] = UNLABELLED
        if unseen := sorted(str(name) for name, k in place.items() if k is None):
            raise InputError(
                f"labels have {len(unseen)} classes that the head does not know: {', '.join(unseen[:5])}",
                hint="every class must be among the training labels: leave rare ones out, or merge them",
            )
        return [k for name in names if (k := place[name]) is not None]


def _seen_numbers(labels: Any, count: int, outputs: int | None, level: Level) -> Labels:
    if level == "token":
        rows = letter_numbers(labels, count)
        widths = {one.shape[1] for one in rows}
        if len(widths) > 1:
            raise InputError(f"labels of letters have {min(widths)} to {max(widths)} columns")
        numbers, flat = np.concatenate(rows), all(as_array(one).ndim == 1 for one in labels)
        known = ~np.isnan(numbers)
        if not known.any(0).all():
            raise InputError("no letter has a label")
    else:
        numbers, flat = numbers_of(labels, count), as_array(labels).ndim == 1
    mean, scale = _spread(numbers)
    if outputs not in (None, numbers.shape[1]):
        raise InputError(f"labels have {numbers.shape[1]} columns, but the head has {outputs} outputs")
    return Labels(
        task="regression",
        outputs=numbers.shape[1],
        level=level,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        flat=flat,
    )


def _spread(numbers: Values) -> tuple[Values, Values]:
    """Mean and deviation of the columns (1 of a constant one), if float32 tells their numbers apart."""
    if np.nanmax(np.abs(numbers)) > np.finfo(np.float32).max:
        raise InputError("labels are too large for float32", hint="learn their logarithm, or other units")
    mean, deviation = np.nanmean(numbers, 0), np.nanstd(numbers, 0)
    lowest, highest = np.nanmin(numbers, 0), np.nanmax(numbers, 0)
    constant = (lowest == highest) | (np.maximum(-lowest, highest) < np.finfo(np.float32).tiny)
    if (deviation < LEAST_SPREAD * np.abs(mean))[~constant].any():
        raise InputError(
            f"labels vary by less than {LEAST_SPREAD:g} of their size, which float32 does not tell apart",
            hint="take a constant off them",
        )
    return mean, np.where(constant, 1.0, deviation)


def _seen_columns(labels: Any, count: int, outputs: int | None, class_weight: Any) -> Labels:
    table = indicators_of(labels, count)
    if outputs not in (None, table.shape[1]):
        raise InputError(f"labels have {table.shape[1]} columns, but the head has {outputs} outputs")
    columns = getattr(labels, "columns", range(table.shape[1]))
    classes = tuple(name if isinstance(name, str) else int(name) for name in columns)
    weights = positive_weights(class_weight, table, classes)
    return Labels(task="multilabel", outputs=len(classes), classes=classes, weights=weights, flat=False)


def _placed(names: Sequence[Class], outputs: int | None) -> tuple[Class, ...]:
    """The class of each output, of names of one type."""
    classes: list[Class] = sorted(set(names))
    if not classes:
        raise InputError("no letter has a label")
    if outputs is not None and all(isinstance(c, int) and 0 <= c < outputs for c in classes):
        classes = list(range(outputs))
    elif outputs not in (None, len(classes)):
        some = ", ".join(map(str, classes[:5]))
        raise InputError(
            f"labels have {len(classes)} classes ({some}), but the head has {outputs} outputs",
            hint="give as many outputs as classes, or classes 0, 1, ... below the number of outputs",
        )
    return tuple(classes)

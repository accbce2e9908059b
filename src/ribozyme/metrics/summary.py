"""The metrics that a task is reported by, all at once."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np

from ribozyme.errors import ConfigError, InputError
from ribozyme.metrics import classification, regression
from ribozyme.metrics.score import Resampling, Score, Values

Task = Literal["regression", "classification", "multilabel"]
REGRESSION = ("spearman", "pearson", "r2", "mse", "mae")
CLASSIFICATION = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "mcc")
AREAS = ("roc_auc", "average_precision")


def summary(
    task: Task,
    y_true: Any,
    y_pred: Any,
    probabilities: Any = None,
    *,
    classes: Sequence[Any] | None = None,
    **how: Unpack[Resampling],
) -> dict[str, Score]:
    """Every metric of a task by its name.

    Parameters
    ----------
    y_true, y_pred : (n,) or (n, k); of a regression numbers, of several labels 0 and 1
    probabilities : (n, classes), for the areas under curves; `classes` names the columns

    Precision, recall and F1 are means over the classes (macro).
    """
    if task == "regression":
        return {name: getattr(regression, name)(y_true, y_pred, **how) for name in REGRESSION}
    if task not in ("classification", "multilabel"):
        raise ConfigError(f"task {task!r} does not exist")
    names = [name for name in CLASSIFICATION if task == "classification" or name in ("accuracy", *_SHARES)]
    found = {name: getattr(classification, name)(y_true, y_pred, **how) for name in names}
    if task == "multilabel":
        found["f1_micro"] = classification.f1(y_true, y_pred, average="micro", **how)
    if probabilities is not None:
        columns = classes if task == "classification" else None
        for name in AREAS:
            found[name] = getattr(classification, name)(y_true, probabilities, classes=columns, **how)
    return found


_SHARES = ("precision", "recall", "f1")


def letters_summary(
    task: Task, y_true: Sequence[Any], y_pred: Sequence[Any], **how: Unpack[Resampling]
) -> dict[str, Score]:
    """`summary` of labels of letters: one list an input, of which the letters without a label are left out.

    Intervals are by resampling inputs, or `groups` of them: letters of one input are not independent.
    """
    true, (pred,), owner = paired_letters(y_true, y_pred)
    given = how.get("groups")
    groups = owner if given is None else np.asarray(given)[owner]
    settings: Resampling = {**how, "groups": groups}
    return summary(task, true, pred, **settings)


def paired_letters(y_true: Sequence[Any], *predictions: Sequence[Any]) -> tuple[Values, list[Values], Values]:
    """Labels, predictions, and the place of the input of each letter that has a label, end to end.

    Raises
    ------
    InputError : an input, or a letter, that one of them lacks.
    """
    kept = [np.array([k for k, label in enumerate(one) if not _missing(label)], int) for one in y_true]
    for pred in predictions:
        if len(y_true) != len(pred):
            raise InputError(f"labels of {len(y_true):,} inputs and predictions of {len(pred):,}")
        for place, (labels, predicted) in enumerate(zip(y_true, pred)):
            if len(labels) != len(predicted):
                raise InputError(
                    f"input {place} has {len(labels):,} labels and {len(predicted):,} predictions"
                )
    true, *found = (
        np.array([one[k] for one, places in zip(of, kept) for k in places]) for of in (y_true, *predictions)
    )
    return true, found, np.repeat(np.arange(len(kept)), [len(places) for places in kept])


def _missing(label: Any) -> bool:
    """None, "", NaN, or a row with NaN."""
    if label is None or isinstance(label, str):
        return not label
    return bool(np.isnan(np.asarray(label, dtype=float)).any())

"""Numbers against predicted numbers; of several targets, the mean over the targets."""

from typing import Any, Unpack

import numpy as np

from ribozyme.errors import InputError
from ribozyme.metrics.score import Resampling, Score, UndefinedError, Values, bootstrap


def pearson(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Pearson correlation."""
    return _of_columns(correlation, y_true, y_pred, how)


def spearman(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Rank correlation; ties have their mean rank."""
    from scipy.stats import rankdata

    return _of_columns(lambda t, p: correlation(rankdata(t), rankdata(p)), y_true, y_pred, how)


def r2(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """1 - squared error / squared deviation of the labels from their mean; not the squared correlation."""
    return _of_columns(determination, y_true, y_pred, how)


def mse(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Mean squared error, in squared units of the labels."""
    return _of_columns(lambda t, p: np.square(t - p).mean(), y_true, y_pred, how)


def mae(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Mean absolute error, in the units of the labels."""
    return _of_columns(lambda t, p: np.abs(t - p).mean(), y_true, y_pred, how)


def correlation(a: Values, b: Values) -> float:
    """Pearson correlation of two vectors."""
    for values, what in ((a, "labels"), (b, "predictions")):
        if values.min() == values.max():
            raise UndefinedError(f"the {what} are constant")
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares of tiny numbers vanish
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def determination(true: Values, pred: Values) -> float:
    """R2 of two vectors."""
    if true.min() == true.max():
        raise UndefinedError("the labels are constant")
    return float(1 - np.square(true - pred).sum() / np.square(true - true.mean()).sum())


def _of_columns(of: Any, y_true: Any, y_pred: Any, how: Any) -> Score:
    true, pred = _numbers(y_true, "labels"), _numbers(y_pred, "predictions")
    if true.shape[1:] != pred.shape[1:]:
        raise InputError(f"labels have {true.shape[1]} columns and predictions {pred.shape[1]}")
    return bootstrap(
        lambda t, p: np.mean([of(t[:, k], p[:, k]) for k in range(t.shape[1])]), true, pred, **how
    )


def _numbers(given: Any, what: str) -> Values:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are not numbers: {error}") from error
    if array.ndim not in (1, 2):
        raise InputError(f"{what} of shape {array.shape}", hint="(n,), or (n, targets)")
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(f"{bad:,} {what} are missing or infinite", hint="leave these examples out")
    return array.reshape(len(array), -1)

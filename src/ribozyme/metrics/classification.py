"""Classes against predicted classes, and against scores of classes.

The definitions are scikit-learn's, in numpy because an interval takes a thousand of them; tests hold the two
together. A share of nothing (a class that is never predicted has no precision) counts 0, as there.
"""

from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError
from ribozyme.metrics.score import Resampling, Score, UndefinedError, Values, bootstrap

Average = Literal["macro", "micro", "binary"]
Counts = npt.NDArray[np.int64]
AVERAGES = ("macro", "micro", "binary")


def accuracy(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Share of right classes; of several labels an input, share of inputs with all of them right."""
    true, pred = _pair(y_true, y_pred)
    return bootstrap(lambda t, p: (t == p).reshape(len(t), -1).all(1).mean(), true, pred, **how)


def balanced_accuracy(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Mean recall of the classes."""
    return _of_confusion(_mean_recall, y_true, y_pred, how)


def mcc(y_true: Any, y_pred: Any, **how: Unpack[Resampling]) -> Score:
    """Matthews correlation coefficient, of any number of classes (Gorodkin 2004)."""
    return _of_confusion(_matthews, y_true, y_pred, how)


def precision(
    y_true: Any, y_pred: Any, *, average: Average = "macro", positive: Any = None, **how: Unpack[Resampling]
) -> Score:
    """Share of the predictions of a class that are right; `positive` is the class of `binary`."""
    return _averaged(lambda tp, fp, fn: _share(tp, tp + fp), y_true, y_pred, average, positive, how)


def recall(
    y_true: Any, y_pred: Any, *, average: Average = "macro", positive: Any = None, **how: Unpack[Resampling]
) -> Score:
    """Share of a class that was found; `positive` is the class of `binary`."""
    return _averaged(lambda tp, fp, fn: _share(tp, tp + fn), y_true, y_pred, average, positive, how)


def f1(
    y_true: Any, y_pred: Any, *, average: Average = "macro", positive: Any = None, **how: Unpack[Resampling]
) -> Score:
    """Harmonic mean of precision and recall; `positive` is the class of `binary`."""
    return _averaged(
        lambda tp, fp, fn: _share(2 * tp, 2 * tp + fp + fn), y_true, y_pred, average, positive, how
    )


def roc_auc(y_true: Any, scores: Any, *, classes: Any = None, **how: Unpack[Resampling]) -> Score:
    """Area under the ROC curve.

    scores : (n,) or (n, 2) for two classes, the second of which is positive; else (n, classes), and the
        mean of each class against the rest; with labels (n, k) of 0 and 1 the mean of the columns
    classes : of the columns; by default those of `y_true`, sorted
    """
    return _of_scores(_auc, y_true, scores, classes, how)


def average_precision(y_true: Any, scores: Any, *, classes: Any = None, **how: Unpack[Resampling]) -> Score:
    """Area under the precision-recall curve, without interpolation; parameters as of `roc_auc`."""
    return _of_scores(_ap, y_true, scores, classes, how)


# -------------------------------------------------------------------------------------- from confusion


def _pair(y_true: Any, y_pred: Any) -> tuple[Values, Values]:
    """Labels and predictions as arrays of one kind, checked for missing ones."""
    true, pred = _labels(y_true, "labels"), _labels(y_pred, "predictions")
    if true.shape[1:] != pred.shape[1:]:
        raise InputError(f"labels have shape {true.shape} and predictions {pred.shape}")
    if (true.dtype.kind in "US") != (pred.dtype.kind in "US"):
        raise InputError(
            f"labels such as {true.flat[0]!r} and predictions such as {pred.flat[0]!r} are of different types"
        )
    return true, pred


def _labels(given: Any, what: str) -> Values:
    array = np.asarray(given)
    if array.dtype.kind == "O":
        if missing := sum(one is None or one != one for one in array.flat):
            raise InputError(f"{missing:,} {what} are missing", hint="leave these examples out")
        array = np.array(array.tolist())
    elif array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(
            f"{int(np.isnan(array).sum()):,} {what} are missing", hint="leave these examples out"
        )
    if array.ndim not in (1, 2):
        raise InputError(f"{what} of shape {array.shape}", hint="(n,) classes, or (n, k) of 0 and 1")
    return array


def _codes(y_true: Any, y_pred: Any) -> tuple[Values, Counts, Counts]:
    true, pred = _pair(y_true, y_pred)
    if true.ndim != 1:
        raise InputError("this metric is of one class an input", hint="give each column by itself")
    classes, codes = np.unique(np.concatenate([true, pred]), return_inverse=True)
    return classes, codes[: len(true)], codes[len(true) :]


def confusion(true: Counts, pred: Counts, classes: int) -> Counts:
    """(classes, classes) counts: rows are labels, columns predictions."""
    return np.bincount(true * classes + pred, minlength=classes * classes).reshape(classes, classes)


def _of_confusion(of: Any, y_true: Any, y_pred: Any, how: Any) -> Score:
    classes, true, pred = _codes(y_true, y_pred)
    return bootstrap(lambda t, p: of(confusion(t, p, len(classes))), true, pred, **how)


def _mean_recall(table: Counts) -> float:
    sizes = table.sum(1)
    return float((table.diagonal()[sizes > 0] / sizes[sizes > 0]).mean())


def _matthews(table: Counts) -> float:
    right, total = float(table.trace()), float(table.sum())
    true, pred = table.sum(1).astype(float), table.sum(0).astype(float)
    if true.max() == total:
        raise UndefinedError("the labels are of one class")
    spread = (total**2 - (true**2).sum()) * (total**2 - (pred**2).sum())
    return (right * total - float(true @ pred)) / float(np.sqrt(spread)) if spread else 0.0


def _share(part: Counts, whole: Counts) -> Values:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _averaged(of: Any, y_true: Any, y_pred: Any, average: str, positive: Any, how: Any) -> Score:
    if average not in AVERAGES:
        raise ConfigError(f"average {average!r} does not exist", hint=f"one of {', '.join(AVERAGES)}")
    true, pred = _pair(y_true, y_pred)
    if true.ndim == 2:
        return bootstrap(lambda t, p: _mean(of, *_columns(t == 1, p == 1), average), true, pred, **how)
    classes, true, pred = _codes(true, pred)
    chosen = _positive(classes, positive) if average == "binary" else None

    def statistic(t: Counts, p: Counts) -> float:
        table = confusion(t, p, len(classes))
        tp = table.diagonal()
        fp, fn = table.sum(0) - tp, table.sum(1) - tp
        if chosen is not None:
            return float(of(tp, fp, fn)[chosen])
        there = tp + fp + fn > 0
        return _mean(of, tp[there], fp[there], fn[there], average)

    return bootstrap(statistic, true, pred, **how)


def _columns(true: Values, pred: Values) -> tuple[Counts, Counts, Counts]:
    return (true & pred).sum(0), (~true & pred).sum(0), (true & ~pred).sum(0)


def _mean(of: Any, tp: Counts, fp: Counts, fn: Counts, average: str) -> float:
    if average == "micro":
        return float(of(tp.sum(), fp.sum(), fn.sum()))
    return float(of(tp, fp, fn).mean())


def _positive(classes: Values, positive: Any) -> int:
    names = classes.tolist()
    if positive is None and len(names) == 2:
        return 1  # as scikit-learn takes 1 of 0 and 1
    if positive not in names:
        raise ConfigError(
            f"the positive class {positive!r} is not among {', '.join(map(str, names[:10]))}",
            hint="name it: positive=...",
        )
    return names.index(positive)


# ------------------------------------------------------------------------------------------ from scores


def _of_scores(of: Any, y_true: Any, scores: Any, classes: Any, how: Any) -> Score:
    true, given = _labels(y_true, "labels"), np.asarray(scores, dtype=np.float64)
    if np.isnan(given).any():
        raise InputError(
            f"{int(np.isnan(given).sum()):,} scores are missing", hint="leave these examples out"
        )
    if true.ndim == 1:
        names = np.unique(true) if classes is None else np.asarray(classes)
        if given.ndim == 1 and len(names) < 2:
            return Score(float("nan"), n=len(true), reason="the labels are of one class")
        true = true[:, None] == names  # (n, classes)
        if given.ndim == 1 or len(names) == 2:
            true, given = true[:, 1:2], given.reshape(len(given), -1)[:, -1:]
    if true.shape != given.shape:
        raise InputError(
            f"scores of shape {given.shape} for {true.shape[1]} classes",
            hint="a column a class; name the columns by classes=",
        )
    return bootstrap(
        lambda t, s: float(np.mean([of(t[:, k] == 1, s[:, k]) for k in range(t.shape[1])])),
        true,
        given,
        **how,
    )


def _auc(true: Values, score: Values) -> float:
    """Mann-Whitney: how often a positive scores above a negative; ties count half."""
    positive, negative = score[true], np.sort(score[~true])
    if not len(positive) or not len(negative):
        raise UndefinedError("a class has no examples, or all of them")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / 2 / len(negative))


def _ap(true: Values, score: Values) -> float:
    """Sum over thresholds of precision times the gain in recall."""
    if not true.any():
        raise UndefinedError("a class has no examples")
    order = np.argsort(-score, kind="stable")
    hits, ordered = np.cumsum(true[order]), score[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of each run of equal scores
    found = hits[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / found[-1])

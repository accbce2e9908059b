"""Predicted against measured expression after a perturbation, as scGPT and GEARS score it."""

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np

from ribozyme.errors import InputError
from ribozyme.metrics.regression import correlation
from ribozyme.metrics.score import Resampling, Score, UndefinedError, Values, bootstrap

TOP = 20


def perturbation(
    truth: Mapping[str, Any],
    predicted: Mapping[str, Any],
    control: Any,
    *,
    top_genes: Mapping[str, Any] | None = None,
    top: int = TOP,
    **how: Unpack[Resampling],
) -> dict[str, Score]:
    """Scores of mean expression, averaged over conditions.

    Parameters
    ----------
    truth, predicted : by condition, (cells, genes) expression, or its mean (genes,)
    control : (cells, genes) of cells that were not perturbed
    top_genes : by condition, columns of the genes that change most; by default the `top` of Welch's t of the
        measured cells against the control

    Returns
    -------
    `pearson`, `pearson_delta` (of changes against the control's mean), `mse`, and the same with `_top`, on
    the genes that change most; intervals by resampling conditions. A prediction of no change at all has
    `pearson_delta` 0.
    """
    if missing := [name for name in truth if name not in predicted]:
        raise InputError(f"{len(missing)} conditions were not predicted, such as {missing[0]!r}")
    if not truth:
        raise InputError("there are no conditions to score")
    base = _cells(control)
    rows = []
    for name in truth:
        measured = _cells(truth[name])
        genes = _most_changed(measured, base, top) if top_genes is None else np.asarray(top_genes[name])
        rows.append(_scores(measured.mean(0), _cells(predicted[name]).mean(0), base.mean(0), genes))
    return {key: _mean([row[key] for row in rows], how) for key in rows[0]}


def _cells(given: Any) -> Values:
    """(cells, genes) float64."""
    dense = given.toarray() if hasattr(given, "toarray") else given
    return np.atleast_2d(np.asarray(dense, dtype=np.float64))


def _most_changed(measured: Values, control: Values, top: int) -> Values:
    change = np.abs(measured.mean(0) - control.mean(0))
    if len(measured) > 1 and len(control) > 1:
        spread = np.sqrt(measured.var(0, ddof=1) / len(measured) + control.var(0, ddof=1) / len(control))
        change = np.divide(change, spread, out=np.zeros_like(change), where=spread > 0)
    return np.argsort(-change, kind="stable")[:top]


def _scores(true: Values, pred: Values, control: Values, genes: Values) -> dict[str, float]:
    if not true.shape == pred.shape == control.shape:
        raise InputError(f"{true.shape[0]:,}, {pred.shape[0]:,} and {control.shape[0]:,} genes")
    found = {}
    for suffix, chosen in (("", slice(None)), ("_top", genes)):
        t, p, c = true[chosen], pred[chosen], control[chosen]
        found[f"pearson{suffix}"] = _correlation(t, p)
        found[f"pearson_delta{suffix}"] = _correlation(t - c, p - c)
        found[f"mse{suffix}"] = float(np.square(t - p).mean())
    return found


def _correlation(true: Values, pred: Values) -> float:
    if pred.min() == pred.max():
        return 0.0
    try:
        return correlation(true, pred)
    except UndefinedError:
        return float("nan")


def _mean(values: list[float], how: Any) -> Score:
    """Over conditions; those in which nothing was measured to change are left out."""
    kept = np.array([value for value in values if not np.isnan(value)])
    if not len(kept):
        return Score(float("nan"), n=len(values), reason="the measured expression is constant")
    return bootstrap(lambda v: v.mean(), kept, **how)

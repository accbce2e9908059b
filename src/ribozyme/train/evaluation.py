"""How good a predictor is on labelled inputs, beside the baselines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

import ribozyme.metrics as metrics
from ribozyme.errors import InputError
from ribozyme.metrics import Score
from ribozyme.metrics.summary import paired_letters
from ribozyme.train.baselines import baselines
from ribozyme.train.estimators import Estimator
from ribozyme.train.labels import Labels
from ribozyme.train.tables import Labelled
from ribozyme.train.xy import as_labels

MAIN = {"regression": "spearman", "classification": "accuracy", "multilabel": "f1"}
"""The metric that predictors are compared by."""
LABEL_WIDTH, SCORE_WIDTH = 18, 24
"""Letters that the name of a metric, and a value with its interval, take."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores by predictor and metric.

    gain : by how much the predictor beats the best baseline in the metric `by`, on the same examples
    """

    scores: Mapping[str, Mapping[str, Score]]
    by: str
    gain: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            name: {metric: score.to_dict() for metric, score in of.items()}
            for name, of in self.scores.items()
        }
        gain = {} if self.gain is None else {"gain": {"metric": self.by, **self.gain.to_dict()}}
        return {"scores": found, **gain}


def evaluate(
    estimator: Estimator, data: Labelled, training: Labelled | None = None, *, seed: int = 0
) -> Evaluation:
    """Scores on `data`; with `training` also of the baselines, tuned on (whole groups of) it and fitted."""
    check_is_fitted(estimator, "tuned_")
    labels = estimator.tuned_.labels
    assert labels is not None
    how = {"groups": data.groups, "seed": seed} if data.groups is not None else {"seed": seed}
    scores = {"model": estimator.evaluate(data.X, data.y, **how)}
    by = MAIN[labels.task]
    if training is None:
        return Evaluation(scores, by)
    if labels.task == "classification" and labels.level == "input":
        data, training = (replace(of, y=as_labels(of.y, labels)) for of in (data, training))
    predictions = {}
    weight = getattr(estimator, "class_weight", None)
    how_tuned: dict[str, Any] = {"class_weight": weight, "groups": training.groups, "seed": seed}
    found = baselines(labels.task, training.X, level=labels.level, **how_tuned)
    for name, baseline in found.items():
        whole = {"groups": training.groups} if isinstance(baseline, Estimator) else {}
        baseline.fit(training.X, training.y, **whole)
        predictions[name] = baseline.predict(data.X)
        scores[name] = _scores(baseline, data, predictions[name], labels, how)
    best = max(predictions, key=lambda name: np.nan_to_num(scores[name][by].value, nan=-np.inf))
    gain = _gain(labels, data, estimator.predict(data.X), predictions[best], by, how)
    return Evaluation(scores, by, gain)


def _scores(baseline: Any, data: Labelled, predicted: Any, labels: Labels, how: Any) -> dict[str, Score]:
    if isinstance(baseline, Estimator):
        return baseline.evaluate(data.X, data.y, **how)
    if labels.level == "token":
        return metrics.letters_summary(labels.task, data.y, predicted, **how)
    true = np.asarray(data.y)
    if labels.task == "regression":
        return metrics.summary("regression", true.astype(float), predicted, **how)
    classes = list(baseline.classes_) if labels.task == "classification" else None
    return metrics.summary(
        labels.task, true, predicted, baseline.predict_proba(data.X), classes=classes, **how
    )


def _gain(labels: Labels, data: Labelled, ours: Any, theirs: Any, by: str, how: Any) -> Score | None:
    """The difference in one metric, with its own interval."""
    groups: Any
    if labels.level == "token":
        true, (ours, theirs), rows = paired_letters(data.y, ours, theirs)
        groups = rows if data.groups is None else data.groups[rows]
    else:
        known = np.array([one is not None and not np.any(one != one) for one in ours])
        true, ours, theirs = (np.asarray(of)[known] for of in (data.y, ours, theirs))
        groups = None if data.groups is None else data.groups[known]
    if len(true) < 2:
        return None
    if labels.task == "regression":
        true, ours, theirs = (of.astype(float) for of in (true, ours, theirs))
    elif ours.dtype == object:
        ours = np.array(ours.tolist())

    def statistic(y: Any, p: Any) -> float:
        score: Score = getattr(metrics, by)(y, p, resamples=0)
        if np.isnan(score.value):
            raise metrics.UndefinedError(score.reason)
        return score.value

    return metrics.difference(statistic, true, ours, theirs, **{**how, "groups": groups})


def table(found: Evaluation, width: int | None = None) -> Any:
    """For people: a row a metric, a column a predictor (a rich Table); narrow ones break before intervals."""
    from rich.table import Table

    if not found.scores:
        raise InputError("there are no scores")
    narrow = width is not None and width < LABEL_WIDTH + SCORE_WIDTH * len(found.scores)
    shown = Table("", *found.scores, box=None, pad_edge=False)
    for metric in next(iter(found.scores.values())):
        cells = [str(of[metric]) if metric in of else "" for of in found.scores.values()]
        shown.add_row(metric.replace("_", " "), *(c.replace(" [", "\n[") if narrow else c for c in cells))
    return shown

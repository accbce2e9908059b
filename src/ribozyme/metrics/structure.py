"""Base pairs against predicted base pairs."""

from collections.abc import Iterable, Sequence
from typing import Literal, Unpack

import numpy as np

from ribozyme.errors import ConfigError, InputError
from ribozyme.io.structures import Pair, from_dot_bracket
from ribozyme.metrics.score import Resampling, Score, Values, bootstrap

Pairs = Sequence[str | Iterable[Pair]]


def base_pairs(
    truth: Pairs,
    predicted: Pairs,
    *,
    slack: bool = False,
    average: Literal["macro", "micro"] = "macro",
    **how: Unpack[Resampling],
) -> dict[str, Score]:
    """Precision, recall and F1 of base pairs.

    Parameters
    ----------
    truth, predicted : one structure an RNA: dot-bracket, or pairs of places from 0
    slack : a pair also counts as right where one of its ends is off by one nucleotide (Mathews 1999)
    average : `macro`, the mean over RNAs; `micro`, over all pairs together

    Returns
    -------
    `precision`, `recall`, `f1`; intervals by resampling RNAs. Where there is no pair and none is predicted,
    the prediction is right and counts 1; where only one of them has pairs, it counts 0.
    """
    if average not in ("macro", "micro"):
        raise ConfigError(f"average {average!r} does not exist", hint="one of macro, micro")
    if len(truth) != len(predicted):
        raise InputError(f"{len(truth):,} structures and {len(predicted):,} predictions")
    counts = np.array([_counts(_pairs(t), _pairs(p), slack) for t, p in zip(truth, predicted)])
    counts = counts.reshape(-1, 4)
    return {
        name: bootstrap(_statistic(name, average), counts, **how) for name in ("precision", "recall", "f1")
    }


def _pairs(structure: str | Iterable[Pair]) -> set[Pair]:
    pairs = from_dot_bracket(structure) if isinstance(structure, str) else structure
    return {(int(min(i, j)), int(max(i, j))) for i, j in pairs}


def _counts(truth: set[Pair], predicted: set[Pair], slack: bool) -> tuple[int, int, int, int]:
    """True pairs, those found, predicted pairs, those that are right."""
    near_truth, near_predicted = (_near(truth), _near(predicted)) if slack else (truth, predicted)
    return len(truth), len(truth & near_predicted), len(predicted), len(predicted & near_truth)


def _near(pairs: set[Pair]) -> set[Pair]:
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    return {(i + di, j + dj) for i, j in pairs for di, dj in shifts}


def _statistic(name: str, average: str):  # type: ignore[no-untyped-def]  # (n, 4) counts to a number
    def shares(counts: Values) -> Values:
        true, found, predicted, right = counts.T
        none = (true == 0) & (predicted == 0)
        precision, recall = _share(right, predicted, none), _share(found, true, none)
        if name != "f1":
            return precision if name == "precision" else recall
        return _share(2 * precision * recall, precision + recall, none)

    if average == "micro":
        return lambda counts: shares(counts.sum(0, keepdims=True))[0]
    return lambda counts: shares(counts).mean()


def _share(part: Values, whole: Values, right: Values) -> Values:
    """part / whole; 0 of nothing, but 1 where nothing is right."""
    return np.divide(part, whole, out=right.astype(float), where=whole > 0)

"""The best linear head on features that do not change: its problem is convex, so it is solved, not descended.

Numbers by ridge regression, classes by logistic regression (of several labels one for each), on standardised
features. Penalties are tried from the strongest to the weakest; the one is kept that says most of rows that
were held back, both in folds of the training part and in the validation part, each row counting once. (Of
near copies among training rows leave-one-out chooses too weak a penalty, and so do folds that cut groups of
them; of small validation parts alone a random one.)
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ribozyme.train.heads import Scaler, moments
from ribozyme.train.history import History
from ribozyme.train.labels import UNLABELLED, Labels

PENALTIES = 10.0 ** np.arange(2.0, -6.5, -0.5)
"""Of a row: the mean loss plus half the penalty times the squared weights is what is made small."""
UNJUDGED = 1e-2
"""The penalty where there are too few inputs to judge by."""
WORSE = 3
"""Penalties that are no better than the best after which no weaker one is tried."""
FOLDS, FEWEST, MANY = 5, 10, 20_000
"""Folds of the training part; of fewer inputs none; of more rows only the first fold."""
QUICK: dict[str, Any] = {"max_iter": 100, "tol": 1e-3}
EXACT: dict[str, Any] = {"max_iter": 1_000, "tol": 1e-5}
"""Of logistic regressions: to choose a penalty by, and of the chosen one."""
NEVER = -10.0
"""A class that no row has is so much less likely, in logits, than the rarest that is there."""

Values = npt.NDArray[Any]
Weights = tuple[Values, Values]


@dataclass(frozen=True, slots=True)
class Rows:
    """What a head reads, and what it should say of it.

    features : (rows, width); targets : as `Labels.encode` gives them, a row each
    owner : (rows,) the group of each: letters of an input, and inputs of one group, are held back together
    """

    features: Values
    targets: Values
    owner: Values

    def __len__(self) -> int:
        return len(self.features)

    def of(self, rows: Values) -> "Rows":
        """Some of them."""
        return Rows(self.features[rows], self.targets[rows], self.owner[rows])

    def seen_by(self, scaler: Scaler) -> "Rows":
        """With standardised features."""
        mean, scale = (one.cpu().numpy() for one in (scaler.mean, scaler.scale))
        return replace(self, features=(self.features - mean) / scale)


@dataclass(frozen=True, slots=True)
class Solution:
    """A linear head: weight (outputs, width) and bias (outputs,), and how its penalty was chosen.

    penalties : tried; loss, held_loss : mean loss of the rows that each was fitted to, and held back from it
    """

    weight: Values
    bias: Values
    penalties: list[float]
    loss: list[float]
    held_loss: list[float]

    @torch.no_grad()
    def into(self, head: nn.Module) -> None:
        """Put it into a linear head."""
        [linear] = [part for part in head.modules() if isinstance(part, nn.Linear)]
        linear.weight.copy_(torch.from_numpy(self.weight))
        linear.bias.copy_(torch.from_numpy(self.bias))

    def history(self) -> History:
        """Of a step a penalty, from the strongest to the weakest, which is its `rate`."""
        steps = list(range(1, len(self.loss) + 1))
        nothing = [0] * len(steps)
        return History(
            steps=steps,
            epochs=steps,
            tokens=nothing,
            seconds=[0.0] * len(steps),
            loss=self.loss,
            rate=self.penalties,
            norm=[0.0] * len(steps),
            validation_steps=steps[: len(self.held_loss)],
            validation_loss=self.held_loss,
        )


def fit_linear(rows: Rows, labels: Labels, held: Rows | None = None, *, seed: int = 0) -> Solution:
    """The linear head with the least penalised loss on `rows`.

    labels : what the outputs mean; its class weights count. Rows without a label are left out
    held : more rows to choose the penalty by; seed : of the folds
    """
    labels = replace(labels, level="input", text=False)  # from here on a row is an input
    rows, held = _labelled(rows, labels), None if held is None else _labelled(held, labels)
    mean, scale = moments(rows.features)
    rows = replace(rows, features=(rows.features - mean) / scale)
    parts = list(_folds(rows, seed))
    if held is not None and len(held):
        parts.append((rows, replace(held, features=(held.features - mean) / scale)))
    losses, held_losses = _judged(parts, labels)
    best = float(PENALTIES[int(np.argmin(held_losses))]) if parts else UNJUDGED
    [(weight, bias)] = _path(rows, labels, [best])
    weight = weight / scale
    tried = [float(one) for one in PENALTIES[: len(held_losses)]] or [best]
    if not parts:
        losses, held_losses = [_loss(rows, labels, (weight * scale, bias)).mean()], []
    return Solution(weight, bias - weight @ mean, tried, losses, held_losses)


def _labelled(rows: Rows, labels: Labels) -> Rows:
    targets = rows.targets
    known = targets != UNLABELLED if labels.task == "classification" else ~np.isnan(targets).all(1)
    return rows if known.all() else rows.of(np.flatnonzero(known))


def _folds(rows: Rows, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """(rows to fit, rows held back), groups whole."""
    groups, owner = np.unique(rows.owner, return_inverse=True)
    if len(groups) < FEWEST:
        return
    fold = (np.random.default_rng(seed).permutation(len(groups)) % FOLDS)[owner]
    for k in range(FOLDS if len(rows) <= MANY else 1):
        yield rows.of(np.flatnonzero(fold != k)), rows.of(np.flatnonzero(fold == k))


def _judged(parts: Sequence[tuple[Rows, Rows]], labels: Labels) -> tuple[list[float], list[float]]:
    """Mean losses by penalty, of rows that were fitted and of those held back."""
    losses: list[float] = []
    held_losses: list[float] = []
    for fits in zip(*(_path(fitted, labels, PENALTIES) for fitted, _ in parts)):
        pairs = list(zip(parts, fits))
        losses.append(_pooled([_loss(fitted, labels, fit) for (fitted, _), fit in pairs]))
        held_losses.append(_pooled([_loss(held, labels, fit) for (_, held), fit in pairs]))
        if len(held_losses) - 1 - int(np.argmin(held_losses)) >= WORSE:
            break
    return losses, held_losses


def _pooled(losses: Sequence[Values]) -> float:
    return float(np.concatenate(losses).mean())


def _loss(rows: Rows, labels: Labels, fit: Weights) -> Values:
    """(rows,) of each."""
    outputs = torch.from_numpy(rows.features @ fit[0].T.astype(np.float32) + fit[1])
    return labels.losses(labels.in_units(outputs), torch.from_numpy(rows.targets)).numpy()


def _path(rows: Rows, labels: Labels, penalties: Sequence[float] | Values) -> Iterator[Weights]:
    """The solution at each penalty."""
    paths: dict[str, Callable[..., Iterator[Weights]]] = {
        "regression": _ridge,
        "classification": _softmax,
        "multilabel": _sigmoids,
    }
    return paths[labels.task](rows.features, rows.targets, labels, penalties)


def _ridge(X: Values, targets: Values, labels: Labels, penalties: Sequence[float]) -> Iterator[Weights]:
    """By the eigenvalues of X'X, once for all penalties; a number that is missing is left out."""
    goal = (targets - np.array(labels.mean)) / np.array(labels.scale)
    patterns = list(_patterns(goal))
    parts = [_decomposed(X[known], goal[known][:, columns]) for known, columns in patterns]
    for penalty in penalties:
        weight, bias = np.zeros((labels.outputs, X.shape[1])), np.zeros(labels.outputs)
        for (known, columns), (values, vectors, onto, mean, offset) in zip(patterns, parts):
            shrunk = onto / (values + penalty * known.sum())[:, None]
            weight[columns] = (vectors @ shrunk).T
            bias[columns] = offset - weight[columns] @ mean
        yield weight, bias


def _patterns(goal: Values) -> Iterator[tuple[Values, Values]]:
    """(rows,) which have a number, and the columns of which this is so."""
    patterns, of = np.unique(~np.isnan(goal), axis=1, return_inverse=True)
    for k, known in enumerate(patterns.T):
        yield known, np.flatnonzero(of.ravel() == k)


def _decomposed(X: Values, goal: Values) -> tuple[Values, ...]:
    """Eigenvalues and vectors of X'X, X'goal in their basis, and the means that were taken off."""
    mean, offset = X.mean(0, dtype=np.float64), goal.mean(0)
    centred = X.astype(np.float64) - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return values.clip(0), vectors, vectors.T @ (centred.T @ (goal - offset)), mean, offset


def _softmax(X: Values, targets: Values, labels: Labels, penalties: Sequence[float]) -> Iterator[Weights]:
    weights = None if not labels.weights else np.array(labels.weights)[targets]
    there = np.unique(targets)
    for coef, intercept in _logistic(X, targets, weights, penalties):
        if len(coef) == 1:  # of two classes scikit-learn gives what the second has above the first
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        weight = np.zeros((labels.outputs, X.shape[1]))
        bias = np.full(labels.outputs, intercept.min() + NEVER)
        weight[there], bias[there] = coef[: len(there)], intercept[: len(there)]
        yield weight, bias


def _sigmoids(X: Values, targets: Values, labels: Labels, penalties: Sequence[float]) -> Iterator[Weights]:
    weights = labels.weights or (1.0,) * labels.outputs
    columns = [
        _logistic(X, column, np.where(column == 1, weight, 1.0), penalties, only=column[0])
        for column, weight in zip(targets.T, weights)
    ]
    for fits in zip(*columns):
        yield np.concatenate([coef for coef, _ in fits]), np.concatenate([bias for _, bias in fits])


def _logistic(
    X: Values, targets: Values, weights: Values | None, penalties: Sequence[float], only: float = 0.0
) -> Iterator[Weights]:
    """scikit-learn's coefficients, each begun from those before; none where all rows are of class `only`.

    weights : (rows,) how much each counts
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(targets)) == 1:
        for _ in penalties:
            yield np.zeros((1, X.shape[1])), np.array([-NEVER if only else NEVER])
        return
    model = LogisticRegression(warm_start=True, **(QUICK if len(penalties) > 1 else EXACT))
    for penalty in penalties:
        model.set_params(C=1 / (penalty * len(X)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # held rows judge what came out
            model.fit(X, targets, sample_weight=weights)
        yield model.coef_.copy(), model.intercept_.copy()

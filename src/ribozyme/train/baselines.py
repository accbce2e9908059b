"""What a foundation model must beat: simple predictors, tuned on the training part alone.

For sequences k-mers with ridge or logistic regression and with a random forest, codons where the sequences
are coding, and a TextCNN on letters from scratch; for letters of sequences their neighbourhood; for cells
variable genes, principal components and logistic regression. All are scikit-learn estimators that take what
ours take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor, nn

from ribozyme.errors import InputError
from ribozyme.packing import Packed
from ribozyme.train.kmers import Codons, Kmers, are_coding, codes_of, letters_of
from ribozyme.train.labels import UNLABELLED, Labels, Level, Task
from ribozyme.train.splits import folds

ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
CS = (0.003, 0.03, 0.3, 3.0, 30.0, 300.0)
TREES, FOREST_KMER = 200, 4
FOLDS, MANY = 5, 2_000
"""Of the cross-validation for a strength; of more examples than this one fold is enough, and long."""
REACH = 6
VARIABLE_GENES = 2_000
COMPONENTS = 50
MOST_DEVIATIONS = 10.0

Values = npt.NDArray[Any]


def baselines(
    task: Task,
    X: Any,
    *,
    level: Level = "input",
    class_weight: Any = None,
    groups: Any = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Unfitted baselines by name, of those that fit the training inputs `X` (sequences or an AnnData).

    groups : (n,) a label a training input; strengths are chosen on whole groups, as ours are
    class_weight : as of the estimators; of several labels only `balanced`, a weight by name is left out
    """
    if task == "multilabel" and class_weight != "balanced":
        class_weight = None  # each label is a classifier of 0 and 1, which knows no names
    if hasattr(X, "obs"):
        return {
            "PCA": make_pipeline(VariableGenes(), *_principal(X), _linear(task, seed, class_weight, groups))
        }
    if level == "token":
        return {"neighbourhood": Neighbourhood(task, seed=seed)}
    found = {"k-mers": _counts(Kmers(), task, seed, class_weight, groups)}
    if are_coding(letters_of(X)):
        found["codons"] = _counts(Codons(), task, seed, class_weight, groups)
    found["forest"] = _forest(task, seed, class_weight)
    found["TextCNN"] = text_cnn(task, class_weight, seed)
    return found


def text_cnn(task: Task, class_weight: Any = None, seed: int = 0) -> Any:
    """Convolutions over the letters, trained from scratch."""
    from ribozyme.engine.sequences import SequenceModel
    from ribozyme.train.estimators import Classifier, Regressor

    letters = SequenceModel(OneHot(), FourLetters(), torch.device("cpu"))
    how: dict[str, Any] = {"head": "textcnn", "dropout": 0.2, "epochs": 40, "batch_size": 32, "seed": seed}
    how |= {"learning_rate": 2e-3, "device": "cpu"}
    if task == "regression":
        return Regressor(letters, **how)
    return Classifier(letters, class_weight=class_weight, **how)


@dataclass(frozen=True, slots=True)
class OneHotConfig:
    """Of a network without layers."""

    dim: int = 5
    layers: int = 0
    causal: bool = False
    max_letters: None = None


class OneHot(nn.Module):
    """A network that knows nothing: a row says which letter it is."""

    def __init__(self) -> None:
        super().__init__()
        self.config = OneHotConfig()
        self.layers = nn.ModuleList()

    def encode(self, batch: Packed, layer: int = -1) -> Tensor:
        """(T, 5)."""
        return F.one_hot(batch.ids, self.config.dim).float()


class FourLetters:
    """A, C, G, U (T), and one id for all others."""

    letters: tuple[str, ...] = ("A", "C", "G", "U", "N")
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    mask_id: int | None = None
    unknown_id = -1  # N is known

    def encode(self, sequence: str) -> Values:
        """One id a letter."""
        return np.minimum(codes_of(sequence), 4).astype(np.int64)


class VariableGenes(TransformerMixin, BaseEstimator):
    """Cells (AnnData) to (n, top) log1p of counts per 10,000 of the genes that vary most in training cells.

    Values that are no counts are taken as they are (log-normalised).
    """

    def __init__(self, top: int = VARIABLE_GENES) -> None:
        self.top = top

    def fit(self, X: Any, y: Any = None) -> "VariableGenes":
        """Choose the genes."""
        values = _log_normalised(X)
        mean = np.asarray(values.mean(0)).ravel()
        variance = np.asarray(values.multiply(values).mean(0)).ravel() - mean**2
        chosen = np.sort(np.argsort(-variance, kind="stable")[: self.top])
        self.genes_ = np.asarray(X.var_names)[chosen]
        return self

    def transform(self, X: Any) -> Values:
        """The values of these genes; 0 where a cell's table lacks one."""
        place = {name: k for k, name in reversed(list(enumerate(X.var_names)))}
        columns = np.array([place.get(name, -1) for name in self.genes_])
        if (columns < 0).all():
            raise InputError("the cells have none of the genes of the training cells")
        values = np.zeros((X.n_obs, len(columns)), np.float32)
        values[:, columns >= 0] = _log_normalised(X)[:, columns[columns >= 0]].toarray()
        return values


def _log_normalised(cells: Any) -> Any:
    values = sparse.csr_matrix(cells.X, dtype=np.float64, copy=True)
    if len(values.data) and not np.equal(np.mod(values.data, 1), 0).all():
        return values
    totals = np.asarray(values.sum(1)).ravel()
    values.data = np.log1p(values.data * np.repeat(1e4 / np.maximum(totals, 1), np.diff(values.indptr)))
    return values


def _counts(counter: Any, task: Task, seed: int, class_weight: Any, groups: Any) -> Any:
    linear = _linear(task, seed, class_weight, groups)
    return make_pipeline(counter, TfidfTransformer(sublinear_tf=True), linear)


def _forest(task: Task, seed: int, class_weight: Any) -> Any:
    """A random forest on the shorter k-mers; it has nothing that must be tuned."""
    how: dict[str, Any] = {"n_estimators": TREES, "min_samples_leaf": 2, "random_state": seed}
    if task == "regression":
        forest: Any = RandomForestRegressor(max_features=1 / 3, **how)
    else:
        forest = RandomForestClassifier(class_weight=class_weight, **how)
    if task == "multilabel":
        forest = OneVsRestClassifier(forest)
    return make_pipeline(Kmers(FOREST_KMER), TfidfTransformer(use_idf=False, norm="l1"), forest)


def _principal(X: Any) -> tuple[Any, ...]:
    """As is usual for cells: genes scaled and clipped, then components."""
    most = min(COMPONENTS, X.n_obs - 1, X.n_vars)
    clip = FunctionTransformer(np.clip, kw_args={"a_min": -MOST_DEVIATIONS, "a_max": MOST_DEVIATIONS})
    return StandardScaler(), clip, PCA(max(1, most), random_state=0)


def _linear(task: Task, seed: int, class_weight: Any = None, groups: Any = None) -> Any:
    """Ridge or logistic regression; its strength is chosen by cross-validation in the training examples."""
    if task == "regression":
        return Tuned(Ridge(), "alpha", ALPHAS, "neg_mean_squared_error", seed, groups)
    logistic = LogisticRegression(max_iter=1000, class_weight=class_weight)
    if task == "multilabel":
        return Tuned(OneVsRestClassifier(logistic), "estimator__C", CS, None, seed, groups)
    return Tuned(logistic, "C", CS, likelihood, seed, groups)


def likelihood(classifier: Any, X: Any, y: Any) -> float:
    """Mean log-probability of the classes, of which some may not be among `y`."""
    return -float(log_loss(y, classifier.predict_proba(X), labels=classifier.classes_))


class Tuned(BaseEstimator):
    """An estimator with one parameter chosen among some by cross-validation over examples, or `groups`."""

    def __init__(
        self,
        estimator: Any,
        parameter: str,
        values: Sequence[float],
        scoring: Any,
        seed: int = 0,
        groups: Any = None,
    ) -> None:
        self.estimator, self.parameter, self.values = estimator, parameter, values
        self.scoring, self.seed, self.groups = scoring, seed, groups

    def fit(self, X: Any, y: Any) -> "Tuned":
        """Choose, then fit to all examples."""
        target = np.asarray(y)
        search = GridSearchCV(
            self.estimator,
            {self.parameter: list(self.values)},
            scoring=self.scoring,
            cv=self._held_back(target),
            error_score="raise",
        )
        self.chosen_ = search.fit(X, target).best_estimator_
        if hasattr(self.chosen_, "classes_"):
            self.classes_ = self.chosen_.classes_
        return self

    def predict(self, X: Any) -> Any:
        """Of the chosen estimator."""
        return self.chosen_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Of the chosen estimator."""
        return self.chosen_.predict_proba(X)

    def _held_back(self, target: Values) -> list[tuple[Values, Values]]:
        """Rows to learn from and to choose on."""
        classes = target if self.scoring is likelihood else None
        groups = self.groups if self.groups is not None and len(np.unique(self.groups)) >= FOLDS else None
        parts = []
        if len(target) >= FOLDS:
            parts = list(folds(len(target), FOLDS, stratify=classes, groups=groups, seed=self.seed))
        if len(target) > MANY:
            parts = parts[:1]
        if classes is not None:  # a class that was not learnt cannot be judged
            parts = [(train, held[np.isin(classes[held], classes[train])]) for train, held in parts]
            parts = [part for part in parts if len(np.unique(classes[part[0]])) > 1 and len(part[1])]
        return parts or [(np.arange(len(target)),) * 2]  # too few to hold any back: the weakest penalty


class Neighbourhood(BaseEstimator):
    """Of each letter, from the letters up to `reach` away and its distance to the ends: ridge, or logistic.

    `y` is a list of labels of letters (or a string) a sequence; letters without a label are not learnt from.
    """

    def __init__(self, task: Task = "regression", reach: int = REACH, seed: int = 0) -> None:
        self.task, self.reach, self.seed = task, reach, seed

    def fit(self, X: Any, y: Any) -> "Neighbourhood":
        """Learn from all letters that have a label."""
        sequences = letters_of(X)
        self.labels_ = Labels.seen(self.task, y, len(sequences), level="token")
        targets = self.labels_.encode(y, len(sequences), [len(one) for one in sequences])
        rows = np.concatenate([self._rows(one) for one in sequences])
        target = np.concatenate([one.numpy() for one in targets])
        known = target != UNLABELLED if self.task == "classification" else ~np.isnan(target).any(1)
        self.model_ = _linear(self.task, self.seed).fit(rows[known], target[known])
        return self

    def predict(self, X: Any) -> Any:
        """One array (or string) a sequence."""
        outputs = []
        for one in letters_of(X):
            predicted = self.model_.predict(self._rows(one))
            if self.task == "classification":
                predicted = np.eye(self.labels_.outputs)[predicted]
            outputs.append(predicted.reshape(len(one), -1))
        return self.labels_.decode(outputs)

    def _rows(self, sequence: str) -> Values:
        """(letters, (2 reach + 1) 4 + 2) letters around each, one-hot, and how near the ends are."""
        letters = np.pad(codes_of(sequence), self.reach, constant_values=255)
        around = np.lib.stride_tricks.sliding_window_view(letters, 2 * self.reach + 1)
        hot = (around[:, :, None] == np.arange(4)).reshape(len(sequence), -1)
        place = np.arange(len(sequence))
        ends = np.stack([1 / (1 + place), 1 / (len(sequence) - place)], axis=1)
        return np.concatenate([hot, ends], axis=1)

"""Estimators as scikit-learn knows them: sequences (or cells) and labels in, predictions out.

>>> classifier = Classifier("rnafm-mini", epochs=3, validation=0)
>>> classifier.fit(["GGGAAACCC", "AUAUAUAUA"], ["hairpin", "open"]).predict(["GGGAAACCC"]).shape
(1,)

They take what `read_sequences` reads, or an AnnData, as X, and work in `cross_val_score`, `GridSearchCV` and
`Pipeline`. Each is a `FineTuned` with everything that was chosen for it, saved with it (`estimator.py`).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin

from ribozyme.train.estimator import Estimator
from ribozyme.train.labels import Labels, Level, Task
from ribozyme.train.xy import columns_of

__all__ = ["KINDS", "Classifier", "Estimator", "Regressor", "TokenClassifier", "TokenRegressor"]


@dataclass(eq=False, repr=False)
class Classifier(ClassifierMixin, Estimator):
    """A class for each sequence or cell; of a table (n, k) of 0 and 1, several labels each.

    class_weight : `balanced`, so that all classes count alike, or a weight by class
    """

    class_weight: Any = field(default=None, kw_only=True)

    def predict_proba(self, X: Any) -> Any:
        """(n, k) float32 probabilities, columns as in `classes_`; of letters a list of such."""
        outputs = self._outputs(X)
        if self.level == "token":
            return [self._labels.probabilities(one) for one in outputs]
        return self._labels.probabilities(outputs)

    def _task(self, y: Any) -> Task:
        return "multilabel" if self.level == "input" and columns_of(y) > 1 else "classification"

    def _learnt(self, labels: Labels) -> None:
        self.classes_ = np.array(labels.classes)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class Regressor(RegressorMixin, Estimator):
    """A number, or several, for each sequence or cell."""

    def _task(self, y: Any) -> Task:
        return "regression"


class TokenClassifier(Classifier):
    """A class for each letter of each sequence.

    Labels are one string, or list of classes, a sequence (None where a letter has none); so are predictions.
    """

    level: ClassVar[Level] = "token"

    def score(self, X: Any, y: Any, sample_weight: None = None) -> float:
        """Accuracy over all letters."""
        return self.evaluate(X, y, resamples=0)["accuracy"].value


class TokenRegressor(Regressor):
    """A number, or several, for each letter of each sequence.

    Labels are one list of numbers, or (letters, k) table, a sequence (NaN where a letter has none).
    """

    level: ClassVar[Level] = "token"

    def score(self, X: Any, y: Any, sample_weight: None = None) -> float:
        """R2 over all letters."""
        return self.evaluate(X, y, resamples=0)["r2"].value


KINDS = {kind.__name__: kind for kind in (Classifier, Regressor, TokenClassifier, TokenRegressor)}

_SHARED = (Estimator.__doc__ or "").partition("\n")[2].strip()
for _kind in KINDS.values():  # `help` of each says what its parameters are
    _kind.__doc__ = f"{_kind.__doc__}\n    {_SHARED}\n"

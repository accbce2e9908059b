"""What the four estimators share: parameters, fit, predict, evaluate, save and load."""

import warnings
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

import ribozyme.metrics as metrics
from ribozyme.errors import CheckpointError, ConfigError, InputError, InputWarning
from ribozyme.metrics import Score
from ribozyme.metrics.score import group_codes
from ribozyme.train import saved
from ribozyme.train.finetune import FineTuned
from ribozyme.train.inputs import Inputs, read_inputs
from ribozyme.train.labels import Labels, Level, Task
from ribozyme.train.splits import Rows, split
from ribozyme.train.xy import as_labels, count_of, examples, pair, take

FEWEST = 20
"""Of fewer examples (groups) none is held back for validation."""
LEAST = {"batch_size": 1, "seed": 0, "hidden": 1, "lora_rank": 1, "layers": 0, "epochs": 1, "patience": 1}
"""Settings that are whole numbers, some of which may be None."""
WARMUP = 0.05
"""Share of the steps with a rising learning rate, before it falls to zero on a cosine."""
RESAMPLES = 200
"""Of the intervals of `metrics_`, which every fit computes."""
EPOCHS = {"head": 100, "lora": 20, "layers": 20}
RATES = {"head": 1e-2, "lora": 1e-3, "layers": 3e-4}
"""Epochs and learning rates by what is trained, where none are given."""

Array = npt.NDArray[Any]


@dataclass(eq=False, repr=False)  # whose signature scikit-learn reads
class Estimator(BaseEstimator):
    """What `Classifier`, `Regressor`, `TokenClassifier` and `TokenRegressor` share.

    Parameters
    ----------
    model : what `ribozyme.load` takes, or a loaded model, of which a copy is trained
    head : `linear`; `mlp`; `textcnn`, convolutions over the letters; `attention`, a learnt weighted mean
    layers : 0, the head alone, on features that are computed once; n, also the last n layers; None, all
    lora_rank : also train LoRA adapters of this rank in all linear layers (needs the extra `lora`)
    pooling : of the letters (genes) to what `linear` and `mlp` read, as of `FineTuned`
    hidden : inner width of an `mlp`, channels of a `textcnn`
    dropout : share of numbers that the head drops while training
    epochs : at most, by default 100 of the head alone, else 20; with a validation part, training stops after
        `patience` epochs that are no better. A linear head alone is solved instead (`train/linear.py`),
        unless `epochs`, `learning_rate` or `dropout` is given
    learning_rate : by default 1e-2 of the head alone, 1e-3 with LoRA, 3e-4 of layers
    weight_decay : of matrices
    batch_size : inputs of a step
    batch_tokens : tokens at once; bounds the memory, not the result
    validation : share of the training examples (of each class; of `groups`) to choose the best epoch by; or 0
    patience : see `epochs`
    precision : of a descent: `float32`, `bfloat16` or `auto`, as of `Loop`
    overlong : for sequences past the window: `error` or `truncate`
    seed : of the head's first weights, the held-back part, the order and dropout
    device : as in `ribozyme.load`

    Attributes
    ----------
    tuned_ : the network with its head, a `FineTuned`
    history_ : losses
    validation_ : positions of the examples held back
    metrics_ : of the validation part, a `Score` by name; empty without one
    """

    level: ClassVar[Level] = "input"

    model: Any = "rnafm-mini"
    _: KW_ONLY
    head: str = "linear"
    layers: int | None = 0
    lora_rank: int | None = None
    pooling: str | None = None
    hidden: int | None = None
    dropout: float = 0.0
    epochs: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.01
    batch_size: int = 16
    batch_tokens: int | None = None
    validation: float = 0.1
    patience: int | None = 10
    precision: str = "float32"
    overlong: Literal["error", "truncate"] = "error"
    seed: int = 0
    device: str = "auto"

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        validation_data: tuple[Any, Any] | None = None,
        folder: str | PathLike[str] | None = None,
    ) -> Self:
        """Train on sequences or cells.

        Parameters
        ----------
        X : list of sequences or of (name, sequence), a Series, an AnnData, a path ...
        y : a label an input; of cells also the name of a column of `obs`
        groups : (n,) a label an input; what is held back to choose an epoch, or a penalty, is whole groups
        validation_data : inputs and labels to choose the best epoch by, in place of a share of these
        folder : keep the training there; stopped at any moment, the same call goes on from its checkpoint

        Raises
        ------
        InputError : labels or inputs that cannot be used, before a model is loaded or trained.
        """
        self._check_settings()
        X, y = examples(X, y)
        count = count_of(X)
        labels = self._understood(y, count)
        groups = None if groups is None else group_codes(groups, count)
        train, held = self._parts(labels, y, count, groups if validation_data is None else None)
        if validation_data is not None:
            X_held, y_held = examples(*pair(validation_data))
            labels.encode(y_held, count_of(X_held))  # what is wrong with it is said before anything long
            train, held = np.arange(count), np.empty(0, np.int64)
        tuned = self._tuned(labels)
        inputs = self._inputs(tuned, X)
        validation = None
        if validation_data is not None:
            validation = (self._inputs(tuned, X_held), y_held)
        elif len(held):
            validation = (inputs.chosen(held.tolist()), take(y, held))
        epochs = self._epochs(tuned)
        self.history_ = tuned.fit(
            inputs.chosen(train.tolist()),
            take(y, train),
            layers=self.layers,
            epochs=epochs,
            learning_rate=self._rate(),
            weight_decay=self.weight_decay,
            warmup=int(WARMUP * (epochs or 0) * -(-len(train) // self.batch_size)),
            decay="cosine",
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            validation=validation,
            groups=None if groups is None else groups[train],
            patience=None if validation is None else self.patience,
            folder=None if folder is None else Path(folder),
            precision=self.precision,
        )
        self.tuned_, self.validation_ = tuned, held
        self._learnt(labels)
        self.metrics_ = {} if validation is None else self.evaluate(*validation, resamples=RESAMPLES)
        return self

    def predict(self, X: Any) -> Any:
        """(n,) or (n, k) predictions; of letters a list, one array (or string) an input."""
        return self._labels.decode(self._outputs(X))

    def evaluate(self, X: Any, y: Any, **how: Any) -> dict[str, Score]:
        """Every metric of the task with its interval; keywords (`groups`, `seed`, ...) as of `rz.metrics`."""
        labels = self._labels
        X, y = examples(X, y)
        outputs = self._outputs(X)
        if self.level == "token":
            if len(outputs) != len(y):
                raise InputError(f"{len(y):,} labels for {len(outputs):,} inputs")
            return metrics.letters_summary(labels.task, list(y), labels.decode(outputs), **how)
        labels.encode(y, len(outputs))
        known = ~np.isnan(outputs).any(1)  # cells without any gene that the model knows have no prediction
        rows = np.flatnonzero(known)
        if how.get("groups") is not None:
            how["groups"] = group_codes(how["groups"], len(outputs))[rows]
        true, predicted = as_labels(take(y, rows), labels), labels.decode(outputs[rows])
        if labels.task == "regression":
            return metrics.summary("regression", true, predicted, **how)
        probabilities = labels.probabilities(outputs[rows])
        return metrics.summary(labels.task, true, predicted, probabilities, classes=labels.classes, **how)

    def save(self, folder: str | PathLike[str]) -> None:
        """Weights, sizes, vocabulary, labels, settings, metrics and versions in a folder; `load` reads it."""
        check_is_fitted(self, "tuned_")
        params = saved.plain(self.get_params(deep=False))
        if not isinstance(self.model, str | PathLike):
            record = getattr(self.model, "record", None)
            params["model"] = record.name if record else type(self.model).__name__
        self.tuned_.save(Path(folder))
        kind, held = type(self).__name__, self.validation_.tolist()
        saved.write_estimator(Path(folder), kind, params, self.metrics_, held)

    @classmethod
    def load(cls, folder: str | PathLike[str], *, device: str = "auto") -> Any:
        """What `save` wrote, of whichever kind.

        Raises
        ------
        CheckpointError : no such estimator, or one with a part missing, damaged, or of another version.
        """
        from ribozyme.train.estimators import KINDS

        folder = Path(folder)
        kind, params, scores, held = saved.read_estimator(folder)
        try:
            estimator = KINDS[kind](**saved.as_params(params))
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / saved.ESTIMATOR}: its settings are damaged ({error})"
            ) from error
        estimator.tuned_ = FineTuned.load(folder, device=device)
        estimator.validation_, estimator.metrics_ = np.array(held, np.int64), scores
        estimator._learnt(estimator._labels)
        return estimator

    def check(self, X: Any, y: Any, y_train: Any) -> None:
        """Raise `InputError` where inputs or labels are not for what `fit` makes of labels `y_train`."""
        X, y = examples(X, y)
        labels = self._understood(y_train, len(y_train))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # they come again when the inputs are used
            inputs = self._inputs(self._tuned(labels), X)
        letters = [length - inputs.special for length in inputs.lengths]
        labels.encode(y, len(inputs), letters if self.level == "token" else None)

    @property
    def _labels(self) -> Labels:
        check_is_fitted(self, "tuned_")
        assert self.tuned_.labels is not None
        return self.tuned_.labels

    def _task(self, y: Any) -> Task:
        """What kind of labels `y` are."""
        raise NotImplementedError

    def _class_weight(self) -> Any:
        return getattr(self, "class_weight", None)

    def _check_settings(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and int(value) >= least):
                raise ConfigError(f"{name} {value!r} must be a whole number, at least {least}")
        if not (isinstance(self.validation, Real) and 0 <= self.validation < 1):
            raise ConfigError(f"validation {self.validation!r} must be a share from 0 to below 1")
        if not isinstance(self.learning_rate, Real | None):
            raise ConfigError(f"learning_rate {self.learning_rate!r} must be a number")

    def _understood(self, y: Any, count: int) -> Labels:
        """What the labels mean; everything that is wrong with them is said here."""
        labels = Labels.seen(self._task(y), y, count, level=self.level, class_weight=self._class_weight())
        if labels.task == "classification" and labels.outputs == 1:
            raise InputError(
                f"all labels are of one class, {labels.classes[0]!r}", hint="a classifier needs at least two"
            )
        return labels

    def _parts(self, labels: Labels, y: Any, count: int, groups: Any) -> tuple[Rows, Rows]:
        """Positions to train on, and to validate on."""
        units = np.arange(count) if groups is None else groups
        if not self.validation or len(np.unique(units)) < FEWEST:
            return np.arange(count), np.empty(0, np.int64)
        one_class = labels.task == "classification" and self.level == "input"
        classes = labels.encode(y, count).numpy() if one_class else None
        parts = split(count, validation=self.validation, stratify=classes, groups=groups, seed=self.seed)
        train, held = parts.train, parts.validation
        while classes is not None and len(odd := np.setdiff1d(classes[held], classes[train])):
            # a class must be trained to be known: its units go over to the training part
            moved = np.isin(units, units[held[np.isin(classes[held], odd)]])
            train, held = np.flatnonzero(moved | np.isin(np.arange(count), train)), held[~moved[held]]
        return train, held

    def _tuned(self, labels: Labels) -> FineTuned:
        return FineTuned(
            self.model,
            task=labels.task,
            level=self.level,
            head=self.head,
            pooling=self.pooling,
            hidden=self.hidden,
            dropout=self.dropout,
            lora_rank=self.lora_rank,
            class_weight=self._class_weight(),
            standardise=True,
            device=self.device,
            generator=torch.Generator().manual_seed(int(self.seed)),
        )

    def _epochs(self, tuned: FineTuned) -> int | None:
        """At most; None for a head that is solved."""
        if self.epochs is None and self.learning_rate is None and tuned.solves(self.layers):
            return None
        return EPOCHS[self._trained()] if self.epochs is None else self.epochs

    def _rate(self) -> float:
        return RATES[self._trained()] if self.learning_rate is None else self.learning_rate

    def _trained(self) -> str:
        """What is trained beside the head."""
        return "lora" if self.lora_rank else "head" if self.layers == 0 else "layers"

    def _inputs(self, tuned: FineTuned, X: Any) -> Inputs:
        return read_inputs(tuned.model, X, overlong=self.overlong)

    def _outputs(self, X: Any) -> Any:
        check_is_fitted(self, "tuned_")
        return self.tuned_.outputs(X, batch_tokens=self.batch_tokens, overlong=self.overlong)

    def _learnt(self, labels: Labels) -> None:
        """Attributes that scikit-learn looks for."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

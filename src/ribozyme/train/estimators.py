"""Estimators as scikit-learn knows them: sequences (or cells) and labels in, predictions out.

>>> classifier = Classifier("rnafm-mini", epochs=3, validation=0)
>>> classifier.fit(["GGGAAACCC", "AUAUAUAUA"], ["hairpin", "open"]).predict(["GGGAAACCC"]).shape
(1,)

They take what `read_sequences` reads, or an AnnData, as X, and work in `cross_val_score`, `GridSearchCV` and
`Pipeline`. Each is a `FineTuned` with everything that was chosen for it, saved with it.
"""

import json
import platform
from collections.abc import Iterable
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

import ribozyme.metrics as metrics
from ribozyme.engine.embed import Overlong
from ribozyme.errors import CheckpointError, InputError
from ribozyme.files import AtomicFile
from ribozyme.io.sequences import read_sequences
from ribozyme.metrics import Score
from ribozyme.train.finetune import FineTuned, read_saved
from ribozyme.train.inputs import Inputs, read_inputs
from ribozyme.train.labels import Labels, Level, Task
from ribozyme.train.splits import Rows, split

FORMAT = 1
SETTINGS = "estimator.json"
FEWEST = 20
"""Of fewer examples (groups) none is held back for validation."""
WARMUP = 0.05
"""Share of the steps with a rising learning rate, before it falls to zero on a cosine."""
RESAMPLES = 200
"""Of the intervals of `metrics_`, which every fit computes."""
EPOCHS = {"head": 100, "lora": 20, "layers": 20}
RATES = {"head": 1e-2, "lora": 1e-3, "layers": 3e-4}
"""Epochs and learning rates by what is trained, where none are given."""
PACKAGES = ("ribozyme", "torch", "numpy", "scikit-learn", "safetensors")

Array = npt.NDArray[Any]


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
        `patience` epochs that are no better
    learning_rate : by default 1e-2 of the head alone, 1e-3 with LoRA, 3e-4 of layers
    weight_decay : of matrices
    batch_size : inputs of a step
    batch_tokens : tokens at once; bounds the memory, not the result
    validation : share of the training examples (of each class; of `groups`) to choose the best epoch by; or 0
    patience : see `epochs`
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

    def __init__(
        self,
        model: Any = "rnafm-mini",
        *,
        head: str = "linear",
        layers: int | None = 0,
        lora_rank: int | None = None,
        pooling: str | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        epochs: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.01,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        validation: float = 0.1,
        patience: int | None = 10,
        overlong: Overlong = "error",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.head = head
        self.layers = layers
        self.lora_rank = lora_rank
        self.pooling = pooling
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.validation = validation
        self.patience = patience
        self.overlong = overlong
        self.seed = seed
        self.device = device

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
        groups : (n,) a label an input; the validation part is of whole groups
        validation_data : inputs and labels to choose the best epoch by, in place of a share of these
        folder : keep the training there; stopped at any moment, the same call goes on from its checkpoint

        Raises
        ------
        InputError : labels or inputs that cannot be used, before a model is loaded or trained.
        """
        X, y = _examples(X, y)
        count = _count(X)
        labels = self._understood(y, count)
        train, held = self._parts(labels, y, count, groups if validation_data is None else None)
        if validation_data is not None:
            X_held, y_held = _examples(*validation_data)
            labels.encode(y_held, _count(X_held))  # what is wrong with it is said before anything long
            train, held = np.arange(count), np.empty(0, np.int64)
        tuned = self._tuned(labels)
        inputs = self._inputs(tuned, X)
        validation = None
        if validation_data is not None:
            validation = (self._inputs(tuned, X_held), y_held)
        elif len(held):
            validation = (inputs.chosen(held.tolist()), take(y, held))
        epochs = EPOCHS[self._trained()] if self.epochs is None else self.epochs
        self.history_ = tuned.fit(
            inputs.chosen(train.tolist()),
            take(y, train),
            layers=self.layers,
            epochs=epochs,
            learning_rate=self._rate(),
            weight_decay=self.weight_decay,
            warmup=int(WARMUP * epochs * -(-len(train) // self.batch_size)),
            decay="cosine",
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            validation=validation,
            patience=None if validation is None else self.patience,
            folder=None if folder is None else Path(folder),
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
        X, y = _examples(X, y)
        outputs = self._outputs(X)
        if self.level == "token":
            if len(outputs) != len(y):
                raise InputError(f"{len(y):,} labels for {len(outputs):,} inputs")
            return metrics.letters_summary(labels.task, list(y), labels.decode(outputs), **how)
        labels.encode(y, len(outputs))
        known = ~np.isnan(outputs).any(1)  # cells without any gene that the model knows have no prediction
        rows = np.flatnonzero(known)
        if how.get("groups") is not None:
            how["groups"] = np.asarray(how["groups"])[rows]
        true, predicted = _as_labels(take(y, rows), labels), labels.decode(outputs[rows])
        if labels.task == "regression":
            return metrics.summary("regression", true, predicted, **how)
        probabilities = labels.probabilities(outputs[rows])
        return metrics.summary(labels.task, true, predicted, probabilities, classes=labels.classes, **how)

    def save(self, folder: str | PathLike[str]) -> None:
        """Weights, sizes, vocabulary, labels, settings, metrics and versions in a folder; `load` reads it."""
        check_is_fitted(self, "tuned_")
        folder = Path(folder)
        (folder / SETTINGS).unlink(missing_ok=True)  # written last: a save that was cut short is no estimator
        self.tuned_.save(folder)
        params = self.get_params(deep=False)
        if not isinstance(self.model, str | PathLike):
            record = getattr(self.model, "record", None)
            params["model"] = record.name if record else type(self.model).__name__
        about = {
            "format": FORMAT,
            "estimator": type(self).__name__,
            "params": params,
            "metrics": {name: score.to_dict() for name, score in self.metrics_.items()},
            "held_back": self.validation_.tolist(),
            "versions": versions(),
        }
        with AtomicFile(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | PathLike[str], *, device: str = "auto") -> Any:
        """What `save` wrote, of whichever kind.

        Raises
        ------
        CheckpointError : no such estimator, or one with a part missing, damaged, or of another version.
        """
        folder = Path(folder)
        about = _read_about(folder)
        kind = KINDS[about["estimator"]]
        try:
            estimator = kind(**about["params"])
            scores = {name: _score(one) for name, one in about["metrics"].items()}
            held = np.array(about["held_back"], np.int64)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / SETTINGS}: its settings are damaged ({error})") from error
        estimator.tuned_ = FineTuned.load(folder, device=device)
        estimator.validation_, estimator.metrics_ = held, scores
        estimator._learnt(estimator._labels)
        return estimator

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
        units = np.arange(count) if groups is None else np.asarray(groups)
        if len(units) != count:
            raise InputError(f"{len(units):,} groups for {count:,} inputs")
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
            generator=torch.Generator().manual_seed(self.seed),
        )

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


class Classifier(ClassifierMixin, Estimator):
    """A class for each sequence or cell; of a table (n, k) of 0 and 1, several labels each.

    class_weight : `balanced`, so that all classes count alike, or a weight by class; other parameters,
        attributes and methods as of `Estimator`
    """

    def __init__(
        self,
        model: Any = "rnafm-mini",
        *,
        head: str = "linear",
        layers: int | None = 0,
        lora_rank: int | None = None,
        pooling: str | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        class_weight: Any = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.01,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        validation: float = 0.1,
        patience: int | None = 10,
        overlong: Overlong = "error",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__(
            model,
            head=head,
            layers=layers,
            lora_rank=lora_rank,
            pooling=pooling,
            hidden=hidden,
            dropout=dropout,
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            validation=validation,
            patience=patience,
            overlong=overlong,
            seed=seed,
            device=device,
        )
        self.class_weight = class_weight

    def predict_proba(self, X: Any) -> Any:
        """(n, k) float32 probabilities, columns as in `classes_`; of letters a list of such."""
        outputs = self._outputs(X)
        if self.level == "token":
            return [self._labels.probabilities(one) for one in outputs]
        return self._labels.probabilities(outputs)

    def _task(self, y: Any) -> Task:
        return "multilabel" if self.level == "input" and _columns(y) > 1 else "classification"

    def _learnt(self, labels: Labels) -> None:
        self.classes_ = np.array(labels.classes)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class Regressor(RegressorMixin, Estimator):
    """A number, or several, for each sequence or cell; parameters and methods as of `Estimator`."""

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


def is_saved(folder: str | PathLike[str]) -> bool:
    """Whether `save` of an estimator wrote this folder."""
    return (Path(folder) / SETTINGS).is_file()


def versions() -> dict[str, str]:
    """Of what made a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def take(labels: Any, rows: Rows) -> Any:
    """The labels of some inputs, in whatever holds them."""
    if hasattr(labels, "iloc"):
        return labels.iloc[rows]
    return labels[rows] if isinstance(labels, np.ndarray) else [labels[k] for k in rows]


def _examples(X: Any, y: Any) -> tuple[Any, Any]:
    """Inputs that can be counted, and labels, of cells maybe by the name of their column."""
    if isinstance(y, str):
        if not hasattr(X, "obs"):
            raise InputError(
                f"labels are the string {y!r}", hint="only of cells a column of obs can be named"
            )
        if y not in X.obs:
            known = ", ".join(map(repr, X.obs.columns[:10]))
            raise InputError(f"obs has no column {y!r}; it has {known}")
        y = X.obs[y]
    if y is None:
        raise InputError("there are no labels", hint="requires y, one label an input")
    if isinstance(X, str | PathLike) or (isinstance(X, Iterable) and not hasattr(X, "__len__")):
        X = list(read_sequences(X))
    return X, y if hasattr(y, "__len__") else list(y)


def _count(X: Any) -> int:
    if not hasattr(X, "__len__") and not hasattr(X, "shape"):
        raise InputError(f"inputs of type {type(X).__name__} cannot be read")
    count = int(X.shape[0]) if hasattr(X, "shape") else len(X)
    if count == 0:
        raise InputError("there are no inputs")
    return count


def _columns(y: Any) -> int:
    """Of a table of labels, how many there are an input."""
    try:
        shape = tuple(y.shape if hasattr(y, "shape") else np.shape(y))
    except ValueError:  # lists of different lengths, of which Labels says what is wrong
        return 1
    return int(shape[1]) if len(shape) == 2 else 1


def _as_labels(y: Any, labels: Labels) -> Any:
    """Labels as the metrics compare them with predictions."""
    if labels.task != "classification":
        return np.asarray(y, dtype=float)
    return np.array(labels.classes)[labels.encode(y, len(y)).numpy()]


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    about = read_saved(path, FORMAT)
    parts = {"params": dict, "metrics": dict, "held_back": list}
    wrong = [name for name, kind in parts.items() if not isinstance(about.get(name), kind)]
    if wrong or about.get("estimator") not in KINDS:
        raise CheckpointError(f"{path}: its settings are damaged ({(wrong or ['estimator'])[0]})")
    return about


def _score(about: dict[str, Any]) -> Score:
    numbers = {
        key: float("nan") if about[key] is None else float(about[key]) for key in ("value", "low", "high")
    }
    return Score(**numbers, n=int(about["n"]), reason=str(about.get("reason", "")))

"""How good predictions are, each number with its interval.

>>> import ribozyme as rz
>>> rz.metrics.accuracy(["a", "b", "a", "b"], ["a", "b", "b", "b"]).value
0.75

Every function gives a `Score`: a value with a percentile interval by bootstrap (over examples, or over
`groups` of them), the number of examples, and where there is no value (one class, constant labels) NaN with
the reason. Labels and predictions are (n,), of several targets or labels (n, k), in one order; keywords are
those of `Resampling` (`groups`, `confidence`, `resamples`, `seed`). Labels that are missing, of another
number than the predictions, or of another type are an `InputError`.
"""

from ribozyme.metrics.cells import (
    ari,
    asw_batch,
    asw_label,
    cluster,
    graph_connectivity,
    integration,
    nmi,
)
from ribozyme.metrics.classification import (
    accuracy,
    average_precision,
    balanced_accuracy,
    f1,
    mcc,
    precision,
    recall,
    roc_auc,
)
from ribozyme.metrics.perturbation import perturbation
from ribozyme.metrics.regression import mae, mse, pearson, r2, spearman
from ribozyme.metrics.score import Resampling, Score, UndefinedError, bootstrap, difference
from ribozyme.metrics.structure import base_pairs
from ribozyme.metrics.summary import letters_summary, summary

__all__ = [
    "Resampling",
    "Score",
    "UndefinedError",
    "accuracy",
    "ari",
    "asw_batch",
    "asw_label",
    "average_precision",
    "balanced_accuracy",
    "base_pairs",
    "bootstrap",
    "cluster",
    "difference",
    "f1",
    "graph_connectivity",
    "integration",
    "letters_summary",
    "mae",
    "mcc",
    "mse",
    "nmi",
    "pearson",
    "perturbation",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "spearman",
    "summary",
]

"""A predictor beside its baselines, for every kind of label."""

import numpy as np
import pandas as pd
import pytest

import ribozyme as rz
from ribozyme.train import baselines
from ribozyme.train.evaluation import evaluate, table
from ribozyme.train.tables import Labelled


@pytest.fixture(scope="module")
def rnas():
    """24 sequences of 16 letters."""
    drawn = np.random.default_rng(0)
    return ["".join(drawn.choice(list("ACGU"), 16)) for _ in range(24)]


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch):
    """No convolutions, and few trees."""
    monkeypatch.setattr(baselines, "TREES", 10)
    monkeypatch.setattr(baselines, "text_cnn", lambda task, *_: baselines._forest(task, 0, None))


def labelled(rnas, y, rows):
    whole = Labelled([f"r{k}" for k in range(24)], [(f"r{k}", one) for k, one in enumerate(rnas)], y)
    return whole.of(np.arange(24)[rows])


def judged(estimator, rnas, y):
    training, test = labelled(rnas, y, slice(14)), labelled(rnas, y, slice(14, None))
    estimator.fit(training.X, training.y)
    return evaluate(estimator, test, training)


def several(rnas):
    return pd.DataFrame({x: [int(one.count(x) > 3) for one in rnas] for x in "GC"})


@pytest.mark.parametrize(
    ("kind", "labels", "metric"),
    [
        (rz.Classifier, several, "f1"),
        (rz.TokenClassifier, lambda rnas: [one.replace("A", "G") for one in rnas], "accuracy"),
        (rz.TokenRegressor, lambda rnas: [[float(x == "G") for x in one] for one in rnas], "spearman"),
    ],
    ids=["several labels", "classes of letters", "numbers of letters"],
)
def test_what_a_model_adds_is_computed_for_several_labels_and_letters(rnafm, rnas, kind, labels, metric):
    found = judged(kind(rnafm, validation=0), rnas, labels(rnas))
    assert found.by == metric
    theirs = max(of[metric].value for name, of in found.scores.items() if name != "model")
    assert found.gain.value == pytest.approx(found.scores["model"][metric].value - theirs)
    assert found.gain.low <= found.gain.value <= found.gain.high
    assert "gain" in found.to_dict()
    for width in (40, 400):
        assert table(found, width).row_count == len(found.scores["model"])


def test_numbers_of_letters_that_are_missing_do_not_count_for_either(rnafm, rnas):
    y = [[float(x == "G") if k < 12 else np.nan for k, x in enumerate(one)] for one in rnas]
    found = judged(rz.TokenRegressor(rnafm, validation=0), rnas, y)
    assert found.gain.n == found.scores["model"]["r2"].n == 10 * 12

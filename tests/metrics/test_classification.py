import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import ribozyme.metrics as m
from ribozyme.errors import ConfigError, InputError

FAST = {"resamples": 0}
AVERAGED = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


@st.composite
def two_labelings(draw, classes=4):
    n = draw(st.integers(2, 30))
    one = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    return np.array(draw(one)), np.array(draw(one))


@settings(max_examples=40, deadline=None)
@given(two_labelings())
def test_classes_are_scored_as_scikit_learn_does(pair):
    y, p = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert m.accuracy(y, p, **FAST).value == pytest.approx(sk.accuracy_score(y, p))
        assert m.balanced_accuracy(y, p, **FAST).value == pytest.approx(sk.balanced_accuracy_score(y, p))
        if len(set(y)) > 1:
            assert m.mcc(y, p, **FAST).value == pytest.approx(sk.matthews_corrcoef(y, p), abs=1e-12)
        for name, theirs in AVERAGED.items():
            for average in ("macro", "micro"):
                ours = getattr(m, name)(y, p, average=average, **FAST).value
                assert ours == pytest.approx(theirs(y, p, average=average, zero_division=0))


@settings(max_examples=40, deadline=None)
@given(two_labelings(classes=2))
def test_binary_scores_are_those_of_the_second_class(pair):
    y, p = pair
    if len({*y, *p}) < 2:
        return
    names = np.array(["no", "yes"])
    for name, theirs in AVERAGED.items():
        ours = getattr(m, name)(names[y], names[p], average="binary", **FAST).value
        assert ours == pytest.approx(theirs(y, p, zero_division=0))
        other = getattr(m, name)(names[y], names[p], average="binary", positive="no", **FAST).value
        assert other == pytest.approx(theirs(y, p, pos_label=0, zero_division=0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 4), st.booleans())
def test_areas_are_those_of_scikit_learn(seed, n, classes, ties):
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), generator.integers(0, classes, n)])
    scores = generator.dirichlet(np.ones(classes), len(y))
    if ties:
        scores = np.round(scores, 1)
    if classes == 2:
        for given_scores in (scores, scores[:, 1]):
            assert m.roc_auc(y, given_scores, **FAST).value == pytest.approx(
                sk.roc_auc_score(y, scores[:, 1])
            )
        assert m.average_precision(y, scores, **FAST).value == pytest.approx(
            sk.average_precision_score(y, scores[:, 1])
        )
        return
    onehot = np.eye(classes)[y]
    assert m.roc_auc(y, scores, **FAST).value == pytest.approx(sk.roc_auc_score(onehot, scores))
    assert m.average_precision(y, scores, **FAST).value == pytest.approx(
        sk.average_precision_score(onehot, scores)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_several_labels_an_input_are_scored_by_column(seed):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, (20, 3))
    y[:2] = [[0, 0, 0], [1, 1, 1]]
    p, scores = generator.integers(0, 2, (20, 3)), generator.random((20, 3))
    assert m.accuracy(y, p, **FAST).value == pytest.approx(sk.accuracy_score(y, p))
    for average in ("macro", "micro"):
        assert m.f1(y, p, average=average, **FAST).value == pytest.approx(
            sk.f1_score(y, p, average=average, zero_division=0)
        )
    assert m.roc_auc(y, scores, **FAST).value == pytest.approx(sk.roc_auc_score(y, scores))


def test_an_interval_is_of_scikit_learns_metric_on_the_same_draws():
    generator = np.random.default_rng(0)
    y, p = generator.integers(0, 3, (2, 50))
    ours = m.f1(y, p, resamples=100, seed=7)
    draws = np.random.default_rng(7)
    picks = [draws.integers(50, size=50) for _ in range(100)]
    theirs = [sk.f1_score(y[i], p[i], average="macro", zero_division=0) for i in picks]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(theirs, [0.025, 0.975])))


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (lambda: m.roc_auc([1, 1, 1], [0.1, 0.2, 0.3]), "labels are of one class"),
        (lambda: m.roc_auc([1, 1], [[0.1, 0.9], [0.3, 0.7]], classes=[0, 1]), "has no examples, or all"),
        (lambda: m.average_precision([0, 0], [[0.1, 0.9], [0.3, 0.7]], classes=[0, 1]), "has no examples"),
        (lambda: m.mcc(["a", "a"], ["a", "b"]), "labels are of one class"),
    ],
)
def test_what_is_undefined_is_nan_with_a_reason(score, reason):
    found = score()
    assert math.isnan(found.value)
    assert reason in found.reason


def test_a_rare_class_leaves_the_resamples_without_it_out():
    y = np.array([1] + [0] * 9)
    found = m.roc_auc(y, np.linspace(1, 0, 10), resamples=200)  # a third of the draws lack the one positive
    assert found.value == found.low == found.high == 1


def test_series_categories_and_objects_are_taken():
    y = pd.Series(["a", "b", "b"], dtype="category")
    p = np.array(["a", "b", "a"], dtype=object)
    assert m.accuracy(y, p, **FAST).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: m.accuracy([1, 0], [1]), InputError, "different lengths: 2, 1"),
        (
            lambda: m.accuracy(["a", "b"], np.array(["a", None], object)),
            InputError,
            "1 predictions are missing",
        ),
        (lambda: m.accuracy([1.0, np.nan], [1, 1]), InputError, "1 labels are missing"),
        (lambda: m.accuracy(["1", "0"], [1, 0]), InputError, "different types"),
        (lambda: m.f1([0, 1], [0, 1], average="weighted"), ConfigError, "'weighted' does not exist"),
        (lambda: m.f1([0, 1, 2], [0, 1, 2], average="binary"), ConfigError, "positive class None"),
        (lambda: m.roc_auc([0, 1], [0.1, np.nan]), InputError, "1 scores are missing"),
        (lambda: m.roc_auc([0, 1, 2], np.zeros((3, 2))), InputError, r"shape \(3, 2\) for 3 classes"),
        (lambda: m.mcc(np.zeros((2, 2)), np.zeros((2, 2))), InputError, "one class an input"),
    ],
)
def test_what_cannot_be_scored_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

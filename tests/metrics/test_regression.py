import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

import ribozyme.metrics as m
from ribozyme.errors import InputError

FAST = {"resamples": 0}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.sampled_from([1e-6, 1.0, 1e6]), st.booleans())
def test_numbers_are_scored_as_scipy_and_scikit_learn_do(seed, n, scale, ties):
    y, p = np.random.default_rng(seed).normal(1, 1, (2, n)) * scale
    if ties:
        y, p = np.round(y / scale), np.round(p / scale)
        if len(set(y)) < 2 or len(set(p)) < 2:
            return
    assert m.pearson(y, p, **FAST).value == pytest.approx(stats.pearsonr(y, p).statistic, abs=1e-9)
    assert m.spearman(y, p, **FAST).value == pytest.approx(stats.spearmanr(y, p).statistic, abs=1e-9)
    assert m.r2(y, p, **FAST).value == pytest.approx(sk.r2_score(y, p))
    assert m.mse(y, p, **FAST).value == pytest.approx(sk.mean_squared_error(y, p))
    assert m.mae(y, p, **FAST).value == pytest.approx(sk.mean_absolute_error(y, p))


def test_several_targets_are_averaged():
    y, p = np.random.default_rng(0).normal(size=(2, 20, 3))
    assert m.r2(y, p, **FAST).value == pytest.approx(sk.r2_score(y, p))
    each = [stats.spearmanr(y[:, k], p[:, k]).statistic for k in range(3)]
    assert m.spearman(y, p, **FAST).value == pytest.approx(np.mean(each))


@pytest.mark.parametrize(
    ("metric", "y", "p", "reason"),
    [
        (m.pearson, [1, 1, 1], [1, 2, 3], "the labels are constant"),
        (m.pearson, [1, 2, 3], [0.1, 0.1, 0.1], "the predictions are constant"),
        (m.spearman, [1, 2, 3], [2, 2, 2], "the predictions are constant"),
        (m.r2, [0.1, 0.1, 0.1], [1, 2, 3], "the labels are constant"),
    ],
)
def test_constant_numbers_give_nan_with_a_reason(metric, y, p, reason):
    found = metric(y, p)
    assert math.isnan(found.value)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([1, 2], [1, 2, 3], "different lengths"),
        ([1, np.nan], [1, 2], "1 labels are missing or infinite"),
        ([1, 2], [np.inf, 2], "1 predictions are missing or infinite"),
        (["a", "b"], [1, 2], "labels are not numbers"),
        (np.zeros((2, 2)), np.zeros((2, 3)), "2 columns and predictions 3"),
    ],
)
def test_what_cannot_be_scored_is_named(y, p, message):
    with pytest.raises(InputError, match=message):
        m.pearson(y, p)

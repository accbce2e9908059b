import json
import math

import numpy as np
import pytest
from scipy import stats

import ribozyme as rz
from ribozyme.errors import ConfigError, InputError
from ribozyme.metrics import Score, UndefinedError, bootstrap, difference


def mean(x):
    return x.mean()


def test_the_interval_of_a_mean_is_that_of_scipys_bootstrap():
    x = np.random.default_rng(0).normal(3, 2, 200)
    ours = bootstrap(mean, x, resamples=4000)
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert ours.value == pytest.approx(x.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)  # 0.2 sd of the mean
    assert ours.n == 200


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        score = bootstrap(mean, generator.normal(0, 1, 60), confidence=0.8, resamples=200, seed=1)
        held += score.low <= 0 <= score.high
    assert 0.7 < held / 200 < 0.88


def test_one_group_gives_no_interval():
    found = bootstrap(mean, [1.0, 2.0, 6.0], groups=["a", "a", "a"])
    assert (found.value, found.n) == (3.0, 3)
    assert np.isnan([found.low, found.high]).all()
    assert "one group" in found.reason


def test_groups_that_agree_widen_the_interval():
    x = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)
    groups = np.repeat(np.arange(20), 10)
    alone, together = bootstrap(mean, x), bootstrap(mean, x, groups=groups)
    assert alone.value == together.value
    assert together.high - together.low > 2 * (alone.high - alone.low)
    of_groups = bootstrap(mean, x[::10])  # equal groups: as if each were one example
    assert together.high - together.low == pytest.approx(of_groups.high - of_groups.low, rel=0.15)


def test_the_same_seed_gives_the_same_interval_whatever_the_global_one():
    x = np.arange(20.0)
    first = bootstrap(mean, x, seed=3)
    np.random.seed(5)
    assert bootstrap(mean, x, seed=3) == first
    assert bootstrap(mean, x, seed=4) != first


def test_the_difference_of_two_predictors_is_paired():
    generator = np.random.default_rng(0)
    y = generator.normal(0, 1, 300)
    noisy = y + generator.normal(0, 2, 300)
    slightly_better = y + 0.9 * (noisy - y)
    gain = difference(lambda t, p: -np.square(t - p).mean(), y, slightly_better, noisy)
    assert gain.low > 0  # although the intervals of the two overlap widely


def test_a_statistic_that_is_undefined_says_why():
    def never(x):
        raise UndefinedError("of x there is none")

    score = bootstrap(never, [1, 2])
    assert math.isnan(score.value)
    assert str(score) == "undefined (of x there is none)"
    assert score.to_dict() == {
        "value": None,
        "low": None,
        "high": None,
        "n": 2,
        "reason": "of x there is none",
    }


def test_a_score_is_readable_and_goes_into_json():
    assert str(Score(0.5, 0.25, 0.75, 10)) == "0.500 [0.250, 0.750]"
    assert str(bootstrap(mean, [1.0, 2.0], resamples=0)) == "1.500"
    assert float(Score(0.5)) == 0.5
    assert json.loads(json.dumps(Score(0.5, 0.25, 0.75, 10).to_dict())) == {
        "value": 0.5, "low": 0.25, "high": 0.75, "n": 10,
    }  # fmt: skip


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(InputError, match="different lengths: 2, 3"):
        bootstrap(mean, [1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="1 groups for 2 examples"):
        bootstrap(mean, [1, 2], groups=[1])
    for missing in (None, np.nan):
        with pytest.raises(InputError, match="1 groups are missing"):
            bootstrap(mean, [1, 2], groups=["a", missing])
    with pytest.raises(InputError, match="no examples"):
        bootstrap(mean, [])
    with pytest.raises(ConfigError, match=r"confidence 1\.5"):
        bootstrap(mean, [1], confidence=1.5)


def test_metrics_are_at_the_top():
    assert rz.metrics.accuracy([0, 1], [0, 1]).value == 1

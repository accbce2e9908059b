import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import ribozyme.metrics as m
from ribozyme.errors import ConfigError, InputError


def values(*args, **how):
    return {name: score.value for name, score in m.base_pairs(*args, resamples=0, **how).items()}


def test_pairs_are_counted_by_hand():
    #         0123456789
    truth = ["((....))..", "(...)....."]
    guess = ["(......)..", ".........."]  # one of two pairs, none wrong; nothing at all
    assert values(truth, guess) == {"precision": 0.5, "recall": 0.25, "f1": pytest.approx((2 / 3 + 0) / 2)}
    assert values(truth, guess, average="micro") == {
        "precision": 1,
        "recall": 1 / 3,
        "f1": pytest.approx(0.5),
    }


def test_slack_forgives_one_end_that_is_one_off():
    truth = [[(2, 10)]]
    for guess, right in (((2, 11), 1), ((1, 10), 1), ((3, 11), 0), ((2, 12), 0), ((2, 10), 1)):
        assert values(truth, [[guess]], slack=True)["f1"] == right
        assert values(truth, [[guess]])["f1"] == (guess == (2, 10))


def test_slack_counts_true_pairs_for_recall_and_predicted_ones_for_precision():
    found = values([[(1, 9)]], [[(1, 9), (1, 10), (3, 30)]], slack=True)
    assert found["recall"] == 1
    assert found["precision"] == pytest.approx(2 / 3)


def test_no_pairs_where_there_are_none_is_right():
    assert values(["...."], ["...."])["f1"] == 1
    assert values(["...."], ["(..)"])["f1"] == 0
    assert values(["(..)"], ["...."])["f1"] == 0


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 9), max_size=6), st.sets(st.integers(0, 9), max_size=6))
def test_one_rna_is_scored_as_scikit_learn_scores_its_possible_pairs(true, guess):
    if not true and not guess:
        return
    as_pairs = [[(k, 30 - k) for k in chosen] for chosen in (true, guess)]
    y, p = ([k in chosen for k in range(10)] for chosen in (true, guess))
    found = values([as_pairs[0]], [as_pairs[1]])
    assert found["precision"] == pytest.approx(sk.precision_score(y, p, zero_division=0))
    assert found["recall"] == pytest.approx(sk.recall_score(y, p, zero_division=0))
    assert found["f1"] == pytest.approx(sk.f1_score(y, p, zero_division=0))
    slack = values([as_pairs[0]], [as_pairs[1]], slack=True)
    assert all(slack[name] >= found[name] - 1e-12 for name in found)


def test_intervals_are_over_rnas():
    score = m.base_pairs(["(..)"] * 10, ["(..)"] * 5 + ["...."] * 5)["f1"]
    assert score.n == 10
    assert score.low < 0.5 < score.high


def test_what_cannot_be_scored_is_named():
    with pytest.raises(InputError, match="1 structures and 2 predictions"):
        m.base_pairs(["."], [".", "."])
    with pytest.raises(InputError, match="never closed"):
        m.base_pairs(["("], ["."])
    with pytest.raises(ConfigError, match="average"):
        m.base_pairs(["."], ["."], average="mean")

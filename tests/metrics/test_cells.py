import importlib.util
import math

import numpy as np
import pytest
from sklearn import metrics as sk

import ribozyme.metrics as m
from ribozyme.errors import ConfigError, InputError, MissingExtraError

FAST = {"resamples": 0}


@pytest.fixture(scope="module")
def mixture():
    """Three types well apart, two batches that do not matter."""
    generator = np.random.default_rng(0)
    types = np.repeat(["B", "T", "NK"], 20)
    X = generator.normal(0, 1, (60, 5))
    X[:, 0] += 12 * np.repeat([0, 1, 2], 20)
    return X, types, np.tile(["a", "b"], 30)


def test_clusters_are_scored_as_scikit_learn_does(mixture):
    _, types, _ = mixture
    clusters = np.random.default_rng(0).integers(0, 4, 60)
    assert m.nmi(types, clusters, **FAST).value == pytest.approx(
        sk.normalized_mutual_info_score(types, clusters)
    )
    assert m.ari(types, clusters, **FAST).value == pytest.approx(sk.adjusted_rand_score(types, clusters))


def test_silhouettes_are_scaled_as_scib_scales_them(mixture):
    X, types, batches = mixture
    label = (sk.silhouette_score(X, types) + 1) / 2
    assert m.asw_label(X, types, **FAST).value == pytest.approx(label)
    each = [
        np.mean(1 - np.abs(sk.silhouette_samples(X[types == t], batches[types == t])))
        for t in ("B", "T", "NK")
    ]
    assert m.asw_batch(X, types, batches, **FAST).value == pytest.approx(np.mean(each))


def test_connectivity_is_the_share_of_a_type_in_one_piece():
    apart = np.concatenate([np.arange(6.0), np.arange(6.0) + 100, np.arange(6.0) + 1000])[:, None]
    assert m.graph_connectivity(apart, np.repeat([0, 1, 2], 6), neighbours=2).value == 1
    assert m.graph_connectivity(apart, np.repeat([0, 0, 1], 6), neighbours=2).value == pytest.approx(0.75)


def test_a_good_embedding_scores_well_and_the_averages_are_averages(mixture):
    X, types, batches = mixture
    found = m.integration(X, types, batches)
    assert found["nmi"].value == found["ari"].value == found["graph_connectivity"].value == 1
    three = [found[k].value for k in ("nmi", "ari", "asw_label")]
    assert found["avg_bio"].value == pytest.approx(np.mean(three))
    assert found["avg_batch"].value == pytest.approx((found["asw_batch"].value + 1) / 2)
    assert found["asw_batch"].low < found["asw_batch"].value < found["asw_batch"].high
    assert set(m.integration(X, types)) == {"nmi", "ari", "asw_label", "avg_bio"}


def test_batches_apart_lower_the_batch_scores(mixture):
    X, types, batches = mixture
    moved = X.copy()
    moved[:, 1] += 20 * (batches == "a")
    together, apart = m.integration(X, types, batches), m.integration(moved, types, batches)
    assert apart["asw_batch"].value < 0.3 < together["asw_batch"].value
    assert apart["avg_batch"].value < together["avg_batch"].value


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda X: m.asw_label(X, ["a"] * 60), "needs two types"),
        (lambda X: m.nmi(["a"] * 60, np.arange(60)), "one class"),
        (lambda X: m.asw_batch(X, ["a"] * 60, ["x"] * 60), "no type has cells of two batches"),
        (lambda X: m.integration(X, ["a"] * 60)["avg_bio"], "one class"),
    ],
)
def test_one_type_or_batch_gives_nan_with_a_reason(mixture, call, reason):
    found = call(mixture[0])
    assert math.isnan(found.value)
    assert reason in found.reason


def test_what_cannot_be_scored_is_named(mixture):
    X, types, _ = mixture
    with pytest.raises(InputError, match="1 cells have no embedding"):
        m.asw_label(np.where(np.arange(60)[:, None] == 3, np.nan, X), types)
    with pytest.raises(InputError, match="labels are missing"):
        m.asw_label(X, [None, *types[1:]])
    with pytest.raises(ConfigError, match="clustering 'louvain'"):
        m.integration(X, types, clustering="louvain")


@pytest.mark.skipif(importlib.util.find_spec("igraph") is not None, reason="igraph is installed")
def test_an_extra_that_is_missing_is_named(mixture):
    with pytest.raises(MissingExtraError, match=r"ribozyme\[scib\]"):
        m.integration(mixture[0], mixture[1], clustering="leiden")


def test_leiden_finds_types_that_are_apart(mixture):
    pytest.importorskip("igraph")
    X, types, _ = mixture
    assert m.integration(X, types, clustering="leiden")["nmi"].value == 1


def test_scib_scores_mixed_batches_higher(mixture):
    pytest.importorskip("scib_metrics")
    X, types, batches = mixture
    moved = X.copy()
    moved[:, 1] += 20 * (batches == "a")
    good, bad = (m.integration(x, types, batches, before=moved, scib=True) for x in (X, moved))
    assert good["ilisi"].value > bad["ilisi"].value
    assert good["kbet"].value > bad["kbet"].value
    assert good["pcr"].value > bad["pcr"].value

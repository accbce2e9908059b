import numpy as np
import pytest

import ribozyme.metrics as m
from ribozyme.errors import ConfigError, InputError


def test_a_task_is_reported_by_its_metrics():
    y = np.array(["a", "b", "c"] * 4)
    p = np.eye(3)[[0, 1, 2] * 4]
    found = m.summary("classification", y, y, p, classes=["a", "b", "c"], resamples=20)
    assert set(found) == {
        "accuracy", "balanced_accuracy", "precision", "recall", "f1", "mcc", "roc_auc", "average_precision",
    }  # fmt: skip
    assert all(score.value == 1 for score in found.values())
    numbers = m.summary("regression", [1.0, 2, 3], [1.0, 2, 4], resamples=0)
    assert list(numbers) == ["spearman", "pearson", "r2", "mse", "mae"]
    several = m.summary("multilabel", np.eye(3), np.eye(3), np.eye(3), resamples=0)
    assert several["f1_micro"].value == several["roc_auc"].value == 1
    with pytest.raises(ConfigError, match="'ranking'"):
        m.summary("ranking", [1], [1])


def test_letters_without_a_label_do_not_count_and_inputs_are_resampled():
    found = m.letters_summary("classification", ["(.)", ["", "."]], ["(.(", "(."])
    assert found["accuracy"].value == pytest.approx(3 / 4)
    numbers = m.letters_summary("regression", [[1.0, np.nan, 3.0], [2.0]], [[1.0, 9.0, 3.0], [3.0]])
    assert numbers["mse"].value == pytest.approx(1 / 3)
    assert (numbers["mse"].low, numbers["mse"].high) == (0, 1)  # one input alone, or the other
    rows = m.letters_summary(
        "regression", [[[1.0, 2.0], [3.0, np.nan]]], [[[1.0, 2.0], [0.0, 0.0]]], resamples=0
    )
    assert rows["mse"].n == 1


def test_groups_of_inputs_are_resampled_together():
    y, p = [[1.0], [1.0, 1.0], [2.0]], [[1.0], [1.0, 1.0], [4.0]]
    found = m.letters_summary("regression", y, p, groups=["a", "a", "b"])["mse"]
    assert (found.low, found.value, found.high) == (0, 1, 4)


def test_labels_and_predictions_of_letters_must_fit():
    with pytest.raises(InputError, match="input 0 has 3 labels and 2 predictions"):
        m.letters_summary("classification", ["(.)"], ["(."])
    with pytest.raises(InputError, match="2 inputs and predictions of 1"):
        m.letters_summary("classification", ["(", "."], ["("])

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.labels import Labels


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], dtype=object),
        pd.Series(["b", "a", "b"], index=[7, 8, 9]),
        pd.Series(["b", "a", "b"], dtype="category"),
        pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"]),
        [["b"], ["a"], ["b"]],
    ],
)
def test_classes_are_read_from_whatever_holds_them(labels):
    known = Labels.seen("classification", labels, 3)
    assert known.classes == ("a", "b")
    assert known.encode(labels, 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "labels", [[2, 0, 2], [2.0, 0.0, 2.0], torch.tensor([2, 0, 2]), torch.tensor([[2], [0], [2]])]
)
def test_numbered_classes_keep_their_place_among_the_outputs(labels):
    assert Labels.seen("classification", labels, 3).classes == (0, 2)
    assert Labels.seen("classification", labels, 3, outputs=3).classes == (0, 1, 2)
    assert Labels.seen("classification", labels, 3, outputs=3).encode(labels, 3).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    "labels",
    [
        [1, 2, 4],
        (1.0, 2.0, 4.0),
        np.float32([1, 2, 4]),
        torch.tensor([1, 2, 4]),
        pd.Series([1, 2, 4]),
        [[1], [2], [4]],
    ],
)
def test_numbers_are_read_from_whatever_holds_them(labels):
    known = Labels.seen("regression", labels, 3)
    assert known.encode(labels, 3).tolist() == [[1], [2], [4]]
    assert known.mean == pytest.approx((7 / 3,))


EIGHTHS = st.integers(-8_000, 8_000).map(lambda n: n / 8)


@given(st.lists(st.lists(EIGHTHS, min_size=2, max_size=2), min_size=1, max_size=8))
def test_predictions_come_back_in_the_units_of_the_labels(rows):
    known = Labels.seen("regression", rows, len(rows))
    assert all(scale > 0 for scale in known.scale)  # also where all labels are the same
    np.testing.assert_array_equal(known.decode(known.encode(rows, len(rows)).numpy()), np.float32(rows))


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("regression", [1, 2], "2 labels for 3 inputs"),
        ("regression", 1.0, "a single value for 3 inputs"),
        ("regression", ["a", "b", "c"], "not numbers"),
        ("regression", ["1", "2", "3"], "not numbers"),
        ("regression", [1, None, 2], "1 labels are missing or infinite, the first at position 1"),
        ("regression", [np.nan, 1, np.inf], "2 labels are missing or infinite, the first at position 0"),
        ("regression", [[1, 2], [3], [4, 5]], "do not make a table"),
        ("regression", np.zeros((3, 1, 1)), r"labels of shape \(3, 1, 1\)"),
        ("classification", ["a", None, "b"], "label at position 1 is missing"),
        ("classification", pd.Series(["a", pd.NA, "b"]), "label at position 1 is missing"),
        ("classification", ["a", "", "b"], "label at position 1 is missing"),
        ("classification", [1.0, np.nan, 2.0], "label at position 1 is missing"),
        ("classification", [0.5, 1.0, 2.0], "label 0.5 at position 0 is no class"),
        ("classification", np.eye(3), r"shape \(3, 3\); classification takes one class"),
    ],
)
def test_labels_that_cannot_be_used_are_named(task, labels, message):
    with pytest.raises(InputError, match=message):
        Labels.seen(task, labels, 3)


def test_labels_must_fit_the_outputs():
    with pytest.raises(InputError, match="2 columns, but the head has 1"):
        Labels.seen("regression", np.zeros((3, 2)), 3, outputs=1)
    with pytest.raises(InputError, match=r"3 classes .* but the head has 2 outputs"):
        Labels.seen("classification", ["a", "b", "c"], 3, outputs=2)
    with pytest.raises(InputError, match="head has 2 outputs"):
        Labels.seen("classification", [0, 1, 2], 3, outputs=2)


def test_a_class_that_was_not_trained_on_is_named():
    known = Labels.seen("classification", ["a", "b"], 2)
    with pytest.raises(InputError, match="1 classes that the head does not know: c"):
        known.encode(["a", "c", "c"], 3)


def test_an_output_that_is_not_a_number_has_no_class():
    known = Labels.blank("classification", 2)
    outputs = np.float32([[0, 1], [np.nan, np.nan]])
    assert known.decode(outputs).tolist() == [1, None]


def test_what_labels_say_of_themselves_is_checked():
    with pytest.raises(ConfigError, match="do not fit"):
        Labels(task="classification", outputs=2, classes=("a",))
    with pytest.raises(ConfigError, match="task"):
        Labels(task="ranking", outputs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1e6, 1e6 + 0.5, 1e6 + 1], "vary by less than 1e-05 of their size"),
        ([1.0, 1e39], "too large for float32"),
    ],
)
def test_numbers_that_float32_cannot_tell_apart_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        Labels.seen("regression", numbers, len(numbers))
    assert Labels.seen("regression", [0.1] * 30, 30).scale == (1.0,)  # the same number is no such case


def test_a_class_is_told_by_its_text():
    mixed = Labels.seen("classification", np.array([1, "2", 2, "x"], dtype=object), 4)
    assert mixed.classes == ("1", "2", "x")
    assert mixed.encode([2, 1, 1], 3).tolist() == [1, 0, 0]
    assert Labels.seen("classification", [1, 2], 2).encode(["2", "1"], 2).tolist() == [1, 0]
    weighed = Labels.seen("classification", [1, "x"], 2, class_weight={1: 3.0})
    assert weighed.weights == (3.0, 1.0)


def test_dates_are_no_classes():
    with pytest.raises(InputError, match="dates or times"):
        Labels.seen("classification", pd.to_datetime(["2020-01-01", "2021-01-01"]), 2)


def test_a_class_is_found_by_its_text_then_by_its_number():
    def place(classes, given):
        return Labels.seen("classification", np.array(classes, object), len(classes)).encode(
            np.array(given, object), len(given)
        )

    assert place(["1", "1.0", "x"], ["1.0", "1"]).tolist() == [1, 0]
    assert place([1, 2], ["2.0", "1"]).tolist() == [1, 0]
    assert place([0, 1], ["True", "false"]).tolist() == [1, 0]
    assert place(["true", "maybe"], ["true", "maybe"]).tolist() == [1, 0]
    with pytest.raises(InputError, match="does not know: 01"):
        place([1, 2], ["01"])


@pytest.mark.parametrize(
    ("labels", "weights"),
    [([True, False], {True: 2}), ([0.0, 1.0], {1.0: 2.0}), ([0, 1], {"1": 2}), (["0", "1"], {1: 2})],
)
def test_a_weight_is_for_the_class_of_equal_value(labels, weights):
    known = Labels.seen("classification", np.array(labels), 2, class_weight=weights)
    assert known.weights == (1.0, 2.0)
    for odd in ({1: "x"}, {1: None}):
        with pytest.raises(ConfigError, match="a class weight is no number"):
            Labels.seen("classification", [0, 1], 2, class_weight=odd)

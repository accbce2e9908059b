"""Pictures: drawn without pyplot, the same each time, and clear about what cannot be drawn."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import ribozyme.pl as pl
from ribozyme.errors import ConfigError, InputError
from ribozyme.pl.scatter import _free_place
from ribozyme.pl.style import PALETTE, group_colours


@pytest.fixture
def clouds():
    """Three groups of ten points in eight dimensions, far apart."""
    rng = np.random.default_rng(0)
    centres = 6 * np.eye(3, 8)
    return np.concatenate([c + rng.normal(size=(10, 8)) for c in centres]), np.repeat(["a", "b", "c"], 10)


def test_drawing_leaves_matplotlib_as_it_was():
    code = """
import sys, matplotlib, numpy as np
before = matplotlib.rcParams.copy()
import ribozyme.pl as pl
pl.embedding(np.random.default_rng(0).normal(size=(9, 4)), list("aaabbbccc"), method="pca")
pl.similarity(np.eye(4), list("abcd"))
pl.training_curve({"loss": [3, 2, 1]})
assert "matplotlib.pyplot" not in sys.modules
assert [k for k in before if k != "backend" and before[k] != matplotlib.rcParams[k]] == []
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_plots_loads_no_matplotlib():
    code = (
        "import sys, ribozyme.pl; assert 'matplotlib' not in sys.modules; assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_groups_that_are_apart_are_drawn_apart(clouds, method):
    X, labels = clouds
    places = pl.layout(X, method=method, seed=3)
    nearest = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(nearest, np.inf)
    assert (labels[nearest.argmin(1)] == labels).all()


def test_the_same_seed_gives_the_same_picture(clouds):
    X, _ = clouds
    np.testing.assert_array_equal(pl.layout(X, seed=1), pl.layout(X, seed=1))


def test_two_columns_are_drawn_as_they_are():
    X = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(pl.layout(X), X)


def test_equal_rows_fall_on_one_point():
    np.testing.assert_array_equal(pl.layout(np.ones((5, 4))), np.zeros((5, 2)))


def test_what_the_caller_passes_is_not_changed(clouds):
    X, labels = clouds
    before = X.copy()
    pl.embedding(X, labels, method="pca")
    pl.similarity(X, labels)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_save_writes_the_format_of_the_suffix(tmp_path, clouds, suffix):
    X, labels = clouds
    path = tmp_path / "new" / f"picture{suffix}"
    figure = pl.embedding(X, labels, method="pca", save=path)
    assert isinstance(figure, Figure)
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(head[suffix])


def test_each_group_is_named_once(clouds):
    X, labels = clouds
    figure = pl.embedding(X, labels, method="pca")
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["a", "b", "c"]
    figure = pl.embedding(X, labels, method="pca", legend_loc="right margin")
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b", "c"]
    assert not pl.embedding(X, labels, method="pca", legend_loc=None).axes[0].texts


def test_drawing_into_given_axes_uses_them(clouds):
    X, labels = clouds
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert pl.embedding(X, labels, method="pca", ax=left) is figure
    assert pl.similarity(X, labels, ax=right) is figure
    assert left.collections
    assert right.images


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), groups=st.integers(1, 8))
def test_names_stay_inside_and_off_each_other(seed, groups):
    rng = np.random.default_rng(seed)
    frame = np.array([[0.0, 0.0], [300.0, 300.0]])
    half = np.array([12.0, 5.0])
    taken = []
    for centre in rng.uniform(20, 280, size=(groups, 2)):
        own, others = centre + rng.normal(size=(6, 2)), rng.uniform(0, 300, size=(30, 2))
        taken.append(_free_place(own, others, half, taken, frame))
    for k, (centre, _) in enumerate(taken):
        assert (centre >= half).all()
        assert (centre <= 300 - half).all()
        assert all((np.abs(centre - other) >= 2 * half - 1e-9).any() for other, _ in taken[:k])


def test_past_ten_groups_the_shape_changes():
    colours = group_colours([str(k) for k in range(25)])
    assert len(set(colours.values())) == 25
    assert len(set(PALETTE)) == 10


def test_too_many_groups_are_an_error():
    with pytest.raises(ConfigError, match=r"61 groups cannot be told apart[\s\S]*at most 60"):
        group_colours([str(k) for k in range(61)])


@pytest.mark.parametrize(
    ("X", "labels", "message"),
    [
        (np.zeros((2, 4)), None, r"shape \(2, 4\) cannot be drawn"),
        (np.zeros(5), None, r"shape \(5,\) cannot be drawn"),
        (np.full((4, 3), np.nan), None, "4 rows have NaN or infinity[\\s\\S]*empty cell"),
        (np.zeros((4, 3)), ["a"], "4 rows have 1 labels"),
    ],
)
def test_what_cannot_be_drawn_is_an_input_error(X, labels, message):
    with pytest.raises(InputError, match=message):
        pl.embedding(X, labels, method="pca")


def test_unknown_choices_are_config_errors(tmp_path):
    X = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(ConfigError, match=r"method 'umap' does not exist[\s\S]*tsne or pca"):
        pl.embedding(X, method="umap")
    with pytest.raises(ConfigError, match=r"legend_loc 'top' does not exist"):
        pl.embedding(X, legend_loc="top")
    with pytest.raises(ConfigError, match=r"no picture format is known[\s\S]*\.png"):
        pl.embedding(X, method="pca", save=tmp_path / "picture.xyz")
    assert not (tmp_path / "picture.xyz").exists()


def test_similarity_draws_cosines(clouds):
    X, labels = clouds
    values = pl.similarity(X, labels, centre=False).axes[0].images[0].get_array()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(values, unit @ unit.T, atol=1e-12)


def test_a_row_of_zeros_is_similar_to_nothing():
    values = pl.similarity(np.array([[0.0, 0.0], [1.0, 0.0]]), centre=False).axes[0].images[0].get_array()
    np.testing.assert_array_equal(values, [[0, 0], [0, 1]])


def test_runs_of_equal_names_are_written_once(clouds):
    X, labels = clouds
    axes = pl.similarity(X, labels).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_yticks().tolist() == [4.5, 14.5, 24.5]


def test_a_data_frame_brings_its_names():
    table = pd.DataFrame([[1, 2, 3], [4, 5, 6]], index=["r1", "r2"], columns=["c1", "c2", "c3"])
    axes = pl.heatmap(table).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["c1", "c2", "c3"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["r1", "r2"]


def test_a_heatmap_wants_a_matrix_and_its_names():
    with pytest.raises(InputError, match=r"shape \(3,\) is no matrix"):
        pl.heatmap([1, 2, 3])
    with pytest.raises(InputError, match="2 rows or columns have 3 names"):
        pl.heatmap(np.eye(2), rows=["a", "b", "c"])


def test_dots_draw_one_line_a_name():
    axes = pl.dots(["x", "y"], [1.0, 2.0], [[0.5, 0.6], [2.5, 2.6]], called=("real", "shuffled")).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x", "y"]
    assert [t.get_text() for t in axes.texts] == ["real", "shuffled"]
    with pytest.raises(InputError, match=r"2 names do not fit values \(3,\)"):
        pl.dots(["x", "y"], [1, 2, 3], [[1], [2]])


@dataclass
class History:
    steps: list = field(default_factory=lambda: [10, 20, 30])
    losses: list = field(default_factory=lambda: [3.0, 2.0, 1.5])


@pytest.mark.parametrize(
    "history",
    [
        {"steps": [10, 20, 30], "losses": [3, 2, 1.5], "note": "text"},
        pd.DataFrame({"step": [10, 20, 30], "loss": [3, 2, 1.5], "phase": ["a", "b", "c"]}),
        [{"step": 10, "loss": 3}, {"step": 20, "loss": 2}, {"step": 30, "loss": 1.5}],
        History(),
    ],
    ids=["mapping", "frame", "list", "dataclass"],
)
def test_a_history_may_have_any_usual_form(history):
    [line] = pl.training_curve(history).axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30])
    np.testing.assert_array_equal(line.get_ydata(), [3, 2, 1.5])


def test_a_history_may_be_a_json_file(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({"steps": [1, 2], "losses": [2.0, 1.0]}))
    assert len(pl.training_curve(path).axes[0].lines) == 1


def test_validation_at_some_steps_is_drawn_at_those_steps():
    history = {"step": [1, 2, 3, 4], "train_loss": [4, 3, 2, 1], "val_loss": [None, 3.5, None, 2.5]}
    axes = pl.training_curve(history, smooth=0.5).axes[0]
    np.testing.assert_array_equal(axes.lines[-1].get_xdata(), [2, 4])
    assert {text.get_text().split()[0] for text in axes.texts} == {"train_loss", "val_loss"}


def test_a_history_without_a_loss_is_an_error():
    with pytest.raises(InputError, match=r"has no loss[\s\S]*columns are accuracy"):
        pl.training_curve({"accuracy": [0.5, 0.6]})
    with pytest.raises(InputError, match="has no auc"):
        pl.training_curve({"loss": [1.0]}, keys=["auc"])

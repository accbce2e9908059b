"""`benchmarks/pretrain.py`: its simple models are what they say, and the small form runs."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("pretrain"), importlib.import_module("pretrain_baselines")
    for name in ("pretrain", "pretrain_baselines", "parity"):
        sys.modules.pop(name, None)


def text_of(baselines, *sequences):
    letters = [np.array(["ACGU".index(x) for x in one], np.int8) for one in sequences]
    asked = [np.ones(len(one), bool) for one in letters]
    return baselines.side_by_side(letters, asked, letters, [np.zeros(len(one), np.int64) for one in letters])


def test_a_chain_of_letters_learns_which_follows_which(programs):
    _, baselines = programs
    chain = baselines.Contexts([-1, -2])
    chain.add(text_of(baselines, "ACGU" * 200, "ACGU" * 100))
    new = text_of(baselines, "ACGUACGU", "ACG")
    chain.tune(new)
    probability = chain(new)
    np.testing.assert_allclose(probability.sum(1), 1)
    assert (probability.argmax(1) == new.letters).all()
    assert probability[1:8].max(1).min() > 0.95
    assert chain.order >= 1
    # by hand: C has been seen 300 times after A, which is not the first letter 298 times
    chain.order, chain.strength = 1, 1.0
    share = (300 + 1 * 300 / 1200) / 301
    assert chain(new)[1, 1] == pytest.approx(share, abs=1e-3)


def test_letters_never_see_the_sequence_beside_them(programs):
    _, baselines = programs
    around = baselines.Contexts([-1, 1, -2, 2])
    around.add(text_of(baselines, "ACGUU" * 20))
    alone = around(text_of(baselines, "ACGU"))
    beside = around(text_of(baselines, "UUUU", "ACGU", "GGG"))
    np.testing.assert_array_equal(beside[4:8], alone)


def test_totals_give_the_numbers_that_numpy_gives(programs):
    pretrain, _ = programs
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    sums = np.array([pretrain.moments(x[k : k + 8], y[k : k + 8]) for k in range(0, 40, 8)])
    assert pretrain.correlation(sums) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pretrain.error(sums) == pytest.approx(((x - y) ** 2).mean())
    flat = np.array([pretrain.moments(x, np.full(40, 0.3))])
    assert pretrain.correlation(flat) == 0.0


def test_a_gene_is_expected_at_its_mean_and_near_like_cells(programs):
    _, baselines = programs
    means = baselines.GeneMeans(6, strength=0.0)
    alike = baselines.LikeCells(means, k=2, strength=0.0)
    for bins in ([1, 9, 2], [1, 9, 4], [9, 1, 20], [9, 1, 22]):
        means.add(np.array([1, 2, 3]), np.array(bins))
        alike.add(np.array([1, 2, 3]), np.array(bins))
    alike.ready()
    assert means(np.array([3, 1])).tolist() == [12, 5]
    assert alike(np.array([1, 2]), np.array([2, 8]), np.array([3])) == pytest.approx([3])


@pytest.mark.parametrize("only", ["rnafm", "scgpt"])
def test_the_small_form_gives_every_line_with_its_interval(programs, only, tmp_path):
    import typer

    pretrain, _ = programs
    app = typer.Typer()
    app.command()(pretrain.main)
    output, picture = tmp_path / "pretrain.json", tmp_path / "curves.png"
    asked = ["--small", "--only", only, "--most", "8", "-o", str(output), "--picture", str(picture)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    lines = json.loads(output.read_text())["lines"]
    assert {line["measure"] for line in lines} in (
        {"perplexity", "accuracy"},
        {"squared error", "correlation"},
    )
    assert all(line["score"]["low"] <= line["score"]["value"] <= line["score"]["high"] for line in lines)
    assert sum(line["ahead"] is not None for line in lines) == 2
    assert picture.stat().st_size > 5_000

"""`benchmarks/finetune.py`: trainings are kept and not repeated, and models are compared on the same rows."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OWN = ("finetune", "finetune_tasks", "parity")


@pytest.fixture
def finetune():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("finetune")
    for name in OWN:
        sys.modules.pop(name, None)


@pytest.fixture
def table(tmp_path):
    """The share of G in 60 short RNAs, at the place and with the columns of the Kozak table."""
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGU"), 11, p=rng.dirichlet([1] * 4))) for _ in range(60)]
    frame = pd.DataFrame({"sequence": rows, "efficiency": [one.count("G") / 11 for one in rows]})
    frame["split"] = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    (tmp_path / "mrna").mkdir()
    frame.to_parquet(tmp_path / "mrna" / "kozak_tis.parquet")
    return frame


def made(finetune, true, predicted, groups=None, classes=()):
    count = len(true)
    groups = np.arange(count) if groups is None else groups
    clean, classes = np.arange(count) % 2 == 0, np.array(classes, dtype=str)
    return finetune.Predictions(np.asarray(true), np.asarray(predicted), groups, clean, classes, 1.0, "{}")


def test_what_is_there_is_not_trained_again(finetune, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RIBOZYME_DATA", str(tmp_path))
    folder = tmp_path / "out"
    weights = tmp_path / "weights"
    shutil.copytree(finetune.resolve("rnafm-mini").path, weights)
    how = {"only": "kozak", "models": f"rnafm-mini={weights}", "modes": "frozen", "rows": None, "show": False}
    how["cards"] = True
    finetune.main(folder, **how, seeds=2)
    said = capsys.readouterr().out
    kept = sorted(path.name for path in folder.glob("*.npz"))
    assert said.count("kozak.rnafm-mini.frozen") == 4
    assert len(kept) == 4 + 3  # k-mers, a forest, a TextCNN
    line, beside = json.loads((folder / "scores.json").read_text())["lines"]
    assert (
        (folder / "table.md").read_text().splitlines()[2].startswith("| kozak | spearman | 20 | rnafm-mini |")
    )
    assert (line["mode"], beside["mode"]) == ("frozen", "frozen+counts")
    assert (line["n"], len(line["by_seed"]), line["metric"]) == (20, 2, "spearman")
    with np.load(folder / "kozak.rnafm-mini.frozen.1.npz") as found:
        np.testing.assert_array_equal(found["true"], table["efficiency"][40:])
        expected = spearmanr(found["true"], found["predicted"]).statistic
    assert line["by_seed"][1] == pytest.approx(expected)

    card = json.loads((weights / "scores.json").read_text())
    assert card["weights_sha256"] == finetune.digest(weights / "model.safetensors")
    assert card["tasks"]["kozak, frozen"]["trained"]["spearman"] == pytest.approx(
        np.mean(line["by_seed"]), abs=1e-3
    )

    plan = finetune.Plan(tmp_path, None, {"rnafm-mini": str(weights)})
    assert len(finetune.kept_in(folder, plan)) == 7
    assert not finetune.kept_in(folder, replace(plan, rows=25))

    monkeypatch.setattr(finetune.Plan, "run", lambda self, one: pytest.fail(f"{one} was trained again"))
    finetune.main(folder, **how, seeds=2)
    (folder / kept[0]).unlink()
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        finetune.main(folder, **how, seeds=2)
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # other rows are another training
        finetune.main(folder, **{**how, "rows": 25}, seeds=1)


def test_seeds_are_averaged_and_differences_are_of_the_same_rows(finetune):
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    near, far = ([true + k * rng.normal(size=60) for _ in range(2)] for k in (0.1, 1.0))
    kept = {
        finetune.Training("kozak", "rnafm-mini", "frozen", False, k): made(finetune, true, near[k])
        for k in (0, 1)
    }
    kept |= {
        finetune.Training("kozak", "rnafm-mini", "frozen", True, k): made(finetune, true, far[k])
        for k in (0, 1)
    }
    assert finetune.compare("kozak", "rnafm-mini", "frozen", kept) is None  # no baseline is there
    kept[finetune.Training("kozak", "forest", "baseline")] = made(finetune, true, near[0])
    assert finetune.compare("kozak", "rnafm-mini", "frozen", kept) is None  # no linear baseline is there
    kept[finetune.Training("kozak", "k-mers", "baseline")] = made(finetune, true, far[0])
    found = finetune.compare("kozak", "rnafm-mini", "frozen", kept)
    of_near, of_far = ([spearmanr(true, one).statistic for one in many] for many in (near, far))
    assert found.by_seed == pytest.approx(of_near)
    assert found.untrained.value == pytest.approx(np.mean(of_far))
    assert found.untrained.gain.value == pytest.approx(np.mean(of_near) - np.mean(of_far))
    assert found.untrained.gain.low > 0
    assert (found.linear.name, found.linear.value) == ("k-mers", pytest.approx(of_far[0]))
    assert (found.best.name, found.best.value) == ("forest", pytest.approx(of_near[0]))
    assert found.best.gain.low <= found.best.gain.value <= found.best.gain.high
    half = [spearmanr(true[::2], one[::2]).statistic for one in near]
    assert found.clean == pytest.approx((np.mean(half), half[0]))
    row = finetune.overview([found]).splitlines()[2].split(" | ")
    better = found.untrained.gain.low > 0 and found.linear.gain.low > 0
    star = "*" if better and found.best.gain.low <= 0 else ""
    assert row[-2] == f"{np.mean(of_near):.3f}{star} ({np.mean(of_far):.3f})"
    assert row[-1] == "k-mer ridge .721 |"
    assert star  # better than untrained and linear, not than all
    best = finetune.replace(found, best=found.linear)
    assert f"**{np.mean(of_near):.3f}** (" in finetune.overview([best])
    text = list(finetune.won([found]))
    assert "better than the untrained network in 1, worse in 0 of 1" in text[0]


def test_counts_are_put_beside_embeddings_by_the_mean(finetune):
    true, ours, theirs = np.arange(4.0), np.array([0.0, 1, 3, 2]), np.array([1.0, 0, 2, 3])
    of = {name: finetune.Training("mrfp", name, "baseline") for name in ("forest", "k-mers", "codons")}
    frozen = finetune.Training("mrfp", "helix-mrna-mini", "frozen", untrained=True, seed=1)
    kept = {frozen: made(finetune, true, ours), of["forest"]: made(finetune, true, true)}
    assert finetune.with_counts(kept) == {}
    kept |= {of["k-mers"]: made(finetune, true, -true), of["codons"]: made(finetune, true, theirs)}
    [(one, p)] = finetune.with_counts(kept).items()
    assert one == finetune.replace(frozen, mode="frozen+counts")
    np.testing.assert_array_equal(p.predicted, [0.5, 0.5, 2.5, 2.5])
    np.testing.assert_array_equal(p.true, true)


def test_tests_are_on_the_same_rows_however_few_are_trained_on(finetune, table, tmp_path):
    task = finetune.TASKS["kozak"]
    every, few = (finetune.read(task, tmp_path, rows, "rnafm-mini") for rows in (None, 15))
    assert [len(every[part]) for part in ("train", "val", "test")] == [30, 10, 20]
    assert [len(few[part]) for part in ("train", "val", "test")] == [15, 3, 20]
    assert few["test"].X == every["test"].X


def test_classes_are_scored_by_probability(finetune):
    classes = np.array(["a", "b", "c"])
    true = np.array(["a", "b", "c", "a"])
    chances = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.5, 0.1, 0.4], [0.9, 0.1, 0.0]])
    accuracy = finetune.statistic("accuracy", classes)
    assert accuracy(true, np.stack([chances, chances[:, ::-1]], 1)) == pytest.approx((0.75 + 0.5) / 2)
    area = finetune.statistic("roc_auc", np.array(["0", "1"]))
    of_one = np.array([0.1, 0.4, 0.35, 0.8])
    both = np.stack([1 - of_one, of_one], 1)
    assert area(np.array(["0", "0", "1", "1"]), both[:, None]) == pytest.approx(0.75)

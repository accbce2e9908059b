"""`ribozyme finetune | predict | evaluate`, as a user types them."""

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ribozyme as rz
from ribozyme.train.tables import read_labelled


@pytest.fixture(scope="module")
def rna(fixtures):
    return str(fixtures / "rnafm" / "rna.pth")


@pytest.fixture(scope="module")
def frame():
    """60 sequences; the class and the number are the share of G."""
    generator = np.random.default_rng(0)
    rows = []
    for k in range(60):
        p = np.array([1, 1, 1, 1]) / 4 if k % 2 else np.array([0.1, 0.1, 0.7, 0.1])
        rows.append("".join(generator.choice(list("ACGU"), generator.integers(15, 30), p=p)))
    table = pd.DataFrame({"id": [f"s{k}" for k in range(60)], "sequence": rows})
    table["kind"] = ["rich", "even"] * 30
    table["share"] = [one.count("G") / len(one) for one in rows]
    table["other"] = -table["share"]
    table["marks"] = ["".join("(" if x == "G" else "." for x in one) for one in rows]
    table["heights"] = [[float(x == "G") for x in one] for one in rows]
    table["split"] = ["train"] * 40 + ["val"] * 8 + ["test"] * 12
    return table


@pytest.fixture
def table(frame, tmp_path):
    path = tmp_path / "table.csv"
    frame.assign(heights=frame["heights"].map(json.dumps)).to_csv(path, index=False)
    return path


FAST = ("--epochs", "3", "--learning-rate", "0.01")


def test_classes_are_learnt_predicted_and_evaluated(run, table, frame, rna, tmp_path):
    status, out, err = run(
        "finetune", table, "-o", tmp_path / "run", "--model", rna, "--target", "kind", "--task",
        "classification", "--split-column", "split", "--epochs", "15", "--learning-rate", "0.02",
    )  # fmt: skip
    assert (status, "predict with" in err) == (0, True), err
    assert "test: 12 inputs" in out
    assert "accuracy" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"]["model"]["accuracy"]["value"] >= 0.75
    assert (tmp_path / "run" / "training" / "curve.png").stat().st_size > 0
    loaded = rz.load(tmp_path / "run")
    assert loaded.classes_.tolist() == ["even", "rich"]
    for suffix in (".csv", ".tsv", ".parquet", ".json"):
        output = tmp_path / f"out{suffix}"
        assert run("predict", tmp_path / "run", table, "-o", output)[0] == 0
        reader = {
            ".csv": pd.read_csv,
            ".tsv": pd.read_table,
            ".parquet": pd.read_parquet,
            ".json": pd.read_json,
        }
        found = reader[suffix](output)
        assert found["id"].tolist() == frame["id"].tolist()
        assert found["kind"].tolist() == loaded.predict(frame["sequence"]).tolist()
        np.testing.assert_allclose(found["p_even"] + found["p_rich"], 1, atol=1e-5)
    status, out, err = run("evaluate", tmp_path / "run", table, "-o", tmp_path / "m.json")
    assert status == 0, err
    again = json.loads((tmp_path / "m.json").read_text())
    assert again["scores"] == metrics["scores"]  # the test part, found again
    assert again["part"] == "test"
    new = tmp_path / "new.csv"
    frame.drop(columns="split").to_csv(new, index=False)
    assert "60 inputs" in run("evaluate", tmp_path / "run", new)[1]


def test_baselines_stand_beside_and_see_only_the_training_part(run, table, rna, tmp_path):
    run("finetune", table, "-o", tmp_path / "run", "--model", rna, "--target", "share", "--task",
        "regression", "--split-column", "split", *FAST)  # fmt: skip
    status, out, err = run("evaluate", tmp_path / "run", table, "-o", tmp_path / "m.json", "--baselines")
    assert status == 0, err
    for word in ("k-mers", "TextCNN", "spearman", "above the best baseline", "["):
        assert word in out
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["scores"]["k-mers"]["spearman"]["value"] > 0.8
    assert found["gain"]["metric"] == "spearman"
    table.rename(tmp_path / "moved.csv")
    assert run("evaluate", tmp_path / "run", tmp_path / "moved.csv", "--baselines")[0] == 0
    pd.read_csv(tmp_path / "moved.csv").iloc[40:].to_csv(tmp_path / "other.csv", index=False)
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "other.csv", "--baselines")
    assert status == 1
    assert "the training table is not there any more" in err
    moved = ("--training", tmp_path / "moved.csv")
    assert run("evaluate", tmp_path / "run", tmp_path / "other.csv", "--baselines", *moved)[0] == 0


def test_labels_of_letters_and_several_targets(run, table, frame, rna, tmp_path):
    how = ("--model", rna, "--split-column", "split", "--epochs", "1")
    for target, task, kind in (
        ("marks", "token", "TokenClassifier"),
        ("heights", "token", "TokenRegressor"),
        ("share,other", "regression", "Regressor"),
    ):
        folder = tmp_path / kind
        status, _, err = run("finetune", table, "-o", folder, "--target", target, "--task", task, *how)
        assert status == 0, err
        assert type(rz.load(folder)).__name__ == kind
        assert run("predict", folder, table, "-o", folder / "out.parquet")[0] == 0
        found = pd.read_parquet(folder / "out.parquet")
        if task == "token":
            assert [len(one) for one in found[target]] == [len(one) for one in frame["sequence"]]
        else:
            assert list(found.columns) == ["id", "share", "other"]


def test_cells_are_learnt_from_a_column_of_obs(run, tmp_path):
    cells = rz.data.cells()[:40].copy()
    cells.obs["kind"] = np.where(np.arange(40) % 2, "a", "b")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    status, out, err = run(
        "finetune", tmp_path / "cells.h5ad", "-o", tmp_path / "run", "--target", "kind", "--task",
        "classification", "--epochs", "1", "--validation", "0.2", "--test", "0.2",
    )  # fmt: skip
    assert status == 0, err
    assert "test: 8 inputs" in out
    assert run("predict", tmp_path / "run", tmp_path / "cells.h5ad", "-o", tmp_path / "out.csv")[0] == 0
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == list(cells.obs_names)


def test_the_same_command_again_goes_on_and_ends_the_same(run, table, rna, tmp_path):
    words = (
        "finetune",
        table,
        "-o",
        tmp_path / "run",
        "--model",
        rna,
        "--target",
        "share",
        "--task",
        "regression",
    )
    assert run(*words, *FAST)[0] == 0
    first = rz.load(tmp_path / "run").predict(["GGGG", "ACGU"])
    assert run(*words, *FAST)[0] == 0
    np.testing.assert_array_equal(rz.load(tmp_path / "run").predict(["GGGG", "ACGU"]), first)
    status, _, err = run(*words, "--epochs", "4", "--learning-rate", "0.01")
    assert status == 1
    assert "training" in err  # the folder has another one


def test_alike_sequences_stay_in_one_part(run, frame, rna, tmp_path):
    generator = np.random.default_rng(0)
    founders = ["".join(generator.choice(list("ACGU"), 30)) for _ in range(10)]
    copies = pd.DataFrame({"sequence": np.repeat(founders, 5), "y": np.arange(50.0)})
    copies.to_csv(tmp_path / "t.csv", index=False)
    how = ("--model", rna, "--target", "y", "--task", "regression", "--epochs", "1", "--test", "0.2")
    assert run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *how)[0] == 0
    parts = json.loads((tmp_path / "run" / "data.json").read_text())["parts"]
    families = [{k // 5 for k in rows} for rows in parts.values()]
    assert sum(map(len, families)) == 10


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, ("--target", "colour"), "there is no column 'colour'"),
        ({"share": None}, (), "60 rows have no label in share, the first is row 1"),
        ({"share": "high"}, (), "holds 'high', which is no finite number"),
        (
            {"kind": "one"},
            ("--target", "kind", "--task", "classification"),
            "all labels are of one class, 'one'",
        ),
        ({"split": "fold1"}, ("--split-column", "split"), "'split' has 'fold1' in row 1"),
        ({"split": "test"}, ("--split-column", "split"), "no row is for training"),
        ({"marks": "(."}, ("--target", "marks", "--task", "token"), "letters and 2 labels"),
        ({"marks": "[1 2]"}, ("--target", "marks", "--task", "token"), "row 1: the labels are no JSON list"),
        ({"sequence": "AC GT"}, (), "which is no letter"),
        ({}, ("--task", "ranking"), "task 'ranking' does not exist"),
        ({}, ("--layers", "some"), "layers 'some' is no number"),
        ({}, ("--split", "scaffold"), "split 'scaffold' does not exist"),
        ({}, ("--precision", "float8"), "precision 'float8' does not exist"),
        ({}, ("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_what_is_wrong_is_one_error_and_leaves_no_run(run, frame, rna, tmp_path, change, words, message):
    frame.assign(**change).to_csv(tmp_path / "t.csv", index=False)
    base = ("--model", rna, "--target", "share", "--task", "regression")
    status, out, err = run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *base, *words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "run" / "estimator.json").exists()


def test_an_unseen_class_is_named(run, frame, table, rna, tmp_path):
    how = ("--model", rna, "--target", "kind", "--task", "classification", "--split-column", "split")
    odd = frame.assign(kind=[*frame["kind"][:59], "odd"])
    odd.to_csv(tmp_path / "odd.csv", index=False)
    assert run("finetune", table, "-o", tmp_path / "run", *how, "--epochs", "1")[0] == 0
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "odd.csv")
    assert status == 1
    assert "does not know: odd" in err


def test_a_folder_that_is_no_run_is_named(run, table, tmp_path):
    status, _, err = run("predict", tmp_path, table, "-o", tmp_path / "out.csv")
    assert status == 1
    assert "not the folder of a finished run" in err
    status, _, err = run("predict", tmp_path, table, "-o", tmp_path / "out.xlsx")
    assert "suffix '.xlsx' does not exist" in err


def test_predict_reads_the_column_of_the_training(run, frame, rna, tmp_path):
    renamed = frame.rename(columns={"sequence": "utr"})
    renamed.to_csv(tmp_path / "t.csv", index=False)
    how = ("--model", rna, "--target", "share", "--task", "regression", "--split-column", "split")
    status, _, err = run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *how)
    assert (status, "--sequence-column" in err) == (1, True), err
    named = ("--sequence-column", "utr")
    assert run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *how, *named)[0] == 0
    (tmp_path / "new.fa").write_text(">s0\n" + frame["sequence"][0] + "\n")
    renamed.to_csv(tmp_path / "t.csv.xz", index=False)
    for new, options in (("t.csv", ()), ("t.csv", named), ("t.csv.xz", ()), ("new.fa", ())):
        status, _, err = run("predict", tmp_path / "run", tmp_path / new, "-o", tmp_path / "p.csv", *options)
        assert status == 0, err
        assert pd.read_csv(tmp_path / "p.csv")["share"][0] == pytest.approx(
            float(rz.load(tmp_path / "run").predict([frame["sequence"][0]])[0]), abs=1e-5
        )


def test_rows_without_a_label_can_be_left_out(run, frame, rna, tmp_path):
    gaps = frame.assign(share=[np.nan, *frame["share"][1:]])
    gaps.to_csv(tmp_path / "t.csv", index=False)
    how = ("--model", rna, "--target", "share", "--task", "regression", "--epochs", "1", "--drop-missing")
    assert run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *how)[0] == 0
    parts = json.loads((tmp_path / "run" / "data.json").read_text())["parts"]
    assert sum(map(len, parts.values())) == 59


def test_a_cell_table_needs_its_column(run, tmp_path):
    ad.AnnData(np.ones((3, 2), np.float32)).write_h5ad(tmp_path / "c.h5ad")
    words = (
        "finetune",
        tmp_path / "c.h5ad",
        "-o",
        tmp_path / "run",
        "--target",
        "kind",
        "--task",
        "classification",
    )
    status, _, err = run(*words)
    assert status == 1
    assert "no column 'kind'" in err


def regression(folder, rna, *words):
    return ("finetune", folder / "t.csv", "-o", folder / "run", "--model", rna, "--target", "share",
            "--task", "regression", "--split-column", "split", *words)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        ("--pooling", "max"),
        ("--head", "linear"),
        ("--epochs", "4"),
        ("--head", "attention"),
        ("--target", "other"),
    ],
)
def test_a_run_of_other_settings_is_kept(run, frame, rna, tmp_path, change):
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = regression(tmp_path, rna, "--head", "mlp", "--epochs", "1")
    assert run(*words)[0] == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, _, err = run(*words, *change)
    assert status == 1
    assert "holds a run with" in err or "has a run with --target share, not other" in err
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (59, "sequence", "AC GT", "row 60"),
        (59, "sequence", "A" * 70, "'s59' has 70 letters"),
        (59, "share", "inf", "row 60: 'share' holds 'inf', which is no finite number"),
        (58, "share", ">10", "row 59: 'share' holds '>10', which is no finite number"),
    ],
)
def test_the_test_part_is_looked_at_before_the_training(
    run, frame, rna, tmp_path, row, column, value, message
):
    odd = frame.astype({"share": object})
    odd.loc[row, column] = value
    odd.to_csv(tmp_path / "t.csv", index=False)
    status, _, err = run(*regression(tmp_path, rna, "--epochs", "1"))
    assert status == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_class_of_the_test_part_alone_is_said_before_the_training(run, frame, rna, tmp_path):
    frame.assign(kind=[*frame["kind"][:59], "odd"]).to_csv(tmp_path / "t.csv", index=False)
    words = regression(tmp_path, rna, "--epochs", "1", "--target", "kind", "--task", "classification")
    status, _, err = run(*words)
    assert status == 1
    assert "does not know: odd" in err
    assert not (tmp_path / "run").exists()


def test_inputs_of_the_training_are_counted_when_they_are_evaluated(run, frame, rna, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert run(*regression(tmp_path, rna))[0] == 0
    frame.to_csv(tmp_path / "longer.csv", index=False, lineterminator="\r\n")
    status, out, err = run("evaluate", tmp_path / "run", tmp_path / "longer.csv")
    assert status == 0
    assert "60 inputs" in out
    assert "48 of 60 inputs were in the training" in err
    frame.iloc[48:].assign(sequence=lambda t: t["sequence"].str.lower()).to_csv(tmp_path / "n.csv")
    assert "in the training" not in run("evaluate", tmp_path / "run", tmp_path / "n.csv")[2]
    frame.iloc[:3].assign(sequence=lambda t: t["sequence"].str.replace("U", "t")).to_csv(tmp_path / "s.csv")
    assert "3 of 3 inputs" in run("evaluate", tmp_path / "run", tmp_path / "s.csv")[2]


def test_folders_of_cells_are_told_apart_by_what_is_in_them(run, tmp_path):
    cells = rz.data.cells()[:40].copy()
    cells.obs["kind"] = np.where(np.arange(40) % 2, "a", "b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of formats to come
        cells.write_zarr(tmp_path / "one.zarr")
        cells[::-1].copy().write_zarr(tmp_path / "two.zarr")
    words = ("--target", "kind", "--task", "classification", "--test", "0.2")
    assert run("finetune", tmp_path / "one.zarr", "-o", tmp_path / "run", *words)[0] == 0
    assert "8 inputs" in run("evaluate", tmp_path / "run", tmp_path / "one.zarr")[1]
    _, out, err = run("evaluate", tmp_path / "run", tmp_path / "two.zarr")
    assert "40 inputs" in out
    assert "32 of 40 inputs were in the training" in err


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        (["1", "2"], [1, 2]),
        (["01", "1"], ["01", "1"]),
        (["1", "x"], ["1", "x"]),
        (["1.0", "2.0"], [1, 2]),
        (["True", "False"], [0, 1]),
    ],
)
def test_classes_are_read_as_they_are_written(run, frame, rna, tmp_path, written, classes):
    frame.assign(kind=written * 30).to_csv(tmp_path / "t.csv", index=False)
    words = regression(tmp_path, rna, "--target", "kind", "--task", "classification")
    assert run(*words)[0] == 0
    assert rz.load(tmp_path / "run").classes_.tolist() == classes
    frame.assign(kind=[written[0]] * 60).iloc[48:].to_csv(tmp_path / "new.csv")  # of one class alone
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "new.csv")
    assert status == 0, err


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, ("--class-weight", "balanced"), "class weights are of classes"),
        ({}, ("--learning-rate", "nan"), "learning_rate nan"),
        ({}, ("--target", "share,share"), "'share' is named twice"),
        ({"group": [None, *"ab" * 29, "c"]}, ("--group-column", "group"), "1 rows have no group in 'group'"),
    ],
)
def test_more_that_is_wrong_is_one_error(run, frame, rna, tmp_path, change, words, message):
    frame.assign(**change).to_csv(tmp_path / "t.csv", index=False)
    status, _, err = run(*regression(tmp_path, rna, *words))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_written_or_read_are_one_error(run, frame, rna, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert run(*regression(tmp_path, rna))[0] == 0
    for words in (("predict", "-o", "no/p.csv"), ("evaluate", "-o", "no/m.json")):
        status, _, err = run(words[0], tmp_path / "run", tmp_path / "t.csv", "-o", tmp_path / words[2])
        assert (status, "there is no folder" in err) == (1, True)
    (tmp_path / "file").write_text("")
    status, _, err = run(*regression(tmp_path, rna), "-o", tmp_path / "file")
    assert (status, "is a file" in err) == (1, True)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    cut = (tmp_path / "t.csv.gz").read_bytes()[:-200]
    (tmp_path / "t.csv.gz").write_bytes(cut)
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "t.csv.gz")
    assert (status, "cannot be read as a table" in err) == (1, True)
    (tmp_path / "run" / "data.json").write_text("{}")
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "t.csv")
    assert (status, "does not say 'table'" in err) == (1, True)
    (tmp_path / "run" / "estimator.json").unlink()
    status, _, err = run("predict", tmp_path / "run", tmp_path / "t.csv", "-o", tmp_path / "p.csv")
    assert (status, "not the folder of a finished run" in err) == (1, True)


def test_another_table_is_evaluated_by_its_own_columns(run, frame, rna, tmp_path):
    groups = np.arange(60) // 2
    frame.assign(group=groups).to_csv(tmp_path / "t.csv", index=False)
    assert run(*regression(tmp_path, rna, "--group-column", "group"))[0] == 0
    other = frame.iloc[48:].rename(columns={"sequence": "utr"})
    other["share"] = other["share"].mask(other.index == 48)
    other.to_csv(tmp_path / "o.csv", index=False)
    words = ("evaluate", tmp_path / "run", tmp_path / "o.csv", "--sequence-column", "utr")
    assert "--drop-missing" in run(*words)[2]
    status, out, err = run(*words, "--drop-missing")
    assert (status, "11 inputs" in out) == (0, True), err
    assert "1 of 12 rows have no label" in err
    long = pd.DataFrame({"id": ["long"], "sequence": ["A" * 70]})
    long.to_csv(tmp_path / "long.csv", index=False)
    words = ("predict", tmp_path / "run", tmp_path / "long.csv", "-o", tmp_path / "p.csv")
    status, _, err = run(*words)
    assert (status, "choose 'truncate'" in err) == (1, True)
    assert run(*words, "--overlong", "truncate")[0] == 0


def test_intervals_are_over_what_stays_together(run, rna, tmp_path):
    """Clusters of copies: as wide as over clusters, not over rows; the same from `evaluate`."""
    generator = np.random.default_rng(0)
    founders = ["".join(generator.choice(list("ACGU"), 30)) for _ in range(20)]
    copies = pd.DataFrame({"sequence": np.repeat(founders, 5), "share": generator.normal(size=100)})
    copies.to_csv(tmp_path / "t.csv", index=False)
    words = ("--model", rna, "--target", "share", "--task", "regression", "--test", "0.4")
    assert run("finetune", tmp_path / "t.csv", "-o", tmp_path / "run", *words)[0] == 0
    rows = json.loads((tmp_path / "run" / "data.json").read_text())["parts"]["test"]
    tested, clusters = copies.iloc[rows], np.array(rows) // 5
    loaded = rz.load(tmp_path / "run")
    wanted = loaded.evaluate(tested["sequence"].tolist(), tested["share"].to_numpy(), groups=clusters)["mse"]
    assert run("evaluate", tmp_path / "run", tmp_path / "t.csv", "-o", tmp_path / "m.json")[0] == 0
    for path in (tmp_path / "run" / "metrics.json", tmp_path / "m.json"):
        found = json.loads(path.read_text())["scores"]["model"]["mse"]
        assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-5)


def test_large_numbers_of_classes_are_kept_apart(tmp_path):
    names = ["9007199254740992", "9007199254740993", "123456789012345678901"]
    pd.DataFrame({"sequence": ["ACGU"] * 3, "kind": names}).to_csv(tmp_path / "t.csv", index=False)
    assert read_labelled(tmp_path / "t.csv", ["kind"], "classification").y.tolist() == names


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_dates_are_no_labels(run, frame, rna, tmp_path, task):
    dated = frame.assign(when=pd.date_range("2020-01-01", periods=60))
    dated.to_parquet(tmp_path / "t.parquet")
    words = ("--model", rna, "--target", "when", "--task", task)
    status, _, err = run("finetune", tmp_path / "t.parquet", "-o", tmp_path / "run", *words)
    assert (status, "dates or times" in err) == (1, True)


def test_a_part_of_the_classes_is_evaluated(run, frame, rna, tmp_path):
    """Text that is all numbers in one file is the classes that it was in another."""
    frame.assign(kind=["1.0", "2.0", "u"] * 20).to_csv(tmp_path / "t.csv", index=False)
    words = regression(tmp_path, rna, "--target", "kind", "--task", "classification")
    assert run(*words)[0] == 0
    assert rz.load(tmp_path / "run").classes_.tolist() == ["1.0", "2.0", "u"]
    frame.assign(kind=["1.0", "2.0"] * 30).iloc[48:].to_csv(tmp_path / "new.csv")
    status, _, err = run("evaluate", tmp_path / "run", tmp_path / "new.csv")
    assert status == 0, err


def test_evaluate_takes_other_groups_of_the_training_table(run, frame, rna, tmp_path):
    frame.assign(group=np.arange(60) // 6).to_csv(tmp_path / "t.csv", index=False)
    assert run(*regression(tmp_path, rna))[0] == 0
    words = ("evaluate", tmp_path / "run", tmp_path / "t.csv")
    assert run(*words)[1] != run(*words, "--group-column", "group")[1]
    status, _, err = run(*words, "--group-column", "nosuch")
    assert (status, "there is no column 'nosuch'" in err) == (1, True)

"""The commands, as a user types them: results in files or on stdout, all talk on stderr, one clear error."""

import json
import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ribozyme as rz

FASTA = ">one first\nGGGAAACCC\n>two\r\nacguacgu\r\n>one\nA"


@pytest.fixture
def rna(fixtures):
    return str(fixtures / "rnafm" / "rna.pth")


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(FASTA)
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv", ".json"])
def test_embed_keeps_names_and_order(run, fasta, rna, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    assert run("embed", fasta, "-o", output, "--model", rna) == (0, "", "")
    expected = rz.load(rna).embed(fasta)
    if suffix == ".parquet":
        table = pd.read_parquet(output)
        assert list(table["id"]) == ["one", "two", "one"]
        np.testing.assert_array_equal(np.stack(table["embedding"]), expected)
    if suffix == ".npz":
        np.testing.assert_array_equal(np.load(output)["embeddings"], expected)
    assert output.stat().st_size > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.fa", f"out{suffix}"]


def test_one_row_a_letter(run, fasta, rna, tmp_path):
    assert run("embed", fasta, "-o", tmp_path / "rows.parquet", "--model", rna, "--pooling", "none")[0] == 0
    table = pd.read_parquet(tmp_path / "rows.parquet")
    assert [len(rows) for rows in table["embedding"]] == [9, 8, 1]


def test_score_and_fill_print_tables_alone(run, fasta, rna, tmp_path):
    status, out, err = run("score", fasta, "--model", rna)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "id\tscore"
    assert len(out.splitlines()) == 4
    (tmp_path / "masked.fa").write_text(">m\nGG<mask>AA\n")
    status, out, err = run("fill", tmp_path / "masked.fa", "--model", rna, "--top", 2)
    assert (status, err) == (0, "")
    assert [line.split("\t")[:3] for line in out.splitlines()[1:]] == [["m", "2", "1"], ["m", "2", "2"]]


def test_convert_writes_a_layout_that_loads_to_the_same_numbers(run, fasta, rna, tmp_path):
    assert run("convert", rna, "-o", tmp_path / "mm", "--layout", "multimolecule")[0] == 0
    np.testing.assert_allclose(rz.load(tmp_path / "mm").embed(fasta), rz.load(rna).embed(fasta), atol=1e-6)
    status, _, err = run("convert", rna, "-o", tmp_path / "x", "--layout", "onnx")
    assert status == 1
    assert "native, fairseq or multimolecule" in err


def test_models_and_info_say_on_what_terms(run, rna):
    out = run("models")[1]
    assert all(model.name in out and model.licence in out for model in rz.models())
    out = run("info", "helix-mrna")[1]
    assert "CC-BY-NC-SA-4.0 (non-commercial)" in out
    assert "must be asked for" in out
    assert "parameters" in run("info", rna)[1]


@pytest.mark.parametrize("name", [model.name for model in rz.models() if model.hub is None])
def test_info_describes_every_small_model(run, name):
    status, out, err = run("info", name)
    assert (status, err) == (0, "")
    assert "trained on" in out


def test_info_shows_scores_of_these_weights_only(run, tmp_path, monkeypatch):
    out = run("info", "scgpt-mini")[1]
    assert "trained on" in out
    assert re.search(r"untrained \w+ 0\.\d{3}, gain \+0\.\d{3}\s+\[", out)
    assert "limits" in out
    from ribozyme import hub

    folder = tmp_path / "scgpt-mini"
    shutil.copytree(hub.resolve("scgpt-mini").path, folder)
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | {"weights_sha256": "0" * 64}))
    monkeypatch.setattr(hub, "_folder_in_package", lambda model: folder)
    out = run("info", "scgpt-mini")[1]
    assert "measured with other weights" in out
    assert "gain +" not in out
    (folder / "scores.json").unlink()
    assert "measured" not in run("info", "scgpt-mini")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embed", "missing.fa", "-o", "x.npz"], "missing.fa: there is no such file"),
        (["embed", "{fasta}", "-o", "x.xyz"], "no format has the suffix '.xyz'"),
        (["embed", "{fasta}", "-o", "x.npz", "--model", "rnafmm"], "did you mean rnafm"),
        (["embed", "{fasta}", "-o", "x.npz", "--model", "{rna}", "--dtype", "int8"], "dtype 'int8'"),
        (["embed", "{fasta}", "-o", "x.npz", "--model", "{rna}", "--layer", "99"], "layer 99 does not exist"),
        (["embed", "{fasta}", "-o", "x.npz", "--model", "{cells}"], "reads cells"),
    ],
)
def test_mistakes_are_one_error_with_what_to_do(
    run, fasta, rna, fixtures, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    places = {"fasta": fasta, "rna": rna, "cells": fixtures / "scgpt" / "plain"}
    status, out, err = run(*(word.format(**places) for word in words))
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["in.fa"]


def test_a_bad_letter_names_file_record_and_place_and_writes_nothing(run, rna, tmp_path):
    (tmp_path / "bad.fa").write_text(">ok\nACGU\n>wrong\nAC7U\n")
    status, _, err = run("embed", tmp_path / "bad.fa", "-o", tmp_path / "x.npz", "--model", rna)
    assert status == 1
    assert "'wrong'" in err
    assert "'7'" in err
    assert "bad.fa" in err
    assert not (tmp_path / "x.npz").exists()


def test_unknown_letters_are_a_warning_or_strictly_an_error(run, rna, tmp_path):
    (tmp_path / "odd.fa").write_text(">odd\nACZU\n")
    status, _, err = run("embed", tmp_path / "odd.fa", "-o", tmp_path / "x.npz", "--model", rna)
    assert status == 0
    assert err.startswith("warning: 1 letter that the model does not know")
    assert run("embed", tmp_path / "odd.fa", "-o", tmp_path / "y.npz", "--model", rna, "--strict")[0] == 1


@pytest.fixture
def cells(tmp_path, fixtures):
    vocabulary = rz.load(fixtures / "scgpt" / "plain").vocabulary
    genes = list(vocabulary.genes)[:20]
    X = np.random.default_rng(0).poisson(1.0, (7, len(genes))).astype(np.float32)
    table = ad.AnnData(X, obs=pd.DataFrame(index=[f"c{k}" for k in range(7)]), var=pd.DataFrame(index=genes))
    table.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_cells_go_to_obsm_or_to_a_table(run, cells, fixtures, tmp_path):
    model = str(fixtures / "scgpt" / "plain")
    assert run("embed", cells, "-o", tmp_path / "out.h5ad", "--model", model, "--key-added", "X_a")[0] == 0
    assert run("embed", cells, "-o", tmp_path / "out.parquet", "--model", model)[0] == 0
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table["id"]) == list(written.obs_names)
    np.testing.assert_allclose(np.stack(table["embedding"]), written.obsm["X_a"], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(written.obsm["X_a"], axis=1), 1, atol=1e-5)


def test_a_table_holds_what_the_model_reads(run, cells, fixtures, rna, tmp_path):
    model = str(fixtures / "scgpt" / "plain")
    counts = ad.read_h5ad(cells).to_df()
    counts.to_csv(tmp_path / "counts.csv")
    for source in (cells, tmp_path / "counts.csv"):
        assert run("embed", source, "-o", tmp_path / f"{source.stem}.parquet", "--model", model)[0] == 0
    from_table, from_file = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("counts", "cells"))
    pd.testing.assert_frame_equal(from_table, from_file)
    status, _, err = run("embed", tmp_path / "counts.csv", "-o", tmp_path / "x.parquet", "--model", rna)
    assert status == 1
    assert "no column 'sequence'" in err

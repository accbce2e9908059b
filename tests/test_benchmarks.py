"""The benchmark programs: what they compare, and what they say when something is wrong."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def program(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parity():
    return program("parity")


@pytest.fixture(scope="module")
def real_data():
    return program("real_data")


@pytest.fixture
def case(parity):
    return next(c for c in parity.fixture_cases() if c.path.name == "rna.pth")


def test_every_fixture_is_a_case_and_every_peer_has_a_version(parity):
    cases = list(parity.fixture_cases())
    made = set(parity.FIXTURES.rglob("*expected*"))
    assert {c.expected for c in cases} >= made
    assert all(c.path.exists() for c in cases)
    versions = parity.fixture_versions()
    assert {"transformers", "multimolecule", "rna-fm", "scgpt"} <= versions.keys()


def test_a_published_network_is_measured_layer_by_layer(parity, case):
    measures = parity.measure(case)
    names = [m.what for m in measures]
    assert names == ["layer 0", "layer 1", "layer 2", "layer 3", "attentions", "contacts", "logits"]
    assert all(m.worst < parity.LIMIT and m.numbers > 0 and m.largest > 0.1 for m in measures)


def test_a_changed_answer_is_found_where_it_is(parity, case, tmp_path):
    expected = load_file(case.expected)
    expected["layers.1"][2, 3, 4] += 0.5
    save_file(expected, tmp_path / "changed.safetensors")
    exact = replace(case, expected=tmp_path / "changed.safetensors", exact=case.expected)
    measures = {m.what: m for m in parity.measure(exact)}
    assert measures["layer 2"].worst == pytest.approx(0.5, abs=1e-4)
    assert measures["layer 2"].peer_exact == pytest.approx(0.5, abs=1e-4)
    assert measures["layer 2"].worst_exact < 1e-4
    assert measures["layer 1"].worst < 1e-4


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, float("nan")], [1.0, float("nan")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([1.0], [1.0, 2.0], float("inf")),
    ],
)
def test_a_missing_number_is_infinitely_far(parity, ours, theirs, apart):
    assert parity.difference(torch.tensor(ours), torch.tensor(theirs)) == apart


def test_the_exit_status_tells_whether_all_is_within_the_limit(parity, case, tmp_path, monkeypatch):
    import typer

    app = typer.Typer()
    app.command()(parity.main)
    monkeypatch.setattr(parity, "fixture_cases", lambda: iter([case]))
    within = CliRunner().invoke(app, ["-o", str(tmp_path / "parity.json")])
    assert within.exit_code == 0, within.output
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["worst"] < content["limit"] == 1e-4
    assert content["machine"]["flags"]
    monkeypatch.setattr(parity, "LIMIT", 1e-9)
    assert CliRunner().invoke(app, []).exit_code == 1


def test_sequences_are_picked_by_length_and_letters(parity):
    assert parity.pick(["ACGT", "AC", "ANNNG", "A" * 50], (2, 10)) == ["AC", "ACGU"]


def test_memory_and_status_of_a_command_are_its_own(real_data, tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "sequence": ["ACGUACG", "AUGGCU"]})
    table.to_parquet(tmp_path / "few.parquet")
    weights = str(BENCHMARKS.parent / "tests" / "fixtures" / "rnafm" / "rna.pth")
    job = real_data.Job("rnafm", weights, tmp_path / "few.parquet", None)
    outcome = real_data.run(job, tmp_path, "cpu")
    assert (outcome.rows, outcome.tokens, outcome.said, outcome.wrong) == (2, 13, (), "")
    assert 100 * 2**20 < outcome.peak < 2**31
    lost = real_data.run(replace(job, weights=str(tmp_path / "none.pth")), tmp_path, "cpu")
    assert lost.wrong == "status 1"
    assert lost.said[0].startswith("error: ")


def test_rows_that_a_codon_model_cannot_read_are_counted(real_data, tmp_path):
    table = pd.DataFrame({"id": list("abc"), "sequence": ["ACG", "ACGU", "AUGGCU"]})
    table.to_parquet(tmp_path / "few.parquet")
    job = real_data.Job("mrnafm", "", tmp_path / "few.parquet", None)
    (tmp_path / "work").mkdir()
    path, names, tokens, left_out = real_data.prepare_sequences(job, tmp_path / "work")
    assert (names, tokens, left_out) == (["a", "c"], 3, 1)
    assert pd.read_parquet(path).sequence.tolist() == ["ACG", "AUGGCU"]


def test_an_output_with_a_lost_row_or_a_missing_number_is_wrong(real_data, tmp_path):
    output = tmp_path / "out.parquet"
    table = pd.DataFrame({"id": ["a", "b"], "embedding": [np.ones(3), np.array([1, np.nan, 1])]})
    table.to_parquet(output)
    assert real_data.check(output, ["a", "b"]) == "1 rows are NaN"
    assert real_data.check(output, ["a", "c"]) == "names differ"
    assert real_data.check(output, ["a"]) == "2 rows for 1 inputs"
    assert real_data.check(tmp_path / "none.parquet", ["a"]) == "no output"

"""The benchmarks of speed: what is timed, how ratios are made, what is said where something is missing."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "tests" / "fixtures" / "rnafm" / "rna.pth"


@pytest.fixture
def program(monkeypatch):
    """A module of benchmarks/, which finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def embed(program):
    return program("embed")


@pytest.fixture
def tasks(program):
    return program("embed_tasks")


def run(main, *arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


def small_task(tasks, folder, weights=WEIGHTS):
    """The tiny network of the fixtures, as two programs under two names."""
    inputs = tasks.write_sequences(folder / "some.json", ["ACGU", "GGGAAACC", "ACGUACGUAC"])
    settings = {"weights": str(weights), "inputs": str(inputs), "device": "cpu", "dtype": "float32"}
    ours = tasks.Program("ours", sys.executable, "our_embed.py", "sequences", settings)
    pairs = [tasks.Pair("ours", "again", 0.01, (0, 1, 2))]
    return tasks.Task("tiny", "tiny", "RNAs", 3, 22, [ours, replace(ours, name="again")], pairs)


def test_programs_run_in_turn_and_agree_where_they_should(embed, tasks, tmp_path):
    task = small_task(tasks, tmp_path)
    found = embed.measure(task, 1, 2, tmp_path, embed.Console(quiet=True))
    assert {name: len(runs) for name, runs in found.runs.items()} == {"ours": 2, "again": 2}
    assert all(r.seconds > 0 and r.cpu > 0 and r.peak > 2**26 for some in found.runs.values() for r in some)
    assert found.versions["ours"]["ribozyme"]
    one = embed.ratio(found, task.pairs[0], "wall")
    assert one.difference == 0
    assert one.largest > 0.1
    assert one.least <= one.ratio <= one.most
    assert json.loads(json.dumps(embed.as_json(found)))["runs"]["again"][1]["seconds"] > 0


def test_a_program_that_fails_is_named_with_its_own_words(embed, tasks, tmp_path):
    task = small_task(tasks, tmp_path, tmp_path / "none.pth")
    with pytest.raises(SystemExit, match=r"ours ended with status 1:\n(.|\n)*none\.pth"):
        embed.once(task.programs[0], 1, tmp_path)


def test_a_command_is_timed_to_its_end(embed):
    run = embed.timed([sys.executable, "-c", "print(sum(range(10**6)))"], 1)
    assert run.cpu > 0
    assert run.seconds > 0
    assert run.peak > 2**20
    with pytest.raises(SystemExit, match=r"failed:\n(.|\n)*no such thing"):
        embed.timed([sys.executable, "-c", "raise ValueError('no such thing')"], 1)


def measured(embed, tasks, ours, peer):
    runs = {name: [embed.Run(s, 2 * s, 0) for s in some] for name, some in (("a", ours), ("b", peer))}
    vectors = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[1.0, 2.5], [9.0, 9.0]])}
    task = tasks.Task("t", "t", "RNAs", 2, 10, [], [])
    return embed.Measured(task, 1, runs, vectors, {})


def test_a_ratio_is_of_medians_and_its_spread_is_over_rounds(embed, tasks):
    found = measured(embed, tasks, ours=[1.0, 2.0, 1.0], peer=[4.0, 5.0, 9.0])
    one = embed.ratio(found, tasks.Pair("a", "b", 4.0, (0,)), "wall")
    assert (one.seconds, one.peer_seconds, one.ratio) == (1, 5, 5)
    assert (one.least, one.most) == (2.5, 9)
    assert (one.difference, one.largest) == (0.5, 2.5)  # the second input is not alike
    assert embed.ratio(found, tasks.Pair("a", "b", None, ()), "cpu").difference is None


@pytest.mark.parametrize(
    ("value", "target", "at_least", "met"),
    [(80, 78, True, True), (70, 78, True, False), (3, 4, False, True), (5, None, True, None)],
)
def test_a_figure_is_held_to_its_target(embed, value, target, at_least, met):
    assert embed.Figure("t", 1, "what", value, "s", target, at_least).met is met


def test_targets_are_those_of_the_processor(tasks, tmp_path):
    targets = {"amx": 15, "avx512": 7, "float32": 4}
    expected = {"float32": [4], "amx": [15, 4], "avx512": [7, 4], "cuda": [None, None]}
    for kind, wanted in expected.items():
        bench = tasks.Bench(tmp_path, kind)
        assert [pair.target for pair in bench.against("peer", targets, ())] == wanted
    slow = tasks.Bench(tmp_path, "amx")
    assert [form.name for form in slow.forms(exact=True)] == ["ribozyme (float32)"]
    assert tasks.hardware() in ("amx", "avx512", "float32")


def test_the_time_that_all_takes_is_told_before(tasks):
    whole = tasks.expected_minutes(list(tasks.TASKS), 1, 5, [1, 2])
    assert 45 < whole < 75
    assert tasks.expected_minutes(["rnafm"], 4, 10, [1]) == 8 * tasks.TASKS["rnafm"].minutes + 1


def test_sequences_are_spread_over_lengths_and_never_twice(tasks):
    many = ["A" * n for n in (3, 9, 10, 11, 90, 100, 110, 999)] + ["ACGTN", "ACGT"]
    some = tasks.spread(many, 10, 100, 4)
    assert sorted(map(len, some)) == [10, 11, 90, 100]
    assert tasks.spread(many, 10, 100, 4) == some
    assert "ACGU" in tasks.spread(many, 4, 4, 1)
    assert len(tasks.spread(many, 2, 9, 50)) == 3


def test_cells_are_of_known_genes_and_of_many_sizes(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "data_folder", lambda: None)
    genes = tasks.write_cells(tmp_path / "cells.npz", 4)
    with np.load(tmp_path / "cells.npz") as file:
        assert file["matrix"].shape == (4, len(file["genes"]))
        assert ((file["matrix"] != 0).sum(1) == genes).all()
    assert len(set(genes)) == 4


def test_arithmetic_of_the_networks_is_as_published(tasks):
    each = 2 * tasks.LAYERS * sum(a * b for a, b in tasks.RNAFM_SHAPES)
    assert each == 196_608_000  # 98.3 M weights in products
    assert tasks.LAYERS * sum(a * b for a, b in tasks.SCGPT_SHAPES) == 18_874_368


def test_a_task_without_its_peers_is_left_out_and_named(embed, tmp_path):
    done = run(embed.main, "--only", "rnafm", "--threads", "1", "-o", str(tmp_path / "out.json"))
    assert done.exit_code == 0, done.output
    assert "rnafm is left out: it needs --peers" in done.output
    assert json.loads((tmp_path / "out.json").read_text())["machine"]["processor"]
    assert run(embed.main, "--clock", "sun").exit_code == 2


def test_a_task_that_fails_does_not_stop_the_others(embed, tasks, tmp_path, monkeypatch):
    def fails(bench):
        raise SystemExit("the peer ended with status 1")

    done = tasks.Task("rnafm-pth", "RNA-FM", "RNAs", 1, 10, [], [])
    entries = {"rnafm": fails, "rnafm-pth": lambda bench: done}
    monkeypatch.setattr(embed, "TASKS", {k: tasks.Entry((), make, 1) for k, make in entries.items()})
    monkeypatch.setattr(embed, "measure", lambda task, *_: embed.Measured(task, 1, {}, {}, {}))
    output = tmp_path / "out.json"
    found = run(embed.main, "--only", "rnafm", "--threads", "1", "-o", str(output))
    assert found.exit_code == 1
    assert "rnafm failed: the peer ended with status 1" in found.output
    content = json.loads(output.read_text())
    assert [one["task"] for one in content["tasks"]] == ["rnafm-pth"]
    assert list(content["failed"]) == ["rnafm"]


def test_without_a_gpu_the_gpu_benchmark_says_so(program, monkeypatch):
    gpu = program("embed_gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    done = run(gpu.main)
    assert done.exit_code == 2
    assert "torch sees no CUDA device" in done.output


def test_slopes_are_those_of_powers(program, tmp_path):
    scaling = program("scaling")
    sizes = [10, 100, 1_000]
    straight = scaling.curve("straight", sizes, [0.5 * n for n in sizes])
    square = scaling.curve("square", sizes, [n**2 for n in sizes])
    assert (straight.slope, straight.error) == pytest.approx((1, 0), abs=1e-9)
    assert square.slope == pytest.approx(2)
    assert straight.linear
    assert not square.linear
    scaling.draw([straight, square], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_attention_is_timed_apart(program, monkeypatch):
    scaling = program("scaling")
    monkeypatch.setattr(scaling, "LETTERS", 64)
    rest, whole = scaling.over_lengths([16, 64], 1, np.random.default_rng(0))
    assert rest.tokens == whole.tokens == (16, 64)
    assert all(0 < a < b for a, b in zip(rest.seconds, whole.seconds))

"""`ribozyme pretrain`: one command trains, the same one goes on, and the folder is a model."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import ribozyme as rz

COMMAND = [sys.executable, "-W", "error", "-m", "ribozyme.cli", "pretrain"]
SETTINGS = ["--model", "rnafm-mini", "--device", "cpu", "--steps", "4", "--step-tokens", "100",
            "--longest", "50", "--log-every", "1", "--save-every", "1", "--held", "0.2"]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    generator = np.random.default_rng(0)
    sequences = ["".join(generator.choice(list("ACGU"), 30)) for _ in range(40)]
    path = tmp_path / "rna.fa"
    path.write_text("".join(f">s{k}\n{one}\n" for k, one in enumerate(sequences)))
    return path


def ran(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)


def test_one_command_trains_and_the_folder_is_a_model(corpus, tmp_path):
    run = tmp_path / "run"
    done = ran(corpus, "-o", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "4 steps" in done.stderr
    assert "held out" in done.stderr
    assert f"curve: {run / 'curve.png'}" in done.stderr
    assert "tensorboard" in done.stderr.lower()
    assert (run / "curve.png").is_file()
    assert rz.load(run, device="cpu").embed(["ACGU"]).shape == (1, 128)
    curve = json.loads((run / "curve.json").read_text())
    assert curve["step"] == [0, 1, 2, 3, 4]
    assert len(rz.pl.training_curve(run / "curve.json").axes) == 1


def test_every_setting_of_a_recipe_is_an_option():
    import inspect
    from dataclasses import fields

    from ribozyme.cli.train import pretrain
    from ribozyme.train.pretrain import Recipe

    options = inspect.signature(pretrain).parameters
    for setting in fields(Recipe):
        assert options[setting.name].default == setting.default, setting.name


@pytest.mark.slow
def test_two_stages_as_in_the_guide(corpus, tmp_path):
    """The second begins with the weights that the first ended with."""
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    done = ran(corpus, "-o", first, *SETTINGS, "--scratch", "--decay", "0")
    assert done.returncode == 0, done.stderr
    rest = [*SETTINGS, "--schedule", "linear", "--warmup", "0", "--validation", corpus]
    rest[rest.index("--model") + 1] = str(first)
    done = ran(corpus, "-o", second, *rest)
    assert done.returncode == 0, done.stderr
    log = [line.split(",") for line in (second / "log.csv").read_text().splitlines()]
    assert [float(line[4]) for line in log[2:]] == [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    ends, begins = (
        json.loads((run / "curve.json").read_text())["validation_loss"] for run in (first, second)
    )
    assert begins[0] < ends[0] - 0.1
    assert rz.load(second, device="cpu").embed(["ACGU"]).shape == (1, 128)


@pytest.mark.slow
def test_a_stopped_command_says_so_and_goes_on(corpus, tmp_path):
    run, settings = tmp_path / "run", [*SETTINGS]
    settings[settings.index("4")] = "400"
    process = subprocess.Popen([*COMMAND, corpus, "-o", run, *settings], stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoint.safetensors").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "give the same command again" in said
    assert rz.load(run, device="cpu").embed(["ACGU"]).shape == (1, 128)
    before = len((run / "log.csv").read_text().splitlines())
    process = subprocess.Popen([*COMMAND, corpus, "-o", run, *settings, "--resume"], stderr=subprocess.PIPE)
    while len((run / "log.csv").read_text().splitlines()) < before + 2:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_what_cannot_be_done_is_said_before_training(corpus, tmp_path):
    from typer.testing import CliRunner

    from ribozyme.cli import app
    from ribozyme.errors import ConfigError, InputError

    def error(*arguments):
        return CliRunner().invoke(app, ["pretrain", *map(str, arguments)]).exception

    told = error(corpus, "-o", tmp_path / "run", "--resume", *SETTINGS)
    assert isinstance(told, InputError)
    assert "no run to go on with" in str(told)
    assert isinstance(error(tmp_path / "none.fa", "-o", tmp_path / "run", *SETTINGS), InputError)
    told = error(corpus, "-o", tmp_path / "run", *SETTINGS, "--objective", "values")
    assert isinstance(told, ConfigError)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*does not know:ribozyme.errors.InputWarning")
def test_losses_of_cells_are_named_with_their_coefficients(tmp_path):
    cells = rz.data.cells()[:40].copy()
    cells.obs["donor"] = ["a", "b"] * 20
    cells.write_h5ad(tmp_path / "cells.h5ad")
    short = ["--model", "scgpt-mini", "--steps", "2", "--step-tokens", "3000", "--longest", "100"]
    labelled = [
        tmp_path / "cells.h5ad",
        *short,
        "--device",
        "cpu",
        "--batch-column",
        "donor",
        "--dsbn",
        "--held",
        "0.1",
    ]
    run = tmp_path / "run"
    done = ran(*labelled, "-o", run, "--parts", "expression=1, mvc=0.5, batches=0.1,similarity=0.004")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["parts"]["mvc"] == 0.5
    assert rz.load(run).config.batch_names == ("a", "b")
    embed = [
        sys.executable,
        "-m",
        "ribozyme.cli",
        "embed",
        tmp_path / "cells.h5ad",
        "-o",
        tmp_path / "rows.npz",
        "--model",
        run,
    ]
    bare = subprocess.run([str(one) for one in embed], capture_output=True, text=True)
    assert bare.returncode == 1
    assert "norms each cell by its batch" in bare.stderr
    embed += ["--batch-column", "donor"]
    assert subprocess.run([str(one) for one in embed]).returncode == 0
    rows = np.load(tmp_path / "rows.npz")["embeddings"]
    np.testing.assert_allclose(rows, rz.load(run).embed(cells, batch_column="donor"), atol=1e-4)


@pytest.mark.parametrize("parts", ["expression", "mvc=1,mvc=2", "mvc=much", "=1", "mvc=1,"])
def test_parts_that_cannot_be_read_are_one_error(parts, corpus, tmp_path):
    done = ran(corpus, "-o", tmp_path / "run", *SETTINGS, "--parts", parts)
    assert done.returncode == 1
    assert "is no part with a coefficient" in done.stderr
    assert "Traceback" not in done.stderr

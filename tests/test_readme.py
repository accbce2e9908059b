"""What the README shows runs as written."""

import re
import shutil
import warnings
from pathlib import Path

import pytest

import ribozyme as rz

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_second_command_is_what_ci_runs():
    [_, test_command] = [line for block in blocks("sh") for line in block.splitlines() if "venv" in line]
    assert test_command in (ROOT / ".ci" / "run").read_text()


def test_the_python_examples_run():
    [code] = blocks("python")
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rz.InputWarning)  # genes of the example that the small model lacks
        exec(code, names)
    assert names["X"].shape == (2, names["model"].config.dim)
    assert [len(one) for one in names["H"]] == [9]
    assert len(names["F"][0]) == 1
    assert names["adata"].obsm["X_scgpt"].shape[0] == names["adata"].n_obs


def test_the_first_embed_command_runs(tmp_path, monkeypatch):
    from ribozyme.cli import main

    [line] = [x for x in "\n".join(blocks("sh")).splitlines() if "in the package" in x]
    shutil.copy(rz.data.path("rnas.fa"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", line.partition("#")[0].split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert (tmp_path / "rnas.parquet").stat().st_size > 0


def test_every_link_leads_somewhere():
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in x]
    assert links
    assert all((ROOT / link).exists() for link in links)

"""`import ribozyme` changes nothing and loads nothing heavy."""

import json
import subprocess
import sys

import pytest

LOOK = """
import json, logging, os, random, sys, warnings

def state():
    root = logging.getLogger()
    return dict(os.environ), root.handlers[:], root.level, random.getstate(), warnings.filters[:]

before = state()
{work}
print(json.dumps({{"same": before == state(), "modules": sorted(sys.modules)}}))
"""


def look(work: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(work=work)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_changes_nothing_and_loads_nothing_heavy():
    seen = look("import ribozyme")
    assert seen["same"]
    assert not {"torch", "numpy", "pandas", "anndata", "matplotlib", "ribozyme.registry"} & set(
        seen["modules"]
    )


def test_the_catalogue_needs_no_torch():
    seen = look("from ribozyme.registry import MODELS\nfrom ribozyme.cli import app")
    assert not {"torch", "pandas", "anndata"} & set(seen["modules"])


FOR_CELLS = {"anndata", "h5py", "pandas", "scipy"}


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv", ".json"])
def test_a_job_of_sequences_imports_nothing_that_is_for_cells(tmp_path, suffix):
    (tmp_path / "in.fa").write_text(">a\nACGUACGU\n>b\nGGGAAACCC\n")
    words = ["embed", str(tmp_path / "in.fa"), "-o", str(tmp_path / f"out{suffix}"), "--model", "rnafm-mini"]
    seen = look(f"from ribozyme.cli import app\napp({words}, standalone_mode=False)")
    assert not {*FOR_CELLS, "ray", "ribozyme.io.cells", "ribozyme.engine.cells"} & set(seen["modules"])
    assert {"ribozyme.engine.sequences", "torch"} < set(seen["modules"])
    assert (tmp_path / f"out{suffix}").stat().st_size


def test_every_public_name_is_there():
    import ribozyme

    for name in dir(ribozyme):
        assert getattr(ribozyme, name) is not None
    assert {"load", "models", "read_cells", "read_sequences", "pp", "pl", "data"} <= set(dir(ribozyme))

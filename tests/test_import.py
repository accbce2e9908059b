"""`import ribozyme` changes nothing and loads nothing heavy."""

import json
import subprocess
import sys

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


def test_every_public_name_is_there():
    import ribozyme

    for name in dir(ribozyme):
        assert getattr(ribozyme, name) is not None
    assert {"load", "models", "read_cells", "read_sequences", "pp", "pl", "data"} <= set(dir(ribozyme))

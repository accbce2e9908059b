"""Tables that cost nothing to lay out."""

import subprocess
import sys

import torch

from ribozyme.nn.embedding import Embedding


def test_a_table_on_the_meta_device_imports_no_compiler():
    code = (
        "import sys, torch; from ribozyme.nn.embedding import Embedding; before = 'sympy' in sys.modules; "
        "torch.device('meta').__enter__(); Embedding(5, 3); assert ('sympy' in sys.modules) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_table_elsewhere_starts_as_torch_starts_it():
    torch.manual_seed(0)
    ours = Embedding(50, 30, padding_idx=2)
    assert 0.9 < ours.weight.std() < 1.1
    assert not ours.weight[2].any()

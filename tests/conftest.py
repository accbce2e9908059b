"""Tiny random models of every family, for tests that hold for all of them."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]

settings.register_profile("untimed", deadline=None)  # a loaded machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Where a test draws from torch's own generator, it draws the same in any order and on any worker."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The development data, or a skip with a clear word."""
    folder = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the development data are not at {folder}; set RIBOZYME_DATA")
    return folder


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Tiny checkpoints with the numbers that other packages compute from them."""
    return ROOT / "tests" / "fixtures"

"""`benchmarks/memory.py` and `prepare.py`: growth is found, noise is not; tokens of two programs compare."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("memory"), importlib.import_module("peer_prepare")
    for name in ("memory", "peer_prepare", "peer_embed", "parity"):
        sys.modules.pop(name, None)


def run_of(rows, resident):
    looks = [(int(n), int(b), int(max(resident[: k + 1]))) for k, (n, b) in enumerate(zip(rows, resident))]
    return {"samples": looks, "peak": looks[-1][2] + 5_000}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), slope=st.sampled_from([0.0, 40.0]), total=st.sampled_from([50_000, 10**6]))
def test_memory_that_grows_is_told_from_noise(programs, seed, slope, total):
    memory, _ = programs
    rows = np.linspace(0, total, 400)[1:]
    noise = np.random.default_rng(seed).normal(0, 50_000, len(rows))
    start = 1e8 * (1 - np.exp(-rows / total * 40))  # libraries and buffers fill at first
    found = memory.growth("cells, stream", run_of(rows, 4e8 + start + noise + slope * rows))
    assert abs(found.slope - slope) < 5 * found.error + 1
    assert found.flat == (slope == 0) or found.error > slope / 6
    assert found.assembling == 5_000
    assert found.rows == total


def test_a_small_job_of_each_kind_is_measured(programs, tmp_path):
    memory, _ = programs
    memory.save_models(tmp_path)
    inputs = {
        "cells": (memory.write_cells(tmp_path / "cells.h5ad", 30), 30),
        "RNAs": (memory.write_rnas(tmp_path / "rnas.fa.gz", 40), 40),
    }
    for kind in memory.KINDS:
        source, count = inputs[kind.split(",")[0]]
        found = memory.job(kind, tmp_path, source, count)
        assert found["samples"][-1][0] == count
        assert found["peak"] > found["samples"][-1][1] - 2**20 > 10**7  # Linux updates the peak now and then


def test_tokens_of_two_programs_compare_whatever_their_order_and_padding(programs):
    _, peer = programs
    padded, packed = peer.Tokens(5), peer.Tokens(5)
    padded.add([(1, np.array([9, 4, 2, 0]), np.array([-2.0, 7, 5, -2]))])
    padded.add([(0, np.array([9, 3, 0, 0]), np.array([-2.0, 1, -2, -2]))])
    packed.add([(0, np.array([9, 3]), np.array([-2.0, 1])), (1, np.array([9, 2, 4]), np.array([-2.0, 5, 7]))])
    np.testing.assert_array_equal(np.asarray(padded), np.asarray(packed))
    assert np.asarray(packed)[1].tolist() == [[2, 5], [4, 7], [9, -2], [-1, -1], [-1, -1]]

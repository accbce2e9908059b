"""`benchmarks/train_speed.py`: both programs of a pair take the same steps on the same inputs."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("train_speed"), importlib.import_module("our_train")
    for name in ("train_speed", "our_train", "peer_train", "peer_embed", "embed", "embed_tasks", "parity"):
        sys.modules.pop(name, None)


def test_what_is_hidden_is_a_function_of_the_input_alone(programs):
    _, ours = programs
    first, again, other = ours.hidden(3, 40, 0.15), ours.hidden(3, 40, 0.15), ours.hidden(4, 40, 0.15)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert all(ours.hidden(k, 1, 0.15).all() for k in range(9))  # at least one


def test_our_program_learns_in_order_and_begins_anew_each_run(programs):
    _, ours = programs
    weights = Path(__file__).parents[1] / "src" / "ribozyme" / "weights" / "rnafm-mini"
    train = ours.letters({"weights": str(weights), "batch": 2})
    inputs = [{"sequence": "GGGAAACCC" * k} for k in (1, 4, 2, 3)]
    losses = train(inputs)
    assert losses.shape == (2,)
    np.testing.assert_array_equal(train(inputs), losses)


def test_inputs_are_real_and_within_what_both_read(programs, monkeypatch):
    speed, _ = programs
    monkeypatch.setattr(speed, "data_folder", lambda: None)
    assert all(len(one) <= 250 and not set(one) - set("ACGU") for one in speed.drawn("mrna", 4, 250))
    cells = speed.binned_cells(3, 400)
    assert all(len(one["ids"]) == len(one["bins"]) < speed.WINDOW for one in cells)
    assert json.dumps(cells)

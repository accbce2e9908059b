"""The models in the package: small, licensed, trained; a new one is taken in unasked."""

import json
from importlib.resources import files

import numpy as np
import pytest
from safetensors import safe_open

import ribozyme as rz
from ribozyme.files import digest
from ribozyme.tensors import sha256_but_seal

EMBEDDED = [model for model in rz.models() if model.hub is None]
NAMES = [model.name for model in EMBEDDED]


def inputs(model):
    if model.reads == "cells":
        return rz.data.cells()[:12]
    return [
        (name, s[:600]) for name, s in rz.data.rnas()[["id", "sequence"]].head(12).itertuples(index=False)
    ]


@pytest.fixture(params=NAMES)
def model(request):
    return rz.load(request.param, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_say_where_they_come_from(name):
    folder = files("ribozyme") / "weights" / name
    size = sum(len(file.read_bytes()) for file in folder.iterdir())
    assert size <= 6_000_000
    card = json.loads((folder / "card.json").read_text())
    assert card["licence"] == next(m for m in EMBEDDED if m.name == name).licence
    assert card["held_out_loss"] < card["held_out_loss_untrained"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_of_the_weights_that_they_lie_beside(name):
    folder = files("ribozyme") / "weights" / name
    if not (folder / "scores.json").is_file():
        pytest.skip("nothing was measured")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["weights_sha256"] == digest(folder / "model.safetensors")
    assert {"what", "limits", "tasks"} <= set(scores)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_sealed_so_that_damage_is_noticed(name):
    path = files("ribozyme") / "weights" / name / "model.safetensors"
    with safe_open(path, "pt") as content:
        assert content.metadata()["sha256"] == sha256_but_seal(path)


@pytest.mark.filterwarnings("ignore::ribozyme.errors.InputWarning")
def test_an_embedding_is_finite_repeats_and_ignores_its_company(model):
    many = inputs(model)
    together = model.embed(many)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(together, model.embed(many))
    alone = np.concatenate([model.embed(many[k : k + 1]) for k in range(len(many))])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::ribozyme.errors.InputWarning")
def test_save_and_load_change_nothing(model, tmp_path):
    model.save(tmp_path / "copy")
    again = rz.load(tmp_path / "copy", device="cpu", dtype="float32")
    np.testing.assert_array_equal(again.embed(inputs(model)), model.embed(inputs(model)))

"""The recipes of the small models: a rerun leaves what was measured with the former weights where it is."""

import importlib.util
import json
from pathlib import Path

import torch

from ribozyme.engine.sequences import SequenceModel
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import Tokenizer
from ribozyme.train.history import History

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_mini.py"


def script():
    spec = importlib.util.spec_from_file_location("train_mini", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rerun_writes_weights_and_card_and_keeps_the_scores(tmp_path):
    config = Config(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False)
    network = RNAFM(config)
    network.initialise(torch.Generator().manual_seed(0))
    recipe = script()
    model = SequenceModel(network, Tokenizer(config.vocabulary), torch.device("cpu"))
    mini = recipe.Mini(model=model, corpus=None, stages=(), about="nothing", objective="masked")
    stage = History([2], [1], [100], [0.5], [1.5], [0.1], [1.0], [0, 2], [3.0, 1.2])
    tmp_path.joinpath("scores.json").write_text("{}")
    recipe.save("rnafm-mini", mini, [stage, stage], tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["steps"], card["tokens"], card["held_out_loss"]) == (4, 200, 1.2)
    assert json.loads((tmp_path / "curve.json").read_text()) == {"steps": [2, 4], "losses": [1.5, 1.5]}
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "scores.json").read_text() == "{}"

"""Fine-tuning in a folder: from any interruption to the same weights, and what the folder tells."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from ribozyme.errors import ConfigError
from ribozyme.train.finetune import FineTuned
from ribozyme.train.labels import TASKS

NUMBERS = np.random.default_rng(2).normal(50.0, 7.0, 32)
HOW = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "decay": "cosine", "warmup": 2}


def tuned(model, **settings):
    generator = torch.Generator().manual_seed(3)
    return FineTuned(model, task="regression", generator=generator, **settings)


def fit(model, sequences, folder=None, *, layers=1, settings=None, **how):
    one = tuned(model, head="mlp", dropout=0.3, **(settings or {}))
    validation = (sequences[24:], NUMBERS[24:])
    how = {**HOW, "layers": layers, "validation": validation, "folder": folder, **how}
    return one, one.fit(sequences[:24], NUMBERS[:24], **how)


@pytest.mark.parametrize(
    ("layers", "settings", "how"),
    [
        (0, {"standardise": True}, {}),
        (1, {}, {"save_every": 1}),
        (None, {}, {"sorted_steps": 2}),
    ],
    ids=["head", "one-layer", "everything"],
)
def test_a_fine_tuning_goes_on_to_the_same_weights(rnafm, sequences, tmp_path, killed, layers, settings, how):
    def train(folder=None):
        return fit(rnafm, sequences, folder, layers=layers, settings=settings, **how)

    whole, history = train()
    killed(5, lambda: train(tmp_path))
    again, its_history = train(tmp_path)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    assert its_history.loss == history.loss
    assert its_history.validation_loss == history.validation_loss
    np.testing.assert_array_equal(again.predict(sequences), whole.predict(sequences))


@pytest.mark.slow
def test_lora_goes_on_to_the_same_weights(rnafm, sequences, tmp_path, killed):
    pytest.importorskip("peft")
    settings = {"lora_rank": 2}
    whole, _ = fit(rnafm, sequences, layers=0, settings=settings)
    killed(4, lambda: fit(rnafm, sequences, tmp_path, layers=0, settings=settings))
    again, _ = fit(rnafm, sequences, tmp_path, layers=0, settings=settings)
    np.testing.assert_array_equal(again.outputs(sequences), whole.outputs(sequences))


def test_the_folder_holds_curve_and_log_and_the_saved_model_beside_them(rnafm, sequences, tmp_path):
    one, history = fit(rnafm, sequences, tmp_path)
    one.save(tmp_path)
    again = FineTuned.load(tmp_path)
    np.testing.assert_allclose(again.predict(sequences), one.predict(sequences), atol=1e-4)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["epoch"] == [1, 2, 3]
    assert curve["validation_loss"] == history.validation_loss
    assert (tmp_path / "curve.png").is_file()
    size = (tmp_path / "checkpoint.safetensors").stat().st_size
    assert size < 10 * (tmp_path / "backbone" / "model.safetensors").stat().st_size


def test_a_folder_with_a_training_on_other_data_is_an_error(rnafm, sequences, tmp_path):
    fit(rnafm, sequences, tmp_path)
    with pytest.raises(ConfigError, match="holds a run with inputs and labels"):
        fit(rnafm, sequences[::-1], tmp_path)
    with pytest.raises(ConfigError, match="holds a run with"):
        fit(rnafm, sequences, tmp_path, learning_rate=0.02)
    with pytest.raises(ConfigError, match="holds a run with precision 'float32', not 'bfloat16'"):
        fit(rnafm, sequences, tmp_path, precision="bfloat16")


def test_a_fine_tuning_stops_early_and_keeps_the_best_epoch(rnafm, sequences):
    _, history = fit(rnafm, sequences, epochs=60, patience=2, learning_rate=0.1)
    assert len(history.loss) == len(history.validation_loss) == history.best_epoch + 2 < 60


@pytest.mark.parametrize("task", TASKS)
def test_in_bfloat16_about_the_same_is_learnt(rnafm, sequences, task):
    labels = {
        "regression": NUMBERS,
        "classification": [int(n > 50) for n in NUMBERS],
        "multilabel": np.stack([NUMBERS > 50, NUMBERS > 45], 1).astype(int),
    }[task]
    losses = []
    for precision in ("float32", "bfloat16"):
        one = FineTuned(rnafm, task=task, generator=torch.Generator().manual_seed(0))
        losses.append(one.fit(sequences, labels, layers=None, epochs=2, precision=precision).loss)
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


SCRIPT = """
import sys, numpy as np, torch
from ribozyme.train.finetune import FineTuned
torch.set_num_threads(1)
drawn = np.random.default_rng(0)
sequences = ["".join(drawn.choice(list("ACGU"), drawn.integers(5, 40))) for _ in range(30)]
numbers = drawn.normal(5.0, 2.0, 30)
tuned = FineTuned("rnafm-mini", task="regression", head="mlp", dropout=0.2, device="cpu")
tuned.fit(sequences[:22], numbers[:22], layers=1, epochs=3, batch_size=6, batch_tokens=60,
          validation=(sequences[22:], numbers[22:]), folder=sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "two")],
            env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "one")], check=True)
    one, two = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("one", "two"))
    for column in ("loss", "validation_loss", "norm"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "how", "named"),
    [
        ({"pooling": "max"}, {}, "pooling 'mean', not 'max'"),
        ({"hidden": 5}, {}, "hidden None, not 5"),
        ({"standardise": True}, {}, "standardise False, not True"),
        ({}, {"weight_decay": 0.5}, "weight_decay 0.01, not 0.5"),
        ({}, {"sorted_steps": 2}, "sorted_steps 1, not 2"),
        ({}, {"loss": torch.nn.functional.l1_loss}, "loss 'of the task', not 'own'"),
    ],
)
def test_a_folder_with_a_training_of_other_settings_is_an_error(
    rnafm, sequences, tmp_path, settings, how, named
):
    fit(rnafm, sequences, tmp_path)
    with pytest.raises(ConfigError, match="holds a run with " + named):
        fit(rnafm, sequences, tmp_path, settings=settings, **how)


def test_a_folder_with_a_training_of_another_network_is_an_error(rnafm, sequences, tmp_path):
    fit(rnafm, sequences, tmp_path)
    with pytest.raises(ConfigError, match="holds a run with first weights"):
        fit(rnafm.untrained(1), sequences, tmp_path)


def test_a_folder_in_which_nothing_was_computed_takes_other_settings(rnafm, sequences, tmp_path, killed):
    killed(0, lambda: fit(rnafm, sequences, tmp_path))
    assert (tmp_path / "run.json").is_file()
    fit(rnafm, sequences, tmp_path, learning_rate=0.02)

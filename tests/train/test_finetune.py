import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ribozyme.errors import CheckpointError, ConfigError, InputError, InputWarning
from ribozyme.train.finetune import FineTuned
from ribozyme.train.inputs import Inputs, read_inputs
from ribozyme.train.labels import TASKS

FAMILIES = ("helix", "rnafm")
HAIRPINS = ["GGGAAACCC", "GGGGAAAACCCC", "GCGCAAAAGCGC", "GGCCUUUUGGCC"]


@pytest.fixture(scope="module")
def classes():
    return [("tRNA", "snoRNA", "mRNA")[k] for k in np.random.default_rng(1).integers(0, 3, 32)]


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(2).normal(50.0, 7.0, 32)


def also(*case):
    """What a case beside it nearly shows."""
    return pytest.param(*case, marks=pytest.mark.slow)


LINEAR = [("rnafm", "linear"), also("rnafm", "mlp"), also("helix", "linear")]
MLP = [also("rnafm", "linear"), also("rnafm", "mlp"), ("helix", "mlp")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("family", "head"), LINEAR)
def test_a_tiny_model_learns_32_classes_by_heart(make_model, family, head, sequences, classes):
    tuned = FineTuned(make_model(family), task="classification", head=head, pooling="mean+last")
    history = tuned.fit(
        sequences, classes, layers=None, epochs=40, learning_rate=0.01, batch_size=16, decay="cosine"
    )
    assert history.loss[-1] < 0.02 < history.loss[0]
    assert tuned.predict(sequences).tolist() == classes


@pytest.mark.parametrize(("family", "head"), MLP)
def test_a_tiny_model_learns_32_numbers_by_heart(make_model, family, head, sequences, numbers):
    tuned = FineTuned(make_model(family), task="regression", head=head, pooling="mean+last")
    history = tuned.fit(
        sequences, numbers, layers=None, epochs=40, learning_rate=0.01, batch_size=16, decay="cosine"
    )
    assert history.loss[-1] < 0.01 < history.loss[0]
    predicted = tuned.predict(sequences)
    assert predicted.shape == (32,)
    assert np.abs(predicted - numbers).max() < 3  # in the units of the labels, whose deviation is 7


@pytest.mark.slow  # saved estimators, which hold such a model, are read in a new process by default
def test_a_saved_model_predicts_the_same_in_a_new_process(rnafm, sequences, classes, numbers, tmp_path):
    tuned = {task: FineTuned(rnafm, task=task, head="mlp", hidden=10, dropout=0.3) for task in TASKS[:2]}
    for task, labels in zip(TASKS[:2], (numbers, classes)):
        tuned[task].fit(sequences, labels, layers=1, epochs=2)
        tuned[task].save(tmp_path / task)
    script = (
        "import sys, json; from ribozyme.train.finetune import FineTuned\n"
        "folders, sequences = sys.argv[1:3], sys.argv[3:]\n"
        "loaded = [FineTuned.load(folder) for folder in folders]\n"
        "print(json.dumps([[m.outputs(sequences).tolist(), m.predict(sequences).tolist()] for m in loaded]))"
    )
    command = [sys.executable, "-c", script, *(str(tmp_path / task) for task in TASKS[:2]), *sequences[:6]]
    answers = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    for task, (outputs, predicted) in zip(TASKS[:2], answers):
        np.testing.assert_allclose(outputs, tuned[task].outputs(sequences[:6]), atol=1e-6)
        assert predicted == tuned[task].predict(sequences[:6]).tolist()


def test_a_loaded_model_can_be_trained_on(rnafm, sequences, numbers, tmp_path):
    tuned = FineTuned(rnafm, task="regression", outputs=1)
    first = tuned.fit(sequences, numbers, epochs=3, learning_rate=0.01)
    tuned.save(tmp_path)
    loaded = FineTuned.load(tmp_path)
    again = loaded.fit(sequences, numbers, epochs=3, learning_rate=0.01)
    assert again.loss[-1] < first.loss[-1]
    loaded.fit(sequences[:4], numbers[:4] / 100, epochs=1)
    assert loaded.labels == tuned.labels  # later labels do not move the units


def test_a_refused_training_leaves_no_trace(rnafm, sequences, classes):
    tuned = FineTuned(rnafm, task="classification")
    with pytest.raises(InputError, match="does not know: rRNA"):
        tuned.fit(sequences, classes, validation=(["ACGU"], ["rRNA"]))
    with pytest.raises(ConfigError, match="pair of inputs and labels"):
        tuned.fit(sequences, classes, validation=sequences)
    tuned.fit(sequences, [*classes[:-1], "rRNA"], epochs=1, validation=(["ACGU"], ["rRNA"]))
    assert tuned.labels.classes == ("mRNA", "rRNA", "snoRNA", "tRNA")
    with pytest.raises(InputError, match="does not know: Y RNA"):
        tuned.fit(sequences, [*classes[:-1], "Y RNA"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_does_not_depend_on_its_batch(make_model, family, sequences, numbers):
    tuned = FineTuned(make_model(family), task="regression", pooling="mean+last", dropout=0.5)
    tuned.fit(sequences, numbers, layers=1, epochs=1)
    together = tuned.outputs(sequences)
    alone = np.concatenate([tuned.outputs([one]) for one in sequences])
    backwards = tuned.outputs(sequences[::-1], batch_tokens=40)[::-1]
    np.testing.assert_allclose(alone, together, atol=2e-5)
    np.testing.assert_allclose(backwards, together, atol=2e-5)


def test_the_token_budget_does_not_change_the_training(rnafm, sequences, numbers):
    runs = []
    for budget in (32, 10_000):
        tuned = FineTuned(rnafm, task="regression", generator=generator())
        tuned.fit(sequences, numbers, layers=None, epochs=2, batch_size=8, batch_tokens=budget)
        runs.append(tuned.outputs(sequences))
    np.testing.assert_allclose(*runs, atol=1e-3)  # of numbers around 50; sums in another order


def test_the_same_generator_gives_the_same_model_and_leaves_the_global_one_alone(rnafm, sequences, numbers):
    before = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        tuned = FineTuned(rnafm, task="regression", head="mlp", dropout=0.5, generator=generator(7))
        tuned.fit(sequences, numbers, layers=1, epochs=2)
        runs.append(tuned.outputs(sequences))
    np.testing.assert_array_equal(*runs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_callers_model_is_not_changed(rnafm, sequences, numbers):
    before = rnafm.embed(sequences[:3])
    tuned = FineTuned(rnafm, task="regression")
    tuned.fit(sequences, numbers, layers=None, epochs=1)
    np.testing.assert_array_equal(rnafm.embed(sequences[:3]), before)
    assert np.abs(tuned.model.embed(sequences[:3]) - before).max() > 0


@pytest.mark.parametrize(
    ("layers", "expected"), [(0, set()), (1, {"layers.1", "norm"}), (2, {"layers.0", "layers.1", "norm"})]
)
def test_only_the_layers_asked_for_change(rnafm, sequences, numbers, layers, expected):
    tuned = FineTuned(rnafm, task="regression")
    tuned.fit(sequences, numbers, layers=layers, epochs=1)
    old, new = rnafm.module.state_dict(), tuned.model.module.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {".".join(n.split(".")[: 2 if n.startswith("layers") else 1]) for n in changed} == expected


def test_the_head_alone_learns_the_same_from_rows_kept_as_through_the_network(rnafm, sequences, numbers):
    kept = FineTuned(rnafm, task="regression", generator=generator())
    kept.fit(sequences, numbers, epochs=2, weight_decay=0)
    rows = torch.from_numpy(rnafm.embed(sequences))
    network, labels = kept.network, kept.labels
    by_hand = network.head(rows) * torch.tensor(labels.scale) + torch.tensor(labels.mean)
    np.testing.assert_allclose(by_hand.detach().numpy(), kept.outputs(sequences), atol=1e-4)


def test_validation_keeps_the_best_epoch(rnafm, sequences, classes):
    tuned = FineTuned(rnafm, task="classification", head="mlp", dropout=0.2)
    history = tuned.fit(
        sequences[:20], classes[:20], layers=1, epochs=12, learning_rate=0.02,
        validation=(sequences[20:], classes[20:]),
    )  # fmt: skip
    assert len(history.validation_loss) == len(history.loss) == 12
    assert history.best_epoch == 1 + int(np.argmin(history.validation_loss))
    targets = tuned.labels.encode(classes[20:], 12)
    now = nn.functional.cross_entropy(torch.from_numpy(tuned.outputs(sequences[20:])), targets)
    assert now.item() == pytest.approx(min(history.validation_loss), abs=1e-5)


def test_validation_draws_no_dropout(rnafm, sequences, numbers):
    """With a rate of zero nothing is learnt, so a validation without dropout says the same each epoch."""
    tuned = FineTuned(rnafm, task="regression", dropout=0.9)
    history = tuned.fit(
        sequences, numbers, layers=1, epochs=3, learning_rate=0.0, validation=(sequences, numbers)
    )
    assert max(history.validation_loss) - min(history.validation_loss) < 1e-6
    assert max(history.loss) - min(history.loss) > 1e-4


def test_labels_keep_their_units_and_shape(rnafm, sequences):
    labels = np.random.default_rng(0).normal([1e4, -1e-3], [10.0, 1e-4], (32, 2))
    tuned = FineTuned(rnafm, task="regression")
    tuned.fit(sequences, labels, epochs=1)
    predicted = tuned.predict(sequences)
    assert predicted.shape == (32, 2)
    np.testing.assert_allclose(predicted.mean(0), labels.mean(0), rtol=0.5)


def test_probabilities_are_of_the_classes_in_order(rnafm, sequences, classes):
    tuned = FineTuned(rnafm, task="classification")
    tuned.fit(sequences, classes, epochs=1)
    p = tuned.probabilities(sequences)
    assert p.shape == (32, 3)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert tuned.labels.classes == ("mRNA", "snoRNA", "tRNA")
    assert tuned.predict(sequences).tolist() == [tuned.labels.classes[k] for k in p.argmax(1)]
    with pytest.raises(ConfigError, match="no probabilities"):
        FineTuned(rnafm, task="regression", outputs=1).probabilities(sequences)


def test_a_loss_and_an_optimizer_of_ones_own(rnafm, sequences, numbers):
    seen = []

    def loss(outputs, targets):
        seen.append(targets.mean().item())
        return (outputs - targets).abs().mean()

    tuned = FineTuned(rnafm, task="regression")
    tuned.fit(sequences, numbers, epochs=1, loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=1e-4))
    assert 40 < np.mean(seen) < 60  # in the units of the labels


def test_a_head_of_ones_own_is_saved_and_given_back(rnafm, sequences, numbers, tmp_path):
    tuned = FineTuned(rnafm, task="regression", head=nn.Linear(24, 1), outputs=1)
    tuned.fit(sequences, numbers, epochs=1)
    tuned.save(tmp_path)
    with pytest.raises(CheckpointError, match="head of the user's own"):
        FineTuned.load(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit"):
        FineTuned.load(tmp_path, head=nn.Linear(24, 2))
    again = FineTuned.load(tmp_path, head=nn.Linear(24, 1))
    np.testing.assert_array_equal(again.outputs(sequences), tuned.outputs(sequences))


def test_processed_inputs_are_taken_as_they_are(rnafm, sequences, numbers):
    inputs = read_inputs(rnafm, sequences)
    assert isinstance(inputs, Inputs)
    assert len(inputs) == 32
    tuned = FineTuned(rnafm, task="regression", outputs=1)
    np.testing.assert_array_equal(tuned.outputs(inputs), tuned.outputs(sequences))


def test_too_long_sequences_are_an_error_or_counted(rnafm):
    tuned = FineTuned(rnafm, task="regression", outputs=1)
    with pytest.raises(InputError, match="reads at most 62"):
        tuned.outputs(["A" * 63])
    with pytest.warns(InputWarning, match="1 letter cut off"):
        cut = tuned.outputs(["A" * 63], overlong="truncate")
    np.testing.assert_array_equal(cut, tuned.outputs(["A" * 62]))
    with pytest.raises(ConfigError, match="windows"):
        tuned.outputs(["A"], overlong="window")
    with pytest.raises(InputError, match="unknown"):
        tuned.outputs(["AJA"], strict=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "ranking"}, "task 'ranking' does not exist"),
        ({"task": "regression", "head": "cnn", "outputs": 1}, "head 'cnn' does not exist"),
        ({"task": "regression", "pooling": "median"}, "pooling 'median' does not exist"),
        ({"task": "regression", "dropout": 1.0, "outputs": 1}, "dropout 1.0"),
        ({"task": "regression", "outputs": 0}, "at least one output"),
        ({"task": "regression", "head": nn.Identity()}, "number of its outputs"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_once(rnafm, settings, message):
    with pytest.raises(ConfigError, match=message):
        FineTuned(rnafm, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 3}, "layers 3 cannot be trained"),
        ({"epochs": 0}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
        ({"decay": "square"}, "schedule 'square' does not exist"),
        ({"learning_rate": 1e30, "layers": None, "clip": 1e9}, "use a lower learning rate"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(rnafm, sequences, numbers, settings, message):
    with pytest.raises(ConfigError, match=message):
        FineTuned(rnafm, task="regression").fit(sequences, numbers, **settings)


def test_cls_needs_a_model_with_such_a_token(make_model):
    assert FineTuned(make_model("rnafm"), task="regression", pooling="cls", outputs=1).predict(
        ["A"]
    ).shape == (1,)
    with pytest.raises(ConfigError, match="pooling 'cls'"):
        FineTuned(make_model("helix"), task="regression", pooling="cls")


def test_predicting_before_there_is_a_head_is_an_error(rnafm):
    with pytest.raises(ConfigError, match="no head yet"):
        FineTuned(rnafm, task="regression").predict(["ACGU"])


def test_what_is_not_a_saved_model_is_named(rnafm, sequences, numbers, tmp_path):
    with pytest.raises(CheckpointError, match=r"no finetuned\.json"):
        FineTuned.load(tmp_path)
    tuned = FineTuned(rnafm, task="regression")
    tuned.fit(sequences, numbers, epochs=1)
    tuned.save(tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "finetuned.json").read_text())
    for name, value, message in [
        ("format", 99, "format 99 is not understood"),
        ("labels", {"task": "regression"}, "damaged"),
        ("labels", [1], "damaged"),
        ("pooling", None, "damaged"),
    ]:
        (tmp_path / "run" / "finetuned.json").write_text(json.dumps(settings | {name: value}))
        with pytest.raises(CheckpointError, match=message):
            FineTuned.load(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        tuned.save(tmp_path / "file")
    (tmp_path / "run" / "finetuned.json").write_text(json.dumps(settings))
    head = tmp_path / "run" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-5] + bytes([head.read_bytes()[-5] ^ 4]) + head.read_bytes()[-4:])
    with pytest.raises(CheckpointError, match=r"head\.safetensors: damaged"):
        FineTuned.load(tmp_path / "run")

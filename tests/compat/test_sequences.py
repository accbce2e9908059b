import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import ribozyme as rz
from ribozyme.errors import CheckpointError, ConfigError, InputError, InputWarning

helical = pytest.importorskip("helical", reason="the drop-in is not installed: pip install ./compat/helical")

SEQUENCES = ["EACUEGGG", "EAC", "acguN", "EAUGEGCCEAUG"]


@pytest.fixture
def helix(checkpoints):
    return helical.HelixmRNA(helical.HelixmRNAConfig(model_name=checkpoints["helix-mrna"]))


@pytest.fixture
def tuning(checkpoints):
    def make(head="regression", **settings):
        config = helical.HelixmRNAConfig(model_name=checkpoints["helix-mrna"], batch_size=2)
        return helical.HelixmRNAFineTuningModel(config, head, **settings)

    return make


def test_rows_are_padded_on_the_left_with_the_end_token_last(helix, checkpoints):
    embeddings = helix.get_embeddings(helix.process_data(SEQUENCES))
    assert embeddings.shape == (4, 13, 16)
    rows = rz.load(checkpoints["helix-mrna"], dtype="float32").embed(SEQUENCES, pooling="none")
    for padded, row in zip(embeddings, rows):
        np.testing.assert_allclose(padded[-1 - len(row) : -1], row, atol=1e-5)
        np.testing.assert_allclose(padded[-2], row[-1], atol=1e-5)
        assert not padded[: -1 - len(row)].any()
        assert np.abs(padded[-1] - padded[-2]).max() > 1e-3


def test_the_end_token_is_the_token_that_follows(helix):
    """Its row is the network's, with [SEP] as the letter after the last."""
    from ribozyme.packing import Packed

    tokenizer = helix.native.tokenizer
    ids = np.append(tokenizer.encode("EACU"), tokenizer.sep_id)
    with torch.inference_mode():
        rows = helix.model.encode(Packed.of([ids])).numpy()
    np.testing.assert_allclose(helix.get_embeddings(helix.process_data("EACU"))[0], rows, atol=1e-6)


def test_a_sequence_has_the_same_rows_in_any_company(helix):
    together = helix.get_embeddings(helix.process_data(SEQUENCES))
    for place, sequence in enumerate(SEQUENCES):
        alone = helix.get_embeddings(helix.process_data([sequence]))[0]
        np.testing.assert_allclose(together[place, -len(alone) :], alone, atol=1e-5)


def test_t_is_read_as_u_and_a_series_as_its_values(helix):
    series = pd.Series(["ACGU"], index=[17])
    np.testing.assert_array_equal(
        helix.get_embeddings(helix.process_data(["ACGT"])), helix.get_embeddings(helix.process_data(series))
    )


def test_what_is_cut_off_is_counted(checkpoints):
    config = helical.HelixmRNAConfig(model_name=checkpoints["helix-mrna"], max_length=5)
    model = helical.HelixmRNA(config)
    with pytest.warns(InputWarning, match="4 letters cut off at the 3' end"):
        embeddings = model.get_embeddings(model.process_data(["EACUEGGG", "EACU"]))
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences"),
        ([""], "empty sequence"),
        (["AC-GU"], "not a nucleotide"),
        ([None], "missing"),
        ([5], "int"),
    ],
)
def test_what_is_no_sequence_is_one_clear_error(helix, sequences, message):
    with pytest.raises(InputError, match=message):
        helix.process_data(sequences)


def test_an_e_in_the_pure_model_is_counted(checkpoints):
    model = helical.Mamba2mRNA(helical.Mamba2mRNAConfig(model_name=checkpoints["mamba2-mrna"]))
    with pytest.warns(InputWarning, match="2 letters that the model does not know"):
        model.process_data(["EACUEGGG"])


def test_the_pure_model_gives_the_last_letter(checkpoints):
    model = helical.Mamba2mRNA(helical.Mamba2mRNAConfig(model_name=checkpoints["mamba2-mrna"]))
    sequences = ["ACGUACGU", "ACG"]
    native = rz.load(checkpoints["mamba2-mrna"], dtype="float32").embed(sequences, pooling="last")
    np.testing.assert_allclose(model.get_embeddings(model.process_data(sequences)), native, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_warns_and_runs_on_the_cpu(checkpoints):
    with pytest.warns(UserWarning, match="no CUDA here: using the CPU"):
        model = helical.RNAFM(helical.RNAFMConfig(device="cuda", model_name=checkpoints["rnafm"]))
    assert model.native.device.type == "cpu"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_rnafm_gives_a_vector_a_sequence(checkpoints, pooling):
    config = helical.RNAFMConfig(model_name=checkpoints["rnafm"], pooling=pooling)
    model = helical.RNAFM(config)
    sequences = ["GGGAAACCC", "ACGU"]
    native = rz.load(checkpoints["rnafm"], dtype="float32").embed(sequences, pooling=pooling)
    np.testing.assert_allclose(model.get_embeddings(model.process_data(sequences)), native, atol=1e-5)


def test_rnafm_is_fine_tuned_in_the_same_manner(checkpoints):
    config = helical.RNAFMConfig(model_name=checkpoints["rnafm"])
    model = helical.RNAFMFineTuningModel(
        rnafm_config=config, fine_tuning_head="classification", output_size=2
    )
    data = model.process_data(["GGGAAACCC", "ACGU", "GGGGCCCC"])
    model.train(data, [0, 1, 0], epochs=2)
    assert model.get_outputs(data).shape == (3, 2)


def test_a_fine_tuned_model_is_saved_with_all_it_needs(tuning, tmp_path):
    model = tuning("classification")
    data = model.process_data(SEQUENCES)
    model.train(data, ["short", "long", "short", "long"], epochs=2)
    model.save_model(tmp_path / "model.pt")
    other = tuning("classification", output_size=7)
    other.load_model(tmp_path / "model.pt")
    np.testing.assert_array_equal(other.get_outputs(data), model.get_outputs(data))
    assert other.tuned.labels.classes == ("long", "short")
    np.testing.assert_array_equal(other.get_embeddings(data), model.get_embeddings(data))


def test_a_file_of_the_original_is_refused_in_words(tuning, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="is it a folder that save wrote"):
        tuning().load_model(tmp_path / "old.pt")


def test_it_is_a_module_whose_mode_can_be_set(tuning):
    model = tuning()
    assert isinstance(model, nn.Module)
    assert model.train(False) is model
    assert not model.network.training
    assert model.train(mode=True).training
    assert not model.eval().training
    assert sum(p.numel() for p in model.parameters()) > 33
    assert model.to("cpu") is model


def test_training_follows_the_arguments_of_the_original(tuning):
    model = tuning()
    data = model.process_data(SEQUENCES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train(
        train_dataset=data,
        train_labels=[1.0, 2.0, 3.0, 4.0],
        optimizer=torch.optim.SGD,
        optimizer_params={"lr": 0.01},
        loss_function=nn.MSELoss(),
        epochs=3,
        trainable_layers=2,
        validation_dataset=data,
        validation_labels=[1.0, 2.0, 3.0, 4.0],
        lr_scheduler_params={"name": "linear", "num_warmup_steps": 1, "num_training_steps": 6},
    )
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = {name.removeprefix("network.backbone.").split(".weight")[0] for name in changed}
    assert len(model.history.validation_loss) == 3
    assert any(part.startswith("layers.3") for part in parts)
    assert not any(part.startswith(("layers.0", "layers.1", "tokens")) for part in parts)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, 2.0], "2 labels for 4 inputs"),
        (["a", "b", "c", "d"], "not numbers"),
        ([1.0, np.nan, 2.0, 3.0], "missing or infinite"),
        (None, "needs labels"),
    ],
)
def test_labels_that_do_not_fit_are_named(tuning, labels, message):
    model = tuning()
    with pytest.raises(InputError, match=message):
        model.train(model.process_data(SEQUENCES), labels)


def test_heads_may_be_modules(tuning, tmp_path):
    from helical.models.base_models import HelicalBaseFineTuningHead
    from helical.models.fine_tune.fine_tuning_heads import ClassificationHead, RegressionHead

    class Sine(HelicalBaseFineTuningHead):
        task = "regression"

        def set_dim_size(self, dim_size):
            self.linear = nn.Linear(dim_size, 1)

        def forward(self, x):
            return self.linear(x).sin()

    for head, outputs, labels in [
        (ClassificationHead(3), 3, [0, 1, 2, 1]),
        (RegressionHead(), 1, [1.0, 2.0, 3.0, 4.0]),
        (Sine(), 1, [1.0, 2.0, 3.0, 4.0]),
    ]:
        model = tuning(head, output_size=outputs)
        data = model.process_data(SEQUENCES)
        model.train(data, labels)
        assert model.get_outputs(data).shape == (4, outputs)
        model.save_model(tmp_path / type(head).__name__)
        expected = model.get_outputs(data)
        model.load_model(tmp_path / type(head).__name__)
        np.testing.assert_array_equal(model.get_outputs(data), expected)


def test_an_unknown_head_is_named(tuning):
    with pytest.raises(ConfigError, match="task 'ranking'"):
        tuning("ranking")


def test_importing_changes_nothing_in_the_process():
    import subprocess
    import sys

    script = (
        "import logging, os, sys; env = dict(os.environ); import numpy, torch, warnings\n"
        "state = torch.get_rng_state(); filters = list(warnings.filters)\n"
        "import helical\n"
        "assert 'helical.models.scgpt' not in sys.modules\n"
        "from helical import HelixmRNA, scGPT, RNAFM\n"
        "assert dict(os.environ) == env and not logging.getLogger().handlers\n"
        "assert torch.equal(state, torch.get_rng_state()) and warnings.filters == filters\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

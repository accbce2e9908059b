import numpy as np
import pytest

import ribozyme as rz
from ribozyme.errors import ConfigError, InputError

helical = pytest.importorskip("helical", reason="the drop-in is not installed: pip install ./compat/helical")
pytestmark = pytest.mark.filterwarnings("ignore::ribozyme.errors.InputWarning")


@pytest.fixture
def scgpt(checkpoints):
    def make(**settings):
        return helical.scGPT(helical.scGPTConfig(model_name=checkpoints["scgpt-cp"], **settings))

    return make


def test_cls_is_what_the_native_model_gives(scgpt, checkpoints, adata):
    model = scgpt(emb_mode="cls")
    native = rz.load(checkpoints["scgpt-cp"], dtype="float32").embed(adata)
    np.testing.assert_allclose(model.get_embeddings(model.process_data(adata)), native, atol=1e-5)


@pytest.mark.parametrize("mode", ["cell", "cls"])
def test_a_cell_has_the_same_embedding_in_any_company(scgpt, adata, mode):
    model = scgpt(emb_mode=mode)
    together = model.get_embeddings(model.process_data(adata))
    alone = [model.get_embeddings(model.process_data(adata[[k]]))[0] for k in range(len(adata))]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_mean_is_over_the_genes_of_the_cell(scgpt, adata):
    genes = scgpt(emb_mode="gene")
    cells = scgpt()
    data = genes.process_data(adata)
    rows = genes.get_embeddings(data)
    assert len(rows) == len(adata)
    counts = adata.X.toarray()
    for k, cell in enumerate(rows):
        expressed = {name for name, n in zip(adata.var_names, counts[k]) if n and name != "NOSUCHGENE"}
        assert set(cell.index) == expressed
    mean = np.stack([np.stack(cell.to_list()).mean(0) for cell in rows])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(cells.get_embeddings(data), mean, atol=1e-5)


def test_the_callers_cells_are_not_changed(scgpt, adata):
    before = adata.copy()
    model = scgpt()
    model.get_embeddings(model.process_data(adata))
    assert (adata.X != before.X).nnz == 0
    assert list(adata.var.columns) == list(before.var.columns)
    assert list(adata.obs.columns) == list(before.obs.columns)


def test_a_cell_without_known_genes_is_nan_and_cannot_be_trained_on(scgpt, adata, checkpoints):
    keep = np.ones((12, 1))
    keep[3] = 0
    adata.X = adata.X.multiply(keep).tocsr()
    adata.X.eliminate_zeros()
    model = scgpt()
    embeddings = model.get_embeddings(model.process_data(adata))
    assert np.isnan(embeddings).all(1).tolist() == [k == 3 for k in range(12)]
    config = helical.scGPTConfig(model_name=checkpoints["scgpt-cp"])
    tuning = helical.scGPTFineTuningModel(config, "classification", 2)
    data = tuning.process_data(adata)
    with pytest.raises(
        InputError, match="1 inputs have nothing that the model knows, the first at position 3"
    ):
        tuning.train(data, [0, 1] * 6)
    assert np.isnan(tuning.get_outputs(data)).any(1).sum() == 1


def test_a_fine_tuned_model_is_saved_with_its_classes(checkpoints, adata, tmp_path):
    config = helical.scGPTConfig(model_name=checkpoints["scgpt-cp"], batch_size=4)
    model = helical.scGPTFineTuningModel(config, "classification")
    data = model.process_data(adata)
    model.train(data, adata.obs["cell_type"], epochs=8, freeze_layers=0, optimizer_params={"lr": 3e-3})
    assert model.history.loss[-1] < model.history.loss[0]
    model.save_model(tmp_path / "run")
    other = helical.scGPTFineTuningModel(config, "classification", 5)
    other.load_model(tmp_path / "run")
    np.testing.assert_allclose(other.get_outputs(data), model.get_outputs(data), atol=1e-6)
    assert other.tuned.labels.classes == ("B cell", "T cell")


@pytest.mark.slow  # scanpy compiles for seconds when it is first imported
def test_the_most_variable_genes_are_found_on_a_copy(scgpt, adata):
    pytest.importorskip("scanpy")
    before = adata.copy()
    data = scgpt().process_data(adata, fine_tuning=True, n_top_genes=8)
    assert max(data.lengths) < max(scgpt().process_data(adata).lengths)
    assert (adata.X != before.X).nnz == 0


def test_settings_that_make_no_sense_are_refused(scgpt, adata):
    with pytest.raises(ConfigError, match="emb_mode 'genes' does not exist"):
        scgpt(emb_mode="genes")
    with pytest.raises(ConfigError, match="no batch labels"):
        scgpt().process_data(adata, use_batch_labels=True)

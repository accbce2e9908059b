import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from ribozyme.engine.cells import CellModel
from ribozyme.errors import InputError, InputWarning
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary
from ribozyme.train.finetune import FineTuned
from ribozyme.train.inputs import read_inputs

GENES = [f"GENE{k}" for k in range(20)]


def tiny(dropout):
    vocabulary = Vocabulary([*GENES, "<pad>", "<cls>", "<eoc>"])
    config = Config(vocab_size=len(vocabulary), layers=2, dim=16, heads=2, ffn_dim=24, dropout=dropout)
    module = ScGPT(config)
    module.initialise(torch.Generator().manual_seed(0))
    return CellModel(module, vocabulary, torch.device("cpu"))


@pytest.fixture(scope="module")
def scgpt():
    return tiny(dropout=0.1)


@pytest.fixture(scope="module")
def cells():
    """32 cells; the second kind expresses the first ten genes more."""
    generator = np.random.default_rng(0)
    counts = generator.poisson(1.0, (32, 20)).astype(np.float32)
    counts[1::2, :10] += generator.poisson(4.0, (16, 10))
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.var_names = GENES
    cells.obs["kind"] = ["resting", "active"] * 16
    return cells


@pytest.mark.parametrize("pooling", [None, pytest.param("cls+mean", marks=pytest.mark.slow)])
def test_cells_are_learnt_by_heart_from_labels_in_obs(cells, pooling, tmp_path):
    tuned = FineTuned(tiny(dropout=0.0), task="classification", pooling=pooling)
    history = tuned.fit(
        cells, cells.obs["kind"], layers=None, epochs=60, learning_rate=0.01, batch_size=8, decay="cosine"
    )
    assert history.loss[-1] < 0.1
    assert tuned.predict(cells).tolist() == cells.obs["kind"].tolist()
    tuned.save(tmp_path)
    again = FineTuned.load(tmp_path)
    assert again.pooling == (pooling or "cls")
    np.testing.assert_allclose(again.outputs(cells), tuned.outputs(cells), atol=1e-5)
    alone = np.concatenate([tuned.outputs(cells[[k]]) for k in range(6)])
    np.testing.assert_allclose(alone, tuned.outputs(cells)[:6], atol=1e-5)


def test_the_layers_that_are_not_trained_draw_no_dropout(scgpt, cells):
    """With a rate of zero and no dropout of the head, only the layers could make the loss uneven."""
    y = np.arange(32.0)
    for layers, uneven in ((0, False), (1, True)):
        tuned = FineTuned(scgpt, task="regression")
        history = tuned.fit(cells, y, layers=layers, epochs=3, learning_rate=0.0, weight_decay=0.0)
        assert (max(history.loss) - min(history.loss) > 1e-5) == uneven


def test_a_cell_without_known_genes_predicts_nan_and_is_not_trained_on(scgpt, cells):
    keep = np.ones((32, 1))
    keep[5] = 0
    emptied = ad.AnnData(cells.X.multiply(keep).tocsr(), var=cells.var)
    tuned = FineTuned(scgpt, task="classification", outputs=2)
    with pytest.warns(InputWarning, match="1 cell without any gene"):
        predicted = tuned.predict(emptied)
    assert [k for k, label in enumerate(predicted) if label is None] == [5]
    with (
        pytest.warns(InputWarning),
        pytest.raises(
            InputError, match="1 inputs have nothing that the model knows, the first at position 5"
        ),
    ):
        tuned.fit(emptied, [0, 1] * 16)


def test_a_column_of_gene_names_can_be_chosen(scgpt, cells):
    renamed = cells.copy()
    renamed.var["symbol"] = renamed.var_names
    renamed.var_names = [f"x{k}" for k in range(20)]
    inputs = read_inputs(scgpt, renamed, gene_column="symbol")
    assert all(np.array_equal(a, b) for a, b in zip(inputs.ids, read_inputs(scgpt, cells).ids))

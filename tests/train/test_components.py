"""Principal components of cells against scikit-learn, and what a cell embedding learns from them."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ribozyme.errors import ConfigError, InputError
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.train.components import SMALLEST_SPREAD, principal_components
from ribozyme.train.feed import InMemory
from ribozyme.train.objectives import Example, Genes, MaskedValues
from ribozyme.train.pretrain import Recipe, pretrain

GENES, BINS = 30, 10
READING = Genes(cls_id=31, cls_value=-2.0)


@pytest.fixture(scope="module")
def cells():
    """Two kinds of cells: one expresses the first genes highly, the other the last."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(80):
        ids = np.sort(rng.permutation(GENES)[:20]).astype(np.int32)
        high = (ids < GENES // 2) == (k % 2 == 0)
        found.append(Example(ids, (rng.integers(1, 4, 20) + 6 * high).astype(np.float32)))
    return found


@pytest.fixture(scope="module")
def components(cells):
    return principal_components(InMemory(cells), genes=GENES + 2, bins=BINS, count=4)


def table(cells):
    dense = np.zeros((len(cells), GENES + 2))
    for row, one in zip(dense, cells):
        row[one.ids] = one.values / BINS
    return dense


def test_they_are_those_of_scikit_learn_by_the_root_of_their_size(cells, components):
    scaled = table(cells) / (table(cells).std(0) + SMALLEST_SPREAD)
    pca = PCA(4, svd_solver="full").fit(scaled)
    expected = pca.transform(scaled) / np.sqrt(pca.singular_values_)
    expected *= np.sqrt(4) / np.linalg.norm(expected, axis=1, keepdims=True)
    ours = components.of(cells, BINS).numpy()
    order = np.abs(ours.T @ expected).argmax(0)
    signs = np.sign((ours[:, order] * expected).sum(0))
    np.testing.assert_allclose(ours[:, order] * signs, expected, atol=1e-4)


def test_a_cell_lies_where_it_lies_in_any_company(cells, components):
    together = components.of(cells[:7], BINS)
    alone = torch.cat([components.of([one], BINS) for one in cells[:7]])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_gene_rows_are_as_small_as_fresh_ones_and_share_a_row(components):
    rows = components.gene_rows(torch.Generator().manual_seed(0))
    assert rows.shape == (GENES + 2, 4)
    unused = rows[GENES:]  # no cell expresses these
    torch.testing.assert_close(unused.abs(), torch.full((2, 4), 0.06))
    torch.testing.assert_close(unused[0], unused[1])


def test_more_components_than_cells_is_an_error(cells):
    with pytest.raises(InputError, match="the data: 4 components need more than 3 cells"):
        principal_components(InMemory(cells[:3]), GENES, BINS, 4)


def test_the_loss_is_the_squared_error_of_the_cell_embedding(cells):
    config = Config(vocab_size=GENES + 2, layers=1, dim=8, heads=2, ffn_dim=8, dropout=0.0, mvc=False)
    network = ScGPT(config)
    network.initialise(torch.Generator().manual_seed(0))
    eight = principal_components(InMemory(cells), GENES + 2, BINS, 8)
    objective = MaskedValues(READING, -1.0, BINS, parts={"components": 1.0}, components=eight)
    batch = objective.batch(cells[:5], np.arange(5, dtype=np.uint64))
    output = network(batch.inputs, heads=())
    expected = (output.cell - eight.of(cells[:5], BINS)).square().sum() / 8
    assert batch.weights == {"components": 5.0}
    torch.testing.assert_close(objective(network, batch)["components"], expected)


def test_the_part_and_the_components_go_together(components):
    with pytest.raises(ConfigError, match="part 'components' and components"):
        MaskedValues(READING, -1.0, BINS, parts={"components": 1.0})
    with pytest.raises(ConfigError, match="part 'components' and components"):
        MaskedValues(READING, -1.0, BINS, components=components)


def test_components_with_an_objective_that_has_no_use_for_them_are_an_error(components, tmp_path):
    with pytest.raises(ConfigError, match="not for objective 'masked'"):
        pretrain("rnafm-mini", ["ACGU"], tmp_path, Recipe(steps=1), components=components)

import warnings
from dataclasses import replace
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from ribozyme.checkpoint import open_checkpoint
from ribozyme.engine.cells import CellModel
from ribozyme.errors import ConfigError, InputError, InputWarning
from ribozyme.io.cells import open_cells
from ribozyme.models.scgpt import formats
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary
from ribozyme.pp.genes import gene_table, match_genes

FIXTURES = Path(__file__).parents[1] / "fixtures"
GENES = [g.symbol for g in gene_table() if g.symbol and not g.former][:60]
IDS = {g.symbol: g.ensembl for g in gene_table()}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    vocabulary = Vocabulary([*GENES, "<pad>", "<cls>", "<eoc>"])
    module = ScGPT(Config(vocab_size=63, dim=24, layers=2, heads=4, ffn_dim=32))
    module.initialise(torch.Generator().manual_seed(0))
    return CellModel(module, vocabulary, CPU)


def counts(n=12, seed=0, genes=60):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.6, 1.5, (1, genes)), (n, genes)).astype(np.float32)


def make(X=None, names=GENES, **more):
    X = counts(genes=len(names)) if X is None else X
    obs = pd.DataFrame(index=[f"cell{k}" for k in range(X.shape[0])])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(more, index=list(names)))


@pytest.fixture
def adata():
    return make(sparse.csr_matrix(counts()))


def close(a, b, atol=1e-5):  # batches of other shapes multiply in another order
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


# ---------------------------------------------------------------------------------------- the numbers


def test_cells_without_ties_equal_the_published_embeddings():
    module, vocabulary = formats.load(open_checkpoint(FIXTURES / "scgpt" / "plain"))
    module.config = replace(module.config, n_bins=51)  # the published collator always has 51
    with np.load(FIXTURES / "binning" / "embedding.npz") as file:
        matrix, expected = file["matrix"], file["cls"]
    got = CellModel(module, vocabulary, CPU).embed(make(matrix, names=vocabulary.genes))
    close(got, expected, atol=1e-5)


def test_an_embedding_is_the_cls_row_of_length_one(model, adata):
    out = model.embed(adata)
    assert out.shape == (12, 24)
    assert out.dtype == np.float32
    close(np.linalg.norm(out, axis=1), 1)
    [tokens] = model.tokens(adata)
    assert (tokens.ids[tokens.indptr[:-1]] == model.vocabulary.cls_id).all()
    assert (tokens.values[tokens.indptr[:-1]] == -2).all()
    with torch.inference_mode():
        row = model.module.encode(tokens.pack([3]))[0].numpy()
    close(out[3], row / np.linalg.norm(row))


def test_poolings_are_what_their_names_say(model, adata):
    [tokens] = model.tokens(adata)
    with torch.inference_mode():
        rows = model.module.encode(tokens.pack([5]))[1:].numpy()
    for pooling, expected in (("mean", rows.mean(0)), ("max", rows.max(0))):
        close(model.embed(adata, pooling=pooling)[5], expected / np.linalg.norm(expected))
    np.testing.assert_array_equal(model.embed(adata, pooling="first"), model.embed(adata))


def test_layers_are_those_of_the_network(model, adata):
    np.testing.assert_array_equal(model.embed(adata, layer=2), model.embed(adata))
    np.testing.assert_array_equal(model.embed(adata, layer=-2), model.embed(adata, layer=1))
    zero = model.embed(adata, layer=0)
    close(zero, np.tile(zero[0], (12, 1)))  # before any layer every <cls> is the same


def test_gene_embeddings_are_means_over_the_cells_that_express_a_gene(model, adata):
    out = model.embed(adata, output="genes")
    [tokens] = model.tokens(adata)
    ids, _ = tokens.split()
    expressed = np.asarray((adata.X > 0).sum(0)).ravel() > 0
    assert out.index.tolist() == np.array(GENES)[expressed].tolist()
    gene = model.vocabulary.ids[out.index[7]]
    rows = []
    for k in range(12):
        with torch.inference_mode():
            states = model.module.encode(tokens.pack([k])).numpy()
        rows.extend(states[ids[k] == gene])
    close(out.iloc[7].to_numpy(), np.mean(rows, axis=0))


# ------------------------------------------------------------------------------- alike, whatever holds it


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 99), budget=st.integers(1, 400), chunk=st.integers(1, 13), length=st.integers(5, 70)
)
def test_a_cell_is_embedded_alike_alone_and_in_any_batch_order_and_chunk(
    model, monkeypatch, seed, budget, chunk, length
):
    X = counts(seed=seed)
    X[:, 0] += 1
    order = np.random.default_rng(seed).permutation(len(X))
    how = {"max_length": length, "ties": "random" if seed % 2 else "mid", "seed": seed}
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("ignore", InputWarning)
        whole = model.embed(make(X), **how)
        alone = np.concatenate([model.embed(make(X[k : k + 1]), **how) for k in range(4)])
        patch.setattr("ribozyme.engine.cell_parts.CHUNK", chunk)
        turned = model.embed(make(X[order]), batch_tokens=budget, **how)
    close(alone, whole[:4])
    close(turned, whole[order])


def test_columns_in_another_order_are_the_same_cells(model, adata):
    order = np.random.default_rng(1).permutation(60)
    with pytest.warns(InputWarning):
        expected = model.embed(adata, max_length=9, ties="random")
    with pytest.warns(InputWarning):
        close(model.embed(adata[:, order].copy(), max_length=9, ties="random"), expected)


WRAPS = {
    "dense": np.array,
    "fortran": np.asfortranarray,
    "integers": lambda X: X.astype(np.int64),
    "double": lambda X: X.astype(np.float64),
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_integers": lambda X: sparse.csc_matrix(X.astype(np.int32)),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_form_of_the_matrix_does_not_matter(model, wrap):
    close(model.embed(make(wrap(counts()))), model.embed(make()), atol=1e-6)


def test_views_are_embedded_as_their_copies(model, adata):
    view = adata[[7, 2, 2, 11]][:3, np.arange(60)[::-1]]
    close(model.embed(view), model.embed(adata)[[7, 2, 2]])
    assert view.is_view


@pytest.mark.parametrize("wrap", [np.array, sparse.csr_matrix, sparse.csc_matrix])
def test_files_backed_and_by_path_are_embedded_as_in_memory(model, tmp_path, wrap):
    adata = make(wrap(counts()))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    expected = model.embed(adata)
    close(model.embed(tmp_path / "cells.h5ad"), expected)
    close(model.embed(str(tmp_path / "cells.h5ad")), expected)
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    close(model.embed(backed), expected)
    close(model.embed(backed[2:5]), expected[2:5])
    backed.file.close()


def test_mudata_is_embedded_by_its_rna(model, adata):
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": adata, "prot": make(np.ones((12, 2)), names=["p1", "p2"])})
    close(model.embed(both), model.embed(adata))
    model.embed(both, key_added="X_scgpt")
    assert both.mod["rna"].obsm["X_scgpt"].shape == (12, 24)


def test_logging_the_counts_changes_nothing_where_values_are_told_apart(model):
    X = counts() * np.random.default_rng(3).lognormal(size=(12, 60)).astype(np.float32)
    close(model.embed(make(np.log1p(X))), model.embed(make(X)))


def test_the_stream_is_the_same_rows_with_names(model, adata):
    names, rows = zip(*model.stream(adata))
    assert list(names) == adata.obs_names.tolist()
    close(np.stack(rows), model.embed(adata))


# ------------------------------------------------------------------------------------------- gene names


def test_ensembl_ids_case_and_former_names_lead_to_the_same_embedding(model, adata):
    expected = model.embed(adata)
    for names in ([f"{IDS[g]}.{k}" for k, g in enumerate(GENES)], [g.lower() for g in GENES]):
        close(model.embed(make(adata.X, names=names)), expected)
    named = make(adata.X, names=[f"g{k}" for k in range(60)], feature_name=pd.Categorical(GENES))
    close(model.embed(named), expected)
    close(model.embed(named, gene_column="feature_name"), expected)


def test_duplicated_genes_are_summed(model):
    X = counts()
    split = np.concatenate([X, np.floor(X[:, :5] / 2)], axis=1)
    split[:, :5] -= split[:, 60:]
    names = [*GENES, *(IDS[g] for g in GENES[:5])]
    close(model.embed(make(split, names=names)), model.embed(make(X)))


def test_unknown_genes_are_left_out_with_a_count(model, adata):
    with pytest.warns(InputWarning, match="2 genes that the model does not know, left out.*adata: gfp, XYZ9"):
        out = model.embed(make(np.hstack([counts(), np.full((12, 2), 90)]), names=[*GENES, "gfp", "XYZ9"]))
    close(out, model.embed(adata))


def test_no_known_gene_is_an_error_that_shows_some(model):
    with pytest.raises(InputError, match=r"knows none of the 3 genes.*x1, x2, x3.*'index'") as error:
        model.embed(make(np.ones((2, 3)), names=["x1", "x2", "x3"]))
    assert "gene_column" in str(error.value)


def test_a_column_that_is_not_there_is_an_error(model, adata):
    with pytest.raises(ConfigError, match="var has no column 'symbol'"):
        model.embed(adata, gene_column="symbol")


# ---------------------------------------------------------------------------------- cells of all kinds


def test_empty_cells_are_nan_and_counted(model):
    X = counts()
    X[[3, 8]] = 0
    with pytest.warns(InputWarning, match="2 cells without any gene that the model knows.*cell3"):
        out = model.embed(make(X))
    assert np.isnan(out).all(1).nonzero()[0].tolist() == [3, 8]
    keep = np.setdiff1d(np.arange(12), [3, 8])
    close(out[keep], model.embed(make(X[keep])))


def test_only_empty_cells_are_only_nan(model):
    with pytest.warns(InputWarning, match="4 cells without any gene"):
        assert np.isnan(model.embed(make(np.zeros((4, 60), np.float32)))).all()


def test_no_cells_give_no_rows(model, adata):
    assert model.embed(adata[:0]).shape == (0, 24)
    assert list(model.stream(adata[:0])) == []


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("wrap", [np.array, sparse.csr_matrix])
def test_a_value_that_is_no_expression_is_an_error_that_names_the_cell(model, wrap, bad):
    X = counts()
    X[5, 2] = bad
    with pytest.raises(InputError, match=f"cell 'cell5' has the value {bad}") as error:
        model.embed(make(wrap(X)))
    assert error.value.__notes__ == ["in adata"]


def test_text_for_numbers_is_an_error(model):
    adata = make()
    adata.X = adata.X.astype(complex)
    with pytest.raises(InputError, match="complex"):
        model.embed(adata)


def test_cells_beyond_the_window_are_sampled_and_counted(model, adata):
    with pytest.warns(InputWarning, match="cells with more than 9 genes, of which a sample was read"):
        sampled = list(model.tokens(adata, max_length=10))
    with pytest.warns(InputWarning, match="of which the highest was read"):
        top = list(model.tokens(adata, max_length=10, select="top"))
    assert sampled[0].lengths.max() == top[0].lengths.max() == 10
    [everything] = model.tokens(adata)
    for cell, chosen in zip(zip(*everything.split()), zip(*top[0].split())):
        bins = dict(zip(*cell))
        assert all(bins[i] == b for i, b in zip(*chosen))  # binned among all genes of the cell, as published
        assert min(chosen[1][1:]) >= np.sort(cell[1][1:])[-9:].min()
        assert (np.diff(chosen[0][1:]) > 0).all()  # in the order of the columns


def test_the_seed_chooses_the_sample(model, adata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        one, same, other = (model.embed(adata, max_length=8, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert abs(one - other).max() > 1e-3


def test_what_would_be_counted_is_an_error_when_strict(model):
    X = counts()
    X[4] = 0
    with pytest.raises(InputError, match="cell4: 1 cell without any gene"):
        model.embed(make(X), strict=True)
    with pytest.raises(InputError, match="XYZ9: 1 gene that the model does not know"):
        model.embed(make(np.ones((1, 61)), names=[*GENES, "XYZ9"]), strict=True)
    with pytest.raises(InputError, match="genes, of which a sample was read"):
        model.embed(make(), strict=True, max_length=4)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"pooling": "none"}, "pooling 'none' does not exist for cells"),
        ({"layer": 3}, "layer 3 does not exist"),
        ({"layer": -4}, "layer -4 does not exist"),
        ({"output": "rows"}, "output 'rows' does not exist"),
        ({"select": "best"}, "select 'best' does not exist"),
        ({"ties": "low"}, "ties 'low' does not exist"),
        ({"max_length": 1}, "max_length 1 leaves no room"),
        ({"batch_tokens": 0}, "batch_tokens 0 must be positive"),
        ({"output": "genes", "key_added": "X"}, "key_added is for cells"),
    ],
)
def test_settings_that_make_no_sense_are_errors(model, adata, how, message):
    with pytest.raises(ConfigError, match=message):
        model.embed(adata, **how)


# ------------------------------------------------------------------------------- what the caller gave


def test_the_cells_of_the_caller_stay_as_they_are(model, tmp_path):
    rows = sparse.csr_matrix(counts())
    rows.indices[:5] = rows.indices[:5][::-1]  # unsorted
    rows.data[0] = 0  # a stored zero
    adata = make(rows.copy(), names=[*GENES[:59], GENES[0].lower()])
    adata.layers["log"] = np.log1p(counts())
    adata.write_h5ad(tmp_path / "before.h5ad")
    model.embed(adata)
    model.embed(adata, output="genes")
    for part in ("indices", "data", "indptr"):
        np.testing.assert_array_equal(getattr(adata.X, part), getattr(rows, part))
    assert not adata.obsm
    assert not adata.uns
    assert list(adata.var) == list(adata.obs) == []


def test_key_added_writes_the_embedding_and_how_it_was_made(model, adata, tmp_path):
    out = model.embed(adata, key_added="X_scgpt", pooling="mean", seed=4)
    np.testing.assert_array_equal(adata.obsm["X_scgpt"], out)
    params = adata.uns["X_scgpt"]["params"]
    assert params["pooling"] == "mean"
    assert params["seed"] == 4
    assert params["genes"] == {"symbol": 60}
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert ad.read_h5ad(tmp_path / "cells.h5ad").uns["X_scgpt"]["params"]["gene_column"] == "index"


def test_key_added_needs_an_anndata(model, tmp_path):
    with pytest.raises(ConfigError, match="key_added needs an AnnData"):
        model.embed(tmp_path / "cells.h5ad", key_added="X")


def test_embedding_steps_no_generator(model, adata):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.warns(InputWarning):
        model.embed(adata, max_length=8, ties="random")
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_an_untrained_model_is_the_same_network_with_other_weights(model, adata):
    other = model.untrained(seed=5)
    assert abs(other.embed(adata) - model.embed(adata)).max() > 1e-3
    np.testing.assert_array_equal(other.embed(adata), model.untrained(seed=5).embed(adata))


@pytest.mark.parametrize("layout", ["native", "scgpt"])
def test_a_saved_model_embeds_as_before(model, adata, tmp_path, layout):
    model.save(tmp_path / "saved", layout=layout)
    module, vocabulary = formats.load(open_checkpoint(tmp_path / "saved"))
    np.testing.assert_array_equal(CellModel(module, vocabulary, CPU).embed(adata), model.embed(adata))


# ------------------------------------------------------------------------------------------ real files


@pytest.fixture(scope="module")
def published_size():
    """The published vocabulary on a tiny network."""
    module = ScGPT(Config(dim=8, layers=1, heads=1, ffn_dim=8))
    module.initialise(torch.Generator().manual_seed(0))
    return CellModel(module, Vocabulary.census(), CPU)


REAL = {
    "annotate_breast_tnbc.h5ad": 0.97,
    "annotate_pbmc_3tech.h5ad": 0.95,
    "annotate_pbmc_sorted.h5ad": 0.97,
    "cite_malt_pbmc.h5mu": 0.90,
    "integrate_rnamix.h5ad": 0.99,
    "map_onek1k_donors.h5ad": 0.98,
    "map_skin_ctcl.h5ad": 0.96,
    "multiome_a549_scicar.h5mu": 0.94,
    "perturb_eccite_thp1.h5ad": 0.95,
    "stim_kang_ifnb_labelled.h5ad": 0.99,
    "stim_kang_ifnb_wide.h5ad": 0.98,
    "corpus/corpus_cells.h5ad": 1.0,
    "formats/cells.loom": 0.98,
    "formats/cells.zarr": 0.98,
    "formats/cells_by_genes.csv.gz": 0.98,
    "formats/ensembl_versioned_ids.h5ad": 0.98,
    "formats/genes_by_cells.csv.gz": 0.98,
    "formats/genes_by_cells.tsv.gz": 0.98,
    "formats/log_normalised.h5ad": 0.98,
    "formats/mtx_v2": 0.98,
    "formats/mtx_v3": 0.98,
    "formats/multiome_pbmc_40cells.h5mu": 0.89,
    "formats/tenx_v2_legacy.h5": 0.98,
    "formats/tenx_v3_rna_adt.h5": 0.98,
}
"""Share of the genes that must be found."""


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_files_become_tokens(published_size, data_folder, name):
    path = data_folder / "cells" / name
    with open_cells(path) as source:
        match = match_genes(source.var, published_size.lookup)
    assert match.counts.get("unmatched", 0) <= (1 - REAL[name]) * len(match.ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        for tokens in published_size.tokens(path):
            genes = tokens.values[tokens.ids != published_size.vocabulary.cls_id]
            assert tokens.lengths.max() <= 1_200
            assert genes.min() >= 1
            assert genes.max() == 50

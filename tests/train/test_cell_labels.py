"""scGPT's losses of fine-tuning on labelled cells: the network gets its parts, and knows labels by name."""

import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse

import ribozyme as rz
from ribozyme.engine.cells import CellModel
from ribozyme.errors import ConfigError, InputError, InputWarning
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.grow import grown
from ribozyme.models.scgpt.heads import elastic_similarity_loss
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary
from ribozyme.packing import Packed
from ribozyme.train.batch import evaluate
from ribozyme.train.cell_labels import equipped
from ribozyme.train.corpus import CellCorpus, Columns, described, held_examples, held_out
from ribozyme.train.feed import InMemory
from ribozyme.train.objectives import Example, Genes
from ribozyme.train.pretrain import Recipe, objective_of, parts, pretrain

GENES = ["A1BG", "A2M", "NAT1", "NAT2", "AAMP", "ABAT", "AARS1", "AADAC"]
ALL = {
    "expression": 1.0, "mvc": 1.0, "zero": 0.5, "mvc_zero": 0.5,
    "classes": 1.0, "batches": 0.1, "similarity": 0.1, "contrast": 0.1,
}  # fmt: skip
LABELS = Columns(batch="donor", kind="type")


def network(**changes):
    config = {"vocab_size": 11, "layers": 1, "dim": 16, "heads": 2, "ffn_dim": 32, "dropout": 0.1}
    module = ScGPT(Config(**config | {"flag": False} | changes))
    module.initialise(torch.Generator().manual_seed(0))
    return module.eval()


def cell_model(**changes):
    vocabulary = Vocabulary([*GENES, "<pad>", "<cls>", "<eoc>"])
    return CellModel(network(**changes), vocabulary, torch.device("cpu"))


@pytest.fixture
def adata():
    """24 cells of two types, each of which has genes of its own, by three donors; the last one is empty."""
    generator = np.random.default_rng(0)
    types = np.arange(24) % 2
    counts = generator.poisson(np.where(types[:, None] == np.arange(8) % 2, 6.0, 0.3)).astype(np.float32)
    counts[-1] = 0
    donors = pd.Categorical([("d2", "d10", "d1")[k % 3] for k in range(24)])
    obs = pd.DataFrame({"donor": donors, "type": np.array(["T", "B"])[types], "one": "same"})
    return ad.AnnData(
        sparse.csr_matrix(counts), obs.set_index(np.array([f"c{k}" for k in range(24)])),
        pd.DataFrame(index=GENES),
    )  # fmt: skip


def equip(model, how, adata, columns, held=0.0):
    model.module = equipped(model, how.parts or {}, how, adata, columns, held).module


def batch(count=3):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.cat([torch.tensor([9]), torch.randperm(8, generator=generator)[:5]]) for _ in range(count)]
    return Packed.of(ids, [torch.rand(6, generator=generator) * 50 for _ in range(count)])


# ------------------------------------------------------------------------------------- the grown network


@torch.no_grad()
def test_a_grown_network_begins_with_the_predictions_that_it_had():
    before = network()
    names = ("a", "b", "c")
    more = {"batches": 3, "adversary": 3, "n_cls": 2, "explicit_zero": True, "batch_names": names}
    after = grown(before, replace(before.config, **more), seed=5)
    cells, labels = batch(), torch.tensor([2, 0, 1])
    old = before(cells, heads=("expression", "mvc"))
    heads = ("expression", "mvc", "classes", "adversary")
    new = after(cells, heads=heads, labels=labels)
    torch.testing.assert_close(new.cell, old.cell)
    torch.testing.assert_close(new.expression.value, old.expression.value)
    torch.testing.assert_close(new.mvc.value, old.mvc.value)
    assert new.classes.shape == (3, 2)
    assert new.adversary.shape == (3, 3)
    assert not after.training
    # parts that are drawn are drawn from the seed
    again, other = (grown(before, after.config, seed=seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), again.parameters()))
    assert not torch.equal(after.discriminator.out.weight, other.discriminator.out.weight)


@torch.no_grad()
def test_labels_that_are_learnt_beside_others_leave_those_as_they_are():
    two = {"batches": 2, "n_cls": 2, "domains": 2, "adversary": 2}
    before = network(**two)
    before.domains.norms[1].running_mean.fill_(0.7)
    before.domains.norms[1].num_batches_tracked.fill_(4)
    three = dict.fromkeys(two, 3)
    after = grown(before, replace(before.config, **three))
    cells, labels = batch(), torch.tensor([1, 0, 1])
    heads = ("expression", "mvc", "classes", "adversary")
    old, new = before(cells, heads=heads, labels=labels), after(cells, heads=heads, labels=labels)
    torch.testing.assert_close(new.expression.value, old.expression.value)
    torch.testing.assert_close(new.mvc.value, old.mvc.value)
    torch.testing.assert_close(new.classes[:, :2], old.classes)
    torch.testing.assert_close(new.adversary[:, :2], old.adversary)
    assert new.classes[:, 2].abs().min() > 0
    assert after.domains.norms[1].num_batches_tracked == 4


def test_a_model_gets_what_the_parts_need_and_keeps_what_it_has(adata):
    model = cell_model()
    equip(model, Recipe(parts={"expression": 1.0}), adata, Columns())
    assert model.config == cell_model().config
    equip(model, Recipe(parts=ALL, zero_genes=True, dsbn=True), adata, LABELS)
    config = model.config
    assert config.batch_names == ("d1", "d10", "d2")
    assert config.class_names == ("B", "T")
    assert (config.batches, config.domains, config.adversary, config.n_cls) == (3, 3, 3, 2)
    assert config.explicit_zero
    assert config.zero_genes == tuple(range(8))
    first = model.module
    more = adata[:10].copy()
    more.obs["donor"] = ["d2", "d3", "d3", "d1", "d0", "d10", *["d1"] * 4]
    equip(model, Recipe(parts=ALL), more, LABELS)
    assert model.config.batch_names == ("d1", "d10", "d2", "d0", "d3")
    assert model.config.adversary == model.config.domains == 5
    torch.testing.assert_close(model.module.batches.table.weight[:3], first.batches.table.weight)


def test_labels_without_names_are_numbers(adata):
    model = cell_model(batches=2, n_cls=3)
    adata.obs["donor"] = [float(k % 2) for k in range(24)]  # as after a missing one was left out
    equip(model, Recipe(parts={"batches": 1.0}), adata, Columns(batch="donor"))
    assert model.config.batch_names == ("0", "1")
    assert model.config.batches == model.config.adversary == 2
    assert model.config.known_classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_names": ("a", "b"), "batches": 3}, "2 batch_names for 3 labels"),
        ({"batch_names": ("a", "a"), "batches": 2}, "not a list of different names"),
        ({"class_names": "ab", "n_cls": 2}, "not a list of different names"),
        ({"class_names": (1, 2), "n_cls": 2}, "not a list of different names"),
        ({"zero_genes": 1}, "zero_genes 1 is not a list of genes"),
        ({"zero_genes": [70_000]}, "not a list of genes of the vocabulary"),
    ],
)
def test_names_that_do_not_fit_are_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        Config(**changes)


# ------------------------------------------------------------------------------------------ the corpus


def corpus_of(source, model, **changes):
    given = {"batch_column": "donor", "class_column": "type", "zero_genes": tuple(range(8))} | changes
    names = {"batch_names": ("d1", "d10", "d2"), "class_names": ("B", "T")}
    return CellCorpus(source=source, lookup=model.lookup, **{"n_bins": 51} | names | given)


@pytest.mark.parametrize("kind", ["memory", "view", "h5ad", "backed", "zarr"])
def test_every_cell_comes_with_its_batch_its_class_and_what_it_does_not_express(adata, kind, tmp_path):
    source = {"memory": adata, "view": adata[::-1][::-1]}.get(kind)
    if kind in ("h5ad", "backed"):
        adata.write_h5ad(source := tmp_path / "cells.h5ad")
    elif kind == "zarr":
        pytest.importorskip("zarr")
        with warnings.catch_warnings(), ad.settings.override(zarr_write_format=2):
            warnings.simplefilter("ignore")  # about which version will be the default one day
            adata.write_zarr(source := tmp_path / "cells.zarr")
    if kind == "backed":
        source = ad.read_h5ad(source, backed="r")
    model = cell_model()
    rows = list(corpus_of(source, model).read(np.random.default_rng(0), skip=3))
    assert rows[-1] is None  # of an empty cell there is nothing to learn
    names, types = ("d1", "d10", "d2"), ("B", "T")
    for cell, one in zip(adata.obs.iloc[3:-1].itertuples(), rows):
        assert (names[one.label], types[one.kind]) == (cell.donor, cell.type)
        assert one.measured.tolist() == list(range(8))
    counts = adata.X.toarray()
    packed = Genes(cls_id=9, cls_value=-2.0).read(rows[:2], np.arange(2, dtype=np.uint64))
    assert packed.lengths == (9, 9)
    np.testing.assert_array_equal(packed.values[1:9] > 0, counts[3] > 0)
    np.testing.assert_array_equal(packed.ids[10:18], np.arange(8))
    window = Genes(cls_id=9, cls_value=-2.0, longest=5)
    assert [window.length(one) for one in rows[:2]] == [6, 6]
    assert window.read(rows[:2], np.arange(2, dtype=np.uint64)).lengths == (6, 6)


def test_a_label_that_is_missing_or_unknown_names_its_cell(adata):
    model = cell_model()
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="no column 'plate'; it has 'donor', 'type', 'one'"):
        next(corpus_of(adata, model, batch_column="plate").read(rng))
    with pytest.raises(InputError, match=r"8 cells have a label in 'donor' .* first is 'c1' with 'd10'"):
        next(corpus_of(adata, model, batch_names=("d1", "d2")).read(rng))
    adata.obs.loc["c4", "type"] = None
    with pytest.raises(InputError, match="1 cells have nothing in 'type', the first is 'c4'"):
        next(corpus_of(adata, model).read(rng))


def test_other_labels_are_another_corpus(adata):
    model = cell_model()
    first = described(corpus_of(adata, model))
    assert described(corpus_of(adata.copy(), model)) == first
    other = adata.copy()
    other.obs["type"] = other.obs["type"].to_numpy()[::-1]
    assert described(corpus_of(other, model)) != first
    assert described(corpus_of(adata, model, zero_genes=())) != first


# ---------------------------------------------------------------------------------------- the training


def recipe(**changes):
    given = {"steps": 150, "step_tokens": 220, "learning_rate": 1e-2, "held": 0.0, "validate_every": 0}
    return Recipe(**given | {"zero_genes": True, "dsbn": True, "parts": ALL} | changes)


def test_every_loss_of_fine_tuning_is_learnt_in_one_call(adata, tmp_path):
    model = cell_model(dropout=0.02)
    history = pretrain(
        model, adata, tmp_path, recipe(), batch_column="donor", class_column="type", log_every=50
    )
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert list(history.parts) == list(ALL)
    sums = [sum(c * history.parts[part][k] for part, c in ALL.items()) for k in range(3)]
    np.testing.assert_allclose(sums, history.loss, rtol=1e-6)
    assert history.parts["classes"][-1] < 0.2 * history.parts["classes"][0]
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header.split(",")[-8:] == list(ALL)
    assert float(lines[-1].split(",")[-4]) == history.parts["classes"][-1]
    assert json.loads((tmp_path / "curve.json").read_text())["batches"] == history.parts["batches"]
    again = rz.load(tmp_path, device="cpu", dtype="float32")
    assert again.config == model.config
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == ["B", "T"]
    cells = again.embed(adata[:-1].copy(), batch_column="donor")
    with torch.no_grad():
        [tokens] = again.tokens(adata[:-1].copy())
        labels = torch.tensor([again.config.batch_names.index(one) for one in adata.obs["donor"][:-1]])
        cell = again.module.cell_embedding(tokens.pack(range(23)), normalise=False, labels=labels)
        scores = again.module.classify(cell)
    told = [again.config.class_names[k] for k in scores.argmax(1)]
    assert told == adata.obs["type"].tolist()[:-1]
    assert np.isfinite(cells).all()


@pytest.mark.filterwarnings("ignore:.* cells? w:ribozyme.errors.InputWarning")
def test_a_model_that_norms_by_batch_embeds_each_cell_by_its_own(adata, tmp_path):
    model = cell_model(domains=3, batch_names=("d1", "d10", "d2"), zero_genes=list(range(8)))
    for k, norm in enumerate(model.module.domains.norms):
        norm.running_mean.fill_(k / 2)
        norm.num_batches_tracked.fill_(9)
    rows = model.embed(adata, batch_column="donor", batch_tokens=40)
    assert np.isnan(rows[-1]).all()
    for k in (0, 7, 22):
        alone = model.embed(adata[[k]].copy(), batch_column="donor")
        np.testing.assert_allclose(alone[0], rows[k], atol=1e-6)
    moved = adata.copy()
    moved.obs["donor"] = "d1"
    apart = np.abs(model.embed(moved, batch_column="donor") - rows).max(1)
    same = (adata.obs["donor"] == "d1").to_numpy()[:-1]
    assert apart[:-1][same].max() < 1e-5
    assert apart[:-1][~same].min() > 1e-3
    genes = model.embed(adata, output="genes", batch_column="donor")
    assert genes.shape == (8, 16)
    model.embed(adata, batch_column="donor", key_added="X")
    assert adata.uns["X"]["params"]["batch_column"] == "donor"
    with pytest.raises(ConfigError, match="norms each cell by its batch"):
        model.embed(adata)
    with pytest.raises(InputError, match="not trained with"):
        model.embed(adata, batch_column="type")
    with pytest.raises(ConfigError, match="makes no difference"):
        cell_model().embed(adata, batch_column="donor")


@pytest.mark.filterwarnings("ignore:.* cells? w:ribozyme.errors.InputWarning")
def test_genes_that_are_not_expressed_are_read_at_zero(adata):
    plain, model = cell_model(), cell_model(zero_genes=list(range(8)))
    [tokens] = model.tokens(adata)
    expressed = adata.X.toarray() > 0
    assert tokens.lengths.tolist() == [9] * 23 + [1]
    values = tokens.values[: 23 * 9].reshape(23, 9)
    np.testing.assert_array_equal(values[:, 1:] > 0, expressed[:-1])
    np.testing.assert_array_equal(tokens.ids[: 23 * 9].reshape(23, 9)[:, 1:], np.tile(np.arange(8), (23, 1)))
    [bare] = plain.tokens(adata)
    np.testing.assert_array_equal(tokens.values[tokens.values > 0], bare.values[bare.values > 0])
    [few] = model.tokens(adata, max_length=6)
    assert few.lengths.tolist() == [6] * 23 + [1]
    [most] = model.tokens(adata, max_length=6, select="top")
    for cell, row in zip(most.split()[1], expressed[:-1]):
        assert (cell[1:] > 0).sum() == min(5, row.sum())
    turned = model.embed(adata[:, ::-1].copy())
    np.testing.assert_allclose(turned, model.embed(adata), atol=1e-5)


def test_the_mean_row_of_a_gene_is_over_the_cells_that_express_it(adata):
    model = cell_model(zero_genes=list(range(8)))
    two = adata[:2].copy()
    two.X = np.array([[1, 2, 3, 4, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 5]], np.float32)
    rows = model.embed(two, output="genes")
    assert rows.index.tolist() == ["A1BG", "A2M", "NAT1", "NAT2", "AADAC"]
    only = model.embed(two[[0]].copy(), output="genes")
    np.testing.assert_allclose(rows.loc["A1BG"], only.loc["A1BG"], atol=1e-6)


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(adata, tmp_path, killed):
    adata.write_h5ad(path := tmp_path / "cells.h5ad")

    def go(folder):
        pretrain(
            cell_model(), path, folder, recipe(steps=8, held=0.2, validate_every=4),
            batch_column="donor", class_column="type", save_every=3, batch_tokens=100,
        )  # fmt: skip

    go(tmp_path / "whole")
    killed(5, lambda: go(tmp_path / "run"))
    go(tmp_path / "run")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(
        ConfigError, match="holds a run with batch_tokens 100, not 90"
    ):  # it decides what is compared
        pretrain(
            cell_model(), path, tmp_path / "run", recipe(steps=8, held=0.2, validate_every=4),
            batch_column="donor", class_column="type", save_every=3, batch_tokens=90,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({"parts": {"mvc": 1.0}}, None), ({"parts": {"similarity": 1.0}}, 130), ({"dsbn": True}, 130)],
)
def test_what_is_compared_goes_through_at_once(adata, changes, tokens, tmp_path):
    how = Recipe(steps=1, step_tokens=130, held=0.0, **changes)
    column = "donor" if "dsbn" in changes else None
    pretrain(cell_model(), adata, tmp_path, how, batch_column=column)
    assert json.loads((tmp_path / "run.json").read_text())["batch_tokens"] == tokens


def test_the_second_pass_can_be_left_out(adata, tmp_path):
    model = cell_model(flag=True)
    how = recipe(steps=2, objective="generative", parts={"generated": 1.0, "mvc": 0.5}, dsbn=False)
    assert objective_of(model, how).parts == {"generated": 1.0, "mvc": 0.5}
    pretrain(model, adata, tmp_path, how)
    assert set(objective_of(model, replace(how, parts=None)).parts) == {"generated", "mvc", "prompted"}


def test_a_validation_has_labels_that_are_known(adata):
    model = cell_model()
    equip(model, Recipe(parts=ALL, zero_genes=True), adata, LABELS)
    _, held = parts(model, adata, Recipe(), adata[:5].copy(), LABELS)
    assert [one.kind for one in held] == [1, 0, 1, 0, 1]
    other = adata[:5].copy()
    other.obs["type"] = "NK"
    with pytest.raises(InputError, match="that the model was not trained with, the first is 'c0' with 'NK'"):
        parts(model, adata, Recipe(), other, LABELS)


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"parts": {"batches": 1.0, "mvc": 1.0}}, {}, "part 'batches' needs the batch of each cell"),
        ({"dsbn": True}, {}, "dsbn needs the batch"),
        ({"parts": {"classes": 1.0}}, {}, "part 'classes' and a class_column"),
        ({}, {"class_column": "type"}, "part 'classes' and a class_column"),
        ({"parts": {"zero": 1.0}}, {}, "genes that a cell does not express"),
        ({"parts": {"esc": 1.0}, "dsbn": True}, {"batch_column": "donor"}, "part 'esc' does not exist"),
        ({"parts": {"prompted": 1.0}}, {}, "part 'prompted' does not exist"),
        ({"parts": {"expression": 1.0}, "share": 0.0}, {}, "share 0 masks nothing"),
        ({"contrast": 0.1}, {}, "contrast is not for models of cells"),
        ({"coding": "mark"}, {}, "coding is not for models of cells"),
        ({"parts": {"batches": 1.0}}, {"batch_column": "donor"}, "alone only forgets"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything(adata, changes, columns, message, tmp_path):
    model = cell_model()
    module = model.module
    with pytest.raises(ConfigError, match=message):
        pretrain(model, adata, tmp_path / "run", Recipe(steps=1, held=0.0, **changes), **columns)
    assert model.module is module
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"parts": parts} for parts in ({}, ["mvc"], {"mvc": 0.0}, {"mvc": "1"}, {"mvc": float("nan")})),
        {"threshold": 2.0},
    ],
)
def test_a_recipe_of_nothing_is_an_error(changes):
    with pytest.raises(ConfigError):
        Recipe(**changes)


def test_labels_that_tell_nothing_apart_are_an_error(adata, tmp_path):
    how = Recipe(steps=1, held=0.0, parts={"expression": 1.0, "batches": 1.0})
    with pytest.raises(InputError, match="all cells have the same label in 'one'"):
        pretrain(cell_model(), adata, tmp_path / "run", how, batch_column="one")
    adata.obs["each"] = adata.obs_names
    with pytest.raises(InputError, match="'each' has 24 labels for 24 cells"):
        pretrain(cell_model(), adata, tmp_path / "run", how, batch_column="each")
    adata.obs["each"] = ""
    with pytest.raises(InputError, match="24 cells have nothing in 'each'"):
        pretrain(cell_model(), adata, tmp_path / "run", how, batch_column="each")
    with pytest.raises(InputError, match="there are no cells"):
        pretrain(cell_model(), adata[:0].copy(), tmp_path / "run", how, batch_column="donor")
    with pytest.raises(InputError, match="no column 'plate'"):
        pretrain(cell_model(), adata, tmp_path / "run", how, batch_column="plate")


def test_a_batch_that_is_only_held_out_is_an_error(adata):
    held = [name for name in adata.obs_names if held_out(name, 0.3)]
    assert 1 < len(held) < 12
    adata.obs["donor"] = ["rare" if name in held else f"d{k % 2}" for k, name in enumerate(adata.obs_names)]
    how = Recipe(parts={"mvc": 1.0, "batches": 1.0})
    with pytest.raises(InputError, match=rf"of 'rare' in 'donor' all cells \({len(held)}\) are held out"):
        equip(cell_model(), how, adata, Columns(batch="donor"), held=0.3)
    model = cell_model()
    equip(model, replace(how, dsbn=True), adata, Columns(batch="donor"))
    with pytest.raises(InputError, match="saw no cell of batch 'd0' in its training"):
        model.embed(adata, batch_column="donor")


def test_labels_of_which_none_is_known_are_said(adata):
    model = cell_model(batches=2)
    with pytest.warns(
        InputWarning, match=r"none of the labels in 'donor' is one that the model knows \(0, 1\)"
    ):
        equip(model, Recipe(), adata, Columns(batch="donor"))
    assert model.config.batch_names == ("0", "1", "d1", "d10", "d2")


def test_a_model_reads_the_genes_that_it_was_trained_with(adata, tmp_path):
    model = cell_model(dropout=0.0)
    few = adata[:-1, [5, 0, 3, 2]].copy()
    pretrain(model, few, tmp_path, recipe(steps=2, parts=None, dsbn=False))
    assert model.config.zero_genes == (0, 2, 3, 5)
    with pytest.warns(InputWarning, match="4 genes beside those that the model was trained to read"):
        whole = model.embed(adata[:-1].copy())
    np.testing.assert_allclose(whole, model.embed(few), atol=1e-6)
    with pytest.warns(InputWarning, match="1 gene that the model reads in every cell, but are not there"):
        model.embed(few[:, 1:].copy())
    with pytest.raises(InputError, match="there is none of the 4 genes that the model reads"):
        model.embed(adata[:, [1, 4]].copy())
    # a second stage reads them too
    with pytest.warns(InputWarning, match="4 genes beside"):
        equip(model, Recipe(), adata, Columns())
    [one, *_] = CellCorpus(
        source=adata, lookup=model.lookup, n_bins=51, zero_genes=model.config.zero_genes
    ).read(np.random.default_rng(0))
    assert one.measured.tolist() == [0, 2, 3, 5]
    assert {*one.ids.tolist()} <= {0, 2, 3, 5}


@pytest.mark.parametrize("layout", ["native", "scgpt"])
def test_names_and_genes_are_kept_in_either_layout(adata, layout, tmp_path):
    model = cell_model()
    adata.obs["donor"] = [k % 12 for k in range(24)]  # which as text have another order
    equip(model, Recipe(parts=ALL, zero_genes=True, dsbn=True), adata, LABELS)
    model.save(tmp_path, layout=layout)
    config = rz.load(tmp_path).config
    assert config == model.config
    assert config.batch_names[:3] == ("0", "1", "10")


def test_a_call_that_trains_nothing_leaves_the_model_as_it_is(adata, tmp_path):
    how = {"batch_column": "donor", "class_column": "type"}
    pretrain(cell_model(), adata, tmp_path / "run", recipe(steps=1), **how)
    model = cell_model()
    module = model.module
    with pytest.raises(ConfigError, match="holds a run with steps 1, not 2"):
        pretrain(model, adata, tmp_path / "run", recipe(steps=2, schedule="linear"), **how)
    adata.obs["other"] = adata.obs["type"]
    with pytest.raises(ConfigError, match="holds a run with columns kind 'type', not 'other'"):
        pretrain(model, adata, tmp_path / "run", recipe(steps=1), batch_column="donor", class_column="other")
    bad = adata.copy()
    bad.X[0, 0] = -1
    with pytest.raises(InputError, match="value -1"):
        pretrain(model, bad, tmp_path / "bad", recipe(steps=1), **how)
    assert model.module is module
    pretrain(model, adata, tmp_path / "other", recipe(steps=1), **how)
    assert model.module is not module
    assert model.config.domains == 3


def test_what_was_frozen_stays_so():
    before = network()
    for parameter in before.layers.parameters():
        parameter.requires_grad_(False)
    after = grown(before, replace(before.config, batches=2))
    assert not any(parameter.requires_grad for parameter in after.layers.parameters())
    assert all(parameter.requires_grad for parameter in after.decoder.parameters())


def test_a_validation_does_not_count_how_well_batches_are_told(adata):
    model = cell_model()
    how = recipe(parts={"expression": 1.0, "batches": 5.0}, dsbn=False)
    equip(model, how, adata, Columns(batch="donor"))
    _, held = parts(model, adata, how, adata[:9].copy(), Columns(batch="donor"))
    objective = objective_of(model, how)
    both = evaluate(model.module, objective, held, 10_000)
    assert both == evaluate(model.module, replace(objective, parts={"expression": 1.0}), held, 10_000)


def test_what_is_held_out_is_from_everywhere(adata):
    many = ad.concat([adata] * 80, index_unique="-")
    many.obs["donor"] = [f"d{k // 240}" for k in range(len(many))]  # 8 donors, one after the other
    names = tuple(f"d{k}" for k in range(8))
    corpus = corpus_of(many, cell_model(), batch_names=names, class_column=None, held=0.3, zero_genes=())
    held = held_examples(corpus, 160)
    assert len(held) > 140
    assert min(np.bincount([one.label for one in held], minlength=8)) > 5


def test_the_loss_of_similarity_is_as_fine_in_bfloat16():
    cell = 5 + 0.05 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fine = elastic_similarity_loss(cell, 0.8)
    torch.testing.assert_close(fine, elastic_similarity_loss(cell.double(), 0.8).float(), atol=1e-6, rtol=0)


def test_a_batch_that_no_step_had_a_cell_of_is_said(adata, tmp_path):
    counts = adata.X.toarray()
    counts[3] = counts[9] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["donor"] = ["e" if k in (3, 9) else f"d{k % 2}" for k in range(24)]
    with pytest.warns(InputWarning, match="no cell of batch e was trained on"):
        pretrain(cell_model(), adata, tmp_path, recipe(steps=1, parts=None), batch_column="donor")


def test_names_with_brackets_are_shown_as_they_are(adata, capsys, tmp_path):
    from ribozyme.cli.catalogue import info

    cell_model(batches=2, batch_names=("[red]b[/red]", "b [/T]")).save(tmp_path)
    info(str(tmp_path))
    assert "[red]b[/red], b [/T]" in " ".join(capsys.readouterr().out.split())


def test_a_validation_is_of_all_of_a_file(adata):
    model = cell_model()
    equip(model, Recipe(parts={"classes": 1.0}), adata, Columns(kind="type"))
    by_type = adata[np.argsort(adata.obs["type"], kind="stable")].copy()
    _, held = parts(model, adata, Recipe(), by_type, Columns(kind="type"), most=8)
    assert {one.kind for one in held} == {0, 1}
    with pytest.raises(InputError, match="there is nothing to validate on"):
        parts(model, adata, Recipe(), adata[-1:].copy(), Columns(kind="type"))


def test_heads_are_not_trained_on_models_that_norm_by_batch(adata):
    with pytest.raises(ConfigError, match="which a head is not told"):
        rz.Classifier(cell_model(domains=3)).fit(adata[:-1].copy(), "type")
    # those that are told batches only in decoders are
    rz.Classifier(cell_model(batches=3)).fit(adata[:-1].copy(), "type")


def test_many_bins_are_kept_in_training(adata):
    adata.X = sparse.csr_matrix(np.arange(24 * 8).reshape(24, 8) + 1.0)
    one = next(corpus_of(adata, cell_model(), n_bins=300, zero_genes=()).read(np.random.default_rng(0)))
    assert one.values.max() == 299


def test_a_network_that_knows_batches_is_not_trained_without_them(adata, tmp_path):
    with pytest.raises(ConfigError, match="this network needs the batch of each cell"):
        pretrain(cell_model(batches=2), adata, tmp_path / "run", Recipe(steps=1, held=0.0))


def test_columns_are_for_cells(adata, make_model, tmp_path):
    with pytest.raises(ConfigError, match="batch_column is for cells"):
        pretrain(make_model("rnafm"), ["ACGU"], tmp_path / "run", Recipe(held=0.0), batch_column="donor")
    with pytest.raises(ConfigError, match="parts is not for models of sequences"):
        pretrain(make_model("rnafm"), ["ACGU"], tmp_path / "run", Recipe(held=0.0, parts={"mvc": 1.0}))
    examples = InMemory([Example(np.arange(4), np.arange(1, 5, dtype=np.uint8), label=1)])
    with pytest.raises(ConfigError, match="batch_column is for cells, from a file"):
        pretrain(cell_model(), examples, tmp_path / "run", Recipe(held=0.0), batch_column="donor")
    # which say their labels themselves
    pretrain(cell_model(batches=2), examples, tmp_path / "run", Recipe(steps=1, held=0.0))


@pytest.mark.parametrize("part", ["mvc_zero", "zero", "classes", "batches"])
def test_examples_of_ones_own_need_a_network_that_has_everything(adata, part, tmp_path):
    examples = [Example(np.arange(4), np.arange(1, 5, dtype=np.uint8))]
    how = Recipe(steps=1, held=0.0, parts={"expression": 1.0, part: 1.0})
    with pytest.raises(ConfigError, match=f"part '{part}' needs a part of the network that this one lacks"):
        pretrain(cell_model(), examples, tmp_path / "run", how)
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_ones_own_is_read_as_the_model_reads(adata, tmp_path):
    how, run = Recipe(steps=1, held=0.0), tmp_path / "run"
    plain = corpus_of(adata, cell_model(), batch_column=None, class_column=None, zero_genes=())
    with pytest.raises(ConfigError, match="needs the batch of each cell"):
        pretrain(cell_model(domains=3), plain, run, how)
    with pytest.raises(ConfigError, match="reads 0 genes in every cell, the model 3"):
        pretrain(cell_model(zero_genes=[0, 1, 2]), plain, run, how)
    pretrain(cell_model(domains=3), replace(plain, batch_column="donor"), run, how)

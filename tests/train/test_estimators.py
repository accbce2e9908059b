import json
import pickle
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import ribozyme as rz
from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.train.heads import HEADS

KINDS = [rz.Classifier, rz.Regressor, rz.TokenClassifier, rz.TokenRegressor]
FAST = {"epochs": 2, "validation": 0}
LEARNS = {"epochs": 50, "validation": 0, "learning_rate": 0.01, "layers": None, "hidden": 24}


@pytest.fixture(scope="module")
def classes():
    return [("tRNA", "snoRNA", "mRNA")[k] for k in np.random.default_rng(1).integers(0, 3, 32)]


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(2).normal(50.0, 7.0, 32)


@pytest.fixture(scope="module")
def several():
    return np.random.default_rng(3).integers(0, 2, (32, 3))


# ------------------------------------------------------------------- a tiny model learns every task by heart


@pytest.mark.parametrize("head", HEADS)
def test_32_classes_are_learnt_by_heart(rnafm, head, sequences, classes):
    classifier = rz.Classifier(rnafm, head=head, **LEARNS).fit(sequences, classes)
    assert classifier.score(sequences, classes) == 1
    assert classifier.history_.loss[-1] < 0.1


@pytest.mark.parametrize("head", HEADS)
def test_32_numbers_are_learnt_by_heart(rnafm, head, sequences, numbers):
    regressor = rz.Regressor(rnafm, head=head, **LEARNS).fit(sequences, numbers)
    assert regressor.score(sequences, numbers) > 0.9


def test_several_labels_an_input_are_learnt_by_heart(rnafm, sequences, several):
    classifier = rz.Classifier(rnafm, **LEARNS).fit(sequences, several)
    assert (classifier.predict(sequences) == several).mean() > 0.98
    p = classifier.predict_proba(sequences)
    assert p.shape == (32, 3)
    assert ((p > 0.5) == classifier.predict(sequences)).all()
    assert classifier.evaluate(sequences, several)["f1_micro"].value > 0.97


def test_several_numbers_an_input_are_learnt_by_heart(make_model, sequences, numbers):
    y = np.stack([numbers, -1e-3 * numbers[::-1]], axis=1)
    regressor = rz.Regressor(make_model("helix"), pooling="mean+last", **LEARNS).fit(sequences, y)
    assert regressor.predict(sequences).shape == (32, 2)
    assert regressor.score(sequences, y) > 0.95


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_classes_of_letters_are_learnt_by_heart(rnafm, head, sequences):
    y = ["".join("(" if x in "GC" else "." for x in one) for one in sequences]
    classifier = rz.TokenClassifier(rnafm, head=head, **{**LEARNS, "epochs": 15}).fit(sequences, y)
    assert classifier.predict(sequences) == y
    assert classifier.score(sequences, y) == 1
    assert [p.shape for p in classifier.predict_proba(sequences[:2])] == [(len(s), 2) for s in sequences[:2]]


def test_numbers_of_letters_are_learnt_where_there_are_any(make_model, sequences):
    places = [np.arange(len(one), dtype=float) for one in sequences]
    y = [np.stack([place, 100 - place], axis=1) for place in places]
    for one in y:
        one[-2:, 1] = np.nan
    regressor = rz.TokenRegressor(make_model("helix"), **LEARNS).fit(sequences, y)
    predicted = regressor.predict(sequences)
    assert [one.shape for one in predicted] == [(len(one), 2) for one in sequences]
    assert regressor.evaluate(sequences, y)["r2"].value > 0.9


def test_lora_learns_by_heart_and_leaves_a_plain_network(rnafm, sequences, classes, tmp_path):
    pytest.importorskip("peft")
    how = {**LEARNS, "layers": 0, "lora_rank": 4, "head": "attention"}
    classifier = rz.Classifier(rnafm, **how).fit(sequences, classes)
    assert classifier.score(sequences, classes) == 1
    names = set(classifier.tuned_.model.module.state_dict())
    assert names == set(rnafm.module.state_dict())
    old, new = rnafm.module.state_dict(), classifier.tuned_.model.module.state_dict()
    changed = {name for name in names if not torch.equal(old[name], new[name])}
    assert changed == {
        f"{n}.weight"
        for n, m in rnafm.module.named_modules()
        if n[:7] == "layers." and isinstance(m, torch.nn.Linear)
    }
    classifier.save(tmp_path / "run")
    again = rz.load(tmp_path / "run")
    np.testing.assert_allclose(again.predict_proba(sequences), classifier.predict_proba(sequences), atol=1e-5)


# ------------------------------------------------------------------------------------------ scikit-learn


@pytest.mark.parametrize("kind", KINDS)
def test_estimators_keep_the_contract_of_scikit_learn(kind):
    """Those of `check_estimator` that give no data: X of the others is a matrix of numbers."""
    name, estimator = kind.__name__, kind()
    for check in (
        checks.check_estimator_cloneable,
        checks.check_estimator_tags_renamed,
        checks.check_valid_tag_types,
        checks.check_estimator_repr,
        checks.check_no_attributes_set_in_init,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_mixin_order,
        checks.check_parameters_default_constructible,
        checks.check_get_params_invariance,
        checks.check_set_params,
    ):
        check(name, clone(estimator))


@pytest.mark.parametrize("kind", [rz.Classifier, rz.Regressor])
def test_fitting_keeps_the_contract_of_scikit_learn(kind, rnafm, sequences, numbers, classes):
    """What other checks of `check_estimator` ask, with sequences as X."""
    y = classes if kind is rz.Classifier else numbers
    estimator = kind(rnafm, **FAST)
    with pytest.raises(NotFittedError):
        estimator.predict(sequences)
    before, params = set(vars(estimator)), dict(estimator.get_params())
    assert estimator.fit(sequences, y) is estimator
    assert estimator.get_params() == params
    assert all(name.endswith("_") for name in set(vars(estimator)) - before)
    first = estimator.predict(sequences)
    state = {name: value for name, value in vars(estimator).items() if not name.startswith("tuned")}
    assert {k: v for k, v in vars(estimator).items() if k in state} == state  # predicting changes nothing
    np.testing.assert_array_equal(estimator.fit(sequences, y).predict(sequences), first)  # fit starts anew

    def same(found, expected):
        if kind is rz.Classifier:
            assert list(found) == list(expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-5)

    same(
        estimator.predict(sequences[::-1])[::-1], first
    )  # whatever the order, and the company but for rounding
    same([estimator.predict([one])[0] for one in sequences[:3]], first[:3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict(sequences), first)
    for X in (np.array(sequences), np.array(sequences, dtype=object), pd.Series(sequences), tuple(sequences)):
        np.testing.assert_array_equal(estimator.predict(X), first)


def test_cross_validation_grid_search_and_pipelines_work(rnafm, sequences, classes, numbers):
    X = np.array(sequences, dtype=object)
    scores = cross_val_score(rz.Classifier(rnafm, **FAST), X, classes, cv=3, scoring="balanced_accuracy")
    assert scores.shape == (3,)
    areas = cross_val_score(rz.Classifier(rnafm, **FAST), sequences, classes, cv=2, scoring="roc_auc_ovr")
    assert np.isfinite(areas).all()
    grouped = cross_val_score(
        rz.Regressor(rnafm, **FAST), X, numbers, groups=np.arange(32) // 4, cv=GroupKFold(2)
    )
    assert np.isfinite(grouped).all()
    search = GridSearchCV(rz.Regressor(rnafm, **FAST), {"pooling": ["mean", "max"]}, cv=2).fit(X, numbers)
    assert search.best_params_["pooling"] in ("mean", "max")
    upper = FunctionTransformer(lambda X: [one.upper() for one in X])
    pipeline = make_pipeline(upper, rz.Regressor(rnafm, **FAST)).fit([s.lower() for s in sequences], numbers)
    assert pipeline.predict(sequences).shape == (32,)


def test_a_classifier_of_letters_is_cross_validated(rnafm, sequences):
    y = ["".join("(" if x == "G" else "." for x in one) for one in sequences]
    scores = cross_val_score(rz.TokenClassifier(rnafm, **FAST), sequences, y, cv=KFold(2))
    assert np.isfinite(scores).all()


# --------------------------------------------------------------------------------- what is learnt from what


def test_the_held_back_part_is_never_learnt_from(rnafm, sequences, numbers):
    """With the labels of the held-back part moved far away, scale, features and weights stay the same."""
    estimator = rz.Regressor(rnafm, epochs=3, validation=0.25, patience=None).fit(sequences, numbers)
    held = estimator.validation_
    assert len(held) == 8
    moved = numbers.copy()
    moved[held] += 1e3
    again = clone(estimator).set_params(epochs=1).fit(sequences, moved)
    once = clone(estimator).set_params(epochs=1).fit(sequences, numbers)
    np.testing.assert_array_equal(again.validation_, held)
    assert again.tuned_.labels == once.tuned_.labels
    train = np.setdiff1d(np.arange(32), held)
    assert once.tuned_.labels.mean[0] == pytest.approx(numbers[train].mean())
    np.testing.assert_array_equal(again.predict(sequences), once.predict(sequences))


def test_features_are_standardised_by_the_training_part_alone(rnafm, sequences, numbers):
    estimator = rz.Regressor(rnafm, epochs=1, validation=0.25).fit(sequences, numbers)
    train = np.setdiff1d(np.arange(32), estimator.validation_)
    features = rnafm.embed([sequences[k] for k in train])
    scaler = estimator.tuned_.network.scaler
    np.testing.assert_allclose(scaler.mean.numpy(), features.mean(0), atol=1e-5)
    np.testing.assert_allclose(scaler.scale.numpy(), features.std(0), rtol=1e-4)


def test_groups_are_held_back_whole_and_classes_are_all_trained(rnafm, sequences, classes):
    groups = np.arange(32) // 1
    rare = [*classes[:30], "rare", "rare"]
    groups[30:] = 30
    for seed in range(6):
        estimator = rz.Classifier(rnafm, epochs=1, validation=0.3, seed=seed).fit(
            sequences, rare, groups=groups
        )
        held = set(groups[estimator.validation_])
        assert not held & set(groups[np.setdiff1d(np.arange(32), estimator.validation_)])
        assert "rare" in estimator.classes_
        assert estimator.metrics_["accuracy"].n == len(estimator.validation_) > 0


def test_validation_data_of_ones_own_are_used(rnafm, sequences, classes):
    estimator = rz.Classifier(rnafm, epochs=3).fit(
        sequences[:24], classes[:24], validation_data=(sequences[24:], classes[24:])
    )
    assert len(estimator.history_.validation_loss) == 3
    assert estimator.metrics_["accuracy"].n == 8
    with pytest.raises(InputError, match="does not know: Y RNA"):
        estimator.fit(sequences, classes, validation_data=(["ACGU"], ["Y RNA"]))


def test_balanced_classes_count_alike(rnafm, sequences):
    """Of sequences that look alike, the rarer class is predicted only where classes are weighted."""
    alike, y = [sequences[0]] * 32, ["rare"] * 8 + ["common"] * 24
    how = {"epochs": 30, "validation": 0, "learning_rate": 0.02, "weight_decay": 0.0}
    plain = rz.Classifier(rnafm, **how).fit(alike, y).predict_proba(alike)[0]
    balanced = rz.Classifier(rnafm, class_weight="balanced", **how).fit(alike, y).predict_proba(alike)[0]
    by_hand = rz.Classifier(rnafm, class_weight={"rare": 3.0}, **how).fit(alike, y).predict_proba(alike)[0]
    np.testing.assert_allclose(plain, [0.75, 0.25], atol=0.08)
    np.testing.assert_allclose(balanced, [0.5, 0.5], atol=0.08)
    np.testing.assert_allclose(by_hand, [0.5, 0.5], atol=0.08)


# ------------------------------------------------------------------------------------------ save and load


def test_saved_estimators_predict_the_same_in_a_new_process(
    make_model, sequences, classes, numbers, tmp_path
):
    labels = {
        rz.Classifier: classes,
        rz.Regressor: np.stack([numbers, -numbers], 1),
        rz.TokenClassifier: [list(one) for one in sequences],
        rz.TokenRegressor: [np.arange(float(len(one))) for one in sequences],
    }
    estimators = {}
    for kind, y in labels.items():
        estimator = kind(make_model("rnafm"), head="mlp", hidden=7, layers=1, epochs=1, validation=0.2)
        estimator.fit(sequences, y).save(tmp_path / kind.__name__)
        estimators[kind.__name__] = estimator
    script = (
        "import sys, json, numpy as np, ribozyme as rz\n"
        "folder, sequences = sys.argv[1], sys.argv[2:]\n"
        "for name in ('Classifier', 'Regressor', 'TokenClassifier', 'TokenRegressor'):\n"
        "    one = rz.load(f'{folder}/{name}')\n"
        "    scores = {k: s.value for k, s in one.metrics_.items()}\n"
        "    said = [np.asarray(p).tolist() for p in one.predict(sequences)]\n"
        "    print(json.dumps([type(one).__name__, scores, said]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path), *sequences[:4]]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    for name, scores, predicted in map(json.loads, lines):
        estimator = estimators[name]
        assert scores == {key: score.value for key, score in estimator.metrics_.items()}
        for there, here in zip(predicted, estimator.predict(sequences[:4])):
            if "Regressor" in name:
                np.testing.assert_allclose(there, here, atol=1e-4)
            else:
                assert there == np.asarray(here).tolist()
    assert len(lines) == 4


def test_a_run_is_safetensors_and_json_that_say_what_they_are(rnafm, sequences, classes, tmp_path):
    estimator = rz.Classifier(rnafm, epochs=1, dropout=0.1, class_weight="balanced").fit(sequences, classes)
    estimator.save(tmp_path / "run")
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}
    about = json.loads((tmp_path / "run" / "estimator.json").read_text())
    assert about["params"]["dropout"] == 0.1
    assert {"ribozyme", "torch", "python"} <= set(about["versions"])
    assert about["metrics"]["accuracy"]["n"] == len(about["held_back"]) == 3
    again = rz.load(tmp_path / "run")
    assert again.get_params()["class_weight"] == "balanced"
    assert again.classes_.tolist() == estimator.classes_.tolist()
    assert again.metrics_["accuracy"] == estimator.metrics_["accuracy"]


def test_what_is_damaged_or_not_there_is_named(rnafm, sequences, classes, tmp_path):
    rz.Classifier(rnafm, epochs=1).fit(sequences, classes).save(tmp_path)
    path = tmp_path / "estimator.json"
    about = json.loads(path.read_text())
    for change, message in (
        ({"format": 9}, "format 9 is not understood"),
        ({"estimator": "Ranker"}, "damaged"),
        ({"params": {"heads": 3}}, "damaged"),
        ({"metrics": {"accuracy": {}}}, "damaged"),
    ):
        path.write_text(json.dumps({**about, **change}))
        with pytest.raises(CheckpointError, match=message):
            rz.load(tmp_path)
    path.unlink()
    assert rz.load(tmp_path).predict(["ACGU"]).shape == (1,)  # a FineTuned is still there
    with pytest.raises(NotFittedError):
        rz.Classifier().save(tmp_path)


# ------------------------------------------------------------------------------------------------- cells


@pytest.fixture(scope="module")
def cells():
    from ribozyme.engine.cells import CellModel
    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary

    genes = [f"GENE{k}" for k in range(20)]
    vocabulary = Vocabulary([*genes, "<pad>", "<cls>", "<eoc>"])
    config = Config(vocab_size=len(vocabulary), layers=2, dim=16, heads=2, ffn_dim=24, dropout=0.0)
    module = ScGPT(config)
    module.initialise(torch.Generator().manual_seed(0))
    generator = np.random.default_rng(0)
    counts = generator.poisson(1.0, (40, 20)).astype(np.float32)
    counts[1::2, :10] += generator.poisson(6.0, (20, 10))
    table = ad.AnnData(counts)
    table.var_names = genes
    table.obs["kind"] = ["resting", "active"] * 20
    return CellModel(module, vocabulary, torch.device("cpu")), table


def test_cells_are_classified_by_a_column_of_obs(cells, tmp_path):
    model, table = cells
    how = {"layers": None, "learning_rate": 3e-3, "epochs": 25, "validation": 0, "batch_size": 8}
    classifier = rz.Classifier(model, **how).fit(table, "kind")
    assert classifier.score(table, table.obs["kind"]) > 0.9
    assert classifier.evaluate(table, "kind")["accuracy"].n == 40
    classifier.save(tmp_path / "run")
    again = rz.load(tmp_path / "run")
    assert again.predict(table).tolist() == classifier.predict(table).tolist()
    scores = cross_val_score(rz.Classifier(model, **FAST), table, table.obs["kind"].to_numpy(), cv=2)
    assert scores.shape == (2,)
    with pytest.raises(InputError, match="obs has no column 'type'; it has 'kind'"):
        classifier.fit(table, "type")


# -------------------------------------------------------------------------------------------- bad labels


@pytest.mark.parametrize(
    ("kind", "y", "message"),
    [
        (rz.Regressor, [1.0, np.nan, 2.0], "1 labels are missing or infinite, the first at position 1"),
        (rz.Regressor, ["high", "low", "high"], "'high' are not numbers, which regression needs"),
        (rz.Regressor, [1.0, 2.0], "2 labels for 3 inputs"),
        (rz.Regressor, None, "there are no labels"),
        (rz.Classifier, ["a", None, "b"], "label at position 1 is missing"),
        (rz.Classifier, ["a", "a", "a"], "all labels are of one class, 'a'"),
        (rz.Classifier, [0.5, 1.5, 2.5], "label 0.5 at position 0 is no class"),
        (rz.Classifier, [[0, 1], [1, 1], [2, 0]], "holds 0 and 1, not 2"),
        (rz.Classifier, [[0, 1], [1], [1, 0]], "do not make a table"),
        (rz.Classifier, "kind", "labels are the string 'kind'"),
        (rz.TokenClassifier, ["((..", "....", "."], "input 2 has 4 letters and 1 labels"),
        (rz.TokenClassifier, ["....", "....", "...."], "all labels are of one class"),
        (rz.TokenClassifier, [1, 2, 3], "input 0 has a single label"),
        (rz.TokenRegressor, [[1.0] * 4, [1.0] * 4, ["a"] * 4], "are not numbers"),
        (rz.TokenRegressor, [[np.nan] * 4] * 3, "no letter has a label"),
        (rz.TokenRegressor, [[1.0] * 4, [np.inf] * 4, [1.0] * 4], "input 1 has an infinite label"),
    ],
)
def test_bad_labels_are_one_clear_error_before_anything_long(kind, y, message, rnafm):
    short = "letters and" in message
    model = rnafm if short else "no-such-model"  # all others are said before a model is looked for
    with pytest.raises(InputError, match=message):
        kind(model).fit(["ACGU", "GGCC", "AAUU"], y)


def test_bad_inputs_and_settings_are_named(rnafm, sequences, classes):
    with pytest.raises(InputError, match="no inputs"):
        rz.Classifier(rnafm).fit([], [])
    with pytest.raises(InputError, match="3 groups for 32 examples"):
        rz.Classifier(rnafm).fit(sequences, classes, groups=[1, 2, 3])
    with pytest.raises(ConfigError, match="reads the letters"):
        rz.Classifier(rnafm, head="textcnn", pooling="mean").fit(sequences, classes)
    with pytest.raises(ConfigError, match="makes one vector an input"):
        rz.TokenClassifier(rnafm, head="textcnn").fit(sequences, sequences)
    with pytest.raises(ConfigError, match="class_weight names 'rRNA'"):
        rz.Classifier(rnafm, class_weight={"rRNA": 2}).fit(sequences, classes)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"seed": -1}, "seed -1 must be"),
        ({"layers": 1.5}, r"layers 1\.5 must be"),
        ({"validation": 1.0}, r"validation 1\.0 must be"),
        ({"learning_rate": np.nan}, "learning_rate nan"),
    ],
)
def test_settings_that_make_no_sense_are_named(rnafm, sequences, classes, how, message):
    with pytest.raises(ConfigError, match=message):
        rz.Classifier(rnafm, **how).fit(sequences, classes)


def test_groups_and_validation_data_are_looked_at(rnafm, sequences, classes):
    with pytest.raises(InputError, match="1 groups are missing"):
        rz.Classifier(rnafm).fit(sequences, classes, groups=[None, *range(31)])
    with pytest.raises(ConfigError, match="a pair of inputs and labels"):
        rz.Classifier(rnafm).fit(sequences, classes, validation_data=(sequences,))
    fitted = rz.Classifier(rnafm).fit(sequences, classes)
    with pytest.raises(InputError, match="2 groups for 32 examples"):
        fitted.evaluate(sequences, classes, groups=[1, 2])


def test_settings_of_numpy_are_saved_and_fitted_again(rnafm, sequences, classes, tmp_path):
    weights = {name: np.float64(2.0) for name in np.unique(classes)}
    how = {"class_weight": weights, "batch_size": np.int64(8), "seed": np.int64(3), "layers": np.int64(0)}
    fitted = rz.Classifier(rnafm, **how).fit(sequences, classes, folder=tmp_path / "training")
    fitted.save(tmp_path)
    again = rz.load(tmp_path)
    assert again.class_weight == weights
    assert (again.batch_size, again.seed, again.layers) == (8, 3, 0)
    again.set_params(model=rnafm).fit(sequences, classes)
    numbered = rz.Classifier(rnafm, class_weight={0: 1.0, 1: 3.0}).fit(sequences, [0, 1] * 16)
    numbered.save(tmp_path / "numbered")
    assert rz.load(tmp_path / "numbered").class_weight == {0: 1.0, 1: 3.0}

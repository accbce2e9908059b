"""The linear head that is solved: equal to scikit-learn's solutions, and to what a long descent comes to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

import ribozyme as rz
from ribozyme.errors import InputWarning
from ribozyme.train import features
from ribozyme.train.finetune import FineTuned
from ribozyme.train.labels import UNLABELLED, Labels
from ribozyme.train.linear import PENALTIES, Rows, fit_linear

DRAWN = np.random.default_rng(0)
X = (DRAWN.normal(size=(80, 6)) * [1, 10, 0.1, 1, 1, 0] + 3).astype(np.float32)  # one column is constant
Z = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
NUMBERS = np.stack([Z @ np.arange(6.0), DRAWN.normal(size=80)], 1) + 100
KINDS = np.array([("a", "b", "c")[k] for k in (Z[:, :3] + DRAWN.normal(size=(80, 3))).argmax(1)])
SEVERAL = (Z[:, :3] + DRAWN.normal(size=(80, 3)) > 0.5).astype(int)


def rows(labels, y, chosen=slice(None)):
    targets = labels.encode(y, len(y)).numpy()[chosen]
    return Rows(X[chosen], targets, np.arange(len(targets)))


def outputs(solution, features=X):
    return features @ solution.weight.T + solution.bias


def chosen_by(solution):
    return solution.penalties[int(np.argmin(solution.held_loss))]


def test_numbers_are_those_of_ridge_regression():
    labels = Labels.seen("regression", NUMBERS, 80)
    solution = fit_linear(rows(labels, NUMBERS), labels)
    ours = labels.in_units(torch.from_numpy(outputs(solution))).numpy()
    scaled = (NUMBERS - NUMBERS.mean(0)) / NUMBERS.std(0)
    theirs = Ridge(alpha=chosen_by(solution) * 80).fit(Z, scaled).predict(Z) * NUMBERS.std(0) + NUMBERS.mean(
        0
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert chosen_by(solution) in PENALTIES


@pytest.mark.parametrize("weight", [None, "balanced", {"a": 5.0}])
def test_classes_are_those_of_logistic_regression(weight):
    labels = Labels.seen("classification", KINDS, 80, class_weight=weight)
    solution = fit_linear(rows(labels, KINDS), labels)
    theirs = LogisticRegression(
        C=1 / (chosen_by(solution) * 80), class_weight=weight, tol=1e-8, max_iter=10_000
    ).fit(Z, KINDS)
    ours = torch.from_numpy(outputs(solution)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(Z), atol=2e-3)


def test_two_classes_have_two_outputs_that_mirror_each_other():
    kinds = np.where(KINDS == "a", "a", "b")
    labels = Labels.seen("classification", kinds, 80)
    solution = fit_linear(rows(labels, kinds), labels)
    np.testing.assert_allclose(solution.weight[0], -solution.weight[1])
    theirs = LogisticRegression(C=1 / (chosen_by(solution) * 80), tol=1e-8, max_iter=10_000).fit(Z, kinds)
    ours = torch.from_numpy(outputs(solution)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(Z), atol=2e-3)


def test_several_labels_are_solved_each_for_itself_and_a_constant_one_is_constant():
    y = np.column_stack([SEVERAL, np.zeros(80, int), np.ones(80, int)])
    labels = Labels.seen("multilabel", y, 80)
    solution = fit_linear(rows(labels, y), labels)
    p = torch.from_numpy(outputs(solution)).sigmoid().numpy()
    for k in range(3):
        one = LogisticRegression(C=1 / (chosen_by(solution) * 80), tol=1e-8, max_iter=10_000).fit(Z, y[:, k])
        np.testing.assert_allclose(p[:, k], one.predict_proba(Z)[:, 1], atol=2e-3)
    assert (p[:, 3] < 1e-3).all()
    assert (p[:, 4] > 0.999).all()


def test_a_class_that_no_row_has_is_never_predicted():
    codes = np.where(KINDS == "a", 0, 2)
    labels = Labels.seen("classification", codes, 80, outputs=4)
    solution = fit_linear(rows(labels, codes), labels)
    p = torch.from_numpy(outputs(solution)).softmax(1).numpy()
    assert p[:, [1, 3]].max() < 1e-2
    assert set(outputs(solution).argmax(1)) == {0, 2}


def test_what_has_no_label_is_left_out():
    labels = Labels.seen("regression", NUMBERS, 80)
    whole = rows(labels, NUMBERS)
    gaps = Rows(X, whole.targets.copy(), whole.owner)
    gaps.targets[:20, 1] = np.nan
    gaps.targets[5] = np.nan
    solution = fit_linear(gaps, labels)
    there = np.arange(80) != 5
    standard = (X - X[there].mean(0)) / np.where(X[there].std(0) > 0, X[there].std(0), 1)
    scaled = (whole.targets[there, 0] - labels.mean[0]) / labels.scale[0]
    theirs = Ridge(alpha=chosen_by(solution) * 79).fit(standard[there], scaled)
    np.testing.assert_allclose(outputs(solution)[:, 0], theirs.predict(standard), atol=1e-3)
    kinds = Labels.seen("classification", KINDS, 80)
    marked = rows(kinds, KINDS)
    marked.targets[:10] = UNLABELLED
    later = fit_linear(rows(kinds, KINDS, slice(10, None)), kinds)
    np.testing.assert_allclose(fit_linear(marked, kinds).weight, later.weight, atol=1e-3)


def test_the_validation_part_helps_to_choose_the_penalty_and_is_not_fitted():
    labels = Labels.seen("regression", NUMBERS, 80)
    learnt = rows(labels, NUMBERS)
    noise = np.random.default_rng(1).normal(100, 9, size=(4000, 2)).astype(np.float32)
    held = Rows(np.repeat(X, 50, 0), noise, np.arange(4000))
    assert chosen_by(fit_linear(learnt, labels, held)) > chosen_by(fit_linear(learnt, labels))


def test_letters_of_an_input_are_held_back_together():
    """Copies of a few inputs tell nothing more of others, but they foretell each other."""
    drawn = np.random.default_rng(3)
    few, y = drawn.normal(size=(20, 30)).astype(np.float32), drawn.normal(size=20)
    labels = Labels.seen("regression", np.repeat(y, 8), 160)
    targets = labels.encode(np.repeat(y, 8), 160).numpy()
    copies = np.repeat(few, 8, 0)
    whole = fit_linear(Rows(copies, targets, np.repeat(np.arange(20), 8)), labels)
    cut = fit_linear(Rows(copies, targets, np.arange(160)), labels)
    assert min(cut.held_loss) < 0.1 < 0.5 < min(whole.held_loss)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_any_few_rows_have_a_finite_head(count, width, seed):
    drawn = np.random.default_rng(seed)
    few = drawn.normal(size=(count, width)).astype(np.float32)
    for task, y in (
        ("regression", drawn.normal(size=count)),
        ("classification", drawn.integers(0, 3, count)),
        ("multilabel", drawn.integers(0, 2, (count, 2))),
    ):
        labels = Labels.seen(task, y, count)
        solution = fit_linear(Rows(few, labels.encode(y, count).numpy(), np.arange(count)), labels)
        assert solution.weight.shape == (labels.outputs, width)
        assert np.isfinite(solution.weight).all()
        assert np.isfinite(solution.bias).all()


# ------------------------------------------------------------------------------------ in a fine-tuning


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(2).normal(50.0, 7.0, 32)


def test_a_linear_head_alone_is_solved_and_no_descent_comes_lower(rnafm, sequences, numbers):
    solved = rz.Regressor(rnafm, validation=0).fit(sequences, numbers)
    history = solved.history_
    assert history.rate == sorted(history.rate, reverse=True)  # the penalties
    best = history.rate[history.best]
    network = solved.tuned_.network
    Z = (rnafm.embed(sequences) - network.scaler.mean.numpy()) / network.scaler.scale.numpy()
    y = (numbers - numbers.mean()) / numbers.std()

    def penalised(weight, bias):
        return np.square(Z @ weight - y + bias).mean() + best * np.square(weight).sum()

    weight, bias = network.head[-1].weight.detach().numpy()[0], network.head[-1].bias.item()
    lowest = penalised(weight, bias)
    theirs = Ridge(alpha=best * 32).fit(Z, y)
    assert lowest == pytest.approx(penalised(theirs.coef_, theirs.intercept_), rel=1e-4)
    np.testing.assert_allclose(
        solved.predict(sequences), theirs.predict(Z) * numbers.std() + numbers.mean(), atol=1e-2
    )


def test_with_epochs_a_rate_or_dropout_it_descends(rnafm, sequences, numbers):
    for how in ({"epochs": 2}, {"learning_rate": 0.1}, {"dropout": 0.1, "epochs": 2}):
        fitted = rz.Regressor(rnafm, patience=1, **how).fit(sequences, numbers)
        assert fitted.history_.tokens[-1] > 0


def test_a_network_that_is_trained_begins_with_the_solved_head(rnafm, sequences, numbers):
    how = {"validation": 0, "learning_rate": 0.0, "weight_decay": 0.0, "epochs": 1}
    whole = rz.Regressor(rnafm, layers=None, **how).fit(sequences, numbers)
    alone = rz.Regressor(rnafm, validation=0).fit(sequences, numbers)
    np.testing.assert_allclose(whole.predict(sequences), alone.predict(sequences), atol=1e-3)


def test_copies_of_a_group_do_not_choose_the_penalty_for_each_other(rnafm, sequences):
    """Labels say nothing of other sequences, so the strongest penalties are best, which copies hide."""
    y = np.random.default_rng(4).normal(size=32)
    how = {"X": sequences * 4, "y": np.tile(y, 4)}
    cut = rz.Regressor(rnafm, validation=0).fit(**how).history_
    whole = rz.Regressor(rnafm, validation=0).fit(**how, groups=list(range(32)) * 4).history_
    assert whole.rate[whole.best] > 10 * cut.rate[cut.best]


def test_where_layers_only_do_harm_the_solved_head_is_kept(rnafm, sequences, numbers):
    held = (sequences[24:], numbers[24:])
    harmed = rz.Regressor(rnafm, layers=None, learning_rate=0.3, epochs=2)
    harmed.fit(sequences[:24], numbers[:24], validation_data=held)
    alone = rz.Regressor(rnafm).fit(sequences[:24], numbers[:24], validation_data=held)
    assert harmed.history_.best_step == 0
    np.testing.assert_allclose(harmed.predict(sequences), alone.predict(sequences), atol=1e-3)


def test_letters_are_solved_and_too_many_are_drawn(rnafm, sequences, monkeypatch):
    y = ["".join("(" if x == "G" else "." for x in one) for one in sequences]
    classifier = rz.TokenClassifier(rnafm).fit(sequences, y)
    assert classifier.score(sequences, y) == 1
    heights = [[float(x == "G") for x in one] for one in sequences]
    regressor = rz.TokenRegressor(rnafm).fit(sequences, heights)
    assert regressor.score(sequences, heights) > 0.9
    monkeypatch.setattr(features, "MOST_ROWS", 100)
    with pytest.warns(InputWarning, match=r"solved for 100 of \d+ rows"):
        fewer = rz.TokenClassifier(rnafm).fit(sequences, y)
    assert fewer.score(sequences, y) > 0.9


def test_a_solved_head_in_a_folder_is_logged_and_comes_out_the_same_again(
    rnafm, sequences, numbers, tmp_path
):
    first, again = (FineTuned(rnafm, task="regression") for _ in range(2))
    history = first.fit(sequences, numbers, folder=tmp_path)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + len(history.loss)
    assert (tmp_path / "curve.png").stat().st_size > 0
    again.fit(sequences, numbers, folder=tmp_path)
    np.testing.assert_array_equal(first.outputs(sequences), again.outputs(sequences))
    with pytest.raises(rz.errors.ConfigError, match="holds a run with inputs and labels"):
        FineTuned(rnafm, task="regression").fit(sequences, numbers + 1, folder=tmp_path)

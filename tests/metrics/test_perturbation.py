import math

import numpy as np
import pytest
from scipy import stats

import ribozyme.metrics as m
from ribozyme.errors import InputError


@pytest.fixture
def experiment():
    generator = np.random.default_rng(0)
    control = generator.normal(5, 1, (40, 30))
    effects = {name: generator.normal(0, 2, 30) for name in ("A", "B", "C")}
    truth = {name: generator.normal(5, 1, (20, 30)) + effect for name, effect in effects.items()}
    return control, effects, truth


def test_scores_are_the_formulas_of_the_paper(experiment):
    control, effects, truth = experiment
    predicted = {name: control.mean(0) + 0.5 * effect for name, effect in effects.items()}
    found = m.perturbation(truth, predicted, control)
    base = control.mean(0)
    whole = [stats.pearsonr(truth[c].mean(0), predicted[c]).statistic for c in truth]
    delta = [stats.pearsonr(truth[c].mean(0) - base, predicted[c] - base).statistic for c in truth]
    assert found["pearson"].value == pytest.approx(np.mean(whole))
    assert found["pearson_delta"].value == pytest.approx(np.mean(delta))
    assert found["mse"].value == pytest.approx(
        np.mean([(truth[c].mean(0) - predicted[c]) ** 2 for c in truth])
    )
    top = {
        c: np.argsort(-np.abs(stats.ttest_ind(truth[c], control, equal_var=False).statistic))[:20]
        for c in truth
    }
    of_top = [
        stats.pearsonr((truth[c].mean(0) - base)[top[c]], (predicted[c] - base)[top[c]]).statistic
        for c in truth
    ]
    assert found["pearson_delta_top"].value == pytest.approx(np.mean(of_top))
    assert found["mse"].n == 3


def test_no_change_predicted_has_no_correlation_of_changes(experiment):
    control, _, truth = experiment
    found = m.perturbation(truth, dict.fromkeys(truth, control), control)
    assert found["pearson_delta"].value == 0
    assert found["pearson"].value != 0


def test_a_perfect_prediction_is_perfect(experiment):
    control, _, truth = experiment
    found = m.perturbation(truth, truth, control)
    assert found["mse_top"].value == 0
    assert found["pearson_delta_top"].value == pytest.approx(1)


def test_an_experiment_in_which_nothing_changed_has_no_score(experiment):
    control = experiment[0]
    found = m.perturbation({"A": control}, {"A": control + 1.0 * np.arange(30)}, control)
    assert math.isnan(found["pearson_delta"].value)
    assert "constant" in found["pearson_delta"].reason


def test_what_cannot_be_scored_is_named(experiment):
    control, _, truth = experiment
    with pytest.raises(InputError, match="2 conditions were not predicted, such as 'B'"):
        m.perturbation(truth, {"A": control}, control)
    with pytest.raises(InputError, match="no conditions"):
        m.perturbation({}, {}, control)
    with pytest.raises(InputError, match="30, 29 and 30 genes"):
        m.perturbation(truth, {c: x[:, :29] for c, x in truth.items()}, control)

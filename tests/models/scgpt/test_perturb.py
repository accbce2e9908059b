"""Predicted perturbations against the published code, and where ours differs on purpose."""

import pytest
import torch
from torch.testing import assert_close

from ribozyme.errors import CheckpointError, ConfigError, InputError
from ribozyme.models.scgpt.perturb import predict_perturbation


@pytest.fixture
def screen(get_case):
    """The model, expression before, flags, gene ids, and the published answers."""
    case = get_case("perturbation")
    flags = torch.from_numpy(case.expected["perturbed"]).view(4, 20)
    arrays = {k: torch.from_numpy(case.expected[k]) for k in ("matrix", "genes", "all", "expressed")}
    return case.module, arrays["matrix"], flags, arrays["genes"], arrays


@pytest.mark.parametrize("shown", ["all", "expressed"])
def test_predictions_equal_the_published_ones(screen, shown):
    model, values, flags, genes, answers = screen
    found = predict_perturbation(model, values, flags, genes, shown=shown)
    assert_close(found, answers[shown], atol=2e-5, rtol=0)


@pytest.mark.parametrize("shown", ["all", "expressed"])
def test_a_cell_is_predicted_from_itself_alone(screen, shown):
    model, values, flags, genes, _ = screen
    together = predict_perturbation(model, values, flags, genes, shown=shown)
    alone = [predict_perturbation(model, values[[i]], flags[[i]], genes, shown=shown) for i in range(4)]
    assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_gene_outside_the_vocabulary_keeps_its_value_and_is_not_shown(screen):
    model, values, flags, genes, _ = screen
    lost = int((flags == 0).all(0).nonzero()[0])
    fewer = genes.clone()
    fewer[lost] = -1
    found = predict_perturbation(model, values, flags, fewer)
    rest = [i for i in range(20) if i != lost]
    assert torch.equal(found[:, lost], values[:, lost])
    expected = predict_perturbation(model, values[:, rest], flags[:, rest], genes[rest])
    assert_close(found[:, rest], expected)


def test_a_silent_gene_that_is_perturbed_is_shown(screen):
    model, values, flags, genes, _ = screen
    silent = int((values[0] == 0).nonzero()[0])
    marked = flags.clone()
    marked[0, silent] = 1
    found = predict_perturbation(model, values, marked, genes, shown="expressed")
    assert found[0, silent] != 0


def test_a_cell_with_nothing_to_show_stays_as_it_is(screen):
    model, values, flags, genes, answers = screen
    values, flags = values.clone(), flags.clone()
    values[1], flags[1] = 0, 0
    found = predict_perturbation(model, values, flags, genes, shown="expressed")
    assert not found[1].any()
    assert_close(found[0], answers["expressed"][0], atol=2e-5, rtol=0)


def test_zero_probabilities_are_averaged_or_drawn_from_a_seed(get_case):
    case = get_case("perturbation_affine")
    values = torch.from_numpy(case.expected["matrix"])
    flags = torch.from_numpy(case.expected["perturbed"]).view(4, 20)
    given = case.module, values, flags, torch.from_numpy(case.expected["genes"])
    mean = torch.from_numpy(case.expected["expression"] * case.expected["nonzero"]).view(4, 20)
    assert_close(predict_perturbation(*given), mean, atol=2e-5, rtol=0)
    one, same = (predict_perturbation(*given, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, same)
    assert (one == 0).any()


def test_bad_requests_are_told(screen, get_case):
    model, values, flags, genes, _ = screen
    with pytest.raises(InputError, match=r"shapes \(4, 20\), \(4, 19\), \(20,\)"):
        predict_perturbation(model, values, flags[:, 1:], genes)
    column = int(flags[0].nonzero()[0])
    lost = genes.clone()
    lost[column] = -1
    with pytest.raises(InputError, match=rf"perturbed gene \(column {column}\) is not in the vocabulary"):
        predict_perturbation(model, values, flags, lost)
    with pytest.raises(ConfigError, match="shown 'some' does not exist"):
        predict_perturbation(model, values, flags, genes, shown="some")
    with pytest.raises(CheckpointError, match="no 'pert_encoder' tensors"):
        predict_perturbation(get_case("plain").module, values, flags, genes)

"""Losses and predictions."""

import pytest
import torch
from torch.testing import assert_close

from ribozyme.models.scgpt.heads import (
    DomainBatchNorm,
    Prediction,
    contrastive_loss,
    elastic_similarity_loss,
    per_cell,
    per_token,
)
from ribozyme.packing import Packed, cumulative


def test_the_losses_on_cells_equal_the_published_ones(get_case):
    case = get_case("plain")
    cell = torch.from_numpy(case.expected["cell"])
    expected = {name: torch.tensor(case.expected[name]) for name in ("loss_ecs", "loss_cce")}
    assert_close(elastic_similarity_loss(cell, 0.3), expected["loss_ecs"], atol=1e-5, rtol=0)
    assert_close(contrastive_loss(cell, cell), expected["loss_cce"], atol=1e-5, rtol=0)


def test_the_elastic_loss_can_be_differentiated(gradients):
    cell = torch.randn(
        4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: elastic_similarity_loss(x, 0.8), cell)


def test_a_prediction_without_zeros_is_its_value_however_asked():
    prediction = Prediction(torch.tensor([1.0, 2.0]))
    assert prediction.expected() is prediction.value
    assert prediction.sample(torch.Generator()) is prediction.value


def test_samples_repeat_with_the_seed_and_average_to_the_expectation():
    prediction = Prediction(torch.full((40_000,), 3.0), torch.full((40_000,), 0.25))
    one, same = (prediction.sample(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, same)
    assert set(one.tolist()) == {0.0, 3.0}
    assert_close(one.mean(), prediction.expected().mean(), atol=0.03, rtol=0)


def test_rows_of_cells_spread_over_their_tokens_and_sum_back():
    batch = Packed(torch.zeros(6, dtype=torch.long), cumulative([2, 0, 4]), (2, 0, 4))
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    spread = per_token(rows, batch)
    assert spread.flatten().tolist() == [1, 1, 3, 3, 3, 3]
    assert per_cell(spread, batch).flatten().tolist() == [2, 0, 12]


@pytest.mark.parametrize("training", [False, True])
def test_domain_norm_is_a_batch_norm_of_each_domain(training):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    domain = torch.randint(0, 3, (40,), generator=generator)
    norm = DomainBatchNorm(3, 5, 6.1e-5).double().train(training)
    alone = DomainBatchNorm(3, 5, 6.1e-5).double().train(training)
    found = norm(x, domain)
    for k in range(3):
        assert_close(found[domain == k], alone.norms[k](x[domain == k]))
        assert_close(norm.norms[k].running_var, alone.norms[k].running_var)

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ribozyme.nn.norm import GatedRMSNorm, RMSNorm, at_least_float32


def definition(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def test_rms_norm_is_its_definition():
    norm = RMSNorm(6, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert_close(norm(x), definition(x, norm.weight, 1e-5))


def test_gated_norm_takes_the_gate_first_and_each_group_alone():
    norm = GatedRMSNorm(8, groups=2, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    y, z = torch.randn(2, 5, 8, dtype=torch.float64)
    gated = y * F.silu(z)
    halves = [definition(half, 1, 1e-5) for half in gated.chunk(2, dim=-1)]
    assert_close(norm(y, z), torch.cat(halves, -1) * norm.weight)


def test_one_group_is_a_plain_norm_of_the_gated_rows():
    norm = GatedRMSNorm(8, groups=1, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    y, z = torch.randn(2, 5, 8, dtype=torch.float64)
    assert_close(norm(y, z), definition(y * F.silu(z), norm.weight, 1e-5))


def test_half_precision_is_normed_in_float32():
    x = (torch.randn(4, 16) * 300).bfloat16()
    assert RMSNorm(16, 1e-5)(x).dtype == torch.float32
    assert_close(RMSNorm(16, 1e-5)(x), RMSNorm(16, 1e-5)(x.float()), atol=0, rtol=0)
    assert GatedRMSNorm(16, 1, 1e-5)(x, x).dtype == torch.float32
    assert at_least_float32(x.double()).dtype == torch.float64


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_finite_differences(groups):
    norm = GatedRMSNorm(8, groups, eps=1e-5).double()
    y, z = torch.randn(2, 5, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(norm, (y, z))


def test_a_row_of_zeros_stays_one_and_has_a_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    y = RMSNorm(4, 1e-4)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_close(y, torch.zeros(1, 4))
    assert_close(gradient, torch.full((1, 4), 100.0))

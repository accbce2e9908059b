import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.nn.conv import causal_conv, causal_conv_reference
from ribozyme.packing import cumulative

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def random_inputs(sizes, taps, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (sum(sizes), 5), (5, taps), (5,)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@given(sizes=lengths, taps=st.integers(1, 5), silu=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None)
def test_equals_one_sequence_after_the_other_with_gradients(sizes, taps, silu, seed):
    inputs, cu = random_inputs(sizes, taps, seed), cumulative(sizes)
    ours = causal_conv(*inputs, cu, silu=silu)
    expected = causal_conv_reference(*inputs, cu, silu=silu)
    assert_close(ours, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(ours, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        atol=1e-12,
        rtol=0,
    )


def test_gradients_are_those_of_finite_differences():
    inputs, cu = random_inputs([3, 1, 6], 4, seed=0), cumulative([3, 1, 6])
    assert torch.autograd.gradcheck(lambda *a: causal_conv(*a, cu), inputs)


@pytest.mark.parametrize("sizes", [[1], [2, 700], [300, 1, 1, 64]])
def test_float32_is_close_to_float64(sizes):
    inputs, cu = random_inputs(sizes, 4, seed=1), cumulative(sizes)
    ours = causal_conv(*(one.float() for one in inputs), cu, silu=True)
    assert_close(ours.double(), causal_conv_reference(*inputs, cu, silu=True), atol=1e-5, rtol=0)


def test_rows_of_a_wider_table_are_read_in_place():
    wide = torch.randn(20, 11)
    weight, bias, cu = torch.randn(5, 4), torch.randn(5), cumulative([13, 7])
    assert_close(
        causal_conv(wide[:, 3:8], weight, bias, cu),
        causal_conv(wide[:, 3:8].contiguous(), weight, bias, cu),
        atol=0,
        rtol=0,
    )


def test_neighbours_never_leak_not_even_infinity():
    x = torch.randn(12, 5)
    weight, bias = torch.randn(5, 4), torch.randn(5)
    alone = causal_conv(x[4:9], weight, bias, cumulative([5]))
    x[3], x[9] = float("inf"), float("nan")
    packed = causal_conv(x, weight, bias, cumulative([4, 5, 3]))
    assert_close(packed[4:9], alone, atol=1e-6, rtol=0)  # its first rows are summed in another order

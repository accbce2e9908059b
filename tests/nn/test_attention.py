import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.nn.attention import attention, attention_reference, attention_varlen
from ribozyme.packing import bounds, cumulative

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def random_qkv(tokens, heads, kv_heads, seed, dtype=torch.float64, dim=8):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, count, dim) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@given(sizes=lengths, kv_heads=st.sampled_from([1, 2, 4]), causal=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_equals_the_definition_with_gradients(sizes, kv_heads, causal, seed):
    qkv, cu = random_qkv(sum(sizes), 4, kv_heads, seed), cumulative(sizes)
    ours = attention(*qkv, cu, causal=causal)
    expected = attention_reference(*qkv, cu, causal=causal)
    assert_close(ours, expected, atol=1e-10, rtol=0)
    weights = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(ours, qkv, weights),
        torch.autograd.grad(expected, qkv, weights),
        atol=1e-10,
        rtol=0,
    )


@given(
    sizes=lengths,
    kv_heads=st.sampled_from([1, 2, 4]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_some_rows_are_those_of_all_with_gradients(sizes, kv_heads, causal, seed, data):
    (q, k, v), cu = random_qkv(sum(sizes), 4, kv_heads, seed), cumulative(sizes)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=9)), dtype=torch.int64)
    ours = attention(q[rows], k, v, cu, rows=rows, causal=causal)
    expected = attention_reference(q, k, v, cu, causal=causal)[rows]
    assert_close(ours, expected, atol=1e-10, rtol=0)
    if len(rows):
        gradients = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (ours, expected)]
        assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_with_gradients_is_float32_rounded_at_the_end(autocast):
    qkv, cu = random_qkv(60, 2, 2, seed=0, dtype=torch.bfloat16), cumulative([20, 40])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = attention(*qkv, cu)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, attention(*(x.float() for x in qkv), cu).bfloat16())
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(ours.sum(), qkv))


@pytest.mark.parametrize("causal", [False, True])
def test_the_flash_kernel_is_told_where_queries_and_keys_begin(monkeypatch, causal):
    from torch.nn.attention import varlen

    def by_sequence(q, k, v, cu_q, cu_k, longest_q, longest_k, *, window_size, enable_gqa, num_splits):
        assert (longest_q, longest_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (enable_gqa, num_splits) == (True, 1)
        return torch.cat(
            [
                attention_reference(q[a:b], k[s:e], v[s:e], cumulative([e - s]), causal=window_size[1] == 0)
                for (a, b), (s, e) in zip(bounds(cu_q), bounds(cu_k), strict=True)
            ]
        )

    monkeypatch.setattr(varlen, "varlen_attn", by_sequence)
    qkv, cu = random_qkv(30, 4, 2, seed=0), cumulative([4, 21, 5])
    assert_close(attention_varlen(*qkv, cu, cu, causal=causal), attention(*qkv, cu, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim", [8, 20, 32])
def test_float32_without_gradients_is_close_to_float64(causal, dim):
    sizes = [1, 130, 64]
    qkv, cu = random_qkv(sum(sizes), 4, 2, seed=0, dim=dim), cumulative(sizes)
    with torch.no_grad():
        ours = attention(*(one.float() for one in qkv), cu, causal=causal)
        expected = attention_reference(*qkv, cu, causal=causal)
    assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@given(sizes=lengths, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_sequence_never_sees_its_batch_mates(sizes, seed):
    q, k, v = random_qkv(sum(sizes), 4, 2, seed, dtype=torch.float32)
    cu = cumulative(sizes)
    alone = [attention(q[s:e], k[s:e], v[s:e], cumulative([e - s])) for s, e in bounds(cu)]
    assert_close(attention(q, k, v, cu), torch.cat(alone), atol=1e-5, rtol=0)


def test_causal_rows_ignore_what_follows():
    q, k, v = random_qkv(30, 4, 4, seed=3)
    cu = cumulative([30])
    before = attention(q, k, v, cu, causal=True)[:20]
    with torch.no_grad():
        k[20:], v[20:] = 7.0, -7.0
    assert_close(attention(q, k, v, cu, causal=True)[:20], before, atol=1e-12, rtol=0)

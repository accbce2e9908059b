"""Packed batches, the planner, pooling."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import ConfigError
from ribozyme.packing import POOLINGS, Packed, bounds, cumulative, plan, pool, positions

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def of(sizes, *, values=False):
    ids = [np.arange(size) + 100 * k for k, size in enumerate(sizes)]
    return ids, Packed.of(ids, [i.astype(np.float32) / 2 for i in ids] if values else None)


# -------------------------------------------------------------------------------------------- packed


@given(sizes=lengths)
def test_packing_and_splitting_is_the_identity(sizes):
    ids, batch = of(sizes, values=True)
    assert batch.ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.lengths == tuple(sizes)
    assert batch.max_seqlen == max(sizes)
    for parts, wanted in ((batch.split(batch.ids), ids), (batch.split(batch.values), [i / 2 for i in ids])):
        assert len(parts) == len(wanted)
        for part, one in zip(parts, wanted):
            np.testing.assert_array_equal(part.numpy(), one)


@given(sizes=lengths)
def test_cu_seqlens_says_where_each_sequence_begins_and_ends(sizes):
    ids, batch = of(sizes)
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(sizes).tolist()]
    assert cumulative(sizes).tolist() == batch.cu_seqlens.tolist()
    for (start, end), one in zip(bounds(batch.cu_seqlens), ids, strict=True):
        np.testing.assert_array_equal(batch.ids[start:end].numpy(), one)


@given(sizes=lengths)
def test_positions_count_from_zero_in_each_sequence(sizes):
    found = positions(cumulative(sizes))
    np.testing.assert_array_equal(found.numpy(), np.concatenate([np.arange(n) for n in sizes]))


def test_a_batch_moves_to_a_device_with_all_it_has():
    _, batch = of([2, 3], values=True)
    moved = batch.to(torch.device("meta"))
    assert {moved.ids.device.type, moved.cu_seqlens.device.type, moved.values.device.type} == {"meta"}
    assert moved.lengths == batch.lengths
    assert of([2])[1].to(torch.device("cpu")).values is None


def test_the_callers_arrays_are_not_shared():
    ids = [np.arange(3)]
    batch = Packed.of(ids)
    batch.ids[0] = 9
    assert ids[0].tolist() == [0, 1, 2]


# ----------------------------------------------------------------------------------------------- plan


@given(sizes=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 400))
def test_every_input_is_planned_once_within_the_budget_longest_first(sizes, budget):
    batches = plan(sizes, budget)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(sizes)))
    planned = [sizes[index] for index in flat]
    assert planned == sorted(sizes, reverse=True)
    for batch in batches:
        assert batch
        assert len(batch) == 1 or sum(sizes[i] for i in batch) <= budget


@given(sizes=st.lists(st.integers(1, 300), min_size=2, max_size=60), budget=st.integers(1, 400))
def test_neighbouring_batches_could_not_have_been_one(sizes, budget):
    batches = plan(sizes, budget)
    for batch, following in pairwise(batches):
        assert sum(sizes[i] for i in batch) + sizes[following[0]] > budget


def test_the_plan_is_the_same_each_time_and_keeps_the_order_of_equals():
    assert plan([3, 5, 3, 5], 8) == [[1], [3, 0], [2]] == plan([3, 5, 3, 5], 8)
    assert plan([2, 2, 2, 2], 4) == [[0, 1], [2, 3]]
    assert plan([], 10) == []


# ----------------------------------------------------------------------------------------------- pool


BY_HAND = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
}


@pytest.mark.parametrize("pooling", BY_HAND)
@given(sizes=lengths, seed=st.integers(0, 99))
def test_pooling_equals_numpy_sequence_by_sequence(pooling, sizes, seed):
    rows = np.random.default_rng(seed).normal(size=(sum(sizes), 3))
    wanted = [BY_HAND[pooling](part) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    found = pool(torch.from_numpy(rows).float(), sizes, pooling)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pooling", BY_HAND)
def test_low_precision_rows_are_pooled_in_float32(pooling):
    rows = torch.full((4096, 1), 1 / 3, dtype=torch.bfloat16)
    found = pool(rows, [4096], pooling)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(rows[0].float().item(), rel=1e-6)  # a bfloat16 sum stops growing


def test_gradients_flow_through_every_pooling():
    for pooling in BY_HAND:
        rows = torch.randn(5, 2, requires_grad=True)
        pool(rows, [2, 3], pooling).sum().backward()
        assert rows.grad is not None
        assert rows.grad.sum().item() == pytest.approx(4.0)


def test_an_unknown_pooling_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'median' does not exist(.|\n)*mean, first, last, max, none"):
        pool(torch.ones(2, 2), [2], "median")
    assert set(POOLINGS) == {*BY_HAND, "none"}

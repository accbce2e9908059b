import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.nn import ssd as module
from ribozyme.nn.ssd import Chunks, pieces, ssd, ssd_reference
from ribozyme.packing import bounds, cumulative

HEADS, DIM, STATE = 4, 3, 5
SLOW, MIXED, FAST = 0.01, 1.0, 30.0  # step sizes at which no, some and all heads get their own matrix


def random_inputs(sizes, groups=1, step=MIXED, seed=0, dtype=torch.float64):
    """x, dt, A, B, C and a state, as in a network of 4 heads."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    total = sum(sizes)
    return [
        normal(total, HEADS, DIM).requires_grad_(),
        (step * F.softplus(normal(total, HEADS))).requires_grad_(),
        -torch.exp(2 * normal(HEADS)).requires_grad_(),
        normal(total, groups, STATE).requires_grad_(),
        normal(total, groups, STATE).requires_grad_(),
        normal(len(sizes), HEADS, DIM, STATE).requires_grad_(),
    ]


def both(inputs, cu, chunks):
    *sequence, state = inputs
    return ssd(*sequence, chunks, state), ssd_reference(*sequence, cu, state)


@pytest.mark.parametrize("step", [SLOW, MIXED, FAST])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[1], [63], [64], [65], [129, 1, 64, 3], [20] * 3])
@pytest.mark.parametrize("alone", [1, 100, 1000])
def test_equals_the_recurrence_with_gradients(sizes, groups, step, alone):
    inputs, cu = random_inputs(sizes, groups, step), cumulative(sizes)
    ours, expected = both(inputs, cu, Chunks.of(sizes, alone=alone))
    assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    weights = [torch.randn_like(one) for one in expected]
    assert_close(
        torch.autograd.grad(ours, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        atol=1e-9,
        rtol=1e-9,
    )


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    size=st.integers(1, 80),
    alone=st.integers(1, 100),
    step=st.sampled_from([SLOW, MIXED, FAST]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_the_chunks_do_not_matter(sizes, size, alone, step, seed):
    inputs, cu = random_inputs(sizes, 2, step, seed), cumulative(sizes)
    with torch.no_grad():
        assert_close(*both(inputs, cu, Chunks.of(sizes, size, alone)), atol=1e-10, rtol=1e-10)


@given(length=st.integers(1, 700), step=st.sampled_from([SLOW, MIXED, FAST]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_any_length_in_float32(length, step, seed):
    inputs, cu = random_inputs([length], 1, step, seed), cumulative([length])
    with torch.no_grad():
        *sequence, state = (one.float() for one in inputs)
        y, last = ssd(*sequence, Chunks.of([length]), state)
        *exact, state = inputs
        expected, expected_last = ssd_reference(*exact, cu, state)
    scale = 1 + expected.abs().max()
    assert_close(y.double() / scale, expected / scale, atol=1e-5, rtol=0)
    assert_close(last.double() / scale, expected_last / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("forgets", [0.01, 0.3, 1.0, 1.8, 5.0, 50.0])
@torch.no_grad()
def test_what_is_forgotten_in_a_chunk_costs_no_digits(forgets):
    """Sums of up to 64 `forgets` are taken from each other; in float32 that would lose ten times as much."""
    x, dt, _, B, C, _ = (one.float() for one in random_inputs([300]))
    sequence = x, dt * (forgets / dt.mean()), torch.full((HEADS,), -1.0), B, C
    y, last = ssd(*sequence, Chunks.of([300]))
    exact, exact_last = ssd_reference(*(one.double() for one in sequence), cumulative([300]))
    for ours, theirs in ((y, exact), (last, exact_last)):
        assert (ours.double() - theirs).abs().max() < 4e-7 * theirs.abs().max()


def test_decays_that_overflow_a_factor_are_exact():
    inputs, cu = random_inputs([200, 130], 2, FAST), cumulative([200, 130])
    rates = (inputs[1] * inputs[2]).abs()[:64].sum(0)
    assert rates.max() > 5 * module.SEPARABLE
    with torch.no_grad():
        single = [one.float() for one in inputs]
        (y, last), (expected, expected_last) = both(single, cu, Chunks.of([200, 130]))
    assert y.isfinite().all()
    assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert_close(last, expected_last, atol=1e-4, rtol=1e-4)


def test_heads_with_and_without_a_matrix_of_their_own_agree(monkeypatch):
    inputs = random_inputs([150, 70], 2, MIXED)
    results = []
    for limit in (60.0, 120.0, 1e3):
        monkeypatch.setattr(module, "SEPARABLE", limit)
        y, last = ssd(*inputs[:5], Chunks.of([150, 70]), inputs[5])
        results.append((y, last, *torch.autograd.grad(y.square().sum() + last.sum(), inputs)))
    assert_close(results[0], results[1], atol=1e-8, rtol=1e-9)
    assert_close(results[0], results[2], atol=1e-8, rtol=1e-9)


@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_sequence_never_sees_its_batch_mates(sizes, seed):
    *sequence, state = (one.detach().float() for one in random_inputs(sizes, 1, MIXED, seed))
    x, dt, A, B, C = sequence
    y, last = ssd(*sequence, Chunks.of(sizes, alone=100), state)
    for k, (s, e) in enumerate(bounds(cumulative(sizes))):
        alone = Chunks.of([e - s], alone=100)
        own, own_last = ssd(x[s:e], dt[s:e], A, B[s:e], C[s:e], alone, state[k : k + 1])
        assert_close(y[s:e], own, atol=2e-5, rtol=1e-5)
        assert_close(last[k], own_last[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("alone", [1, 100])
def test_not_even_infinity_reaches_a_batch_mate(alone):
    sizes = [70, 10, 65]
    with torch.no_grad():
        inputs = random_inputs(sizes)
        clean, _ = ssd(*inputs[:5], Chunks.of(sizes, alone=alone))
        inputs[0][70:80] = float("inf")
        dirty, _ = ssd(*inputs[:5], Chunks.of(sizes, alone=alone))
    keep = [*range(70), *range(80, 145)]
    assert_close(dirty[keep], clean[keep], atol=1e-12, rtol=0)


@pytest.mark.parametrize("sizes", [[5, 3], [100, 3], [300]])
def test_without_the_last_state_the_rows_are_the_same(sizes):
    inputs, chunks = random_inputs(sizes), Chunks.of(sizes)
    with torch.no_grad():
        y, nothing = ssd(*inputs[:5], chunks, final=False)
        assert nothing is None
        assert_close(y, ssd(*inputs[:5], chunks)[0], atol=1e-12, rtol=0)


def test_a_sequence_in_two_halves_is_the_whole():
    inputs = random_inputs([200])
    with torch.no_grad():
        x, dt, A, B, C, _ = inputs
        whole, last = ssd(x, dt, A, B, C, Chunks.of([200]))
        first = Chunks.of([77])
        second = Chunks.of([123])
        y1, state = ssd(x[:77], dt[:77], A, B[:77], C[:77], first)
        y2, final = ssd(x[77:], dt[77:], A, B[77:], C[77:], second, state)
    assert_close(torch.cat([y1, y2]), whole, atol=1e-10, rtol=0)
    assert_close(final, last, atol=1e-10, rtol=0)


def test_half_precision_runs_in_float32_even_under_autocast():
    inputs, chunks = random_inputs([70], dtype=torch.float32), Chunks.of([70])
    rounded = [one.detach().bfloat16() for one in inputs[:5]]
    expected, _ = ssd(*(one.float() for one in rounded), chunks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = ssd(*rounded, chunks)
    assert_close(ours, expected, atol=0, rtol=0)


def test_the_cuts_of_a_sequence_depend_on_its_length_alone():
    packed = Chunks.of([3, 130, 64, 65], alone=100)
    (long, first), *short = packed.groups
    assert long.tolist() == [1]
    assert [(block.shape, block.tokens) for block in first] == [
        ((2, 64), slice(3, 131)),
        ((1, 2), slice(131, 133)),
    ]
    starts = {
        int(row[0]) for _, blocks in short for block in blocks for row in block.tokens.view(block.shape)
    }
    assert starts == {0, 133, 197, 261}


def test_long_sequences_are_read_where_they_stand():
    assert Chunks.of([300, 256, 1000]).places is None
    assert Chunks.of([300, 255, 1000]).places is not None


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    most=st.integers(1, 300),
    size=st.integers(1, 80),
)
@settings(deadline=None, max_examples=30)
def test_pieces_are_the_batch_in_order_and_depend_on_each_length_alone(sizes, most, size):
    cut = list(pieces(sizes, most, size))
    assert [piece.tokens.start for piece in cut] == [0, *(piece.tokens.stop for piece in cut[:-1])]
    assert cut[-1].tokens.stop == sum(sizes)
    parts, whole = [], []
    for piece in cut:
        lengths = piece.chunks.cu_seqlens.diff().tolist()
        assert piece.tokens.stop - piece.tokens.start == sum(lengths)
        assert len(lengths) == 1 or (piece.begins and piece.ends and sum(lengths) <= most)
        assert piece.ends or lengths[0] % size == 0
        parts += [[one] for one in lengths] if piece.begins else []
        if not piece.begins:
            parts[-1] += lengths
        whole += [piece.ends] * len(lengths)
    assert [sum(part) for part in parts] == sizes
    for length, part in zip(sizes, parts):
        assert part == [p.tokens.stop - p.tokens.start for p in pieces([length], most, size)]


@pytest.mark.slow
def test_a_very_long_sequence_stays_finite_and_small():
    inputs = [one.detach() for one in random_inputs([200_000], step=SLOW, dtype=torch.float32)]
    y, last = ssd(*inputs[:5], Chunks.of([200_000]))
    tail = [one[-2000:] if len(one) == 200_000 else one for one in inputs[:5]]
    assert y.isfinite().all()
    assert last.isfinite().all()
    _, before = ssd(
        *(one[:-2000] if len(one) == 200_000 else one for one in inputs[:5]), Chunks.of([198_000])
    )
    exact, _ = ssd_reference(*(one.double() for one in tail), cumulative([2000]), before.double())
    assert_close(y[-2000:].double(), exact, atol=1e-4, rtol=1e-4)

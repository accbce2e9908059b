"""Parts are the same from wherever a job begins; preparing ahead loses nothing; missing memory is no end."""

import threading
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ribozyme as rz
from ribozyme.engine.parts import Budget, in_batches, is_out_of_memory, prefetch
from ribozyme.errors import ConfigError, DeviceError, InputError, InputWarning

SEQUENCES = ["ACGU"[k % 4] * (3 + 7 * k % 40) + "GAC" for k in range(40)]
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture(scope="module")
def scgpt(fixtures):
    return rz.load(fixtures / "scgpt" / "plain")


def cells(model, n=30, bad=()):
    rng = np.random.default_rng(0)
    genes = list(model.vocabulary.genes)[:20]
    X = rng.poisson(1.0, (n, len(genes))).astype(np.float32)
    X[:, 0] += 1
    X[list(bad)] = -1
    return ad.AnnData(X, obs=pd.DataFrame(index=[f"c{k}" for k in range(n)]), var=pd.DataFrame(index=genes))


def same(a, b):
    assert [(p.start, p.end, list(p.names), list(p.rejected)) for p in a] == [
        (p.start, p.end, list(p.names), list(p.rejected)) for p in b
    ]
    for one, other in zip(a, b):
        assert len(one.rows) == len(other.rows) == len(one.names)
        for row, twin in zip(one.rows, other.rows):
            np.testing.assert_array_equal(row, twin)


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_parts_from_the_end_of_any_part_are_the_same_bits(model, pooling):
    how = {"batch_tokens": 20, "pooling": pooling}
    parts = list(model.parts(SEQUENCES, **how))
    assert len(parts) > 3
    assert [p.end for p in parts[:-1]] == [p.start for p in parts[1:]]
    assert (parts[0].start, parts[-1].end) == (0, len(SEQUENCES))
    for k, part in enumerate(parts):
        same(list(model.parts(SEQUENCES, start=part.start, **how)), parts[k:])


def test_parts_of_cells_too_across_the_chunks_of_the_file(scgpt, monkeypatch):
    monkeypatch.setattr("ribozyme.engine.cell_parts.CHUNK", 7)
    parts = list(scgpt.parts(cells(scgpt), batch_tokens=5))
    assert len(parts) > 8
    assert [p.end for p in parts[:-1]] == [p.start for p in parts[1:]]
    for k, part in enumerate(parts):
        same(list(scgpt.parts(cells(scgpt), start=part.start, batch_tokens=5)), parts[k:])


def test_an_input_beyond_a_part_is_a_part(model):
    parts = list(model.parts(["A" * 90, "C"], batch_tokens=1))
    assert [len(part.names) for part in parts] == [1, 1]


def test_skip_leaves_bad_sequences_out_with_place_and_reason(rnafm):
    longest = rnafm.config.max_letters
    sequences = [
        ("good", "ACGU"),
        ("digit", "AC7U"),
        ("empty", ""),
        ("long", "A" * (longest + 1)),
        ("last", "GG"),
    ]
    [part] = rnafm.parts(sequences, on_error="skip")
    assert list(part.names) == ["good", "last"]
    assert [(r.position, r.name) for r in part.rejected] == [(1, "digit"), (2, "empty"), (3, "long")]
    assert ["'7'" in part.rejected[0].reason, "empty" in part.rejected[1].reason] == [True, True]
    assert "at most" in part.rejected[2].reason
    np.testing.assert_array_equal(np.stack(part.rows), rnafm.embed(["ACGU", "GG"]))
    with pytest.raises(InputError, match="digit"):
        list(rnafm.parts(sequences))
    with pytest.raises(ConfigError, match="on_error 'perhaps'"):
        list(rnafm.parts(sequences, on_error="perhaps"))


def test_only_bad_sequences_are_a_part_without_rows(rnafm):
    [part] = rnafm.parts(["", "7"], on_error="skip")
    assert (part.start, part.end, list(part.rows), len(part.rejected)) == (0, 2, [], 2)


def test_skip_leaves_bad_cells_out(scgpt, monkeypatch):
    monkeypatch.setattr("ribozyme.engine.cell_parts.CHUNK", 8)
    bad = [3, 8, 9, 29, *range(16, 24)]  # one whole chunk
    table = cells(scgpt, bad=bad)
    parts = list(scgpt.parts(table, on_error="skip", batch_tokens=5))
    assert sorted(r.position for p in parts for r in p.rejected) == sorted(bad)
    assert all(p.start <= r.position < p.end for p in parts for r in p.rejected)
    good = np.delete(np.arange(30), bad)
    assert [name for p in parts for name in p.names] == [f"c{k}" for k in good]
    rows = np.concatenate([p.rows for p in parts])
    np.testing.assert_allclose(rows, scgpt.embed(cells(scgpt)[good]), atol=1e-5)
    for k, part in enumerate(parts):
        same(list(scgpt.parts(table, on_error="skip", batch_tokens=5, start=part.start)), parts[k:])
    with pytest.raises(InputError, match="c3"):
        list(scgpt.parts(table))


def test_counts_belong_to_one_part_each(rnafm):
    odd = [("a", "ACZZ" + "A" * 30), ("b", "ACGU" * 8), ("c", "Z" + "A" * 30)]
    parts = list(rnafm.parts(odd, batch_tokens=4))
    assert [sum(p.report.counts.values()) for p in parts] == [2, 0, 1]


# ------------------------------------------------------------------------------------------- prefetch


@given(st.lists(st.integers()), st.integers(1, 4))
def test_prefetch_changes_nothing(items, ahead):
    assert list(prefetch(iter(items), ahead)) == items


def test_prefetch_works_ahead_and_no_further():
    made = []
    ready = prefetch((made.append(k) or k for k in range(10)), ahead=2)
    assert next(ready) == 0
    while len(made) < 3:  # the thread is on its way
        pass
    assert made == [0, 1, 2]
    ready.close()


def test_an_error_in_the_thread_comes_where_its_item_would():
    def items():
        yield 1
        raise InputError("bad")

    ready = prefetch(items(), 3)
    assert next(ready) == 1
    with pytest.raises(InputError, match="bad"):
        next(ready)


def test_closing_ends_the_thread_and_closes_the_source():
    closed = []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    ready = prefetch(items())
    next(ready)
    assert threading.active_count() == before + 1
    ready.close()
    assert threading.active_count() == before
    assert len(closed) == 1


# -------------------------------------------------------------------------------------- out of memory


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (NO_MEMORY, True),
        (RuntimeError("not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("memory"), False),
    ],
)
def test_memory_that_is_missing_is_told_from_other_errors(error, is_it):
    assert is_out_of_memory(error) == is_it


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(30, 100))
def test_batches_are_halved_until_they_fit_and_each_input_comes_once(lengths, room):
    def compute(group):
        if sum(lengths[k] for k in group) > room:
            raise NO_MEMORY
        return len(group)

    budget = Budget(1000)
    done = list(in_batches(lengths, budget, compute))
    assert sorted(k for group, _ in done for k in group) == list(range(len(lengths)))
    assert (budget.tokens < 1000) == (budget.halved > 0) == (sum(lengths) > room)


def test_one_input_that_does_not_fit_is_an_error():
    def compute(group):
        raise MemoryError

    with pytest.raises(DeviceError, match="one input of 70 tokens"):
        list(in_batches([20, 70, 3], Budget(64), compute))


def test_other_errors_go_through():
    def compute(group):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([20, 70], Budget(64), compute))


def test_a_model_short_of_memory_gives_the_same_and_says_so(model, monkeypatch):
    expected = model.embed(SEQUENCES)
    encode = model.module.encode
    monkeypatch.setattr(
        model.module, "encode", lambda batch, **how: _if_small(batch, lambda: encode(batch, **how))
    )
    with pytest.warns(InputWarning, match="1 time memory did not suffice .* batches of 1"):
        got = model.embed(SEQUENCES, batch_tokens=250, strict=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def _if_small(batch, run):
    if len(batch.ids) > 130:
        raise NO_MEMORY
    return run()


def test_cells_short_of_memory_too(scgpt, monkeypatch):
    expected = scgpt.embed(cells(scgpt))
    encode = scgpt.module.encode
    monkeypatch.setattr(
        scgpt.module, "encode", lambda batch, **how: _if_small(batch, lambda: encode(batch, **how))
    )
    with pytest.warns(InputWarning, match="memory did not suffice"):
        got = scgpt.embed(cells(scgpt), batch_tokens=250)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scgpt.embed(cells(scgpt), batch_tokens=100)

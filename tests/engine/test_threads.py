"""Several threads compute batches side by side: the same bits, in order, and nothing of it stays behind."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import ribozyme as rz
from ribozyme.engine.parts import Part, Prepared, budgeted, computed, in_batches
from ribozyme.engine.threads import batch_threads
from ribozyme.errors import InputError, InputWarning

CPU = torch.device("cpu")
SEQUENCES = ["ACGU"[k % 4] * (3 + 7 * k % 40) + "GAC" for k in range(40)]
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture
def threads():
    """Sets how many threads torch has, in this test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scgpt(fixtures):
    return rz.load(fixtures / "scgpt" / "plain")


def cells(model, n=30):
    rng = np.random.default_rng(0)
    genes = list(model.vocabulary.genes)[:20]
    X = rng.poisson(1.0, (n, len(genes))).astype(np.float32)
    X[:, 0] += 1
    return ad.AnnData(X, var=pd.DataFrame(index=genes))


def of_new_threads():
    """How many threads torch takes in a thread that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.parametrize(("count", "batches", "each"), [(2, 2, 1), (5, 5, 1), (8, 8, 1), (20, 8, 2)])
def test_the_threads_of_torch_are_shared_and_nobody_else_has_fewer(threads, count, batches, each):
    threads(count)
    several = batch_threads(CPU)
    barrier = threading.Barrier(batches)  # which only so many at once can pass

    def look(_):
        barrier.wait(timeout=30)
        return threading.current_thread().name, torch.get_num_threads()

    with closing(several):
        found = set(several.map(look, range(batches), [1] * batches))
        assert torch.get_num_threads() == of_new_threads() == count
    assert len(found) == batches
    assert {number for _, number in found} == {each}
    assert torch.get_num_threads() == of_new_threads() == count


@pytest.mark.parametrize(
    ("costs", "side_by_side"),
    [([5], False), ([5, 5, 5], False), ([5] * 4, True), ([5] * 9, True), ([9, 1, 1, 1, 1], False)],
)
def test_batches_that_would_be_waited_for_have_all_threads_one_after_the_other(threads, costs, side_by_side):
    threads(5)
    with closing(batch_threads(CPU)) as several:
        names = set(several.map(lambda _: threading.current_thread().name, costs, costs))
    assert (threading.current_thread().name not in names) == side_by_side


def test_one_thread_or_a_gpu_needs_none(threads):
    assert batch_threads(CPU) is None
    threads(4)
    assert batch_threads(torch.device("cuda")) is None


@pytest.mark.parametrize("question", ["mean", "none", "logits", "score"])
def test_sequences_get_the_same_with_any_number_of_threads_and_the_same_bits_again(model, threads, question):
    def answers():
        if question in ("mean", "none"):
            return model.embed(SEQUENCES, pooling=question, batch_tokens=20)
        return getattr(model, question)(SEQUENCES)

    alone = answers()
    for count in (2, 5):
        threads(count)
        for one, other, again in zip(alone, answers(), answers(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
            np.testing.assert_array_equal(other, again)


@pytest.mark.parametrize("output", ["cells", "genes"])
def test_cells_get_the_same_with_several_threads_and_the_same_bits_again(scgpt, threads, output):
    alone = scgpt.embed(cells(scgpt), batch_tokens=20, output=output)
    threads(3)
    several, again = (scgpt.embed(cells(scgpt), batch_tokens=20, output=output) for _ in range(2))
    np.testing.assert_allclose(alone, several, atol=1e-6)
    np.testing.assert_array_equal(several, again)


class Slow:
    """A model whose batches are numbers; `seen` those that were computed."""

    device = CPU

    def __init__(self, compute=lambda number: number):
        self.seen, self._compute = [], compute

    def compute(self, prepared, how, budget):
        def one(group):
            self.seen.append(number := prepared.inputs[group[0]])
            return self._compute(number)

        rows = [result for _, result in in_batches([1] * len(prepared.inputs), budget, one)]
        return Part(prepared.start, prepared.end, prepared.names, rows)


class How:
    batch_tokens = 1


def parts(count, batches=4):
    for k in range(count):
        yield Prepared(k, k + 1, ["x"], list(range(k * batches, (k + 1) * batches)))


def note(several, starts):
    for part in several:
        starts.append(part.start)


def test_parts_come_in_order_and_two_are_in_hand(threads):
    threads(4)
    begun = threading.Event()

    def compute(number):
        if number == 4:
            begun.set()
        assert number > 0 or begun.wait(timeout=30)  # the first part ends when the second one has begun
        return number

    found = list(computed(Slow(compute), How, parts(5)))
    assert [part.start for part in found] == list(range(5))
    assert [row for part in found for row in part.rows] == list(range(20))


def test_an_error_in_what_comes_loses_no_part(threads):
    def broken():
        yield from parts(3)
        raise InputError("a bad record")

    threads(2)
    found = []
    with pytest.raises(InputError, match="a bad record"):
        note(computed(Slow(), How, broken()), found)
    assert found == [0, 1, 2]


def test_an_error_in_a_batch_comes_in_its_place(threads):
    def compute(number):
        if number == 9:
            raise ValueError("number nine")
        return number

    threads(3)
    found = []
    with pytest.raises(ValueError, match="number nine"):
        note(computed(Slow(compute), How, parts(5)), found)
    assert found == [0, 1]


def test_who_stops_does_not_wait_for_what_has_not_begun(threads, monkeypatch):
    threads(2)
    gate, first, shut = threading.Event(), threading.Event(), ThreadPoolExecutor.shutdown

    class Later(Slow):
        def compute(self, one, how, budget):
            assert one.start == 0 or first.wait(timeout=30)
            part = super().compute(one, how, budget)
            first.set()
            return part

    def compute(number):
        assert number < 4 or gate.wait(timeout=30)
        return number

    def shutdown(self, wait=True, **how):
        shut(self, wait=False, **how)  # what is to be dropped is dropped before the others go on
        gate.set()
        shut(self, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    model = Later(compute)
    running = computed(model, How, parts(3, batches=4))
    assert next(running).rows == [0, 1, 2, 3]
    while len(model.seen) < 6:
        time.sleep(0.01)
    running.close()
    assert set(model.seen) <= {0, 1, 2, 3, 4, 5}  # two threads had begun a batch each, and no other began


def test_memory_that_is_missing_halves_the_batches_of_all(threads):
    def compute(group):
        if len(group) > 3:
            raise NO_MEMORY
        return group

    threads(4)
    with budgeted(16, CPU) as budget:
        done = list(in_batches([1] * 50, budget, compute))
    assert sorted(k for group, _ in done for k in group) == list(range(50))
    assert all(group == result for group, result in done)
    assert (budget.tokens, budget.halved) == (2, 3)


def test_a_model_short_of_memory_gives_the_same(model, threads, monkeypatch):
    expected = model.embed(SEQUENCES)
    encode = model.module.encode

    def small(batch, **how):
        if len(batch.ids) > 130:
            raise NO_MEMORY
        return encode(batch, **how)

    monkeypatch.setattr(model.module, "encode", small)
    threads(3)
    with pytest.warns(InputWarning, match="memory did not suffice .* batches of 1"):
        got = model.embed(SEQUENCES, batch_tokens=250)
    np.testing.assert_allclose(got, expected, atol=1e-5)

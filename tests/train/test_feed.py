"""The order of examples: a function of the seed, each once an epoch, divided without overlap."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.feed import Feed, InMemory, ahead, cut, deal

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def feed_of(sizes, **settings):
    """Examples are pairs of number and size."""
    return Feed(corpus=InMemory(list(enumerate(sizes))), **settings)


def size_of(example):
    return example[1]


def epoch_of(feed, epoch=0):
    steps = feed.steps(size_of)
    taken = []
    for step in steps:
        if step.after.epoch > epoch:
            return taken
        if step.after.epoch == epoch:
            taken.append(step)


@given(
    sizes=SIZES,
    size=st.integers(1, 60),
    buffer=st.integers(1, 50),
    window=st.integers(1, 4),
    unit=st.sampled_from(["tokens", "examples"]),
)
@example(sizes=[1, 1, 6], size=5, buffer=3, window=1, unit="tokens")
def test_every_example_comes_once_an_epoch_in_steps_of_the_size_asked_for(sizes, size, buffer, window, unit):
    feed = feed_of(sizes, size=size, unit=unit, buffer=buffer, sorted_steps=window, seed=3)
    for epoch in (0, 1):
        steps = epoch_of(feed, epoch)
        seen = [number for step in steps for number, _ in step.examples]
        assert sorted(seen) == list(range(len(sizes)))
        for step in steps:
            assert step.lengths == [one for _, one in step.examples]
            total = len(step.examples) if unit == "examples" else sum(step.lengths)
            # a larger example is a step alone, and the last step may be joined by less than half a step
            assert total <= (size if unit == "examples" else max(size, *step.lengths) + size / 2)
        keys = np.concatenate([step.keys for step in steps])
        assert len(set(keys.tolist())) == len(keys)


@given(sizes=SIZES, buffer=st.integers(1, 20), window=st.integers(1, 3), stop=st.integers(0, 30))
def test_from_any_place_the_steps_go_on_as_if_nothing_had_been(sizes, buffer, window, stop):
    feed = feed_of(sizes, size=20, buffer=buffer, sorted_steps=window, seed=1)
    whole = list(islice(feed.steps(size_of), stop + 8))
    place = whole[stop - 1].after if stop else None
    for a, b in zip(whole[stop:], islice(feed.steps(size_of, place), 8), strict=True):
        assert (a.examples, a.after) == (b.examples, b.after)
        np.testing.assert_array_equal(a.keys, b.keys)


def test_epochs_and_seeds_differ_in_order_and_keys():
    feed = feed_of([5] * 40, size=20, seed=0)
    first, second = epoch_of(feed, 0), epoch_of(feed, 1)
    other = epoch_of(feed_of([5] * 40, size=20, seed=1), 0)
    for one in (second, other):
        assert [s.examples for s in one] != [s.examples for s in first]
        assert not {k for s in one for k in s.keys.tolist()} & {k for s in first for k in s.keys.tolist()}


def test_sorted_steps_have_like_lengths_in_random_order():
    sizes = np.random.default_rng(0).integers(1, 200, 400).tolist()

    def spread(window):
        steps = epoch_of(feed_of(sizes, size=2000, sorted_steps=window, seed=0))
        means = [np.mean(step.lengths) for step in steps]
        return np.mean([np.std(step.lengths) for step in steps]), means

    mixed, _ = spread(1)
    alike, means = spread(8)
    assert alike < 0.5 * mixed
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_a_small_rest_of_tokens_joins_the_step_before():
    [group] = [g for g in [cut(np.full(4, 10), 30, np.random.default_rng(0))] if g]
    assert [len(g) for g in group] == [3, 1]
    steps = epoch_of(feed_of([10] * 4, size=30))
    assert [len(step.examples) for step in steps] == [4]
    steps = epoch_of(feed_of([10] * 5, size=30))
    assert [len(step.examples) for step in steps] == [3, 2]


@given(loads=st.lists(st.integers(1, 100), max_size=30), workers=st.integers(1, 5))
def test_workers_share_all_work_without_overlap_and_about_evenly(loads, workers):
    shares = deal(loads, workers)
    assert len(shares) == workers
    assert sorted(k for share in shares for k in share) == list(range(len(loads)))
    sums = [sum(loads[k] for k in share) for share in shares]
    assert max(sums) - min(sums) <= max(loads, default=0)


def test_rows_without_an_example_are_passed_over_but_counted():
    corpus = InMemory([None, (1, 5), None, (3, 5), None])
    [step] = epoch_of(Feed(corpus=corpus, size=100))
    assert sorted(step.examples) == [(1, 5), (3, 5)]


def test_reading_is_never_further_ahead_than_the_buffer():
    read = []

    class Endless:
        where = "a stream"

        def read(self, generator, skip=0):
            for k in range(skip, 10**9):
                read.append(k)
                yield k, 10

    steps = Feed(corpus=Endless(), size=100, buffer=50).steps(size_of)
    for _ in range(12):
        next(steps)
    assert len(read) == 150


def test_an_empty_corpus_is_an_error():
    with pytest.raises(InputError, match="nothing to train on"):
        next(feed_of([], size=5).steps(size_of))
    with pytest.raises(InputError, match="nothing to train on"):
        next(Feed(corpus=InMemory([None]), size=5).steps(size_of))
    with pytest.raises(ConfigError, match="must be positive"):
        feed_of([1], size=0)


def test_one_item_is_made_ahead_and_errors_come_in_their_turn():
    def items():
        yield 1
        yield 2
        raise InputError("damaged")

    taken = []
    with pytest.raises(InputError, match="damaged"):  # noqa: PT012
        for one in ahead(items()):
            taken.append(one)
    assert taken == [1, 2]

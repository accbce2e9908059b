import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.splits import clusters, folds, split

few = settings(max_examples=40, deadline=None)


def random_rna(generator, length):
    return "".join(generator.choice(list("ACGU"), length))


def mutated(sequence, rate, generator):
    return "".join(generator.choice(list("ACGU")) if generator.random() < rate else x for x in sequence)


@few
@given(st.integers(12, 80), st.integers(0, 99), st.booleans(), st.booleans())
def test_every_example_is_in_one_part(n, seed, by_class, by_group):
    generator = np.random.default_rng(seed)
    stratify = generator.integers(0, 2, n) if by_class else None
    groups = np.arange(n) // 2 if by_group else None
    parts = split(n, validation=0.25, test=0.25, stratify=stratify, groups=groups, seed=seed)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together) == list(range(n))
    assert abs(len(parts.test) - n / 4) <= 2
    again = split(n, validation=0.25, test=0.25, stratify=stratify, groups=groups, seed=seed)
    assert np.array_equal(parts.test, again.test)


@few
@given(st.lists(st.integers(0, 8), min_size=20, max_size=60), st.integers(0, 99))
def test_a_group_is_never_cut(groups, seed):
    if len(set(groups)) < 4:
        return
    parts = split(len(groups), validation=0.2, test=0.2, groups=groups, seed=seed)
    of = [{groups[k] for k in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, of)) == len(set(groups))


@few
@given(st.integers(0, 99))
def test_each_part_has_its_share_of_each_class(seed):
    classes = np.repeat(["common", "rare"], [80, 20])
    parts = split(100, validation=0.2, test=0.2, stratify=classes, seed=seed)
    for part in (parts.validation, parts.test):
        assert sum(classes[part] == "rare") == 4
        assert len(part) == 20


def test_another_seed_is_another_split():
    assert not np.array_equal(split(50, seed=0).validation, split(50, seed=1).validation)


@few
@given(st.integers(10, 60), st.integers(2, 5), st.integers(0, 99), st.booleans())
def test_folds_test_every_example_once(n, k, seed, grouped):
    groups = np.arange(n) // 2 if grouped else None
    if grouped and (n + 1) // 2 < k:
        return
    seen = []
    for train, test in folds(n, k, groups=groups, seed=seed):
        assert sorted([*train, *test]) == list(range(n))
        assert len(test)
        if grouped:
            assert not {*(train // 2)} & {*(test // 2)}
        seen += test.tolist()
    assert sorted(seen) == list(range(n))


def test_folds_of_classes_have_all_of_them():
    classes = np.array(["a"] * 50 + ["b"] * 10)
    for _, test in folds(60, 5, stratify=classes):
        assert [sum(classes[test] == c) for c in "ab"] == [10, 2]


@few
@given(st.integers(0, 999), st.floats(0.0, 0.06))
def test_near_copies_never_leak(seed, rate):
    """Families of copies with up to 6 % of their letters redrawn are never on both sides."""
    generator = np.random.default_rng(seed)
    family = np.arange(40) // 4
    founders = [random_rna(generator, int(generator.integers(120, 200))) for _ in range(10)]
    sequences = [mutated(founders[f], rate, generator) for f in family]
    found = clusters(sequences)
    for one in range(10):
        assert len({*found[family == one]}) == 1
    assert len({*found}) == 10  # and strangers are not put together
    parts = split(40, validation=0.3, groups=found, seed=seed)
    assert not {*family[parts.train]} & {*family[parts.validation]}


def test_a_piece_of_a_sequence_belongs_to_it():
    generator = np.random.default_rng(0)
    whole, other = random_rna(generator, 200), random_rna(generator, 200)
    assert clusters([whole, other, whole[50:110]]).tolist() == [0, 1, 0]


def test_kinship_goes_through_others():
    """A and C share nothing directly; B is half of each."""
    generator = np.random.default_rng(0)
    a, c = random_rna(generator, 100), random_rna(generator, 100)
    assert clusters([a, c]).tolist() == [0, 1]
    assert len({*clusters([a, a[50:] + c[:50], c])}) == 1


def test_equal_sequences_are_together_whatever_their_letters_and_length():
    found = clusters(["ACGU", "acgt", "GG", "ACGTNNNN", "ACGUNNNN"])
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4]


def test_a_tag_that_all_share_makes_no_kin():
    generator = np.random.default_rng(0)
    tag = random_rna(generator, 60)
    sequences = [random_rna(generator, 60) + tag for _ in range(200)]
    assert len({*clusters(sequences)}) == 200
    copies = [*sequences, mutated(sequences[0][:60], 0.02, generator) + tag]
    assert clusters(copies)[-1] == clusters(copies)[0]


def test_the_share_of_kmers_is_the_one_said():
    """One substitution in the middle of 31 letters breaks 11 of 21 11-mers: 10 / 21 = 0.476."""
    generator = np.random.default_rng(0)
    one = random_rna(generator, 31)
    other = one[:15] + ("A" if one[15] != "A" else "C") + one[16:]
    assert len({*clusters([one, other], identity=0.476 ** (1 / 11) - 1e-3)}) == 1
    assert len({*clusters([one, other], identity=0.477 ** (1 / 11) + 1e-3)}) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: split(3, validation=0.1, test=0.9), ConfigError, "leave nothing to train on"),
        (lambda: split(0), InputError, "no examples"),
        (lambda: split(10, groups=[1] * 10), InputError, "1 groups are too few"),
        (lambda: split(10, groups=[1] * 9), InputError, "9 groups for 10 examples"),
        (lambda: split(3, groups=[1, None, 2]), InputError, "1 groups are missing"),
        (lambda: list(folds(3, 5)), InputError, "3 examples do not make 5 folds"),
        (lambda: clusters(["ACGU"], identity=0), ConfigError, "identity 0"),
    ],
)
def test_what_cannot_be_split_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.data
def test_real_groups_are_found_again(data_folder):
    """5'UTR variants: the wild type and its variants, grouped by name in the source, are one cluster each."""
    import pandas as pd

    table = pd.read_parquet(data_folder / "mrna" / "utr5_mrl_human.parquet").head(400)
    found = clusters(table["sequence"])
    cut = pd.Series(found).groupby(table["group"].to_numpy()).nunique()
    assert (cut == 1).mean() > 0.9

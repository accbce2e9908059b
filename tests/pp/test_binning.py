from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import ribozyme as rz
from ribozyme.errors import ConfigError, InputError
from ribozyme.pp.binning import bin_rows, binning
from ribozyme.pp.window import content_keys, draws, in_window

FIXTURE = Path(__file__).parents[1] / "fixtures" / "binning" / "bins.npz"


def one_cell(values, u=0.5, n_bins=51):
    """The published formula, a cell at a time."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.ceil(left - u * (left - right)).astype(np.int64)


def end_to_end(rows):
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def expected_rows():
    """Cell, the published bins, and the draws that the published code took."""
    with np.load(FIXTURE) as file:
        cuts = file["indptr"][1:-1]
        cells = np.split(file["values"], cuts)
        types = [np.float64 if double else np.float32 for double in file["double"]]
        cells = [cell.astype(kind) for cell, kind in zip(cells, types)]
        return list(zip(cells, np.split(file["bins"], cuts), np.split(file["u"], cuts)))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_bins_equal_those_of_the_published_code(kind):
    rows = [row for row in expected_rows() if row[0].dtype == kind]
    values, u = np.concatenate([r[0] for r in rows]), np.concatenate([r[2] for r in rows])
    indptr = end_to_end([r[0] for r in rows])
    np.testing.assert_array_equal(bin_rows(values, indptr, u=u), np.concatenate([r[1] for r in rows]))


def test_untied_cells_have_one_bin_a_value_whatever_the_rule_for_ties():
    rows = [row for row in expected_rows() if len(np.unique(row[0])) == len(row[0]) > 1]
    assert len(rows) >= 20
    for cell, bins, _ in rows:
        np.testing.assert_array_equal(bin_rows(cell, np.array([0, len(cell)])), bins)


CELL = st.one_of(
    st.lists(st.integers(1, 9), min_size=0, max_size=120),
    st.lists(st.integers(1, 2**26), min_size=0, max_size=40),  # too wide to be counted
    st.lists(st.floats(2**-10, 2**10, width=32), min_size=0, max_size=60),
)


@given(
    rows=st.lists(CELL, min_size=1, max_size=6),
    n_bins=st.sampled_from([3, 4, 11, 51]),
    kind=st.sampled_from([np.float32, np.float64, np.int64]),
    seed=st.none() | st.integers(0, 99),
)
def test_all_cells_at_once_equal_one_cell_at_a_time(rows, n_bins, kind, seed):
    rows = [
        np.ceil(np.array(row)).astype(kind) if kind == np.int64 else np.array(row, dtype=kind) for row in rows
    ]
    indptr, values = end_to_end(rows), np.concatenate(rows)
    u = 0.5 if seed is None else np.random.default_rng(seed).random(len(values))
    parts = [u] * len(rows) if seed is None else np.split(u, indptr[1:-1])
    expected = [one_cell(row, part, n_bins) for row, part in zip(rows, parts) if len(row)]
    got = bin_rows(values, indptr, n_bins=n_bins, u=u)
    np.testing.assert_array_equal(got, np.concatenate([np.empty(0, int), *expected]))
    assert ((got >= 1) & (got < n_bins)).all()


@given(cell=st.lists(st.integers(1, 30), min_size=1, max_size=80), scale=st.floats(0.01, 100))
def test_normalising_and_logging_leaves_the_order_of_bins(cell, scale):
    counts = np.array(cell, dtype=np.float64)
    raw = bin_rows(counts, np.array([0, len(cell)]))
    logged = bin_rows(np.log1p(counts * scale), np.array([0, len(cell)]))
    order = np.argsort(counts, kind="stable")
    assert (np.diff(raw[order]) >= 0).all()
    assert (np.diff(logged[order]) >= 0).all()
    for value in set(cell):
        assert len(set(logged[counts == value])) == 1


def test_ties_share_the_middle_of_their_bins():
    np.testing.assert_array_equal(bin_rows(np.full(60, 3.0), np.array([0, 60])), 25)
    np.testing.assert_array_equal(bin_rows(np.array([7.0]), np.array([0, 1])), 25)


MATRIX = np.array([[0, 3, 1, 0], [0, 0, 0, 0], [2, 2, 5, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    "wrap",
    [np.array, np.asfortranarray, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array],
)
def test_any_matrix_is_binned_and_left_as_it_was(wrap):
    X = wrap(MATRIX)
    out = binning(X)
    np.testing.assert_array_equal(out.toarray(), [[0, 50, 1, 0], [0, 0, 0, 0], [*one_cell(MATRIX[2])]])
    assert out.dtype == np.float32
    np.testing.assert_array_equal(X if isinstance(X, np.ndarray) else X.toarray(), MATRIX)


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float64, bool])
def test_any_number_type_is_binned(kind):
    counts = MATRIX.astype(kind)
    expected = binning(counts.astype(np.float64)).toarray()
    np.testing.assert_array_equal(binning(counts).toarray(), expected)


def test_stored_zeros_and_repeated_entries_are_what_they_mean():
    X = sparse.csr_matrix((np.array([1.0, 0, 2, 1]), np.array([0, 1, 2, 2]), np.array([0, 4])), shape=(1, 3))
    np.testing.assert_array_equal(binning(X).toarray(), [[1, 0, 50]])
    assert X.nnz == 4


def test_random_ties_repeat_with_their_generator():
    X = np.ones((3, 200))
    one, two, other = (binning(X, ties="random", rng=np.random.default_rng(s)).toarray() for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert one.min() == 1
    assert one.max() == 50


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_value_that_is_no_expression_is_an_error_that_names_the_cell(bad):
    X = MATRIX.copy()
    X[2, 0] = bad
    with pytest.raises(InputError, match=f"cell row 2 has the value {bad}"):
        binning(X)


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(ConfigError, match="needs rng"):
        binning(MATRIX, ties="random")
    with pytest.raises(ConfigError, match="'first' does not exist"):
        binning(MATRIX, ties="first")
    with pytest.raises(ConfigError, match="n_bins 2"):
        binning(MATRIX, n_bins=2)


def test_binning_is_public():
    assert rz.pp.binning is binning


# ------------------------------------------------------------------------------------- the window


def cells_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.concatenate([rng.permutation(500)[:size] for size in sizes])
    values = (rng.poisson(1, len(ids)) + 1).astype(np.float32)
    return ids, values, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    genes=st.integers(1, 45),
    select=st.sampled_from(["sample", "top"]),
    seed=st.integers(0, 9),
)
def test_a_cell_keeps_the_same_genes_alone_and_in_any_batch(sizes, genes, select, seed):
    ids, values, indptr = cells_of(sizes, seed)
    keep = in_window(ids, values, indptr, content_keys(ids, values, indptr, seed), genes=genes, select=select)
    kept = np.add.reduceat(np.append(keep, False), indptr[:-1]) * (np.diff(indptr) > 0)
    np.testing.assert_array_equal(kept, np.minimum(sizes, genes))
    for start, end in pairwise(indptr):
        one, alone = slice(start, end), np.array([0, end - start])
        key = content_keys(ids[one], values[one], alone, seed)
        again = in_window(ids[one], values[one], alone, key, genes=genes, select=select)
        np.testing.assert_array_equal(again, keep[one])
        turned = in_window(ids[one][::-1], values[one][::-1], alone, key, genes=genes, select=select)
        np.testing.assert_array_equal(turned[::-1], keep[one])


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    genes=st.integers(1, 45),
    select=st.sampled_from(["sample", "top"]),
    seed=st.integers(0, 9),
)
def test_the_window_is_what_a_sort_would_choose(sizes, genes, select, seed):
    ids, values, indptr = cells_of(sizes, seed)
    keys = content_keys(ids, values, indptr, seed)
    keep = in_window(ids, values, indptr, keys, genes=genes, select=select)
    lots = draws(keys, ids, indptr, stream=1)
    for start, end in pairwise(indptr):
        order = np.lexsort((lots[start:end], -values[start:end] if select == "top" else lots[start:end]))
        np.testing.assert_array_equal(np.flatnonzero(keep[start:end]), np.sort(order[:genes]))


def test_top_keeps_the_largest_values():
    ids, values, indptr = cells_of([300, 20])
    keep = in_window(ids, values, indptr, content_keys(ids, values, indptr), genes=50, select="top")
    cell, kept = values[:300], keep[:300]
    assert cell[kept].min() >= cell[~kept].max()
    assert keep[300:].all()


def test_the_sample_follows_the_seed_and_the_content():
    ids, values, indptr = cells_of([300])

    def sample(values, seed):
        keys = content_keys(ids, values, indptr, seed)
        return in_window(ids, values, indptr, keys, genes=100)

    first = sample(values, 0)
    np.testing.assert_array_equal(first, sample(values.astype(np.float64), 0))
    assert (first != sample(values, 1)).any()
    assert (first != sample(values + 1, 0)).any()


def test_every_gene_has_the_same_chance():
    n, size, room = 4_000, 20, 5
    ids = np.tile(np.arange(size), n)
    values = np.repeat(np.arange(1, n + 1), size).astype(np.float64)
    indptr = np.arange(n + 1) * size
    keep = in_window(ids, values, indptr, content_keys(ids, values, indptr), genes=room)
    share = keep.reshape(n, size).mean(0)
    assert abs(share - room / size).max() < 5 * np.sqrt(0.25 * 0.75 / n)  # 5 standard errors


def test_draws_are_uniform_and_two_streams_differ():
    ids, values, indptr = cells_of([400] * 20)
    keys = content_keys(ids, values, indptr)
    u, v = draws(keys, ids, indptr, stream=0), draws(keys, ids, indptr, stream=1)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.05


def test_an_unknown_selection_is_an_error():
    ids, values, indptr = cells_of([3])
    with pytest.raises(ConfigError, match="'best' does not exist"):
        in_window(ids, values, indptr, content_keys(ids, values, indptr), genes=2, select="best")

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ribozyme.errors import InputError
from ribozyme.pp import tokens as module
from ribozyme.pp.binning import bin_rows
from ribozyme.pp.genes import GeneMatch
from ribozyme.pp.tokens import Reading, tokenise
from ribozyme.pp.window import content_keys, draws, in_window
from ribozyme.report import Report

NAMES = np.array([f"c{k}" for k in range(9)], dtype=object)


def matching(ids):
    ids = np.array(ids, dtype=np.int64)
    return GeneMatch(ids, tuple(map(str, ids)), ("symbol",) * len(ids))


def one_cell(row, match, reading):
    """Step by step, as written: columns of a gene added up, bins, window, `<cls>`."""
    sums = {}
    for i, value in zip(match.ids, row):
        if i >= 0:
            sums[i] = sums.get(i, row.dtype.type(0)) + value
    ids = np.array([i for i, value in sums.items() if value], dtype=np.int64)
    values = np.array([value for value in sums.values() if value], dtype=row.dtype)
    alone = np.array([0, len(ids)])
    keys = content_keys(ids, values, alone, reading.seed)
    u = draws(keys, ids, alone, stream=0) if reading.ties == "random" else 0.5
    bins = bin_rows(values, alone, n_bins=reading.n_bins, u=u)
    keep = in_window(ids, values, alone, keys, genes=reading.max_length - 1, select=reading.select)
    return [reading.cls_id, *ids[keep]], [reading.cls_value, *bins[keep]]


@st.composite
def matrices(draw):
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 14))
    seed, kind = draw(st.integers(0, 999)), draw(st.sampled_from(["f4", "f8", "i4", "u2"]))
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.5, 3, shape))
    return (np.log1p(dense) if kind[0] == "f" and seed % 2 else dense).astype(kind), seed


@given(
    matrix=matrices(),
    genes=st.lists(st.integers(-1, 9), min_size=14, max_size=14),
    length=st.integers(2, 12),
    ties=st.sampled_from(["mid", "random"]),
    select=st.sampled_from(["sample", "top"]),
    block=st.integers(1, 60),
)
def test_all_cells_at_once_equal_one_cell_at_a_time(matrix, genes, length, ties, select, block):
    dense, seed = matrix
    match = matching(genes[: dense.shape[1]])
    reading = Reading(11, 99, -2.0, max_length=length, ties=ties, select=select, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        tokens = tokenise(sparse.csr_matrix(dense), NAMES[: len(dense)], match, reading, Report())
    assert (tokens.ids.dtype, tokens.values.dtype, tokens.indptr.dtype) == (np.int64, np.float32, np.int64)
    assert len(tokens) == len(dense)
    for row, (start, end) in zip(dense, pairwise(tokens.indptr)):
        ids, values = one_cell(row, match, reading)
        assert tokens.ids[start:end].tolist() == ids
        assert tokens.values[start:end].tolist() == values


@given(matrix=matrices(), genes=st.lists(st.integers(-1, 9), min_size=14, max_size=14))
def test_order_repetition_and_zeros_of_a_sparse_matrix_do_not_matter_and_stay(matrix, genes):
    dense, seed = matrix
    rng, tidy = np.random.default_rng(seed), sparse.coo_matrix(dense)
    row, column, data = [np.concatenate([part, part, part]) for part in (tidy.row, tidy.col, tidy.data)]
    data[tidy.nnz :] = 0
    order = rng.permutation(len(data))
    order = order[np.argsort(row[order], kind="stable")]
    indptr = np.searchsorted(row[order], np.arange(len(dense) + 1))
    untidy = sparse.csr_matrix((data[order], column[order], indptr), shape=dense.shape)
    before = untidy.copy()
    match, reading = matching(genes[: dense.shape[1]]), Reading(11, 99, -2.0)
    names = NAMES[: len(dense)]
    got = tokenise(untidy, names, match, reading, Report())
    expected = tokenise(sparse.csr_matrix(dense), names, match, reading, Report())
    for part in ("ids", "values", "indptr"):
        np.testing.assert_array_equal(getattr(got, part), getattr(expected, part))
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(untidy, part), getattr(before, part))


def test_the_first_cell_with_too_many_genes_is_named_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    rows = sparse.csr_matrix(np.array([[1, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [4, 3, 2, 0]]))
    report = Report()
    tokens = tokenise(rows, NAMES[:4], matching(range(4)), Reading(11, 99, -2.0, max_length=3), report)
    assert report.lines() == ["2 cells with more than 2 genes, of which a sample was read (such as in c1)"]
    assert tokens.lengths.tolist() == [2, 3, 1, 3]
    assert tokens.empty.tolist() == [False, False, True, False]


def test_no_cells_have_no_tokens():
    tokens = tokenise(
        sparse.csr_matrix((0, 4)), NAMES[:0], matching(range(4)), Reading(11, 99, -2.0), Report()
    )
    assert len(tokens) == 0
    assert tokens.indptr.tolist() == [0]


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_value_that_is_no_expression_is_an_error_that_names_the_cell(bad):
    rows = sparse.csr_matrix(np.array([[1, 2], [3, bad]]))
    with pytest.raises(InputError, match=f"cell 'c1' has the value {bad}"):
        tokenise(rows, NAMES[:2], matching(range(2)), Reading(11, 99, -2.0), Report())

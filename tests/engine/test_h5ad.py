"""The embeddings of a job inside an .h5ad: shard by shard, in the form in which anndata writes them."""

import tracemalloc
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pytest
from anndata.io import write_elem

from ribozyme.engine import h5ad
from ribozyme.engine.parts import Part
from ribozyme.engine.sink import Sink
from ribozyme.report import Rejected

SHARDS, ROWS, DIM = 40, 200, 256


@pytest.fixture
def model():
    """All that is asked of a model when the output is put together."""
    return SimpleNamespace(
        config=SimpleNamespace(dim=DIM), describe=lambda cells, how, empty: {"cells_empty": empty}
    )


@pytest.fixture
def source(tmp_path):
    cells = ad.AnnData(np.zeros((SHARDS * ROWS, 1), np.float32))
    cells.obsm["X_emb"] = np.zeros((SHARDS * ROWS, 2), np.float32)
    cells.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


def rows_from(start):
    return np.random.default_rng(start).normal(size=(ROWS, DIM)).astype(np.float32)


def test_rows_go_shard_by_shard_to_their_cells(source, model, monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 0)
    output = source.with_name("out.h5ad")
    with Sink(output, {}, ragged=False) as sink:
        for start in range(0, SHARDS * ROWS, ROWS):
            names = [f"c{k}" for k in range(start, start + ROWS)]
            out = [Rejected(start + 3, names.pop(3), "bad")]
            sink.write(Part(start, start + ROWS, names, np.delete(rows_from(start), 3, 0), out))
        sink.flush(wait=True)
        tracemalloc.start()
        h5ad.write(sink, model, str(source), None, "X_emb")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < SHARDS * ROWS * DIM * 4 / 4
    cells = ad.read_h5ad(output)
    expected = np.concatenate([rows_from(start) for start in range(0, SHARDS * ROWS, ROWS)])
    expected[3::ROWS] = np.nan
    np.testing.assert_array_equal(cells.obsm["X_emb"], expected)
    assert cells.uns["X_emb"]["params"]["cells_empty"] == SHARDS


def test_an_array_has_the_marks_that_anndata_gives_it(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_elem(file, "theirs", np.zeros((3, 2), np.float32))
        ours = h5ad._array(file, "ours", (3, 2))
        assert dict(ours.attrs) == dict(file["theirs"].attrs)
        assert (ours.dtype, ours.shape) == (file["theirs"].dtype, (3, 2))

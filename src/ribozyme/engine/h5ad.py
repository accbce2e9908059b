"""The embeddings of a job inside a copy of the .h5ad they are of."""

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata.io import write_elem

from ribozyme.engine.sink import Sink
from ribozyme.files import AtomicFile
from ribozyme.io.cells import read_cells

ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
"""What anndata writes beside an array of numbers."""


def write(sink: Sink, model: Any, source: str, how: Any, key: str) -> None:
    """The input with the embeddings in `obsm[key]`, and how they were made in `uns[key]`.

    Into a copy of an .h5ad they go shard by shard. Other files of cells are in memory as a whole.
    """
    (inputs, _) = sink.gaps()[-1]
    shape = (inputs, model.config.dim)
    with AtomicFile(sink.output) as temporary:
        if source.lower().endswith(".h5ad"):
            shutil.copyfile(source, temporary)
            _reserve(temporary, 4 * inputs * model.config.dim + 2**20)
            with h5py.File(temporary, "r+") as file:
                empty = _fill(_array(file.require_group("obsm"), key, shape), sink)
                params = {"params": model.describe(source, how, empty)}
                write_elem(file.require_group("uns"), key, params)
        else:
            vectors = np.full(shape, np.nan, np.float32)
            empty = _fill(vectors, sink)
            cells = read_cells(source, modality=how.modality)
            cells.obsm[key], cells.uns[key] = vectors, {"params": model.describe(source, how, empty)}
            temporary.write_bytes(_image(cells))


def _array(group: h5py.Group, key: str, shape: tuple[int, int]) -> h5py.Dataset:
    """An array of NaN in place of what was there, for rows to be written into."""
    if key in group:
        del group[key]
    array = group.create_dataset(key, shape, np.float32, fillvalue=np.nan)
    array.attrs.update(ARRAY)
    return array


def _fill(vectors: Any, sink: Sink) -> int:
    """Rows to the places of their cells; how many are NaN, those of cells that were left out among them."""
    known = 0
    for shard, (_, rows, _) in sink.read():
        out = {one.position for one in shard.rejected}
        block = np.full((shard.end - shard.start, rows.shape[1]), np.nan, np.float32)
        block[[k - shard.start for k in range(shard.start, shard.end) if k not in out]] = rows
        vectors[shard.start : shard.end] = block
        known += int((~np.isnan(rows[:, 0])).sum())
    return len(vectors) - known


def _reserve(path: Path, more: int) -> None:
    """Room for a file to grow: a full disk is found here, for the HDF5 library crashes when it finds one."""
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size + more)


def _image(cells: Any) -> bytes:
    """The content of an .h5ad; made in memory for the same reason."""
    with h5py.File("cells", "w", driver="core", backing_store=False) as file:
        write_elem(file, "/", cells, dataset_kwargs={"compression": "gzip"})
        file.flush()
        return file.id.get_file_image()

"""HDF5 files from strangers: looked at before anything in them is read.

HDF5 can point elsewhere (external links, external storage, virtual datasets), so that a file of a few bytes
makes its reader open any file of the machine; it can declare arrays of terabytes; and a sparse matrix with a
wrong index makes most programs read or write memory that is not theirs. `open_hdf5` refuses all of that. The
check of sparse matrices also serves zarr folders, whose groups have the same form.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ribozyme.errors import InputError

MAX_OBJECTS = 100_000
"""Groups and datasets in a file; an ordinary one has a hundred."""
MAX_DEPTH = 32
"""Groups inside one another; an ordinary file has five."""
FREE_BYTES, MAX_RATIO = 2**30, 200
"""Arrays of a file may declare 1 GiB in all, and beyond that 200 times the size of the file. Counts compress
about 5 to 50 times; an array that was declared and never written takes no room at all."""
MAX_CHUNK_BYTES = 2**30
"""One chunk, which is always read whole."""
PIECE = 2**22
"""Indices looked at in one go."""

_COPY = "have its author write it as one whole file: adata.write_h5ad copies everything into it"


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, after a look at everything in it.

    Raises
    ------
    InputError : not HDF5, damaged, or with a part that lies elsewhere, is absurdly large, or a sparse matrix
        whose structure is wrong; names the file and the dataset.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if not h5py.is_hdf5(path):
        raise InputError(
            f"{path}: this is not an HDF5 file", hint="is it compressed, or cut off at its start?"
        )
    with _readable(path):
        file = h5py.File(path, "r")
    with file:
        with _readable(path):
            check_file(file, path)
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what h5py says of a damaged file into one error."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # h5py raises nearly every built-in type
        raise InputError(f"{path}: damaged or cut off ({error})", hint="fetch it again") from error


def check_file(file: h5py.File, path: Path) -> None:
    """Raise an `InputError` for the first thing in an open file that should not be read."""
    declared, sparse = 0, []
    allowed = FREE_BYTES + MAX_RATIO * os.path.getsize(path)
    for name, item in _walk(file, path):
        if isinstance(item, h5py.Dataset):
            _check_dataset(item, name, path)
            declared += int(np.prod(item.shape or (0,), dtype=object)) * item.dtype.itemsize
            if declared > allowed:
                raise InputError(
                    f"{path}: {name}: with it the arrays declare {declared:,} bytes, which a file of "
                    f"{os.path.getsize(path):,} bytes cannot hold",
                    hint=f"at most {MAX_RATIO} times the size of a file is read",
                )
        elif isinstance(item, h5py.Group) and {"data", "indices", "indptr"} <= set(item):
            sparse.append((name, item))
    for name, item in sparse:  # now that every link and dataset was seen, they may be read
        check_sparse(item, path, name)


def _walk(file: h5py.File, path: Path) -> Iterator[tuple[str, Any]]:
    """Every object once, by its name, having refused links that lead out of the file."""
    seen = {h5py.h5o.get_info(file.id).addr}
    stack: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    yield "/", file
    while stack:
        prefix, group, depth = stack.pop()
        for key in group:
            name = f"{prefix}/{key}"
            if _leads_inside(group, key, name, path):
                continue
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MAX_OBJECTS or depth >= MAX_DEPTH:
                raise InputError(
                    f"{path}: {name}: more than {MAX_OBJECTS:,} objects, or {MAX_DEPTH} groups in one another"
                )
            yield name, item
            if isinstance(item, h5py.Group):
                stack.append((name, item, depth + 1))


def _leads_inside(group: h5py.Group, key: str, name: str, path: Path) -> bool:
    """Is this a soft link? It is not followed: where it leads is met by its own name, or does not exist."""
    try:
        link = group.get(key, getlink=True)
    except TypeError as error:  # a kind of link that h5py does not know
        raise InputError(f"{path}: {name}: a link of unknown kind") from error
    if isinstance(link, h5py.ExternalLink):
        raise InputError(
            f"{path}: {name}: points into another file ({link.filename!r}), which is not read", hint=_COPY
        )
    return isinstance(link, h5py.SoftLink)


def _check_dataset(item: h5py.Dataset, name: str, path: Path) -> None:
    if item.is_virtual:
        raise InputError(f"{path}: {name}: a virtual dataset, which shows other files", hint=_COPY)
    if item.external:
        raise InputError(
            f"{path}: {name}: its numbers lie in another file ({item.external[0][0]!r}), which is not read",
            hint=_COPY,
        )
    chunk = int(np.prod(item.chunks or (0,), dtype=object)) * item.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise InputError(f"{path}: {name}: its chunks of {chunk:,} bytes are larger than {MAX_CHUNK_BYTES:,}")


def check_sparse(group: Any, path: Path | str, name: str) -> None:
    """Raise an `InputError` unless a group `data, indices, indptr` is a sound CSR or CSC matrix.

    It must be: `indptr` starts at 0, never falls, ends at the number of entries; every index lies inside.
    """
    where = f"{path}: {name}"
    indptr, indices, data = group["indptr"], group["indices"], group["data"]
    if not all(len(part.shape) == 1 for part in (indptr, indices, data)):
        raise InputError(f"{where}: data, indices and indptr of a sparse matrix have one dimension each")
    if not all(np.dtype(part.dtype).kind in "iu" for part in (indptr, indices)):
        raise InputError(f"{where}: indices and indptr of a sparse matrix are whole numbers")
    shape = _shape(group, where)
    if shape is None:
        return  # three arrays of these names that claim to be no matrix
    major, minor = shape
    check_indptr(indptr[:], major, indices.shape[0], f"{where}/indptr")
    if data.shape[0] != indices.shape[0]:
        raise InputError(f"{where}: {data.shape[0]:,} numbers, but {indices.shape[0]:,} indices")
    for start in range(0, indices.shape[0], PIECE):
        check_indices(indices[start : start + PIECE], minor, f"{where}/indices")


def check_indptr(indptr: Any, major: int, entries: int, where: str) -> None:
    """`indptr` of a matrix of `major` rows (or columns) and `entries` numbers."""
    if len(indptr) != major + 1:
        raise InputError(
            f"{where}: {len(indptr):,} numbers for {major:,} rows, which takes one more than rows"
        )
    if indptr[0] != 0 or indptr[-1] != entries:
        raise InputError(f"{where}: runs from {indptr[0]:,} to {indptr[-1]:,}, not from 0 to {entries:,}")
    if (indptr[1:] < indptr[:-1]).any():
        row = int(np.argmax(indptr[1:] < indptr[:-1]))
        raise InputError(f"{where}: falls after row {row:,}; the file is damaged")


def check_indices(indices: Any, minor: int, where: str) -> None:
    """Every index is from 0 to below `minor`."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < minor):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise InputError(f"{where}: holds {wrong:,}, but the matrix reaches from 0 to {minor - 1:,}")


def _shape(group: Any, where: str) -> tuple[int, int] | None:
    """Length along `indptr`, and across it: from the attributes of anndata, or as 10x Genomics writes it."""
    kind = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "")))
    if "shape" in group.attrs or "h5sparse_shape" in group.attrs:
        shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    elif "shape" in group:
        shape, kind = group["shape"][:2], "csc"  # genes x cells, by cell
    else:
        return None
    numbers = np.asarray(shape)
    if numbers.shape != (2,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise InputError(f"{where}: the shape {shape!r} is not that of a matrix")
    rows, columns = (int(n) for n in numbers)
    return (columns, rows) if kind.startswith("csc") else (rows, columns)

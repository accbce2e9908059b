"""Cells from files and from AnnData, in pieces of rows, so that memory stays flat.

`read_cells` gives a whole AnnData; `open_cells` a `Cells`, whose rows come in chunks straight from the file.
Both look at a file before they read it (`io/hdf5.py`), and neither changes what it is given.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from ribozyme.errors import InputError, MissingExtraError
from ribozyme.io.hdf5 import check_indices, check_indptr, check_sparse, open_hdf5
from ribozyme.io.kinds import CELLS, kind_of_folder
from ribozyme.io.matrices import choose_modality, read_10x, read_loom, read_mtx, read_table
from ribozyme.io.zarr_folder import open_zarr

CHUNK, CHUNK_VALUES = 4_096, 2**26
"""Cells of a chunk at most, and cells times genes; a dense chunk has up to 256 MB in float32."""


@dataclass(frozen=True)
class Cells:
    """Cells as rows that can be had in chunks.

    names : (cells,) from `obs_names`; var : the genes; where : the source, for messages
    rows : start and end to that part of the matrix, dense or sparse
    obs : the name of a column of `obs` to its values (cells,); `InputError` where there is none
    """

    names: npt.NDArray[Any]
    var: pd.DataFrame
    where: str
    rows: Callable[[int, int], Any]
    obs: Callable[[str], npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.names)

    def chunks(self, size: int = CHUNK, start: int = 0) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """(first row, CSR of at most `size` rows), one after the other; all structures are checked.

        Chunks begin at multiples of the size; the first one is that which holds the row `start`.
        """
        size = max(1, min(size, CHUNK_VALUES // max(1, len(self.var))))
        for first in range(start // size * size, len(self), size):
            part = self.rows(first, min(first + size, len(self)))
            yield first, _checked_csr(part, len(self.var), self.where)

    def labels(self, column: str) -> list[str]:
        """The label of each cell in a column of `obs`, as text; a missing one is an `InputError`.

        Whole numbers are the same label whatever their type: a column that lost some values has floats.
        """
        values = self.obs(column)
        labels = [_label(value) for value in values]
        missing = pd.isna(values) | np.array([not label.strip() for label in labels], dtype=bool)
        if missing.any():
            raise InputError(
                f"{self.where}: {int(missing.sum()):,} cells have nothing in {column!r}, the first is "
                f"{str(self.names[np.argmax(missing)])!r}",
                hint="label them, or leave them out",
            )
        return labels

    def codes(self, column: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """(cells,) the place of each cell's label among `names`; another label is an `InputError`."""
        place = {name: k for k, name in enumerate(names)}
        labels = self.labels(column)
        if unknown := [k for k, label in enumerate(labels) if label not in place]:
            raise InputError(
                f"{self.where}: {len(unknown):,} cells have a label in {column!r} that the model was not "
                f"trained with, the first is {str(self.names[unknown[0]])!r} with {labels[unknown[0]]!r}",
                hint=f"it knows {', '.join(names[:20])}",
            )
        return np.array([place[label] for label in labels], dtype=np.int64)


def _label(value: Any) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if whole else value)


@contextmanager
def open_cells(source: Any, *, modality: str | None = None) -> Iterator[Cells]:
    """Cells of an AnnData (in memory, backed, a view), a MuData, or a path; as `read_cells`, but in chunks.

    Of `.h5ad`, `.h5mu` and `.zarr` only the chunk asked for is in memory.
    """
    with ExitStack() as stack:
        if not isinstance(source, (str, os.PathLike)):
            yield _of_object(source, modality)
            return
        path, kind = Path(source), _kind(Path(source))
        if kind in ("h5ad", "h5mu", "zarr"):
            with _noted(path):
                cells = _of_group(_group(path, kind, modality, stack), path)
            yield cells
            return
        yield _of_object(_read(path, kind, modality), None, str(path))


def read_cells(path: str | os.PathLike[str], *, modality: str | None = None) -> Any:
    """Read a file or folder of cells into memory.

    Parameters
    ----------
    path : `.h5ad`, `.zarr`, `.h5mu` (anndata, mudata); `.h5` (10x Genomics, of either version); a folder
        with `matrix.mtx`, or that file, also `.gz`; `.loom`; `.csv`, `.tsv` or `.txt`, also `.gz`, a table of
        cells and genes, either way round: the axis whose names are more often human genes is theirs
    modality : of `.h5mu` its name, of 10x files the feature type (or the genome, in old ones). By default
        RNA, `Gene Expression`, or the only one there is.

    Returns
    -------
    AnnData. Duplicated gene names get a number, as everywhere in scverse; `var` keeps the symbols and ids.

    Raises
    ------
    InputError : the file is damaged, not of a known kind, reaches outside itself, or is absurdly large.
    MissingExtraError : zarr is not installed.
    """
    place, kind = Path(path), _kind(Path(path))
    if kind not in ("h5ad", "h5mu", "zarr"):
        return _read(place, kind, modality)
    from anndata.io import read_elem

    with ExitStack() as stack, _noted(place):
        return read_elem(_group(place, kind, modality, stack))


def _kind(path: Path) -> str:
    """What is at `path`, by its suffix; a folder is zarr or 10x by what is in it."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if path.is_dir():
        if kind := kind_of_folder(path):
            return kind
        raise InputError(f"{path}: neither a zarr folder nor one with matrix.mtx")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in CELLS or suffix == ".zarr":
        raise InputError(
            f"{path}: no cells are read from {suffix!r} files", hint=f"one of {', '.join(CELLS)}"
        )
    return {".tsv": "table", ".csv": "table", ".txt": "table"}.get(suffix, suffix[1:])


@contextmanager
def _noted(path: Path | str) -> Iterator[None]:
    """Whatever a reader says of a file that it cannot read becomes one error with the file's name."""
    try:
        yield
    except (InputError, MissingExtraError, MemoryError):
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be read as cells ({type(error).__name__}: {message})") from error


def _read(path: Path, kind: str, modality: str | None) -> Any:
    reader = {"h5": read_10x, "mtx": read_mtx, "loom": read_loom, "table": read_table}[kind]
    with _noted(path):
        return reader(path, modality)


# ------------------------------------------------------------------------------------- what a chunk is


def _of_object(source: Any, modality: str | None, where: str | None = None) -> Cells:
    if hasattr(source, "mod"):
        source = source.mod[choose_modality(list(source.mod), modality, "the MuData")]
    if not all(hasattr(source, name) for name in ("X", "obs_names", "var")):
        raise InputError(
            f"cells come as AnnData, MuData or a path, not as {type(source).__name__}",
            hint="wrap a matrix: anndata.AnnData(X, var=pandas.DataFrame(index=gene_names))",
        )
    where = where or "adata"
    names = np.asarray(source.obs_names, dtype=object)
    obs = _column_of(lambda name: source.obs, where)
    if source.isbacked and source.is_view:
        return Cells(names, source.var, where, _rows_of(_backed_view(source, where), where), obs)
    if source.is_view:
        return Cells(names, source.var, where, lambda start, end: source[start:end].X, obs)
    X = source.X
    if hasattr(X, "group"):  # sparse, in a file that somebody else opened
        check_sparse(X.group, where, "X")
    return Cells(names, source.var, where, _rows_of(X, where), obs)


def _backed_view(source: Any, where: str) -> Any:
    """The matrix of a view of a file, whole: anndata gives no part of such a view."""
    X = source.file["X"]
    if not hasattr(X, "shape"):
        check_sparse(X, where, "X")
    return source.X


def _of_group(root: Any, path: Path) -> Cells:
    """An AnnData on disk."""
    from anndata.io import read_elem, sparse_dataset

    if "X" not in root:
        raise InputError(f"{path}: there is no X in it, no matrix of cells and genes")
    obs, X = root["obs"], root["X"]
    index = obs.attrs.get("_index", "_index") if hasattr(obs, "attrs") else None
    table = read_elem(root["var"])
    names = read_elem(obs[index]) if index in obs else read_elem(obs).index
    if not hasattr(X, "shape"):
        X = sparse_dataset(X)
    if X.shape != (len(names), len(table)):
        raise InputError(
            f"{path}: X is {X.shape}, but there are {len(names):,} names and {len(table):,} genes"
        )
    where, names = str(path), np.asarray(names, dtype=object)

    def read(name: str) -> Any:
        alone = obs.attrs.get("encoding-version") == "0.2.0" and name in obs.attrs.get("column-order", ())
        return pd.DataFrame({name: read_elem(obs[name])}) if alone else read_elem(obs)

    return Cells(names, table, where, _rows_of(X, where), _column_of(read, where))


def _column_of(read: Callable[[str], Any], where: str) -> Callable[[str], npt.NDArray[Any]]:
    """The name of a column to its values; `read` gives a table with that column, if there is one."""

    def column(name: str) -> npt.NDArray[Any]:
        with _noted(where):
            table = read(name)
            if name not in table.columns:
                known = ", ".join(map(repr, list(table.columns)[:20])) or "no columns"
                raise InputError(f"{where}: obs has no column {name!r}; it has {known}")
            return np.asarray(table[name].astype(object))

    return column


def _rows_of(X: Any, where: str) -> Callable[[int, int], Any]:
    """Start and end to rows of a matrix in memory, or checked on disk; columns-first ones are turned once."""
    if X is None:
        raise InputError(
            f"{where}: X is empty", hint="put the counts in it: adata.X = adata.layers['counts']"
        )
    if hasattr(X, "group") and hasattr(X, "format"):  # sparse, on disk
        X = X if X.format == "csr" else X.to_memory()
    if sparse.issparse(X) and X.format != "csr":
        if X.format == "csc":
            check_compressed(X, where)
        X = X.tocsr()
    elif sparse.issparse(X):
        check_compressed(X, where)
    return lambda start, end: X[start:end]


def check_compressed(X: Any, where: str) -> None:
    """Raise an `InputError` unless a CSR or CSC matrix in memory is sound; wrong ones crash programs."""
    major, minor = X.shape if X.format == "csr" else X.shape[::-1]
    check_indptr(X.indptr, major, len(X.indices), f"{where}: indptr")
    if len(X.data) != len(X.indices):
        raise InputError(f"{where}: {len(X.data):,} numbers, but {len(X.indices):,} indices")
    check_indices(X.indices, minor, f"{where}: indices")


def _checked_csr(part: Any, genes: int, where: str) -> sparse.csr_matrix:
    if hasattr(part, "compute"):  # dask
        part = part.compute()
    if not sparse.issparse(part):
        part = np.asarray(part)
    if part.dtype.kind not in "buif":
        raise InputError(f"{where}: X holds {part.dtype}, not numbers")
    rows = sparse.csr_matrix(part)
    check_compressed(rows, where)
    if rows.shape[1] != genes:
        raise InputError(f"{where}: X has {rows.shape[1]:,} columns for {genes:,} genes")
    return rows


# ---------------------------------------------------------------------------------- anndata and mudata


def _group(path: Path, kind: str, modality: str | None, stack: ExitStack) -> Any:
    """The AnnData in a file or zarr folder, as an open and checked group."""
    root = open_zarr(path) if kind == "zarr" else stack.enter_context(open_hdf5(path))
    if "mod" in root and "X" not in root:
        return root["mod"][choose_modality(list(root["mod"]), modality, path)]
    if modality is not None:
        raise InputError(f"{path}: there is one modality, none is called {modality!r}")
    return root

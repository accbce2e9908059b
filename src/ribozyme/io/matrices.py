"""Cells from files that are read whole: 10x Genomics `.h5`, `matrix.mtx`, `.loom`, tables of text."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from ribozyme.errors import InputError
from ribozyme.io.hdf5 import open_hdf5
from ribozyme.io.kinds import first_file
from ribozyme.io.streams import open_guarded
from ribozyme.pp.genes import known_genes

MAX_ENTRIES = 2**33
"""Non-zero numbers of a `matrix.mtx`; 64 GB of memory."""
MAX_AXIS = 2**31 - 1
"""Cells or genes of a matrix."""
TABLE_VALUES = 4_000_000
"""Values of a table that are looked at together."""
MTX_HEADERS = [
    f"%%MatrixMarket matrix coordinate {kind} general".lower().encode().split()
    for kind in ("integer", "real")
]
RNA = ("rna", "gex", "gene expression", "transcriptome", "expression")
"""What the modality of RNA is called, in lower case."""


def choose_modality(names: list[str], wanted: str | None, where: object) -> str:
    """The modality (feature type, genome) to read."""
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{where}: no modality {wanted!r}", hint=f"one of {', '.join(names)}")
        return wanted
    if len(names) == 1:
        return names[0]
    for name in sorted(names, key=lambda n: RNA.index(n.lower()) if n.lower() in RNA else len(RNA)):
        if name.lower() in RNA:
            return name
    raise InputError(f"{where}: which of {', '.join(names)}?", hint="name it: modality=...")


# --------------------------------------------------------------------------------------- 10x and loom


def _anndata(matrix: Any, cells: Any, names: Any, **columns: Any) -> Any:
    """AnnData with unique names; `columns` go into `var`."""
    from anndata import AnnData
    from anndata.utils import make_index_unique

    obs = pd.DataFrame(index=make_index_unique(pd.Index(_texts(cells), dtype=object)))
    var = pd.DataFrame(
        {k: _texts(v) for k, v in columns.items()},
        index=make_index_unique(pd.Index(_texts(names), dtype=object)),
    )
    return AnnData(matrix, obs=obs, var=var)


def _texts(values: Any) -> list[str]:
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def read_10x(path: Path, modality: str | None) -> Any:
    with open_hdf5(path) as file:
        if "matrix" in file:
            return _read_10x_v3(file["matrix"], path, modality)
        genomes = [name for name in file if "genes" in file[name]]
        if not genomes:
            raise InputError(f"{path}: not a 10x Genomics file: it has neither 'matrix' nor a genome")
        group = file[choose_modality(genomes, modality, path)]
        X = _matrix_10x(group)
        return _anndata(X, group["barcodes"][:], group["gene_names"][:], gene_ids=group["genes"][:])


def _read_10x_v3(group: Any, path: Path, modality: str | None) -> Any:
    features = group["features"]
    kinds = np.array(_texts(features["feature_type"][:]))
    chosen = kinds == choose_modality(list(dict.fromkeys(kinds)), modality, path)
    X = _matrix_10x(group)[:, chosen]
    columns = {"gene_ids": features["id"][:][chosen], "feature_types": kinds[chosen]}
    names = features["name"][:][chosen]
    return _anndata(X, group["barcodes"][:], names, gene_symbols=names, **columns)


def _matrix_10x(group: Any) -> sparse.csr_matrix:
    """(cells, features); the file holds the columns of (features, cells), which are these rows."""
    genes, cells = (int(n) for n in group["shape"][:2])
    parts = (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:])
    return sparse.csr_matrix(parts, shape=(cells, genes))


def read_loom(path: Path, modality: str | None) -> Any:
    with open_hdf5(path) as file:
        for name in ("matrix", "row_attrs", "col_attrs"):
            if name not in file:
                raise InputError(f"{path}: not a loom file, it has no {name!r}")
        matrix = file["matrix"]
        step = max(1, TABLE_VALUES // max(1, matrix.shape[1]))
        parts = [sparse.csr_matrix(matrix[s : s + step]) for s in range(0, matrix.shape[0], step)]
        X = sparse.vstack(parts).T.tocsr().astype(np.float32)
        genes = {k: v[:] for k, v in file["row_attrs"].items() if v.shape == (X.shape[1],)}
        cells = {k: v[:] for k, v in file["col_attrs"].items() if v.shape == (X.shape[0],)}
    names = genes.get("Gene", range(X.shape[1]))
    adata = _anndata(X, cells.pop("CellID", range(X.shape[0])), names, **genes)
    for key, values in cells.items():
        adata.obs[key] = _texts(values) if values.dtype.kind in "OS" else values
    return adata


# ------------------------------------------------------------------------------------ mtx and tables


def _open(path: Path) -> io.BufferedReader:
    """A decompressed stream that stops a bomb, and a line without end."""
    return open_guarded(path, b"\n")


def read_mtx(path: Path, modality: str | None) -> Any:
    from scipy.io import mmread

    folder = path if path.is_dir() else path.parent
    matrix = first_file(folder, "matrix.mtx") if path.is_dir() else path
    features, barcodes = first_file(folder, "features.tsv", "genes.tsv"), first_file(folder, "barcodes.tsv")
    if matrix is None or features is None or barcodes is None:
        raise InputError(f"{folder}: matrix.mtx needs features.tsv (or genes.tsv) and barcodes.tsv beside it")
    _check_mtx_header(matrix)
    with _open(matrix) as stream:
        X = sparse.csr_matrix(mmread(stream).T, dtype=np.float32)
    rows, cells = _lines(features), [line[0] for line in _lines(barcodes)]
    if X.shape != (len(cells), len(rows)):
        raise InputError(
            f"{matrix}: {X.shape[1]:,} x {X.shape[0]:,}, "
            f"but {len(rows):,} features and {len(cells):,} barcodes"
        )
    kinds = np.array([row[2] if len(row) > 2 else "Gene Expression" for row in rows])
    chosen = kinds == choose_modality(list(dict.fromkeys(kinds)), modality, folder)
    some = [row for row, its in zip(rows, chosen) if its]
    names = [row[1] if len(row) > 1 else row[0] for row in some]
    ids = [row[0] for row in some]
    return _anndata(X[:, chosen], cells, names, gene_symbols=names, gene_ids=ids, feature_types=kinds[chosen])


def _check_mtx_header(path: Path) -> None:
    with _open(path) as stream:
        if stream.readline(1_000).lower().split() not in MTX_HEADERS:
            raise InputError(f"{path}: not a sparse Matrix Market file of counts")
        line = stream.readline(100_000)
        while line.startswith(b"%") or line.isspace():
            line = stream.readline(100_000)
    sizes = [int(n) for n in line.split()]
    if len(sizes) != 3 or min(sizes) < 0 or max(sizes[:2]) > MAX_AXIS or sizes[2] > MAX_ENTRIES:
        raise InputError(f"{path}: declares the size {line.decode(errors='replace').strip()!r}")
    if sizes[2] * 4 > 200 * path.stat().st_size:  # a number takes a line
        raise InputError(f"{path}: declares {sizes[2]:,} numbers, which a file of this size cannot hold")


def _lines(path: Path) -> list[list[str]]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as text:
        return [line.rstrip("\r\n").split("\t") for line in text]


def read_table(path: Path, modality: str | None) -> Any:
    """A table of numbers with names on both axes."""
    header, first, delimiter = _table_head(path)
    implicit = len(first) == len(header) + 1  # R writes no name for the column of names
    columns = header if implicit else header[1:]
    if len(columns) != len(set(columns)):
        columns = [str(n) for n in pd.io.common.dedup_names(columns, is_potential_multiindex=False)]
    names: list[str] = []
    parts = []
    with _open(path) as stream:
        chunks = pd.read_csv(
            stream,
            sep=delimiter,
            header=None,
            skiprows=1,
            index_col=0,
            names=["", *columns],
            dtype={0: str},
            chunksize=max(1, TABLE_VALUES // max(1, len(columns))),
        )
        for chunk in chunks:
            names.extend(str(n) for n in chunk.index)
            parts.append(sparse.csr_matrix(_numbers(chunk, path)))
    X = sparse.vstack(parts).tocsr() if parts else sparse.csr_matrix((0, len(columns)), dtype=np.float32)
    if _share(names) > _share(columns):  # genes by cells
        return _anndata(X.T.tocsr(), columns, names)
    return _anndata(X, names, columns)


def _share(names: list[str]) -> float:
    return known_genes(names) / max(1, len(names))


def _numbers(chunk: pd.DataFrame, path: Path) -> npt.NDArray[np.float32]:
    for name, kind in chunk.dtypes.items():
        if kind.kind not in "buif":
            wrong = next(v for v in chunk[name] if isinstance(v, str))
            raise InputError(
                f"{path}: column {name!r} holds {wrong[:40]!r}, which is no number",
                hint="a table of cells has names in its first row and first column, and numbers elsewhere",
            )
    return chunk.to_numpy(dtype=np.float32)


def _table_head(path: Path) -> tuple[list[str], list[str], str]:
    """The first two rows, and what divides them."""
    with _open(path) as stream:
        lines = [stream.readline().decode("utf-8", "replace").rstrip("\r\n") for _ in range(2)]
    delimiter = "," if path.name.removesuffix(".gz").lower().endswith(".csv") else "\t"
    if lines[0].count(delimiter) == 0:
        delimiter = max(",;\t ", key=lines[0].count)
    header, first = (next(csv.reader([line], delimiter=delimiter), []) for line in lines)
    if len(header) < 2 or not first:
        raise InputError(f"{path}: not a table of cells and genes", hint="names in the first row and column")
    if len(first) not in (len(header), len(header) + 1):
        raise InputError(f"{path}: the first row has {len(header):,} fields, the second {len(first):,}")
    return header, first, delimiter

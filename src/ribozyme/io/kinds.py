"""What a file or folder holds, told by names alone: nothing is read."""

from pathlib import Path

CELLS = (".h5ad", ".h5mu", ".h5", ".loom", ".zarr", ".mtx", ".csv", ".tsv", ".txt")
"""Suffixes of files of cells; the last three are tables, which may hold sequences too."""
TABLES = tuple(kind + packed for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz"))
CELLS_ONLY = (".h5ad", ".h5mu", ".h5", ".zarr", ".loom", ".mtx", ".mtx.gz")


def is_only_cells(name: str) -> bool:
    """Does the suffix of a file say that cells are in it, and nothing else?"""
    return name.lower().endswith(CELLS_ONLY)


def is_table(name: str) -> bool:
    """May a file hold cells or sequences, as a table of text?"""
    return name.lower().endswith(TABLES)


def kind_of_folder(folder: Path) -> str | None:
    """`zarr` or `mtx` where a folder is one input of cells: a Zarr store, or matrix.mtx with its names."""
    if any((folder / name).is_file() for name in (".zgroup", "zarr.json", ".zattrs", ".zmetadata")):
        return "zarr"
    return "mtx" if first_file(folder, "matrix.mtx") else None


def first_file(folder: Path, *names: str) -> Path | None:
    """The first of these names that is a file, plain or `.gz`."""
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)

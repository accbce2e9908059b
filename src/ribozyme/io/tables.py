"""Embeddings into files: the suffix chooses the format, a file appears whole or not at all.

========== ===================================== ================================================
suffix     one vector a record                   one row a letter (`ragged`)
========== ===================================== ================================================
.parquet   id, embedding (dim floats)            id, embedding (a list of dim floats a letter)
.npz       names (n,), embeddings (n, dim)       names, rows (total, dim), cu_seqlens (n + 1,)
.zarr      the arrays of .npz in chunks, each with a checksum
.csv       id, e0, e1, ...                       id, position (from 0), e0, e1, ...
.json      a list of {"id", "embedding"}; NaN is null
========== ===================================== ================================================

Results are written as they come, so memory stays flat. All numbers are float32. Record i has
the rows `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ribozyme.errors import InputError, MissingExtraError
from ribozyme.files import AtomicFile, AtomicFolder

Array = npt.NDArray[np.float32]
CHUNK = 4 * 2**20
"""Numbers that are collected before they are written (16 MB)."""


class Format(Protocol):
    """One kind of file, made from its (temporary) path, the width of a row, and whether it is ragged."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None: ...

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        """Write some records: the rows of all of them end to end, and how many each has (1 unless ragged)."""

    def finish(self) -> None:
        """Write what stands at the end of the file."""

    def close(self) -> None:
        """Let go of the file, whole or not."""


class Writer:
    """Takes results one by one; made by `open_writer`."""

    def __init__(self, path: Path, kind: type[Format], ragged: bool) -> None:
        self._path, self._kind, self._ragged = path, kind, ragged
        self._format: Format | None = None
        self._names: list[str] = []
        self._rows: list[Array] = []
        self._size = 0

    def write(self, name: str, array: npt.ArrayLike) -> None:
        """Add a record: (dim,), or (length, dim) where ragged."""
        rows = np.asarray(array, dtype=np.float32)
        rows = rows if self._ragged else rows[None]
        assert rows.ndim == 2, f"{name}: {rows.shape} is not the shape of a result"
        self._names.append(name)
        self._rows.append(rows)
        self._size += rows.size
        if self._size >= CHUNK:
            self._flush()

    def extend(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        """Add many records at once: their rows end to end, and how many each has (1 unless ragged)."""
        self._flush()
        self._append(names, rows, lengths)

    def finish(self) -> None:
        """Write what is still held, and the end of the file."""
        self._flush()
        if self._format is None:
            self._format = self._kind(self._path, 0, self._ragged)
        self._format.finish()

    def close(self) -> None:
        """Let go of the file."""
        if self._format is not None:
            self._format.close()

    def _flush(self) -> None:
        if self._names:
            self._append(self._names, np.concatenate(self._rows), [len(one) for one in self._rows])
        self._names, self._rows, self._size = [], [], 0

    def _append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        if self._format is None:
            self._format = self._kind(self._path, rows.shape[1], self._ragged)
        self._format.append(names, rows, lengths)


@contextmanager
def open_writer(path: str | Path, *, ragged: bool = False) -> Iterator[Writer]:
    """`with open_writer(path) as writer: writer.write(name, array)`; nothing is left behind by a failure.

    Raises
    ------
    InputError : the suffix is unknown, or the place cannot be written.
    """
    path = Path(path)
    check_output(path)
    whole = AtomicFolder(path) if path.suffix.lower() == ".zarr" else AtomicFile(path)
    with whole as temporary:
        writer = Writer(temporary, FORMATS[path.suffix.lower()], ragged)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def check_output(path: str | Path) -> None:
    """Raise an error now if `path` could not be written later.

    Raises
    ------
    InputError : an unknown suffix, a missing or write-protected folder, a folder where a file should be.
    MissingExtraError : the library for this format is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"{path}: no format has the suffix {suffix!r}",
            hint=f"known are {', '.join(FORMATS)}; of cells also .h5ad",
        )
    if suffix == ".zarr":
        _check_folder_of(path)
        _zarr()
        if path.exists() and not any((path / mark).is_file() for mark in ("zarr.json", ".zgroup", ".zarray")):
            raise InputError(f"{path}: exists and is no Zarr store; it is not replaced")
    else:
        check_file(path)


def check_file(path: Path) -> None:
    """Raise `InputError` now if a file could not be written at `path` later."""
    _check_folder_of(path)
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; a file is to be written")


def _check_folder_of(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {str(path.parent)!r}", hint="make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: nothing can be written to {str(path.parent)!r}")


# ---------------------------------------------------------------------------------------------- formats


class Parquet:
    """Pages carry checksums: without them a flipped bit is read as another number."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None:
        vector = pa.list_(pa.float32(), dim)
        self.dim, self.ragged = dim, ragged
        self.schema = pa.schema({"id": pa.string(), "embedding": pa.list_(vector) if ragged else vector})
        self.writer = pa.parquet.ParquetWriter(
            path, self.schema, compression="zstd", use_dictionary=["id"], write_page_checksum=True
        )

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(_numbers(rows.ravel(), pa.float32()), self.dim)
        if self.ragged:
            vectors = pa.ListArray.from_arrays(_numbers(_offsets(lengths, np.int32), pa.int32()), vectors)
        self.writer.write_table(pa.Table.from_arrays([_texts(names), vectors], schema=self.schema))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.writer.close()


def read_parquet(source: Any) -> tuple[list[str], Array, list[int]]:
    """What `Parquet` wrote: names, rows end to end, and how many each record has."""
    with pa.parquet.ParquetFile(source, page_checksum_verification=True) as file:
        table = file.read(use_threads=False)
    names, embedding = table["id"].to_pylist(), table["embedding"].combine_chunks()
    lengths = [1] * len(names)
    if pa.types.is_list(embedding.type):
        lengths, embedding = embedding.value_lengths().to_pylist(), embedding.flatten()
    dim = embedding.type.list_size
    flat = embedding.flatten()
    numbers = np.frombuffer(flat.buffers()[1], np.float32, len(flat), 4 * flat.offset)
    return names, numbers.reshape(-1, dim), lengths  # `to_numpy` would import pandas


class Npz:
    """A .npy holds its shape in front, and the shape is known at the end: rows wait in unnamed files."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None:
        self.path, self.dim, self.ragged = path, dim, ragged
        self.rows = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115, closed in `close`
        self.names = tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8")  # noqa: SIM115
        self.ends = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self.count = self.total = 0
        self.width = 1

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        rows.tofile(self.rows)
        if self.ragged:
            (self.total + np.cumsum(lengths, dtype="<i8")).tofile(self.ends)
        self.count, self.total = self.count + len(names), self.total + len(rows)
        self.names.writelines(json.dumps(name) + "\n" for name in names)
        self.width = max(self.width, *map(len, names))

    def finish(self) -> None:
        for waiting in (self.rows, self.names, self.ends):
            waiting.seek(0)
        with zipfile.ZipFile(self.path, "w") as archive:
            with _member(archive, "names", f"<U{self.width}", (self.count,)) as member:
                for line in self.names:
                    member.write(
                        json.loads(line).ljust(self.width, "\0").encode("utf-32-le", "surrogatepass")
                    )
            name = "rows" if self.ragged else "embeddings"
            with _member(archive, name, "<f4", (self.total, self.dim)) as member:
                shutil.copyfileobj(self.rows, member, 2**20)
            if self.ragged:
                with _member(archive, "cu_seqlens", "<i8", (self.count + 1,)) as member:
                    member.write(bytes(8))
                    shutil.copyfileobj(self.ends, member, 2**20)

    def close(self) -> None:
        for waiting in (self.rows, self.names, self.ends):
            waiting.close()


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        yield member


class Csv:
    """Numbers have as many digits as float32 needs."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None:
        columns = [pa.field("id", pa.string()), *([pa.field("position", pa.int64())] if ragged else [])]
        self.schema = pa.schema(columns + [pa.field(f"e{k}", pa.float32()) for k in range(dim)])
        self.ragged = ragged
        options = pa.csv.WriteOptions(quoting_style="needed")
        self.writer = pa.csv.CSVWriter(path, self.schema, write_options=options)

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        columns = [_texts([name for name, length in zip(names, lengths) for _ in range(length)])]
        if self.ragged:
            columns.append(_numbers(np.concatenate([np.arange(k) for k in lengths]), pa.int64()))
        columns += [_numbers(column, pa.float32()) for column in rows.T]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.writer.close()


class Json:
    """For small results; one record a line."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None:
        self.file = path.open("w", encoding="utf-8")
        self.ragged = ragged
        self.before = "["

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        for name, part in zip(names, np.split(rows, np.cumsum(lengths)[:-1])):
            vectors = [[_number(x) for x in row] for row in part]
            record = {"id": name, "embedding": vectors if self.ragged else vectors[0]}
            self.file.write(f"{self.before}\n{json.dumps(record)}")
            self.before = ","

    def finish(self) -> None:
        self.file.write("\n]\n" if self.before == "," else "[]\n")

    def close(self) -> None:
        self.file.close()


def _number(x: np.float32) -> float | None:
    """The shortest number that is this float32 again, None for NaN and infinity, which JSON lacks."""
    return float(str(x)) if np.isfinite(x) else None


class Zarr:
    """Chunks are zstd with crc32c: without it a flipped bit is read as another number."""

    def __init__(self, path: Path, dim: int, ragged: bool) -> None:
        zarr = _zarr()
        codecs = [zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()]
        store = zarr.open_group(path, mode="w", zarr_format=3)
        chunk = max(1, CHUNK // max(dim, 1))

        def array(name: str, dtype: Any, *width: int) -> Any:
            shape, chunks = (0, *width), (chunk, *(max(w, 1) for w in width))
            return store.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=codecs)

        self.names, self.rows = array("names", str), array("rows" if ragged else "embeddings", "float32", dim)
        self.cu_seqlens = array("cu_seqlens", "int64") if ragged else None
        if self.cu_seqlens is not None:
            self.cu_seqlens.append(np.zeros(1, np.int64))
        self.total = 0

    def append(self, names: list[str], rows: Array, lengths: list[int]) -> None:
        self.names.append(np.array(names, dtype=object))
        self.rows.append(rows)
        if self.cu_seqlens is not None:
            self.cu_seqlens.append(self.total + np.cumsum(lengths))
        self.total += sum(lengths)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _zarr() -> Any:
    try:
        import zarr
        import zarr.codecs
    except ImportError as error:
        raise MissingExtraError("zarr", "cells", "writing .zarr") from error
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise MissingExtraError("zarr 3", "cells", "writing .zarr")
    return zarr


def _texts(names: list[str]) -> Any:
    """As `pa.array`, which imports pandas."""
    encoded = [name.encode() for name in names]
    offsets = _offsets([len(one) for one in encoded], np.int32)
    return pa.StringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _numbers(numbers: npt.NDArray[Any], kind: Any) -> Any:
    """As `pa.array`, which imports pandas."""
    numbers = np.ascontiguousarray(numbers, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _offsets(lengths: list[int], dtype: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(dtype)


FORMATS: dict[str, type[Format]] = {
    ".parquet": Parquet,
    ".npz": Npz,
    ".csv": Csv,
    ".json": Json,
    ".zarr": Zarr,
}

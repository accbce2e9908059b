"""Zarr folders from strangers: looked at before anything in them is read.

A zarr array names the codecs that its reader runs, `pickle` among them, and a link in the folder shows any
file of the machine. `open_zarr` refuses both, and arrays larger than their files can hold.
"""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ribozyme.errors import InputError, MissingExtraError
from ribozyme.io.hdf5 import check_sparse

CODECS = frozenset(
    {
        *("bytes", "transpose", "vlen-bytes", "vlen-utf8", "sharding_indexed", "crc32c", "crc32"),
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
        *("delta", "fixedscaleoffset", "packbits", "quantize", "shuffle"),
    }
)
"""Codecs that only change bytes; `pickle`, which executes what it reads, is not among them."""
FREE_NUMBERS, MAX_RATIO = 2**27, 200
"""Arrays may declare 134 million numbers in all, and beyond that 200 for each byte of the folder."""


def open_zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "cells", "reading .zarr") from error
    _check_folder(path)
    # each array's own description was looked at; a copy of them all in one file is not to be believed
    own: dict[str, Any] = {} if zarr.__version__.startswith("2.") else {"use_consolidated": False}
    root = zarr.open_group(str(path), mode="r", **own)
    for name, group in _groups(root):
        if {"data", "indices", "indptr"} <= set(group.keys()):
            check_sparse(group, path, name)
    return root


def _groups(root: Any) -> Iterator[tuple[str, Any]]:
    stack = [("", root)]
    while stack:
        prefix, group = stack.pop()
        yield prefix or "/", group
        stack.extend((f"{prefix}/{name}", child) for name, child in group.groups())


def _check_folder(path: Path) -> None:
    """Refuse links out of the folder, codecs that execute, and arrays larger than their files can hold."""
    size, declared = 0, 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            one = Path(folder, name)
            if one.is_symlink():
                raise InputError(f"{one}: a link to another place, which is not read", hint="copy the folder")
        for name in files:
            one = Path(folder, name)
            size += one.stat().st_size
            if name in (".zarray", "zarr.json"):
                declared += _check_array(one)
    if declared > FREE_NUMBERS + MAX_RATIO * size:
        raise InputError(
            f"{path}: its arrays declare {declared:,} numbers, but the folder has {size:,} bytes"
        )


def _check_array(file: Path) -> int:
    """How many numbers an array has."""
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        names = {name.removeprefix("numcodecs.") for name in _codecs(meta)}
        count = int(np.prod([int(n) for n in meta.get("shape", [0])], dtype=object))
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise InputError(f"{file}: damaged ({error})") from error
    if not names <= CODECS:
        raise InputError(
            f"{file}: codec {sorted(names - CODECS)[0]!r} is not read",
            hint=f"known: {sorted(CODECS)}",
        )
    return count


def _codecs(meta: dict[str, Any]) -> Iterator[str]:
    """Names of the codecs of an array (zarr 2 and 3), those inside a codec (shards) among them."""
    lists = [meta.get(key) or [] for key in ("filters", "codecs", "index_codecs", "storage_transformers")]
    for codec in [meta.get("compressor"), *chain.from_iterable(lists)]:
        if codec:
            yield str(codec.get("id", codec.get("name")))
            yield from _codecs(codec.get("configuration") or {})

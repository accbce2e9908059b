"""A shard: results of inputs that follow each other, collected in memory, then one file with its sha256."""

import hashlib
from dataclasses import replace
from pathlib import Path
from sys import getsizeof

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ribozyme.engine.manifest import Shard
from ribozyme.engine.parts import Part
from ribozyme.errors import OutputError
from ribozyme.io.tables import open_writer, read_parquet
from ribozyme.report import Rejected, Report

Array = npt.NDArray[np.float32]
Content = tuple[list[str], Array, list[int]]
"""Names, their rows end to end, and rows of each name."""
ENTRY = 96
"""Bytes of a `Rejected` without its texts."""


class Collected:
    """Results that wait for their shard: a block of numbers a part, not an object a row.

    start, end : the inputs they are of
    bytes : what they take in memory, names among it
    """

    def __init__(self, start: int, *, ragged: bool) -> None:
        self.start = self.end = start
        self.bytes = 0
        self._ragged = ragged
        self._names: list[str] = []
        self._blocks: list[Array] = []
        self._lengths: list[int] = []
        self._rejected: list[Rejected] = []
        self._report = Report()

    def add(self, part: Part) -> None:
        """Take the results of the inputs that come next."""
        assert part.start == self.end, f"a part of {part.start} after {self.end}"
        self.end = part.end
        if part.names:
            join = np.concatenate if self._ragged else np.asarray
            self._blocks.append(join(part.rows))
            self._lengths += [len(row) for row in part.rows] if self._ragged else [1] * len(part.names)
            self.bytes += self._blocks[-1].nbytes
        self._names += part.names
        self._rejected += part.rejected
        self._report.merge(part.report)
        self.bytes += sum(getsizeof(name) + 16 for name in part.names)
        self.bytes += sum(ENTRY + getsizeof(one.name) + getsizeof(one.reason) for one in part.rejected)

    def store(self, folder: Path) -> Shard:
        """Write the file, where there is any row; what was collected is let go of."""
        shard = Shard(
            start=self.start,
            end=self.end,
            rows=len(self._names),
            sha256="",
            rejected=tuple(self._rejected),
            counts=self._report.counts,
            where=self._report.where,
        )
        if not shard.rows:
            return shard
        path = folder / shard.file
        block, self._blocks = np.concatenate(self._blocks), []  # from here on they are there once
        with open_writer(path, ragged=self._ragged) as writer:
            writer.extend(self._names, block, self._lengths)
        return replace(shard, sha256=_sha256(path))


def is_whole(folder: Path, shard: Shard) -> bool:
    """Is the file of a shard what was written?"""
    path = folder / shard.file
    return not shard.rows or (path.is_file() and _sha256(path) == shard.sha256)


def read_shard(folder: Path, shard: Shard) -> Content:
    """The results in the file of a shard.

    Raises
    ------
    OutputError : it was damaged since it was written.
    """
    content = (folder / shard.file).read_bytes()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise OutputError(
            f"{folder / shard.file}: was damaged after it was written",
            hint="the same command again computes its results anew, and no others",
        )
    return read_parquet(pa.BufferReader(content))


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

"""Compressed files from strangers, as streams that stop a bomb while it unpacks."""

import io
from pathlib import Path
from typing import Any, BinaryIO

from xopen import xopen

from ribozyme.errors import InputError

COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
LONGEST = 50_000_000
"""Bytes between two marks, such as the letters of a record: twenty times the longest human gene (2.5 Mb)."""
MAX_RATIO, RATIO_FROM = 200, 64 * 2**20
"""Past 64 MB, a compressed file may hold at most 200 times its size. Real sequences reach about 5 times, gzip
at most 1,032: a small file that goes on and on is made to fill the memory or the disk."""


class Guarded(io.RawIOBase):
    """A decompressed stream that stops a bomb: it counts bytes in, out, and since the last `mark`.

    A parser holds a whole record before it can say how long it is, so the limit must act here.
    """

    def __init__(self, file: BinaryIO, where: str, mark: bytes | None = None, longest: int = LONGEST) -> None:
        self.file = file
        self.where = where
        self.mark = mark
        self.longest = longest
        self.out = 0
        self.since = 0
        try:
            self.content = xopen(file, "rb", threads=0)
        except Exception as error:
            raise InputError(f"{where}: cannot be opened ({error})") from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self.content.read(len(view))
        except Exception as error:  # every codec has errors of its own
            raise InputError(
                f"{self.where}: the compressed data are damaged or cut off ({error})", hint="fetch it again"
            ) from error
        if self.out == 0:
            data = self._without_bom(data)
        view[: len(data)] = data
        self.out += len(data)
        self._check(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.content.close()
            self.file.close()
        super().close()

    def _without_bom(self, data: bytes) -> bytes:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{self.where}: the text is UTF-16", hint="save it as UTF-8 (or plain ASCII)")
        while data == b"\xef\xbb\xbf"[: len(data)] and len(data) < 4 and (more := self.content.read(4)):
            data += more
        return data.removeprefix(b"\xef\xbb\xbf")

    def _check(self, data: bytes) -> None:
        if self.out > RATIO_FROM and self.file.seekable() and self.out > MAX_RATIO * self.file.tell():
            raise InputError(
                f"{self.where}: more than {MAX_RATIO} times its size when decompressed, "
                f"{self.out:,} bytes so far",
                hint="if it is really meant to be so, decompress it first",
            )
        if self.mark is None:
            return
        last = data.rfind(self.mark)
        self.since = self.since + len(data) if last < 0 else len(data) - last
        if self.since > self.longest + 2**20:  # room for line ends and a header
            raise InputError(f"{self.where}: a record or line of more than {self.longest:,} letters")


def open_guarded(path: Path, mark: bytes | None = None, longest: int = LONGEST) -> io.BufferedReader:
    """The decompressed bytes of a file; an error where more than `longest` lie between two `mark`s."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    return io.BufferedReader(Guarded(file, str(path), mark, longest), 2**17)

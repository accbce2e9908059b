"""What a job reads: a file, all files of a folder or a pattern, here or behind a URL, one after the other.

Places of inputs count on from file to file, and no part reaches from one file into the next. Files come in
the order of their names, as text is sorted. Names of records stay as they are in the files, so the same name
may come from two files: rows are told apart by their order.
"""

import glob
import tempfile
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ribozyme.engine.parts import Prepared, prefetch
from ribozyme.errors import InputError, MissingExtraError, RibozymeError
from ribozyme.io.kinds import CELLS, is_only_cells, kind_of_folder
from ribozyme.io.sequences import SUFFIXES as SEQUENCES
from ribozyme.io.streams import COMPRESSED

SEVERAL = "*?["
MARKS = ("size", "ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "mtime", "modified")
"""What file systems tell that changes with the content of a file."""


def is_url(source: str) -> bool:
    """`s3://bucket/folder`, `gs://...`, `https://...`: what fsspec opens."""
    return "://" in source


def files_of(source: str) -> list[str]:
    """The files behind a path, a folder, a pattern (`rnas/*.fa.gz`) or a URL of these, sorted.

    A folder that is one input (.zarr, 10x) is one file here.

    Raises
    ------
    InputError : there is nothing, or a folder holds what cannot be read, or both sequences and cells.
    MissingExtraError : a file system for the URL is not installed.
    """
    if is_url(source):
        return _checked(source, _remote_files(source))
    path = Path(source)
    if source == "-" or path.is_file() or (path.is_dir() and kind_of_folder(path)):
        return [source]
    if path.is_dir():
        return _checked(source, [str(one) for one in path.iterdir() if not one.name.startswith(".")])
    return _checked(source, glob.glob(source) if set(SEVERAL) & set(source) else [])


def holds_cells(file: str) -> bool:
    """Does the name of a file say that cells are in it? A folder that is one input has cells."""
    return is_only_cells(file) or (not is_url(file) and Path(file).is_dir())


def marks(file: str) -> dict[str, str]:
    """What tells that a file behind a URL was changed."""
    system, path = _file_system(file)
    with _noted(file):
        info = system.info(path)
    return {name: str(info[name]) for name in MARKS if info.get(name) is not None}


def prepare(
    model: Any, files: list[str], how: Any, *, start: int = 0, on_error: str = "fail"
) -> Generator[Prepared, None, None]:
    """As `model.prepare`, of several files; those behind URLs are copied here, one ahead."""
    first = 0
    with _folder_for(files) as folder, closing(prefetch(_here(file, folder) for file in files)) as paths:
        for file, path in zip(files, paths):
            with _noted(file), _let_go(file, path):
                inside = max(0, start - first)
                if inside and file is not files[-1] and inside >= (count := model.count(path, how)):
                    first += count
                    continue
                end = inside
                with closing(model.prepare(path, how, start=inside, on_error=on_error)) as parts:
                    for part in parts:
                        end = part.end
                        yield _moved(part, first)
                first += end


def _checked(source: str, files: list[str]) -> list[str]:
    """Sorted, and all of one kind."""
    if not files:
        raise InputError(f"{source}: there is no such file or folder, or nothing in it")
    known = (*CELLS, *SEQUENCES)
    for file in files:
        bare = file.lower()
        for packed in COMPRESSED:
            bare = bare.removesuffix(packed)
        if not bare.endswith(known):
            raise InputError(
                f"{source}: {file} is neither of sequences nor of cells",
                hint="leave it out by a pattern, such as 'folder/*.fa.gz'",
            )
    if len({holds_cells(file) for file in files}) > 1:
        raise InputError(
            f"{source}: holds both sequences and cells",
            hint="choose some by a pattern, such as 'folder/*.h5ad'",
        )
    return sorted(files)


def _remote_files(source: str) -> list[str]:
    system, path = _file_system(source)
    with _noted(source):
        if urlsplit(source).scheme in ("http", "https"):
            return [source]
        if set(SEVERAL) & set(path):
            found = system.glob(path)
        else:
            found = system.ls(path, detail=False) if system.isdir(path) else [path]
            found = found if system.exists(path) else []
    return [system.unstrip_protocol(one) for one in found if not Path(one).name.startswith(".")]


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"a file system ({error})", "ray", url) from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error


def _folder_for(files: list[str]) -> AbstractContextManager[str]:
    """Where copies can lie, if there are any to make."""
    if not any(map(is_url, files)):
        return nullcontext("")
    with _noted(files[0]):
        return tempfile.TemporaryDirectory(prefix="ribozyme-")


def _here(file: str, folder: str) -> str:
    """A file as a path on this machine."""
    if not is_url(file):
        return file
    with _noted(file):
        system, path = _file_system(file)
        copy = Path(tempfile.mkdtemp(dir=folder)) / Path(urlsplit(file).path).name
        system.get_file(path, str(copy))
    return str(copy)


@contextmanager
def _let_go(file: str, path: str) -> Iterator[None]:
    """The copy of a file goes when it was read."""
    try:
        yield
    finally:
        if is_url(file):
            Path(path).unlink()


def _moved(part: Prepared, by: int) -> Prepared:
    """The same part, with places counted through all files."""
    rejected = [one._replace(position=one.position + by) for one in part.rejected]
    return replace(part, start=part.start + by, end=part.end + by, rejected=rejected)


@contextmanager
def _noted(file: str) -> Iterator[None]:
    """Errors say which file they are of; what goes wrong on the way to it is an error of ours."""
    try:
        yield
    except RibozymeError as error:
        if is_url(file):  # the message names the copy
            error.add_note(f"in {file}")
        raise
    except FileNotFoundError as error:
        raise InputError(f"{file}: there is no such file or folder") from error
    except Exception as error:
        if not is_url(file):
            raise
        message = " ".join(str(error).split())[:300]
        raise InputError(f"{file}: cannot be fetched ({type(error).__name__}: {message})") from error

"""Files that appear whole or not at all, digests that are counted once, and the folder of our cache.

Cache: `RIBOZYME_CACHE`, or the platform's cache folder. It holds only what can be made again; when it cannot
be written, everything works and costs its time again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout


class AtomicFile:
    """`with AtomicFile(path) as temporary`: write `temporary`; it becomes `path` on success, or vanishes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self.temporary.unlink(missing_ok=True)  # gone already after a commit

    def _commit(self) -> None:
        _sync(self.temporary)
        self.temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0o600; a result is readable as any new file
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)


class AtomicFolder:
    """`with AtomicFolder(path) as temporary`: as `AtomicFile`, for a folder; an old one is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.temporary = Path(
            tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        )
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _commit(self) -> None:
        for path in self.temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        self.temporary.chmod(0o777 & ~_umask())
        old = self.temporary.with_suffix(".old.tmp")  # cleared away like `temporary`, should we be killed
        if self.path.exists():
            os.replace(self.path, old)  # a folder cannot be replaced in one step
        try:
            os.replace(self.temporary, self.path)
        except OSError:
            if old.exists():
                os.replace(old, self.path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(self.path.parent)


def _sync(path: Path) -> None:
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power cut (where the system can)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where we keep what can be made again."""
    chosen = os.environ.get("RIBOZYME_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("ribozyme"))


def folder_lock(folder: Path) -> FileLock | None:
    """The lock of a folder, which is made if need be; None while another process has it.

    Whoever lets it go may remove the file, and the folder, before.
    """
    for _ in range(100):  # they may go between these lines
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        except FileNotFoundError:
            continue
        if Path(lock.lock_file).exists():
            return lock
        lock.release()
    return None


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal.

    Remembered in the cache by place, size and time of change, so that a large file is read once.
    """
    mark = _mark(path)
    note = cache_folder() / "digests" / (hashlib.sha256(os.fsencode(path.resolve())).hexdigest() + ".json")
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["mark"] == mark:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not seen before, or the note is damaged: count again
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if _mark(path) == mark:
        _remember(note, {"path": str(path), "mark": mark, "sha256": sha256})
    return sha256


def digest_all(path: Path) -> str:
    """The digest of a file; of a folder, one of the names and digests of all files in it."""
    if path.is_file():
        return digest(path)
    whole = hashlib.sha256()
    for one in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(f"{one.relative_to(path)} {digest(one)}\n".encode())
    return whole.hexdigest()


def _mark(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _remember(note: Path, content: dict[str, object]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(note) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        pass  # an unwritable cache costs time, never the load

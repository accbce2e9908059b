"""Results that no crash loses: shards beside the output, a list of what they hold, one whole file at the end.

`OUTPUT.parts/` holds

- `000000000000.parquet` ...: shards, the results of a run of inputs each, called by the place of the first;
- `manifest.jsonl`: what the job is, then a line a shard: its inputs, rows, sha256, what was left out;
- `lock`: held while a job writes here.

A shard is written under another name, synced and renamed; then its line is added to the manifest and synced.
So whatever the manifest names is whole, what it does not name is computed again, and each of its lines and
shards is checked before it counts.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from time import monotonic
from typing import Self

from filelock import FileLock

from ribozyme.engine.manifest import Job, Shard, differences, read_manifest, sealed
from ribozyme.engine.parts import Part
from ribozyme.engine.shards import Collected, Content, is_whole, read_shard
from ribozyme.errors import OutputError, RibozymeError
from ribozyme.files import AtomicFile, folder_lock, sync_folder
from ribozyme.report import Rejected, Report

SHARD_BYTES, SHARD_SECONDS = 64 * 2**20, 30.0
"""A shard is written when so much is held, or when the first of it is so old. That bounds memory: while one
is collected, one is written, which takes it twice for a moment, and once in the form of the file."""

log = logging.getLogger("ribozyme")


def parts_folder(output: Path) -> Path:
    """Where the shards of `output` lie until it is whole."""
    return output.with_name(output.name + ".parts")


def is_begun(output: Path) -> bool:
    """Is there work on `output` that can be taken up again?"""
    return (parts_folder(output) / "manifest.jsonl").exists()


class Sink:
    """`with Sink(output, job, ragged=...) as sink:` ask `gaps`, `write` each part of them, then `read` all.

    output : the final file, which is not touched here
    job : what the results depend on; nested, of plain values
    ragged : has an input one row (False), or one a letter?
    once : the input cannot be read a second time

    What was written is kept when an error leaves the block; `remove` ends it.

    Raises
    ------
    OutputError : another job is writing, or the shards that are there belong to another job.
    """

    def __init__(self, output: Path, job: Job, *, ragged: bool, once: bool = False) -> None:
        self.output, self.ragged, self.once = output, ragged, once
        self.folder = parts_folder(output)
        self.shards: dict[int, Shard] = {}
        self._job = json.loads(json.dumps(job))
        self._manifest = self.folder / "manifest.jsonl"
        self._held: Collected | None = None
        self._since = 0.0
        self._pending: Future[Shard] | None = None
        self._failed = False

    def __enter__(self) -> Self:
        with self.told():
            self._lock = _locked(self.folder, self.output)
        try:
            with self.told():
                self._take_up()
        except BaseException:
            self._let_go()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            if error is None or not self._failed:
                self.flush(wait=True)
        except RibozymeError as second:
            if error is None:
                raise
            log.warning("%s", second)
        finally:
            self._thread.shutdown()
            if not self.shards:
                self.remove()
            self._let_go()
        if error is None or isinstance(error, OutputError) or not self.shards:
            return  # nothing is kept, or it was said
        if isinstance(error, Exception):
            error.add_note(self.kept())
        else:  # the second Ctrl-C
            log.warning("stopped at once; %s", self.kept())

    def gaps(self) -> list[tuple[int, int | None]]:
        """Runs of inputs (start, end) without results; the last has no end."""
        missing: list[tuple[int, int | None]] = []
        place = 0
        for shard in self._sorted():
            if shard.start > place:
                missing.append((place, shard.start))
            place = shard.end
        return [*missing, (place, None)]

    def write(self, part: Part) -> None:
        """Take results; an error in writing those before is raised here."""
        if self._held and self._held.end != part.start:
            self.flush()
        if self._held is None:
            self._held, self._since = Collected(part.start, ragged=self.ragged), monotonic()
        self._held.add(part)
        if self._held.bytes >= SHARD_BYTES or monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Write what is held, in a thread."""
        self._settle()
        if self._held:
            self._pending = self._thread.submit(self._store, self._held)
            self._held = None
        if wait:
            self._settle()

    def read(self) -> Iterator[tuple[Shard, Content]]:
        """Every shard that has rows, with what is in it, in the order of inputs.

        Raises
        ------
        OutputError : a shard was damaged since it was written.
        """
        for shard in self._sorted():
            if shard.rows:
                yield shard, read_shard(self.folder, shard)

    @property
    def rows(self) -> int:
        """Results that are safe."""
        return sum(shard.rows for shard in self.shards.values())

    @property
    def rejected(self) -> list[Rejected]:
        """Inputs that were left out, in order."""
        return [one for shard in self._sorted() for one in shard.rejected]

    @property
    def report(self) -> Report:
        """What was changed in any input so far."""
        whole = Report()
        for shard in self._sorted():
            whole.merge(Report(counts=shard.counts, where=shard.where))
        return whole

    def remove(self) -> None:
        """The output is whole: the parts are not needed any more."""
        self.shards = {}
        try:
            self._manifest.unlink(missing_ok=True)  # first: without it nothing here counts
            _remove_shards(self.folder, keep=set())
        except OSError as error:
            log.warning("%s cannot be removed (%s); it is not needed any more", self.folder, error.strerror)

    @contextmanager
    def told(self) -> Iterator[None]:
        """A disk that is full or fails becomes one error, which says what is kept."""
        try:
            yield
        except RibozymeError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self.output}: cannot be written ({error.strerror or error})",
                hint=f"make room; {self.kept()}" if self.shards else "make room, and start again",
            ) from error

    def kept(self) -> str:
        """What is safe, and how to go on."""
        how = "they are plain Parquet; the input cannot be read a second time"
        how = how if self.once else "the same command goes on from there"
        return f"{self.rows:,} results are kept in {self.folder}: {how}"

    # ------------------------------------------------------------------------------------------ inside

    def _sorted(self) -> list[Shard]:
        return [self.shards[start] for start in sorted(self.shards)]

    def _take_up(self) -> None:
        """Check and keep what an earlier run of this job left; forget what it left half done."""
        if self._manifest.exists():
            job, shards = read_manifest(self._manifest)
            if told := differences(job, self._job):
                raise OutputError(
                    f"{self.folder} holds {sum(s.rows for s in shards.values()):,} results of another job: "
                    + "; ".join(told),
                    hint=f"finish it as it was begun, or delete {self.folder} to begin anew",
                )
            self.shards = {start: shard for start, shard in shards.items() if self._is_whole(shard)}
        lines = [{"job": self._job}, *(asdict(shard) for shard in self._sorted())]
        with AtomicFile(self._manifest) as temporary:
            temporary.write_text("".join(map(sealed, lines)), encoding="utf-8")
        _remove_shards(self.folder, keep={shard.file for shard in self.shards.values()})
        for stale in self.output.parent.glob(f".{escape(self.output.name)}.*.tmp"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def _is_whole(self, shard: Shard) -> bool:
        whole = is_whole(self.folder, shard)
        if not whole:
            path = self.folder / shard.file
            log.warning("%s is damaged or missing; its %d results are computed again", path, shard.rows)
        return whole

    def _store(self, held: Collected) -> Shard:
        """A shard, then its line."""
        with self.told():
            shard = held.store(self.folder)
            with self._manifest.open("ab") as manifest:
                manifest.write(sealed(asdict(shard)).encode())
                manifest.flush()
                os.fsync(manifest.fileno())
        return shard

    def _settle(self) -> None:
        """Wait for the shard that is being written."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            shard = pending.result()
        except BaseException:
            self._failed = True
            raise
        self.shards[shard.start] = shard

    def _let_go(self) -> None:
        """Give the lock back; a folder without a manifest goes."""
        empty = not self._manifest.exists()
        if empty:
            with suppress(OSError):
                _remove_shards(self.folder, keep=set())
                Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is ours
        self._lock.release()
        if empty:
            with suppress(OSError):  # another job has begun in it
                self.folder.rmdir()
                sync_folder(self.output.parent)


# --------------------------------------------------------------------------------------------- the folder


def _locked(folder: Path, output: Path) -> FileLock:
    """The lock of a folder, which is made if need be."""
    lock = folder_lock(folder)
    if lock is None:
        raise OutputError(
            f"{output}: another job is writing it", hint="wait for its end, or choose another output"
        )
    return lock


def _remove_shards(folder: Path, keep: set[str]) -> None:
    """Shards that no line names, and what a killed job left half written."""
    for path in folder.iterdir():
        ours = path.suffix == ".parquet" or (path.name.startswith(".") and path.suffix == ".tmp")
        if ours and path.name not in keep:
            path.unlink()

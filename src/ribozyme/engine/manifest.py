"""The list of what the shards of a job hold: a line of JSON each, with the sha256 of itself."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ribozyme.errors import OutputError
from ribozyme.report import Rejected

Job = Mapping[str, Any]

log = logging.getLogger("ribozyme")


@dataclass(frozen=True, slots=True)
class Shard:
    """A line of the manifest: results of the inputs `start` to `end`; without rows there is no file."""

    start: int
    end: int
    rows: int
    sha256: str
    rejected: tuple[Rejected, ...]
    counts: dict[str, int]
    where: dict[str, list[str]]

    @property
    def file(self) -> str:
        """Its file's name in the folder of parts."""
        return f"{self.start:012d}.parquet"


def sealed(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON that holds the sha256 of the rest of it."""
    seal = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({**record, "sha256_of_line": seal}, sort_keys=True) + "\n"


def unsealed(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where any bit of it changed."""
    try:
        record = json.loads(line)
        del record["sha256_of_line"]
        return record if sealed(record).encode() == line + b"\n" else None
    except (ValueError, KeyError, TypeError):
        return None


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[int, Shard]]:
    """The job, and its shards by their first input, without what was torn or damaged, which is said.

    Raises
    ------
    OutputError : the line of the job was damaged.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        log.warning("%s: its last line is torn; what it names is computed again", path)
    first, *others = [unsealed(line) for line in lines] or [None]
    if first is None or "job" not in first:
        raise OutputError(
            f"{path}: damaged, so that it is not known which job these parts are of",
            hint=f"delete {path.parent} to begin anew; the shards in it are plain Parquet",
        )
    shards: dict[int, Shard] = {}
    for number, record in enumerate(others, start=2):
        if record is None:
            log.warning("%s: line %d is damaged; what it names is computed again", path, number)
            continue
        rejected = tuple(Rejected(*one) for one in record.pop("rejected"))
        shards[record["start"]] = Shard(**record, rejected=rejected)  # a later line is of a newer shard
    return first["job"], shards


def differences(old: Job, new: Job, where: str = "") -> list[str]:
    """What is not the same in two jobs, in words."""
    told: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        name, was, now = f"{where}{key}", old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            told += differences(was, now, f"{name} ")
        elif was != now:
            told.append(f"{name} was {_short(was)} and is {_short(now)}")
    return told


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text

"""The end of a job: its shards, one after the other, become the file that was asked for."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from ribozyme.engine.sink import Sink
from ribozyme.files import AtomicFile
from ribozyme.io.tables import open_writer
from ribozyme.report import Rejected

WRITERS = {".h5ad": "ribozyme.engine.h5ad"}
"""Files that are more than a table: the module whose `write` makes them, imported when asked for."""


def write_output(sink: Sink, model: Any, source: str, how: Any, *, key_added: str) -> None:
    """Results of all shards into `sink.output`, and `OUTPUT.rejected.jsonl` beside it."""
    _write_rejected(sink.output, sink.rejected)
    writer = WRITERS.get(sink.output.suffix.lower())
    if writer is None:
        _write_table(sink)
    else:
        import_module(writer).write(sink, model, source, how, key_added)


def _write_table(sink: Sink) -> None:
    with open_writer(sink.output, ragged=sink.ragged) as writer:
        for _, content in sink.read():
            writer.extend(*content)


def _write_rejected(output: Path, rejected: list[Rejected]) -> None:
    """`OUTPUT.rejected.jsonl`, or none, not even one of an earlier job, where nothing was left out."""
    path = output.with_name(output.name + ".rejected.jsonl")
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with AtomicFile(path) as temporary:
        temporary.write_text("".join(json.dumps(one._asdict()) + "\n" for one in rejected), encoding="utf-8")

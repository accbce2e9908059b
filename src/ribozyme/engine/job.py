"""A long job: a file of inputs becomes a file of embeddings, with nothing lost on the way.

Reading, computing and writing overlap; results go through a `Sink`, so that a job that was stopped, killed or
ran out of disk goes on where it was when it is started again.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from anndata.io import write_elem

from ribozyme import __version__
from ribozyme.engine.load import load
from ribozyme.engine.parts import check_on_error
from ribozyme.engine.sink import Job, Sink, is_begun, parts_folder
from ribozyme.errors import ConfigError, InputError, OutputError
from ribozyme.files import AtomicFile, digest
from ribozyme.io.cells import read_cells
from ribozyme.io.tables import check_output, open_writer
from ribozyme.report import Rejected

CELL_SUFFIXES = (".h5ad", ".h5mu", ".h5", ".zarr", ".loom", ".mtx", ".mtx.gz")
TABLE_SUFFIXES = tuple(kind + packed for kind in (".csv", ".tsv", ".txt") for packed in ("", ".gz"))

log = logging.getLogger("ribozyme")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    rows : results in the output, or, where it was stopped, those that are safe
    rejected : inputs that were left out, listed in `OUTPUT.rejected.jsonl`
    stopped : the signal that asked to stop (or any other true answer of `stop`), None where all is done
    existed : the output was whole before, and was left as it is
    """

    rows: int = 0
    rejected: int = 0
    stopped: int | None = None
    existed: bool = False


def embed_file(
    model: Any,
    input: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    on_error: str = "fail",
    key_added: str = "X_ribozyme",
    device: str = "auto",
    dtype: str = "auto",
    stop: Callable[[], int | None] = lambda: None,
    advance: Callable[[int], None] = lambda count: None,
    **settings: Any,
) -> Outcome:
    """Embed a file of sequences or cells into a file, of any size, so that nothing is lost.

    While it runs, results lie in `OUTPUT.parts`. The same call again goes on from there, whatever stopped it;
    the output appears at the end, whole. Input, weights, settings or version changed in between are an error.

    Parameters
    ----------
    model : as `load` takes it, or a loaded model; `auto` is the mini model for what the input holds
    input : a path that `read_sequences` or `read_cells` takes, or `-` for sequences on standard input, which
        cannot be read a second time and so cannot be taken up again
    output : `.parquet`, `.npz`, `.zarr`, `.csv`, `.json`; of cells also `.h5ad`, with `obsm[key_added]`
    resume : leave an output that is whole as it is, where otherwise it would be made anew
    on_error : a bad record ends the job (`fail`), or goes with its reason to `OUTPUT.rejected.jsonl` (`skip`)
        and has no row in the output (in `.h5ad`, a row of NaN)
    device, dtype : of `load`
    stop : asked after each part; where it answers, what is done is kept, and the job ends
    advance : told how many results came
    settings : those of the model's `embed`

    Raises
    ------
    InputError, ConfigError : before work begins, where it can be known then.
    OutputError : the output cannot be written, or its parts belong to another job.
    """
    input, output = os.fspath(input), Path(output)
    check_on_error(on_error)
    _check_paths(input, output, resume)
    if resume and output.exists() and not is_begun(output):
        return Outcome(existed=True)
    model = _loaded(model, input, device, dtype)
    _check_kinds(model, input, output)
    how = _settings(model, settings)
    job, ragged = job_of(model, input, how), how.pooling == "none"
    with Sink(output, job, ragged=ragged, once=input == "-") as sink:
        stopped = _compute(model, input, sink, on_error, settings, stop, advance)
        sink.flush(wait=True)
        outcome = Outcome(sink.rows, len(sink.rejected), stopped)
        if stopped is not None:
            return outcome
        with sink.told():
            _write_rejected(output, sink.rejected)
            if output.suffix.lower() == ".h5ad":
                _write_h5ad(model, input, output, key_added, how, sink)
            else:
                _write_table(output, sink)
        report = sink.report
        sink.remove()
    report.finish()
    return outcome


def _compute(
    model: Any,
    input: str,
    sink: Sink,
    on_error: str,
    settings: dict[str, Any],
    stop: Callable[[], int | None],
    advance: Callable[[int], None],
) -> int | None:
    """Every missing part into the sink; the answer of `stop`, if it had one."""
    advance(sink.rows)
    for start, end in sink.gaps():
        with closing(model.parts(input, start=start, on_error=on_error, **settings)) as parts:
            for part in parts:
                sink.write(part)
                advance(len(part.names))
                if (stopped := stop()) is not None:
                    return stopped
                if part.end == end:
                    break
    return None


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], int | None]]:
    """Gives a `stop` that answers after SIGINT (Ctrl-C) or SIGTERM; a second one acts at once, as ever."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: Any) -> None:
        received.append(number)
        restore()
        log.warning("finishing the part in hand; once more stops at once")

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


# ------------------------------------------------------------------------------------- what a job is


def job_of(model: Any, input: str, how: Any) -> Job:
    """What results depend on: input, weights, settings, and the version of this library."""
    return {
        "input": {"standard input": str(os.urandom(8).hex())} if input == "-" else digests(Path(input)),
        "model": {
            "name": model.record.name if model.record else type(model.module).__name__,
            "weights": weights_digest(model),
            "dtype": "/".join(
                sorted({str(w.dtype).removeprefix("torch.") for w in model.module.parameters()})
            ),
        },
        "settings": asdict(how),
        "ribozyme": __version__,
    }


def digests(path: Path) -> dict[str, str]:
    """The sha256 of a file, or one of all files in a folder with their names."""
    if path.is_file():
        return {path.name: digest(path)}
    whole = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(f"{file.relative_to(path)} {digest(file)}\n".encode())
    return {path.name: whole.hexdigest()}


def weights_digest(model: Any) -> str:
    """sha256 of the network as it is in memory: sizes, vocabulary, every tensor."""
    tokens = model.vocabulary.tokens if model.reads == "cells" else model.tokenizer.letters
    whole = hashlib.sha256(json.dumps([repr(model.config), list(tokens)]).encode())
    for name, tensor in sorted(model.module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


# --------------------------------------------------------------------------------------- before work


def holds_cells(source: str) -> bool:
    """Does the name of a file say that cells are in it?"""
    return Path(source).is_dir() or source.endswith(CELL_SUFFIXES)


def _check_paths(input: str, output: Path, resume: bool) -> None:
    if input == "-":
        if resume:
            raise ConfigError(
                "standard input cannot be read a second time, so its job cannot be resumed",
                hint="write the sequences to a file",
            )
        if is_begun(output):
            raise OutputError(
                f"{parts_folder(output)} holds results of an earlier job; standard input can go on with none",
                hint="finish that job as it was begun, or delete the folder (its shards are plain Parquet)",
            )
    elif not Path(input).exists():
        raise InputError(f"{input}: there is no such file or folder")
    if output.suffix.lower() != ".h5ad" or not (holds_cells(input) or input.endswith(TABLE_SUFFIXES)):
        check_output(output)


def _loaded(model: Any, input: str, device: str, dtype: str) -> Any:
    if hasattr(model, "parts"):
        return model
    name = ("scgpt-mini" if holds_cells(input) else "rnafm-mini") if model == "auto" else model
    return load(name, device=device, dtype=dtype)


def _check_kinds(model: Any, input: str, output: Path) -> None:
    """A table holds what the model reads; the names of other files say what is in them."""
    holds = "cells" if holds_cells(input) else "sequences"
    if model.reads != holds and not input.endswith(TABLE_SUFFIXES):
        name = model.record.name if model.record else type(model.module).__name__
        raise ConfigError(f"{name} reads {model.reads}, and {input} holds {holds}")
    if model.reads == "sequences":
        check_output(output)


def _settings(model: Any, given: dict[str, Any]) -> Any:
    known = inspect.signature(model.settings).parameters
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(
            f"{unknown[0]} is no setting for {model.reads}", hint=f"settings are {', '.join(known)}"
        )
    return model.settings(**given)


# ------------------------------------------------------------------------------------------ at the end


def _write_table(output: Path, sink: Sink) -> None:
    with open_writer(output, ragged=sink.ragged) as writer:
        for _, names, rows, lengths in sink.read():
            writer.extend(names, rows, lengths)


def _write_h5ad(model: Any, source: str, output: Path, key: str, how: Any, sink: Sink) -> None:
    """The input with the embeddings in `obsm[key]`, and how they were made in `uns[key]`."""
    vectors = _rows_of_all(sink, model.config.dim)
    params = {"params": model.describe(source, how, vectors)}
    with AtomicFile(output) as temporary:
        if source.endswith(".h5ad"):
            shutil.copyfile(source, temporary)
            _reserve(temporary, vectors.nbytes + 2**20)
            with h5py.File(temporary, "r+") as file:
                write_elem(file.require_group("obsm"), key, vectors)
                write_elem(file.require_group("uns"), key, params)
        else:
            cells = read_cells(source, modality=how.modality)
            cells.obsm[key], cells.uns[key] = vectors, params
            temporary.write_bytes(_h5ad_image(cells))


def _reserve(path: Path, more: int) -> None:
    """Room for a file to grow: a full disk is found here, for the HDF5 library crashes when it finds one."""
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size + more)


def _h5ad_image(cells: Any) -> bytes:
    """The content of an .h5ad; made in memory for the same reason."""
    with h5py.File("cells", "w", driver="core", backing_store=False) as file:
        write_elem(file, "/", cells, dataset_kwargs={"compression": "gzip"})
        file.flush()
        return file.id.get_file_image()


def _rows_of_all(sink: Sink, dim: int) -> Any:
    """(inputs, dim); NaN for inputs that were left out."""
    (end, _) = sink.gaps()[-1]
    vectors = np.full((end, dim), np.nan, np.float32)
    out = {one.position for one in sink.rejected}
    for shard, _, rows, _ in sink.read():
        vectors[[k for k in range(shard.start, shard.end) if k not in out]] = rows
    return vectors


def _write_rejected(output: Path, rejected: list[Rejected]) -> None:
    """`OUTPUT.rejected.jsonl`, or none, not even one of an earlier job, where nothing was left out."""
    path = output.with_name(output.name + ".rejected.jsonl")
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with AtomicFile(path) as temporary:
        temporary.write_text("".join(json.dumps(one._asdict()) + "\n" for one in rejected), encoding="utf-8")

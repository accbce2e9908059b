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
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ribozyme.engine.cluster import Cluster, connect
from ribozyme.engine.inputs import files_of, holds_cells, is_url, marks, prepare
from ribozyme.engine.load import load
from ribozyme.engine.manifest import Job
from ribozyme.engine.parts import Budget, Part, Prepared, check_on_error, prefetch
from ribozyme.engine.sink import Sink, is_begun, parts_folder
from ribozyme.errors import ConfigError, OutputError
from ribozyme.files import AtomicFile, digest
from ribozyme.io.cells import read_cells
from ribozyme.io.tables import check_output, open_writer
from ribozyme.report import Rejected

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
    engine: str = "local",
    ray_address: str | None = None,
    workers: int | None = None,
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
    input : a path that `read_sequences` or `read_cells` takes; a folder, a pattern or a URL of such files
        (`engine/inputs.py`); or `-` for sequences on standard input, which cannot be read a second time and
        so cannot be taken up again
    output : `.parquet`, `.npz`, `.zarr`, `.csv`, `.json`; of cells also `.h5ad`, with `obsm[key_added]`
    resume : leave an output that is whole as it is, where otherwise it would be made anew
    on_error : a bad record ends the job (`fail`), or goes with its reason to `OUTPUT.rejected.jsonl` (`skip`)
        and has no row in the output (in `.h5ad`, a row of NaN)
    device, dtype : of `load`
    engine : `local`, or `ray`: the same results from many processes or machines
    ray_address : of a running Ray cluster (`auto`, `host:port`); by default one on this machine, for this job
    workers : of Ray; by default one a GPU, or one a group of CPU cores
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
    files = files_of(input)
    _check_paths(input, files, output, resume)
    if resume and output.exists() and not is_begun(output):
        return Outcome(existed=True)
    with _machines(engine, ray_address, workers) as machines:
        model = _loaded(model, files[0], machines.load, device, dtype)
        _check_kinds(model, files[0], output)
        how = _settings(model, settings)
        job, ragged = job_of(model, files, how), how.pooling == "none"
        with Sink(output, job, ragged=ragged, once=input == "-") as sink:
            stopped = _compute(machines.compute, model, files, how, sink, on_error, stop, advance)
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
    compute: Callable[..., Generator[Part, None, None]],
    model: Any,
    files: list[str],
    how: Any,
    sink: Sink,
    on_error: str,
    stop: Callable[[], int | None],
    advance: Callable[[int], None],
) -> int | None:
    """Every missing part into the sink; the answer of `stop`, if it had one."""
    advance(sink.rows)
    for start, end in sink.gaps():
        ready = prefetch(prepare(model, files, how, start=start, on_error=on_error))
        with closing(ready), closing(compute(model, how, ready)) as parts:
            for part in parts:
                sink.write(part)
                advance(len(part.names))
                if (stopped := stop()) is not None:
                    return stopped
                if part.end == end:
                    break
    return None


class Here:
    """This process as the machine of a job; `cluster.Cluster` is the other one."""

    load = staticmethod(load)

    @staticmethod
    def compute(model: Any, how: Any, prepared: Iterable[Prepared]) -> Generator[Part, None, None]:
        """`model.compute` of each of `prepared`, in order."""
        budget = Budget(how.batch_tokens)
        for one in prepared:
            yield model.compute(one, how, budget)


@contextmanager
def _machines(engine: str, address: str | None, workers: int | None) -> Iterator[Here | Cluster]:
    if engine == "ray":
        with connect(address, workers) as cluster:
            yield cluster
        return
    if engine != "local":
        raise ConfigError(f"engine {engine!r} does not exist", hint="one of local, ray")
    if address is not None or workers is not None:
        raise ConfigError("an address and workers are for a cluster", hint="engine='ray'")
    yield Here()


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


def job_of(model: Any, files: list[str], how: Any) -> Job:
    """What results depend on: input, weights, settings, and the version of this library."""
    return {
        "input": digests(files),
        "model": {
            "name": model.record.name if model.record else type(model.module).__name__,
            "weights": weights_digest(model),
            "dtype": "/".join(
                sorted({str(w.dtype).removeprefix("torch.") for w in model.module.parameters()})
            ),
        },
        "settings": asdict(how),
        "ribozyme": version("ribozyme"),
    }


def digests(files: list[str]) -> dict[str, Any]:
    """The sha256 of a file with its name, or one of all files with their number."""
    if files == ["-"]:
        return {"standard input": os.urandom(8).hex()}
    if len(files) == 1:
        return {Path(files[0]).name: _digest(files[0])}
    whole = "".join(f"{Path(file).name} {_digest(file)}\n" for file in files)
    return {"files": len(files), "all of them": hashlib.sha256(whole.encode()).hexdigest()}


def _digest(file: str) -> Any:
    """sha256 of a file or of all in a folder; of a file behind a URL what its server tells of it."""
    if is_url(file):
        return marks(file)
    path = Path(file)
    if path.is_file():
        return digest(path)
    whole = hashlib.sha256()
    for one in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(f"{one.relative_to(path)} {digest(one)}\n".encode())
    return whole.hexdigest()


def weights_digest(model: Any) -> str:
    """sha256 of the network as it is in memory: sizes, vocabulary, every tensor."""
    tokens = model.vocabulary.tokens if model.reads == "cells" else model.tokenizer.letters
    whole = hashlib.sha256(json.dumps([repr(model.config), list(tokens)]).encode())
    for name, tensor in sorted(model.module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


# --------------------------------------------------------------------------------------- before work


def _check_paths(input: str, files: list[str], output: Path, resume: bool) -> None:
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
    if output.suffix.lower() != ".h5ad" or not (holds_cells(files[0]) or input.endswith(TABLE_SUFFIXES)):
        check_output(output)
    elif files != [input] or is_url(input):
        raise ConfigError(
            f"{output}: a .h5ad is written from one file on this machine", hint="choose .parquet, or .zarr"
        )


def _loaded(model: Any, input: str, load: Callable[..., Any], device: str, dtype: str) -> Any:
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
    from anndata.io import write_elem  # a second to import, for cells alone

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
    from anndata.io import write_elem

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

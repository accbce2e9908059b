"""A long job: a file of inputs becomes a file of embeddings, with nothing lost on the way.

Reading, computing and writing overlap; results go through a `Sink`, so that a job that was stopped, killed or
ran out of disk goes on where it was when it is started again.
"""

import inspect
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ribozyme.engine.cluster import Cluster, connect
from ribozyme.engine.identity import job_of
from ribozyme.engine.inputs import files_of, holds_cells, is_url, prepare
from ribozyme.engine.load import load
from ribozyme.engine.outputs import WRITERS, write_output
from ribozyme.engine.parts import Part, check_on_error, computed, prefetch
from ribozyme.engine.sink import Sink, is_begun, parts_folder
from ribozyme.errors import ConfigError, OutputError
from ribozyme.io.kinds import is_table
from ribozyme.io.tables import check_output

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
                write_output(sink, model, input, how, key_added=key_added)
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
    compute = staticmethod(computed)


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
    if output.suffix.lower() not in WRITERS or not (holds_cells(files[0]) or is_table(input)):
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
    if model.reads != holds and not is_table(input):
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

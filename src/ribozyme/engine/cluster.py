"""The same job on many devices: parts are prepared here, computed by workers of Ray, and written here.

A worker is an actor: a process with one GPU, or a group of CPU cores, that holds the model. It gets a
`Prepared` and gives its `Part`, so that what is computed does not depend on who computes it. Ray starts the
workers, brings the data to them, and starts them again where one is lost; the parts that it had are computed
again.

Plain actors rather than Ray Data: a part is a function of what it was made from and of nothing else, the sink
knows which parts are there, and the blocks of Ray Data would have to be cut into the same parts again to give
the same bits.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ribozyme.engine.device import choose_device
from ribozyme.engine.load import load
from ribozyme.engine.parts import Budget, Part, Prepared, until_error
from ribozyme.engine.threads import batch_threads
from ribozyme.errors import ConfigError, DeviceError, MissingExtraError, RibozymeError

CORES = 4
"""Cores of a CPU worker at most: a part has too few batches for more."""
IN_HAND, AHEAD = 2, 4
"""Parts that a worker has, one of them waiting; parts a worker that may be ahead of what is written."""
RETRIES, RESTARTS = 3, 20
"""How often a part is computed again when its worker is lost; how often a worker is started again."""
PATIENCE, LAST = 60.0, 5.0
"""Seconds until it is said that no worker has started; seconds for the last parts when the job is stopped."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

log = logging.getLogger("ribozyme")


class Worker:
    """The model on one device, in a process of its own.

    `shared` is the reference to the model. It comes with every call, for one that was started again has none.
    """

    def __init__(self, how: Any, threads: int, version: str) -> None:
        self.how, self.budget, self.threads, self.version = how, Budget(how.batch_tokens), threads, version
        self.model: Any = None

    def ready(self, shared: list[Any]) -> None:
        """Have the model on the device."""
        import ray

        if self.model is not None:
            return
        here = metadata.version("ribozyme")
        if self.version != here:
            raise ConfigError(
                f"a worker has ribozyme {here}, the job was started with {self.version}",
                hint="install one version on all machines of the cluster",
            )
        model = ray.get(shared[0])
        device = choose_device(str(model.device))
        model.module.to(device)
        torch.set_num_threads(self.threads)
        self.budget.threads = batch_threads(device)
        self.model = model

    def compute(self, shared: list[Any], prepared: Prepared) -> Part:
        """The results of a part."""
        self.ready(shared)
        part: Part = self.model.compute(prepared, self.how, self.budget)
        return part


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster that this process is connected to; made by `connect`.

    cores, gpus : of each machine
    workers : how many are wanted, None for one a GPU, or as many groups of cores as there are
    """

    cores: list[int]
    gpus: int
    workers: int | None = None

    def load(self, name: str | Path, *, device: str = "auto", dtype: str = "auto") -> Any:
        """A model, read here and meant for the devices of the workers; its weights stay in memory here."""
        kind = ("cuda" if self.gpus else "cpu") if device == "auto" else device
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"device {device!r} is not for a cluster", hint="auto, cpu or cuda")
        if kind == "cuda" and not self.gpus:
            raise DeviceError("device 'cuda' was asked for, but the cluster has no GPU", hint="device='cpu'")
        if kind == "cuda" and dtype == "auto":  # this machine may have none to ask
            dtype = "bfloat16"
        model = load(name, device="cpu", dtype=dtype)
        model.device = torch.device(kind)  # of batches to be planned; the network moves in the worker
        return model

    def compute(self, model: Any, how: Any, prepared: Iterable[Prepared]) -> Generator[Part, None, None]:
        """What `model.compute` gives for each of `prepared`, in order, with a bounded number under way.

        Raises
        ------
        RibozymeError : of the model in a worker, or of what was read, once all before it is there.
        DeviceError : workers cannot start, or are lost again and again.
        """
        import ray

        workers, threads = self.shares(model.device.type)
        gpu = {"num_gpus": 1} if model.device.type == "cuda" else {}
        actor = ray.remote(num_cpus=threads, max_restarts=RESTARTS, max_task_retries=RETRIES, **gpu)(Worker)
        shared = [ray.put(model)]  # in a list, where Ray leaves it as it is
        ours = metadata.version("ribozyme")
        pool = Pool([actor.remote(how, threads, ours) for _ in range(workers)], shared)
        errors: list[Exception] = []
        try:
            yield from pool.compute(until_error(prepared, errors))
        finally:
            pool.close()
        for error in errors:
            raise error

    def shares(self, kind: str) -> tuple[int, int]:
        """How many workers, and cores of each."""
        if kind == "cuda":
            return self.workers or self.gpus, 1
        if self.workers is None:
            threads = min(CORES, max(1, min(self.cores) // 2))
            return sum(cores // threads for cores in self.cores), threads
        for threads in range(max(self.cores), 0, -1):
            if sum(cores // threads for cores in self.cores) >= self.workers:
                return self.workers, threads
        return self.workers, 1  # more than there are cores: the cluster may grow


class Pool:
    """Workers, and who of them is at what."""

    def __init__(self, workers: list[Any], shared: list[Any]) -> None:
        self.workers, self.shared = workers, shared
        self.starting = {worker.ready.remote(shared): worker for worker in workers}
        self.busy: dict[Any, Any] = {}
        self.free: deque[Any] = deque()

    def compute(self, prepared: Iterable[Prepared]) -> Iterator[Part]:
        """Parts in the order of `prepared`."""
        waiting: deque[tuple[Any, Prepared]] = deque()
        for one in prepared:
            while not self.free:
                self._wait()
            worker = self.free.popleft()
            reference = worker.compute.remote(self.shared, one)
            self.busy[reference] = worker
            waiting.append((reference, one))
            self._wait(timeout=0)
            while waiting and (waiting[0][0] not in self.busy or len(waiting) >= AHEAD * len(self.workers)):
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def close(self) -> None:
        """End the workers; what waits for them is given up, for what is at work some seconds are left."""
        import ray

        for reference in self.busy:
            ray.cancel(reference)
        if self.busy:
            ray.wait([*self.busy], num_returns=len(self.busy), timeout=LAST)
        for worker in self.workers:
            ray.kill(worker)

    def _wait(self, timeout: float = PATIENCE) -> None:
        """Until some worker is free, or for so many seconds."""
        import ray

        done, _ = ray.wait([*self.starting, *self.busy], timeout=timeout)
        for reference in done:
            if reference in self.busy:
                self.free.append(self.busy.pop(reference))
            else:
                _result(reference)
                self.free.extend([self.starting.pop(reference)] * IN_HAND)
        if timeout and not done and len(self.starting) == len(self.workers):
            log.warning(
                "no worker has started yet: does the cluster have what %d of them need?", len(self.workers)
            )


@contextmanager
def connect(address: str | None = None, workers: int | None = None) -> Iterator[Cluster]:
    """A running cluster (`auto`, `host:port`, `ray://host:port`), or one on this machine while it is needed.

    Raises
    ------
    MissingExtraError : Ray is not installed.
    DeviceError : no cluster answers at the address.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtraError("Ray", "ray", "engine 'ray'") from error
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers} must be positive")
    if ray.is_initialized():  # by the caller, who also ends it
        yield _cluster(ray, workers)
        return
    folder = None if address else Path(tempfile.mkdtemp(prefix="rz-", dir=_short_folder()))
    local = {"address": "local", "include_dashboard": False, "_temp_dir": str(folder)}
    with _quiet():
        try:
            _knock(address)
            ray.init(
                **({"address": address} if address else local),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            where = f"no Ray cluster answers at {address!r}" if address else "Ray cannot start here"
            raise DeviceError(f"{where} ({_first_line(error)})", hint="see `ray status`") from error
    try:
        cluster = _cluster(ray, workers)
        if address is None and workers is not None and workers > max(sum(cluster.cores), cluster.gpus):
            raise ConfigError(f"{workers} workers, but this machine has {sum(cluster.cores)} cores")
        yield cluster
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _cluster(ray: Any, workers: int | None) -> Cluster:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(one["CPU"]) for one in machines if one.get("CPU", 0) >= 1]
    return Cluster(cores or [1], int(sum(one.get("GPU", 0) for one in machines)), workers)


def _result(reference: Any, prepared: Prepared | None = None) -> Any:
    """What a worker answered; what it died of, or what is known of that, becomes one of our errors."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RibozymeError):
            raise cause from None
        raise DeviceError(f"a worker failed: {type(cause).__name__}: {_first_line(cause)}") from cause
    except RayError as error:
        at = f"at inputs {prepared.start:,} to {prepared.end:,}" if prepared else "when it loaded the model"
        raise DeviceError(
            f"a worker was lost again and again {at} ({_first_line(error)})",
            hint="did its memory suffice? fewer workers, or smaller batch_tokens, need less",
        ) from None


def _knock(address: str | None) -> None:
    """Raise an error where nothing listens: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE / 4).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _short_folder() -> str | None:
    """Where sockets can be made: their paths have at most 107 bytes, 65 of which are Ray's."""
    return None if len(tempfile.gettempdir()) < 30 else "/tmp"


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray takes settings from the environment and the handler of SIGTERM for itself; both are given back."""
    before = {name: os.environ.get(name) for name in QUIET}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    os.environ.update(QUIET)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        if main:
            signal.signal(signal.SIGTERM, handler)

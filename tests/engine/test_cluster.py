"""The same job on many processes: the same bits, whatever is killed on the way.

    pytest -m ray tests/engine/test_cluster.py        # needs the extra ray; some minutes on two cores

A worker is killed for real (SIGKILL), and so is the process that began the job.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest

import ribozyme as rz
from ribozyme.engine import cluster
from ribozyme.engine.cluster import AHEAD, Cluster, connect
from ribozyme.engine.job import Outcome, embed_file
from ribozyme.engine.parts import Prepared
from ribozyme.engine.sequences import SequenceModel
from ribozyme.engine.sink import parts_folder
from ribozyme.errors import ConfigError, DeviceError, InputError, MissingExtraError

HOW = {"batch_tokens": 20}
RAY = {"engine": "ray", "workers": 2}


@pytest.fixture(scope="module")
def ray_cluster():
    """One cluster for the tests that end none; `embed_file` uses the one that its process is connected to."""
    pytest.importorskip("ray", reason="the extra ray is not installed: pip install 'ribozyme[ray]'")
    with connect() as here:
        yield here


@pytest.fixture(autouse=True)
def _a_shard_a_part(monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 0)


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text("".join(f">s{k}\n{'ACGU'[k % 4] * (3 + 7 * k % 40)}GAC\n" for k in range(120)))
    return path


@pytest.fixture(scope="module")
def scgpt(fixtures):
    return rz.load(fixtures / "scgpt" / "plain")


def workers_of(pid=None):
    """Processes of Ray that hold a model."""
    below = psutil.Process(pid).children(recursive=True)
    return [one for one in below if "ray::Worker" in " ".join(_command(one))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def same(a, b):
    """The same bytes: names, numbers and all else."""
    return a.read_bytes() == b.read_bytes()


def after(parts):
    count = iter(range(10**6))
    return lambda: 15 if next(count) + 1 >= parts else None


# -------------------------------------------------------------------------------------- without a cluster


def test_without_ray_the_extra_is_named(rnafm, fasta, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"(?s)engine 'ray' needs Ray.*ribozyme\[ray\]"):
        embed_file(rnafm, fasta, tmp_path / "out.parquet", **RAY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "spark"}, "engine 'spark' does not exist"),
        ({"workers": 2}, "are for a cluster"),
        ({"ray_address": "auto"}, "are for a cluster"),
    ],
)
def test_settings_that_make_no_sense(rnafm, fasta, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        embed_file(rnafm, fasta, tmp_path / "out.parquet", **given)


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "kind", "expected"),
    [
        ([2], 0, None, "cpu", (2, 1)),
        ([2], 0, 1, "cpu", (1, 2)),
        ([1], 0, None, "cpu", (1, 1)),
        ([16, 8], 0, None, "cpu", (6, 4)),
        ([16, 8], 0, 3, "cpu", (3, 8)),
        ([16, 8], 0, 5, "cpu", (5, 4)),
        ([2], 0, 9, "cpu", (9, 1)),
        ([16], 8, None, "cuda", (8, 1)),
        ([16], 8, 3, "cuda", (3, 1)),
        ([16], 8, None, "cpu", (4, 4)),
    ],
)
def test_cores_are_divided_among_workers(cores, gpus, workers, kind, expected):
    assert Cluster(cores, gpus, workers).shares(kind) == expected


def test_a_model_is_for_the_devices_of_the_workers():
    model = Cluster([8], gpus=2).load("rnafm-mini")
    assert model.device.type == "cuda"
    assert {str(w.device) for w in model.module.parameters()} == {"cpu"}
    assert model.settings().batch_tokens > Cluster([8], gpus=0).load("rnafm-mini").settings().batch_tokens
    with pytest.raises(DeviceError, match="the cluster has no GPU"):
        Cluster([8], gpus=0).load("rnafm-mini", device="cuda")
    with pytest.raises(ConfigError, match="not for a cluster"):
        Cluster([8], gpus=2).load("rnafm-mini", device="cuda:1")


# ---------------------------------------------------------------------------------------------- the results


@pytest.mark.ray
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_sequences_get_the_same_bits(ray_cluster, rnafm, fasta, tmp_path, pooling):
    embed_file(rnafm, fasta, tmp_path / "here.parquet", **HOW, pooling=pooling)
    outcome = embed_file(rnafm, fasta, tmp_path / "ray.parquet", **HOW, **RAY, pooling=pooling)
    assert outcome == Outcome(rows=120)
    assert same(tmp_path / "here.parquet", tmp_path / "ray.parquet")


@pytest.mark.ray
def test_so_do_cells(ray_cluster, scgpt, tmp_path):
    genes = list(scgpt.vocabulary.genes)[:20]
    X = np.random.default_rng(0).poisson(1.0, (40, len(genes))).astype(np.float32)
    cells = ad.AnnData(X, obs=pd.DataFrame(index=[f"c{k}" for k in range(40)]), var=pd.DataFrame(index=genes))
    cells.write_h5ad(tmp_path / "in.h5ad")
    for name, engine in (("here", {}), ("ray", RAY)):
        embed_file(scgpt, tmp_path / "in.h5ad", tmp_path / f"{name}.parquet", batch_tokens=5, **engine)
        embed_file(scgpt, tmp_path / "in.h5ad", tmp_path / f"{name}.h5ad", batch_tokens=5, **engine)
    assert same(tmp_path / "here.parquet", tmp_path / "ray.parquet")
    here, there = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("here", "ray"))
    np.testing.assert_array_equal(here.obsm["X_ribozyme"], there.obsm["X_ribozyme"])


@pytest.mark.ray
def test_bad_records_and_several_files(ray_cluster, rnafm, fasta, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    fasta.rename(folder / "b.fa")
    (folder / "a.fa").write_text(">x\nACGU\n>bad\nAC7U\n>y\nACXU\n")
    for name, engine in (("here", {}), ("ray", RAY)):
        with pytest.warns(rz.errors.InputWarning, match="1 letter that the model does not know"):
            outcome = embed_file(
                rnafm, folder, tmp_path / f"{name}.parquet", **HOW, **engine, on_error="skip"
            )
        assert outcome == Outcome(rows=122, rejected=1)
    assert same(tmp_path / "here.parquet", tmp_path / "ray.parquet")
    assert same(tmp_path / "here.parquet.rejected.jsonl", tmp_path / "ray.parquet.rejected.jsonl")


@pytest.mark.ray
def test_a_stopped_job_goes_on_on_either_engine(ray_cluster, rnafm, fasta, tmp_path):
    embed_file(rnafm, fasta, tmp_path / "whole.parquet", **HOW)
    output = tmp_path / "out.parquet"
    assert embed_file(rnafm, fasta, output, **HOW, **RAY, stop=after(2)).stopped == 15
    assert embed_file(rnafm, fasta, output, **HOW, stop=after(2)).rows < 120
    assert embed_file(rnafm, fasta, output, **HOW, **RAY) == Outcome(rows=120)
    assert same(tmp_path / "whole.parquet", output)


@pytest.mark.ray
def test_only_so_much_is_under_way(ray_cluster, rnafm, fasta):
    how, taken = rnafm.settings(**HOW), 0

    def counted():
        nonlocal taken
        for one in rnafm.prepare([("a", "ACGU" * 20)] * 120, how):
            taken += 1
            yield one

    with closing(Cluster([2], 0, 2).compute(rnafm, how, counted())) as parts:
        for given, _ in enumerate(parts, start=1):
            assert taken <= given + 2 * AHEAD
    assert given == taken == 60


@pytest.mark.ray
def test_a_bad_record_in_a_stream_loses_nothing_before_it(ray_cluster, rnafm):
    how, names = rnafm.settings(**HOW), [f"s{k}" for k in range(60)]

    def stream():
        yield from rnafm.prepare([(name, "ACGU" * 20) for name in names], how)
        raise InputError("no RNA")

    with closing(Cluster([2], 0, 2).compute(rnafm, how, stream())) as parts:
        assert [name for _, part in zip(range(30), parts) for name in part.names] == names
        with pytest.raises(InputError, match="no RNA"):
            next(parts)


# ------------------------------------------------------------------------------------------------ trouble


@pytest.mark.ray
def test_workers_that_are_killed_cost_nothing_but_time(ray_cluster, rnafm, fasta, tmp_path):
    embed_file(rnafm, fasta, tmp_path / "whole.parquet", **HOW)
    rows, killed = 0, []

    def kill_now_and_then(count):
        nonlocal rows
        rows += count
        alive = workers_of()  # the one that was killed last may not have begun again
        if alive and rows > 30 * (len(killed) + 1) and len(killed) < 3:
            one = alive[len(killed) % len(alive)]
            one.kill()
            killed.append(one.pid)

    outcome = embed_file(rnafm, fasta, tmp_path / "out.parquet", **HOW, **RAY, advance=kill_now_and_then)
    assert len(set(killed)) == 3
    assert outcome == Outcome(rows=120)
    assert rows == 120
    assert same(tmp_path / "whole.parquet", tmp_path / "out.parquet")


@pytest.mark.ray
def test_a_part_that_kills_its_workers_is_one_error(ray_cluster, rnafm, fasta, tmp_path):
    class Poisoned(SequenceModel):
        def compute(self, prepared, how, budget):
            if prepared.start <= 60 < prepared.end:
                os._exit(9)  # as when the system takes a process that holds too much memory
            return SequenceModel.compute(self, prepared, how, budget)

    model = Poisoned(rnafm.module, rnafm.tokenizer, rnafm.device)
    with pytest.raises(DeviceError, match=r"(?s)lost again and again at inputs .*did its memory") as caught:
        embed_file(model, fasta, tmp_path / "out.parquet", **HOW, **RAY)
    assert "results are kept" in caught.value.__notes__[0]
    assert embed_file(rnafm, fasta, tmp_path / "out.parquet", **HOW) == Outcome(rows=120)
    assert not workers_of()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("thrown", "expected", "message"),
    [
        (
            RuntimeError("a kernel failed\nline 2"),
            DeviceError,
            "a worker failed: RuntimeError: a kernel failed",
        ),
        (InputError("too long", hint="cut it"), InputError, "too long\n  hint: cut it"),
    ],
)
def test_an_error_in_a_worker_is_one_error_here(
    ray_cluster, rnafm, fasta, tmp_path, thrown, expected, message
):
    class Failing(SequenceModel):
        def compute(self, prepared, how, budget):
            raise thrown

    model = Failing(rnafm.module, rnafm.tokenizer, rnafm.device)
    with pytest.raises(expected) as caught:
        embed_file(model, fasta, tmp_path / "out.parquet", **HOW, **RAY)
    assert str(caught.value) == message
    assert not parts_folder(tmp_path / "out.parquet").exists()


@pytest.mark.ray
def test_a_model_that_no_worker_can_hold_is_one_error(ray_cluster, rnafm, fasta, tmp_path):
    class Huge(SequenceModel):
        def __reduce__(self):
            return _no_room, ()

    def _no_room():
        raise MemoryError("cannot allocate")

    model = Huge(rnafm.module, rnafm.tokenizer, rnafm.device)
    with pytest.raises(DeviceError, match=r"a worker failed: .*cannot allocate"):
        embed_file(model, fasta, tmp_path / "out.parquet", **HOW, **RAY)


@pytest.mark.ray
def test_workers_of_another_version_are_refused(ray_cluster, rnafm, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(ConfigError, match=r"the job was started with 0\.0\.1"):
        embed_file(rnafm, fasta, tmp_path / "out.parquet", **HOW, **RAY)


@pytest.mark.ray
def test_each_worker_has_as_many_threads_as_cores(ray_cluster, rnafm):
    class Telling(SequenceModel):
        def compute(self, prepared, how, budget):
            import torch

            return torch.get_num_threads()

    model = Telling(rnafm.module, rnafm.tokenizer, rnafm.device)
    [threads] = Cluster([2], 0, 1).compute(model, model.settings(), [Prepared(0, 1)])
    assert threads == 2


# ------------------------------------------------------------------------------------- a cluster of its own


def start(fasta, output, *more):
    """The command, in a session of its own, with a shard a part."""
    code = (
        "import sys; from ribozyme.engine import sink; sink.SHARD_SECONDS = 0; "
        "from ribozyme.cli import main; sys.argv[0] = 'ribozyme'; main()"
    )
    command = [sys.executable, "-c", code, "embed", fasta, "-o", output, "--batch-tokens", "20", *more]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def wait_for_shards(process, output):
    for _ in range(1800):
        if len(list(parts_folder(output).glob("*.parquet"))) >= 3:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("no shards after three minutes")


@pytest.fixture
def long_fasta(tmp_path):
    path = tmp_path / "long.fa"
    path.write_text("".join(f">s{k}\n{'ACGU'[k % 4] * (3 + 7 * k % 40)}GAC\n" for k in range(1500)))
    return path


@pytest.mark.ray
def test_the_command_leaves_nothing_behind(fasta, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed: pip install 'ribozyme[ray]'")
    (tmp_path / "temporary").mkdir()
    before = set(Path("/tmp").glob("rz-*"))
    process = start(fasta, tmp_path / "out.parquet", "--engine", "ray", "--workers", "2")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    slow = "no worker has started yet"  # which is said on a machine that has much else to do
    assert [line for line in said.splitlines() if slow not in line] == []
    embed_file("rnafm-mini", fasta, tmp_path / "whole.parquet", **HOW)
    assert same(tmp_path / "whole.parquet", tmp_path / "out.parquet")
    assert set(Path("/tmp").glob("rz-*")) == before


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_whose_driver_is_stopped_goes_on(long_fasta, tmp_path, monkeypatch, number):
    pytest.importorskip("ray", reason="the extra ray is not installed: pip install 'ribozyme[ray]'")
    output = tmp_path / "out.parquet"
    process = start(long_fasta, output, "--engine", "ray", "--workers", "2")
    wait_for_shards(process, output)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("ray::Worker" in " ".join(_command(one)) for one in family)
    if number == signal.SIGINT:  # as Ctrl-C, which reaches all processes of the terminal
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    if number != signal.SIGKILL:
        assert "results are kept" in said
        assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=180)[1]  # Ray's own agents notice a SIGKILL after a minute
    assert not output.exists()
    kept = len(list(parts_folder(output).glob("*.parquet")))
    assert kept >= 3
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 30)
    assert embed_file("rnafm-mini", long_fasta, output, **HOW) == Outcome(rows=1500)
    embed_file("rnafm-mini", long_fasta, tmp_path / "whole.parquet", **HOW)
    whole, resumed = pd.read_parquet(tmp_path / "whole.parquet"), pd.read_parquet(output)
    assert list(whole["id"]) == list(resumed["id"])  # row groups of the files are those of their shards
    np.testing.assert_array_equal(np.stack(list(whole["embedding"])), np.stack(list(resumed["embedding"])))


@pytest.mark.ray
def test_no_cluster_at_an_address_is_one_error(rnafm, fasta, tmp_path):
    code = (
        "import sys, ribozyme as rz\nfrom ribozyme.engine.cluster import connect\n"
        "try:\n    connect('127.0.0.1:1').__enter__()\n"
        "except rz.errors.DeviceError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "no Ray cluster answers at '127.0.0.1:1'" in said.stdout, said.stderr


@pytest.mark.ray
def test_more_workers_than_cores_are_refused():
    code = (
        "import ribozyme as rz\nfrom ribozyme.engine.cluster import connect\n"
        "try:\n    connect(workers=999).__enter__()\n"
        "except rz.errors.ConfigError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "999 workers, but this machine has" in said.stdout, said.stderr

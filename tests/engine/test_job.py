"""A long job: whatever happens on the way, every input has its row once, or there is one clear error."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ribozyme as rz
from ribozyme.cli import main
from ribozyme.engine.job import Outcome, embed_file, stopped_by_signals
from ribozyme.engine.sink import Sink, parts_folder
from ribozyme.errors import ConfigError, InputError, InputWarning, OutputError

SEQUENCES = [(f"s{k}", "ACGU"[k % 4] * (3 + 7 * k % 40) + "GAC") for k in range(30)]
HOW = {"batch_tokens": 20}
FORMATS = [".parquet", ".npz", ".csv", ".json", ".zarr"]


@pytest.fixture(autouse=True)
def _a_shard_a_part(monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 0)


@pytest.fixture
def fasta(tmp_path):
    return write_fasta(tmp_path / "in.fa", SEQUENCES)


@pytest.fixture(scope="module")
def scgpt(fixtures):
    return rz.load(fixtures / "scgpt" / "plain")


@pytest.fixture
def h5ad(tmp_path, scgpt):
    return write_cells(tmp_path / "cells.h5ad", scgpt)


@pytest.fixture
def piped(monkeypatch):
    """Make a file the standard input."""
    with ExitStack() as stack:
        yield lambda path: monkeypatch.setattr("sys.stdin", stack.enter_context(path.open()))


def write_fasta(path, records):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    return path


def write_cells(path, model, bad=()):
    genes = list(model.vocabulary.genes)[:20]
    X = np.random.default_rng(0).poisson(1.0, (25, len(genes))).astype(np.float32)
    X[:, 0] += 1
    X[list(bad)] = -1
    obs = pd.DataFrame(index=[f"c{k}" for k in range(25)])
    ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    return path


def after(parts):
    """A `stop` that answers after so many parts."""
    count = iter(range(10**6))
    return lambda: 15 if next(count) + 1 >= parts else None


def read(path):
    """(name, bytes of its numbers) in the order of the file, by the readers that people use."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        rows = [np.stack(list(row)) for row in table["embedding"]]
        return [(name, row.tobytes()) for name, row in zip(table["id"], rows)]
    if path.suffix == ".npz":
        content = np.load(path)
        return [(str(n), row.tobytes()) for n, row in zip(content["names"], content["embeddings"])]
    if path.suffix == ".zarr":
        import zarr

        content = zarr.open(path, mode="r")
        return [(str(n), row.tobytes()) for n, row in zip(content["names"][:], content["embeddings"][:])]
    if path.suffix == ".json":
        return [(one["id"], np.float32(one["embedding"]).tobytes()) for one in json.loads(path.read_text())]
    if path.suffix == ".h5ad":
        content = ad.read_h5ad(path)
        return [(n, row.tobytes()) for n, row in zip(content.obs_names, content.obsm["X_ribozyme"])]
    table = pd.read_csv(path, index_col="id", keep_default_na=False)
    return [(str(n), row.tobytes()) for n, row in zip(table.index, table.to_numpy(np.float32))]


def beside(output):
    return sorted(path.name for path in output.parent.iterdir())


# ------------------------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stopped_job_goes_on_and_equals_one_that_was_not(rnafm, fasta, suffix):
    whole, output = fasta.with_name(f"whole{suffix}"), fasta.with_name(f"out{suffix}")
    assert embed_file(rnafm, fasta, whole, **HOW) == Outcome(rows=30)
    stopped = embed_file(rnafm, fasta, output, **HOW, stop=after(2))
    assert stopped.stopped == 15
    assert 0 < stopped.rows < 30
    assert not output.exists()
    again = embed_file(rnafm, fasta, output, **HOW, stop=after(1))
    assert stopped.rows < again.rows < 30
    assert embed_file(rnafm, fasta, output, **HOW, resume=True) == Outcome(rows=30)
    assert read(output) == read(whole)
    assert [name for name, _ in read(output)] == [name for name, _ in SEQUENCES]
    assert beside(output) == sorted(["in.fa", output.name, whole.name])


def test_one_row_a_letter_too(rnafm, fasta, tmp_path):
    embed_file(rnafm, fasta, tmp_path / "whole.parquet", **HOW, pooling="none")
    embed_file(rnafm, fasta, tmp_path / "out.parquet", **HOW, pooling="none", stop=after(2))
    embed_file(rnafm, fasta, tmp_path / "out.parquet", **HOW, pooling="none")
    assert read(tmp_path / "out.parquet") == read(tmp_path / "whole.parquet")


@pytest.mark.parametrize("suffix", [".h5ad", ".parquet", ".npz"])
def test_cells_too(scgpt, h5ad, suffix):
    whole, output = h5ad.with_name(f"whole{suffix}"), h5ad.with_name(f"out{suffix}")
    embed_file(scgpt, h5ad, whole, batch_tokens=5)
    assert embed_file(scgpt, h5ad, output, batch_tokens=5, stop=after(2)).rows < 25
    assert embed_file(scgpt, h5ad, output, batch_tokens=5).rows == 25
    assert read(output) == read(whole)
    expected = scgpt.embed(h5ad, batch_tokens=5)
    np.testing.assert_allclose(
        [np.frombuffer(row, np.float32) for _, row in read(output)], expected, atol=1e-5
    )


def test_the_h5ad_is_the_input_with_the_embedding_and_how_it_was_made(scgpt, h5ad, tmp_path):
    before = ad.read_h5ad(h5ad)
    embed_file(scgpt, h5ad, tmp_path / "out.h5ad", key_added="X_a", seed=3)
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    scgpt.embed(before, key_added="X_a", seed=3)
    np.testing.assert_array_equal(written.obsm["X_a"], before.obsm["X_a"])
    np.testing.assert_array_equal(written.X, before.X)
    for key, value in before.uns["X_a"]["params"].items():
        assert written.uns["X_a"]["params"][key] == value


def test_warnings_count_the_whole_job_whenever_it_was_stopped(rnafm, tmp_path):
    odd = write_fasta(tmp_path / "odd.fa", [(f"s{k}", "ACZ" * 12) for k in range(20)])
    assert embed_file(rnafm, odd, tmp_path / "out.npz", **HOW, stop=after(2)).rows < 20
    with pytest.warns(InputWarning, match=r"240 letters that the model does not know.*s0, s1, s2"):
        embed_file(rnafm, odd, tmp_path / "out.npz", **HOW)


def test_resume_leaves_what_is_whole(rnafm, fasta, tmp_path):
    output = tmp_path / "out.npz"
    embed_file(rnafm, fasta, output, **HOW)
    before = output.stat()
    assert embed_file(rnafm, fasta, output, **HOW, resume=True).existed
    assert output.stat() == before
    assert not embed_file(rnafm, fasta, output, **HOW).existed
    assert output.stat().st_mtime_ns > before.st_mtime_ns


def test_killed_while_a_zarr_is_replaced_a_job_leaves_nothing_behind(rnafm, fasta, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    embed_file(rnafm, fasta, whole, **HOW)
    embed_file(rnafm, fasta, output, **HOW, pooling="max")
    replace = os.replace

    def killed(source, target):
        if Path(target) == output:
            raise SystemExit
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(shutil, "rmtree", lambda *args, **more: None)
        with pytest.raises(SystemExit):
            embed_file(rnafm, fasta, output, **HOW)
    assert len([name for name in beside(output) if name.endswith(".tmp")]) == 2  # the old one and the new
    embed_file(rnafm, fasta, output, **HOW)
    assert read(output) == read(whole)
    assert beside(output) == sorted(["in.fa", output.name, whole.name])


# ----------------------------------------------------------------------------- what cannot go on, and says so


def test_changed_input_model_settings_or_version_are_refused_by_name(rnafm, fasta, tmp_path, monkeypatch):
    output = tmp_path / "out.npz"
    embed_file(rnafm, fasta, output, **HOW, stop=after(2))

    def refused(words, model=rnafm, **how):
        with pytest.raises(OutputError, match=words):
            embed_file(model, fasta, output, **{**HOW, **how})

    refused("settings pooling was mean and is max", pooling="max")
    refused("settings layer was 2 and is 1", layer=1)
    refused("settings batch_tokens was 20 and is 30", batch_tokens=30)
    refused("model weights was .* and is", model=rnafm.untrained(seed=5))
    with monkeypatch.context() as patch:
        patch.setattr("ribozyme.engine.identity.version", lambda name: "9.9")
        refused("ribozyme was .* and is 9.9")
    records = [*SEQUENCES[:-1], ("s29", "AAAA")]
    write_fasta(fasta, records)
    refused("input in.fa was .* and is")
    write_fasta(fasta, SEQUENCES)
    assert embed_file(rnafm, fasta, output, **HOW).rows == 30


def test_standard_input_is_embedded_but_cannot_be_resumed(rnafm, fasta, tmp_path, piped):
    output = tmp_path / "out.npz"
    piped(fasta)
    assert embed_file(rnafm, "-", output, **HOW).rows == 30
    with pytest.raises(ConfigError, match="standard input cannot be read a second time"):
        embed_file(rnafm, "-", output, **HOW, resume=True)
    piped(fasta)
    assert embed_file(rnafm, "-", output, **HOW, stop=after(2)).stopped
    with pytest.raises(OutputError, match="earlier job"):
        embed_file(rnafm, "-", output, **HOW)
    assert len(read(output)) == 30


def test_settings_of_the_other_kind_are_an_error(rnafm, scgpt, fasta, h5ad, tmp_path):
    with pytest.raises(ConfigError, match="gene_column is no setting for sequences"):
        embed_file(rnafm, fasta, tmp_path / "x.npz", gene_column="symbol")
    with pytest.raises(ConfigError, match="overlong is no setting for cells"):
        embed_file(scgpt, h5ad, tmp_path / "x.npz", overlong="window")
    with pytest.raises(ConfigError, match="on_error 'maybe'"):
        embed_file(scgpt, h5ad, tmp_path / "x.npz", on_error="maybe")
    with pytest.raises(ConfigError, match=r"reads sequences, and .* holds cells"):
        embed_file(rnafm, h5ad, tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"no format has the suffix '\.h5ad'"):
        embed_file(rnafm, fasta, tmp_path / "x.h5ad")
    assert beside(fasta) == ["cells.h5ad", "in.fa"]


def test_two_jobs_on_one_output_are_one_too_many(rnafm, fasta, tmp_path):
    output = tmp_path / "out.npz"

    def second():
        with pytest.raises(OutputError, match="another job is writing it"):
            embed_file(rnafm, fasta, output, **HOW)

    assert embed_file(rnafm, fasta, output, **HOW, stop=second).rows == 30


# --------------------------------------------------------------------------------------- bad records


def test_skip_lists_bad_records_and_goes_on(rnafm, tmp_path):
    records = [*SEQUENCES[:9], ("bad", "AC7U"), *SEQUENCES[9:], ("long", "A" * 200)]
    source, output = write_fasta(tmp_path / "in.fa", records), tmp_path / "out.npz"
    with pytest.raises(InputError, match="bad"):
        embed_file(rnafm, source, output, **HOW)
    assert beside(output) == ["in.fa"]
    for parts in (3, 2):
        assert embed_file(rnafm, source, output, **HOW, on_error="skip", stop=after(parts)).stopped
    assert embed_file(rnafm, source, output, **HOW, on_error="skip") == Outcome(rows=30, rejected=2)
    assert [name for name, _ in read(output)] == [name for name, _ in SEQUENCES]
    listed = [json.loads(line) for line in (tmp_path / "out.npz.rejected.jsonl").read_text().splitlines()]
    assert [(one["position"], one["name"]) for one in listed] == [(9, "bad"), (31, "long")]
    assert "'7'" in listed[0]["reason"]
    write_fasta(source, SEQUENCES)
    assert embed_file(rnafm, source, output, **HOW, on_error="skip").rejected == 0
    assert beside(output) == ["in.fa", "out.npz"]


def test_skipped_cells_are_nan_in_an_h5ad(scgpt, tmp_path):
    source = write_cells(tmp_path / "cells.h5ad", scgpt, bad=[4, 20])
    outcome = embed_file(scgpt, source, tmp_path / "out.h5ad", on_error="skip", batch_tokens=5)
    assert outcome == Outcome(rows=23, rejected=2)
    rows = ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_ribozyme"]
    assert np.flatnonzero(np.isnan(rows).any(1)).tolist() == [4, 20]
    embed_file(scgpt, source, tmp_path / "out.npz", on_error="skip", batch_tokens=5)
    assert len(read(tmp_path / "out.npz")) == 23


def test_a_bad_record_in_a_stream_loses_nothing_that_was_computed(rnafm, tmp_path, piped):
    piped(write_fasta(tmp_path / "piped", [*SEQUENCES[:20], ("bad", "AC7U"), *SEQUENCES]))
    with pytest.raises(InputError, match="'bad'") as caught:
        embed_file(rnafm, "-", tmp_path / "out.npz", **HOW)
    assert "results are kept" in caught.value.__notes__[0]
    kept = sorted(parts_folder(tmp_path / "out.npz").glob("*.parquet"))
    names = [name for shard in kept for name, _ in read(shard)]
    assert names == [name for name, _ in SEQUENCES[: len(names)]]
    assert len(names) > 10


# ------------------------------------------------------------------------------------------- faults


CALLS = [(os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "open"), (os, "rmdir")]


class Failing:
    """The n-th of some calls of the system fails."""

    def __init__(self, patch, n, code):
        self.n, self.code, self.count = n, code, 0
        for home, name in CALLS:
            patch.setattr(home, name, self.wrapped(getattr(home, name)))

    def wrapped(self, call):
        def counted(*args, **more):
            self.count += 1
            if self.count == self.n:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **more)

        return counted


def error_of(call, *args, **more):
    try:
        call(*args, **more)
    except OutputError as error:
        return error


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


EACH = pytest.param(1, marks=pytest.mark.slow, id="each")


@pytest.mark.parametrize("step", [pytest.param(9, id="some"), EACH])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("suffix", [".parquet", ".npz", pytest.param(".zarr", marks=pytest.mark.slow)])
def test_whichever_call_of_the_system_fails_nothing_is_damaged(
    rnafm, tmp_path, monkeypatch, suffix, code, step
):
    fasta, before, output = tmp_path / "in.fa", tmp_path / f"before{suffix}", tmp_path / f"out{suffix}"
    write_fasta(fasta, SEQUENCES[:12])
    embed_file(rnafm, fasta, before, **HOW, pooling="max")
    embed_file(rnafm, fasta, output, **HOW)
    old, new = read(before), read(output)
    failed, n = 0, code % 3  # where the steps begin
    while True:
        n += step
        remove(output)
        copy = shutil.copytree if before.is_dir() else shutil.copyfile
        copy(before, output)
        with monkeypatch.context() as patch:
            failing = Failing(patch, n, code)
            error = error_of(embed_file, rnafm, fasta, output, **HOW)
        if failing.count < n:
            break
        failed += error is not None
        state = read(output) if output.exists() else None
        assert state in (old, new) or (
            suffix == ".zarr" and state is None
        )  # a folder is replaced in two steps
        assert error is not None or state == new
        embed_file(rnafm, fasta, output, **HOW)
        assert read(output) == new
        assert not parts_folder(output).exists()
    assert failed > 0


@pytest.mark.parametrize("step", [pytest.param(7_000, id="some"), pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", FORMATS)
def test_wherever_the_disk_is_full_the_job_goes_on_after_room_is_made(rnafm, fasta, suffix, step):
    """No file can grow beyond a limit: real writes fail in the middle, in every library that writes."""
    whole, output = fasta.with_name(f"whole{suffix}"), fasta.with_name(f"out{suffix}")
    embed_file(rnafm, fasta, whole, **HOW)
    failed = 0
    for limit in range(1, 30_000, step):
        with FilesOfAtMost(limit):
            error = error_of(embed_file, rnafm, fasta, output, **HOW)
        if error is not None:
            failed += 1
            assert "cannot be written" in error.message
            assert "make room" in error.hint
        if output.exists():
            assert read(output) == read(whole)
            remove(output)
    assert failed > 0
    embed_file(rnafm, fasta, output, **HOW)
    assert read(output) == read(whole)
    assert beside(output) == sorted(["in.fa", output.name, whole.name])


def test_a_full_disk_under_an_h5ad(scgpt, h5ad, tmp_path):
    output = tmp_path / "out.h5ad"
    size = h5ad.stat().st_size
    for limit in (1, 3000, size - 10, size + 10, size + 700):
        with FilesOfAtMost(limit), pytest.raises(OutputError, match="cannot be written"):
            embed_file(scgpt, h5ad, output, batch_tokens=5)
        assert not output.exists()
    assert embed_file(scgpt, h5ad, output, batch_tokens=5).rows == 25
    assert beside(output) == ["cells.h5ad", "out.h5ad"]


class FilesOfAtMost:
    """No file of this process grows beyond so many bytes."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


# -------------------------------------------------------------------------------------- flipped bits


def flip(path, rng):
    content = bytearray(path.read_bytes())
    place = int(rng.integers(8 * len(content)))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("times", [20, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", ["*.parquet", "manifest.jsonl"])
def test_a_flipped_bit_is_noticed_and_does_no_harm(rnafm, fasta, tmp_path, caplog, which, times):
    whole, output, kept = (tmp_path / name for name in ("whole.npz", "out.npz", "kept"))
    embed_file(rnafm, fasta, whole, **HOW)
    embed_file(rnafm, fasta, output, **HOW, stop=after(4))
    shutil.copytree(parts_folder(output), kept)
    rng = np.random.default_rng(0)
    for _ in range(times):
        shutil.rmtree(parts_folder(output), ignore_errors=True)
        shutil.copytree(kept, parts_folder(output))
        flip(rng.choice(sorted(parts_folder(output).glob(which))), rng)
        caplog.clear()
        error = error_of(embed_file, rnafm, fasta, output, **HOW)
        assert "damaged" in f"{error} {caplog.text}" or "torn" in caplog.text
        assert error is not None or read(output) == read(whole)


# ------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_the_second_acts(number, caplog):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with stopped_by_signals() as stop:
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert "once more" in caplog.text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_with_the_status_of_the_signal_and_says_how_to_resume(
    fixtures, fasta, tmp_path, monkeypatch, capsys, number, status
):
    words = ["embed", fasta, "-o", tmp_path / "out.npz", "--model", fixtures / "rnafm" / "rna.pth"]
    words += ["--batch-tokens", "20", "--overlong", "truncate"]
    monkeypatch.setattr("sys.argv", ["ribozyme", *map(str, words)])
    write = Sink.write
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "write", lambda *some: (write(*some), os.kill(os.getpid(), number)))
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == status
    said = capsys.readouterr()
    assert "results are kept in" in said.err
    assert "to resume, give the same command again" in said.err
    assert said.out == ""
    with pytest.raises(SystemExit) as ended, pytest.warns(InputWarning, match="cut off"):
        main()
    assert not ended.value.code
    assert [name for name, _ in read(tmp_path / "out.npz")] == [name for name, _ in SEQUENCES]


def test_the_command_skips_and_resumes(fixtures, tmp_path, monkeypatch, capsys):
    source = write_fasta(tmp_path / "in.fa", [("good", "ACGU"), ("bad", "AC7U")])
    words = ["embed", source, "-o", tmp_path / "out.npz", "--model", fixtures / "rnafm" / "rna.pth"]
    for more, says in (("--on-error=skip", "1 record left out, see"), ("--resume", "was left as it is")):
        monkeypatch.setattr("sys.argv", ["ribozyme", *map(str, words), more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert says in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_jobs_killed_at_random_moments_end_with_every_row_once(tmp_path, kills):
    script = Path(__file__).with_name("kill_jobs.py")
    command = [sys.executable, str(script), str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills" in done.stdout

"""Result tables: what is written is read back by the field's readers, whole or not at all."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ribozyme.errors import InputError
from ribozyme.io import tables
from ribozyme.io.tables import FORMATS, check_output, open_writer

NAMES = ["a", 'with "quotes", commas', "β-globin", "a", ""]


def vectors(n=5, dim=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def ragged(lengths=(2, 1, 4, 3, 1), dim=3):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(k, dim)).astype(np.float32) for k in lengths]


def write(path, names, arrays, *, ragged=False):
    with open_writer(path, ragged=ragged) as writer:
        for name, array in zip(names, arrays, strict=True):
            writer.write(name, array)


def read(path, *, ragged=False):
    """Names and arrays, with the readers that people use."""
    match path.suffix:
        case ".parquet":
            table = pd.read_parquet(path)
            arrays = [np.stack(list(x)) if ragged else x for x in table["embedding"]]
            return table["id"].tolist(), arrays
        case ".npz":
            with np.load(path) as content:
                return content["names"].tolist(), taken_apart(content, ragged)
        case ".zarr":
            zarr = pytest.importorskip("zarr")
            content = zarr.open(path, mode="r")
            return [str(n) for n in content["names"][:]], taken_apart(content, ragged)
        case ".json":
            content = json.loads(path.read_text())
            return [r["id"] for r in content], [np.array(r["embedding"], np.float32) for r in content]
        case ".csv":
            return from_csv(path, ragged)


def taken_apart(content, ragged):
    if not ragged:
        return list(content["embeddings"][:])
    starts = content["cu_seqlens"][:]
    return np.split(content["rows"][:], starts[1:-1])


def from_csv(path, ragged):
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    if not ragged:
        return [r[0] for r in rows], [np.array(r[1:], np.float32) for r in rows]
    starts = [k for k, r in enumerate(rows) if r[1] == "0"]
    numbers = np.array([r[2:] for r in rows], np.float32)
    return [rows[k][0] for k in starts], np.split(numbers, starts[1:])


@pytest.fixture(params=[1, tables.CHUNK], ids=["written one by one", "written at once"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", request.param)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("per_letter", [False, True])
def test_every_format_gives_back_every_name_and_number(tmp_path, chunk, suffix, per_letter):
    path = tmp_path / f"x{suffix}"
    arrays = ragged() if per_letter else vectors()
    write(path, NAMES, arrays, ragged=per_letter)
    names, found = read(path, ragged=per_letter)
    assert names == NAMES
    for one, wanted in zip(found, arrays, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, wanted)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv", ".zarr"])
def test_missing_numbers_stay_missing(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write(path, ["empty cell"], [np.array([np.nan, 1, -np.inf])])
    _, (found,) = read(path)
    np.testing.assert_array_equal(found, np.array([np.nan, 1, -np.inf], np.float32))


def test_json_writes_null_for_what_json_lacks(tmp_path):
    write(tmp_path / "x.json", ["empty cell"], [[np.nan, 0.1, np.inf]])
    assert json.loads((tmp_path / "x.json").read_text()) == [
        {"id": "empty cell", "embedding": [None, 0.1, None]}
    ]


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv", ".json"])
@given(rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs", "Cc"])), numbers), min_size=1))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_and_any_float32_survive(tmp_path, suffix, rows):
    path = tmp_path / f"x{suffix}"
    write(path, [name for name, _ in rows], [[number] for _, number in rows])
    names, found = read(path)
    assert names == [name for name, _ in rows]
    assert [float(x[0]) for x in found] == [number for _, number in rows]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_results_are_an_empty_table(tmp_path, suffix):
    write(tmp_path / f"x{suffix}", [], [])
    assert (tmp_path / f"x{suffix}").exists()


def test_parquet_pages_have_checksums_that_notice_a_flipped_bit(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, ["a"] * 1000, vectors(1000, 8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_flipped_bit_in_an_npz_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    write(path, ["a"] * 1000, vectors(1000, 8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with np.load(path) as found, pytest.raises(Exception, match="CRC"):
        found["embeddings"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "an old result there"])
def test_a_failure_leaves_what_was_there(tmp_path, chunk, suffix, before):
    path = tmp_path / f"x{suffix}"
    if before:
        write(path, ["old"], vectors(1))
    with pytest.raises(AssertionError, match="is not the shape of a result"):
        write(path, ["new", "misshapen"], [vectors(1)[0], vectors(2)])
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if before else [])
    if before:
        assert read(path)[0] == ["old"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_is_full_at_the_end_leaves_what_was_there(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"x{suffix}"
    write(path, ["old"], vectors(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(path, ["new"], vectors(1))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read(path)[0] == ["old"]


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("x.h5", r"no format has the suffix '.h5'(.|\n)*known are .parquet, .npz"),
        ("x", "no format has the suffix ''"),
        ("absent/x.csv", "there is no folder"),
        ("folder.csv", "this is a folder"),
        ("folder.zarr", "is no Zarr store; it is not replaced"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, name, fragment):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.zarr").mkdir()
    with pytest.raises(InputError, match=fragment) as caught:
        check_output(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(InputError, match=fragment), open_writer(tmp_path / name):
        pass


def test_outputs_that_can_be_are_accepted(tmp_path):
    for suffix in FORMATS:
        check_output(tmp_path / f"x{suffix}")
        check_output(str(tmp_path / f"X{suffix.upper()}"))


MEASURE = """
import resource, sys
import numpy as np
from ribozyme.io.tables import open_writer
rows = np.ones((1000, 64), np.float32)
def run(path, n):
    with open_writer(path, ragged=True) as writer:
        for k in range(n):
            writer.write(f"record {k}", rows)
run(sys.argv[1], 200)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(sys.argv[1], 1000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_memory_does_not_grow_with_the_result(tmp_path, suffix):
    path = str(tmp_path / f"x{suffix}")
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60  # of 256 MB

"""The shards of a job: what is named in the manifest is whole, what is not is computed again."""

import json
import logging
import tracemalloc
from dataclasses import replace
from sys import getsizeof

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.engine.manifest import differences, read_manifest, sealed, unsealed
from ribozyme.engine.parts import Part
from ribozyme.engine.shards import Collected
from ribozyme.engine.sink import Sink, parts_folder
from ribozyme.errors import InputError, OutputError
from ribozyme.report import Rejected, Report

JOB = {"input": {"a.fa": "0" * 64}, "settings": {"layer": 3}}


def part(start, end, rejected=(), ragged=False):
    rows = np.arange(start, end, dtype=np.float32)[:, None] + [0.0, 0.5]
    places = [k for k in range(start, end) if k not in rejected]
    out = [Rejected(k, f"n{k}", "bad") for k in rejected]
    kept = rows[[k - start for k in places]].astype(np.float32)
    kept = [np.repeat(row[None], 1 + k % 3, 0) for k, row in zip(places, kept)] if ragged else kept
    report = Report(counts={"odd letters": end - start}, where={"odd letters": [f"n{start}"]})
    return Part(start, end, [f"n{k}" for k in places], kept, out, report)


def contents(sink):
    return [(name, row.tolist()) for _, (names, rows, _) in sink.read() for name, row in zip(names, rows)]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.npz"


@pytest.fixture
def shard_each_part(monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 0)


@pytest.mark.usefixtures("shard_each_part")
def test_what_was_written_is_there_when_the_job_is_taken_up(output):
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(0, None)]
        sink.write(part(0, 3))
        sink.write(part(3, 7, rejected=[4]))
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(7, None)]
        assert sink.rejected == [Rejected(4, "n4", "bad")]
        assert sink.report.counts == {"odd letters": 7}
        sink.write(part(7, 9))
    with Sink(output, JOB, ragged=False) as sink:
        assert contents(sink) == [(f"n{k}", [k, k + 0.5]) for k in (0, 1, 2, 3, 5, 6, 7, 8)]
        sink.remove()
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("shard_each_part")
def test_ragged_rows_come_back_with_their_lengths(output):
    with Sink(output, JOB, ragged=True) as sink:
        sink.write(part(0, 4, ragged=True))
    with Sink(output, JOB, ragged=True) as sink:
        [(_, (names, rows, lengths))] = sink.read()
    assert names == ["n0", "n1", "n2", "n3"]
    assert lengths == [1, 2, 3, 1]
    assert rows[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3]


@pytest.mark.usefixtures("shard_each_part")
def test_parts_may_come_in_any_order_and_all_may_be_left_out(output):
    with Sink(output, JOB, ragged=False) as sink:
        for one in (part(4, 6, rejected=[4, 5]), part(8, 9), part(0, 2)):
            sink.write(one)
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(2, 4), (6, 8), (9, None)]
        assert [name for name, _ in contents(sink)] == ["n0", "n1", "n8"]


def test_small_parts_share_a_shard_and_an_error_loses_none(output):
    with pytest.raises(InputError) as caught, Sink(output, JOB, ragged=False) as sink:  # noqa: PT012
        for k in range(5):
            sink.write(part(k, k + 1))
        raise InputError("bad record")
    assert "5 results are kept" in caught.value.__notes__[0]
    assert len(list(parts_folder(output).glob("*.parquet"))) == 1
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(5, None)]


def test_the_second_ctrl_c_loses_none_and_says_so(output, caplog):
    with pytest.raises(KeyboardInterrupt), Sink(output, JOB, ragged=False) as sink:  # noqa: PT012
        sink.write(part(0, 3))
        raise KeyboardInterrupt
    assert "3 results are kept" in caplog.text


def test_many_results_are_written_before_their_time(output, monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_BYTES", 8 * (8 + 16 + getsizeof("n0")))
    with Sink(output, JOB, ragged=False) as sink:
        for k in range(10):
            sink.write(part(k, k + 1))
        sink.flush(wait=True)
        assert [(one.start, one.end) for one in sink.shards.values()] == [(0, 8), (8, 10)]


def test_what_is_collected_is_no_larger_than_it_says():
    parts = [part(k, k + 50, rejected=[k + 7]) for k in range(0, 40_000, 50)]
    held = Collected(0, ragged=False)
    tracemalloc.start()
    for k, one in enumerate(parts):
        copied = replace(one, names=[f"name {name}" for name in one.names], rows=one.rows.copy())
        parts[k] = None
        held.add(copied)
    del copied
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * held.bytes < size <= held.bytes


def test_a_job_without_results_leaves_nothing(output):
    with pytest.raises(InputError), Sink(output, JOB, ragged=False):
        raise InputError("no such letter")
    assert list(output.parent.iterdir()) == []


def test_the_second_of_two_jobs_is_refused(output):
    with Sink(output, JOB, ragged=False) as sink:
        with pytest.raises(OutputError, match="another job is writing"):
            Sink(output, JOB, ragged=False).__enter__()
        sink.write(part(0, 1))
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.rows == 1


def test_another_job_is_refused_with_the_difference(output):
    with Sink(output, JOB, ragged=False) as sink:
        sink.write(part(0, 1))
    other = {"input": {"a.fa": "1" * 64}, "settings": {"layer": 2}}
    with pytest.raises(OutputError) as caught:
        Sink(output, other, ragged=False).__enter__()
    said = caught.value.message
    assert "input a.fa was 000000000000... and is 111111111111..." in said
    assert "settings layer was 3 and is 2" in said
    assert "delete" in caught.value.hint
    with Sink(output, JOB, ragged=False) as sink:  # the lock was given back
        assert sink.rows == 1


def test_what_a_killed_job_left_half_done_is_swept(output):
    with Sink(output, JOB, ragged=False) as sink:
        sink.write(part(0, 2))
    folder = parts_folder(output)
    stale = [folder / ".000000000002.parquet.x1.tmp", folder / "000000000002.parquet"]
    stale += [output.parent / f".{output.name}.x2.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    kept = output.parent / ".other.npz.x3.tmp"
    kept.write_bytes(b"of another output")
    with Sink(output, JOB, ragged=False) as sink:
        assert contents(sink) == [("n0", [0, 0.5]), ("n1", [1, 1.5])]
    assert [path.exists() for path in [*stale, kept]] == [False, False, False, True]


@pytest.mark.usefixtures("shard_each_part")
def test_a_torn_last_line_is_as_if_it_were_not_there(output, caplog):
    with Sink(output, JOB, ragged=False) as sink:
        sink.write(part(0, 2))
        sink.write(part(2, 3))
    manifest = parts_folder(output) / "manifest.jsonl"
    whole = manifest.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for end in range(last + 1, len(whole)):
        manifest.write_bytes(whole[:end])
        _, shards = read_manifest(manifest)
        assert sorted(shards) == [0]
    manifest.write_bytes(whole[: last + 9])
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(2, None)]
        sink.write(part(2, 3))
    assert "torn" in caplog.text
    assert manifest.read_bytes() == whole


@pytest.mark.usefixtures("shard_each_part")
def test_a_damaged_shard_alone_is_computed_again(output, caplog):
    with Sink(output, JOB, ragged=False) as sink:
        for k in range(3):
            sink.write(part(2 * k, 2 * k + 2))
    shard = parts_folder(output) / "000000000002.parquet"
    with Sink(output, JOB, ragged=False) as sink:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        with pytest.raises(OutputError, match="damaged after it was written"):
            contents(sink)
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(2, 4), (6, None)]
        sink.write(part(2, 3))  # in other portions than before
        sink.flush(wait=True)
    with Sink(output, JOB, ragged=False) as sink:
        assert sink.gaps() == [(3, 4), (6, None)]
    assert "is damaged" in caplog.text


RECORDS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.lists(st.integers()))


@given(RECORDS, st.data())
def test_any_flipped_bit_of_a_line_is_noticed(record, data):
    line = sealed(record).encode()[:-1]
    assert unsealed(line) == record
    place = data.draw(st.integers(0, 8 * len(line) - 1))
    flipped = bytearray(line)
    flipped[place // 8] ^= 1 << place % 8
    assert unsealed(bytes(flipped)) is None


def test_a_manifest_whose_first_line_is_damaged_is_an_error(output):
    with Sink(output, JOB, ragged=False) as sink:
        sink.write(part(0, 2))
    manifest = parts_folder(output) / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b"a.fa", b"b.fa"))
    with pytest.raises(OutputError, match="not known which job"):
        Sink(output, JOB, ragged=False).__enter__()


def test_differences_are_words():
    old = {"input": {"a.fa": "x"}, "settings": {"reading": {"seed": 0}, "layer": 1}}
    new = {"input": {"b.fa": "x"}, "settings": {"reading": {"seed": 1}, "layer": 1}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "input a.fa was x and is None",
        "input b.fa was None and is x",
        "settings reading seed was 0 and is 1",
    ]
    assert differences(json.loads(json.dumps({"a": [1, (2,)]})), {"a": [1, [2]]}) == []


def test_nothing_is_logged_where_nothing_is_wrong(output, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with Sink(output, JOB, ragged=False) as sink:
            sink.write(part(sink.rows, sink.rows + 1))
    assert caplog.text == ""

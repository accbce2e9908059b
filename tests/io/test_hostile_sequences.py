"""Damaged files, files of something else, and files made to hurt: one error, before it costs anything."""

import gzip
import random
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ribozyme.errors import InputError
from ribozyme.io import sequences, streams
from ribozyme.io.sequences import read_sequences

FASTA = b">a first\nACGU\n>b\nGGCC\n"


def zipped(content):
    """Gzip without the time of day, so that every test process sees the same bytes."""
    return gzip.compress(content, mtime=0)


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


def refused(path, fragment):
    with pytest.raises(InputError, match=fragment) as caught:
        list(read_sequences(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("x.fa", b"", "the file is empty"),
        ("x.csv", b"", "the file is empty"),
        ("x.parquet", b"", "the file is empty"),
        ("x.fa", b"\n\n", "there are no sequences"),
        ("x.fq", b"\n", "cannot be read|there are no sequences"),
        ("x.txt", b" \n\n", "there are no sequences"),
        ("x.csv", b"id,sequence\n", "there are no sequences"),
        ("x.fa.gz", zipped(b""), "there are no sequences"),
        ("x.fa", b">a\n>b\nACGU\n", r"'a' has an empty sequence \(.*, record 1\)"),
        ("x.fa", b">a\nACGU\n>b\n", r"'b' has an empty sequence \(.*, record 2\)"),
        ("x.fa", b"ACGU\n", "Expected '>'"),
        (
            "x.fa",
            b">a\nACGU\n>b\n1 acgu 61\n",
            r"'b' has '1' at position 1, which is no letter \(.*, record 2\)",
        ),
        ("x.fa", b">a\nAC\0GU\n", r"'a' has '\\x00' at position 3"),
        ("x.fa", b">a\n\x80\x81\n", "not text, there is a byte 0x80"),
        ("x.fa", ">a\nACGÜ\n".encode(), "has 'Ü' at position 4"),
        ("x.fa", "\ufeff>a\nACGU\n".encode("utf-16-le"), "the text is UTF-16"),
        ("x.fq", b"@a\nACGU\n+\nII\n", "differ"),
        ("x.fq", b"@a\nACGU\n", "cannot be read after record 0"),
        ("x.fq", b">a\nACGU\n", "cannot be read after record 0"),
        ("x.fq", b"@a\nAC U\n+\nIIII\n", "has ' ' at position 3"),
        ("x.txt", b"ACGU\nname ACGU\n", r"'1' has ' ' at position 5.*sequence 2"),
        ("x.txt", b"\xff\xff\n", "UTF-16|not text"),
        ("x.csv", b"id,sequence\na\n", "cannot be read after row 0"),
        ("x.csv", b"\x00\x01,\xff\n\x02", "not text|header|no column"),
        ("x.csv", b"id,sequence\na,\xff\xfe\n", "cannot be read|not text"),
        ("x.parquet", b"PAR1", "not a whole parquet file"),
        ("x.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "not a whole parquet file"),
        ("x.fa.gz", FASTA, "damaged or cut off"),
        ("x.fa.gz", zipped(FASTA)[:-6], "damaged or cut off"),
        ("x.fa.gz", zipped(FASTA)[:-6] + b"\0" * 6, "damaged or cut off"),
        ("x.docx", b"x", "suffix '.docx' does not say how to read it"),
        ("x", b"x", "suffix '' does not say"),
        ("x.gz", zipped(FASTA), "suffix '' does not say"),
    ],
)
def test_each_bad_file_is_named_with_the_record_and_the_place(tmp_path, name, content, fragment):
    refused(put(tmp_path, name, content), fragment)


def test_folders_absent_files_and_typos(tmp_path):
    refused(tmp_path, "this is a folder")
    put(tmp_path, "human.fa.gz", zipped(FASTA))
    with pytest.raises(InputError, match=r"no such file(.|\n)*did you mean '.*human\.fa\.gz'"):
        read_sequences(tmp_path / "humans.fa.gz")
    (tmp_path / "broken.fa").symlink_to(tmp_path / "gone.fa")
    refused(tmp_path / "broken.fa", "no such file")


def test_a_record_past_the_limit_is_refused_in_every_kind_of_source(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "MAX_LETTERS", 100)
    long = "A" * 101
    for name, content in {
        "x.fa": f">s\nA\n>l\n{long}\n",
        "x.fq": f"@l\n{long}\n+\n{long}\n",
        "x.txt": long,
        "x.csv": f"sequence\n{long}\n",
    }.items():
        refused(put(tmp_path, name, content.encode()), "has 101 letters; at most 100 are read")
    with pytest.raises(InputError, match=r"has 101 letters; at most 100 are read \(list, item 1\)"):
        list(read_sequences([long]))


def test_a_csv_row_longer_than_a_block_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "CSV_BLOCK", 1000)
    path = put(tmp_path, "x.csv", b"id,sequence\na,ACGU\nb," + b"A" * 5000 + b"\n")
    refused(path, "cannot be read after row")


def test_a_parquet_file_that_declares_far_more_than_it_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "RATIO_FROM", 2**20)
    table = pa.table({"sequence": ["A" * 2_000_000]})
    pa.parquet.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    refused(tmp_path / "x.parquet", "more than 200 times its size")


def test_a_flipped_bit_in_a_parquet_page_with_a_checksum_is_noticed(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"sequence": ["ACGU" * 1000]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pa.parquet.write_table(table, path, write_page_checksum=True, **plain)
    content = bytearray(path.read_bytes())
    content[content.find(b"ACGUACGU") + 3] ^= 1
    path.write_bytes(bytes(content))
    refused(path, "damaged|cannot be read")


BOMBS = {
    "one endless record": ("x.fa.gz", b">x\n", b"A" * 2**20),
    "one endless line of a text file": ("x.txt.gz", b"", b"A" * 2**20),
    "one endless name": ("x.fa.gz", b">", b"A" * 2**20),
    "one endless quality": ("x.fq.gz", b"@x\nA\n+\n", b"I" * 2**20),
    "endless records": ("x.fa.gz", b"", (b">x\n" + b"A" * 99 + b"\n") * 10_000),
    "endless blank lines": ("x.fa.gz", b">x\nA\n", b"\n" * 2**20),
    "an endless row": ("x.csv.gz", b"sequence\n", b"A" * 2**20),
    "an endless row in quotes": ("x.csv.gz", b'sequence\n"', b"A" * 2**20),
    "endless rows": ("x.csv.gz", b"sequence\n", b"ACGU\n" * 200_000),
}

READ_AND_MEASURE = """
import resource, sys
from ribozyme.errors import InputError
from ribozyme.io import streams
from ribozyme.io.sequences import read_sequences
streams.RATIO_FROM, streams.MAX_RATIO = 2**23, 20  # sooner than for a user, to save time
list(read_sequences(["A"]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for record in read_sequences(sys.argv[1]):
        pass
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_unpacks_to_two_gigabytes_is_stopped_in_little_memory(tmp_path, kind):
    name, start, block = BOMBS[kind]
    # 2,000 gzip members of a megabyte each; highly alike, so the file itself is about 2 MB
    path = put(tmp_path, name, zipped(start) + zipped(block) * 2000)
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    message, megabytes = done.stdout.rsplit("\n", 2)[:2]
    assert str(path) in message
    assert int(megabytes) < 400


def test_a_file_that_only_compresses_well_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "RATIO_FROM", 2**16)
    rng = random.Random(0)
    records = [f">{k}\n{''.join(rng.choices('ACGU', k=500))}\n" for k in range(400)]
    path = put(tmp_path, "x.fa.gz", zipped("".join(records * 3).encode()))
    assert sum(1 for _ in read_sequences(path)) == 1200


def test_memory_does_not_grow_with_the_file(tmp_path):
    rng = random.Random(0)
    block = "".join(f">{k}\n{''.join(rng.choices('ACGU', k=1000))}\n" for k in range(1000)).encode()
    path = put(tmp_path, "x.fa", block * 100)
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50  # of 100 MB


# ------------------------------------------------------------------------------------------------- fuzz


def read_or_refuse(path):
    told = str(path)
    try:
        assert all(r.sequence for r in read_sequences(path))
    except InputError as error:
        told = str(error)
    assert str(path) in told


@pytest.mark.parametrize("suffix", [".fa", ".fq", ".txt", ".csv", ".tsv", ".fa.gz"])
@given(content=st.binary(min_size=1, max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_records_or_one_error(tmp_path, suffix, content):
    read_or_refuse(put(tmp_path, f"x{suffix}", content))


def mutants(content: bytes, count: int):
    rng = random.Random(0)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(changed))
            if rng.random() < 0.3:
                del changed[at : at + rng.randint(1, 30)]
                changed = changed or bytearray(b"\0")
            else:
                changed[at] = rng.randrange(256)
        yield bytes(changed)


ORIGINALS = {
    ".fa": FASTA * 3,
    ".fq": b"@a x\nACGU\n+\nIIII\n" * 3,
    ".csv": b'id,sequence,y\na,ACGU,1\n"b",GGCC,2\n',
    ".fa.gz": zipped(FASTA * 20),
}


def read_mutants(folder, count):
    for suffix, original in ORIGINALS.items():
        path = folder / f"x{suffix}"
        for content in mutants(original, count):
            path.write_bytes(content)
            read_or_refuse(path)


def test_mutants_are_records_or_one_error(tmp_path):
    read_mutants(tmp_path, 100)


@pytest.mark.slow
def test_thousands_of_mutants_are_records_or_one_error(tmp_path):
    read_mutants(tmp_path, 3000)


@pytest.mark.data
def test_the_real_tables_are_read_whole(data_folder):
    for name in ("mrna/corpus.parquet", "ncrna/structure.parquet", "mrna/mrna_stability.parquet"):
        path = data_folder / name
        assert sum(1 for _ in read_sequences(path)) == len(pd.read_parquet(path, columns=["sequence"]))

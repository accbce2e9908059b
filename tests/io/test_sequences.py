"""What comes out of every kind of source, in order and with its names."""

import bz2
import gzip
import io
import lzma
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import InputError
from ribozyme.io import sequences
from ribozyme.io.sequences import Record, read_sequences

TWO = [Record("a", "ACGU"), Record("b", "ggcc")]
FASTA = b">a first one\nAC\nGU\n>b\nggcc\n"
FASTQ = b"@a first\nACGU\n+\nIIII\n@b\nggcc\n+\nIIII\n"


def zstd(content: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd")  # what xopen reads with, before Python 3.14
    return module.compress(content)


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd}


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [(s, FASTA) for s in sequences.FASTA]
    + [(s, FASTQ) for s in sequences.FASTQ]
    + [(".csv", b"id,sequence\na,ACGU\nb,ggcc\n"), (".tsv", b"id\tsequence\na\tACGU\nb\tggcc\n")],
)
def test_the_suffix_says_how_a_file_is_read(tmp_path, suffix, content, compression):
    path = put(tmp_path, f"x{suffix}{compression}", COMPRESSIONS[compression](content))
    assert list(read_sequences(path)) == TWO
    assert list(read_sequences(str(path))) == TWO


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path):
    assert list(read_sequences(put(tmp_path, "X.FASTA", FASTA))) == TWO


def test_compression_is_seen_by_content_even_without_its_suffix(tmp_path):
    assert list(read_sequences(put(tmp_path, "x.fa", gzip.compress(FASTA)))) == TWO


@pytest.mark.parametrize(
    "content",
    [
        FASTA.replace(b"\n", b"\r\n"),
        FASTA.rstrip(b"\n"),
        b"\n\n" + FASTA.replace(b"\n", b"\n\n"),
        b"\xef\xbb\xbf" + FASTA,
        FASTA.replace(b"AC\nGU", b"  AC GU\t"),
        b"# made by hand\n" + FASTA,
    ],
    ids=["windows", "no last line end", "blank lines", "byte-order mark", "blanks inside", "comment"],
)
def test_fasta_as_people_write_it(tmp_path, content):
    assert list(read_sequences(put(tmp_path, "x.fa", content))) == TWO


def test_names_end_at_the_first_blank_may_repeat_be_absent_or_not_ascii(tmp_path):
    content = ">x|1 of two\nA\n>x|1\tagain\nC\n>\nG\n>β-globin\nU\n".encode()
    found = list(read_sequences(put(tmp_path, "x.fa", content)))
    assert [r.name for r in found] == ["x|1", "x|1", "2", "β-globin"]
    assert [r.sequence for r in found] == ["A", "C", "G", "U"]


def test_gaps_iupac_letters_lower_case_and_masks_pass_as_they_are(tmp_path):
    letters = "ACGTUNRYKMSWBDHVacgu-.*?<mask>|x"
    assert [r.sequence for r in read_sequences(put(tmp_path, "x.fa", f">x\n{letters}".encode()))] == [letters]


def test_one_letter_and_two_hundred_thousand(tmp_path):
    long = "ACGU" * 50_000
    for suffix, content in {
        ".fa": f">s\nA\n>l\n{long}\n",
        ".csv": f"id,sequence\ns,A\nl,{long}\n",
        ".txt": f"A\n{long}",
    }.items():
        found = list(read_sequences(put(tmp_path, f"x{suffix}", content.encode())))
        assert [len(r.sequence) for r in found] == [1, 200_000]


def test_a_text_file_has_one_sequence_a_line_named_by_its_position(tmp_path):
    path = put(tmp_path, "x.txt", b"ACGU\r\n\r\n  ggcc  \nA")
    assert list(read_sequences(path)) == [Record("0", "ACGU"), Record("1", "ggcc"), Record("2", "A")]


@pytest.mark.parametrize(
    ("content", "names"), [(FASTA, ["a", "b"]), (FASTQ, ["a", "b"]), (b"ACGU\nggcc\n", ["0", "1"])]
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_dash_is_standard_input(monkeypatch, content, names, compress):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(compress(content))))
    found = list(read_sequences("-"))
    assert [r.sequence for r in found] == ["ACGU", "ggcc"]
    assert [r.name for r in found] == names


def test_reading_is_a_stream(tmp_path):
    path = put(tmp_path, "x.fa", FASTA * 10_000 + b">bad\n7\n")
    stream = read_sequences(path)
    assert [next(stream), next(stream)] == TWO  # the bad record at the end is not yet seen
    stream.close()


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc", "Zs"]), min_size=1
)
letters = st.text("ACGTUNacgtun-", min_size=1, max_size=200)


@given(records=st.lists(st.tuples(names, letters), min_size=1, max_size=8), width=st.integers(1, 80))
def test_what_is_written_as_fasta_is_read_back(tmp_path_factory, records, width):
    lines = []
    for name, sequence in records:
        lines += [f">{name}", *(sequence[k : k + width] for k in range(0, len(sequence), width))]
    path = tmp_path_factory.getbasetemp() / "written.fa"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert list(read_sequences(path)) == records


# ----------------------------------------------------------------------------------------------- tables


def test_parquet_is_read_by_column(tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "sequence": ["ACGU", "ggcc"], "y": [1.0, 2.0]})
    table.to_parquet(tmp_path / "x.parquet")
    assert list(read_sequences(tmp_path / "x.parquet")) == TWO
    table.astype({"sequence": "category"}).to_parquet(tmp_path / "c.parquet")
    assert list(read_sequences(tmp_path / "c.parquet")) == TWO


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_other_columns_are_named(tmp_path, suffix):
    table = pd.DataFrame({"gene": ["a", "b"], "rna seq": ["ACGU", "ggcc"], "id": [1, 2]})
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    assert list(read_sequences(path, sequence_column="rna seq", id_column="gene")) == TWO
    assert [r.name for r in read_sequences(path, sequence_column="rna seq")] == ["1", "2"]
    assert list(read_sequences(table, sequence_column="rna seq", id_column="gene")) == TWO


def test_csv_quotes_windows_line_ends_and_missing_names(tmp_path):
    path = put(tmp_path, "x.csv", b'\xef\xbb\xbf"id","sequence","note"\r\n"a, b",ACGU,"x"\r\n,ggcc,\r\n')
    assert list(read_sequences(path)) == [Record("a, b", "ACGU"), Record("1", "ggcc")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [40, 41, 64, 2**20])
def test_a_csv_is_the_same_in_blocks_of_any_size(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(sequences, "CSV_BLOCK", block)
    rows = [(f"s{k}", "ACGU"[k % 4] * (1 + 7 * k % 30)) for k in range(50)]
    text = end.join(["id,sequence", *(f'"{name}",{sequence}' for name, sequence in rows)])
    assert list(read_sequences(put(tmp_path, "x.csv", text.encode()))) == rows
    assert list(read_sequences(put(tmp_path, "y.csv", (text + end * 3).encode()))) == rows


@pytest.mark.parametrize("block", [48, 64, 100, 2**20])
@pytest.mark.parametrize("last", ["", "\n"])
def test_a_value_of_several_lines_is_no_record(tmp_path, monkeypatch, block, last):
    monkeypatch.setattr(sequences, "CSV_BLOCK", block)
    rows = [("a", "ACGU", '"one, ""two""\nGGG,CCC,three"'), ("b", "GG", 'x"'), ("c", "CC", '"\n\n"')] * 4
    text = "\n".join(["id,sequence,note", *(",".join(row) for row in rows)]) + last
    assert list(read_sequences(put(tmp_path, "x.csv", text.encode()))) == [row[:2] for row in rows]


def test_a_quote_that_is_not_closed_is_an_error(tmp_path, monkeypatch):
    path = put(tmp_path, "x.csv", b'sequence\nACGU\n"ACGG\nACGA')
    with pytest.raises(InputError, match="which is no letter"):
        list(read_sequences(path))
    monkeypatch.setattr(sequences, "CSV_BLOCK", 20)
    path = put(tmp_path, "y.csv", b'sequence\nACGU\n"ACGG\n' + b"ACGA\n" * 50)
    with pytest.raises(InputError, match="a row of more than 20 bytes, or a quote that is not closed"):
        list(read_sequences(path))


@pytest.mark.parametrize("block", [40, 2**20])
def test_a_bad_row_of_a_csv_is_told_by_its_number(tmp_path, monkeypatch, block):
    monkeypatch.setattr(sequences, "CSV_BLOCK", block)
    path = put(tmp_path, "x.csv", b"id,sequence\n" + b"s,ACGU\n" * 60 + b"x\n")
    with pytest.raises(InputError, match="Row #62"):
        list(read_sequences(path))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix):
    table = pd.DataFrame({"name": ["a"], "Sequences": ["ACGU"]})
    path = tmp_path / f"x{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    with pytest.raises(
        InputError, match=r"no column 'sequence'; it has 'name', 'Sequences'(.|\n)*'Sequences'\?"
    ):
        list(read_sequences(path))
    with pytest.raises(InputError, match=r"no column 'nam'(.|\n)*id_column; did you mean 'name'"):
        list(read_sequences(path, sequence_column="Sequences", id_column="nam"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("missing", [None, float("nan"), "", "NA", "nan"])
def test_a_row_without_a_sequence_is_named(tmp_path, suffix, missing):
    table = pd.DataFrame({"id": ["a", "b"], "sequence": ["ACGU", missing]})
    path = tmp_path / f"x{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"'b' has no sequence, a missing value \(.*, row 2\)"):
        list(read_sequences(path))


def test_a_column_of_numbers_is_no_column_of_sequences(tmp_path):
    pd.DataFrame({"sequence": [1.0, 2.0]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="'sequence' holds double, not text"):
        list(read_sequences(tmp_path / "x.parquet"))


# ---------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize(
    "source",
    [
        TWO,
        tuple(TWO),
        iter(TWO),
        (pair for pair in TWO),
        [["a", "ACGU"], ["b", "ggcc"]],
        dict(TWO),
        pd.Series(["ACGU", "ggcc"], index=["a", "b"]),
        pd.Series(["ACGU", "ggcc"], index=["a", "b"], dtype="string"),
        pd.DataFrame({"id": ["a", "b"], "sequence": ["ACGU", "ggcc"]}),
        pd.DataFrame({"sequence": ["ACGU", "ggcc"]}, index=["a", "b"]),
    ],
)
def test_pairs_series_and_frames_have_names(source):
    assert list(read_sequences(source)) == TWO


@pytest.mark.parametrize(
    "source",
    [
        ["ACGU", "ggcc"],
        ("ACGU", "ggcc"),
        iter(["ACGU", "ggcc"]),
        np.array(["ACGU", "ggcc"]),
        np.array(["ACGU", "ggcc"], dtype="S"),
        np.array(["ACGU", "ggcc"], dtype=object),
        pd.Series(["ACGU", "ggcc"]),
    ],
)
def test_sequences_alone_are_named_by_their_position(source):
    assert list(read_sequences(source)) == [Record("0", "ACGU"), Record("1", "ggcc")]


class PolarsLike:
    """As much of a polars Series or DataFrame as is looked at."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


class PolarsFrameLike:
    columns = ("id", "sequence")

    def __getitem__(self, name):
        return PolarsLike({"id": ["a", "b"], "sequence": ["ACGU", "ggcc"]}[name])


def test_polars_needs_no_import():
    assert [r.sequence for r in read_sequences(PolarsLike(["ACGU", "ggcc"]))] == ["ACGU", "ggcc"]
    assert list(read_sequences(PolarsFrameLike())) == TWO


def test_real_polars():
    polars = pytest.importorskip("polars")
    assert list(read_sequences(polars.DataFrame({"id": ["a", "b"], "sequence": ["ACGU", "ggcc"]}))) == TWO
    with pytest.raises(InputError, match="'1' has no sequence"):
        list(read_sequences(polars.Series(["ACGU", None])))


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("ACGUACGU", r"one string was given \('ACGUACGU'\)(.|\n)*goes into a list"),
        ("", "no such file|one string"),
        ("A" * 5000, "one string was given"),
        ("no/such/file.fa", "no such file"),
        (b"ACGU", "from an object of type bytes"),
        (5, "from an object of type int"),
        (None, "of type NoneType"),
        ([], "list: there are no sequences"),
        (iter([]), "there are no sequences"),
        ([5], "'0' is of type int, not a string"),
        (["ACGU", None], r"'1' has no sequence, a missing value \(list, item 2\)"),
        (["ACGU", float("nan")], "'1' has no sequence"),
        (pd.Series(["ACGU", pd.NA]), "'1' has no sequence"),
        (pd.DataFrame({"id": ["a"], "sequence": [None]}), r"'a' has no sequence.*\(DataFrame, row 1\)"),
        (["ACGU", ""], r"'1' has an empty sequence \(list, item 2\)"),
        ([("x", " \n")], "'x' has an empty sequence"),
        ([("x", "ACGU", 3)], "an item of 3 parts"),
        (["AC GU"], r"'0' has ' ' at position 3, which is no letter \(list, item 1\)"),
        ([("x", "ACG7U")], "'x' has '7' at position 4"),
        (["ACGÜ"], "has 'Ü' at position 4"),
        (np.array([["A", "C"]]), "has one axis, this one has 2"),
    ],
)
def test_objects_that_hold_no_sequences_are_one_clear_error(source, fragment):
    with pytest.raises(InputError, match=fragment):
        list(read_sequences(source))


def test_a_column_of_something_that_is_no_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match="a column was named, but the input is of type list"):
        read_sequences(["A"], sequence_column="x")
    with pytest.raises(InputError, match="a column was named, but this is not a table"):
        read_sequences(put(tmp_path, "x.fa", FASTA), sequence_column="x")

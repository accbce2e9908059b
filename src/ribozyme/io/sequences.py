"""Sequences from files, tables and Python objects, one `Record` at a time, so memory stays flat.

What a letter means is the tokenizer's concern. Here a sequence is anything that can be one: ASCII letters,
`-` and `.` (gaps), `*`, `?`, `|`, and `<...>` (special tokens such as `<mask>`); everything else is an error
that names file, record and place. Lower case is kept.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import dnaio
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ribozyme.errors import InputError
from ribozyme.io import streams
from ribozyme.io.streams import COMPRESSED, Guarded, open_guarded
from ribozyme.report import Rejected

MAX_LETTERS = streams.LONGEST
"""Longest sequence that is read."""
CSV_BLOCK = 16 * 2**20
"""Longest row of a .csv or .tsv in bytes, which are read in blocks of this size."""
BATCH_ROWS = 256

FASTA = (".fa", ".fasta", ".fna", ".ffn", ".frn", ".fas")
FASTQ = (".fq", ".fastq")
TABLES = (".csv", ".tsv", ".parquet")
SUFFIXES = (*FASTA, *FASTQ, *TABLES, ".txt")

_NOT_A_LETTER = re.compile(r"[^A-Za-z\-.*?|<>]")
_MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "None", "null", "NULL", "<NA>"})


class Record(NamedTuple):
    """A sequence and its name."""

    name: str
    sequence: str


def read_sequences(
    source: Any, *, sequence_column: str | None = None, id_column: str | None = None
) -> Iterator[Record]:
    """Read sequences one by one.

    Parameters
    ----------
    source : a path with one of the suffixes `.fa .fasta .fna .ffn .frn .fas .fq .fastq` (FASTA, FASTQ),
        `.csv .tsv .parquet` (a table), `.txt` (one sequence a line), all but parquet also with `.gz .zst
        .xz .bz2`; `-` for standard input (FASTA, FASTQ or one a line); or a list, iterator, array or Series
        of strings or of (name, sequence) pairs; a mapping of names to sequences; a DataFrame.
    sequence_column, id_column : columns of a table; `sequence` and, if there is one, `id` by default

    Yields
    ------
    Records in input order. Results are positional, so names may repeat. A name ends at the first blank of a
    FASTA header; a record without a name is called by its position, from 0 (by its index label in pandas).

    Raises
    ------
    InputError : names the file, the record and the place of what cannot be read.
    """
    return _checked(*_opened(source, sequence_column, id_column))


def read_or_reject(
    source: Any, *, sequence_column: str | None = None, id_column: str | None = None
) -> Iterator[Record | Rejected]:
    """As `read_sequences`; what is no sequence comes as `Rejected` in its place, with the reason.

    A file that cannot be read on is an error here too.
    """
    return _checked(*_opened(source, sequence_column, id_column), skip=True)


def read_record(name: Any, sequence: Any, where: str, number: int) -> Record:
    """Row `number`, from 1, of a table that was read otherwise.

    Raises
    ------
    InputError : it is no sequence; `where` and the number are said.
    """
    called = _called(name, number)
    return Record(called, _sequence(called, sequence, f"{where}, row {number:,}"))


def _opened(source: Any, sequence_column: str | None, id_column: str | None) -> "Source":
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, sequence_column, id_column)
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):
        return "DataFrame", _from_frame(source, sequence_column, id_column), "row"
    if sequence_column is not None or id_column is not None:
        raise InputError(f"a column was named, but the input is of type {type(source).__name__}, not a table")
    return type(source).__name__, _from_objects(source), "item"


# What every source gives: where it is (for messages), pairs of name and sequence, what a row is called.
Pairs = Iterable[tuple[Any, Any]]
Source = tuple[str, Pairs, str]


def _checked(where: str, pairs: Pairs, row: str, skip: bool = False) -> Iterator[Any]:
    """Records from pairs, each looked at; counts and places in messages start at 1, as people count."""
    number = 0
    try:
        for number, (name, sequence) in enumerate(pairs, start=1):
            called = _called(name, number)
            place = f"{where}, {row} {number:,}"
            try:
                record = Record(called, _sequence(called, sequence, place))
            except InputError as error:
                if not skip:
                    raise
                yield Rejected(number - 1, called, error.message)
            else:
                yield record
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{where}: not text, there is a byte 0x{byte:02x} after {row} {number:,}",
            hint="is this a file of sequences? Names may be UTF-8",
        ) from error
    except (dnaio.FileFormatError, pa.ArrowException) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{where}: cannot be read after {row} {number:,}: {message}") from error
    if number == 0:
        raise InputError(f"{where}: there are no sequences in it")


def _called(name: Any, number: int) -> str:
    """The name of a record, or its position, from 0."""
    return str(number - 1) if _is_missing(name) or name == "" else str(name)


def _sequence(name: str, sequence: Any, place: str) -> str:
    if isinstance(sequence, bytes):
        sequence = sequence.decode("latin-1")
    if _is_missing(sequence):
        raise InputError(f"{name!r} has no sequence, a missing value ({place})", hint="leave such rows out")
    if not isinstance(sequence, str):
        raise InputError(f"{name!r} is of type {type(sequence).__name__}, not a string ({place})")
    sequence = sequence.strip()
    if not sequence:
        raise InputError(f"{name!r} has an empty sequence ({place})", hint="leave such records out")
    if len(sequence) > MAX_LETTERS:
        raise InputError(
            f"{name!r} has {len(sequence):,} letters; at most {MAX_LETTERS:,} are read ({place})"
        )
    if (wrong := _NOT_A_LETTER.search(sequence)) is not None:
        raise InputError(
            f"{name!r} has {wrong.group()!r} at position {wrong.start() + 1:,}, which is no letter ({place})",
            hint="a sequence is of letters, gaps (-, .), * ? | and <mask>; is this a file of sequences?",
        )
    return sequence


def _is_missing(value: Any) -> bool:
    """None, NaN, pandas.NA, NaT."""
    return value is None or (not isinstance(value, (str, bytes)) and str(value) in {"nan", "<NA>", "NaT"})


# ---------------------------------------------------------------------------------------------- objects


def _from_objects(source: Any) -> Pairs:
    if isinstance(source, Mapping):
        return source.items()
    if isinstance(source, np.ndarray) and source.ndim != 1:
        raise InputError(f"an array of sequences has one axis, this one has {source.ndim}")
    if hasattr(source, "index") and hasattr(source, "items"):  # a pandas Series; its index has the names
        return source.items()
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputError(
            f"sequences cannot be read from an object of type {type(source).__name__}",
            hint="give a path, a list of strings or of (name, sequence) pairs, or a column of a table",
        )
    return map(_pair, source)


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, (tuple, list)):
        if len(item) != 2:
            raise InputError(f"an item of {len(item)} parts; a (name, sequence) pair has two")
        return item[0], item[1]
    return None, item


def _from_frame(frame: Any, sequence_column: str | None, id_column: str | None) -> Pairs:
    columns = [str(name) for name in frame.columns]
    sequence, name = choose_columns("the DataFrame", columns, sequence_column, id_column)
    if name is not None:
        return zip(frame[name], frame[sequence])
    if hasattr(frame, "index"):
        return zip(frame.index, frame[sequence])
    return ((None, value) for value in frame[sequence])


def choose_columns(
    where: str, columns: list[str], sequence_column: str | None = None, id_column: str | None = None
) -> tuple[str, str | None]:
    """The columns of sequences and of names: those asked for, else `sequence` and, if it is there, `id`."""
    sequence = sequence_column or "sequence"
    for wanted, option in ((sequence, "sequence_column (--sequence-column)"), (id_column, "id_column")):
        if wanted is None or wanted in columns:
            continue
        close = get_close_matches(wanted.lower(), [c.lower() for c in columns], n=1)
        nearest = [c for c in columns if c.lower() in close]
        raise InputError(
            f"{where} has no column {wanted!r}; it has {', '.join(map(repr, columns[:20]))}"
            + (f" and {len(columns) - 20} more" if len(columns) > 20 else ""),
            hint=f"name it with {option}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""),
        )
    return sequence, id_column or ("id" if "id" in columns else None)


# ------------------------------------------------------------------------------------------------ files


def has_columns(source: str | os.PathLike[str]) -> bool:
    """Whether the name of a file says that its sequences are in a column."""
    return _suffix(Path(source)) in TABLES


def _suffix(path: Path) -> str:
    """What says how to read it: the suffix before that of a compression."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _from_path(source: str | os.PathLike[str], sequence_column: str | None, id_column: str | None) -> Source:
    name = os.fspath(source)
    if name == "-":
        return "standard input", _from_stdin(), "record"
    path = Path(name)
    _check_file(path, name)
    suffix = _suffix(path)
    if suffix in TABLES:
        read = _from_parquet if suffix == ".parquet" else _from_csv
        return name, read(path, sequence_column, id_column), "row"
    if sequence_column is not None or id_column is not None:
        raise InputError(f"{path}: a column was named, but this is not a table (.csv, .tsv, .parquet)")
    readers: dict[str, tuple[Callable[[Path], Pairs], str]] = {
        **dict.fromkeys(FASTA, (_from_fasta, "record")),
        **dict.fromkeys(FASTQ, (_from_fastq, "record")),
        ".txt": (_from_text, "sequence"),
    }
    if suffix not in readers:
        raise InputError(
            f"{path}: the suffix {suffix!r} does not say how to read it",
            hint=f"known are {', '.join(SUFFIXES)}, with {', '.join(COMPRESSED)} where compressed",
        )
    read_file, row = readers[suffix]
    return name, read_file(path), row


def _check_file(path: Path, name: str) -> None:
    try:
        exists, folder, empty = path.exists(), path.is_dir(), path.is_file() and path.stat().st_size == 0
    except (OSError, ValueError):  # a string that cannot even be a path
        exists = folder = empty = False
    if not exists or not name:
        raise _no_such_file(path, name)
    if folder:
        raise InputError(f"{path}: this is a folder; a file of sequences is wanted")
    if empty:
        raise InputError(f"{path}: the file is empty")


def _no_such_file(path: Path, name: str) -> InputError:
    if re.fullmatch(r"[A-Za-z\-*<>\s]+", name):
        return InputError(
            f"one string was given ({name[:40]!r}), and no file is called so",
            hint="a single sequence goes into a list: [sequence]",
        )
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    return InputError(
        f"{name[:200]!r}: there is no such file",
        hint=f"did you mean {str(path.parent / close[0])!r}?" if close else None,
    )


def _open(path: Path, mark: bytes | None = None) -> io.BufferedReader:
    return open_guarded(path, mark, MAX_LETTERS)


def _from_fasta(path: Path) -> Pairs:
    with _open(path, mark=b">") as stream:
        yield from _fasta(stream)


def _from_fastq(path: Path) -> Pairs:
    with _open(path, mark=b"\n") as stream:
        yield from _fastq(stream)


def _from_text(path: Path) -> Pairs:
    with _open(path, mark=b"\n") as stream:
        yield from _text(stream)


def _fasta(stream: BinaryIO) -> Pairs:
    # The type of the records is ours: dnaio's own refuses names that are not ASCII.
    records: Iterable[Any] = dnaio.FastaReader(stream, sequence_class=_header_and_letters)
    for header, sequence in records:
        yield _name(header), "".join(sequence.split())


def _header_and_letters(header: str, sequence: str, _: None) -> tuple[str, str]:
    return header, sequence


def _fastq(stream: BinaryIO) -> Pairs:
    for record in dnaio.FastqReader(stream):
        yield _name(record.name), record.sequence


def _text(stream: BinaryIO) -> Pairs:
    for line in io.TextIOWrapper(stream, encoding="utf-8"):
        if line.strip():
            yield None, line


def _name(header: str) -> str:
    """The header up to its first blank."""
    parts = header.split(maxsplit=1)
    return parts[0] if parts else ""


def _from_stdin() -> Pairs:
    stream = io.BufferedReader(Guarded(sys.stdin.buffer, "standard input", longest=MAX_LETTERS))
    first = stream.peek(1)[:1]
    readers: dict[bytes, Callable[[BinaryIO], Pairs]] = {b">": _fasta, b"@": _fastq}
    guarded = stream.raw
    assert isinstance(guarded, Guarded)
    guarded.mark = b">" if first == b">" else b"\n"
    yield from readers.get(first, _text)(stream)


# ----------------------------------------------------------------------------------------------- tables


def _from_csv(path: Path, sequence_column: str | None, id_column: str | None) -> Pairs:
    delimiter = "\t" if ".tsv" in path.suffixes[-2:] else ","
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=False)
    with _open(path) as stream:
        header = stream.peek(2**16).partition(b"\n")[0]
        names = _header(path, header, delimiter)
        sequence, name = choose_columns(str(path), names, sequence_column, id_column)
        wanted = [sequence] if name is None else [name, sequence]
        converting = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False
        )
        titles, before = None, 0  # the first block has them
        for block in _lines(stream, delimiter.encode()):
            reading = pa.csv.ReadOptions(block_size=block.size, use_threads=False, column_names=titles)
            try:
                table = pa.csv.read_csv(pa.BufferReader(block), reading, parsing, converting)
            except pa.ArrowInvalid as error:
                raise pa.ArrowInvalid(_of_file(str(error), before)) from error
            yield from _rows(table, sequence, name)
            titles, before = names, before + len(table) + (titles is None)


def _of_file(message: str, before: int) -> str:
    """What Arrow says of a block, its row counted in the file, whose header is row 1."""
    return re.sub(r"Row #(\d+)", lambda row: f"Row #{int(row[1]) + before}", message)


def _lines(stream: BinaryIO, delimiter: bytes) -> Iterator[Any]:
    """Whole rows, in Arrow buffers of at most `CSV_BLOCK` bytes.

    A stream would be read in threads of Arrow; one that is in Python when the program ends aborts it.
    """
    rest = b""
    while len(chunk := rest + stream.read(CSV_BLOCK - len(rest))) == CSV_BLOCK:
        end = _last_end(chunk, delimiter)
        if not end:
            raise pa.ArrowInvalid(f"a row of more than {CSV_BLOCK:,} bytes, or a quote that is not closed")
        yield _owned(chunk[:end])
        rest = chunk[end:]
    if chunk:
        yield _owned(chunk)


def _last_end(rows: bytes, delimiter: bytes) -> int:
    """Where the last whole row ends; ends of lines in quotes are none. 0 where no row is whole."""
    quoted = re.compile(rb'(?:\A|(?<=[\n\r%b]))"(?:[^"]++|"")*+(?:"|\Z)' % re.escape(delimiter))
    values = quoted.finditer(rows) if b'"' in rows else ()
    spans = [value.span() for value in values if b"\n" in value[0] or b"\r" in value[0]]
    end = max(rows.rfind(b"\n"), rows.rfind(b"\r"))
    for start, stop in reversed(spans):
        if end >= stop:
            break
        end = max(rows.rfind(b"\n", 0, start), rows.rfind(b"\r", 0, start))
    return end + 1


def _owned(content: bytes) -> Any:
    """The same in memory of Arrow's."""
    buffer = pa.allocate_buffer(len(content))
    np.frombuffer(buffer, dtype=np.uint8)[:] = np.frombuffer(content, dtype=np.uint8)
    return buffer


def _header(path: Path, line: bytes, delimiter: str) -> list[str]:
    try:
        parsing = pa.csv.ParseOptions(delimiter=delimiter)
        text = pa.csv.read_csv(pa.BufferReader(_owned(line + b"\n")), parse_options=parsing)
    except pa.ArrowException as error:
        raise InputError(f"{path}: the first line is not a header of columns ({error})") from error
    return list(text.column_names)


def _from_parquet(path: Path, sequence_column: str | None, id_column: str | None) -> Pairs:
    try:
        file = pa.parquet.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole parquet file ({error})", hint="fetch it again") from error
    with file:
        sequence, name = choose_columns(str(path), file.schema_arrow.names, sequence_column, id_column)
        _check_type(path, file.schema_arrow.field(sequence))
        _check_declared(path, file.metadata)
        wanted = [sequence] if name is None else [name, sequence]
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False)
        try:
            yield from chain.from_iterable(_rows(batch, sequence, name) for batch in batches)
        except OSError as error:
            raise InputError(f"{path}: damaged ({error})", hint="fetch it again") from error


def _check_type(path: Path, field: Any) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InputError(f"{path}: the column {field.name!r} holds {field.type}, not text")


def _check_declared(path: Path, metadata: Any) -> None:
    """Refuse a parquet file that says it unpacks to far more than it is."""
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if size > streams.RATIO_FROM and size > streams.MAX_RATIO * path.stat().st_size:
            raise InputError(f"{path}: declares {size:,} bytes, more than {streams.MAX_RATIO} times its size")


def _rows(batch: Any, sequence: str, name: str | None) -> Pairs:
    sequences = batch.column(sequence).to_pylist()
    names = [None] * len(sequences) if name is None else batch.column(name).to_pylist()
    return ((n, None if s in _MISSING else s) for n, s in zip(names, sequences))

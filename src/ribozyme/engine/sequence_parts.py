"""From sequences to the parts of a job: records read, turned into ids, cut to the window of the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ribozyme.engine.embed import Cutter, Ids, Overlong, Tokenizer
from ribozyme.engine.parts import PART, OnError, Prepared, check_on_error
from ribozyme.errors import InputError
from ribozyme.io.sequences import Record, read_or_reject, read_sequences
from ribozyme.packing import Pooling
from ribozyme.report import Rejected, Report


@dataclass(frozen=True, slots=True)
class Settings:
    """How sequences become embeddings: the arguments of `embed`, each checked and decided."""

    pooling: Pooling
    layer: int
    overlong: Overlong
    batch_tokens: int
    strict: bool
    sequence_column: str | None


@dataclass(frozen=True, slots=True)
class Reader:
    """Records become pieces of ids."""

    tokenizer: Tokenizer
    cutter: Cutter
    how: Settings

    def parts(self, sequences: Any, start: int = 0, on_error: OnError = "fail") -> Iterator[Prepared]:
        """Inputs of one part after the other, from input `start` on.

        What can be read twice is looked at as a whole first: bad inputs are errors before long work starts.
        """
        check_on_error(on_error)
        how, skip = self.how, on_error == "skip"
        once = isinstance(sequences, Iterator) or (isinstance(sequences, str) and sequences == "-")
        if not (skip or once or start):
            check = Report(how.strict)
            for one in read_sequences(sequences, sequence_column=how.sequence_column):
                self.cutter.cut(one.name, encode(self.tokenizer, one, check), check)
        read = read_or_reject if skip else read_sequences
        records = read(sequences, sequence_column=how.sequence_column)
        part, size = Prepared(start, start, report=Report(how.strict)), 0
        for record in islice(records, start, None):
            size += self._add(part, record, skip)
            if size >= PART * how.batch_tokens:
                yield part
                part, size = Prepared(part.end, part.end, report=Report(how.strict)), 0
        if part.end > part.start:
            yield part

    def _add(self, part: Prepared, record: Record | Rejected, skip: bool) -> int:
        """One more input into a part; returns its letters."""
        position, part.end = part.end, part.end + 1
        if isinstance(record, Rejected):
            part.rejected.append(record)
            return 1
        try:
            pieces = self.cutter.cut(record.name, encode(self.tokenizer, record, part.report), part.report)
        except InputError as error:
            if not skip:
                raise
            part.rejected.append(Rejected(position, record.name, error.message))
            return 1
        part.names.append(record.name)
        part.inputs.append(pieces)
        return sum(len(piece.ids) for piece in pieces)


def encode(tokenizer: Tokenizer, record: Record, report: Report) -> Ids:
    """The ids of a record; letters that the model does not know are counted."""
    try:
        ids = tokenizer.encode(record.sequence)
    except InputError as error:
        error.add_note(f"in sequence {record.name!r}")
        raise
    unknown = int((ids == tokenizer.unknown_id).sum())
    report.add("letters that the model does not know, read as unknown", record.name, unknown)
    return ids

"""Secondary structures in files: dot-bracket (`.dbn`), connect tables (`.ct`) and `.bpseq`.

A structure is its base pairs `(i, j)`, i < j, counted from 0; a letter is in one pair at most.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from ribozyme.errors import InputError

Pair = tuple[int, int]
Lines = Iterator[tuple[int, str]]
Kind = TypeVar("Kind")

OPENING = "([{<" + string.ascii_uppercase
CLOSING = ")]}>" + string.ascii_lowercase
UNPAIRED = ".-,:_~"
LONGEST_LINE = 1_000_000  # characters; the longest known RNA structures have 10^5


@dataclass(frozen=True, slots=True)
class Structure:
    """One RNA with its base pairs."""

    name: str
    sequence: str
    pairs: tuple[Pair, ...]

    @property
    def dot_bracket(self) -> str:
        """The pairs as brackets over the sequence."""
        return to_dot_bracket(self.pairs, len(self.sequence))


def to_dot_bracket(pairs: Iterable[Pair], length: int) -> str:
    """Brackets for the pairs of an RNA of `length` letters; pairs that cross take () [] {} <> Aa Bb in turn.

    Raises
    ------
    InputError : a pair outside the RNA, a letter in two pairs, or more than 30 levels of crossing.
    """
    marks = ["."] * length
    open_ends: list[list[int]] = []  # of each level, the right ends that a new pair must not cross
    for i, j in _checked(pairs, length):
        for ends in open_ends:
            while ends and ends[-1] < i:
                ends.pop()
        level = next((k for k, ends in enumerate(open_ends) if not ends or j < ends[-1]), len(open_ends))
        if level == len(OPENING):
            raise InputError(
                f"pairs cross at more than {len(OPENING)} levels; dot-bracket has no more brackets"
            )
        if level == len(open_ends):
            open_ends.append([])
        open_ends[level].append(j)
        marks[i], marks[j] = OPENING[level], CLOSING[level]
    return "".join(marks)


def from_dot_bracket(brackets: str) -> tuple[Pair, ...]:
    """The pairs of a dot-bracket string, ordered by their first letter.

    Raises
    ------
    InputError : a bracket without its partner, or another character.
    """
    open_at: dict[str, list[int]] = {}
    pairs: list[Pair] = []
    for place, mark in enumerate(brackets):
        if mark in OPENING:
            open_at.setdefault(mark, []).append(place)
        elif mark in CLOSING:
            partner = OPENING[CLOSING.index(mark)]
            if not open_at.get(partner):
                raise InputError(f"{mark!r} at letter {place + 1:,} closes nothing")
            pairs.append((open_at[partner].pop(), place))
        elif mark not in UNPAIRED:
            raise InputError(f"{mark!r} at letter {place + 1:,} is no dot and no bracket")
    for mark, places in open_at.items():
        if places:
            raise InputError(f"{mark!r} at letter {places[-1] + 1:,} is never closed")
    return tuple(sorted(pairs))


def read_structures(path: str | Path) -> Iterator[Structure]:
    """The structures of a file, one after the other; its suffix tells the format.

    Raises
    ------
    InputError : an unknown suffix, or a file that breaks its format; the message names the line.
    """
    path = Path(path)
    read = _by_suffix(path, READERS)
    try:
        with path.open(encoding="utf-8") as file:
            yield from read(_lines(file), path.stem)
    except InputError as error:
        error.add_note(f"in {path}")
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def write_structures(path: str | Path, structures: Iterable[Structure]) -> None:
    """Write structures to a file; its suffix chooses the format.

    Raises
    ------
    InputError : an unknown suffix, or pairs that no structure can have.
    """
    path = Path(path)
    text = _by_suffix(path, WRITERS)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for structure in structures:
            try:
                file.write(text(structure))
            except InputError as error:
                error.add_note(f"in structure {structure.name!r}")
                raise


def _checked(pairs: Iterable[Pair], length: int) -> list[Pair]:
    ordered = sorted((min(pair), max(pair)) for pair in pairs)
    paired: set[int] = set()
    for i, j in ordered:
        if i < 0 or j >= length:
            raise InputError(f"the pair ({i + 1}, {j + 1}) lies outside of {length:,} letters")
        if i == j or i in paired or j in paired:
            raise InputError(f"letter {(i if i in paired else j) + 1:,} is in two pairs")
        paired |= {i, j}
    return ordered


def _by_suffix(path: Path, table: dict[str, Kind]) -> Kind:
    if path.suffix.lower() not in table:
        raise InputError(f"{path}: unknown kind of structure file", hint=f"one of {', '.join(table)}")
    return table[path.suffix.lower()]


def _lines(file: TextIO) -> Lines:
    """Numbered lines that are not empty."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 2), ""), 1):
        if len(line) > LONGEST_LINE + 1:
            raise InputError(f"line {number:,} has more than {LONGEST_LINE:,} characters")
        if line.strip():
            yield number, line.strip()


# dot-bracket: >name, sequence, brackets (and perhaps an energy)


def _read_dot_bracket(lines: Lines, stem: str) -> Iterator[Structure]:
    name, sequence = stem, ""
    for number, line in lines:
        if line.startswith("#"):
            name = line.partition("#Name:")[2].strip() or name
        elif line.startswith(">") and not sequence:
            name = line[1:].strip() or stem
        elif not sequence:
            sequence = line
        else:
            yield _bracketed(name, sequence, line.split()[0], number)
            name, sequence = stem, ""
    if sequence:
        raise InputError(f"the last sequence, {name!r}, has no structure line")


def _bracketed(name: str, sequence: str, brackets: str, number: int) -> Structure:
    if len(brackets) != len(sequence):
        raise InputError(
            f"line {number:,}: {len(brackets):,} marks for the {len(sequence):,} letters of {name!r}"
        )
    try:
        return Structure(name, sequence, from_dot_bracket(brackets))
    except InputError as error:
        raise InputError(f"line {number:,}: {error.message}") from error


def _dot_bracket_text(structure: Structure) -> str:
    return f">{_one_line(structure.name)}\n{structure.sequence}\n{structure.dot_bracket}\n"


# connect table: length and name, then a row a letter: place, letter, before, after, partner or 0, place


def _read_ct(lines: Lines, stem: str) -> Iterator[Structure]:
    for number, line in lines:
        if line.startswith(("#", ";")):
            continue
        head = re.match(r"([0-9]{1,9})(?:\s+|$)(?:(?:dG|ENERGY)\s*=\s*\S+\s*)?(.*)", line)
        if head is None:
            raise InputError(f"line {number:,}: expected the number of letters, not {line[:40]!r}")
        rows: list[tuple[int, str, int]] = []
        while len(rows) < int(head[1]):
            number, row = next(lines, (number, ""))
            columns = row.split()
            if len(columns) < 5:
                raise InputError(
                    f"line {number:,}: {len(rows):,} of {head[1]} letters, then no row of a table"
                )
            rows.append(_row(columns[0], columns[1], columns[4], number, len(rows) + 1))
        yield _paired(head[2].strip() or stem, rows)


def _ct_text(structure: Structure) -> str:
    length, partners = len(structure.sequence), _partners(structure)
    rows = (
        f"{k}\t{letter}\t{k - 1}\t{(k + 1) % (length + 1)}\t{partner}\t{k}\n"
        for k, (letter, partner) in enumerate(zip(structure.sequence, partners), 1)
    )
    return f"{length}\t{_one_line(structure.name)}\n" + "".join(rows)


# bpseq: a row a letter: place, letter, partner or 0; lines that begin otherwise are comments


def _read_bpseq(lines: Lines, stem: str) -> Iterator[Structure]:
    name, rows = stem, list[tuple[int, str, int]]()
    for number, line in lines:
        columns = line.split()
        is_row = columns[0].isdecimal()
        if rows and (not is_row or columns[0] == "1"):
            yield _paired(name, rows)
            name, rows = stem, []
        if not is_row:
            name = line[1:].strip() or stem if line[0] in "#>" else name
        elif len(columns) != 3:
            raise InputError(f"line {number:,}: {len(columns)} columns, not 3")
        else:
            rows.append(_row(columns[0], columns[1], columns[2], number, len(rows) + 1))
    if rows:
        yield _paired(name, rows)


def _bpseq_text(structure: Structure) -> str:
    numbered = enumerate(zip(structure.sequence, _partners(structure)), 1)
    rows = "".join(f"{k} {letter} {partner}\n" for k, (letter, partner) in numbered)
    return f"# {_one_line(structure.name)}\n{rows}"


# what both tables share


def _row(place: str, letter: str, partner: str, number: int, expected: int) -> tuple[int, str, int]:
    """(line, letter, partner) of a row, whose place must be `expected`."""
    if not (place.isdecimal() and partner.isdecimal() and len(place) < 10 and len(partner) < 10):
        raise InputError(f"line {number:,}: {place!r} and {partner!r} should be numbers")
    if int(place) != expected:
        raise InputError(f"line {number:,}: letter {place} where {expected} should come")
    if len(letter) != 1:
        raise InputError(f"line {number:,}: {letter!r} is not one letter")
    return number, letter, int(partner)


def _paired(name: str, rows: list[tuple[int, str, int]]) -> Structure:
    pairs: list[Pair] = []
    for k, (number, _, partner) in enumerate(rows, 1):
        if partner > len(rows) or partner == k:
            raise InputError(f"line {number:,}: letter {k} of {len(rows):,} cannot pair with {partner}")
        if partner and rows[partner - 1][2] != k:
            raise InputError(
                f"line {number:,}: letter {k} pairs with {partner}, which pairs with {rows[partner - 1][2]}"
            )
        if k < partner:
            pairs.append((k - 1, partner - 1))
    return Structure(name, "".join(letter for _, letter, _ in rows), tuple(pairs))


def _partners(structure: Structure) -> list[int]:
    """For each letter its partner counted from 1, or 0."""
    partners = [0] * len(structure.sequence)
    for i, j in _checked(structure.pairs, len(partners)):
        partners[i], partners[j] = j + 1, i + 1
    return partners


def _one_line(name: str) -> str:
    return " ".join(name.split())


READERS: dict[str, Callable[[Lines, str], Iterator[Structure]]] = {
    ".dbn": _read_dot_bracket,
    ".db": _read_dot_bracket,
    ".dot": _read_dot_bracket,
    ".ct": _read_ct,
    ".bpseq": _read_bpseq,
}
WRITERS: dict[str, Callable[[Structure], str]] = {
    ".dbn": _dot_bracket_text,
    ".db": _dot_bracket_text,
    ".dot": _dot_bracket_text,
    ".ct": _ct_text,
    ".bpseq": _bpseq_text,
}

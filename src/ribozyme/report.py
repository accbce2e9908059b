"""What was changed or left out on the way from input to result, counted by kind, said once."""

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

from ribozyme.errors import InputError, InputWarning


class Rejected(NamedTuple):
    """An input that was left out: its place in the input, from 0, its name, and why."""

    position: int
    name: str
    reason: str


@dataclass(slots=True)
class Report:
    """Counts of changes by kind, with the first examples.

    A kind is a phrase that reads well after a count, such as "unknown letters read as <unk>".
    With `strict`, the first entry is an `InputError`; otherwise `finish` issues one `InputWarning`.
    """

    strict: bool = False
    examples: int = 3
    counts: dict[str, int] = field(default_factory=dict)
    where: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Count `count` changes of one kind at the place `where` (a record or gene name)."""
        if count == 0:
            return
        if self.strict:
            raise InputError(
                f"{where}: {counted(count, kind)}", hint="leave out strict to have this counted instead"
            )
        self.note(kind, where, count)

    def note(self, kind: str, where: str, count: int = 1) -> None:
        """As `add`, for what changes no result and is no error when strict."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        places = self.where.setdefault(kind, [])
        if len(places) < self.examples:
            places.append(where)

    def merge(self, other: "Report") -> None:
        """Take over what another report of the same work counted later on."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.where[kind] = (self.where.get(kind, []) + other.where[kind])[: self.examples]

    def lines(self) -> list[str]:
        """One line a kind: the count, the kind, the first places."""
        return [
            f"{counted(n, kind)} (such as in {', '.join(self.where[kind])})"
            for kind, n in self.counts.items()
        ]

    def finish(self, stacklevel: int = 3) -> None:
        """Warn once about everything counted so far, then start anew."""
        if self.counts:
            text = "; ".join(self.lines())
            self.counts, self.where = {}, {}
            warnings.warn(text, InputWarning, stacklevel=stacklevel)


def counted(n: int, kind: str) -> str:
    """`3 letters cut off`, `1 letter cut off`: a kind begins with its plural."""
    first, _, rest = kind.partition(" ")
    return f"{n:,} {first.removesuffix('s') if n == 1 else first} {rest}".rstrip()

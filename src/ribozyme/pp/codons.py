"""Codon marks: Helix-mRNA reads an E in front of every codon of the coding sequence."""

from collections.abc import Iterable

from ribozyme.errors import InputError


def mark_codons(sequence: str, cds_start: int, cds_end: int) -> str:
    """Put E in front of every codon of the coding sequence; the rest stays as it is.

    Parameters
    ----------
    sequence : a whole mRNA, or its coding sequence alone
    cds_start, cds_end : its coding sequence, counted from 0, the end not included

    Returns
    -------
    the sequence, longer by a third of its coding part: `ggAUGGCCaa` becomes `ggEAUGEGCCaa`.

    Raises
    ------
    InputError : the range is outside the sequence, empty, or no whole number of codons.
    """
    inside = 0 <= cds_start < cds_end <= len(sequence)  # not so for NaN
    if not inside or cds_start % 1 or cds_end % 1:
        raise InputError(
            f"the coding sequence {cds_start}-{cds_end} does not lie in the {len(sequence):,} nt",
            hint="coordinates count from 0, and the end is not included",
        )
    start, end = int(cds_start), int(cds_end)
    if over := (end - start) % 3:
        raise InputError(
            f"the coding sequence {start:,}-{end:,} is not a whole number of codons ({over} nt over)",
            hint="coordinates count from 0, the end is not included, and the stop codon may be part of it",
        )
    codons = (sequence[k : k + 3] for k in range(start, end, 3))
    return sequence[:start] + "".join("E" + codon for codon in codons) + sequence[end:]


def mark_all_codons(
    sequences: Iterable[str], cds_starts: Iterable[int], cds_ends: Iterable[int]
) -> list[str]:
    """`mark_codons` for columns of a table.

    Raises
    ------
    InputError : as `mark_codons`, with the number of the row; or columns of unequal length.
    """
    texts, starts, ends = list(sequences), list(cds_starts), list(cds_ends)
    if not len(texts) == len(starts) == len(ends):
        raise InputError(f"columns of {len(texts)}, {len(starts)} and {len(ends)} rows do not match")
    marked: list[str] = []
    for row in zip(texts, starts, ends):
        try:
            marked.append(mark_codons(*row))
        except InputError as error:
            error.add_note(f"in row {len(marked)} (counted from 0)")
            raise
    return marked

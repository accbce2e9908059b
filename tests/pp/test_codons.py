import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import InputError
from ribozyme.pp.codons import mark_all_codons, mark_codons


def test_every_codon_of_the_cds_gets_its_mark():
    assert mark_codons("ggAUGGCCaa", 2, 8) == "ggEAUGEGCCaa"
    assert mark_codons("AUG", 0, 3) == "EAUG"


@given(before=st.text("ACGU"), codons=st.integers(1, 30), after=st.text("ACGU"))
def test_without_its_marks_the_sequence_is_as_before(before, codons, after):
    sequence = before + "GCA" * codons + after
    marked = mark_codons(sequence, len(before), len(before) + 3 * codons)
    assert marked.replace("E", "") == sequence
    assert len(marked) == len(sequence) + codons


@pytest.mark.parametrize("cds", [(-3, 3), (0, 12), (3, 3), (6, 3), (0, float("nan")), (0.5, 3.5)])
def test_a_range_outside_the_sequence_is_refused(cds):
    with pytest.raises(InputError, match="does not lie in the 9 nt"):
        mark_codons("AUGGCCUAA", *cds)


def test_part_of_a_codon_is_refused():
    with pytest.raises(InputError, match="not a whole number of codons \\(1 nt over\\)"):
        mark_codons("AUGGCCUAA", 0, 7)


def test_columns_of_a_table_are_marked_together():
    table = pd.DataFrame({"sequence": ["AUGGCC", "aAUG"], "cds_start": [0, 1], "cds_end": np.array([6, 4])})
    assert mark_all_codons(table["sequence"], table["cds_start"], table["cds_end"]) == ["EAUGEGCC", "aEAUG"]


def test_the_row_of_an_error_is_named():
    with pytest.raises(InputError) as caught:
        mark_all_codons(["AUG", "AUG"], [0, 0], [3, 4])
    assert caught.value.__notes__ == ["in row 1 (counted from 0)"]
    with pytest.raises(InputError, match="2, 1 and 2 rows"):
        mark_all_codons(["AUG", "AUG"], [0], [3, 3])

"""Nothing is changed silently: counts, first examples, one warning, or an error where strict."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import InputError, InputWarning
from ribozyme.report import Report

CUT = "letters cut off at the 3' end"


def test_a_report_is_one_warning_with_counts_and_the_first_places():
    report = Report()
    for k in range(5):
        report.add("unknown letters read as <unk>", f"seq{k}", 1000)
    report.add(CUT, "seq9", 2)
    with pytest.warns(InputWarning) as told:
        report.finish()
    assert len(told) == 1
    text = str(told[0].message)
    assert "5,000 unknown letters read as <unk> (such as in seq0, seq1, seq2)" in text
    assert f"2 {CUT} (such as in seq9)" in text


def test_a_finished_report_starts_anew():
    report = Report()
    report.add(CUT, "a")
    with pytest.warns(InputWarning):
        report.finish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.finish()
    assert report.lines() == []


def test_nothing_to_report_is_silence():
    report = Report(strict=True)
    report.add(CUT, "a", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.finish()


def test_strict_makes_the_first_entry_an_error():
    with pytest.raises(InputError, match=rf"a: 1,234 {CUT}(.|\n)*leave out strict"):
        Report(strict=True).add(CUT, "a", 1234)


@given(counts=st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 9)), max_size=20))
def test_counts_add_up_whatever_the_order(counts):
    report = Report()
    for kind, count in counts:
        report.add(kind, "place", count)
    for kind in ("x", "y"):
        assert report.counts.get(kind, 0) == sum(c for k, c in counts if k == kind)
    assert all(len(places) <= report.examples for places in report.where.values())

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ribozyme.errors import InputError
from ribozyme.io.structures import (
    Structure,
    from_dot_bracket,
    read_structures,
    to_dot_bracket,
    write_structures,
)


@st.composite
def structures(draw):
    """Any pairing at all, crossings included (up to 30 levels: 60 letters can have no more)."""
    length = draw(st.integers(1, 60))
    order = draw(st.permutations(range(length)))
    count = draw(st.integers(0, length // 2))
    pairs = sorted(tuple(sorted(order[2 * k : 2 * k + 2])) for k in range(count))
    sequence = draw(st.text("ACGUN", min_size=length, max_size=length))
    name = draw(st.sampled_from(["a", "RF00001/1-20", "with a blank", "#x", "é"]))
    return Structure(name, sequence, tuple(pairs))


@given(structures())
def test_any_pairing_survives_dot_bracket(structure):
    assert from_dot_bracket(structure.dot_bracket) == structure.pairs


@pytest.mark.parametrize("suffix", [".dbn", ".ct", ".bpseq"])
@settings(max_examples=25)
@given(some=st.lists(structures(), min_size=1, max_size=3))
def test_files_give_back_what_was_written(suffix, some, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / f"some{suffix}"
    write_structures(path, some)
    assert list(read_structures(path)) == some


def test_crossing_pairs_take_the_next_brackets():
    assert to_dot_bracket([(0, 4), (1, 3), (2, 6), (5, 8), (7, 9)], 10) == "(([))(][)]"
    assert to_dot_bracket([(0, 3), (1, 4), (2, 5)], 6) == "([{)]}"
    assert from_dot_bracket("((..))") == ((0, 5), (1, 4))
    assert from_dot_bracket("([A)]a") == ((0, 3), (1, 4), (2, 5))


def test_dot_bracket_files_of_other_programs_are_read(tmp_path):
    path = tmp_path / "fold.dbn"
    path.write_text(">one\r\nGGGAAACCC\r\n(((...))) (-1.20)\r\n\r\n#Name: two\nGAAAC\n(---)\nAU\n..")
    one, two, three = read_structures(path)
    assert (one.name, one.pairs) == ("one", ((0, 8), (1, 7), (2, 6)))
    assert (two.name, two.pairs) == ("two", ((0, 4),))
    assert (three.name, three.sequence, three.pairs) == ("fold", "AU", ())


def test_connect_tables_of_other_programs_are_read(tmp_path):
    path = tmp_path / "fold.ct"
    path.write_text(
        "    3 ENERGY = -7.4  tRNA of yeast\n    1 G       0    2    3    1\n"
        "    2 A       1    3    0    2\n    3 C       2    4    1    3\n1\n1 A 0 0 0 1\n"
    )
    first, second = read_structures(path)
    assert first == Structure("tRNA of yeast", "GAC", ((0, 2),))
    assert second == Structure("fold", "A", ())


def test_bpseq_headers_are_skipped(tmp_path):
    path = tmp_path / "x.bpseq"
    path.write_text("Filename: a\nOrganism: b\n1 G 3\n2 A 0\n3 C 1\n")
    assert list(read_structures(path)) == [Structure("x", "GAC", ((0, 2),))]


def test_a_file_without_structures_gives_none(tmp_path):
    for suffix in (".dbn", ".ct", ".bpseq"):
        (tmp_path / f"x{suffix}").write_text("\n\n")
        assert list(read_structures(tmp_path / f"x{suffix}")) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.dbn", ">a\nGGCC\n((.)\n", "line 3: '(' at letter 1 is never closed"),
        ("x.dbn", ">a\nGGCC\n(.))\n", "line 3: ')' at letter 4 closes nothing"),
        ("x.dbn", ">a\nGGCC\n(..5\n", "line 3: '5' at letter 4"),
        ("x.dbn", ">a\nGGCC\n(..).\n", "line 3: 5 marks for the 4 letters of 'a'"),
        ("x.dbn", ">a\nGGCC\n", "'a', has no structure line"),
        ("x.ct", "name first\n", "line 1: expected the number of letters"),
        ("x.ct", "3 a\n1 G 0 2 3 1\n", "line 2: 1 of 3 letters"),
        ("x.ct", "999999999 a\n1 G 0 2 0 1\n", "1 of 999999999 letters"),
        ("x.ct", "1 a\n1 G 0 2 x 1\n", "line 2: '1' and 'x' should be numbers"),
        ("x.ct", "2 a\n1 G 0 2 2 1\n2 C 1 3 0 2\n", "line 2: letter 1 pairs with 2, which pairs with 0"),
        ("x.ct", "1 a\n1 G 0 2 1 1\n", "line 2: letter 1 of 1 cannot pair with 1"),
        ("x.bpseq", "1 G 9\n", "line 1: letter 1 of 1 cannot pair with 9"),
        ("x.bpseq", "1 G 0\n3 C 0\n", "line 2: letter 3 where 2 should come"),
        ("x.bpseq", "1 G\n", "line 1: 2 columns, not 3"),
        ("x.bpseq", "1 GG 0\n", "line 1: 'GG' is not one letter"),
        ("x.bpseq", "1 G " + "0" * 1_000_001, "line 1 has more than"),
        ("x.fasta", ">a\nGG\n", "unknown kind of structure file"),
    ],
)
def test_a_broken_file_is_named_with_its_line(name, text, told, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        list(read_structures(tmp_path / name))
    assert told in str(caught.value)
    assert str(tmp_path / name) in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_a_missing_or_binary_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_structures(tmp_path / "none.ct"))
    (tmp_path / "x.ct").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        list(read_structures(tmp_path / "x.ct"))


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([(0, 4)], "lies outside"),
        ([(0, 1), (1, 2)], "letter 2 is in two pairs"),
        ([(2, 2)], "letter 3 is in two pairs"),
        ([(k, k + 31) for k in range(31)], "more than 30 levels"),
    ],
)
def test_impossible_pairs_are_not_written(pairs, told, tmp_path):
    length = 62 if len(pairs) > 2 else 4
    with pytest.raises(InputError, match=told):
        to_dot_bracket(pairs, length)
    with pytest.raises(InputError, match=told):
        write_structures(tmp_path / "x.dbn", [Structure("x", "A" * length, tuple(pairs))])

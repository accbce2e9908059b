import pytest

from ribozyme.errors import ConfigError, InputError
from ribozyme.models.helix.tokenizer import HELIX, MAMBA2, Tokenizer


def test_the_hybrid_reads_as_published():
    tokenizer = Tokenizer()
    assert [*tokenizer.encode("EACUEGGG"), tokenizer.sep_id] == [12, 7, 8, 10, 12, 9, 9, 9, 1]
    assert tokenizer.encode("acgTn").tolist() == [7, 8, 9, 10, 11]
    assert (tokenizer.bos_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.cls_id) == (0, 1, 1, 2)
    assert tokenizer.unknown_id == 6
    assert len(tokenizer.letters) == 14


def test_the_pure_model_reads_as_published():
    tokenizer = Tokenizer(MAMBA2)
    assert tokenizer.encode("EACGUTN").tolist() == [6, 7, 8, 9, 10, 10, 11]
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.bos_id, tokenizer.pad_id) == (0, 1, 2, 4)


def test_iupac_letters_are_unknown():
    assert Tokenizer().encode("RYswkmbdhv").tolist() == [6] * 10


def test_nothing_is_put_around_a_sequence():
    assert (Tokenizer().prefix, Tokenizer().suffix, Tokenizer().mask_id) == ((), (), None)


@pytest.mark.parametrize(
    "sequence", ["AC-GU", "AC GU", "ACGU\n", "AC1", "A*", "<mask>", "ACÄ", "A€", "\udce4"]
)
def test_what_is_no_letter_is_an_error_with_its_place(sequence):
    with pytest.raises(InputError, match=r"at letter \d is not a nucleotide"):
        Tokenizer().encode(sequence)


def test_an_empty_sequence_is_an_error():
    with pytest.raises(InputError, match="empty"):
        Tokenizer().encode("")


def test_a_vocabulary_without_letters_is_refused():
    with pytest.raises(ConfigError, match="lacks G, U"):
        Tokenizer([token for token in HELIX if token not in ("G", "U")])

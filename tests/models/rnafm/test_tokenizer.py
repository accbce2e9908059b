from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import ConfigError, InputError
from ribozyme.models.rnafm.tokenizer import (
    CODON,
    MULTIMOLECULE_CODON,
    MULTIMOLECULE_RNA,
    RNA,
    Tokenizer,
    reads_codons,
)

PUBLISHED = {25: RNA, 73: CODON, 28: MULTIMOLECULE_RNA, 131: MULTIMOLECULE_CODON}


def test_the_vocabularies_are_the_published_ones():
    assert all(len(set(v)) == size for size, v in PUBLISHED.items())
    assert (RNA.index("A"), RNA.index("-"), RNA.index("<mask>")) == (4, 19, 24)
    assert (CODON[4], CODON[13], CODON[67], CODON[72]) == ("GAG", "AUG", "UAG", "<mask>")
    assert {c for c in CODON if len(c) == 3} == {"".join(c) for c in product("ACGU", repeat=3)}
    assert len("\n".join(MULTIMOLECULE_RNA)) == 81  # bytes of the published vocab.txt
    assert len("\n".join(MULTIMOLECULE_CODON)) == 537
    assert [size for size, v in PUBLISHED.items() if reads_codons(v)] == [73, 131]


def test_ids_are_those_of_the_published_tokenizers():
    letters, codons = Tokenizer(MULTIMOLECULE_RNA), Tokenizer(MULTIMOLECULE_CODON)
    assert [*letters.prefix, *letters.encode("acgt"), *letters.suffix] == [1, 6, 7, 8, 9, 2]
    assert [*codons.prefix, *codons.encode("uagcuuauc"), *codons.suffix] == [1, 83, 49, 22, 2]
    native = Tokenizer(RNA)
    assert (native.prefix, native.suffix, native.mask_id, native.unknown_id) == ((0,), (2,), 24, 3)


@pytest.mark.parametrize("vocabulary", PUBLISHED.values())
@given(data=st.data())
def test_every_token_is_read_as_itself(vocabulary, data):
    tokenizer = Tokenizer(vocabulary)
    usable = [t for t in vocabulary if not t.startswith("<") or t == "<mask>"]
    tokens = data.draw(st.lists(st.sampled_from(usable), min_size=1, max_size=30))
    sequence = "".join(tokens)
    ids = tokenizer.encode(sequence)
    assert ids.dtype == np.int64
    assert [tokenizer.letters[k] for k in ids] == tokens
    assert tokenizer.split(sequence) == tokens
    lower = sequence.lower().replace("u", "t")
    np.testing.assert_array_equal(tokenizer.encode(lower), ids)


@pytest.mark.parametrize("vocabulary", PUBLISHED.values())
@given(text=st.text(max_size=12))
def test_any_text_is_encoded_or_refused(vocabulary, text):
    tokenizer = Tokenizer(vocabulary)
    try:
        ids = tokenizer.encode(text)
    except InputError:
        return
    assert len(ids) == len(tokenizer.split(text)) > 0
    assert ids.min() >= 0
    assert ids.max() < len(vocabulary)


def test_letters_that_the_vocabulary_lacks_are_unknown():
    assert Tokenizer(RNA).encode("AJI").tolist() == [4, 3, 3]
    assert Tokenizer(CODON).encode("AUGANNAUGEEE").tolist() == [13, 3, 13, 3]


def test_a_mask_is_one_letter_or_one_codon():
    assert Tokenizer(RNA).encode("A<mask>C<MASK>").tolist() == [4, 24, 5, 24]
    assert Tokenizer(CODON).encode("AUG<mask><mask>UAG").tolist() == [13, 72, 72, 67]
    with pytest.raises(InputError, match="<mask> stands inside a codon"):
        Tokenizer(CODON).encode("A<mask>UG")


@pytest.mark.parametrize(
    ("vocabulary", "sequence", "told"),
    [
        (RNA, "", "an empty sequence"),
        (RNA, "AC GU", "' ' at letter 3 is not a nucleotide"),
        (RNA, "ACGU1", "'1' at letter 5"),
        (RNA, "ACGÜ", "'Ü' at letter 4"),
        (RNA, "AC😀", "'😀' at letter 3"),
        (RNA, "AC\0G<mask>", "'\\x00' at letter 3"),
        (RNA, "AC<cls>", "'<' at letter 3"),
        (RNA, "AC\ud800", "at letter 3"),
        (CODON, "AUGA", "4 nt is not a whole number of codons (1 nt over)"),
        (CODON, "AUG---", "'-' at letter 4"),
    ],
)
def test_what_is_no_sequence_is_an_error(vocabulary, sequence, told):
    with pytest.raises(InputError) as caught:
        Tokenizer(vocabulary).encode(sequence)
    assert told in str(caught.value)
    assert caught.value.hint or not sequence


def test_a_vocabulary_needs_its_special_tokens():
    with pytest.raises(ConfigError, match="lacks <mask>"):
        Tokenizer(RNA[:-1])
    with pytest.raises(ConfigError, match="twice"):
        Tokenizer((*RNA, "A"))

"""Vocabularies: the shipped one, files in any order, and files that make no sense."""

import hashlib
import json

import pytest

from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.scgpt.vocab import Vocabulary

SMALL = ("TP53", "ENSG00000283886.3", "<pad>", "<cls>")


def test_the_shipped_vocabulary_is_the_published_one():
    census = Vocabulary.census()
    assert len(census) == 60_697
    assert [census.ids[gene] for gene in ("A1BG", "A1BG-AS1", "A1CF")] == [0, 1, 2]
    assert (census.pad_id, census.cls_id, census.eoc_id) == (60_694, 60_695, 60_696)
    assert len(census.genes) == 60_694
    text = "".join(token + "\n" for token in census.tokens).encode()
    # of the list by id that tests/fixtures/make_scgpt.py takes from the published file
    assert (
        hashlib.sha256(text).hexdigest() == "7d33c15aea6f69e3836df96c56716f1b25f9188091f57f45ac7187df76d567cc"
    )


def test_the_order_of_a_file_means_nothing(tmp_path):
    ids = {"<cls>": 3, "ENSG00000283886.3": 1, "<pad>": 2, "TP53": 0}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    assert Vocabulary.read(tmp_path / "vocab.json") == Vocabulary(SMALL)


def test_what_is_written_is_read_back(tmp_path):
    vocabulary = Vocabulary(SMALL)
    vocabulary.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json") == vocabulary
    assert list(json.loads((tmp_path / "vocab.json").read_text())) == list(SMALL)


def test_genes_are_found_by_exact_name_and_special_tokens_are_no_genes():
    names = ["tp53", "TP53", "<cls>", "ENSG00000283886", "ENSG00000283886.3", "<pad>"]
    assert Vocabulary(SMALL).lookup(names).tolist() == [-1, 0, -1, -1, 1, -1]
    assert Vocabulary(SMALL).lookup([]).tolist() == []
    assert Vocabulary(SMALL).eoc_id is None
    assert "TP53" in Vocabulary(SMALL)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ({"A": 0, "<pad>": 1, "<cls>": 3}, "'<cls>' has id 3"),
        ({"A": 0, "<pad>": 1, "<cls>": 1}, "'<cls>' has id 1"),
        ({"A": -1, "<pad>": 1, "<cls>": 2}, "'A' has id -1"),
        ({"A": "0", "<pad>": 1, "<cls>": 2}, "'A' has id '0'"),
        ({"A": True, "<pad>": 0, "<cls>": 2}, "'A' has id True"),
        ({"A": 0, "<pad>": 1}, "lacks <cls>"),
        ({"A": 0}, "lacks <pad> and <cls>"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, ids, told):
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(CheckpointError, match=told) as caught:
        Vocabulary.read(tmp_path / "vocab.json")
    assert str(tmp_path) in str(caught.value)


def test_a_token_named_twice_is_refused():
    with pytest.raises(ConfigError, match="each token once"):
        Vocabulary(["A", "A", "<pad>", "<cls>"])

"""The examples in the package are what PROVENANCE.md says."""

import re

import numpy as np
import pytest

import ribozyme.data as data
from ribozyme.errors import InputError

PAIRS = {"AU", "UA", "GC", "CG", "GU", "UG"}


def fasta(name):
    entries = data.path(name).read_text().split(">")[1:]
    return {head.split()[0]: (head, sequence) for head, sequence, _ in (e.split("\n") for e in entries)}


def test_rnas_are_five_of_each_of_ten_families_that_rna_fm_can_read():
    table = data.rnas()
    assert table.family.value_counts().tolist() == [5] * 10
    assert table.id.is_unique
    assert table.sequence.is_unique
    assert table.sequence.str.fullmatch("[ACGU]+").all()
    assert table.sequence.str.len().between(60, 1022).all()
    assert (table.family[table.rfam == ""] == "RNaseP_bact").all()


def test_coordinates_of_the_source_agree_with_the_length():
    table = data.rnas().query("rfam != ''")
    for source, sequence in zip(table.source, table.sequence):
        start, end = (int(n) for n in re.fullmatch(r"\S+/(\d+)-(\d+)", source).groups())
        assert abs(end - start) + 1 == len(sequence)


def test_structures_are_balanced_and_their_pairs_canonical():
    for row in data.rnas().itertuples():
        assert len(row.structure) == len(row.sequence)
        stack = []
        for place, sign in enumerate(row.structure):
            if sign == "(":
                stack.append(place)
            elif sign == ")":
                left = stack.pop()
                assert row.sequence[left] + row.sequence[place] in PAIRS
                assert place - left > 3
        assert not stack


def test_mrnas_have_a_whole_cds():
    table = data.mrnas()
    assert len(table) == 5
    assert table.groupby("gene").size().to_dict() == {"cor6.6": 2, "rhodopsin": 3}
    for row in table.itertuples():
        cds = row.sequence[row.cds_start : row.cds_end]
        codons = re.findall("...", cds)
        assert len(cds) % 3 == 0
        assert codons[0] == "AUG"
        assert codons[-1] in {"UAA", "UAG", "UGA"}
        assert not {"UAA", "UAG", "UGA"} & set(codons[:-1])


@pytest.mark.parametrize(("name", "kind"), [("rnas.fa", "family"), ("mrnas.fa", "gene")])
def test_fasta_and_table_tell_the_same(name, kind):
    records = fasta(name)
    table = data.rnas() if name == "rnas.fa" else data.mrnas()
    assert list(records) == table.id.tolist()
    for row in table.to_dict("records"):
        head, sequence = records[row["id"]]
        assert sequence == row["sequence"]
        assert f"{kind}={row[kind]} " in head
        assert f"source={row['source']}" in head


def test_cells_are_sparse_not_negative_and_balanced():
    cells = data.cells()
    assert cells.shape == (311, 765)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    assert cells.X.min() >= 0
    counts = cells.obs["cell_type"].value_counts()
    assert len(counts) == 10
    assert counts.max() == 40
    assert cells.obs_names.is_unique
    assert {"CD79A", "NKG7", "LYZ"} <= set(cells.var_names)


def test_every_example_fits_in_the_wheel():
    assert sum(data.path(name).stat().st_size for name in data.FILES) < 1_500_000


def test_an_unknown_example_is_answered_with_the_names_there_are():
    with pytest.raises(InputError, match=r"no example file is called 'dna.fa'[\s\S]*rnas.fa"):
        data.path("dna.fa")

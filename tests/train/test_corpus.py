"""Corpora: the same examples from every kind of source, from any row on, held out by a hash."""

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from ribozyme.errors import ConfigError, InputError
from ribozyme.models.helix.tokenizer import Tokenizer as HelixTokenizer
from ribozyme.models.rnafm.tokenizer import CODON, RNA, Tokenizer
from ribozyme.pp.binning import binning
from ribozyme.pp.genes import GeneLookup
from ribozyme.train import corpus as corpora
from ribozyme.train.corpus import CellCorpus, SequenceCorpus, held_examples, held_out

DRAWN = np.random.default_rng(0)
SEQUENCES = ["".join(DRAWN.choice(list("ACGU"), DRAWN.integers(3, 30))) for _ in range(60)]
GENES = ["A1BG", "A2M", "NAT1", "NAT2", "SERPINA3", "AADAC", "AAMP", "AANAT", "AARS1", "ABAT"]


def write(kind, folder):
    path = folder / f"corpus.{kind}"
    if kind == "parquet":
        table = pa.table({"id": [f"s{k}" for k in range(60)], "sequence": SEQUENCES})
        pq.write_table(table, path, row_group_size=7)
    elif kind == "csv":
        pd.DataFrame({"sequence": SEQUENCES}).to_csv(path, index=False)
    elif kind.startswith("fa"):
        text = "".join(f">s{k}\n{one}\n" for k, one in enumerate(SEQUENCES))
        if kind.endswith("gz"):
            import gzip

            with gzip.open(path, "wt") as file:
                file.write(text)
        else:
            path.write_text(text)
    return path


def source_of(kind, folder):
    if kind == "list":
        return SEQUENCES
    if kind == "frame":
        return pd.DataFrame({"sequence": SEQUENCES})
    return write(kind, folder)


def texts(rows):
    return [None if one is None else "".join(RNA[k] for k in one.ids) for one in rows]


@pytest.mark.parametrize("kind", ["fa", "fa.gz", "csv", "parquet", "list", "frame"])
def test_every_source_gives_its_sequences_and_can_be_read_from_any_row_on(kind, tmp_path):
    corpus = SequenceCorpus(source=source_of(kind, tmp_path), tokenizer=Tokenizer(RNA))
    whole = texts(corpus.read(np.random.default_rng(3)))
    assert sorted(whole) == sorted(SEQUENCES)
    for skip in (1, 6, 7, 8, 30, 59, 60):
        assert texts(corpus.read(np.random.default_rng(3), skip)) == whole[skip:]


def test_row_groups_of_parquet_come_in_random_order(tmp_path):
    corpus = SequenceCorpus(source=write("parquet", tmp_path), tokenizer=Tokenizer(RNA))
    first, second = (texts(corpus.read(np.random.default_rng(seed))) for seed in (0, 1))
    assert first != second
    groups = [SEQUENCES[k : k + 7] for k in range(0, 60, 7)]
    assert [g for g in groups if first.index(g[0]) + len(g) - 1 == first.index(g[-1])] == groups


def test_a_share_is_held_out_the_same_ones_in_every_source(tmp_path):
    sets = []
    for kind in ("fa", "parquet"):
        corpus = SequenceCorpus(source=write(kind, tmp_path), tokenizer=Tokenizer(RNA), held=0.3)
        rows = texts(corpus.read(np.random.default_rng(0)))
        assert len(rows) == 60  # places stay rows
        held = set(texts(held_examples(corpus, 100)))
        assert held | {one for one in rows if one} == set(SEQUENCES)
        assert not held & set(rows)
        sets.append(held)
    assert sets[0] == sets[1]
    assert 8 < len(sets[0]) < 30
    assert len(held_examples(corpus, 5)) == 5
    assert held_out("acgt", 0.5) == held_out("ACGU", 0.5)


CDS = pd.DataFrame(
    {"sequence": ["GGAUGGCCAA", "ACGU", "AUGGCC"], "cds_start": [2, -1, 0], "cds_end": [8, -1, 5]}
)


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        ("whole", ["GGAUGGCCAA", "ACGU", "AUGGCC"]),
        ("mark", ["GGEAUGEGCCAA", "ACGU", "AUGGCC"]),
        ("only", ["AUGGCC", None, None]),
    ],
)
def test_the_coding_sequence_is_marked_or_alone(coding, expected):
    tokenizer = HelixTokenizer()
    rows = SequenceCorpus(source=CDS, tokenizer=tokenizer, coding=coding).read(np.random.default_rng(0))
    found = [None if one is None else "".join(tokenizer.letters[k] for k in one.ids) for one in rows]
    assert found == expected


def test_codons_are_read_as_such():
    corpus = SequenceCorpus(source=CDS, tokenizer=Tokenizer(CODON), coding="only")
    [one] = [row for row in corpus.read(np.random.default_rng(0)) if row is not None]
    assert [CODON[k] for k in one.ids] == ["AUG", "GCC"]


def test_what_cannot_be_read_names_its_sequence(tmp_path):
    corpus = SequenceCorpus(source=[("odd", "AUGC")], tokenizer=Tokenizer(CODON))
    with pytest.raises(InputError, match="whole number of codons") as caught:
        list(corpus.read(np.random.default_rng(0)))
    assert "in sequence 'odd'" in caught.value.__notes__[0]
    with pytest.raises(ConfigError, match="coding 'none' does not exist"):
        SequenceCorpus(source=[], tokenizer=Tokenizer(RNA), coding="none")


@pytest.fixture(scope="module")
def adata():
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.8, (50, len(GENES) + 1)).astype(np.float32)
    counts[7] = 0  # an empty cell
    names = [f"cell{k}" for k in range(50)]
    return ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=[*GENES, "nothing-like-this"]),
    )


def cell_corpus(source, **settings):
    return CellCorpus(
        source=source, lookup=GeneLookup({gene: k for k, gene in enumerate(GENES)}), n_bins=51, **settings
    )


def by_gene(rows):
    return [None if one is None else dict(zip(one.ids.tolist(), one.values.tolist())) for one in rows]


def test_cells_come_with_the_bins_of_the_genes_that_the_model_knows(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    bins = binning(adata.X[:, : len(GENES)]).toarray()
    expected = [{g: int(b) for g, b in enumerate(row) if b} or None for row in bins]
    assert by_gene(cell_corpus(adata).read(np.random.default_rng(0))) == expected
    monkeypatch.setattr(corpora, "CELLS", 8)
    for source in (adata, tmp_path / "cells.h5ad"):
        corpus = cell_corpus(source)
        whole = by_gene(corpus.read(np.random.default_rng(1)))
        assert whole != expected  # parts in random order
        assert sorted(map(str, whole)) == sorted(map(str, expected))
        for skip in (1, 7, 8, 9, 31, 49, 50):
            assert by_gene(corpus.read(np.random.default_rng(1), skip)) == whole[skip:]


def test_cells_are_held_out_by_their_names(adata):
    corpus = cell_corpus(adata, held=0.3)
    held = held_examples(corpus, 100)
    rest = [one for one in corpus.read(np.random.default_rng(0)) if one is not None]
    assert len(held) + len(rest) == 49
    assert len(held) > 3


def test_a_table_without_a_known_gene_is_an_error(adata):
    with pytest.raises(InputError, match="knows none of the 1 genes"):
        next(cell_corpus(adata[:, -1:].copy()).read(np.random.default_rng(0)))


def test_frames_are_found_in_every_table(tmp_path):
    """Rows with a coding sequence, and one without, from CSV, TSV and parquet, from any row on."""
    table = pd.DataFrame({"sequence": ["GGAUGAAAUGA", "AUGCCC", "GGG"], "cds_start": [2, 0, np.nan]})
    table["cds_end"] = [11, 6, np.nan]
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "t.tsv.gz", index=False, sep="\t")
    table.to_parquet(tmp_path / "t.parquet")
    generator = np.random.default_rng(0)
    for coding, lengths in (("mark", [14, 8, 3]), ("only", [9, 6, None])):
        for source in (table, *sorted(tmp_path.glob("t.*"))):
            corpus = SequenceCorpus(source=source, tokenizer=HelixTokenizer(), coding=coding)
            found = [None if one is None else len(one.ids) for one in corpus.read(generator)]
            assert found == lengths, (source, coding)
            assert len(list(corpus.read(generator, skip=2))) == 1


def test_a_coding_without_frames_is_an_error(tmp_path):
    for source in (SEQUENCES, write("csv", tmp_path), write("parquet", tmp_path), write("fa", tmp_path)):
        corpus = SequenceCorpus(source=source, tokenizer=HelixTokenizer(), coding="mark")
        with pytest.raises(ConfigError, match="needs to know where coding sequences are"):
            list(corpus.read(np.random.default_rng(0)))


def test_a_frame_that_does_not_fit_names_its_sequence():
    table = pd.DataFrame({"id": ["odd"], "sequence": ["AUGCCC"], "cds_start": [0], "cds_end": [9]})
    corpus = SequenceCorpus(source=table, tokenizer=HelixTokenizer(), coding="mark")
    with pytest.raises(InputError) as caught:
        list(corpus.read(np.random.default_rng(0)))
    assert "in sequence 'odd'" in caught.value.__notes__[0]


def test_a_bad_row_of_a_table_is_named_by_file_and_number(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "ROWS", 2)
    table = pd.DataFrame({"sequence": ["AUGCCC"] * 6, "cds_start": 0, "cds_end": 6})
    table.loc[4, "sequence"] = "AU CC"
    table.to_csv(tmp_path / "T.TSV", index=False, sep="\t")
    corpus = SequenceCorpus(source=tmp_path / "T.TSV", tokenizer=HelixTokenizer(), coding="mark")
    for skip in (0, 3):
        with pytest.raises(InputError, match=r"T\.TSV, row 5\)"):
            list(corpus.read(np.random.default_rng(0), skip=skip))

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ribozyme.errors import ConfigError
from ribozyme.pp.genes import GeneLookup, gene_table, known_genes, match_genes

NAMES = [
    "TP53",
    "MARCHF8",
    "C9orf72",
    "SEPTIN2",
    "ACTB",
    "ENSG00000283886",
    "ENSG00000283886.3",
    "RMRP_ENSG00000269900",
    "RP11-34P13.8",
    "<pad>",
    "<cls>",
]


@pytest.fixture(scope="module")
def lookup():
    return GeneLookup({name: i for i, name in enumerate(NAMES)})


@pytest.fixture(scope="module")
def vocabulary():
    return SimpleNamespace(ids={name: i for i, name in enumerate(NAMES)})


@pytest.mark.parametrize(
    ("name", "found", "how"),
    [
        ("TP53", "TP53", "symbol"),
        ("ENSG00000141510", "TP53", "ensembl"),
        ("ENSG00000141510.3", "TP53", "ensembl"),
        ("MARCH8", "MARCHF8", "renamed"),  # the name before 2020
        ("SEPT2", "SEPTIN2", "renamed"),
        ("p53", "TP53", "alias"),
        ("C9ORF72", "C9orf72", "case"),
        ("actb", "ACTB", "case"),
        ("ENSG00000283886", "ENSG00000283886", "symbol"),  # ids that are names of the vocabulary
        ("ENSG00000283886.3", "ENSG00000283886.3", "symbol"),
        ("ENSG00000283886.7", "ENSG00000283886", "ensembl"),
        ("ENSG00000269900", "RMRP_ENSG00000269900", "ensembl"),
        ("RMRP_ENSG00000269900", "RMRP_ENSG00000269900", "symbol"),
        ("ENSG00000239945", "RP11-34P13.8", "ensembl"),  # a clone name of former releases
    ],
)
def test_a_gene_is_found_by_any_of_its_names(lookup, name, found, how):
    assert lookup.find(name) == (NAMES.index(found), how)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nan",
        "<pad>",
        "<cls>",
        "GFP",
        "ENSG99999999999",
        "ENSMUSG00000059552",
        "BRCA1",  # a gene that this vocabulary lacks
        "MIR",
    ],
)
def test_a_name_that_leads_nowhere_is_unmatched(name):
    lookup = GeneLookup({n: i for i, n in enumerate(n for n in NAMES if n != "MARCHF8")})
    assert lookup.find(name) == (-1, "unmatched")


def test_an_alias_of_two_genes_is_no_name_of_either():
    owners: dict[str, set[str]] = {}
    for gene in gene_table():
        for alias in gene.aliases:
            owners.setdefault(alias, set()).add(gene.key)
    primary = {g.symbol for g in gene_table()} | {f for g in gene_table() for f in g.former}
    shared = next(a for a, keys in sorted(owners.items()) if len(keys) == 2 and a not in primary)
    lookup = GeneLookup({key: i for i, key in enumerate(sorted(owners[shared]))})
    assert lookup.find(shared) == (-1, "unmatched")


def test_a_symbol_of_today_is_never_read_as_the_alias_of_another_gene():
    symbols = {gene.symbol for gene in gene_table()}
    gene = next(g for g in gene_table() if symbols.intersection(g.aliases) - {g.symbol})
    taken = next(a for a in gene.aliases if a in symbols and a != gene.symbol)
    assert GeneLookup({gene.symbol: 0}).find(taken) == (-1, "unmatched")


def test_the_table_is_what_its_description_says():
    genes = gene_table()
    assert len(genes) > 80_000
    tp53 = next(g for g in genes if g.symbol == "TP53")
    assert tp53.ensembl == "ENSG00000141510"
    assert len({g.ensembl for g in genes if g.ensembl}) == sum(1 for g in genes if g.ensembl)


def test_the_column_that_matches_most_is_used(vocabulary):
    var = pd.DataFrame(
        {"symbol": ["TP53", "ACTB", "GFP"], "length": [1, 2, 3], "biotype": pd.Categorical(["x", "x", "y"])},
        index=["ENSG00000141510.2", "g2", "g3"],
    )
    match = match_genes(var, vocabulary)
    assert match.source == "symbol"
    assert match.ids.tolist() == [0, 4, -1]
    assert match.counts == {"symbol": 2, "unmatched": 1}
    assert match.examples("unmatched") == ["GFP"]


def test_a_column_of_one_gene_repeated_does_not_win(vocabulary):
    var = pd.DataFrame({"target": ["TP53"] * 3}, index=["ACTB", "TP53", "x"])
    assert match_genes(var, vocabulary).source == "index"


@pytest.mark.parametrize("where", ["column", "index"])
def test_a_symbol_that_leads_nowhere_is_found_by_the_ensembl_id_beside_it(where):
    """RMRP is two genes of one name to scGPT."""
    names = ["TP53", "ACTB", "RMRP_ENSG00000269900", "RMRP_ENSG00000277027", "BRCA1", "BRCA2"]
    vocabulary = SimpleNamespace(ids={name: i for i, name in enumerate(names)})
    symbols = ["RMRP", "TP53", "RMRP", "ACTB", "GFP", "RMRP", "BRCA1", "BRCA2"]
    ids = ["ENSG00000269900", "", "ENSG00000277027.1", "ENSG00000075624", "x", "gene", "g1", "g2"]
    var = pd.DataFrame({"ensembl_id": ids}, index=symbols)
    if where == "index":
        var = pd.DataFrame({"symbol": symbols}, index=ids)
    match = match_genes(var, vocabulary)
    assert match.ids.tolist() == [2, 0, 3, 1, -1, -1, 4, 5]
    assert match.source == ("symbol" if where == "index" else "index")
    assert match.counts == {"symbol": 4, "ensembl": 2, "unmatched": 2}
    assert match_genes(var, vocabulary, column=match.source).ids.tolist() == [-1, 0, -1, 1, -1, -1, 4, 5]


def test_an_ensembl_id_of_another_gene_does_not_stand_for_a_known_name(vocabulary):
    ids = ["ENSG00000075624", "ENSG00000075624", "", ""]  # of ACTB
    var = pd.DataFrame({"id": ids}, index=["BRCA1", "RP99-1A1.1", "TP53", "MARCHF8"])
    assert match_genes(var, vocabulary).ids.tolist() == [-1, 4, 0, 1]


def test_other_text_beside_a_symbol_is_no_name_of_it(vocabulary):
    var = pd.DataFrame({"note": ["", "ACTB", "TP53"]}, index=["TP53", "GFP", "MARCHF8"])
    assert match_genes(var, vocabulary).ids.tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SF3B14", "SF3B6"),
        ("HDGFRP2", "HDGFL2"),
        ("HDGFRP3", "HDGFL3"),
        ("SGK223", "PRAG1"),
        ("SGK494", "RSKR"),
        ("TMEM155", "SMIM43"),
    ],
)
def test_names_of_grch37_that_hgnc_never_approved_are_known(old, new):
    assert GeneLookup({new: 0}).find(old) == (0, "renamed")
    assert GeneLookup({old: 0}).find(new) == (0, "renamed")


def test_feature_name_comes_first_among_equals(vocabulary):
    var = pd.DataFrame({"feature_name": pd.Categorical(["TP53"])}, index=["ENSG00000141510"])
    assert match_genes(var, vocabulary).source == "feature_name"
    assert match_genes(var, vocabulary, column="index").source == "index"


def test_a_chosen_column_is_used_even_where_another_matches_more(vocabulary):
    var = pd.DataFrame({"mine": ["ACTB", None]}, index=["TP53", "MARCHF8"])
    match = match_genes(var, vocabulary, column="mine")
    assert match.source == "mine"
    assert match.ids.tolist() == [4, -1]


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(vocabulary):
    var = pd.DataFrame({"symbol": ["TP53"]}, index=["a"])
    with pytest.raises(ConfigError, match="no column 'gene'") as error:
        match_genes(var, vocabulary, column="gene")
    assert "index, symbol" in str(error.value)


def test_names_without_a_table_are_matched_too(vocabulary):
    assert match_genes(["ACTB", "TP53"], vocabulary).ids.tolist() == [4, 0]


def test_columns_of_one_gene_are_summed_where_the_first_stands(vocabulary):
    match = match_genes(["TP53", "GFP", "ACTB", "ENSG00000141510", "actb"], vocabulary)
    rows = sparse.csr_matrix(np.array([[1, 9, 0, 2, 5], [0, 9, 0, 0, 0], [0, 0, 3, 4, 0]], dtype=np.float32))
    before = rows.copy()
    ids, values, indptr = match.select(rows)
    assert match.duplicates == 2
    assert match.genes.tolist() == [0, 4]
    assert indptr.tolist() == [0, 2, 2, 4]
    assert ids.tolist() == [0, 4, 0, 4]
    assert values.tolist() == [3, 5, 4, 3]
    assert (rows != before).nnz == 0


def test_unsorted_rows_come_out_in_column_order(vocabulary):
    match = match_genes(["TP53", "MARCHF8", "ACTB"], vocabulary)
    rows = sparse.csr_matrix((np.array([3.0, 1.0, 0.0]), np.array([2, 0, 1]), np.array([0, 3])), shape=(1, 3))
    ids, values, _ = match.select(rows)
    assert ids.tolist() == [0, 4]
    assert values.tolist() == [1, 3]


def test_known_genes_tells_genes_from_barcodes():
    assert known_genes(["TP53", "MARCH8", "ENSG00000141510.3", "AAACCTGAGAGCTATA-1", "cell 1"]) == 3


@pytest.mark.data
def test_other_sources_agree_on_what_an_ensembl_id_is_called(data_folder):
    """GENCODE v44 and NCBI symbols: ours are newer, so a few ids carry another symbol."""
    other = pd.read_csv(data_folder / "genes" / "human_genes.tsv.gz", sep="\t", keep_default_na=False)
    other = other[(other["ensembl_id"] != "") & (other["symbol"] != "")]
    ours = {g.ensembl: {g.symbol, *g.former, *g.aliases} for g in gene_table() if g.ensembl}
    known = set().union(*ours.values())  # not clone names of releases that we have not seen
    shared = other[other["ensembl_id"].isin(list(ours)) & other["symbol"].isin(known)]
    agree = [symbol in ours[i] for i, symbol in zip(shared["ensembl_id"], shared["symbol"])]
    assert len(agree) > 38_000
    assert np.mean(agree) > 0.99

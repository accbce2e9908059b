import gzip
import warnings

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from ribozyme.errors import InputError
from ribozyme.io.cells import open_cells, read_cells

GENES = ["TP53", "ACTB", "CD3D", "CD19", "MS4A1", "NKG7", "LYZ"]
IDS = [f"ENSG{k:011d}" for k in range(7)]
CELLS = [f"AAAC{k}-1" for k in range(5)]
COUNTS = np.random.default_rng(0).poisson(0.8, (5, 7)).astype(np.float32)


@pytest.fixture
def adata():
    obs = pd.DataFrame({"batch": pd.Categorical(list("aabba"))}, index=CELLS)
    return ad.AnnData(sparse.csr_matrix(COUNTS), obs=obs, var=pd.DataFrame({"id": IDS}, index=GENES))


def chunked(source, size=2, **more):
    """The matrix as it comes in chunks, its names and its genes."""
    with open_cells(source, **more) as cells:
        parts = list(cells.chunks(size))
        assert [start for start, _ in parts] == list(range(0, len(cells), size))
        matrix = sparse.vstack([part for _, part in parts]).toarray()
        return matrix, cells.names.tolist(), cells.var.index.tolist()


def assert_same(path, **more):
    """Read whole and in chunks, it is the cells above."""
    whole = read_cells(path, **more)
    X = whole.X.toarray() if sparse.issparse(whole.X) else whole.X
    matrix, names, genes = chunked(path, **more)
    np.testing.assert_array_equal(X, COUNTS)
    np.testing.assert_array_equal(matrix, COUNTS)
    assert whole.obs_names.tolist() == names == CELLS
    assert whole.var_names.tolist() == genes == GENES
    return whole


def write_zarr(adata, path, version):
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")  # about which version will be the default one day
        adata.write_zarr(path)


@pytest.mark.parametrize("wrap", [np.array, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("kind", ["h5ad", "zarr 2", "zarr 3"])
def test_anndata_files_are_read_whole_and_in_chunks(adata, tmp_path, wrap, kind):
    adata.X = wrap(COUNTS)
    if kind == "h5ad":
        adata.write_h5ad(path := tmp_path / "cells.h5ad")
    else:
        write_zarr(adata, path := tmp_path / "cells.zarr", int(kind[-1]))
    whole = assert_same(path)
    assert whole.obs["batch"].tolist() == list("aabba")


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_compressed_h5ad_is_read(adata, tmp_path, compression):
    adata.write_h5ad(tmp_path / "cells.h5ad", compression=compression)
    assert_same(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("wrap", [np.array, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_anndata_in_memory_comes_in_chunks(adata, wrap):
    adata.X = wrap(COUNTS)
    np.testing.assert_array_equal(chunked(adata)[0], COUNTS)


def test_views_come_in_chunks(adata):
    view = adata[[4, 2, 0], ["LYZ", "TP53"]]
    matrix, names, genes = chunked(view)
    np.testing.assert_array_equal(matrix, COUNTS[[4, 2, 0]][:, [6, 0]])
    assert names == ["AAAC4-1", "AAAC2-1", "AAAC0-1"]
    assert genes == ["LYZ", "TP53"]
    assert view.is_view


@pytest.mark.parametrize("wrap", [np.array, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_anndata_and_views_of_it_come_in_chunks(adata, tmp_path, wrap):
    adata.X = wrap(COUNTS)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(chunked(backed)[0], COUNTS)
    np.testing.assert_array_equal(chunked(backed[1:4])[0], COUNTS[1:4])
    backed.file.close()


def write_h5mu(modalities, path):
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData(modalities)
        both.write(path)
    return both


def test_h5mu_gives_rna_unless_another_is_named(adata, tmp_path):
    protein = ad.AnnData(np.ones((5, 2), np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=["p1", "p2"]))
    both = write_h5mu({"prot": protein, "rna": adata}, tmp_path / "cells.h5mu")
    assert_same(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(chunked(both)[0], COUNTS)
    assert read_cells(tmp_path / "cells.h5mu", modality="prot").shape == (5, 2)
    with pytest.raises(InputError, match="no modality 'atac'") as error:
        read_cells(tmp_path / "cells.h5mu", modality="atac")
    assert "prot, rna" in str(error.value)


def test_modalities_of_unknown_names_have_to_be_chosen(adata, tmp_path):
    other = ad.AnnData(np.ones((5, 2), np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=["x", "y"]))
    write_h5mu({"one": adata, "two": other}, tmp_path / "cells.h5mu")
    with pytest.raises(InputError, match="which of one, two"):
        read_cells(tmp_path / "cells.h5mu")


def tenx_matrix(group, features=COUNTS.shape[1], counts=COUNTS):
    X = sparse.csr_matrix(counts)
    group["data"], group["indices"], group["indptr"] = X.data.astype("i4"), X.indices, X.indptr
    group["shape"] = np.array([features, 5], dtype="i4")
    group["barcodes"] = np.array(CELLS, dtype="S")


def test_10x_h5_of_version_3_gives_gene_expression_unless_another_is_named(tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        tenx_matrix(file.create_group("matrix"), 9, np.hstack([COUNTS, np.full((5, 2), 40)]))
        features = file.create_group("matrix/features")
        features["id"] = np.array([*IDS, "adt1", "adt2"], dtype="S")
        features["name"] = np.array([*GENES, "CD3", "CD19"], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * 7 + ["Antibody Capture"] * 2, dtype="S")
    whole = assert_same(tmp_path / "cells.h5")
    assert whole.var["gene_ids"].tolist() == IDS
    assert read_cells(tmp_path / "cells.h5", modality="Antibody Capture").shape == (5, 2)


def test_10x_h5_of_version_2_is_read_by_its_genome(tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        tenx_matrix(group := file.create_group("GRCh38"))
        group["genes"], group["gene_names"] = np.array(IDS, dtype="S"), np.array(GENES, dtype="S")
    assert assert_same(tmp_path / "cells.h5").var["gene_ids"].tolist() == IDS


def write_mtx(folder, version, **more):
    packed = gzip.open if version == 3 else open
    end, name = (".gz", "features") if version == 3 else ("", "genes")
    with packed(folder / f"matrix.mtx{end}", "wb") as file:
        io.mmwrite(file, sparse.csr_matrix(COUNTS.T.astype(int)), field="integer")
    kinds = [["Gene Expression"]] * 7 if version == 3 else [[]] * 7
    rows = ["\t".join([i, n, *kind]) for i, n, kind in zip(IDS, more.get("genes", GENES), kinds)]
    for file, lines in ((name, rows), ("barcodes", CELLS)):
        with packed(folder / f"{file}.tsv{end}", "wt") as text:
            text.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("version", [2, 3])
def test_mtx_folders_are_read(tmp_path, version):
    write_mtx(tmp_path, version)
    assert assert_same(tmp_path).var["gene_ids"].tolist() == IDS
    assert_same(next(tmp_path.glob("matrix.mtx*")))


def test_duplicated_gene_names_get_a_number_and_keep_their_symbol(tmp_path):
    write_mtx(tmp_path, 3, genes=["TP53", "TP53", *GENES[2:]])
    whole = read_cells(tmp_path)
    assert whole.var_names[:2].tolist() == ["TP53", "TP53-1"]
    assert whole.var["gene_symbols"][:2].tolist() == ["TP53", "TP53"]


def test_an_mtx_folder_with_a_part_missing_is_an_error(tmp_path):
    write_mtx(tmp_path, 2)
    (tmp_path / "genes.tsv").unlink()
    with pytest.raises(InputError, match=r"matrix.mtx needs features.tsv"):
        read_cells(tmp_path)


@pytest.mark.parametrize("turned", [False, True], ids=["cells_by_genes", "genes_by_cells"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".txt"])
def test_tables_are_read_either_way_round(tmp_path, turned, suffix):
    table = pd.DataFrame(COUNTS.astype(int), index=CELLS, columns=GENES)
    path = tmp_path / f"cells{suffix}"
    (table.T if turned else table).to_csv(path, sep="," if "csv" in suffix else "\t")
    assert_same(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.removesuffix("\n"),
        lambda text: text.removeprefix(","),  # as R's write.table: no name above the names
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: "gene" + text,
    ],
    ids=["windows", "no_last_line_end", "r", "byte_order_mark", "semicolons", "named_corner"],
)
def test_tables_of_other_programs_are_read(tmp_path, change):
    text = pd.DataFrame(COUNTS.T.astype(int), index=GENES, columns=CELLS).to_csv(lineterminator="\n")
    (tmp_path / "cells.csv").write_bytes(change(text).encode())
    assert_same(tmp_path / "cells.csv")


def test_a_table_of_unknown_names_has_its_cells_in_rows(tmp_path):
    pd.DataFrame(COUNTS, index=CELLS, columns=list("abcdefg")).to_csv(tmp_path / "cells.csv")
    assert read_cells(tmp_path / "cells.csv").shape == (5, 7)


def test_text_in_a_table_is_an_error_that_names_the_column(tmp_path):
    table = pd.DataFrame(COUNTS, index=CELLS, columns=GENES).assign(type="B cell")
    table.to_csv(tmp_path / "cells.csv")
    with pytest.raises(InputError, match="column 'type' holds 'B cell', which is no number"):
        read_cells(tmp_path / "cells.csv")


def test_loom_is_read(tmp_path):
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        file["matrix"] = COUNTS.T
        file["row_attrs/Gene"], file["row_attrs/Accession"] = GENES, IDS
        file["col_attrs/CellID"], file["col_attrs/batch"] = CELLS, list("aabba")
    whole = assert_same(tmp_path / "cells.loom")
    assert whole.var["Accession"].tolist() == IDS
    assert whole.obs["batch"].tolist() == list("aabba")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cells.h5ad", None, "there is no such file"),
        ("cells.h5ad", b"", "the file is empty"),
        ("cells.xlsx", b"x", "no cells are read from '.xlsx' files"),
        ("cells.csv", b"hello\n", "not a table of cells and genes"),
        ("cells.csv", b",a,b\nx,1\n", "the first row has 3 fields, the second 2"),
        ("cells.tsv.gz", b"not gzip", "cannot be|damaged"),
    ],
)
def test_a_file_that_is_no_table_of_cells_is_one_clear_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_cells(tmp_path / name)
    assert name in str(error.value)


def test_what_is_not_cells_is_an_error():
    with pytest.raises(InputError, match="not as ndarray"), open_cells(COUNTS):
        pass


def test_an_anndata_without_a_matrix_is_an_error(adata):
    adata.X = None
    with pytest.raises(InputError, match="X is empty"), open_cells(adata):
        pass


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"neither a zarr folder nor one with matrix.mtx"):
        read_cells(tmp_path)


def test_an_anndata_without_cells_gives_no_chunk(adata):
    with open_cells(adata[:0]) as cells:
        assert list(cells.chunks()) == []


FILES = [
    "annotate_breast_tnbc.h5ad",
    "annotate_pbmc_3tech.h5ad",
    "annotate_pbmc_sorted.h5ad",
    "cite_malt_pbmc.h5mu",
    "integrate_rnamix.h5ad",
    "map_onek1k_donors.h5ad",
    "map_skin_ctcl.h5ad",
    "multiome_a549_scicar.h5mu",
    "perturb_eccite_thp1.h5ad",
    "stim_kang_ifnb_labelled.h5ad",
    "stim_kang_ifnb_wide.h5ad",
    "corpus/corpus_cells.h5ad",
    "formats/cells.loom",
    "formats/cells.zarr",
    "formats/cells_by_genes.csv.gz",
    "formats/ensembl_versioned_ids.h5ad",
    "formats/genes_by_cells.csv.gz",
    "formats/genes_by_cells.tsv.gz",
    "formats/log_normalised.h5ad",
    "formats/mtx_v2",
    "formats/mtx_v3",
    "formats/multiome_pbmc_40cells.h5mu",
    "formats/tenx_v2_legacy.h5",
    "formats/tenx_v3_rna_adt.h5",
]


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_real_files_are_the_same_whole_and_in_chunks(data_folder, name):
    path = data_folder / "cells" / name
    whole = read_cells(path)
    total = sum(part.sum(dtype=np.float64) for part in [whole.X])
    with open_cells(path) as cells:
        parts = [part for _, part in cells.chunks(1_000)]
    assert sum(part.shape[0] for part in parts) == whole.n_obs
    assert sum(part.nnz for part in parts) == whole.X.nnz
    np.testing.assert_allclose(sum(part.sum(dtype=np.float64) for part in parts), total)


# ---------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", ["memory", "view", "h5ad", "zarr 2", "zarr 3", "h5mu"])
def test_labels_are_text_wherever_they_are(adata, tmp_path, kind):
    adata.obs["plate"] = [1.0, 2.0, 2.5, 10.0, 1.0]
    adata.obs["flag"] = [True, False, True, True, False]
    source = {"memory": adata, "view": adata[[0, 1, 2, 3, 4]]}.get(kind)
    if kind == "h5ad":
        adata.write_h5ad(source := tmp_path / "cells.h5ad")
    elif kind.startswith("zarr"):
        write_zarr(adata, source := tmp_path / "cells.zarr", int(kind[-1]))
    elif kind == "h5mu":
        with mudata.set_options(pull_on_update=False):
            mudata.MuData({"rna": adata}).write_h5mu(source := tmp_path / "cells.h5mu")
    with open_cells(source) as cells:
        assert cells.labels("batch") == list("aabba")
        assert cells.labels("plate") == ["1", "2", "2.5", "10", "1"]
        assert cells.labels("flag") == ["True", "False", "True", "True", "False"]
        assert cells.codes("batch", ["b", "a"]).tolist() == [1, 1, 0, 0, 1]
        with pytest.raises(InputError, match="obs has no column 'donor'; it has 'batch', 'plate', 'flag'"):
            cells.labels("donor")


def test_labels_of_older_files_are_their_names(adata, tmp_path):
    """anndata 0.7 keeps categories beside the columns."""
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        del obs["batch"]
        obs.attrs["encoding-version"] = "0.1.0"
        ad.io.write_elem(obs.create_group("__categories"), "batch", np.array(["a", "b"], dtype=object))
        obs["__categories/batch"].attrs["ordered"] = False
        ad.io.write_elem(obs, "batch", np.array([0, 0, 1, 1, -1], np.int8))
        obs["batch"].attrs["categories"] = obs["__categories/batch"].ref
    with open_cells(path) as cells:
        assert cells.obs("batch").tolist()[:4] == list("aabb")
        with pytest.raises(InputError, match="1 cells have nothing in 'batch', the first is 'AAAC4-1'"):
            cells.labels("batch")
        with pytest.raises(InputError, match="no column 'batch/categories'"):
            cells.labels("batch/categories")


@pytest.mark.parametrize("nothing", ["", " ", None])
def test_a_cell_without_a_label_is_named(adata, nothing):
    adata.obs["batch"] = ["a", "b", nothing, "a", "b"]
    with open_cells(adata) as cells, pytest.raises(InputError, match=r"1 cells have nothing .* 'AAAC2-1'"):
        cells.labels("batch")

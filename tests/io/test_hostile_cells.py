"""Files made to read other files, to crash their reader, or to fill the memory; each is made here."""

import gzip
import json
import lzma
import os
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from ribozyme.errors import InputError
from ribozyme.io import hdf5
from ribozyme.io.cells import open_cells, read_cells

COUNTS = sparse.csr_matrix(np.random.default_rng(0).poisson(0.8, (5, 7)).astype(np.float32))
SECRET = b"what only this machine should know " * 40


@pytest.fixture
def path(tmp_path):
    """A sound file, for a test to spoil; beside it lies a secret."""
    obs = pd.DataFrame({"batch": list("aabba")}, index=[f"c{k}" for k in range(5)])
    var = pd.DataFrame(index=["TP53", "ACTB", "CD3D", "CD19", "MS4A1", "NKG7", "LYZ"])
    ad.AnnData(COUNTS, obs=obs, var=var, layers={"counts": COUNTS.copy()}).write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET, dtype=np.uint8)
    return tmp_path / "cells.h5ad"


def refused(path, message):
    """Both readers refuse, name the file, and say what to do or where."""
    for read in (read_cells, lambda p: open_cells(p).__enter__()):
        with pytest.raises(InputError, match=message) as error:
            read(path)
        assert str(path.name) in str(error.value)


def replace(path, name, **more):
    """Put another dataset in the place of one."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        more.setdefault("dtype", None if "data" in more else "f4")
        item = file.create_dataset(name, **more)
        item.attrs.update(attributes)


def test_an_external_link_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["uns/note"] = h5py.ExternalLink("other.h5", "/secret")
    refused(path, r"/uns/note: points into another file \('other.h5'\)")


def test_an_external_link_in_the_place_of_numbers_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["X/indices"]
        file["X/indices"] = h5py.ExternalLink("other.h5", "/secret")
    refused(path, "/X/indices: points into another file")


def test_external_storage_is_refused(path):
    replace(path, "X/data", shape=(COUNTS.nnz,), external=[("secret", 0, h5py.h5f.UNLIMITED)])
    refused(path, r"/X/data: its numbers lie in another file \('secret'\)")


def test_a_virtual_dataset_is_refused(path):
    layout = h5py.VirtualLayout(shape=(len(SECRET),), dtype="u1")
    layout[:] = h5py.VirtualSource("other.h5", "secret", shape=(len(SECRET),))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("uns/note", layout)
    refused(path, "/uns/note: a virtual dataset")


def test_a_soft_link_is_not_a_way_out(path):
    with h5py.File(path, "r+") as file:
        file["uns/door"] = h5py.ExternalLink("other.h5", "/")
        del file["X/data"]
        file["X/data"] = h5py.SoftLink("/uns/door/secret")
    refused(path, "/uns/door: points into another file")


def test_a_soft_link_inside_the_file_is_read(path):
    with h5py.File(path, "r+") as file:
        del file["layers/counts"]
        file["layers/counts"] = h5py.SoftLink("/X")
    assert read_cells(path).layers["counts"].nnz == COUNTS.nnz


def test_a_file_whose_groups_hold_one_another_is_walked_once(path):
    with h5py.File(path, "r+") as file:
        file["uns/again"] = file["/"]
    with hdf5.open_hdf5(path) as file:
        assert "X" in file


def spoiled(name, change):
    values = {"indices": COUNTS.indices, "indptr": COUNTS.indptr, "data": COUNTS.data}[name].copy()
    return change(values)


def at(place, value):
    def change(values):
        values[place] = value
        return values

    return change


@pytest.mark.parametrize("group", ["X", "layers/counts"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("indices", at(3, -1), "indices: holds -1, but the matrix reaches from 0 to 6"),
        ("indices", at(3, 200_000_000), "indices: holds 200,000,000, but the matrix reaches from 0 to 6"),
        ("indices", at(0, 7), "indices: holds 7"),
        ("indices", lambda v: v.astype(float), "are whole numbers"),
        ("indices", lambda v: v[:-1], "indptr: runs from 0 to"),
        ("indices", lambda v: v[None], "have one dimension"),
        ("indptr", at(2, 10**6), "indptr: falls after row 2"),
        ("indptr", at(2, -5), "indptr: falls after row 1"),
        ("indptr", at(0, 1), "indptr: runs from 1 to"),
        ("indptr", at(-1, 10**6), "indptr: runs from 0 to 1,000,000"),
        ("indptr", lambda v: v[:-1], "5 numbers for 5 rows"),
        ("indptr", lambda v: v[:0], "0 numbers for 5 rows"),
        ("data", lambda v: v[:-2], "numbers, but"),
    ],
)
def test_a_sparse_matrix_with_a_wrong_structure_is_refused(path, group, name, change, message):
    replace(path, f"{group}/{name}", data=spoiled(name, change))
    refused(path, f"/{group}.*{message}")


@pytest.mark.parametrize("shape", [[5, -7], [5], [5.0, 7.0], [2**62, 7]])
def test_a_sparse_matrix_with_a_wrong_shape_is_refused(path, shape):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = np.array(shape)
    refused(path, "/X.*(shape|for 4,611)")


def test_a_matrix_that_does_not_fit_its_names_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = np.array([5, 9])
    with pytest.raises(InputError, match=r"cells.h5ad: X is \(5, 9\), but there are 5 names and 7 genes"):
        open_cells(path).__enter__()


def test_a_small_file_that_declares_terabytes_is_refused(path):
    replace(path, "X/data", shape=(4 * 10**11,), chunks=(10**6,), compression="gzip")
    assert os.path.getsize(path) < 200_000
    refused(path, "/X/data: with it the arrays declare 1,6.*bytes, which a file of")


def test_a_chunk_of_many_gigabytes_is_refused(path):
    replace(path, "X/data", shape=(10,), maxshape=(None,), chunks=(2**29 + 1,), dtype="u4")
    refused(path, "/X/data: its chunks of")


def test_more_objects_than_a_file_of_cells_has_are_refused(path, monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 50)
    with h5py.File(path, "r+") as file:
        for k in range(60):
            file.create_group(f"uns/{k}")
    refused(path, "more than 50 objects")


def test_groups_without_end_are_refused(path):
    with h5py.File(path, "r+") as file:
        file.create_group("uns/" + "/".join("x" * 40))
    refused(path, "32 groups in one another")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(share * len(content)))])
    refused(path, "not an HDF5 file|damaged or cut off|cannot be read")


def test_a_file_that_is_no_hdf5_is_refused(path):
    path.write_bytes(gzip.compress(path.read_bytes()))
    refused(path, "this is not an HDF5 file")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_wrong_structure_of_any_kind_is_an_error_or_read_soundly(path, data):
    """Whatever stands in the arrays of a sparse matrix, reading it ends, and in one of two ways."""
    name = data.draw(st.sampled_from(["indices", "indptr"]))
    values = COUNTS.indices if name == "indices" else COUNTS.indptr
    numbers = st.lists(
        st.integers(-3, 40) | st.sampled_from([2**31 - 1, -(2**31)]),
        min_size=len(values),
        max_size=len(values),
    )
    replace(path, f"X/{name}", data=np.array(data.draw(numbers), dtype="i4"))
    try:
        with open_cells(path) as cells:
            sum(part.toarray().sum() for _, part in cells.chunks(2))
    except InputError:
        pass


def test_wrong_matrices_in_memory_are_refused():

    adata = ad.AnnData(COUNTS.copy())
    adata.X.indices[3] = 10**8
    with pytest.raises(InputError, match="indices: holds 100,000,000"):
        open_cells(adata).__enter__()


def test_wrong_matrices_of_backed_anndata_are_refused(path):
    replace(path, "X/indices", data=spoiled("indices", at(3, 10**8)))
    backed = ad.read_h5ad(path, backed="r")
    for source in (backed, backed[1:3]):
        with pytest.raises(InputError, match="indices: holds 100,000,000"):
            open_cells(source).__enter__()
    backed.file.close()


# ---------------------------------------------------------------------------------- 10x, mtx, tables


def test_a_10x_file_with_a_wrong_index_is_refused(tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        group = file.create_group("GRCh38")
        group["data"], group["indptr"], group["shape"] = COUNTS.data, COUNTS.indptr, [7, 5]
        group["indices"] = spoiled("indices", at(0, 9_999))
        group["genes"] = group["gene_names"] = np.array(list("abcdefg"), dtype="S")
        group["barcodes"] = np.array(list("vwxyz"), dtype="S")
    with pytest.raises(InputError, match=r"cells.h5: /GRCh38/indices: holds 9,999"):
        read_cells(tmp_path / "cells.h5")


def test_an_h5_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(InputError, match=r"not a 10x Genomics file|cannot be read as cells"):
        read_cells(tmp_path / "cells.h5")


def write_mtx(folder, body):
    (folder / "genes.tsv").write_text("ENSG00000141510\tTP53\nENSG00000075624\tACTB\n")
    (folder / "barcodes.tsv").write_text("c1\nc2\n")
    (folder / "matrix.mtx").write_text(body)


HEADER = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (HEADER + "2 2 1000000000000\n1 1 3\n", "declares the size '2 2 1000000000000'"),
        (HEADER + "2 2 100000\n1 1 3\n", "declares 100,000 numbers, which a file of this size cannot hold"),
        (HEADER + "2 99999999999 1\n1 1 3\n", "declares the size"),
        (HEADER + "2 2 1\n9 1 3\n", "cannot be read as cells"),
        (HEADER + "2 2 1\n0 1 3\n", "cannot be read as cells"),
        (HEADER + "2 2 2\n1 1 3\n", "cannot be read as cells"),
        (HEADER + "2 2\n", "declares the size"),
        (HEADER + "2 3 1\n1 1 3\n", "2 x 3, but 2 features and 2 barcodes"),
        (HEADER.replace("integer", "complex") + "2 2 1\n1 1 3 0\n", "not a sparse Matrix Market file"),
        ("hello\n", "not a sparse Matrix Market file"),
    ],
)
def test_an_mtx_file_that_is_not_what_it_says_is_refused(tmp_path, body, message):
    write_mtx(tmp_path, body)
    with pytest.raises(InputError, match=message):
        read_cells(tmp_path)


def test_a_table_that_decompresses_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("ribozyme.io.streams.RATIO_FROM", 2**20)
    row = b"TP53" + b",0" * 1_000 + b"\n"
    head = b"," + b",".join(b"c%d" % k for k in range(1_000)) + b"\n"
    with gzip.open(tmp_path / "cells.csv.gz", "wb") as file:
        file.write(head)
        for _ in range(4):
            file.write(row * 1_000)
    assert os.path.getsize(tmp_path / "cells.csv.gz") < 10**5
    with pytest.raises(InputError, match="more than 200 times its size"):
        read_cells(tmp_path / "cells.csv.gz")


# ---------------------------------------------------------------------------------------------- zarr


@pytest.fixture
def folder(path):
    """The same cells as a zarr folder of version 3."""
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=3):
        warnings.simplefilter("ignore")  # about what will be the default one day
        ad.read_h5ad(path).write_zarr(path.parent / "cells.zarr")
    return path.parent / "cells.zarr"


def zarr_meta(array, change):
    file = array / "zarr.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def test_a_link_in_a_zarr_folder_is_refused(folder):
    chunk = next(p for p in (folder / "X" / "data").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.unlink()
    chunk.symlink_to(folder.parent / "secret")
    with pytest.raises(InputError, match="a link to another place"):
        read_cells(folder)


def test_a_codec_that_executes_is_refused(folder):
    (folder / "uns").mkdir(exist_ok=True)
    old = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}]}
    array = folder / "uns" / "note"
    array.mkdir()
    (array / ".zarray").write_text(json.dumps(old | {"compressor": None, "order": "C", "fill_value": None}))
    with pytest.raises(InputError, match="codec 'pickle' is not read"):
        read_cells(folder)
    (array / ".zarray").unlink()
    zarr_meta(folder / "X" / "data", lambda m: m["codecs"].insert(0, {"name": "numcodecs.pickle"}))
    with pytest.raises(InputError, match="codec 'pickle' is not read"):
        read_cells(folder)


def test_a_codec_inside_a_shard_is_looked_at_too(folder):
    inner = {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}], "index_codecs": [{"name": "bytes"}]}
    shard = {"name": "sharding_indexed", "configuration": inner}
    zarr_meta(folder / "X" / "data", lambda meta: meta.update(codecs=[shard]))
    with pytest.raises(InputError, match="codec 'pickle' is not read"):
        read_cells(folder)


def test_a_collected_description_of_a_zarr_folder_is_not_believed(folder):
    def lie(meta):
        meta["consolidated_metadata"]["metadata"]["X/data"]["codecs"] = [{"name": "numcodecs.pickle"}]

    zarr_meta(folder, lie)
    assert read_cells(folder).X.nnz == COUNTS.nnz


def test_a_zarr_array_that_declares_terabytes_is_refused(folder):
    zarr_meta(folder / "X" / "data", lambda meta: meta.update(shape=[4 * 10**11]))
    with pytest.raises(InputError, match="its arrays declare 400,"):
        read_cells(folder)


def test_damaged_zarr_is_refused(folder):
    (folder / "X" / "data" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"zarr.json: damaged"):
        read_cells(folder)


def test_bytes_that_are_no_text_are_no_table(tmp_path):
    (tmp_path / "cells.csv").write_bytes(lzma.compress(b"x" * 100))
    with pytest.raises(InputError, match=r"not a table of cells and genes|cannot be read"):
        read_cells(tmp_path / "cells.csv")

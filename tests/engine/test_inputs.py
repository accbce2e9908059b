"""What a job reads: files of a folder, a pattern, a URL, one after the other, as if each were read alone."""

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import ribozyme as rz
from ribozyme.engine.inputs import files_of, holds_cells, is_url, marks, prepare
from ribozyme.engine.job import Outcome, embed_file
from ribozyme.errors import ConfigError, InputError, MissingExtraError, OutputError

HOW = {"batch_tokens": 20}


@pytest.fixture
def folder(tmp_path):
    """Three files of 9, 1 and 14 RNAs; two of them share names."""
    folder = tmp_path / "rnas"
    folder.mkdir()
    for file, count in (("a.fa", 9), ("b.fa", 1), ("c.fa", 14)):
        records = (
            f">s{k}\n{'ACGU'[k % 4] * (2 + 5 * k % 17)}{'GAC' * (1 + ord(file[0]) % 5)}\n"
            for k in range(count)
        )
        (folder / file).write_text("".join(records))
    return folder


@pytest.fixture(scope="module")
def scgpt(fixtures):
    return rz.load(fixtures / "scgpt" / "plain")


@pytest.fixture
def cells_folder(tmp_path, scgpt):
    folder = tmp_path / "cells"
    folder.mkdir()
    genes = list(scgpt.vocabulary.genes)
    for number, known in enumerate((genes[:20], genes[5:30])):  # other genes in another order
        X = np.random.default_rng(number).poisson(1.0, (11, len(known))).astype(np.float32)
        X[:, 0] += 1
        obs = pd.DataFrame(index=[f"c{k}" for k in range(11)])
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=known)).write_h5ad(folder / f"{number}.h5ad")
    return folder


@pytest.fixture(autouse=True)
def _a_shard_a_part(monkeypatch):
    monkeypatch.setattr("ribozyme.engine.sink.SHARD_SECONDS", 0)


def embedded(path):
    table = pd.read_parquet(path)
    return list(table["id"]), np.stack(list(table["embedding"]))


def after(parts):
    count = iter(range(10**6))
    return lambda: 15 if next(count) + 1 >= parts else None


def url(path):
    return path.as_uri()


@pytest.mark.parametrize("of", [str, lambda path: f"{path}/*.fa", url, lambda path: f"{url(path)}/?.fa"])
def test_all_files_in_the_order_of_their_names(rnafm, folder, tmp_path, of):
    assert embed_file(rnafm, of(folder), tmp_path / "out.parquet", **HOW) == Outcome(rows=24)
    names, rows = embedded(tmp_path / "out.parquet")
    assert names == [f"s{k}" for count in (9, 1, 14) for k in range(count)]
    alone = [rnafm.embed(folder / file, **HOW) for file in ("a.fa", "b.fa", "c.fa")]
    np.testing.assert_array_equal(rows, np.concatenate(alone))


def test_files_of_cells_with_genes_of_their_own(scgpt, cells_folder, tmp_path):
    embed_file(scgpt, cells_folder, tmp_path / "out.parquet")
    _, rows = embedded(tmp_path / "out.parquet")
    np.testing.assert_array_equal(
        rows, np.concatenate([scgpt.embed(file) for file in sorted(cells_folder.iterdir())])
    )


@pytest.mark.parametrize("parts", range(1, 5))
@pytest.mark.parametrize("of", [str, url])
def test_a_job_of_many_files_goes_on_in_any_of_them(rnafm, folder, tmp_path, parts, of):
    embed_file(rnafm, folder, tmp_path / "whole.parquet", **HOW)
    stopped = embed_file(rnafm, of(folder), tmp_path / "out.parquet", **HOW, stop=after(parts))
    assert stopped.rows <= 24
    embed_file(rnafm, of(folder), tmp_path / "out.parquet", **HOW)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_cells_too(scgpt, cells_folder, tmp_path):
    how = {"batch_tokens": 5}
    embed_file(scgpt, cells_folder, tmp_path / "whole.parquet", **how)
    for parts in (1, 3, 2):
        embed_file(scgpt, cells_folder, tmp_path / "out.parquet", **how, stop=after(parts))
    embed_file(scgpt, cells_folder, tmp_path / "out.parquet", **how)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_places_of_bad_records_count_through_all_files(rnafm, folder, tmp_path):
    (folder / "b.fa").write_text(">good\nACGU\n>bad\nAC7U\n>good\nACGU\n")
    assert embed_file(rnafm, folder, tmp_path / "out.parquet", on_error="skip").rejected == 1
    rejected = pd.read_json(tmp_path / "out.parquet.rejected.jsonl", lines=True)
    assert list(rejected["position"]) == [9 + 1]


def test_a_changed_missing_or_new_file_is_another_input(rnafm, folder, tmp_path):
    for source in (str(folder), url(folder)):
        embed_file(rnafm, source, tmp_path / "out.parquet", **HOW, stop=after(1))
        shutil.copy(folder / "a.fa", folder / "d.fa")
        with pytest.raises(OutputError, match="files was 3 and is 4"):
            embed_file(rnafm, source, tmp_path / "out.parquet", **HOW)
        (folder / "d.fa").unlink()
        text = (folder / "c.fa").read_text()
        (folder / "c.fa").write_text(text.replace("A", "C"))
        with pytest.raises(OutputError, match="all of them was"):
            embed_file(rnafm, source, tmp_path / "out.parquet", **HOW)
        shutil.rmtree(tmp_path / "out.parquet.parts")


def test_copies_of_remote_files_do_not_stay(rnafm, folder, tmp_path, monkeypatch):
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    how = rnafm.settings(**HOW)
    seen = 0
    for _ in prepare(rnafm, files_of(url(folder)), how):
        seen = max(seen, len(list((tmp_path / "copies").rglob("*.fa"))))
    assert seen in (1, 2)  # the one that is read, and the next
    assert not list((tmp_path / "copies").iterdir())


def test_other_file_systems_than_that_of_this_machine(rnafm, folder, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    assert files_of("memory://bucket") == [f"memory:///bucket/{name}.fa" for name in "abc"]
    assert marks("memory://bucket/b.fa")["size"] == str((folder / "b.fa").stat().st_size)
    embed_file(rnafm, "memory://bucket/", tmp_path / "out.parquet", **HOW)
    embed_file(rnafm, folder, tmp_path / "whole.parquet", **HOW)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_folder_that_is_one_input_is_not_taken_apart(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "zarr.json").write_text("{}")
    assert files_of(str(tmp_path / "x.zarr")) == [str(tmp_path / "x.zarr")]
    assert holds_cells(str(tmp_path / "x.zarr"))
    (tmp_path / "10x").mkdir()
    (tmp_path / "10x" / "matrix.mtx.gz").touch()
    assert files_of(str(tmp_path / "10x")) == [str(tmp_path / "10x")]
    assert files_of("-") == ["-"]
    assert is_url("s3://bucket/a.fa")
    assert not is_url("a.fa")


def test_suffixes_may_be_in_upper_case(rnafm, tmp_path):
    for name in ("b.FASTA", "a.Fa"):
        (tmp_path / name).write_text(">x\nACGU\n")
    assert files_of(str(tmp_path)) == [str(tmp_path / "a.Fa"), str(tmp_path / "b.FASTA")]
    assert embed_file(rnafm, tmp_path, tmp_path / "out.npz", **HOW) == Outcome(rows=2)
    assert [holds_cells(name) for name in ("A.H5AD", "A.FA")] == [True, False]


def test_what_cannot_be_read_is_said_before_work_begins(rnafm, scgpt, folder, cells_folder, tmp_path):
    with pytest.raises(InputError, match="no such file or folder, or nothing in it"):
        files_of(str(tmp_path / "none"))
    with pytest.raises(InputError, match="nothing in it"):
        files_of(f"{folder}/*.fq")
    with pytest.raises(InputError, match="nothing in it"):
        files_of(f"{url(folder)}/none")
    with pytest.raises(
        ConfigError, match="rnafm reads sequences" if rnafm.record else "RNAFM reads sequences"
    ):
        embed_file(rnafm, cells_folder, tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match=r"a \.h5ad is written from one file"):
        embed_file(scgpt, cells_folder, tmp_path / "out.h5ad")
    (folder / "notes.docx").touch()
    with pytest.raises(InputError, match=r"notes\.docx is neither of sequences nor of cells"):
        files_of(str(folder))
    (folder / "notes.docx").rename(folder / "x.h5ad")
    with pytest.raises(InputError, match="both sequences and cells"):
        files_of(str(folder))


def test_a_url_that_nothing_opens_is_one_error():
    with pytest.raises(InputError, match="nosuch"):
        files_of("nosuch://bucket/a.fa")


def test_a_file_system_that_is_not_installed_is_named(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match="Install s3fs"):
        files_of("s3://bucket/a.fa")

"""The demo's numbers, from stand-ins whose answers are known; and with the models of the package."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import ribozyme.data as data
from ribozyme import demo
from ribozyme.errors import InputError


class Oracle:
    """Embeds each name at its group's corner, and scores the example mRNAs above everything else."""

    def __init__(self, groups, knows=True):
        self.groups, self.knows = groups, knows
        self.real = set(data.mrnas().sequence)

    def embed(self, inputs):
        names = list(inputs.obs_names) if hasattr(inputs, "obs_names") else [name for name, _ in inputs]
        rng = np.random.default_rng(0)
        if not self.knows:
            return rng.normal(size=(len(names), 16)).astype(np.float32)
        kinds = sorted(set(self.groups.values()))
        corners = np.eye(16, dtype=np.float32)[[kinds.index(self.groups[name]) for name in names]]
        return corners + rng.normal(scale=0.01, size=corners.shape).astype(np.float32)

    def score(self, sequences):
        known = [sequence.replace("E", "") in self.real for sequence in sequences]
        return np.where(known, -1.0, -1.4).astype(np.float32) if self.knows else np.zeros(len(known))

    def untrained(self, seed=0):
        return Oracle(self.groups, knows=False)


@pytest.fixture(scope="module")
def oracles():
    rnas, mrnas, cells = data.rnas(), data.mrnas(), data.cells()
    groups = (
        dict(zip(rnas.id, rnas.family)),
        dict(zip(mrnas.id, mrnas.gene)),
        dict(zip(cells.obs_names, cells.obs["cell_type"])),
    )
    return {name: Oracle(group) for name, group in zip(demo.MODELS, groups)}


@pytest.fixture(scope="module")
def results(oracles, tmp_path_factory):
    return demo.run(tmp_path_factory.mktemp("demo") / "out", models=oracles)


def test_a_perfect_model_has_every_neighbour_right(results):
    assert [str(task.trained.same) for task in results.tasks] == ["50/50", "5/5", "311/311"]
    assert str(results.scores.trained) == "25/25"


def test_a_network_that_knows_nothing_is_near_chance(results):
    rnas, _, cells = results.tasks
    assert rnas.untrained.same.hits < 15
    assert cells.untrained.same.hits < 70
    assert results.scores.untrained.hits == 0
    assert cells.chance == pytest.approx(0.1125, abs=1e-4)


def test_the_baselines_are_the_ones_we_measured(results):
    assert [task.baseline_name for task in results.tasks] == ["6-mers", "6-mers", "PCA"]
    rnas, mrnas, cells = results.tasks
    assert rnas.baseline.same.hits == 44
    assert mrnas.baseline.same.hits == 5
    assert 190 <= cells.baseline.same.hits <= 235


def test_pictures_and_embeddings_are_written(results):
    assert [path.name for path in results.files] == [
        "rnas.png", "rnas.parquet", "mrnas.png", "mrnas.parquet", "cells.png", "cells.parquet",
    ]  # fmt: skip
    for task, (picture, table) in zip(results.tasks, zip(results.files[::2], results.files[1::2])):
        assert picture.read_bytes().startswith(b"\x89PNG")
        frame = pd.read_parquet(table)
        assert frame["id"].tolist() == list(task.names)
        np.testing.assert_array_equal(np.stack(frame["embedding"]), task.embeddings)


def test_the_report_tells_models_baselines_and_files(results):
    console = Console(record=True, width=80, file=io.StringIO())
    demo.report(results, "somewhere", console.print)
    text = console.export_text()
    assert "…" not in text
    for expected in (
        "50/50",
        "6-mers 44/50",
        "311/311",
        "25/25 pairs",
        "rnas.png",
        "in somewhere",
        "50 x 16",
    ):
        assert expected in text
    assert "5S_rRNA_5: 5S_rRNA_" in text


def test_the_same_seed_gives_the_same_twins():
    m = data.mrnas().iloc[0]
    first, again, other = (
        demo.shuffled_codons(m.sequence, m.cds_start, m.cds_end, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_a_folder_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(InputError, match="file: cannot be made a folder"):
        demo.run(taken, models={})


def test_nearest_neighbours_by_cosine_ignore_length():
    X = np.array([[1, 0], [100, 1], [0, 1], [1, 50]])
    found = demo.neighbours(X, ["a", "a", "b", "c"])
    assert found.nearest.tolist() == [1, 0, 3, 2]
    assert str(found.same) == "2/4"


def test_chance_is_the_share_of_equal_pairs():
    labels = list("aaabbc")
    pairs = [x == y for x, y in itertools.permutations(labels, 2)]
    assert demo.chance(labels) == pytest.approx(np.mean(pairs))


def test_a_twin_keeps_utrs_start_stop_and_codons():
    for m in data.mrnas().itertuples():
        twin = demo.shuffled_codons(m.sequence, m.cds_start, m.cds_end, np.random.default_rng(1))

        def codons(sequence, m=m):
            return [sequence[k : k + 3] for k in range(m.cds_start, m.cds_end, 3)]

        assert twin != m.sequence
        assert twin[: m.cds_start + 3] == m.sequence[: m.cds_start + 3]
        assert twin[m.cds_end - 3 :] == m.sequence[m.cds_end - 3 :]
        assert sorted(codons(twin)) == sorted(codons(m.sequence))


@pytest.mark.slow
def test_the_models_of_the_package_beat_their_untrained_selves(tmp_path):
    found = demo.run(tmp_path)
    for task in found.tasks:
        assert task.trained.same.hits >= task.untrained.same.hits
    assert found.scores.trained.hits > found.scores.untrained.hits

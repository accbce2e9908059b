"""Pretraining from end to end: every family learns by heart, runs go on, two processes are one."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import ribozyme as rz
from ribozyme.engine.cells import CellModel
from ribozyme.errors import ConfigError, InputError, InputWarning
from ribozyme.models.scgpt.config import Config as CellConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary
from ribozyme.train.corpus import CellCorpus, SequenceCorpus, described
from ribozyme.train.feed import InMemory
from ribozyme.train.kmer_components import kmer_components
from ribozyme.train.loop import Training
from ribozyme.train.objectives import Example
from ribozyme.train.pretrain import Recipe, objective_of, parts, pretrain
from ribozyme.train.run import Run

PATTERNS = ["ACGU" * 5, "AACCGGUU" * 2, "AUAUAUAUAUAU"]


@pytest.fixture
def scgpt():
    vocabulary = Vocabulary(["A1BG", "A2M", "NAT1", "NAT2", "AAMP", "ABAT", "<pad>", "<cls>", "<eoc>"])
    module = ScGPT(CellConfig(vocab_size=9, layers=1, dim=16, heads=2, ffn_dim=32, dropout=0.0))
    module.initialise(torch.Generator().manual_seed(0))
    return CellModel(module, vocabulary, torch.device("cpu"))


@pytest.fixture
def adata():
    import anndata as ad
    import pandas as pd

    counts = np.array([[9, 1, 4, 0, 2, 6], [1, 8, 3, 5, 7, 2]], np.float32)
    genes = ["A1BG", "A2M", "NAT1", "NAT2", "AAMP", "ABAT"]
    return ad.AnnData(counts, obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=genes))


def recipe(**changes):
    given = {"steps": 60, "step_tokens": 60, "learning_rate": 2e-2, "held": 0.0, "validate_every": 20}
    return Recipe(**(given | changes))


@pytest.mark.parametrize("family", ["helix", "rnafm"])
def test_a_tiny_model_of_sequences_learns_patterns_by_heart(make_model, family, tmp_path):
    model = make_model(family)
    how = recipe(share=0.3, steps=90 if family == "rnafm" else 50)
    history = pretrain(model, PATTERNS, tmp_path, how, log_every=20)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert history.steps[-1] == how.steps
    again = rz.load(tmp_path, device="cpu", dtype="float32")
    np.testing.assert_allclose(again.embed(PATTERNS), model.embed(PATTERNS), atol=1e-6)


@pytest.mark.parametrize("objective", ["values", "generative"])
def test_a_tiny_model_of_cells_learns_them_by_heart(scgpt, adata, objective, tmp_path):
    history = pretrain(
        scgpt, adata, tmp_path, recipe(objective=objective, steps=90, learning_rate=1e-2), log_every=30
    )
    assert history.loss[-1] < 0.6 * history.loss[0]  # what is hidden is not always told by the rest
    again = rz.load(tmp_path, device="cpu", dtype="float32")
    np.testing.assert_allclose(again.embed(adata), scgpt.embed(adata), atol=1e-6)


def write_fasta(path):
    generator = np.random.default_rng(0)
    sequences = ["".join(generator.choice(list("ACGU"), generator.integers(5, 40))) for _ in range(80)]
    path.write_text("".join(f">s{k}\n{one}\n" for k, one in enumerate(sequences)))
    return path


def test_a_run_from_a_file_goes_on_and_keeps_its_best_weights(make_model, tmp_path, killed):
    corpus = write_fasta(tmp_path / "rna.fa")
    how = recipe(steps=12, step_tokens=120, held=0.2, validate_every=4, buffer=16, sorted_steps=2)
    whole = pretrain(make_model("helix"), corpus, tmp_path / "whole", how, save_every=5, log_every=3)
    assert whole.validation_steps == [0, 4, 8, 12]
    killed(7, lambda: pretrain(make_model("helix"), corpus, tmp_path / "run", how, save_every=5, log_every=3))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    pretrain(make_model("helix"), corpus, tmp_path / "run", how, save_every=5, log_every=3)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "run")]
    without_seconds = [[line.split(",")[:3] + line.split(",")[4:] for line in log] for log in logs]
    assert without_seconds[0] == without_seconds[1]
    assert [line[0] for line in without_seconds[0][1:]] == ["0", "3", "4", "6", "8", "9", "12"]
    with pytest.raises(ConfigError, match="holds a run with learning_rate"):
        pretrain(make_model("helix"), corpus, tmp_path / "run", replace(how, learning_rate=1e-3))


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_run_with_more_steps_ends_as_if_it_had_had_them_from_the_start(
    make_model, tmp_path, monkeypatch, schedule
):
    """A finished one at a constant rate, a stopped one before its rate falls."""
    corpus = write_fasta(tmp_path / "rna.fa")
    first, whole = (10, 20) if schedule == "constant" else (15, 20)
    how = recipe(schedule=schedule, step_tokens=120, held=0.2, validate_every=5, warmup=2)
    cadence = {"save_every": 5, "log_every": 5}
    pretrain(make_model("helix"), corpus, tmp_path / "whole", replace(how, steps=whole), **cadence)

    def stop(state):
        if schedule == "wsd" and state.step == 5:
            signal.raise_signal(signal.SIGTERM)

    try:
        pretrain(
            make_model("helix"), corpus, tmp_path / "run", replace(how, steps=first), watch=stop, **cadence
        )
    except SystemExit:
        assert schedule == "wsd"
    further = pretrain(make_model("helix"), corpus, tmp_path / "run", replace(how, steps=whole), **cadence)
    assert further.steps[-1] == whole
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == whole


def test_more_steps_are_refused_where_the_rate_would_have_been_another(make_model, tmp_path):
    how = recipe(steps=6, schedule="cosine", validate_every=0)
    pretrain(make_model("helix"), PATTERNS, tmp_path, how)
    with pytest.raises(
        ConfigError, match="6 of 6 steps are done; had there been 9, schedule 'cosine'"
    ) as told:
        pretrain(make_model("helix"), PATTERNS, tmp_path, replace(how, steps=9))
    assert f"--model {tmp_path}" in told.value.hint
    assert json.loads((tmp_path / "run.json").read_text())["steps"] == 6
    with pytest.raises(ConfigError, match="6 steps are done, more than 5"):
        pretrain(make_model("helix"), PATTERNS, tmp_path, replace(how, steps=5))


def test_the_warm_up_stays_as_it_was_when_steps_change(make_model, tmp_path):
    how = recipe(steps=50, schedule="constant", validate_every=0)
    with pytest.raises(SystemExit):
        pretrain(make_model("helix"), PATTERNS, tmp_path, how, log_every=2, watch=terminate)
    pretrain(make_model("helix"), PATTERNS, tmp_path, replace(how, steps=5))
    assert json.loads((tmp_path / "run.json").read_text())["warmup"] == 1


def terminate(state):
    signal.raise_signal(signal.SIGTERM)


def test_a_model_by_name_begins_with_its_weights_or_fresh_ones(tmp_path):
    how = recipe(steps=1, learning_rate=1e-4)
    known = pretrain("rnafm-mini", PATTERNS, tmp_path / "a", how, validation=PATTERNS, device="cpu")
    fresh = pretrain(
        "rnafm-mini", PATTERNS, tmp_path / "b", how, validation=PATTERNS, device="cpu", scratch=True
    )
    assert known.validation_loss[0] < fresh.validation_loss[0]
    assert json.loads((tmp_path / "b" / "run.json").read_text())["scratch"] is True


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("helix", {"objective": "masked"}, "objective 'masked' is not for this model"),
        ("rnafm", {"objective": "next"}, "objective 'next' is not for this model"),
        ("rnafm", {"coding": "mark"}, "no letter E"),
    ],
)
def test_an_objective_of_another_model_is_an_error(make_model, family, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pretrain(make_model(family), PATTERNS, tmp_path / "run", recipe(**changes))
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_is_missing_or_empty_is_an_error(make_model, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        pretrain(make_model("helix"), tmp_path / "none.fa", tmp_path / "run", recipe())
    with pytest.raises(InputError, match="no sequences"):
        pretrain(make_model("helix"), [], tmp_path / "run", recipe())
    for wrong in ({"objective": "x"}, {"held": 1.0}, {"longest": 0}):
        with pytest.raises(ConfigError):
            recipe(**wrong)


SCRIPT = """
import sys, torch
from dataclasses import replace
import ribozyme as rz
from ribozyme.engine.cells import CellModel
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.train.pretrain import Recipe, pretrain
torch.set_num_threads(1)
cells = sys.argv[1].endswith("h5ad")
how = Recipe(steps=8, step_tokens=3000 if cells else 400, longest=200, learning_rate=1e-3, held=0.2,
             validate_every=4, precision="float32")
model = rz.load("scgpt-mini" if cells else "rnafm-mini", device="cpu", dtype="float32")
if cells:
    dropping = ScGPT(replace(model.config, layers=2, dropout=0.2))
    model = CellModel(dropping, model.vocabulary, torch.device("cpu"))
pretrain(model, *sys.argv[1:3], how, scratch=True,
         batch_tokens=1000 if cells else 100, log_every=1, save_every=3, device="cpu")
"""


def launched(count, corpus, folder):
    """As torchrun starts processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in map(str, range(count)):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment = os.environ | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", SCRIPT, str(corpus), str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequences", "cells"])
def test_two_processes_give_the_loss_curve_of_one(tmp_path, kind):
    """The model of cells has dropout, whose draws must be the same in any process."""
    corpus = write_fasta(tmp_path / "rna.fa")
    if kind == "cells":
        corpus = tmp_path / "cells.h5ad"
        rz.data.cells()[:40].copy().write_h5ad(corpus)
    launched(2, corpus, tmp_path / "two")
    subprocess.run([sys.executable, "-c", SCRIPT, str(corpus), str(tmp_path / "one")], check=True)
    one, two = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("one", "two"))
    for column in ("loss", "validation_loss"):
        a, b = ([float("nan") if x is None else x for x in curve[column]] for curve in (one, two))
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert one["tokens"] == two["tokens"]


@pytest.mark.slow
def test_torchrun_and_accelerate_launch_do_the_same(tmp_path):
    corpus, script = write_fasta(tmp_path / "rna.fa"), tmp_path / "train.py"
    script.write_text(SCRIPT)
    bin = Path(sys.executable).parent
    launchers = {
        "torchrun": [bin / "torchrun", "--nproc-per-node", "2", "--master-port", "29755"],
        "accelerate": [bin / "accelerate", "launch", "--cpu", "--num_processes", "2",
                       "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                       "--main_process_port", "29756"],
    }  # fmt: skip
    curves = {}
    for name, launcher in launchers.items():
        subprocess.run([*launcher, script, corpus, tmp_path / name], check=True, capture_output=True)
        curves[name] = json.loads((tmp_path / name / "curve.json").read_text())["loss"][1:]
    np.testing.assert_allclose(curves["torchrun"], curves["accelerate"], atol=1e-5)


OTHERS = ["GGGG" * 4, "CCCC" * 4, "UUUUAAAAUUUU"]


def fasta(path, sequences):
    path.write_text("".join(f">s{k}\n{one}\n" for k, one in enumerate(sequences)))
    return path


def test_a_run_goes_on_with_the_same_corpus_only(make_model, tmp_path):
    (tmp_path / "other").mkdir()
    first = fasta(tmp_path / "c.fa", PATTERNS)
    other = fasta(tmp_path / "other" / "c.fa", [PATTERNS[0][::-1], *PATTERNS[1:]])
    assert first.stat().st_size == other.stat().st_size
    how = recipe(steps=2)
    pretrain(make_model("rnafm"), first, tmp_path / "files", how)
    with pytest.raises(ConfigError, match="holds a run with corpus"):
        pretrain(make_model("rnafm"), other, tmp_path / "files", how)
    pretrain(make_model("rnafm"), PATTERNS, tmp_path / "lists", how)
    with pytest.raises(ConfigError, match="holds a run with corpus"):
        pretrain(make_model("rnafm"), OTHERS, tmp_path / "lists", how)
    pretrain(make_model("rnafm"), PATTERNS, tmp_path / "fresh", how, scratch=True)
    with pytest.raises(ConfigError, match=r"holds a run with seed 0, not 3 \(and 1 more settings differ\)"):
        pretrain(make_model("rnafm"), PATTERNS, tmp_path / "fresh", replace(how, seed=3), scratch=True)
    make_model("rnafm").save(tmp_path / "model")
    pretrain(tmp_path / "model", PATTERNS, tmp_path / "named", how)
    make_model("rnafm").untrained(seed=5).save(tmp_path / "model")
    with pytest.raises(ConfigError, match="holds a run with first weights"):
        pretrain(tmp_path / "model", PATTERNS, tmp_path / "named", how)


def test_components_are_settings_of_a_run(make_model, tmp_path):
    model = make_model("rnafm")
    found = []
    for seed in range(2):
        drawn = np.random.default_rng(seed)
        source = ["".join(drawn.choice(list("ACGU"), 30)) for _ in range(40)]
        corpus = SequenceCorpus(source=source, tokenizer=model.tokenizer)
        found.append(kmer_components(corpus, model.tokenizer.letters, model.config.dim))
    pretrain(model, PATTERNS, tmp_path, recipe(steps=2), components=found[0])
    for components in (None, found[1]):
        with pytest.raises(ConfigError, match="holds a run with components"):
            pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=2), components=components)
    pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=2), components=found[0])


def test_digests_tell_corpora_apart(tmp_path):
    frame = pd.DataFrame({"sequence": PATTERNS})
    corpus = SequenceCorpus(source=PATTERNS, tokenizer=None)
    kinds = [
        (PATTERNS, OTHERS),
        (frame, pd.DataFrame({"sequence": OTHERS})),
        ([Example(np.arange(3))], [Example(np.arange(4))]),
        (InMemory([Example(np.arange(3))]), InMemory([Example(np.arange(4))])),
        (fasta(tmp_path / "a.fa", PATTERNS), fasta(tmp_path / "b.fa", OTHERS)),
        (["A" * 10_000], ["A" * 10_001]),
        (corpus, replace(corpus, coding="mark")),
        (corpus, replace(corpus, source=OTHERS)),
    ]
    for one, other in kinds:
        assert described(one) == described(one)
        assert described(one) != described(other)


@pytest.mark.parametrize("kind", ["memory", "backed", "mudata"])
def test_digests_tell_cells_apart_wherever_they_are(scgpt, adata, tmp_path, kind):
    import anndata as ad
    import mudata

    other, renamed = adata.copy(), adata.copy()
    other.X[0, 0] += 1
    renamed.var_names = [*adata.var_names[:-1], "NAT3"]
    found = []
    for k, cells in enumerate((adata, other, renamed, adata.copy())):
        if kind == "backed":
            cells.write_h5ad(tmp_path / f"{k}.h5ad")
            cells = ad.read_h5ad(tmp_path / f"{k}.h5ad", backed="r")
        elif kind == "mudata":
            with mudata.set_options(pull_on_update=False):
                cells = mudata.MuData({"rna": cells})
        found.append(described(CellCorpus(source=cells, lookup=scgpt.lookup, n_bins=51)))
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


def test_a_validation_of_its_own_leaves_the_whole_corpus(make_model):
    model, many = make_model("rnafm"), PATTERNS * 200
    source, held = parts(model, many, Recipe(held=0.5), validation=PATTERNS)
    assert len([one for one in source.read(np.random.default_rng(0)) if one is not None]) == len(many)
    assert len(held) == len(PATTERNS)


def test_a_corpus_too_small_to_hold_any_out_is_said(make_model):
    model = make_model("rnafm")
    with pytest.warns(InputWarning, match=r"nothing of the sequences is held out \(it is small\)"):
        parts(model, PATTERNS, Recipe(held=0.001))
    own = SequenceCorpus(source=PATTERNS, tokenizer=model.tokenizer)
    with pytest.warns(InputWarning, match=r"held out \(the corpus says so itself\)"):
        parts(model, own, Recipe(held=0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [("share", -0.5), ("share", 3.0), ("contrast", -1.0), ("learning_rate", np.nan), ("weight_decay", -1.0)],
)
def test_recipes_that_make_no_sense_are_errors(name, value):
    with pytest.raises(ConfigError, match=name):
        recipe(**{name: value})


def test_a_share_of_nothing_is_an_error(make_model):
    with pytest.raises(ConfigError, match="share 0 masks nothing"):
        objective_of(make_model("rnafm"), Recipe(share=0.0))


def test_a_refused_command_leaves_the_run_as_it_is(make_model, tmp_path):
    """The first has done no step yet; a second one of other settings is refused and changes nothing."""
    with Run(tmp_path, {"what": "first"}).alone():
        written = (tmp_path / "run.json").read_bytes()
        with pytest.raises(ConfigError, match="another process trains here"):
            pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=2))
        assert (tmp_path / "run.json").read_bytes() == written
    pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=2))  # nothing was computed by the first


def test_a_run_that_did_nothing_lends_no_warm_up(make_model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", lambda *args: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=1000))
    assert json.loads((tmp_path / "run.json").read_text())["warmup"] == 20
    pretrain(make_model("rnafm"), PATTERNS, tmp_path, recipe(steps=3))
    assert json.loads((tmp_path / "run.json").read_text())["warmup"] == 0


def test_iterators_are_told_apart_by_what_they_gave(make_model, tmp_path):
    pretrain(make_model("rnafm"), iter(PATTERNS), tmp_path, recipe(steps=2))
    with pytest.raises(ConfigError, match="holds a run with corpus"):
        pretrain(make_model("rnafm"), iter(OTHERS), tmp_path, recipe(steps=2))
    pretrain(make_model("rnafm"), iter(PATTERNS), tmp_path, recipe(steps=2))


def test_nothing_is_read_to_hold_nothing_out(make_model):
    class Unread(list):
        def __iter__(self):
            pytest.fail("it was read")

    corpus = SequenceCorpus(source=Unread(PATTERNS), tokenizer=make_model("rnafm").tokenizer)
    assert parts(make_model("rnafm"), corpus, Recipe(held=0.0))[1] == []

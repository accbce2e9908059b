"""The loop: resume to the last bit from any interruption, one loss however a step is cut, NaN, stopping."""

import json
import re
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ribozyme as rz
from ribozyme.errors import CheckpointError, ConfigError, InputError, OutputError
from ribozyme.models.helix.config import Config
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.rnafm.config import Config as RNAConfig
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.scgpt.config import Config as CellConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.train import snapshot
from ribozyme.train.batch import micro_batches
from ribozyme.train.feed import Feed, InMemory
from ribozyme.train.history import History
from ribozyme.train.loop import Loop, Training, evaluate
from ribozyme.train.objectives import Example, Genes, Letters, MaskedLetters, MaskedValues, NextLetter
from ribozyme.train.processes import first_process
from ribozyme.train.run import Run
from ribozyme.train.schedule import Schedule, parameter_groups
from ribozyme.train.snapshot import read_sealed

DRAWN = np.random.default_rng(0)
EXAMPLES = [Example(DRAWN.integers(4, 8, DRAWN.integers(5, 30))) for _ in range(24)]
HELD = [Example(DRAWN.integers(4, 8, 12)) for _ in range(4)]
STEPS = 9


class Dropping(RNAFM):
    """With dropout, which the published network has not, to see that its draws are resumed too."""

    def logits(self, rows):
        return super().logits(nn.functional.dropout(rows, 0.2, self.training))


def tiny(kind="dropping"):
    if kind == "helix":
        network = HelixMRNA(Config(layout="M+", dim=16, heads=1, head_dim=32, state=8))
    else:
        network = Dropping(RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False))
    network.initialise(torch.Generator().manual_seed(0))
    return network


def objective(kind="masked"):
    if kind == "masked":
        return MaskedLetters(Letters(prefix=(0,), suffix=(2,), longest=20), 24, (4, 5, 6, 7), share=0.3)
    return NextLetter(Letters())


def settings(**changes):
    given = {
        "schedule": Schedule(steps=STEPS, kind="wsd", warmup=2),
        "batch_tokens": 40,
        "log_every": 2,
        "validate_every": 3,
        "save_every": 2,
        "seed": 5,
    }
    return Loop(**(given | changes))


def go(
    folder=None, *, network=None, goal=None, loop=None, held=HELD, make=torch.optim.AdamW, rate=0.01, **kw
):
    network = network or tiny()
    optimizer = make(parameter_groups(network.named_parameters(), 0.1), lr=rate)
    feed = Feed(corpus=InMemory(EXAMPLES), size=120, buffer=10, seed=5)
    run = None if folder is None else Run(folder, {"what": "a test"})
    history = (loop or settings()).train(
        network, goal or objective(), feed, optimizer, held=held, run=run, **kw
    )
    history.seconds = []
    return network, history


def same(a, b):
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


class Killed(Exception):
    pass


def killed_at(step, where, monkeypatch):
    """A training that ends without a word at a step, before, within or after its work."""
    original = getattr(Training, where)

    def until(self, *args, **kw):
        if self.state.step == step:
            raise Killed
        return original(self, *args, **kw)

    monkeypatch.setattr(Training, where, until)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Pictures take longer than these trainings."""
    if "folder_tells" not in request.node.name:
        monkeypatch.setattr("ribozyme.train.run.draw", lambda history, path: None)


@pytest.fixture(scope="module")
def uninterrupted():
    return go()


ALWAYS = [("step", step) for step in range(1, STEPS)] + [("validate", 6), ("log", 6), ("save", 6)]
EVERYWHERE = [(where, step) for where in ("validate", "log", "save") for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("where", "step"),
    ALWAYS + [pytest.param(*one, marks=pytest.mark.slow) for one in EVERYWHERE if one not in ALWAYS],
)
def test_a_run_goes_on_to_the_same_weights_from_every_interruption(
    tmp_path, monkeypatch, uninterrupted, step, where
):
    network, history = uninterrupted
    with monkeypatch.context() as patch:
        killed_at(step, where, patch)
        try:
            go(tmp_path / "run")
        except Killed:
            assert not (tmp_path / "run" / "log.csv").read_text().startswith(f"{STEPS},")
    again, its_history = go(tmp_path / "run")
    assert same(again, network)
    assert its_history == history
    lines = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == history.steps
    assert not list((tmp_path / "run").glob(".*tmp"))


def test_a_complete_run_is_left_as_it_is(tmp_path, uninterrupted):
    go(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    network, history = go(tmp_path)
    assert same(network, uninterrupted[0])
    assert history == uninterrupted[1]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before


@pytest.mark.parametrize(
    "make",
    [
        lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
        lambda groups, lr: torch.optim.Adam(groups, lr=lr, amsgrad=True),
        lambda groups, lr: torch.optim.RMSprop(groups, lr=lr),
        lambda groups, lr: torch.optim.Adagrad(groups, lr=lr),
    ],
    ids=["sgd", "adam", "rmsprop", "adagrad"],
)
def test_any_optimizer_of_torch_is_resumed(tmp_path, monkeypatch, make):
    network, _ = go(make=make)
    with monkeypatch.context() as patch:
        killed_at(5, "step", patch)
        with pytest.raises(Killed):
            go(tmp_path, make=make)
    assert same(go(tmp_path, make=make)[0], network)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_loop
from ribozyme.train.loop import Training
step, number = int(sys.argv[3]), int(sys.argv[4])
work = Training.step
def until(self, *args):
    if self.state.step == step:
        os.kill(os.getpid(), number)
    return work(self, *args)
Training.step = until
test_loop.torch.set_num_threads(1)
test_loop.go(sys.argv[2])
"""


def killed_process(folder, step, number):
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), str(step), str(number)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path, uninterrupted):
    assert killed_process(tmp_path, 5, signal.SIGKILL).returncode == -signal.SIGKILL
    state = json.loads(_metadata(tmp_path / "checkpoint.safetensors")["state"])
    assert state["step"] == 4
    (tmp_path / ".checkpoint.safetensors.x1.tmp").write_bytes(b"half of it")  # killed while it was written
    network, history = go(tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert same(network, uninterrupted[0])
    assert history == uninterrupted[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_may_be_killed_at_every_step(tmp_path, uninterrupted, step, number):
    code = killed_process(tmp_path, step, number).returncode
    if step < STEPS - 1 or number == signal.SIGKILL:  # the last step ends the run as ever
        assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: -2}[number]
    network, history = go(tmp_path)
    assert same(network, uninterrupted[0])
    assert history == uninterrupted[1]


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_finishes_the_step_saves_and_is_passed_on(tmp_path, uninterrupted, number, end):
    def press(state):
        if state.step == 4:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(end) as caught:
        go(tmp_path, watch=press)
    if end is SystemExit:
        assert caught.value.code == 143
    assert signal.getsignal(number) is before
    assert json.loads(_metadata(tmp_path / "checkpoint.safetensors")["state"])["step"] in (4, 5)
    assert same(go(tmp_path)[0], uninterrupted[0])


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("kind", ["masked", "next"])
def test_a_step_is_the_mean_over_its_tokens_however_it_is_cut(kind):
    """Sequences of very different lengths: means of means would differ by far more."""
    runs = []
    for budget in (1, 50, 10_000):
        network = tiny("helix")
        if kind == "masked":
            network = RNAFM(
                RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False)
            )
            network.initialise(torch.Generator().manual_seed(0))
        runs.append(go(network=network, goal=objective(kind), loop=settings(batch_tokens=budget)))
    for _, history in runs[1:]:
        np.testing.assert_allclose(history.loss, runs[0][1].loss, atol=1e-5)
        np.testing.assert_allclose(history.norm, runs[0][1].norm, rtol=1e-3)
        np.testing.assert_allclose(history.validation_loss, runs[0][1].validation_loss, atol=1e-5)


def test_gradients_of_a_cut_step_are_those_of_the_whole_batch():
    goal, network = objective("next"), tiny("helix").double()
    keys = np.arange(8, dtype=np.uint64)
    batch = goal.batch(EXAMPLES[:8], keys)
    (goal(network, batch)["next"] / batch.weights["next"]).backward()
    whole = [p.grad.clone() for p in network.parameters()]
    seen = []

    class Still(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    loop = settings(schedule=Schedule(steps=1), batch_tokens=30, clip=1e9)
    feed = Feed(corpus=InMemory(EXAMPLES[:8]), size=10_000)
    loop.train(network, goal, feed, Still(network.parameters(), lr=1.0))
    for one, other in zip(seen, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)  # the loss is summed in float32


class Poisoned(RNAFM):
    """Its loss is NaN at the third step."""

    calls = 0

    def logits(self, rows):
        out = super().logits(rows)
        if self.training:
            self.calls += 1
        return out * float("nan") if self.training and self.calls == self.poison else out


def poisoned(call):
    network = Poisoned(RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False))
    network.initialise(torch.Generator().manual_seed(0))
    network.poison = call
    return network


def test_a_loss_that_is_no_number_stops_with_its_batch_and_the_last_good_weights(tmp_path):
    loop = settings(batch_tokens=10_000)  # one batch a step
    good = poisoned(-1)
    go(network=good, loop=settings(batch_tokens=10_000, schedule=Schedule(steps=STEPS, kind="wsd", warmup=2)))
    network = poisoned(4)
    with pytest.raises(ConfigError, match=r"loss became nan in step 4 \(epoch 1\)") as caught:
        go(tmp_path, network=network, loop=loop)
    assert "failed-step-4.safetensors" in "".join(caught.value.__notes__)
    batch = load_file(tmp_path / "failed-step-4.safetensors")
    assert {"0.ids", "0.cu_seqlens", "0.rows", "0.letters"} <= set(batch)
    assert batch["0.cu_seqlens"][-1] == len(batch["0.ids"])
    assert json.loads(_metadata(tmp_path / "checkpoint.safetensors")["state"])["step"] == 3
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(t).all() for t in kept.values())
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(kept[f"network.{name}"], tensor, atol=0, rtol=0)
    again, _ = go(tmp_path, network=poisoned(-1), loop=loop)  # the cause is gone
    assert same(again, good)


def test_a_gradient_that_is_no_number_stops_too():
    network = tiny()
    network.tokens.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(ConfigError, match="gradient became nan in step 1"):
        go(network=network)


def test_training_stops_when_validation_no_longer_improves(tmp_path, monkeypatch):
    wanted = iter([3.0, 2.0, 2.5, 2.0, 1.0, 1.0])
    monkeypatch.setattr("ribozyme.train.training.evaluate", lambda *a, **k: next(wanted))
    loop = settings(schedule=Schedule(steps=40), validate_every=2, patience=2)
    _, history = go(tmp_path, loop=loop)
    assert history.validation_loss == [3.0, 2.0, 2.5, 2.0]
    assert history.best_step == 4
    assert history.steps[-1] == 8
    _, again = go(tmp_path, loop=loop)  # it stays stopped
    assert again.validation_loss == history.validation_loss


@pytest.mark.parametrize("kept", [True, False])
def test_the_weights_of_the_best_validation_are_kept(tmp_path, monkeypatch, kept):
    wanted, weights = iter([3.0, 1.0, 2.5]), []

    def judge(network, *rest, **settings):
        weights.append(network.tokens.weight.clone())
        return next(wanted)

    monkeypatch.setattr("ribozyme.train.training.evaluate", judge)
    network, history = go(tmp_path if kept else None)
    assert history.best_step == 6
    assert torch.equal(network.tokens.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])
    if kept:  # the last weights are in the checkpoint
        last = load_file(tmp_path / "checkpoint.safetensors")["network.tokens.weight"]
        assert torch.equal(last, weights[2])


def test_validation_is_without_dropout_and_repeats():
    network = tiny().eval()
    first = evaluate(network, objective(), HELD, 40)
    assert evaluate(network, objective(), HELD, 10_000) == pytest.approx(first, abs=1e-6)


def test_a_validation_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setattr("ribozyme.train.training.evaluate", lambda *a, **k: float("nan"))
    with pytest.raises(ConfigError, match="validation loss became nan"):
        go()


def test_the_global_random_state_is_left_alone():
    network = tiny()
    before = torch.random.get_rng_state()
    go(network=network)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bfloat16_learns_about_the_same():
    exact, rounded = (go(loop=settings(precision=kind))[1] for kind in ("float32", "bfloat16"))
    assert exact.loss != rounded.loss
    np.testing.assert_allclose(exact.loss, rounded.loss, rtol=0.05)


def test_the_folder_tells_how_it_went(tmp_path):
    _, history = go(tmp_path)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["loss"] == [dict(zip(history.steps, history.loss)).get(step) for step in curve["step"]]
    assert curve["validation_loss"].count(None) == len(curve["step"]) - len(history.validation_loss)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,epoch,tokens,seconds,rate,norm,loss,validation_loss"
    assert len(lines) == len(curve["step"])


def test_a_terminal_gets_a_bar_and_anything_else_nothing(monkeypatch, capsys):
    go()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    go()
    said = capsys.readouterr().err
    assert f"{STEPS}/{STEPS}" in said
    assert "loss" in said
    assert "tokens/s" in said
    assert re.search(r"\d:\d\d:\d\d", said), "time left"
    assert "nan" not in said


def test_tensorboard_gets_the_lines_of_the_log_where_it_is_installed(tmp_path, monkeypatch):
    told = []

    class Board:
        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def flush(self):
            told.append(("flush", None, None))

    monkeypatch.setattr("ribozyme.train.run._board", lambda folder, first: Board())
    _, history = go(tmp_path)
    assert [value for name, value, _ in told if name == "loss"] == history.loss
    assert told[-1][0] == "flush"
    assert [step for name, _, step in told if name == "validation_loss"] == history.validation_steps


def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, history = go(tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == history.steps
    np.testing.assert_allclose([one.value for one in events.Scalars("loss")], history.loss, rtol=1e-6)
    assert [one.step for one in events.Scalars("validation_loss")] == history.validation_steps


def test_a_history_is_a_table_that_can_be_drawn():
    history = History(
        [3, 6], [1, 1], [10, 20], [0.1, 0.2], [2.0, 1.0], [0.1, 0.1], [1.0, 1.0], [0, 6], [3.0, 1.5]
    )
    table = history.to_frame()
    assert table["step"].tolist() == [0, 3, 6]
    assert table["loss"].tolist()[1:] == [2.0, 1.0]
    assert table["validation_loss"].dropna().tolist() == [3.0, 1.5]
    assert len(rz.pl.training_curve(table, keys=["loss", "validation_loss"]).axes[0].lines) >= 2
    assert (history.best_step, history.best_epoch) == (6, 2)


def test_another_run_in_the_folder_is_an_error(tmp_path):
    go(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds a run with what 'a test', not 'another'"):
        Run(tmp_path / "run", {"what": "another"})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Run(tmp_path / "file", {})


def test_a_damaged_or_foreign_checkpoint_is_an_error(tmp_path):
    go(tmp_path)
    with pytest.raises(CheckpointError, match="of another network"):
        go(tmp_path, network=tiny("helix"), goal=objective("next"))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged or cut off"):
        go(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json: cannot be read"):
        go(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint", "best"])
def test_a_flipped_bit_in_what_a_run_goes_on_from_is_an_error(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        killed_at(5, "step", patch)
        with pytest.raises(Killed):
            go(tmp_path)
    [path] = tmp_path.glob(f"{name}*.safetensors")
    whole = path.read_bytes()
    for place in (-5, len(whole) // 2, whole.index(b"network.") if name == "checkpoint" else -900):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{path.name}: damaged") as caught:
            go(tmp_path)
        assert "another folder" in caught.value.hint
    path.write_bytes(whole)
    go(tmp_path)
    [path] = tmp_path.glob(f"{name}*.safetensors")
    path.unlink()
    if name == "best":
        with pytest.raises(CheckpointError, match=rf"{path.name}: cannot be read"):
            go(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 0}, "must be positive"),
        ({"clip": 0.0}, "must be positive"),
        ({"patience": 0}, "must be positive"),
        ({"precision": "float8"}, "precision 'float8' does not exist"),
    ],
)
def test_a_setting_that_makes_no_sense_is_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_two_trainings_in_a_folder_are_one_too_many(tmp_path):
    with (
        Run(tmp_path, {"what": "a test"}).alone(),
        pytest.raises(ConfigError, match="another process trains"),
    ):
        go(tmp_path)
    go(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_what_cannot_be_written_is_one_error_and_the_run_goes_on(tmp_path, monkeypatch, uninterrupted):
    written = snapshot.write_safetensors
    count = iter(range(100))

    def full(path, *args, **about):
        if next(count) == 4:
            raise OSError(28, "No space left on device")
        written(path, *args, **about)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write_safetensors", full)
        with pytest.raises(OutputError, match=r"cannot be written .*No space left") as caught:
            go(tmp_path)
    assert "goes on from the last checkpoint" in caught.value.hint
    network, history = go(tmp_path)
    assert same(network, uninterrupted[0])
    assert history.loss == uninterrupted[1].loss


def test_a_best_validation_past_the_checkpoint_is_not_taken(tmp_path, monkeypatch):
    """Killed between the two files, and ended at the checkpoint: the weights are those that it tells of."""

    def loop(steps):
        schedule = Schedule(steps=steps, kind="constant")
        return settings(validate_every=1, save_every=4, schedule=schedule)

    with monkeypatch.context() as patch:
        killed_at(7, "step", patch)
        with pytest.raises(Killed):
            go(tmp_path, loop=loop(STEPS))
    state = json.loads(_metadata(tmp_path / "checkpoint.safetensors")["state"])
    assert state["step"] == 4
    best = max(int(path.stem.partition("-")[2]) for path in tmp_path.glob("best-*.safetensors"))
    assert best > 4
    network, history = go(tmp_path, loop=loop(4))
    assert history.best_step <= 4
    kept = read_sealed(tmp_path / f"best-{history.best_step}.safetensors")[0]
    for name, tensor in kept.items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_a_step_that_cannot_be_read_keeps_what_was_trained(tmp_path):
    class Broken(InMemory):
        def read(self, generator, skip=0):
            yield from islice(super().read(generator, skip), 20)
            raise InputError("the rest is no sequence")

    network = tiny()
    optimizer = torch.optim.AdamW(parameter_groups(network.named_parameters(), 0.1), lr=0.01)
    feed = Feed(corpus=Broken(EXAMPLES), size=120, buffer=10, seed=5)
    with pytest.raises(InputError, match="the rest is no sequence") as caught:
        settings().train(network, objective(), feed, optimizer, run=Run(tmp_path, {}))
    state = json.loads(_metadata(tmp_path / "checkpoint.safetensors")["state"])
    assert state["step"] > 0
    assert f"the {state['step']} steps before it are kept" in caught.value.__notes__[0]


def test_what_is_stopped_at_its_end_ends_as_if_it_had_been_planned_so(tmp_path):
    """Stopped after 5 of 9 steps, then asked for 5: the last step is validated and logged."""

    def loop(steps):
        return settings(schedule=Schedule(steps=steps, kind="constant"), validate_every=0, log_every=4)

    def stop(state):
        signal.raise_signal(signal.SIGTERM)  # which is seen in the step after the line of the log

    with pytest.raises(SystemExit):
        go(tmp_path, loop=loop(STEPS), watch=stop)
    network, history = go(tmp_path, loop=loop(5))
    planned, its_history = go(loop=loop(5))
    assert same(network, planned)
    assert history.validation_steps == its_history.validation_steps == [5]
    assert history.steps == its_history.steps == [4, 5]


def test_patience_needs_something_to_validate_on():
    with pytest.raises(ConfigError, match="patience 2 needs a validation"):
        go(loop=settings(patience=2), held=[])


def test_inputs_that_are_compared_are_never_alone():
    alike = MaskedLetters(Letters(views=2), 24, (4, 5, 6, 7), contrast=1.0)
    for lengths, groups in (
        ([9, 9, 9, 2, 2], [[3, 4, 2], [0, 1]]),
        ([9, 9, 2, 2], [[2, 3], [0, 1]]),
        ([9, 2, 2], [[1, 2, 0]]),
        ([9, 9, 9], [[0, 1, 2]]),
        ([9], [[0]]),
    ):
        found = micro_batches(alike, lengths, 8)
        assert sorted(map(sorted, found)) == sorted(map(sorted, groups)), lengths
        assert micro_batches(objective(), lengths, 8)[0] == [0]


def test_running_statistics_are_those_before_a_failed_step(tmp_path):
    class Normed(Dropping):
        def __init__(self, config):
            super().__init__(config)
            self.statistics = nn.BatchNorm1d(config.dim)

        def logits(self, rows):
            found = super().logits(self.statistics(rows))
            return found * float("nan") if self.broken else found

    config = RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40, contact_head=False)
    network = Normed(config)
    network.initialise(torch.Generator().manual_seed(0))
    network.broken = True
    with pytest.raises(ConfigError, match="became nan"):
        go(network=network, held=[])
    assert torch.equal(network.statistics.running_mean, torch.zeros(16))


def test_what_the_environment_says_of_processes_and_precision(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert first_process()  # a number that some other program left; there is one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not first_process()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="mixed precision 'fp16'"):
        go(loop=settings(precision="auto"))


def cells_with_batches():
    drawn = np.random.default_rng(1)
    return [
        Example(drawn.permutation(20)[:n], drawn.integers(0, 51, n).astype(np.float32), k % 2, k % 3)
        for k, n in enumerate(drawn.integers(6, 14, 24))
    ]


def equipped():
    """scGPT with every head that fine-tuning has a loss for, and a norm for each batch (DSBN)."""
    config = CellConfig(
        vocab_size=24, layers=1, dim=16, heads=2, ffn_dim=16, dropout=0.2, explicit_zero=True, n_cls=3,
        adversary=2, domains=2,
    )  # fmt: skip
    network = ScGPT(config)
    network.initialise(torch.Generator().manual_seed(0))
    return network


def train_cells(folder=None):
    parts = ("expression", "mvc", "zero", "mvc_zero", "classes", "batches", "similarity", "contrast")
    goal = MaskedValues(Genes(cls_id=21, cls_value=-2.0), -1.0, 51, parts=dict.fromkeys(parts, 1.0))
    network, examples = equipped(), cells_with_batches()
    optimizer = torch.optim.AdamW(parameter_groups(network.named_parameters(), 0.1), lr=0.01)
    feed = Feed(corpus=InMemory(examples), size=120, buffer=24, seed=5)
    run = None if folder is None else Run(folder, {})
    history = settings().train(network, goal, feed, optimizer, held=examples[:4], run=run)
    return network, history


def test_scgpt_with_all_its_losses_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole, history = train_cells()
    assert history.loss[-1] < history.loss[0]
    with monkeypatch.context() as patch:
        killed_at(5, "step", patch)
        with pytest.raises(Killed):
            train_cells(tmp_path)
    again, its_history = train_cells(tmp_path)
    assert same(again, whole)  # running statistics among them
    assert its_history.loss == history.loss


def test_batch_norms_are_trained_in_one_process(monkeypatch):
    monkeypatch.setattr("ribozyme.train.training.Workers", lambda device, precision: SimpleNamespace(count=2))
    with pytest.raises(ConfigError, match="trained in one process"):
        train_cells()

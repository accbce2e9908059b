"""Rates against closed forms, and which parameters decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ribozyme.errors import ConfigError
from ribozyme.models.helix.config import Config as HelixConfig
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.rnafm.config import Config as RNAConfig
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.scgpt.config import Config as CellConfig
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.train.schedule import KINDS, Schedule, parameter_groups

CLOSED = {
    "constant": lambda t, n, share: 1.0,
    "linear": lambda t, n, share: (n - t) / n,
    "cosine": lambda t, n, share: math.cos(math.pi * t / n / 2) ** 2,
    "wsd": lambda t, n, share: 1.0 if t <= n - share * n else (n - t) / (share * n),
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    steps=st.integers(2, 500),
    warmup=st.integers(0, 100),
    decay=st.floats(0.01, 1.0),
)
def test_the_rate_rises_linearly_and_then_follows_its_closed_form(kind, steps, warmup, decay):
    schedule = Schedule(steps=steps, kind=kind, warmup=warmup, decay=decay)
    for step in {0, warmup // 2, warmup, (steps + warmup) // 2, steps - 1}:
        past = step - warmup
        if past < 0:
            expected = (step + 1) / (warmup + 1)
        elif steps > warmup:
            expected = CLOSED[kind](past, steps - warmup, decay) if past <= steps - warmup else None
        else:
            expected = None  # all steps are warm-up
        if expected is not None:
            assert schedule.factor(step) == pytest.approx(expected, abs=1e-9)


def test_a_rate_that_falls_is_never_zero_before_the_end():
    for kind in ("linear", "cosine", "wsd"):
        assert Schedule(steps=50, kind=kind, warmup=5).factor(49) > 0
        assert Schedule(steps=50, kind=kind, warmup=5).factor(50) == pytest.approx(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5, "kind": "square"}, "schedule 'square' does not exist"),
        ({"steps": 0}, "makes no sense"),
        ({"steps": 5, "warmup": -1}, "makes no sense"),
        ({"steps": 5, "decay": 1.5}, "makes no sense"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**settings)


NETWORKS = {
    "helix": lambda: HelixMRNA(
        HelixConfig(layout="M+*", dim=16, heads=2, head_dim=16, state=8, attention_heads=4, kv_heads=2)
    ),
    "rnafm": lambda: RNAFM(RNAConfig(layers=1, dim=16, heads=2, ffn_dim=32, positions=40)),
    "scgpt": lambda: ScGPT(CellConfig(vocab_size=30, layers=1, dim=16, heads=2, ffn_dim=16)),
}


@pytest.mark.parametrize("family", NETWORKS)
def test_only_matrices_decay_and_every_parameter_is_in_one_group(family):
    network = NETWORKS[family]()
    network.requires_grad_(True)
    decayed, plain = parameter_groups(network.named_parameters(), 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert sorted(map(id, [*decayed["params"], *plain["params"]])) == sorted(names)
    for parameter in plain["params"]:
        last = names[id(parameter)].rpartition(".")[2]
        assert parameter.ndim == 1
        assert last in ("weight", "bias", "A_log", "D", "dt_bias") or "norm" in names[id(parameter)]
    for parameter in decayed["params"]:
        assert parameter.ndim > 1
        assert not {"A_log", "D", "dt_bias", "bias"} & set(names[id(parameter)].split("."))
    if family == "helix":
        spared = {names[id(p)].rpartition(".")[2] for p in plain["params"]}
        assert {"A_log", "D", "dt_bias"} <= spared


def test_what_is_not_trained_is_in_no_group():
    network = NETWORKS["rnafm"]()
    network.requires_grad_(False)
    network.norm.requires_grad_(True)
    groups = parameter_groups(network.named_parameters(), 0.1)
    assert sum(len(group["params"]) for group in groups) == 2
    torch.optim.AdamW(groups)  # an empty group is no error


@pytest.mark.parametrize(
    ("kind", "done", "steps", "fits"),
    [
        ("constant", 100, 1000, True),
        ("constant", 40, 50, True),
        ("constant", 40, 30, False),
        ("wsd", 64, 200, True),
        ("wsd", 66, 200, False),
        ("cosine", 10, 200, True),
        ("cosine", 12, 200, False),
        ("linear", 50, 200, False),
    ],
)
def test_steps_may_change_while_the_rates_so_far_are_the_same(kind, done, steps, fits):
    """Of 100 steps the first 10 warm up; wsd stays for 54 more."""
    before, after = (Schedule(steps=count, kind=kind, warmup=10, decay=0.4) for count in (100, steps))
    if fits:
        after.check_goes_on(before, done, "run")
        return
    with pytest.raises(ConfigError, match=r"run: \d+ ") as told:
        after.check_goes_on(before, done, "run")
    assert "another rate from step" in str(told.value) or "more than 30" in str(told.value)

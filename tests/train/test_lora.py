import sys

import pytest
import torch

from ribozyme.errors import ConfigError, MissingExtraError
from ribozyme.train.heads import Network, Pooler
from ribozyme.train.inputs import read_inputs
from ribozyme.train.lora import add_lora, is_lora, merge_lora

FAMILIES = ("helix", "rnafm")


@pytest.fixture(params=FAMILIES)
def adapted(request, make_model, sequences):
    """A network with adapters, a batch, and the rows before."""
    pytest.importorskip("peft")
    model = make_model(request.param)
    batch = read_inputs(model, sequences[:4]).pack(range(4))
    before = model.module.encode(batch).detach()
    count = add_lora(model.module, 2, torch.Generator().manual_seed(0))
    assert count == sum(is_lora(name) for name, _ in model.module.named_parameters()) / 2
    return model, batch, before


def test_fresh_adapters_change_nothing_and_learn_everywhere(adapted):
    model, batch, before = adapted
    torch.testing.assert_close(model.module.encode(batch), before, atol=1e-6, rtol=0)
    model.module.encode(batch).square().sum().backward()
    for name, parameter in model.module.named_parameters():
        if ".lora_B." in name:  # the gradient of A is zero as long as B is
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        elif not is_lora(name):
            assert parameter.grad is None, name


def test_merged_adapters_compute_the_same_and_leave_a_plain_network(adapted):
    model, batch, before = adapted
    names = {
        name.replace(".base_layer", "") for name, _ in model.module.named_parameters() if not is_lora(name)
    }
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3, generator=generator)
    changed = model.module.encode(batch).detach()
    assert (changed - before).abs().max() > 0.01
    merge_lora(model.module)
    torch.testing.assert_close(model.module.encode(batch), changed, atol=1e-5, rtol=0)
    assert {name for name, _ in model.module.named_parameters()} == names
    merge_lora(model.module)  # nothing is left to do


def test_only_adapters_and_the_head_are_trained(adapted):
    model, _, _ = adapted
    network = Network(
        model.module, Pooler("mean", model.config.dim, 1, 1), torch.nn.Linear(model.config.dim, 1)
    )
    network.train_layers(0)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert network.adapted
    assert trained == {n for n, _ in network.named_parameters() if is_lora(n) or n.startswith("head.")}


def test_the_generator_draws_the_adapters_and_the_global_one_is_left_alone(make_model):
    pytest.importorskip("peft")
    modules = [make_model("rnafm").module for _ in range(3)]
    state = torch.random.get_rng_state()
    drawn = []
    for module, seed in zip(modules, (0, 0, 1)):
        add_lora(module, 2, torch.Generator().manual_seed(seed))
        drawn.append(torch.cat([p.flatten() for n, p in module.named_parameters() if is_lora(n)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_missing_is_named(make_model, monkeypatch):
    with pytest.raises(ConfigError, match="lora_rank 0"):
        add_lora(make_model("rnafm").module, 0, torch.Generator())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"ribozyme\[lora\]"):
        add_lora(make_model("rnafm").module, 2, torch.Generator())

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.tokenizer import RNA, Tokenizer
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.packing import Packed

WITH_ENCODER = ["rna.pth", "mrna.pth", "mm-2024", "mm-2025-12", "mm-2026-05", "mm-codon"]
PARITY = {"atol": 1e-4, "rtol": 0}  # float32 in another order of sums; measured: 1e-5


def alone(ids: torch.Tensor) -> Packed:
    return Packed.of([ids.numpy()])


@pytest.mark.parametrize("name", WITH_ENCODER)
@torch.no_grad()
def test_every_layer_equals_the_published_program(published, name):
    it = published(name)
    answers = it.answers("layers")
    assert len(answers) == len(it.ids) > 2
    for ids, expected in answers:
        layers = torch.stack([it.module.encode(alone(ids), k) for k in range(it.module.config.layers + 1)])
        assert_close(layers, expected, **PARITY)


@pytest.mark.parametrize("name", WITH_ENCODER)
@torch.no_grad()
def test_logits_equal_the_published_program_in_a_packed_batch(published, name):
    it = published(name)
    batch = Packed.of([ids.numpy() for ids in it.ids])
    logits = batch.split(it.module.logits(it.module.encode(batch)))
    for got, (_, expected) in zip(logits, it.answers("logits"), strict=True):
        assert_close(got, expected, **PARITY)


@pytest.mark.parametrize("name", ["rna.pth", "mrna.pth"])
@torch.no_grad()
def test_attention_and_contact_maps_equal_the_published_program(published, name):
    it = published(name)
    assert it.answers("attentions")
    for ids, expected in it.answers("attentions"):
        assert_close(it.module.attentions(ids), expected, **PARITY)
    assert it.answers("contacts")
    for ids, expected in it.answers("contacts"):
        assert_close(it.module.contacts(ids), expected, **PARITY)


@torch.no_grad()
def test_token_dropout_equals_the_published_program(published):
    it = published("rna.pth")
    it.module.config = replace(it.module.config, token_dropout=True)
    [(ids, expected)] = it.answers("dropped")
    others = [one.numpy() for one in it.ids[:2]]
    batch = Packed.of([*others, ids.numpy()])
    for layer in range(4):
        assert_close(batch.split(it.module.encode(batch, layer))[-1], expected[layer], **PARITY)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 99), data=st.data())
@settings(deadline=None)
@torch.no_grad()
def test_a_sequence_never_sees_its_batch_mates(tiny_module, lengths, seed, data):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(4, 19, (n,), generator=generator).numpy() for n in lengths]
    order = data.draw(st.permutations(range(len(ids))))
    batch = Packed.of([ids[k] for k in order])
    rows = batch.split(tiny_module.encode(batch))
    for place, k in enumerate(order):
        assert_close(rows[place], tiny_module.encode(Packed.of([ids[k]])), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny_module():
    module = RNAFM(Config(layers=2, dim=16, heads=2, ffn_dim=24, positions=64)).eval()
    module.initialise(torch.Generator().manual_seed(0))
    for parameter in module.parameters():
        parameter.data *= 10 if parameter.dim() > 1 else 1  # so that attention is far from even
    return module


@torch.no_grad()
def test_layers_count_from_both_ends(tiny):
    module = tiny()
    batch = alone(torch.arange(4, 12))
    for k in range(3):
        assert_close(module.encode(batch, k), module.encode(batch, k - 3), atol=0, rtol=0)
    for layer in (3, -4):
        with pytest.raises(ConfigError, match=f"layer {layer} does not exist"):
            module.encode(batch, layer)


def test_what_the_checkpoint_lacks_is_an_error_that_says_so(tiny):
    module = tiny(lm_head=False, contact_head=False)
    with pytest.raises(CheckpointError, match="no language-model head"):
        module.logits(torch.zeros(0, 16))
    with pytest.raises(CheckpointError, match="no contact head"):
        module.contacts(torch.arange(4, 12))
    with pytest.raises(CheckpointError, match="no secondary-structure head"):
        module.pair_logits(torch.arange(4, 12))


def test_contacts_say_that_nobody_trained_them():
    assert "never trained" in RNAFM.contacts.__doc__


def test_fresh_weights_repeat_with_the_seed():
    def fresh(seed):
        module = RNAFM(Config(layers=1, dim=40, heads=2, ffn_dim=80, positions=32, structure_blocks=1))
        module.initialise(torch.Generator().manual_seed(seed))
        return module.state_dict()

    one, same, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["tokens.weight"], other["tokens.weight"])
    assert 0.018 < one["layers.0.ffn.up.weight"].std() < 0.022
    assert all(not one[name].any() for name in one if name.endswith("bias"))
    assert all((one[name] == 1).all() for name in one if name.endswith("norm.weight"))


@torch.no_grad()
def test_bfloat16_products_stay_close(tiny):
    exact, rough = tiny(lm_head=True), tiny(lm_head=True)
    set_matmul_dtype(rough, torch.bfloat16)
    ids = torch.arange(4, 19)
    a, b = exact.encode(alone(ids)), rough.encode(alone(ids))
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=1).min() > 0.999
    assert rough.logits(b).dtype == torch.float32
    assert_close(rough.contacts(ids), exact.contacts(ids), atol=0.05, rtol=0)


def test_gradients_reach_every_weight(tiny):
    module = tiny(contact_head=False)
    ids = Tokenizer(RNA).encode("ACGURYKMSWBDHVN-" * 2)
    module.logits(module.encode(Packed.of([ids, ids[:3]]))).logsumexp(-1).sum().backward()
    unused = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@given(data=st.data(), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), layer=st.integers(0, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@torch.no_grad()
def test_some_rows_are_those_of_all(tiny, data, sizes, layer):
    batch = Packed.of([torch.arange(size).numpy() % 9 + 4 for size in sizes])
    rows = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=9)), dtype=torch.int64)
    module = tiny().double()
    found = module.encode(batch, layer, rows=rows)
    assert_close(found, module.encode(batch, layer)[rows], atol=1e-10, rtol=0)


def test_rows_alone_give_the_same_gradients(tiny):
    module, rows = tiny().double(), torch.tensor([3, 0, 7])
    batch = Packed.of([torch.arange(5).numpy() + 4, torch.arange(6).numpy() + 4])
    grads = []
    for out in (module.encode(batch, rows=rows), module.encode(batch)[rows]):
        module.zero_grad()
        out.square().sum().backward()
        grads.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert_close(*grads, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_in_bfloat16_each_product_casts_its_input_at_most_once(tiny, casts):
    module = tiny(layers=1)
    set_matmul_dtype(module, torch.bfloat16)
    x = torch.randn(6, 16)
    with casts:
        out = module.layers[0](x, torch.tensor([0, 2, 6]))
    assert casts.seen == [torch.bfloat16] * 2  # of the normed stream, before qkv and before ffn.up
    assert casts.attention == {torch.bfloat16}
    assert out.dtype == torch.float32


@torch.no_grad()
def test_activations_are_overwritten_only_where_no_gradient_needs_them(tiny):
    ffn, x = tiny().layers[0].ffn, torch.randn(6, 16)
    with torch.enable_grad():
        expected = ffn(x)
    assert_close(ffn(x), expected.detach(), atol=0, rtol=0)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.helix import model as helix
from ribozyme.models.helix.config import Config
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.nn.attention import attention_reference
from ribozyme.nn.conv import causal_conv_reference
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.nn.ssd import ssd_reference
from ribozyme.packing import Packed

TINY = {"dim": 16, "heads": 4, "head_dim": 8, "state": 8, "attention_heads": 4, "kv_heads": 2}
LAYOUTS = ["M+M*M+M+", "MMM", "*", "+"]


def tiny(layout="M+M*M+M+", **changes):
    module = HelixMRNA(Config(layout=layout, **{**TINY, **changes})).eval()
    return randomised(module)


def randomised(module, seed=0):
    """Fresh weights, with norms, biases and decay rates that are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    module.initialise(generator)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            if name.endswith("dt_bias"):
                parameter += 3
    return module


def draw(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return Packed.of([generator.integers(0, 14, length) for length in lengths])


def encode_reference(module, ids):
    """One sequence by the plain forms, in float64."""
    config, cu = module.config, torch.tensor([0, len(ids)])
    h = module.tokens.weight[ids].double()
    for letter, block in zip(config.layout, module.layers):
        w = {name: parameter.double() for name, parameter in block.named_parameters()}
        if letter == "M":
            h = h + mixer_reference(config, w, rms(h, w["norm.weight"]), cu)
        if letter == "*":
            sizes = [count * (config.dim // config.attention_heads) for count in heads_of(config)]
            q, k, v = (rms(h, w["norm1.weight"]) @ w["attention.qkv.weight"].T).split(sizes, -1)
            q, k, v = (m.unflatten(-1, (count, -1)) for m, count in zip((q, k, v), heads_of(config)))
            h = h + attention_reference(q, k, v, cu, causal=True).flatten(1) @ w["attention.out.weight"].T
            h = h + mlp_reference(w, rms(h, w["norm2.weight"]))
        if letter == "+":
            h = h + mlp_reference(w, rms(h, w["norm.weight"]))
    return rms(h, module.norm.weight.double())


def heads_of(config):
    return config.attention_heads, config.kv_heads, config.kv_heads


def mixer_reference(config, w, u, cu):
    z, xBC, dt = (u @ w["mixer.in_proj.weight"].T).split([config.inner, config.conv_dim, config.heads], -1)
    xBC = causal_conv_reference(xBC, w["mixer.conv.weight"][:, 0], w["mixer.conv.bias"], cu, silu=True)
    shared = config.groups * config.state
    x, B, C = xBC.split([config.inner, shared, shared], -1)
    x, B, C = (
        m.unflatten(-1, (count, -1))
        for m, count in ((x, config.heads), (B, config.groups), (C, config.groups))
    )
    dt = F.softplus(dt + w["mixer.dt_bias"])
    y, _ = ssd_reference(x, dt, -w["mixer.A_log"].exp(), B, C, cu)
    y = ((y + w["mixer.D"][:, None] * x).flatten(1) * F.silu(z)).unflatten(-1, (config.groups, -1))
    return rms(y, w["mixer.norm.weight"].view(config.groups, -1)).flatten(1) @ w["mixer.out_proj.weight"].T


def mlp_reference(w, x):
    gate, up = (x @ w["mlp.gate_up.weight"].T).chunk(2, -1)
    return (F.silu(gate) * up) @ w["mlp.down.weight"].T


def rms(x, weight):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def test_the_published_sizes_give_the_published_number_of_weights():
    with torch.device("meta"):
        module = HelixMRNA(Config())
        pure = HelixMRNA(Config(layout="M" * 16, vocab_size=13))
    assert sum(p.numel() for p in module.parameters()) == 5_188_288
    assert sum(p.numel() for p in pure.parameters()) == 7_486_976


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_packed_batch_equals_the_plain_forms(groups):
    module, batch = tiny(groups=groups), draw(1, 200, 64, 3)
    for rows, ids in zip(batch.split(module.encode(batch)), batch.split(batch.ids)):
        assert_close(rows.double(), encode_reference(module, ids), atol=1e-5, rtol=0)


@torch.no_grad()
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_neither_batch_mates_nor_order_matter(lengths, seed):
    module, batch = tiny(), draw(*lengths, seed=seed)
    rows = batch.split(module.encode(batch))
    ids = [one.numpy() for one in batch.split(batch.ids)]
    turned = Packed.of(ids[::-1])
    for one, own, other in zip(ids, rows, reversed(turned.split(module.encode(turned)))):
        assert_close(own, module.encode(Packed.of([one])), atol=1e-5, rtol=0)
        assert_close(own, other, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 63, 64, 65, 150, 199])
def test_a_later_letter_never_changes_an_earlier_row(place):
    module, batch = tiny(), draw(200)
    before = module.encode(batch)
    batch.ids[place] = (batch.ids[place] + 1) % 14
    after = module.encode(batch)
    assert_close(after[:place], before[:place], atol=1e-5, rtol=0)
    assert (after[place:] - before[place:]).abs().amax(-1).min() > 0  # and it is seen by all that follow


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 16, 100, 256])
def test_the_size_of_chunks_does_not_matter(size, monkeypatch):
    module, batch = tiny(), draw(300, 5)
    before = module.encode(batch)
    monkeypatch.setattr(module, "chunk_size", size)
    assert_close(module.encode(batch), before, atol=1e-5, rtol=0)  # other sums, other roundings


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("most", [1, 64, 150])
def test_a_sequence_in_pieces_is_the_whole(most, groups, monkeypatch):
    module, batch = tiny(groups=groups), draw(300, 5, 64, 131)
    rows, state = module.prefill(batch)
    monkeypatch.setattr(helix, "at_once", lambda device: most)
    assert_close(module.encode(batch), rows, atol=1e-5, rtol=0)
    in_pieces, its_state = module.prefill(batch)
    assert_close(in_pieces, rows, atol=1e-5, rtol=0)
    ids = torch.tensor([1, 2, 3, 4])
    assert_close(module.step(its_state, ids), module.step(state, ids), atol=1e-5, rtol=0)


def test_gradients_computed_twice_are_the_same(monkeypatch):
    module, batch = tiny(), draw(150, 30)
    monkeypatch.setattr(helix, "at_once", lambda device: 64)

    def gradients():
        return torch.autograd.grad(module.encode(batch).square().sum(), module.layers.parameters())

    plain = gradients()
    monkeypatch.setattr(helix, "RECOMPUTE", 10)
    assert_close(gradients(), plain, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_chosen_rows_are_those_of_all(layout, layer):
    module, batch = tiny(layout), draw(70, 3, 20)
    rows = torch.tensor([72, 0, 69, 92, 0])
    assert_close(module.encode(batch, layer, rows=rows), module.encode(batch, layer)[rows], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_step_by_step_equals_all_at_once(layout, groups):
    module = tiny(layout, groups=groups)
    short, long = draw(1, 70, 2), draw(41, 110, 42)
    ids = [one.numpy() for one in long.split(long.ids)]
    short = Packed.of([one[:length] for one, length in zip(ids, short.lengths)])
    rows, state = module.prefill(short)
    assert_close(rows, module.encode(short), atol=1e-5, rtol=0)
    stepped = [
        module.step(state, torch.tensor([one[length + k] for one, length in zip(ids, short.lengths)]))
        for k in range(40)
    ]
    expected = long.split(module.encode(long))
    for n, length in enumerate(short.lengths):
        ours = torch.stack([rows[n] for rows in stepped])
        assert_close(ours, expected[n][length : length + 40], atol=1e-5, rtol=0)


@torch.no_grad()
def test_layers_are_the_embeddings_the_stream_and_the_normed_end():
    module, batch = tiny(), draw(5, 9)
    assert_close(module.encode(batch, 0), module.tokens.weight[batch.ids])
    assert_close(module.encode(batch, 8), module.encode(batch, -1), atol=0, rtol=0)
    assert_close(module.encode(batch, -2), module.encode(batch, 7), atol=0, rtol=0)
    for layer in (9, -10):
        with pytest.raises(ConfigError, match=f"layer {layer} does not exist"):
            module.encode(batch, layer)


def test_asking_for_letters_without_a_head_is_an_error():
    with pytest.raises(CheckpointError, match="no language-model head"):
        tiny(head="none").logits(torch.zeros(1, 16))


def test_a_tied_head_is_the_table():
    module, rows = tiny(head="tied"), torch.randn(3, 16)
    assert_close(module.logits(rows), rows @ module.tokens.weight.T)


@torch.no_grad()
def test_step_sizes_keep_their_limits():
    free, tight = tiny(), tiny(time_step_limit=(0.01, 0.02))
    tight.load_state_dict(free.state_dict())
    batch = draw(30)
    assert (free.encode(batch) - tight.encode(batch)).abs().max() > 0.01


@torch.no_grad()
def test_bfloat16_matrices_stay_close():
    module, batch = tiny(), draw(100, 20)
    exact = module.encode(batch)
    set_matmul_dtype(module, torch.bfloat16)
    rough = module.encode(batch)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(exact, rough, dim=-1).min() > 0.99
    assert module.float32_on_cpu


def test_every_weight_gets_a_finite_gradient():
    module, batch = tiny(groups=2).train(), draw(100, 3, 70)
    logits = module.logits(module.encode(batch))
    F.cross_entropy(logits[:-1], batch.ids[1:]).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_gradients_equal_those_of_the_plain_forms(dtype, limit):
    module, batch = tiny().to(dtype), draw(90)
    weights = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    parameters = [p for name, p in module.named_parameters() if name != "lm_head.weight"]
    ours = torch.autograd.grad((module.encode(batch) * weights).sum(), parameters)
    expected = torch.autograd.grad((encode_reference(module, batch.ids) * weights).sum(), parameters)
    for one, other in zip(ours, expected):
        assert_close(one / other.abs().max(), other / other.abs().max(), atol=limit, rtol=0)


def test_fresh_weights_are_the_same_for_the_same_seed():
    first, second = HelixMRNA(Config(**TINY)), HelixMRNA(Config(**TINY))
    for module in (first, second):
        module.initialise(torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    mixer = first.layers[0].mixer
    assert 1 <= mixer.A_log.exp().min() <= mixer.A_log.exp().max() <= 16
    steps = F.softplus(mixer.dt_bias)
    assert 9e-4 <= steps.min() <= steps.max() <= 0.11


def test_generation_repeats_with_its_seed_and_keeps_to_the_letters_allowed():
    module, batch, letters = tiny(), draw(4, 90), torch.tensor([7, 8, 9, 10])
    runs = [module.generate(batch, 12, torch.Generator().manual_seed(s), allowed=letters) for s in (1, 1, 2)]
    assert [one.tolist() for one in runs[0]] == [one.tolist() for one in runs[1]]
    assert [one.tolist() for one in runs[0]] != [one.tolist() for one in runs[2]]
    assert set(torch.cat(runs[0]).tolist()) <= {7, 8, 9, 10}
    assert [len(one) for one in runs[0]] == [12, 12]


def test_the_likeliest_letters_are_those_of_the_logits():
    module, batch, generator = tiny(), draw(6, 30), torch.Generator()
    drawn = module.generate(batch, 5, generator, temperature=0)
    only_one = module.generate(batch, 5, generator, top_k=1)
    assert [one.tolist() for one in drawn] == [one.tolist() for one in only_one]
    for ids, new in zip(batch.split(batch.ids), drawn):
        whole = Packed.of([np.concatenate([ids.numpy(), new.numpy()])])
        with torch.no_grad():
            logits = module.logits(module.encode(whole))
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == new.tolist()


def test_generation_stops_before_its_stop():
    module, batch = tiny(), draw(6, 30)
    free = module.generate(batch, 20, torch.Generator().manual_seed(0))
    stop = int(free[0][3])
    stopped = module.generate(batch, 20, torch.Generator().manual_seed(0), stop_id=stop)
    for one, other in zip(free, stopped):
        assert stop not in other
        assert one[: len(other)].tolist() == other.tolist()


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"temperature": -1.0}, {"top_k": 0}])
def test_generation_without_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be positive"):
        tiny().generate(draw(3), **{"tokens": 3, "generator": torch.Generator(), **wrong})


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("layout", ["M+M*M+M+", "M" * 16])
def test_the_full_size_equals_the_plain_forms(layout):
    module = randomised(HelixMRNA(Config(layout=layout)).eval())
    batch = draw(1, 64, 700, 1500)
    for rows, ids in zip(batch.split(module.encode(batch)), batch.split(batch.ids)):
        assert_close(rows.double(), encode_reference(module, ids), atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_the_full_length_is_causal_and_finite():
    module, batch = randomised(HelixMRNA(Config()).eval()), draw(12_288)
    rows = module.encode(batch)
    assert rows.isfinite().all()
    shorter = Packed.of([batch.ids[:9000].numpy()])
    assert_close(module.encode(shorter), rows[:9000], atol=1e-5, rtol=0)

"""The network against the published code, and what must hold for any batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ribozyme.errors import CheckpointError, InputError
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT, prompted_attention
from ribozyme.nn.attention import attention, attention_reference
from ribozyme.nn.linear import Linear, set_matmul_dtype
from ribozyme.packing import Packed, cumulative

CLOSE = {"atol": 2e-5, "rtol": 0}  # float32 against float64, values up to 20
SAME = {"atol": 1e-5, "rtol": 0}  # float32 against itself in another batch
SMALL = {"vocab_size": 20, "layers": 2, "dim": 16, "heads": 2, "ffn_dim": 24, "n_bins": 8}


def tensors(output):
    """The tensors of an `Output`, by the names of the fixtures."""
    found = {"rows": output.rows, "cell": output.cell, "classes": output.classes}
    found |= {"adversary": output.adversary}
    if output.expression is not None:
        found |= {"expression": output.expression.value, "nonzero": output.expression.nonzero}
    if output.mvc is not None:
        found |= {"mvc": output.mvc.value, "mvc_nonzero": output.mvc.nonzero}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def agree(found, expected):
    assert_close(found, torch.from_numpy(np.asarray(expected)), **CLOSE)


def test_every_layer_equals_the_published_one(case):
    if "layers" not in case.expected:
        pytest.skip("this answer has no layers")
    for layer, rows in enumerate(case.expected["layers"]):
        agree(case.encode(layer), rows)


def test_every_head_equals_the_published_one(case):
    found = tensors(case.run())
    compared = [name for name in found if name in case.expected]
    assert set(case.heads) <= set(compared)
    for name in compared:
        agree(found[name], case.expected[name])


@pytest.mark.parametrize("style", ["avg-pool", "w-pool"])
def test_other_cell_embeddings_equal_the_published_ones_of_single_cells(get_case, style):
    case = get_case("plain")
    found = case.module.cell_embedding(case.batch, style=style, normalise=False)
    agree(found, case.expected[style])


def test_a_cell_embedding_is_its_cls_row_of_length_one(get_case):
    case = get_case("plain")
    expected = torch.from_numpy(case.expected["cell"])
    assert_close(case.module.cell_embedding(case.batch), F.normalize(expected, dim=1), **CLOSE)
    assert_close(case.module.cell_embedding(case.batch, normalise=False), expected, **CLOSE)


def test_generation_from_an_embedding_equals_the_published_one(get_case):
    case = get_case("plain")
    prompts = torch.from_numpy(case.expected["prompts"])
    genes = Packed(case.batch.ids, case.batch.cu_seqlens, case.batch.lengths)
    agree(case.module.generate(prompts, genes).value, case.expected["generated"])
    agree(case.module.generate(prompts, case.batch).value, case.expected["generated_with_values"])


def test_a_second_generative_pass_is_prompted_by_the_cell_of_the_first(get_case):
    case = get_case("generative")
    first = case.run()
    found = tensors(case.run(cell=first.cell))
    for name in ("rows", "expression", "mvc"):
        agree(found[name], case.expected["prompted_" + name])


@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
@settings(deadline=None)
def test_prompted_attention_is_plain_attention_with_each_token_alone(seed, lengths, data):
    known = [data.draw(st.integers(0, n)) for n in lengths]
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, sum(lengths), 2, 4, generator=generator, dtype=torch.float64)
    found = prompted_attention(q, k, v, cumulative(lengths), known)
    start = 0
    for length, count in zip(lengths, known):
        for t in range(length):
            keys = [*range(start, start + count)] + ([start + t] if t >= count else [])
            rows = [start + t] * len(keys)
            one = attention_reference(q[rows], k[keys], v[keys], cumulative([len(keys)]))
            assert_close(found[start + t], one[0])
        start += length


def test_given_genes_never_see_those_to_be_generated_nor_those_each_other(get_case):
    case = get_case("generative")
    before = case.encode()
    places = torch.cat([torch.arange(n) for n in case.batch.lengths])
    known = torch.cat([torch.full((n,), g) for n, g in zip(case.batch.lengths, case.given)])
    last = int((places >= known).nonzero()[-1])
    ids = case.batch.ids.clone()
    ids[last] = (ids[last] + 1) % 50
    batch = Packed(ids, case.batch.cu_seqlens, case.batch.lengths, case.batch.values)
    after = case.module.encode(batch, given=case.given)
    changed = (after - before).abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [last]


def test_values_to_be_generated_are_ignored(get_case):
    case = get_case("generative")
    places = torch.cat([torch.arange(n) for n in case.batch.lengths])
    known = torch.cat([torch.full((n,), g) for n, g in zip(case.batch.lengths, case.given)])
    values = torch.where(places < known, case.batch.values, torch.tensor(7.0))
    batch = Packed(case.batch.ids, case.batch.cu_seqlens, case.batch.lengths, values)
    assert torch.equal(case.module.encode(batch, given=case.given), case.encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_a_cell_never_sees_its_batch_mates(case, order):
    alone = [tensors(case.some([i]).run()) for i in range(4)]
    for name, found in tensors(case.some(order).run()).items():
        assert_close(found, torch.cat([alone[i][name] for i in order]), **SAME)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_genes_means_nothing(get_case, seed):
    case = get_case("plain")
    ids, values = case.batch.split(case.batch.ids), case.batch.split(case.batch.values)
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.cat([torch.zeros(1), 1 + torch.randperm(len(i) - 1, generator=generator)]).long() for i in ids
    ]
    mixed = Packed.of(
        [i[o].numpy() for i, o in zip(ids, orders)], [v[o].numpy() for v, o in zip(values, orders)]
    )
    rows = case.batch.split(case.encode())
    assert_close(case.module.encode(mixed), torch.cat([r[o] for r, o in zip(rows, orders)]), **SAME)


def test_cells_of_mixed_domains_equal_one_domain_at_a_time(get_case):
    case = get_case("batches")
    mixed = case.batch.split(case.encode())
    for domain in (0, 1, 2):
        cells = [i for i, label in enumerate(case.side["labels"].tolist()) if label == domain]
        assert_close(case.some(cells).encode(), torch.cat([mixed[i] for i in cells]), **SAME)


def test_training_updates_the_statistics_of_the_domains_it_saw(fresh_case):
    case = fresh_case("batches")
    before = [norm.running_mean.clone() for norm in case.module.domains.norms]
    module = case.module.train()
    labels = torch.tensor([0, 0, 2, 2])
    module.encode(case.batch, labels=labels)
    assert torch.equal(before[1], module.domains.norms[1].running_mean)
    assert not torch.equal(before[0], module.domains.norms[0].running_mean)


def test_bfloat16_products_keep_the_direction_of_every_cell(case, fresh_case):
    ours = fresh_case(case.name)
    set_matmul_dtype(ours.module, torch.bfloat16)
    found, exact = tensors(ours.run()), tensors(case.run())
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert F.cosine_similarity(found["cell"], exact["cell"]).min() > 0.998


def test_gradients_reach_every_parameter(case, fresh_case, gradients):
    ours = fresh_case(case.name)
    torch.manual_seed(0)
    outputs = tensors(ours.module.train()(ours.batch, heads=every_head(ours), given=ours.given, **ours.side))
    sum(out.square().mean() for name, out in outputs.items()).backward()
    # the published affine decoder has a zero network for its bias that nothing reads
    idle = [n for n, p in ours.module.named_parameters() if p.grad is None]
    assert [n for n in idle if not n.startswith("decoder.bias.nonzero")] == []
    assert all(p.grad.isfinite().all() for p in ours.module.parameters() if p.grad is not None)


def every_head(case):
    config = case.module.config
    has = {"mvc": config.mvc, "classes": config.n_cls, "adversary": config.adversary}
    return ("expression", *(head for head, there in has.items() if there))


def test_reversed_gradients_change_sign_before_the_cell(fresh_case, gradients):
    case = fresh_case("batches")
    cell = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (backward,) = torch.autograd.grad(case.module.discriminate(cell).square().sum(), cell)
    (forward,) = torch.autograd.grad(case.module.discriminator(cell).square().sum(), cell)
    assert_close(backward, -forward)


def test_detached_queries_teach_the_gene_table_nothing(gradients):
    batch = Packed.of([np.array([18, 3, 4])], [np.array([-2.0, 1, 2])])
    for style, taught in (("inner product", True), ("inner product, detach", False)):
        model = ScGPT(Config(**SMALL, mvc_style=style))
        model.mvc(torch.ones(1, 16), batch).value.sum().backward()
        assert (model.genes.table.weight.grad is not None) is taught


@pytest.mark.parametrize(
    ("ask", "part"),
    [
        (lambda m, b: m.mvc(torch.ones(4, 32), b), "mvc_decoder"),
        (lambda m, b: m.discriminate(torch.ones(4, 32)), "grad_reverse_discriminator"),
        (lambda m, b: m.encode(b, given=[1, 1, 1, 1]), "flag_encoder"),
    ],
)
def test_asking_for_a_part_that_a_checkpoint_lacks_names_both(get_case, ask, part):
    case = get_case("category")
    with pytest.raises(CheckpointError, match=rf"category/model.safetensors has no '{part}' tensors"):
        ask(case.module, case.batch)


def test_a_checkpoint_without_a_decoder_or_classifier_says_so(get_case):
    model = ScGPT(Config(**SMALL, decoder="none"))
    batch = Packed.of([np.array([18, 3])], [np.array([-2.0, 1])])
    with pytest.raises(CheckpointError, match="no 'decoder' tensors"):
        model(batch)
    with pytest.raises(CheckpointError, match="no 'cls_decoder' tensors"):
        model(batch, heads=("classes",))


def test_missing_or_unknown_batch_labels_are_told(get_case):
    case = get_case("batches")
    with pytest.raises(InputError, match="needs a batch label for each cell"):
        case.module.encode(case.batch)
    with pytest.raises(InputError, match="from 0 to 3; the model knows 0 to 2"):
        case.module.encode(case.batch, labels=torch.tensor([0, 1, 2, 3]))
    case = get_case("perturbation")
    with pytest.raises(InputError, match="needs a perturbation flag for each token"):
        case.module.encode(case.batch)
    case = get_case("multiomic_kinds")
    with pytest.raises(InputError, match="needs a modality for each token"):
        case.module(case.batch)


def everything() -> Config:
    return Config(**SMALL, domains=2, batches=2, modalities=3, mvc_joint=True, n_cls=3, adversary=2)


def test_starting_weights_repeat_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    states = []
    for seed in (1, 1, 2):
        with torch.device("meta"):
            model = ScGPT(everything())
        model.to_empty(device="cpu")
        model.initialise(torch.Generator().manual_seed(seed))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layers.0.qkv.weight"], states[2]["layers.0.qkv.weight"])
    assert all(tensor.isfinite().all() for tensor in states[0].values())


def test_starting_weights_have_the_published_ranges():
    model = ScGPT(Config(**SMALL, perturbation=True, pert_pad_id=1))
    model.initialise(torch.Generator().manual_seed(0))
    table = model.genes.table.weight
    assert 0.09 < table.abs().max() <= 0.1
    assert not model.perturbations.weight[1].any()
    assert model.perturbations.weight[0].any()
    for part in model.modules():
        if isinstance(part, Linear):
            assert part.weight.abs().max() <= part.in_features**-0.5
    assert not torch.equal(model.layers[0].qkv.weight, model.layers[1].qkv.weight)


def test_dropout_is_of_training_alone(fresh_case):
    case = fresh_case("plain")
    calm = case.encode()
    case.module.train()
    torch.manual_seed(0)
    assert not torch.allclose(case.encode(), calm)
    case.module.eval()
    assert torch.equal(case.encode(), calm)


def test_attention_dropout_zeroes_probabilities_and_scales_the_rest():
    ones = torch.ones(400, 1, 4)
    torch.manual_seed(0)
    mixed = attention(ones, ones, ones, cumulative([400]), dropout=0.5)
    assert mixed.std() > 0
    assert abs(float(mixed.mean()) - 1) < 0.02


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(data=st.data(), layer=st.integers(-1, 2))
def test_some_rows_are_those_of_all(case, data, layer):
    tokens = st.integers(0, len(case.batch.ids) - 1)
    rows = torch.tensor(data.draw(st.lists(tokens, max_size=9)), dtype=torch.int64)
    expected = case.encode(layer)[rows]
    assert_close(case.encode(layer, rows=rows), expected, **SAME)


@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 7.0, 0.3, 511.5, 600.0]), min_size=1, max_size=20)
)
@settings(deadline=None)
def test_a_value_has_one_row_whatever_else_is_in_the_batch(get_case, values):
    encoder, values = get_case("plain").module.values, torch.tensor(values)
    with torch.enable_grad():
        expected = encoder(values)
    assert_close(encoder(values), expected.detach(), atol=1e-6, rtol=1e-6)


def test_in_training_equal_values_are_dropped_apart(fresh_case):
    encoder = fresh_case("plain").module.values
    encoder.dropout.p = 0.5
    encoder.train()
    torch.manual_seed(0)
    first, second = encoder(torch.ones(2))
    assert (first == 0).ne(second == 0).any()


def test_in_bfloat16_each_product_casts_its_input_at_most_once(casts):
    layer, x = ScGPT(Config(**SMALL)).eval().layers[0], torch.randn(6, 16)
    set_matmul_dtype(layer, torch.bfloat16)
    with casts:
        out = layer(x, torch.tensor([0, 2, 6]))
    assert casts.seen == [torch.bfloat16] * 2  # of the stream, before qkv and before up
    assert casts.attention == {torch.bfloat16}
    assert out.dtype == torch.float32


@pytest.mark.slow
def test_the_full_size_network_runs(tmp_path):
    from ribozyme.checkpoint import open_checkpoint
    from ribozyme.models.scgpt import formats
    from ribozyme.models.scgpt.vocab import Vocabulary

    with torch.device("meta"):
        model = ScGPT(Config())
    model.to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(0))
    formats.save(model.eval(), Vocabulary.census(), tmp_path, layout="scgpt")
    again, vocabulary = formats.load(open_checkpoint(tmp_path))
    assert len(vocabulary) == 60_697
    rng = np.random.default_rng(0)
    ids = [np.concatenate([[vocabulary.cls_id], rng.permutation(60_694)[:n]]) for n in (1199, 5)]
    batch = Packed.of(ids, [np.concatenate([[-2.0], rng.integers(1, 51, len(i) - 1)]) for i in ids])
    cell = again.cell_embedding(batch)
    assert_close(cell, model.cell_embedding(batch))
    assert_close(cell.norm(dim=1), torch.ones(2))
    dense = published_layers(again, batch, 0)
    assert_close(again.encode(batch)[:1200], dense, atol=1e-4, rtol=0)


def published_layers(model, batch, cell):
    """The layers by torch's own encoder, in float64."""
    config = model.config
    layer = torch.nn.TransformerEncoderLayer(
        config.dim, config.heads, config.ffn_dim, batch_first=True, dtype=torch.float64
    )
    x = batch.split(model.encode(batch, 0))[cell].double()[None]
    for ours in model.layers:
        state = ours.state_dict()
        names = {
            "qkv.": "self_attn.in_proj_",
            "out.": "self_attn.out_proj.",
            "up.": "linear1.",
            "down.": "linear2.",
        }
        theirs = {}
        for name, tensor in state.items():
            old = next((k for k in names if name.startswith(k)), None)
            theirs[name if old is None else names[old] + name.removeprefix(old)] = tensor.double()
        layer.load_state_dict(theirs)
        x = layer.eval()(x)
    return x[0].float()

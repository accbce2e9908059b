import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ribozyme.checkpoint import open_checkpoint
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.helix.config import Config
from ribozyme.models.helix.formats import LAYOUTS, load, recognises, save
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.helix.tokenizer import HELIX, MAMBA2, Tokenizer
from ribozyme.packing import Packed

FIXTURES = Path(__file__).parents[2] / "fixtures" / "helix"
NAMES = ["hybrid", "mamba-ssm", "pure", "pure-groups"]


def read(folder):
    return load(open_checkpoint(folder))


def expected_of(name):
    expected = load_file(FIXTURES / f"{name}.expected.safetensors")
    count = sum(key.endswith(".ids") for key in expected)
    return [
        {key.partition(".")[2]: t for key, t in expected.items() if key.startswith(f"{k}.")}
        for k in range(count)
    ]


def packed(sequences):
    return Packed.of([one["ids"].numpy() for one in sequences])


@pytest.fixture
def hybrid(tmp_path):
    """A copy of the hybrid as published, and functions to change its tensors and its settings."""
    folder = tmp_path / "hybrid"
    shutil.copytree(FIXTURES / "hybrid", folder)

    class Copy:
        path = folder

        def tensors(self, change):
            save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

        def settings(self, **changes):
            settings = json.loads((folder / "config.json").read_text()) | changes
            left = {key: value for key, value in settings.items() if value is not ...}
            (folder / "config.json").write_text(json.dumps(left))

    return Copy()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_forward(name):
    module, _ = read(FIXTURES / name)
    sequences = expected_of(name)
    batch = packed(sequences)
    rows = module.encode(batch)
    for one, own in zip(sequences, batch.split(rows)):
        assert_close(own, one["last"], atol=1e-4, rtol=0)
        if "logits" in one:
            assert_close(module.logits(own), one["logits"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_equals_the_published_one(name):
    module, _ = read(FIXTURES / name)
    sequences = [one for one in expected_of(name) if "layers" in one]
    batch = packed(sequences)
    for layer in range(module.config.layers + 1):
        for one, own in zip(sequences, batch.split(module.encode(batch, layer))):
            assert_close(own, one["layers"][layer], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hybrid", "pure-groups"])
def test_the_recurrent_form_equals_the_published_forward(name):
    module, _ = read(FIXTURES / name)
    one = next(one for one in expected_of(name) if len(one["ids"]) == 257)
    rows, state = module.prefill(Packed.of([one["ids"][:100].numpy()]))
    stepped = [module.step(state, one["ids"][t : t + 1]) for t in range(100, 257)]
    assert_close(torch.cat([rows, *stepped]), one["last"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_recognised(name):
    assert recognises(open_checkpoint(FIXTURES / name))


def test_other_models_are_not_recognised(tmp_path):
    save_file({"encoder.layers.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert not recognises(open_checkpoint(tmp_path))
    (tmp_path / "config.json").write_text('{"family": "rnafm"}')
    assert not recognises(open_checkpoint(tmp_path))


def test_the_tokenizer_follows_the_kind_of_model():
    assert read(FIXTURES / "hybrid")[1].letters == HELIX
    assert read(FIXTURES / "pure")[1].letters == (*MAMBA2[:12], "")
    assert len(read(FIXTURES / "mamba-ssm")[1].letters) == 16


def same_weights(module, other):
    assert module.config == other.config
    for (name, one), (_, two) in zip(module.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_saving_and_loading_changes_nothing(name, layout, tmp_path):
    module, tokenizer = read(FIXTURES / name)
    save(module, tokenizer, tmp_path, layout=layout)
    again, letters = read(tmp_path)
    same_weights(module, again)
    assert letters.letters == tokenizer.letters


def test_the_published_layout_is_written_as_it_was_read(tmp_path):
    save(*read(FIXTURES / "hybrid"), tmp_path, layout="hf")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, FIXTURES / "hybrid"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    wrote, published = (json.loads((f / "config.json").read_text()) for f in (tmp_path, FIXTURES / "hybrid"))
    assert wrote["layers_block_type_string"] == published["layers_block_type_string"]
    assert wrote["time_step_limit"] == [0.0, math.inf]


def test_a_pure_model_that_reads_codons_keeps_its_tokenizer(tmp_path):
    module = HelixMRNA(Config(layout="MM", dim=16, heads=4, head_dim=8, state=8))
    for layout in LAYOUTS:
        save(module, Tokenizer(HELIX), tmp_path / layout, layout=layout)
        assert read(tmp_path / layout)[1].letters == HELIX


def test_an_mlp_of_another_width_has_no_place_in_the_published_layout(tmp_path):
    module = HelixMRNA(Config(layout="M+", dim=16, heads=4, head_dim=8, state=8, mlp_dim=40))
    save(module, Tokenizer(), tmp_path / "native")
    same_weights(module, read(tmp_path / "native")[0])
    with pytest.raises(CheckpointError, match="MLPs of 4 x dim"):
        save(module, Tokenizer(), tmp_path / "hf", layout="hf")


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="layout 'gguf' does not exist"):
        save(*read(FIXTURES / "pure"), tmp_path, layout="gguf")


def test_without_prefix_head_and_most_settings_it_is_the_same_network(hybrid):
    expected, _ = read(FIXTURES / "hybrid")
    hybrid.tensors(lambda t: {k.removeprefix("backbone."): v for k, v in t.items() if k != "lm_head.weight"})
    unsaid = ("hidden_size", "expand", "num_heads", "head_dim", "state_size", "n_groups", "conv_kernel")
    also = ("layers_block_type_string", "num_hidden_layers", "time_step_limit", "layer_norm_epsilon")
    hybrid.settings(**dict.fromkeys((*unsaid, *also, "use_bias", "use_conv_bias", "vocab_size"), ...))
    module, _ = read(hybrid.path)
    assert module.config.head == "none"
    assert module.lm_head is None
    state = expected.state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_infinity_as_transformers_writes_it_today(hybrid):
    hybrid.settings(time_step_limit=[0.0, {"__float__": "Infinity"}])
    assert read(hybrid.path)[0].config.time_step_limit == (0.0, math.inf)


def test_weights_of_two_bytes_are_read_as_float32(hybrid):
    hybrid.tensors(lambda t: {k: v.bfloat16() for k, v in t.items()})
    module, _ = read(hybrid.path)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_settings_that_nobody_knows_are_not_read(hybrid):
    hybrid.settings(auto_map={"AutoModel": "evil.py"}, intermediate_size=-5)
    same_weights(read(hybrid.path)[0], read(FIXTURES / "hybrid")[0])


def test_a_missing_tensor_is_named(hybrid):
    hybrid.tensors(lambda t: {k: v for k, v in t.items() if not k.endswith("3.self_attn.k_proj.weight")})
    with pytest.raises(CheckpointError, match=r"1 missing: layers.3.attention.k.weight"):
        read(hybrid.path)


def test_a_missing_layer_is_an_error(hybrid):
    hybrid.tensors(lambda t: {k: v for k, v in t.items() if ".layers.6." not in k})
    with pytest.raises(CheckpointError, match=r"missing: layers.6.norm.weight"):
        read(hybrid.path)


def test_a_tensor_too_many_is_named(hybrid):
    hybrid.tensors(lambda t: t | {"backbone.layers.0.mixer.extra.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"1 unused: backbone.layers.0.mixer.extra.weight"):
        read(hybrid.path)


def test_a_wrong_shape_is_named(hybrid):
    hybrid.tensors(lambda t: t | {"backbone.norm_f.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"norm.weight is \(3,\), not \(16,\)"):
        read(hybrid.path)


def test_half_a_block_is_an_error(hybrid):
    hybrid.tensors(lambda t: {k: v for k, v in t.items() if not k.endswith("conv1d.weight")})
    with pytest.raises(CheckpointError, match="incomplete or of another shape"):
        read(hybrid.path)


def test_no_table_is_an_error(hybrid):
    hybrid.tensors(lambda t: {k: v for k, v in t.items() if "embeddings" not in k})
    with pytest.raises(CheckpointError, match=r"no embeddings.weight"):
        read(hybrid.path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 10**9}, "dim 1000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"num_hidden_layers": 7}, "not the length of"),
        ({"layers_block_type_string": "MMXMMMMM"}, "not a string of M"),
        ({"layers_block_type_string": ["M"] * 8}, "not a string of M"),
        ({"num_heads": "4"}, "heads '4'"),
        ({"time_step_limit": "none"}, "not a pair"),
        ({"n_groups": 0}, "groups 0"),
        ({"state_size": 0}, "state 0"),
    ],
)
def test_absurd_settings_are_one_clear_error(hybrid, settings, told):
    hybrid.settings(**settings)
    with pytest.raises(ConfigError, match=told) as caught:
        read(hybrid.path)
    assert "model.safetensors" in caught.value.__notes__[0]


def test_settings_of_another_size_than_the_tensors_are_an_error(hybrid):
    hybrid.settings(state_size=4)
    with pytest.raises((CheckpointError, ConfigError)):
        read(hybrid.path)


def test_a_table_of_words_is_refused(hybrid):
    hybrid.tensors(
        lambda t: t | {k: torch.zeros(50_000, 16) for k in ("backbone.embeddings.weight", "lm_head.weight")}
    )
    hybrid.settings(vocab_size=50_000)
    with pytest.raises(CheckpointError, match="50,000 tokens is not of RNA letters"):
        read(hybrid.path)


def test_a_tied_head_that_differs_is_an_error(hybrid):
    hybrid.settings(tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="should equal"):
        read(hybrid.path)


def test_other_blocks_of_mamba_ssm_are_refused(tmp_path):
    shutil.copytree(FIXTURES / "mamba-ssm", tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_layer_idx": [1]}))
    with pytest.raises(ConfigError, match="attention and MLP blocks of mamba-ssm"):
        read(tmp_path / "copy")


def test_a_newer_format_says_so(tmp_path):
    save(*read(FIXTURES / "pure"), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="format 2 is unknown"):
        read(tmp_path)

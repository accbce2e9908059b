"""Every published layout is read, none in part; what is written is read back."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from ribozyme.checkpoint import Checkpoint, open_checkpoint
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.scgpt import formats
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.vocab import Vocabulary

FLASH = (r"self_attn\.in_proj_", "self_attn.Wqkv.")
IMPL = (r"self_attn\.(in_proj_|out_proj\.)", lambda m: "self_attn._impl." + {"i": "Wqkv."}.get(m[1][0], m[1]))
TDC = (
    r"^(encoder|transformer_encoder|decoder)\.",
    lambda m: {"e": "gene_encoder.", "t": "transformer.", "d": "expr_decoder."}[m[1][0]],
)
LAYOUTS = {
    "torch": (r"^", ""),
    "flash 1": FLASH,
    "flash 2": IMPL,
    "data parallel": (r"^", "module."),
    "tdc": TDC,
}
PAD = 57


def reshaped(case, change, drop=()):
    """The checkpoint of a case with its tensors renamed or left out."""
    checkpoint = open_checkpoint(case.folder)
    pattern, new = change
    tensors = {
        re.sub(pattern, new, name, count=1): tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith(drop)
    }
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["plain", "category"])
def test_every_published_layout_gives_the_same_network(get_case, name, layout):
    case = get_case(name)
    checkpoint = reshaped(case, LAYOUTS[layout])
    assert formats.recognises(checkpoint)
    module, vocabulary = formats.load(checkpoint)
    assert module.config == case.module.config
    assert vocabulary == case.vocabulary
    assert not module.training
    assert_close(module.state_dict(), case.module.state_dict(), atol=0, rtol=0)


def test_the_repacked_layout_has_no_other_heads_and_a_wrong_pad_id(get_case, tmp_path):
    case = get_case("plain")
    shutil.copytree(case.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "args.json").unlink()
    config = {"model_type": "scgpt", "embsize": 32, "nhead": 4, "d_hid": 48, "nlayers": 2, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"cell_emb_style": "cls", "max_seq_len": 1536}))
    checkpoint = reshaped(case, TDC, drop=("cls_decoder", "mvc_decoder", "flag_encoder"))
    save_file(checkpoint.tensors, tmp_path / "model.safetensors")
    module, vocabulary = formats.load(open_checkpoint(tmp_path))
    assert vocabulary.pad_id == PAD
    assert_close(module.encode(case.batch), case.encode())
    with pytest.raises(CheckpointError, match="no 'mvc_decoder' tensors"):
        module.mvc(torch.zeros(4, 32), case.batch)
    with pytest.raises(CheckpointError, match="no 'cls_decoder' tensors"):
        module.classify(torch.zeros(4, 32))


@pytest.mark.parametrize("layout", ["native", "scgpt"])
def test_what_is_saved_is_loaded_again(case, tmp_path, layout):
    formats.save(case.module, case.vocabulary, tmp_path, layout=layout)
    checkpoint = open_checkpoint(tmp_path)
    assert formats.recognises(checkpoint)
    module, vocabulary = formats.load(checkpoint)
    assert module.config == case.module.config
    assert vocabulary == case.vocabulary
    assert_close(module.state_dict(), case.module.state_dict(), atol=0, rtol=0)


def test_the_published_layout_is_written_with_its_own_names(get_case, tmp_path):
    case = get_case("plain")
    formats.save(case.module, case.vocabulary, tmp_path, layout="scgpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "best_model.pt", "vocab.json"]
    written = torch.load(tmp_path / "best_model.pt", weights_only=True)
    expected = reshaped(case, FLASH).tensors
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    args = json.loads((tmp_path / "args.json").read_text())
    assert args.items() >= json.loads((case.folder / "args.json").read_text()).items()


def test_settings_without_a_trace_in_the_tensors_survive_both_layouts(tmp_path):
    small = {"vocab_size": 5, "layers": 1, "dim": 8, "heads": 2, "ffn_dim": 8, "flag": False, "dropout": 0.0}
    configs = [
        Config(**small, mvc_style="inner product, detach", cell_style="avg-pool"),
        Config(**small, decoder="affine", perturbation=True, decoder_activation="Tanh", adaptive_bias=True),
        Config(
            **small, value_style="category", n_bins=9, pad_value=9, mask_value=10, n_cls=2, n_cls_layers=1
        ),
        Config(**small, decoder="none", mvc=False, perturbation=True, pert_pad_id=2),
    ]
    vocabulary = Vocabulary(["A", "B", "<eoc>", "<pad>", "<cls>"])
    for config in configs:
        module = ScGPT(config)
        module.initialise(torch.Generator().manual_seed(0))
        for layout in ("native", "scgpt"):
            folder = tmp_path / str(id(config)) / layout
            formats.save(module, vocabulary, folder, layout=layout)
            assert formats.load(open_checkpoint(folder))[0].config == config


def test_an_unknown_layout_is_refused_before_anything_is_written(get_case, tmp_path):
    case = get_case("plain")
    with pytest.raises(ConfigError, match="layout 'onnx' does not exist"):
        formats.save(case.module, case.vocabulary, tmp_path, layout="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plain", "batches", "multiomic", "perturbation"])
def test_every_tensor_that_is_missing_is_an_error_that_names_it(get_case, name):
    checkpoint = open_checkpoint(get_case(name).folder)
    for gone in checkpoint.tensors:
        rest = {key: tensor for key, tensor in checkpoint.tensors.items() if key != gone}
        if gone in ALONE:
            assert formats.load(replace(checkpoint, tensors=rest))
            continue
        with pytest.raises(CheckpointError, match=r"missing|unused|its tensors have|fit together"):
            formats.load(replace(checkpoint, tensors=rest))


ALONE = {"flag_encoder.weight", "pert_encoder.weight"}
"""Optional parts of a single tensor: a checkpoint without it is one that never had the part."""


def test_a_part_cut_off_at_the_end_is_noticed_by_the_settings(get_case):
    case = get_case("plain")
    cut = reshaped(case, (r"^", ""), drop=("transformer_encoder.layers.1.",))
    with pytest.raises(CheckpointError, match="its tensors have layers 1, but its settings say nlayers 2"):
        formats.load(cut)
    cut = reshaped(case, (r"^", ""), drop=("value_encoder.",))
    cut = replace(cut, config=cut.config | {"input_emb_style": "continuous"})
    with pytest.raises(CheckpointError, match="value_style scaling, but its settings say input_emb_style"):
        formats.load(cut)


def test_a_tensor_of_another_shape_is_named(get_case):
    checkpoint = open_checkpoint(get_case("plain").folder)
    tensors = checkpoint.tensors | {"decoder.fc.2.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"decoder.value.2.weight is \(3, 3\), not \(32, 32\)"):
        formats.load(replace(checkpoint, tensors=tensors))
    tensors = checkpoint.tensors | {"encoder.embedding.weight": torch.zeros(60)}
    with pytest.raises(CheckpointError, match=r"genes.table.weight has shape \(60,\), with too few axes"):
        formats.load(replace(checkpoint, tensors=tensors))


def test_a_tensor_that_nothing_reads_is_named(get_case):
    checkpoint = open_checkpoint(get_case("plain").folder)
    with pytest.raises(CheckpointError, match=r"1 unused: lora\.a"):
        formats.load(replace(checkpoint, tensors=checkpoint.tensors | {"lora.a": torch.zeros(1)}))


def test_two_attentions_in_one_file_are_refused(get_case):
    checkpoint = open_checkpoint(get_case("plain").folder)
    twice = checkpoint.tensors | reshaped(get_case("plain"), FLASH).tensors
    with pytest.raises(CheckpointError, match=r"two tensors for 'layers\.0\.qkv\.(weight|bias)'"):
        formats.load(replace(checkpoint, tensors=twice))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"nheads": 5}, "dim 32 is not a multiple of heads 5"),
        ({"nheads": "many"}, "heads 'many'"),
        ({"dropout": 3}, "dropout 3"),
        ({"pad_value": None}, "pad_value None"),
        ({"pad_token": ["<pad>"]}, r"pad_token \['<pad>'\] is no token"),
        ({"mvc_decoder_style": {}, "cell_emb_style": "best"}, "cell_style 'best'"),
    ],
)
def test_absurd_settings_are_refused(get_case, settings, told):
    checkpoint = open_checkpoint(get_case("plain").folder)
    with pytest.raises(ConfigError, match=told):
        formats.load(replace(checkpoint, config=checkpoint.config | settings))


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"layers": 10**9}, ConfigError, "layers 1000000000"),
        ({"format": 2}, CheckpointError, "config.json has format 2, not 1"),
        ({"colour": "red"}, CheckpointError, "unknown settings: colour"),
        ({"layers": 3}, CheckpointError, "missing: layers.2.qkv.weight"),
        ({"dim": 64}, CheckpointError, "of another shape"),
    ],
)
def test_our_own_config_is_checked(get_case, tmp_path, settings, error, told):
    case = get_case("plain")
    formats.save(case.module, case.vocabulary, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(error, match=told):
        formats.load(replace(checkpoint, config=checkpoint.config | settings))


def test_a_weight_file_named_alone_still_finds_its_settings(get_case):
    case = get_case("plain")
    module, vocabulary = formats.load(open_checkpoint(case.folder / "model.safetensors"))
    assert module.config == case.module.config
    assert vocabulary == case.vocabulary


def test_without_settings_the_published_ones_are_assumed(get_case, tmp_path):
    case = get_case("plain")
    for name in ("model.safetensors", "vocab.json"):
        shutil.copy(case.folder / name, tmp_path)
    config = formats.load(open_checkpoint(tmp_path))[0].config
    assert (config.heads, config.mask_value, config.pad_value, config.n_bins) == (8, -1, -2, 51)


def tiny_census(rows):
    module = ScGPT(Config(vocab_size=rows, layers=1, dim=4, heads=2, ffn_dim=4, mvc=False))
    module.initialise(torch.Generator().manual_seed(0))
    return module


def test_a_checkpoint_of_the_published_size_needs_no_vocabulary(tmp_path):
    formats.save(tiny_census(60_697), Vocabulary.census(), tmp_path, layout="scgpt")
    (tmp_path / "vocab.json").unlink()
    assert formats.load(open_checkpoint(tmp_path))[1] == Vocabulary.census()


def test_a_checkpoint_of_another_size_needs_its_own_vocabulary(get_case, tmp_path):
    case = get_case("plain")
    formats.save(case.module, case.vocabulary, tmp_path, layout="scgpt")
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"no vocab.json beside it names its 60 genes\n  hint: copy"):
        formats.load(open_checkpoint(tmp_path))
    Vocabulary([*case.vocabulary.tokens, "ONE_MORE"]).write(tmp_path / "vocab.json")
    with pytest.raises(CheckpointError, match="60 gene rows, but 61 tokens"):
        formats.load(open_checkpoint(tmp_path))


def test_half_precision_weights_become_float32(get_case):
    checkpoint = open_checkpoint(get_case("batches").folder)
    halves = {k: t.half() if t.is_floating_point() else t for k, t in checkpoint.tensors.items()}
    module, _ = formats.load(replace(checkpoint, tensors=halves))
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_weights_are_not_copied_on_the_way(get_case):
    checkpoint = open_checkpoint(get_case("plain").folder)
    module, _ = formats.load(checkpoint)
    assert module.genes.table.weight.data_ptr() == checkpoint.tensors["encoder.embedding.weight"].data_ptr()


def test_other_families_are_not_recognised(get_case, tmp_path):
    checkpoint = Checkpoint(
        tmp_path / "x.pth", {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(2, 2)}
    )
    assert not formats.recognises(checkpoint)
    named = open_checkpoint(get_case("plain").folder)
    assert not formats.recognises(replace(named, config={"family": "helix"}))


def test_the_published_list_of_tensors_is_complete():
    """The 163 names and shapes of the whole-human `best_model.pt`."""
    d, layers = 512, 12
    expected = {
        "encoder.embedding.weight": (60_697, d),
        "flag_encoder.weight": (2, d),
        "value_encoder.linear1.weight": (d, 1),
        "value_encoder.linear2.weight": (d, d),
        "decoder.fc.0.weight": (d, d),
        "decoder.fc.2.weight": (d, d),
        "decoder.fc.4.weight": (1, d),
        "decoder.fc.4.bias": (1,),
        "mvc_decoder.gene2query.weight": (d, d),
        "mvc_decoder.W.weight": (d, d),
    }
    vectors = ["encoder.enc_norm.weight", "encoder.enc_norm.bias", "mvc_decoder.gene2query.bias"]
    vectors += [f"value_encoder.{part}.bias" for part in ("linear1", "linear2", "norm")]
    vectors += ["value_encoder.norm.weight", "decoder.fc.0.bias", "decoder.fc.2.bias"]
    for i in range(layers):
        layer = f"transformer_encoder.layers.{i}."
        expected |= {layer + "self_attn.Wqkv.weight": (3 * d, d), layer + "self_attn.Wqkv.bias": (3 * d,)}
        for part in ("self_attn.out_proj", "linear1", "linear2"):
            expected[f"{layer}{part}.weight"] = (d, d)
            vectors.append(f"{layer}{part}.bias")
        vectors += [f"{layer}{norm}.{w}" for norm in ("norm1", "norm2") for w in ("weight", "bias")]
    expected |= dict.fromkeys(vectors, (d,))
    tensors = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    assert len(tensors) == 163
    module, vocabulary = formats.load(Checkpoint(Path("best_model.pt"), tensors))
    assert module.config == Config()
    assert len(vocabulary) == 60_697
    classes = {"cls_decoder.out_layer.weight": (177, d), "cls_decoder.out_layer.bias": (177,)}
    for i in range(2):
        classes |= {f"cls_decoder._decoder.{3 * i}.weight": (d, d)}
        classes |= dict.fromkeys([f"cls_decoder._decoder.{3 * i}.bias"], (d,))
        classes |= dict.fromkeys([f"cls_decoder._decoder.{3 * i + 2}.{w}" for w in ("weight", "bias")], (d,))
    tensors |= {name: torch.empty(shape, device="meta") for name, shape in classes.items()}
    assert len(tensors) == 173
    module, _ = formats.load(Checkpoint(Path("original.bin"), tensors))
    assert (module.config.n_cls, module.config.n_cls_layers) == (177, 3)

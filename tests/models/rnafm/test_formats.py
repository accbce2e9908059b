import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ribozyme.checkpoint import Checkpoint, open_checkpoint
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.rnafm import formats
from ribozyme.models.rnafm.tokenizer import MULTIMOLECULE_CODON, MULTIMOLECULE_RNA, RNA, Tokenizer
from ribozyme.packing import Packed

EVERY = [
    "rna.pth",
    "mrna.pth",
    "RNA-FM-ResNet_bpRNA.pth",
    "mm-2024",
    "mm-2025-12",
    "mm-2026-05",
    "mm-codon",
    "mm-ss",
    "mm-ss-2025",
]


def reload(folder):
    return formats.load(open_checkpoint(folder))


def fairseq_tensors(path):
    content = torch.load(path, weights_only=False)
    return {name.removeprefix("encoder.encoder."): t for name, t in content.get("model", content).items()}


def edited(source, target, change):
    """A copy of a folder whose tensors went through `change`."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("name", EVERY)
def test_every_layout_is_recognised(fixtures, name):
    assert formats.recognises(open_checkpoint(fixtures / name))


def test_other_models_are_not_claimed(tmp_path):
    tensors = {
        "model.embeddings.word_embeddings.weight": torch.ones(3, 2),
        "encoder.embedding.weight": torch.ones(2),
    }
    for config in ({}, {"model_type": "utrlm"}, {"family": "helix"}):
        assert not formats.recognises(Checkpoint(tmp_path, tensors, config))


def test_sizes_and_vocabulary_are_those_of_the_file(published):
    rna, mrna, old, new, codon = (
        published(name).module.config for name in ("rna.pth", "mrna.pth", "mm-2024", "mm-2026-05", "mm-codon")
    )
    assert (rna.layers, rna.dim, rna.heads, rna.ffn_dim, rna.positions) == (3, 24, 4, 56, 40)
    assert (rna.vocabulary, rna.embed_norm, rna.max_letters) == (RNA, True, 36)
    assert (len(mrna.vocabulary), mrna.embed_norm, mrna.codon) == (73, False, True)
    assert old.vocabulary[-4:] == ("X", "*", "-", "I")
    assert not old.codon  # its config.json says the opposite
    assert new.vocabulary == MULTIMOLECULE_RNA
    assert (codon.vocabulary, codon.embed_norm) == (MULTIMOLECULE_CODON, False)


@pytest.mark.parametrize("name", ["mm-2024", "mm-2025-12"])
def test_the_wrong_eps_of_older_folders_is_read_as_that_of_the_training(published, name):
    it = published(name)
    assert json.loads((it.path / "config.json").read_text())["layer_norm_eps"] == 1e-12
    assert it.module.config.eps == 1e-5


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_what_is_saved_loads_as_the_same_model(published, name, tmp_path):
    it = published(name)
    formats.save(it.module, it.tokenizer, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert formats.recognises(checkpoint)
    module, tokenizer = formats.load(checkpoint)
    assert module.config == it.module.config
    assert tokenizer.letters == it.tokenizer.letters
    before, after = it.module.state_dict(), module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["rna.pth", "mrna.pth"])
@torch.no_grad()
def test_a_conversion_keeps_every_row_and_comes_back(published, name, tmp_path):
    it = published(name)
    formats.save(it.module, it.tokenizer, tmp_path / "mm", layout="multimolecule")
    there, tokenizer = reload(tmp_path / "mm")
    assert len(tokenizer.letters) == (131 if it.module.config.codon else 28)
    sequence = "AUGGCCNNNUGA" if it.module.config.codon else "ACGURYKMSWBDHVN-XI"  # X, I and NNN are unknown
    a, b = (
        m.encode(Packed.of([[*t.prefix, *t.encode(sequence), *t.suffix]]))
        for m, t in ((it.module, it.tokenizer), (there, tokenizer))
    )
    assert_close(a, b, atol=0, rtol=0)
    formats.save(there, tokenizer, tmp_path / "back", layout="fairseq")
    [path] = (tmp_path / "back").iterdir()
    old, new = fairseq_tensors(it.path), fairseq_tensors(path)
    assert old.keys() == new.keys()
    kept = [
        k for k, token in enumerate(it.tokenizer.letters) if token not in ("<null_1>", "<null_2>", "<null_3>")
    ]
    for key, tensor in old.items():
        rows = kept if key in ("embed_tokens.weight", "lm_head.weight", "lm_head.bias") else ...
        assert torch.equal(tensor[rows], new[key][rows]), key


@pytest.mark.parametrize("name", ["rna.pth", "mrna.pth", "RNA-FM-ResNet_bpRNA.pth"])
def test_the_authors_layout_is_written_as_it_was_read(published, name, tmp_path):
    it = published(name)
    formats.save(it.module, it.tokenizer, tmp_path, layout="fairseq")
    [path] = tmp_path.iterdir()
    assert "RNA-FM" in path.name  # the authors' loader insists
    old, new = fairseq_tensors(it.path), fairseq_tensors(path)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert reload(path)[0].config == it.module.config


@pytest.mark.parametrize("name", ["mm-2024", "mm-2026-05", "mm-codon"])
def test_multimolecule_folders_are_written_in_todays_generation(published, name, tmp_path, fixtures):
    it = published(name)
    formats.save(it.module, it.tokenizer, tmp_path, layout="multimolecule")
    today = fixtures / ("mm-codon" if name == "mm-codon" else "mm-2026-05")
    tensors, model = load_file(tmp_path / "model.safetensors"), load_file(today / "model.safetensors")
    assert {key: t.shape for key, t in tensors.items()} == {key: t.shape for key, t in model.items()}
    assert (tmp_path / "vocab.txt").read_bytes() == (today / "vocab.txt").read_bytes()
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, today))
    assert {key: value for key, value in ours.items() if value != theirs.get(key)} == {}


def test_the_secondary_structure_network_changes_between_layouts(published, tmp_path):
    it = published("RNA-FM-ResNet_bpRNA.pth")
    formats.save(it.module, it.tokenizer, tmp_path, layout="multimolecule")
    module, tokenizer = reload(tmp_path)
    assert module.contact is None  # both heads have one name there
    ids = [torch.tensor([*t.prefix, *t.encode("GGGAAACCC"), *t.suffix]) for t in (it.tokenizer, tokenizer)]
    assert_close(it.module.pair_logits(ids[0]), module.pair_logits(ids[1]), atol=0, rtol=0)


@pytest.mark.parametrize("prefix", ["encoder.encoder.", "encoder.sentence_encoder.", "encoder.", ""])
@pytest.mark.parametrize("around", ["args", "cfg", "model", "bare"])
def test_the_authors_files_are_read_with_any_prefix_and_any_wrapping(published, prefix, around, tmp_path):
    it = published("rna.pth")
    content = torch.load(it.path, weights_only=False)
    state = {prefix + name: t for name, t in fairseq_tensors(it.path).items()}
    wrapped = {key: content[key] for key in ("args", "cfg") if key == around} | {"model": state}
    torch.save(state if around == "bare" else wrapped, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert formats.recognises(checkpoint)
    module, _ = formats.load(checkpoint)
    assert module.config == it.module.config  # without settings, the contact head tells the number of heads


def test_settings_with_the_prefix_of_fairseq_are_understood(published, tmp_path):
    it = published("rna.pth")
    content = torch.load(it.path, weights_only=False)
    vars(content["args"])["encoder_attention_heads"] = vars(content["args"]).pop("attention_heads")
    content["model"] = {k: v for k, v in content["model"].items() if "contact_head" not in k}
    torch.save(content, tmp_path / "x.pth")
    module, _ = formats.load(open_checkpoint(tmp_path / "x.pth"))
    assert module.config.heads == 4
    assert module.contact is None


def test_the_mask_row_that_the_authors_loader_zeroes_comes_from_the_head(published, tmp_path):
    it = published("rna.pth")
    content = torch.load(it.path, weights_only=False)
    content["model"]["encoder.encoder.embed_tokens.weight"][24] = 0
    torch.save(content, tmp_path / "x.pth")
    module, _ = formats.load(open_checkpoint(tmp_path / "x.pth"))
    assert torch.equal(module.tokens.weight, it.module.tokens.weight)
    content["model"]["encoder.encoder.embed_tokens.weight"][7] = 0
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"should equal 'tokens\.weight' and does not"):
        formats.load(open_checkpoint(tmp_path / "x.pth"))


def test_tied_copies_in_a_folder_must_be_copies(fixtures, tmp_path):
    def copies(tensors):
        tensors["lm_head.decoder.weight"] = tensors["model.embeddings.word_embeddings.weight"].clone()
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()

    def no_copy(tensors):
        tensors["lm_head.decoder.weight"] += 1

    good = edited(fixtures / "mm-2026-05", tmp_path / "good", copies)
    assert reload(good)[0].lm_head is not None
    with pytest.raises(CheckpointError, match=r"lm_head.decoder.weight' should equal"):
        reload(edited(good, tmp_path / "bad", no_copy))


@torch.no_grad()
def test_a_folder_of_the_encoder_alone_embeds(published, fixtures, tmp_path):
    def encoder_alone(tensors):
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name.startswith("model."):
                tensors[name.removeprefix("model.")] = tensor
        tensors["pooler.dense.weight"] = torch.zeros(24, 24)

    module, tokenizer = reload(edited(fixtures / "mm-2026-05", tmp_path / "x", encoder_alone))
    it = published("mm-2026-05")
    batch = Packed.of([it.ids[1].numpy()])
    assert_close(module.encode(batch), it.module.encode(batch), atol=0, rtol=0)
    with pytest.raises(CheckpointError, match="no language-model head"):
        module.logits(module.encode(batch))
    formats.save(module, tokenizer, tmp_path / "again", layout="multimolecule")
    assert reload(tmp_path / "again")[0].lm_head is None
    with pytest.raises(CheckpointError, match="needs the language-model head"):
        formats.save(module, tokenizer, tmp_path / "fs", layout="fairseq")


def test_half_precision_files_load_as_float32(fixtures, tmp_path):
    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].half()

    module, _ = reload(edited(fixtures / "mm-2026-05", tmp_path / "x", halve))
    assert {p.dtype for p in module.parameters()} == {torch.float32}


FFN = "model.encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(FFN), "missing: layers.1.ffn.up.weight"),
        (
            lambda t: t.pop("model.encoder.layer.0.attention.self.key.bias"),
            "missing: layers.0.attention.k.bias",
        ),
        (lambda t: t.pop("lm_head.bias"), "missing: lm_head.bias"),
        (lambda t: t.pop("model.embeddings.position_embeddings.weight"), "no table for positions.weight"),
        (lambda t: t.pop("model.embeddings.word_embeddings.weight"), "not a layout of RNA-FM"),
        (lambda t: t.update({FFN: torch.ones(56, 23)}), "layers.1.ffn.up.weight is (56, 23), not (56, 24)"),
        (
            lambda t: t.update({"model.encoder.layer.0.attention.self.key.weight": torch.ones(24, 23)}),
            "missing: layers.0.attention.qkv.weight",
        ),
        (
            lambda t: t.update({"sequence_head.decoder.weight": torch.ones(1)}),
            "unused: sequence_head.decoder.weight",
        ),
        (
            lambda t: t.update({"model.embeddings.word_embeddings.weight": torch.ones(27, 24)}),
            "28 tokens, but",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(fixtures, tmp_path, change, told):
    folder = edited(fixtures / "mm-2026-05", tmp_path / "x", change)
    with pytest.raises(CheckpointError) as caught:
        reload(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "error", "told"),
    [
        ({"num_hidden_layers": 4}, CheckpointError, "missing: layers.3."),
        ({"num_hidden_layers": 2}, CheckpointError, "unused: layers.2."),
        ({"hidden_size": 10**9}, ConfigError, "dim 1000000000 is not a whole number"),
        ({"num_attention_heads": 7}, ConfigError, "dim 24 is not a multiple of heads 7"),
        ({"num_attention_heads": 6}, CheckpointError, "contact.weight is (1, 12), not (1, 18)"),
        ({"layer_norm_eps": "small"}, ConfigError, "eps 'small'"),
        ({"hidden_act": "relu"}, ConfigError, "hidden_act is 'relu'; RNA-FM has 'gelu'"),
        ({"is_decoder": True}, ConfigError, "is_decoder is True"),
    ],
)
def test_settings_that_do_not_fit_are_named(fixtures, tmp_path, stated, error, told):
    folder = tmp_path / "x"
    shutil.copytree(fixtures / "mm-2026-05", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | stated))
    with pytest.raises(error) as caught:
        reload(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no vocab.txt beside it"),
        ("A\nC", "2 tokens, but the weights have rows for 28"),
        ("\n".join(["A"] * 28), "a token twice"),
        ("x" * 1_000_001, "too large for a vocabulary"),
    ],
)
def test_a_folder_needs_its_own_vocabulary(fixtures, tmp_path, text, told):
    folder = tmp_path / "x"
    shutil.copytree(fixtures / "mm-2026-05", folder)
    (folder / "vocab.txt").unlink()
    if text is not None:
        (folder / "vocab.txt").write_text(text)
    with pytest.raises((CheckpointError, ConfigError), match=told):
        reload(folder)


def test_a_table_of_another_alphabet_is_refused(published, tmp_path):
    content = torch.load(published("rna.pth").path, weights_only=False)
    name = "encoder.encoder.embed_tokens.weight"
    content["model"][name] = torch.ones(33, 24)
    torch.save(content, tmp_path / "esm.pth")
    with pytest.raises(CheckpointError, match="a table of 33 tokens; RNA-FM has 25, mRNA-FM 73"):
        formats.load(open_checkpoint(tmp_path / "esm.pth"))


@pytest.mark.parametrize(
    ("stated", "error", "told"),
    [
        ({"format": 2}, CheckpointError, "format 2 is unknown"),
        ({"dropout": 0.1}, ConfigError, "unknown settings: dropout"),
        ({"ffn_dim": 57}, CheckpointError, "layers.0.ffn.up.weight is (56, 24), not (57, 24)"),
    ],
)
def test_our_own_folders_are_checked_alike(published, tmp_path, stated, error, told):
    it = published("rna.pth")
    formats.save(it.module, it.tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | stated))
    with pytest.raises(error) as caught:
        reload(tmp_path)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_damaged_tensors_are_an_error_or_no_matter_but_never_a_crash(fixtures, name, data):
    whole = open_checkpoint(fixtures / name)
    tensors = dict(whole.tensors)
    victim = data.draw(st.sampled_from(sorted(tensors)))
    shape = data.draw(st.lists(st.integers(0, 30), max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.int8, torch.int64, torch.bool]))
    other = data.draw(st.sampled_from([victim, "x", victim + ".0", victim.replace(".0.", ".999999.")]))
    tensors[other] = data.draw(
        st.sampled_from(
            [torch.zeros(shape, dtype=dtype), tensors[victim].to(dtype), tensors[victim].flatten()]
        )
    )
    try:
        module, _ = formats.load(replace(whole, tensors=tensors))
    except (CheckpointError, ConfigError):
        return
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_strange_settings_are_an_error_or_no_matter_but_never_a_crash(fixtures, data):
    whole = open_checkpoint(fixtures / data.draw(st.sampled_from(["mm-2024", "mm-ss", "rna.pth"])))
    key = data.draw(st.sampled_from(sorted(whole.config)))
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({})
    config = {**whole.config, key: data.draw(plain)}
    with contextlib.suppress(CheckpointError, ConfigError):
        formats.load(replace(whole, config=config))


def test_an_unknown_layout_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="layout 'onnx' does not exist"):
        formats.save(tiny(), Tokenizer(RNA), tmp_path, layout="onnx")

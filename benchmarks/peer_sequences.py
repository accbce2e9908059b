"""Make one full-size checkpoint with random weights, and the answers of the program that has its layout.

    pip install rna-fm==0.2.2 multimolecule==0.2.2 transformers==5.23.0   # in an environment of its own
    python peer_sequences.py LAYOUT FOLDER

Reads FOLDER/sequences.json, a list of sequences in A C G U. Writes the weights beside it and
`expected.safetensors` (float32, as the program runs) and `exact.safetensors` (float64), keys as in
tests/fixtures, versions in the metadata. One sequence at a time: nothing is padded. From an empty list it
makes the weights alone.

Nothing of ribozyme is imported: weights and answers come from the peer alone.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
MAPS_UP_TO = 100  # letters; attention maps of all layers grow with their square
MAMBA2 = {letter: 7 + k for k, letter in enumerate("ACGUN")}


def main(layout: str, folder: Path) -> None:
    torch.set_grad_enabled(False)
    sequences = json.loads((folder / "sequences.json").read_text())
    kind, _, form = layout.replace(".", " ").partition(" ")
    if form == "pth":
        versions = make_fairseq(kind, folder, sequences)
    elif kind in ("rnafm", "mrnafm"):
        versions = make_multimolecule(kind, folder, sequences)
    else:
        versions = make_mamba2(folder, sequences) if kind == "mamba2" else make_hybrid(folder, sequences)
    print(versions)


def save(path: Path, answers: dict[str, Tensor], *packages: str, **more: str) -> dict[str, str]:
    """Write float32 answers; the double ones lose nothing that a difference of 1e-7 would show."""
    versions = {name: version(name) for name in packages} | {"torch": torch.__version__} | more
    small = {
        k: t.float().contiguous() if t.is_floating_point() else t.contiguous() for k, t in answers.items()
    }
    save_file(small, path, metadata=versions)
    return versions


# ----------------------------------------------------------------------------------------------- RNA-FM


def table_scale(dim: int) -> float:
    """So that logits are as large as in the tiny networks and in trained ones, some 20, for any width."""
    return float((24 / dim) ** 0.5)


def make_fairseq(kind: str, folder: Path, sequences: list[str]) -> dict[str, str]:
    """The authors' `.pth` and package; float32, `nn.functional.multi_head_attention_forward`."""
    import make_rnafm
    from fm.pretrained import load_model_and_alphabet_core

    codon = kind == "mrnafm"
    published = {"layers": 12, "embed_dim": 1280 if codon else 640, "ffn_embed_dim": 5120}
    make_rnafm.SIZES.update(published, attention_heads=20, max_positions=1024)
    weights = make_rnafm.fairseq_weights(73 if codon else 25, not codon, seed=1)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        weights[name] *= table_scale(published["embed_dim"])
    content = make_rnafm.fairseq_file(weights)
    path = folder / ("mRNA-FM_pretrained.pth" if codon else "RNA-FM_pretrained.pth")
    if kind != "rnafm-ss":
        torch.save(content, path)
        content = torch.load(path, weights_only=False)
    model, alphabet = load_model_and_alphabet_core(
        path.stem, content, {"model": {}}, "rna-3mer" if codon else "rna"
    )
    model.eval()
    ids = fairseq_ids(alphabet, sequences) if sequences else []
    if kind == "rnafm-ss":
        return make_structure(folder, model, alphabet, ids)

    def compute(tokens: Tensor) -> dict[str, Tensor]:
        maps = tokens.shape[1] <= MAPS_UP_TO
        out = model(tokens, repr_layers=range(13), need_head_weights=maps, return_contacts=maps)
        layers = torch.stack([out["representations"][k] for k in range(13)], 1)
        maps_of = {"attentions": out["attentions"], "contacts": out["contacts"]} if maps else {}
        return {"layers": layers, "logits": out["logits"], **maps_of}

    versions = save(folder / "expected.safetensors", make_rnafm.answers(ids, compute), "rna-fm")
    model.double()
    save(folder / "exact.safetensors", make_rnafm.answers(ids, compute), "rna-fm")
    return versions


def fairseq_ids(alphabet, sequences: list[str]) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """The tokens of each sequence."""
    _, _, batch = alphabet.get_batch_converter()([("", s) for s in sequences])
    return [row[row != alphabet.padding_idx] for row in batch]


def make_structure(folder: Path, backbone, alphabet, ids: list[Tensor]) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """The authors' secondary-structure network, as its `.pth` is published."""
    import make_rnafm
    from fm.downstream.pairwise_predictor.pairwise_concat import PairwiseConcatWithResNet

    head = PairwiseConcatWithResNet(backbone.args, alphabet, 1, symmetric=True, embed_reduction=128).eval()
    make_rnafm.randomise(head, 3)
    for name, weight in head.named_parameters():
        if name.endswith("conv2.weight"):
            weight *= 0.1  # else 32 random blocks on top of each other give scores of thousands
    prefix = "downstream_modules.pc-resnet_1_sym_first:r-ss."
    state = {f"backbone.{k}": v.clone() for k, v in backbone.state_dict().items()}
    torch.save(
        state | {prefix + k: v.clone() for k, v in head.state_dict().items()},
        folder / "RNA-FM-ResNet_bpRNA.pth",
    )

    def compute(tokens: Tensor) -> dict[str, Tensor]:
        rows = backbone(tokens, repr_layers=[12])["representations"][12]
        return {"pairs": head(tokens, {"embedding": rows}).reshape(1, *[tokens.shape[1] - 2] * 2)}

    short = [one for one in ids if len(one) < 400]
    versions = save(folder / "expected.safetensors", make_rnafm.answers(short, compute), "rna-fm")
    backbone.double()
    head.double()
    save(folder / "exact.safetensors", make_rnafm.answers(short, compute), "rna-fm")
    return versions


def make_multimolecule(kind: str, folder: Path, sequences: list[str]) -> dict[str, str]:
    """A folder as `save_pretrained` writes it today."""
    import make_rnafm
    from multimolecule import RnaFmConfig, RnaFmForPreTraining, RnaTokenizer

    codon = kind == "mrnafm"
    config = RnaFmConfig(codon=True, embed_norm=False, hidden_size=1280) if codon else RnaFmConfig()
    model = RnaFmForPreTraining(config).eval()
    make_rnafm.randomise(model, 1)
    model.get_input_embeddings().weight *= table_scale(config.hidden_size)
    model.save_pretrained(folder / "weights")
    tokenizer = RnaTokenizer(codon=codon)
    (folder / "weights" / "vocab.txt").write_text("\n".join(tokenizer.get_vocab()), encoding="utf-8")
    ids = [torch.tensor(tokenizer(s)["input_ids"]) for s in sequences]

    def compute(tokens: Tensor) -> dict[str, Tensor]:
        out = model.model(tokens, output_hidden_states=True)
        layers = torch.stack([*out.hidden_states[: config.num_hidden_layers], out.last_hidden_state], 1)
        return {"layers": layers, "logits": model.lm_head(model.model(tokens)).logits}

    names = "multimolecule", "transformers"
    form = {"attention": str(config._attn_implementation)}
    versions = save(folder / "expected.safetensors", make_rnafm.answers(ids, compute), *names, **form)
    model.double()
    save(folder / "exact.safetensors", make_rnafm.answers(ids, compute), *names)
    return versions


# ------------------------------------------------------------------------------------------------ Helix


def make_mamba2(folder: Path, sequences: list[str]) -> dict[str, str]:
    """transformers' Mamba2 in its torch form; in float64, the definition in make_helix.py."""
    import make_helix
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        num_hidden_layers=16,
        hidden_size=256,
        num_heads=16,
        head_dim=32,
        state_size=128,
        n_groups=1,
        vocab_size=13,
        pad_token_id=4,
        bos_token_id=2,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = Mamba2ForCausalLM(config).eval()
    make_helix.randomise(dict(model.named_parameters()), 1)
    model.save_pretrained(folder / "weights")
    ids = [torch.tensor([MAMBA2[letter] for letter in s]) for s in sequences]
    answers = [make_helix.run_transformers(model, one) for one in ids]
    tensors = {k.removeprefix("backbone."): t.double() for k, t in model.state_dict().items()}
    settings = config.to_dict() | {"time_step_limit": config.time_step_limit}
    exact = [make_helix.run_definition(tensors, settings, one) for one in ids]
    head = tensors["lm_head.weight"]
    versions = save(folder / "expected.safetensors", keyed(ids, answers), "transformers")
    save(
        folder / "exact.safetensors",
        keyed(ids, [(rows, rows[-1] @ head.T) for rows in exact]),
        "transformers",
    )
    return versions


def make_hybrid(folder: Path, sequences: list[str]) -> dict[str, str]:
    """No published program is right: the definition in make_helix.py answers, token by token, in float64."""
    import make_helix

    sizes = {"hidden_size": 256, "num_heads": 16, "head_dim": 32, "state_size": 128}
    make_helix.HYBRID.update(sizes, num_attention_heads=32, num_key_value_heads=8)
    tensors = {key: torch.zeros(shape) for key, shape in make_helix.hybrid_shapes().items()}
    make_helix.randomise(tensors, 4)
    weights = folder / "weights"
    weights.mkdir()
    published = {key if key.startswith("lm_head") else f"backbone.{key}": t for key, t in tensors.items()}
    save_file(published, weights / "model.safetensors", metadata={"format": "pt"})
    (weights / "config.json").write_text(json.dumps(make_helix.HYBRID, indent=2) + "\n")
    ids = [torch.tensor([MAMBA2[letter] for letter in s]) for s in sequences]
    double = {key: tensor.double() for key, tensor in tensors.items()}
    layers = [make_helix.run_definition(double, make_helix.HYBRID, one) for one in ids]
    answers = [(rows, rows[-1] @ double["lm_head.weight"].T) for rows in layers]
    return save(folder / "expected.safetensors", keyed(ids, answers))


def keyed(ids: list[Tensor], answers: list[tuple[list[Tensor], Tensor]]) -> dict[str, Tensor]:
    """Keys as in tests/fixtures/helix."""
    out: dict[str, Tensor] = {}
    for k, (one, (layers, logits)) in enumerate(zip(ids, answers)):
        out |= {
            f"{k}.ids": one,
            f"{k}.last": layers[-1],
            f"{k}.logits": logits,
            f"{k}.layers": torch.stack(layers),
        }
    return out


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

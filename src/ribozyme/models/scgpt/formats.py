"""The published layouts of scGPT checkpoints as data, and our own.

Read: whatever `best_model.pt` the published code has ever written (attention as `Wqkv`, `_impl.Wqkv` or
`in_proj_`, with or without `module.`), the re-packed `tdc/scGPT`, and our folders. The parts and sizes of a
network are read off its tensors, the rest off `args.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ribozyme.checkpoint import Checkpoint, KeyMap, read_json, shapes_of, write_folder
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.files import AtomicFile
from ribozyme.models.scgpt.config import Config
from ribozyme.models.scgpt.model import ScGPT
from ribozyme.models.scgpt.parts import Shapes, parts
from ribozyme.models.scgpt.vocab import CENSUS_SIZE, PAD, Vocabulary

Layout = Literal["native", "scgpt"]
FORMAT = 1

ENCODER = {
    "encoder.embedding.weight": "genes.table.weight",
    "encoder.enc_norm.{w}": "genes.norm.{w}",
    "flag_encoder.weight": "flags.weight",
    "pert_encoder.weight": "perturbations.weight",
    "bn.{w}": "input_norm.{w}",
    "dsbn.bns.{i}.{w}": "domains.norms.{i}.{w}",
    "transformer_encoder.layers.{i}.self_attn.Wqkv.{w}": "layers.{i}.qkv.{w}",
    "transformer_encoder.layers.{i}.self_attn.out_proj.{w}": "layers.{i}.out.{w}",
    "transformer_encoder.layers.{i}.linear1.{w}": "layers.{i}.up.{w}",
    "transformer_encoder.layers.{i}.linear2.{w}": "layers.{i}.down.{w}",
    "transformer_encoder.layers.{i}.norm1.{w}": "layers.{i}.norm1.{w}",
    "transformer_encoder.layers.{i}.norm2.{w}": "layers.{i}.norm2.{w}",
}
VALUES = {
    "continuous": {
        "value_encoder.linear1.{w}": "values.up.{w}",
        "value_encoder.linear2.{w}": "values.down.{w}",
        "value_encoder.norm.{w}": "values.norm.{w}",
    },
    "category": {
        "value_encoder.embedding.weight": "values.table.weight",
        "value_encoder.enc_norm.{w}": "values.norm.{w}",
    },
    "scaling": {},
}
HEADS = {
    "batch_encoder.embedding.weight": "batches.table.weight",
    "batch_encoder.enc_norm.{w}": "batches.norm.{w}",
    "mod_encoder.embedding.weight": "modalities.table.weight",
    "mod_encoder.enc_norm.{w}": "modalities.norm.{w}",
    "decoder.fc.{i}.{w}": "decoder.value.{i}.{w}",
    "decoder.zero_logit.{i}.{w}": "decoder.nonzero.{i}.{w}",
    "decoder.coeff_decoder.fc.{i}.{w}": "decoder.coeff.value.{i}.{w}",
    "decoder.coeff_decoder.zero_logit.{i}.{w}": "decoder.coeff.nonzero.{i}.{w}",
    "decoder.bias_decoder.fc.{i}.{w}": "decoder.bias.value.{i}.{w}",
    "decoder.bias_decoder.zero_logit.{i}.{w}": "decoder.bias.nonzero.{i}.{w}",
    "mvc_decoder.{part}.{w}": "mvc_decoder.{part}.{w}",
    "cls_decoder._decoder.{i}.{w}": "classifier.layers.{i}.{w}",
    "cls_decoder.out_layer.{w}": "classifier.out.{w}",
    "grad_reverse_discriminator._decoder.{i}.{w}": "discriminator.layers.{i}.{w}",
    "grad_reverse_discriminator.out_layer.{w}": "discriminator.out.{w}",
}
OTHER_ATTENTION = {
    "transformer_encoder.layers.{i}.self_attn._impl.Wqkv.{w}": "layers.{i}.qkv.{w}",
    "transformer_encoder.layers.{i}.self_attn._impl.out_proj.{w}": "layers.{i}.out.{w}",
    "transformer_encoder.layers.{i}.self_attn.in_proj_{w}": "layers.{i}.qkv.{w}",
}
TDC = {
    "gene_encoder.embedding.weight": "genes.table.weight",
    "gene_encoder.enc_norm.{w}": "genes.norm.{w}",
    "transformer.layers.{i}.self_attn.in_proj_{w}": "layers.{i}.qkv.{w}",
    "transformer.layers.{i}.self_attn.out_proj.{w}": "layers.{i}.out.{w}",
    "transformer.layers.{i}.linear1.{w}": "layers.{i}.up.{w}",
    "transformer.layers.{i}.linear2.{w}": "layers.{i}.down.{w}",
    "transformer.layers.{i}.norm1.{w}": "layers.{i}.norm1.{w}",
    "transformer.layers.{i}.norm2.{w}": "layers.{i}.norm2.{w}",
    "expr_decoder.fc.{i}.{w}": "decoder.value.{i}.{w}",
    "expr_decoder.zero_logit.{i}.{w}": "decoder.nonzero.{i}.{w}",
}
PUBLISHED = KeyMap(
    strip=("module.",),
    rename=ENCODER | VALUES["continuous"] | VALUES["category"] | HEADS | OTHER_ATTENTION | TDC,
)

ARGS = {
    "nheads": "heads",
    "nhead": "heads",
    "dropout": "dropout",
    "mask_value": "mask_value",
    "pad_value": "pad_value",
    "n_bins": "n_bins",
    "cell_emb_style": "cell_style",
    "mvc_decoder_style": "mvc_style",
    "decoder_activation": "decoder_activation",
    "decoder_adaptive_bias": "adaptive_bias",
    "zero_genes": "zero_genes",
    "batch_names": "batch_names",
    "class_names": "class_names",
}
"""Settings that leave no trace in the tensors: published name to ours (the last three are ours in both). All
others are left alone, among them `pad_token_id`, which is wrong in `tdc/scGPT`: special tokens are those of
the vocabulary."""

BORNE_OUT = {
    "embsize": "dim",
    "d_hid": "ffn_dim",
    "nlayers": "layers",
    "input_emb_style": "value_style",
}
"""Settings that the tensors must bear out, so that a file cut short is noticed."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these are the weights of an scGPT model, in any layout."""
    if "family" in checkpoint.config:
        return checkpoint.config["family"] == "scgpt"
    names = PUBLISHED.names(checkpoint.tensors)
    return "genes.table.weight" in names and "genes.norm.weight" in names


def load(checkpoint: Checkpoint) -> tuple[ScGPT, Vocabulary]:
    """The network, ready for inference, and its vocabulary.

    Raises
    ------
    CheckpointError : a tensor is missing, unused or misshapen; the vocabulary is missing or of another size.
    ConfigError : the settings make no sense.
    """
    native = checkpoint.config.get("family") == "scgpt"
    config = _native_config(checkpoint) if native else _published_config(checkpoint)
    vocabulary = _vocabulary(checkpoint, config)
    with torch.device("meta"):
        module = ScGPT(config)
    expected = shapes_of(module)
    keys = KeyMap(rename={name: name for name in expected}) if native else PUBLISHED
    state = {name: _float32(tensor) for name, tensor in keys.apply(checkpoint, expected).items()}
    module.load_state_dict(state, assign=True)
    module.source = str(checkpoint.path)
    return module.eval(), vocabulary


def save(module: ScGPT, vocabulary: Vocabulary, folder: Path, layout: Layout = "native") -> None:
    """Write a folder: ours (safetensors), or `scgpt`, which the published code reads (flash layout)."""
    if layout == "native":
        config = {"family": "scgpt", "format": FORMAT, "pad_token": vocabulary.pad, **asdict(module.config)}
        write_folder(folder, module.state_dict(), config)
    elif layout == "scgpt":
        folder.mkdir(parents=True, exist_ok=True)
        rename = ENCODER | VALUES[module.config.value_style] | HEADS
        state = KeyMap(rename=rename).invert(module.state_dict())
        with AtomicFile(folder / "best_model.pt") as temporary:
            torch.save({name: tensor.detach().cpu() for name, tensor in state.items()}, temporary)
        with AtomicFile(folder / "args.json") as temporary:
            temporary.write_text(json.dumps(_args(module.config, vocabulary), indent=2), encoding="utf-8")
    else:
        raise ConfigError(f"layout {layout!r} does not exist", hint="one of native, scgpt")
    vocabulary.write(folder / "vocab.json")


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _args(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    ours = asdict(config)
    args = {published: ours[name] for published, name in (BORNE_OUT | ARGS).items() if published != "nhead"}
    return args | {"n_layers_cls": config.n_cls_layers, "pad_token": vocabulary.pad}


def _vocabulary(checkpoint: Checkpoint, config: Config) -> Vocabulary:
    pad = checkpoint.config.get("pad_token", PAD)
    if not isinstance(pad, str):
        raise ConfigError(f"pad_token {pad!r} is no token")
    if (path := checkpoint.side_file("vocab.json")) is not None:
        vocabulary = Vocabulary.read(path, pad=pad)
    elif config.vocab_size == CENSUS_SIZE:
        vocabulary = Vocabulary.census()
    else:
        raise CheckpointError(
            f"{checkpoint.path}: no vocab.json beside it names its {config.vocab_size:,} genes",
            hint="copy the vocab.json that belongs to these weights into the same folder",
        )
    if len(vocabulary) != config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: {config.vocab_size:,} gene rows, but {len(vocabulary):,} tokens in {path}",
            hint="the vocab.json belongs to other weights",
        )
    return vocabulary


def _native_config(checkpoint: Checkpoint) -> Config:
    content = {k: v for k, v in checkpoint.config.items() if k not in ("family", "pad_token")}
    if (version := content.pop("format", None)) != FORMAT:
        raise CheckpointError(
            f"{checkpoint.path}: config.json has format {version!r}, not {FORMAT}",
            hint="a newer ribozyme wrote it: upgrade",
        )
    known = {field.name for field in fields(Config)}
    if unknown := sorted(set(content) - known):
        raise CheckpointError(f"{checkpoint.path}: config.json has unknown settings: {', '.join(unknown)}")
    return _checked(content, checkpoint)


def _published_config(checkpoint: Checkpoint) -> Config:
    """Sizes and parts from the tensors, the rest from `args.json`."""
    settings = _settings(checkpoint)
    shapes = {
        ours: tuple(checkpoint.tensors[name].shape)
        for ours, name in PUBLISHED.names(checkpoint.tensors).items()
    }
    found = parts(Shapes(checkpoint.path, shapes))
    if (
        found["value_style"] == "category"
    ):  # the published code gives pad and mask the two rows after the bins
        found |= {"pad_value": found["n_bins"], "mask_value": found["n_bins"] + 1}
    if found["perturbation"]:
        found["pert_pad_id"] = _zero_row(checkpoint)
    _fit_together(found, checkpoint)
    for published, ours in BORNE_OUT.items():
        if published in settings and settings[published] != found[ours]:
            raise CheckpointError(
                f"{checkpoint.path}: its tensors have {ours} {found[ours]}, but its settings "
                f"say {published} {settings[published]!r}",
                hint="tensors are missing, or the settings belong to other weights",
            )
    told = {ours: settings[published] for published, ours in ARGS.items() if published in settings}
    if found["mvc_style"] == "inner product" and told.get("mvc_style") == "inner product, detach":
        del found["mvc_style"]  # all styles but this show in the tensors
    return _checked(told | found, checkpoint)


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.config:
        return checkpoint.config
    path = checkpoint.side_file("args.json")  # the weight file was named, not its folder
    return {} if path is None else read_json(path)


def _fit_together(found: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Whether there is a network with these parts at all."""
    try:
        Config(**(dict(found) | {"heads": 1}))
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint.path}: the tensors do not fit together: {error.message}",
            hint="the file is incomplete or of another model",
        ) from error


def _checked(settings: Mapping[str, Any], checkpoint: Checkpoint) -> Config:
    try:
        return Config(**settings)
    except ConfigError as error:
        error.add_note(f"in the settings of {checkpoint.path}")
        raise


def _zero_row(checkpoint: Checkpoint) -> int:
    """The row of the perturbation table that was held at zero (by default the unperturbed one)."""
    name = PUBLISHED.names(checkpoint.tensors)["perturbations.weight"]
    table = checkpoint.tensors[name]
    rows = table[:3] if table.dim() else ()
    return next((i for i, row in enumerate(rows) if not row.any()), 0)

"""The layouts in which Helix-mRNA weights are published, and ours.

- native: `config.json` with `"family": "helix"`, `model.safetensors` with the names of `model.py`
- hf: as on the Hub; the hybrid has `layers_block_type_string`, the pure model is transformers' Mamba2
- mamba-ssm: `pytorch_model.bin` of its MambaLMHeadModel (read only)

Sizes come from the settings where they are stated, else from the shapes of the tensors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ribozyme.checkpoint import AtomicFile, Checkpoint, Fuse, KeyMap, read_json, shapes_of, write_folder
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.models.helix.config import MOST_LAYERS, Config, time_step_limit
from ribozyme.models.helix.model import HelixMRNA
from ribozyme.models.helix.tokenizer import HELIX, MAMBA2, Tokenizer

Layout = Literal["native", "hf"]
LAYOUTS: tuple[Layout, ...] = ("native", "hf")
FORMAT = 1
MOST_TOKENS = 256  # a larger table is a model of something else

MAMBA = {
    "norm.weight": "norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.in_proj.bias": "mixer.in_proj.bias",
    "mixer.conv1d.weight": "mixer.conv.weight",
    "mixer.conv1d.bias": "mixer.conv.bias",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.norm.weight": "mixer.norm.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.out_proj.bias": "mixer.out_proj.bias",
}
MLP = {
    "feed_forward.gate_proj.weight": "mlp.gate.weight",
    "feed_forward.up_proj.weight": "mlp.up.weight",
    "feed_forward.down_proj.weight": "mlp.down.weight",
}
BLOCKS: dict[str, dict[str, str]] = {
    "M": MAMBA,
    "+": {"input_layernorm.weight": "norm.weight", **MLP},
    "*": {
        "input_layernorm.weight": "norm1.weight",
        "self_attn.q_proj.weight": "attention.q.weight",
        "self_attn.k_proj.weight": "attention.k.weight",
        "self_attn.v_proj.weight": "attention.v.weight",
        "self_attn.o_proj.weight": "attention.out.weight",
        "pre_ff_layernorm.weight": "norm2.weight",
        **MLP,
    },
}
"""Published name inside a block to ours, by the letter of the block."""

HF_SETTINGS = {
    "hidden_size": "dim",
    "expand": "expand",
    "num_heads": "heads",
    "head_dim": "head_dim",
    "state_size": "state",
    "n_groups": "groups",
    "conv_kernel": "conv_kernel",
    "num_attention_heads": "attention_heads",
    "num_key_value_heads": "kv_heads",
    "vocab_size": "vocab_size",
    "layer_norm_epsilon": "eps",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
}
MAMBA_SSM_SETTINGS = {
    "d_state": "state",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "headdim": "head_dim",
    "ngroups": "groups",
    "bias": "bias",
    "conv_bias": "conv_bias",
}


def keys(config: Config, table: str = "embeddings.weight") -> KeyMap:
    """The published layout of a network of these sizes; mamba-ssm calls the `table` `embedding.weight`."""
    blocks = {
        f"layers.{i}.{theirs}": f"layers.{i}.{ours}"
        for i, letter in enumerate(config.layout)
        for theirs, ours in BLOCKS[letter].items()
    }
    head = {"lm_head.weight": "lm_head.weight"} if config.head != "tied" else {}
    share = config.attention_heads // config.kv_heads
    return KeyMap(
        strip=("backbone.",),
        rename={table: "tokens.weight", "norm_f.weight": "norm.weight", **blocks, **head},
        fuse={
            "layers.{i}.mlp.gate_up.weight": Fuse(
                ("layers.{i}.mlp.gate.weight", "layers.{i}.mlp.up.weight"), (1, 1)
            ),
            "layers.{i}.attention.qkv.weight": Fuse(
                tuple(f"layers.{{i}}.attention.{p}.weight" for p in "qkv"), (share, 1, 1)
            ),
        },
        tied={"lm_head.weight": "tokens.weight"} if config.head == "tied" else {},
    )


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these weights are of this family."""
    if "family" in checkpoint.config:
        return checkpoint.config["family"] == "helix"
    return any(re.fullmatch(r"(backbone\.)?layers\.\d+\.mixer\.A_log", name) for name in checkpoint.tensors)


def load(checkpoint: Checkpoint) -> tuple[HelixMRNA, Tokenizer]:
    """The network and its tokenizer from any layout.

    Raises
    ------
    CheckpointError : a tensor is missing, of another shape, or unknown; the layout is not understood.
    ConfigError : the settings beside the weights make no sense.
    """
    try:
        native = "family" in checkpoint.config
        config, vocabulary, keymap = _native(checkpoint) if native else _published(checkpoint)
    except ConfigError as error:
        error.add_note(f"in the settings of {checkpoint.path}")
        raise
    with torch.device("meta"):
        module = HelixMRNA(config)
    same = KeyMap(rename={name: name for name in shapes_of(module)})
    state = (keymap or same).apply(checkpoint, shapes_of(module))
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return module.eval(), Tokenizer(vocabulary)


def save(module: HelixMRNA, tokenizer: Tokenizer, folder: Path, layout: Layout = "native") -> None:
    """Write a folder: `native`, or `hf` as published on the Hub.

    Raises
    ------
    CheckpointError : the layout has no place for this network.
    """
    config, state = (
        module.config,
        {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()},
    )
    if layout == "native":
        settings = {"family": "helix", "format": FORMAT, **config.to_dict()}
        write_folder(folder, state, {**settings, "vocabulary": list(tokenizer.letters)})
    elif layout == "hf":
        tensors = keys(config).invert(state)
        if "backbone.lm_head.weight" in tensors:
            tensors["lm_head.weight"] = tensors.pop(
                "backbone.lm_head.weight"
            )  # beside the backbone, not in it
        write_folder(folder, tensors, _hf_config(config, tokenizer))
        with AtomicFile(folder / "tokenizer_config.json") as temporary:
            temporary.write_text(json.dumps(_hf_tokenizer(tokenizer), indent=2), encoding="utf-8")
    else:
        raise ConfigError(f"layout {layout!r} does not exist", hint=f"one of {', '.join(LAYOUTS)}")


# reading

Read = tuple[Config, Sequence[str], KeyMap | None]


def _native(checkpoint: Checkpoint) -> Read:
    settings = {name: value for name, value in checkpoint.config.items() if name != "family"}
    if (version := settings.pop("format", None)) != FORMAT:
        raise CheckpointError(
            f"{checkpoint.path}: format {version!r} is unknown, this version reads {FORMAT}",
            hint="a newer ribozyme wrote it: pip install --upgrade ribozyme",
        )
    vocabulary = settings.pop("vocabulary", None)
    config = Config.from_dict(settings)
    if not isinstance(vocabulary, list) or not all(type(token) is str for token in vocabulary):
        raise ConfigError("the settings have no vocabulary")
    if len(vocabulary) != config.vocab_size:
        raise ConfigError(f"the vocabulary has {len(vocabulary)} tokens, vocab_size is {config.vocab_size}")
    return config, vocabulary, None


def _published(checkpoint: Checkpoint) -> Read:
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in checkpoint.tensors.items()}
    table = next((name for name in ("embeddings.weight", "embedding.weight") if name in tensors), None)
    if table is None:
        raise CheckpointError(f"{checkpoint.path}: no embeddings.weight: not a whole model of this family")
    settings = checkpoint.config
    measured = _measured(checkpoint, tensors, table)
    mamba_ssm = "d_model" in settings
    stated = _mamba_ssm_settings(settings) if mamba_ssm else _hf_settings(settings)
    if type(state := stated.get("state")) is int and state > 0:
        measured["groups"] = max(1, measured["state"] // state)
    tied = bool(settings.get("tie_embeddings", True) if mamba_ssm else settings.get("tie_word_embeddings"))
    head = "tied" if tied else "own" if "lm_head.weight" in tensors else "none"
    config = Config(**{**measured, **stated, "head": head})
    return config, _vocabulary(checkpoint, config), keys(config, table)


def _measured(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], table: str) -> dict[str, Any]:
    """Sizes that the shapes tell, as if there were one group of heads."""
    layout = _layout_of(tensors)
    mixer = f"layers.{layout.find('M')}.mixer."
    try:
        vocab_size, dim = tensors[table].shape
        conv_dim, _, conv_kernel = tensors[mixer + "conv1d.weight"].shape
        [inner], [heads] = tensors[mixer + "norm.weight"].shape, tensors[mixer + "A_log"].shape
        state = (conv_dim - inner) // 2
        sizes = {"expand": inner // dim, "head_dim": inner // heads}
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: the tensors of a Mamba-2 block are incomplete or of another shape ({error})",
            hint="the file is incomplete, or of another model",
        ) from error
    if (gate := tensors.get(f"layers.{layout.find('+')}.feed_forward.gate_proj.weight")) is not None:
        sizes["mlp_dim"] = 0 if len(gate) == 4 * dim else len(gate)
    return {
        "layout": layout,
        "dim": dim,
        "heads": heads,
        "state": state,
        "groups": 1,
        "conv_kernel": conv_kernel,
        "vocab_size": vocab_size,
        "bias": mixer + "in_proj.bias" in tensors,
        "conv_bias": mixer + "conv1d.bias" in tensors,
        **sizes,
    }


def _layout_of(names: Mapping[str, Tensor]) -> str:
    found: dict[int, str] = {}
    for name in names:
        if (match := re.fullmatch(r"layers\.(\d{1,6})\.(\w+)\..+", name)) is not None:
            number, part = int(match[1]), match[2]
            if part == "mixer" or part == "self_attn":
                found[number] = "M" if part == "mixer" else "*"
            elif part == "feed_forward":
                found.setdefault(number, "+")
    return "".join(letter for _, letter in sorted(found.items()))


def _hf_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    stated = {ours: settings[theirs] for theirs, ours in HF_SETTINGS.items() if theirs in settings}
    if "time_step_limit" in settings:
        stated["time_step_limit"] = time_step_limit(settings["time_step_limit"])
    if "layers_block_type_string" in settings:
        stated["layout"] = settings["layers_block_type_string"]
    if (layers := settings.get("num_hidden_layers")) is not None:
        if type(layers) is not int or not 0 < layers <= MOST_LAYERS:
            raise ConfigError(f"num_hidden_layers {layers!r} is not a whole number from 1 to {MOST_LAYERS}")
        stated.setdefault("layout", "M" * layers)
        if isinstance(stated["layout"], str) and len(stated["layout"]) != layers:
            raise ConfigError(f"num_hidden_layers {layers} is not the length of {stated['layout']!r}")
    return stated


def _mamba_ssm_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    block = settings.get("ssm_cfg") or {}
    if not isinstance(block, dict) or block.get("layer", "Mamba2") != "Mamba2":
        raise ConfigError("ssm_cfg is not that of a Mamba2 model")
    if settings.get("attn_layer_idx") or settings.get("d_intermediate"):
        raise ConfigError("attention and MLP blocks of mamba-ssm are not read, only those of Helix-mRNA")
    stated = {ours: block[theirs] for theirs, ours in MAMBA_SSM_SETTINGS.items() if theirs in block}
    if "dt_limit" in block:
        stated["time_step_limit"] = time_step_limit(block["dt_limit"])
    return {"dim": settings["d_model"], **stated}


def _vocabulary(checkpoint: Checkpoint, config: Config) -> tuple[str, ...]:
    """The published tokens, by the tokenizer beside the weights or else by the kind of model."""
    if config.vocab_size > MOST_TOKENS:
        raise CheckpointError(
            f"{checkpoint.path}: a table of {config.vocab_size:,} tokens is not of RNA letters"
        )
    tokens = HELIX if set(config.layout) != {"M"} else MAMBA2
    if (path := checkpoint.side_file("tokenizer_config.json")) is not None:
        added = read_json(path).get("added_tokens_decoder")
        first = added.get("0") if isinstance(added, dict) else None
        if isinstance(first, dict):
            tokens = {"[CLS]": MAMBA2, "[BOS]": HELIX}.get(str(first.get("content")), tokens)
    used = len(tokens) - (tokens[-1] == "")
    if config.vocab_size < used:
        raise CheckpointError(
            f"{checkpoint.path}: a table of {config.vocab_size} tokens, but the letters need {used}"
        )
    return (*tokens[:used], *[""] * (config.vocab_size - used))


# writing


def _hf_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    hybrid = set(config.layout) != {"M"}
    if hybrid and config.ffn_dim != 4 * config.dim:
        raise CheckpointError("the published layout has MLPs of 4 x dim, and this network has others")
    kind = "Model" if config.head == "none" else "ForCausalLM"
    return {
        "model_type": "mamba2",
        "architectures": [f"HelixmRNA{kind}" if hybrid else f"Mamba2{kind}"],
        **({"layers_block_type_string": config.layout} if hybrid else {}),
        **{theirs: getattr(config, ours) for theirs, ours in HF_SETTINGS.items()},
        "num_hidden_layers": config.layers,
        "time_step_limit": list(config.time_step_limit),
        "tie_word_embeddings": config.head == "tied",
        "hidden_act": "silu",
        "rms_norm": True,
        "residual_in_fp32": True,
        "chunk_size": 256,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.sep_id,
        "torch_dtype": "float32",
    }


def _hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    special = {str(k): token for k, token in enumerate(tokenizer.letters) if token.startswith("[")}
    return {
        "tokenizer_class": "CharTokenizer",
        "characters": [token for token in tokenizer.letters if len(token) == 1],
        "added_tokens_decoder": {k: {"content": token, "special": True} for k, token in special.items()},
        "padding_side": "left",
        **{f"{name}_token": f"[{name.upper()}]" for name in ("bos", "sep", "cls", "pad", "mask", "unk")},
        "eos_token": "[SEP]",
    }

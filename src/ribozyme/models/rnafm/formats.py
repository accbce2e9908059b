"""The layouts in which RNA-FM weights are published, and ours.

- native: `config.json` with `"family": "rnafm"`, `model.safetensors` with the names of `model.py`
- fairseq: the authors' `.pth`; the secondary-structure network is a `.pth` of its own kind
- multimolecule: folders of MultiMolecule, all generations since 2024; the vocabulary is in `vocab.txt`

Layer sizes come from the settings where there are any, else from the shapes of the tensors.
"""

import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ribozyme.checkpoint import Checkpoint, KeyMap, shapes_of, write_folder
from ribozyme.errors import CheckpointError, ConfigError
from ribozyme.files import AtomicFile
from ribozyme.models.rnafm.config import Config
from ribozyme.models.rnafm.layouts import (
    FAIRSEQ,
    FAIRSEQ_SETTINGS,
    FAIRSEQ_STRUCTURE,
    MULTIMOLECULE,
    MULTIMOLECULE_SETTINGS,
    ONLY,
    TABLE,
)
from ribozyme.models.rnafm.model import RNAFM
from ribozyme.models.rnafm.structure import THRESHOLDS
from ribozyme.models.rnafm.tokenizer import (
    CODON,
    MULTIMOLECULE_CODON,
    MULTIMOLECULE_RNA,
    RNA,
    Tokenizer,
    reads_codons,
)

Layout = Literal["native", "fairseq", "multimolecule"]
FORMAT = 1
EPS = 1e-5  # of the network as trained; folders before May 2026 state 1e-12, wrongly


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether these weights are of this family."""
    settings = checkpoint.config
    for key in ("family", "model_type"):
        if key in settings:
            return settings[key] == "rnafm"
    ours = FAIRSEQ.names(name.removeprefix("backbone.") for name in checkpoint.tensors)
    return "layers.0.attention.q.weight" in ours or "rnafm." + TABLE in checkpoint.tensors


def load(checkpoint: Checkpoint) -> tuple[RNAFM, Tokenizer]:
    """The network and its tokenizer from any layout.

    Raises
    ------
    CheckpointError : a tensor is missing, of another shape, or unknown; the layout is not understood.
    ConfigError : the settings beside the weights make no sense.
    """
    settings = checkpoint.config
    if "family" in settings:
        config, state = _read_native(checkpoint, settings)
    elif any(name.endswith("embed_tokens.weight") for name in checkpoint.tensors):
        config, state = _read_fairseq(checkpoint, settings)
    else:
        config, state = _read_multimolecule(checkpoint, settings)
    with torch.device("meta"):
        module = RNAFM(config)
    module.load_state_dict(_float32(checkpoint.path, state), assign=True)
    return module.eval(), Tokenizer(config.vocabulary)


def save(module: RNAFM, tokenizer: Tokenizer, folder: Path, layout: Layout = "native") -> None:
    """Write a folder in one of the layouts.

    `fairseq` writes the `.pth` that the authors' package loads (the secondary-structure kind if the network
    has that head), `multimolecule` what MultiMolecule reads since May 2026. Each has its own vocabulary. A
    token that ours lacks takes the values of `<unk>`, as which the network has read it so far: a converted
    network gives the same embeddings. Of the fillers `<null_1>` ... `<null_4>`, MultiMolecule keeps the last.

    Raises
    ------
    CheckpointError : the layout has no place for this network.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    if layout == "native":
        write_folder(folder, state, {"family": "rnafm", "format": FORMAT, **module.config.to_dict()})
    elif layout == "fairseq":
        _write_fairseq(module.config, state, folder)
    elif layout == "multimolecule":
        _write_multimolecule(module.config, state, folder)
    else:
        raise ConfigError(f"layout {layout!r} does not exist", hint="native, fairseq or multimolecule")


def _float32(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counters = {name: t.long() for name, t in state.items() if name.endswith("num_batches_tracked")}
    whole = [name for name, t in state.items() if name not in counters and not t.is_floating_point()]
    if whole:
        raise CheckpointError(
            f"{path}: {whole[0]} is {state[whole[0]].dtype}, not a matrix of real numbers",
            hint="quantised weights are not read: use the published float32 file",
        )
    return {name: counters.get(name, t.float()) for name, t in state.items()}


# native


def _read_native(checkpoint: Checkpoint, settings: dict[str, Any]) -> tuple[Config, dict[str, Tensor]]:
    rest = {name: value for name, value in settings.items() if name not in ("family", "format")}
    if settings.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint.path}: format {settings.get('format')!r} is unknown, this version reads {FORMAT}",
            hint="a newer ribozyme wrote it: pip install --upgrade ribozyme",
        )
    config = _config(checkpoint, rest)
    same = KeyMap(rename={name: name for name in _expected(config)})
    return config, same.apply(checkpoint, _expected(config))


def _config(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Config:
    try:
        return Config.from_dict(settings)
    except ConfigError as error:
        error.add_note(f"in the settings of {checkpoint.path}")
        raise


def _expected(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(RNAFM(config))


# what the shapes tell


def _ours(keys: KeyMap, checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {ours: checkpoint.tensors[name] for ours, name in keys.names(checkpoint.tensors).items()}


def _measured(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes and heads from tensors under our names, before q, k and v are joined."""
    needed = {"tokens.weight": 2, "positions.weight": 2, "layers.0.ffn.up.weight": 2}
    dims = needed | {"contact.weight": 2, "structure.pair.weight": 4}
    bad = [name for name, dim in dims.items() if name in tensors and tensors[name].dim() != dim]
    if bad or not needed.keys() <= tensors.keys():
        names = bad or [name for name in needed if name not in tensors]
        raise CheckpointError(f"{checkpoint.path}: no table for {', '.join(names)}")
    sizes: dict[str, Any] = {
        "layers": _count("layers", tensors),
        "dim": tensors["tokens.weight"].shape[1],
        "ffn_dim": tensors["layers.0.ffn.up.weight"].shape[0],
        "positions": tensors["positions.weight"].shape[0],
        "embed_norm": "embed_norm.weight" in tensors,
        "lm_head": any(name.startswith("lm_head.") for name in tensors),
        "contact_head": "contact.weight" in tensors,
        "structure_blocks": _count("structure.blocks", tensors),
    }
    if sizes["contact_head"]:
        sizes["heads"] = max(1, tensors["contact.weight"].shape[-1] // sizes["layers"])  # one weight a head
    if "structure.pair.weight" in tensors:
        channels, pair_width = tensors["structure.pair.weight"].shape[:2]
        sizes |= {"structure_channels": channels, "structure_width": pair_width // 2}
    return sizes


def _count(prefix: str, names: Mapping[str, Tensor]) -> int:
    found = (re.match(re.escape(prefix) + r"\.([0-9]{1,6})\.", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _stated(settings: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    return {ours: settings[theirs] for theirs, ours in table.items() if settings.get(theirs) is not None}


def _threshold(name: str) -> float:
    return next((value for training_set, value in THRESHOLDS.items() if training_set in name), 0.5)


# fairseq


def _read_fairseq(checkpoint: Checkpoint, settings: dict[str, Any]) -> tuple[Config, dict[str, Tensor]]:
    structure = any(name.startswith("backbone.") for name in checkpoint.tensors)
    keys = FAIRSEQ_STRUCTURE if structure else FAIRSEQ
    checkpoint = replace(checkpoint, tensors=_one_table(checkpoint.tensors))
    tensors = _ours(keys, checkpoint)
    measured = _measured(checkpoint, tensors)
    rows = len(tensors["tokens.weight"])
    vocabulary = next((v for v in (RNA, CODON) if len(v) == rows), None)
    if vocabulary is None:
        raise CheckpointError(
            f"{checkpoint.path}: a table of {rows} tokens; RNA-FM has {len(RNA)}, mRNA-FM {len(CODON)}"
        )
    plain = {name.removeprefix("encoder_"): value for name, value in settings.items()}
    stated = _stated(plain, FAIRSEQ_SETTINGS)
    if structure:
        stated["structure_threshold"] = _threshold(checkpoint.path.name)
    config = _config(checkpoint, {**measured, **stated, "vocabulary": vocabulary})
    return config, keys.apply(checkpoint, _expected(config))


def _one_table(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained table, from its two copies.

    The authors' loader sets the `<mask>` row of the embedding copy to zero and then overwrites that copy by
    `lm_head.weight`. So a file whose copies differ in this row is whole, and the second copy is meant.
    """
    tensors = dict(tensors)
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    head = tensors.get(embedding.removesuffix("embed_tokens.weight") + "lm_head.weight")
    if head is None or head.dim() != 2 or head.shape != tensors[embedding].shape:
        return tensors
    if torch.equal(head[:-1], tensors[embedding][:-1]):
        tensors[embedding] = head
    return tensors


def _write_fairseq(config: Config, state: Mapping[str, Tensor], folder: Path) -> None:
    if not config.lm_head:
        raise CheckpointError("the authors' layout needs the language-model head, and this network has none")
    vocabulary = CODON if config.codon else RNA
    state = _in_vocabulary(state, config.vocabulary, vocabulary)
    keys = FAIRSEQ_STRUCTURE if config.structure_blocks else FAIRSEQ
    tensors = keys.invert(state)
    head = next(iter(keys.tied)) if config.structure_blocks else FAIRSEQ.strip[0] + "lm_head.weight"
    tensors[head] = state["tokens.weight"].clone()
    folder.mkdir(parents=True, exist_ok=True)
    with AtomicFile(folder / _pth_name(config)) as temporary:
        torch.save(tensors if config.structure_blocks else _fairseq_file(config, tensors), temporary)


def _pth_name(config: Config) -> str:
    """The authors' loader looks for "RNA-FM" in the name."""
    kind = next((k for k, value in THRESHOLDS.items() if value == config.structure_threshold), "other")
    if config.structure_blocks:
        return f"RNA-FM-ResNet_{kind}.pth"
    return "mRNA-FM_pretrained.pth" if config.codon else "RNA-FM_pretrained.pth"


def _fairseq_file(config: Config, tensors: dict[str, Tensor]) -> dict[str, Any]:
    args = Namespace(
        arch="roberta_large",
        layers=config.layers,
        embed_dim=config.dim,
        ffn_embed_dim=config.ffn_dim,
        attention_heads=config.heads,
        max_positions=config.positions - 2,
        token_dropout=config.token_dropout,
    )
    return {"args": args, "model": tensors}


# MultiMolecule


def _read_multimolecule(checkpoint: Checkpoint, settings: dict[str, Any]) -> tuple[Config, dict[str, Tensor]]:
    for name, value in ONLY.items():
        if settings.get(name, value) != value:
            raise ConfigError(f"{checkpoint.path}: {name} is {settings[name]!r}; RNA-FM has {value!r}")
    prefix = next((p for p in MULTIMOLECULE if p + TABLE in checkpoint.tensors), None)
    if prefix is None:
        raise CheckpointError(f"{checkpoint.path}: no {TABLE!r}: not a layout of RNA-FM")
    keys = MULTIMOLECULE[prefix]
    tensors = _ours(keys, checkpoint)
    stated = _stated(settings, MULTIMOLECULE_SETTINGS)
    if stated.get("eps") == 1e-12:
        stated["eps"] = EPS
    measured = {**_measured(checkpoint, tensors), "structure_threshold": THRESHOLDS["bpRNA"]}
    vocabulary = _vocabulary(checkpoint, len(tensors["tokens.weight"]))
    config = _config(checkpoint, {**measured, **stated, "vocabulary": vocabulary})
    return config, keys.apply(checkpoint, _expected(config))


def _vocabulary(checkpoint: Checkpoint, rows: int) -> list[str]:
    path = checkpoint.side_file("vocab.txt")
    if path is None:
        raise CheckpointError(
            f"{checkpoint.path}: no vocab.txt beside it",
            hint="MultiMolecule changed its vocabulary several times: fetch vocab.txt with the weights",
        )
    if path.stat().st_size > 1_000_000:
        raise CheckpointError(f"{path}: too large for a vocabulary")
    tokens = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(tokens) != rows:
        raise CheckpointError(f"{path}: {len(tokens)} tokens, but the weights have rows for {rows}")
    return tokens


def _write_multimolecule(config: Config, state: Mapping[str, Tensor], folder: Path) -> None:
    vocabulary = MULTIMOLECULE_CODON if config.codon else MULTIMOLECULE_RNA
    state = _in_vocabulary(state, config.vocabulary, vocabulary)
    if config.structure_blocks:  # both heads are called ss_head there; the untrained one gives way
        state = {name: tensor for name, tensor in state.items() if not name.startswith("contact.")}
    tensors = MULTIMOLECULE["model."].invert(state)
    write_folder(folder, tensors, _multimolecule_config(config, vocabulary))
    with AtomicFile(folder / "vocab.txt") as temporary:
        temporary.write_text("\n".join(vocabulary), encoding="utf-8")
    with AtomicFile(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(_multimolecule_tokenizer(config), indent=2), encoding="utf-8")


def _multimolecule_config(config: Config, vocabulary: Sequence[str]) -> dict[str, Any]:
    special = {
        f"{name}_token_id": vocabulary.index(f"<{name}>") for name in ("pad", "eos", "unk", "mask", "null")
    }
    architecture = "PreTraining" if config.contact_head else "MaskedLM" if config.lm_head else None
    if config.structure_blocks:
        architecture = "SecondaryStructurePrediction"
    head = {
        "num_labels": 1,
        "hidden_size": config.structure_width,
        "num_channels": config.structure_channels,
        "num_layers": config.structure_blocks,
        "bias": False,
    }
    return {
        "model_type": "rnafm",
        "architectures": [f"RnaFmFor{architecture}" if architecture else "RnaFmModel"],
        **{theirs: getattr(config, ours) for theirs, ours in MULTIMOLECULE_SETTINGS.items()},
        **ONLY,
        **special,
        "bos_token_id": vocabulary.index("<cls>"),
        "vocab_size": len(vocabulary),
        "codon": config.codon,
        "embed_norm": config.embed_norm,
        "tie_word_embeddings": True,
        "head": head if config.structure_blocks else None,
        "dtype": "float32",
    }


def _multimolecule_tokenizer(config: Config) -> dict[str, Any]:
    return {
        "tokenizer_class": "RnaTokenizer",
        "codon": config.codon,
        "model_max_length": config.positions - 2,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "cls", "eos", "unk", "mask")},
        "bos_token": "<cls>",
        "sep_token": "<eos>",
        "replace_T_with_U": True,
        "do_upper_case": True,
    }


# vocabularies


def _in_vocabulary(state: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str]) -> dict[str, Tensor]:
    """The same network with the rows of its table, and of the output bias, in the order of `new`."""
    if reads_codons(old) != reads_codons(new):
        raise ConfigError("a vocabulary of letters cannot become one of codons")
    rows = torch.tensor([_row(token, old) for token in new])
    changed = ("tokens.weight", "lm_head.bias")
    return {name: tensor[rows] if name in changed else tensor for name, tensor in state.items()}


def _row(token: str, vocabulary: Sequence[str]) -> int:
    same = (
        token,
        "<null_4>" if token == "<null>" else "<null>" if token.startswith("<null_") else "<unk>",
        "<unk>",
    )
    return next(vocabulary.index(name) for name in same if name in vocabulary)

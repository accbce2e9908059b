"""The names and settings of the published layouts, as data; `formats.py` reads and writes with them."""

from ribozyme.checkpoint import Fuse, KeyMap

QKV = {
    "layers.{i}.attention.qkv.{w}": Fuse(tuple(f"layers.{{i}}.attention.{p}.{{w}}" for p in "qkv"), (1, 1, 1))
}

FAIRSEQ_NAMES = {
    "embed_tokens.weight": "tokens.weight",
    "embed_positions.weight": "positions.weight",
    "emb_layer_norm_before.{w}": "embed_norm.{w}",
    "layers.{i}.self_attn_layer_norm.{w}": "layers.{i}.norm1.{w}",
    "layers.{i}.self_attn.{p}_proj.{w}": "layers.{i}.attention.{p}.{w}",
    "layers.{i}.final_layer_norm.{w}": "layers.{i}.norm2.{w}",
    "layers.{i}.fc1.{w}": "layers.{i}.ffn.up.{w}",
    "layers.{i}.fc2.{w}": "layers.{i}.ffn.down.{w}",
    "emb_layer_norm_after.{w}": "norm.{w}",
    "contact_head.regression.{w}": "contact.{w}",
    "lm_head.dense.{w}": "lm_head.dense.{w}",
    "lm_head.layer_norm.{w}": "lm_head.norm.{w}",
    "lm_head.bias": "lm_head.bias",
}
FAIRSEQ = KeyMap(
    strip=("encoder.encoder.", "encoder.sentence_encoder.", "sentence_encoder.", "encoder."),
    rename=FAIRSEQ_NAMES,
    fuse=QKV,
    tied={"lm_head.weight": "tokens.weight"},
)

PAIRS = "downstream_modules.pc-resnet_1_sym_first:r-ss."
FAIRSEQ_STRUCTURE = KeyMap(
    rename={
        **{f"backbone.{published}": ours for published, ours in FAIRSEQ_NAMES.items()},
        PAIRS + "pre_reduction.{w}": "structure.reduce.{w}",
        PAIRS + "proj.first.0.{w}": "structure.pair.{w}",
        PAIRS + "proj.resnet.{i}.bn1.{w}": "structure.blocks.{i}.norm.{w}",
        PAIRS + "proj.resnet.{i}.{conv}.weight": "structure.blocks.{i}.{conv}.weight",
        PAIRS + "proj.final.{w}": "structure.final.{w}",
    },
    fuse=QKV,
    tied={"backbone.lm_head.weight": "tokens.weight"},
)

TABLE = "embeddings.word_embeddings.weight"
_LAYER = "encoder.layer.{i}."
MULTIMOLECULE_NAMES = {
    TABLE: "tokens.weight",
    "embeddings.position_embeddings.weight": "positions.weight",
    "embeddings.emb_layer_norm_before.{w}": "embed_norm.{w}",  # 2024; of two names the later one is written
    "embeddings.layer_norm.{w}": "embed_norm.{w}",
    _LAYER + "attention.layer_norm.{w}": "layers.{i}.norm1.{w}",
    _LAYER + "attention.self.query.{w}": "layers.{i}.attention.q.{w}",
    _LAYER + "attention.self.key.{w}": "layers.{i}.attention.k.{w}",
    _LAYER + "attention.self.value.{w}": "layers.{i}.attention.v.{w}",
    _LAYER + "attention.output.dense.{w}": "layers.{i}.attention.out.{w}",
    _LAYER + "layer_norm.{w}": "layers.{i}.norm2.{w}",
    _LAYER + "intermediate.dense.{w}": "layers.{i}.ffn.up.{w}",
    _LAYER + "output.dense.{w}": "layers.{i}.ffn.down.{w}",
    "encoder.emb_layer_norm_after.{w}": "norm.{w}",  # 2024
    "encoder.layer_norm.{w}": "norm.{w}",
}
MULTIMOLECULE_HEADS = {
    "lm_head.transform.dense.{w}": "lm_head.dense.{w}",
    "lm_head.transform.layer_norm.{w}": "lm_head.norm.{w}",
    "lm_head.bias": "lm_head.bias",
    "ss_head.decoder.{w}": "contact.{w}",
    "ss_head.reduction.{w}": "structure.reduce.{w}",
    "ss_head.projection.{w}": "structure.pair.{w}",
    "ss_head.convnet.layers.{i}.bn1.{w}": "structure.blocks.{i}.norm.{w}",
    "ss_head.convnet.layers.{i}.{conv}.weight": "structure.blocks.{i}.{conv}.weight",
    "ss_head.prediction.{w}": "structure.final.{w}",
}


def _multimolecule(prefix: str) -> KeyMap:
    return KeyMap(
        rename={**{prefix + p: ours for p, ours in MULTIMOLECULE_NAMES.items()}, **MULTIMOLECULE_HEADS},
        fuse=QKV,
        tied={"lm_head.decoder.weight": "tokens.weight", "lm_head.decoder.bias": "lm_head.bias"},
        ignore={
            "*pooler.dense.*": "no published model trained it",
            "*embeddings.position_ids": "a counter",
        },
    )


MULTIMOLECULE = {prefix: _multimolecule(prefix) for prefix in ("model.", "rnafm.", "")}
"""By the prefix of the encoder: since December 2025, before, and a folder of the encoder alone."""

FAIRSEQ_SETTINGS = {
    "layers": "layers",
    "embed_dim": "dim",
    "ffn_embed_dim": "ffn_dim",
    "attention_heads": "heads",
    "token_dropout": "token_dropout",
}
MULTIMOLECULE_SETTINGS = {
    "num_hidden_layers": "layers",
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_attention_heads": "heads",
    "max_position_embeddings": "positions",
    "layer_norm_eps": "eps",
    "token_dropout": "token_dropout",
}
ONLY = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
"""Settings of MultiMolecule for which only one value is RNA-FM."""

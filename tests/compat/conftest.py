import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse

FIXTURES = Path(__file__).parents[1] / "fixtures"


def helix_folder(folder: Path, layout: str | None) -> Path:
    """A tiny random checkpoint as published: the hybrid, or the pure model where there is no `layout`."""
    generator = torch.Generator().manual_seed(0)
    d, heads, head_dim, state, vocab = 16, 2, 16, 8, 14 if layout else 13
    inner, conv = heads * head_dim, heads * head_dim + 2 * state

    def random(*shape, around=0.0):
        return around + 0.3 * torch.randn(shape, generator=generator)

    mamba = {
        "norm.weight": random(d, around=1),
        "mixer.in_proj.weight": random(inner + conv + heads, d),
        "mixer.conv1d.weight": random(conv, 1, 4),
        "mixer.conv1d.bias": random(conv),
        "mixer.dt_bias": random(heads),
        "mixer.A_log": random(heads),
        "mixer.D": random(heads, around=1),
        "mixer.norm.weight": random(inner, around=1),
        "mixer.out_proj.weight": random(d, inner),
    }
    mlp = {f"feed_forward.{p}_proj.weight": random(4 * d, d) for p in ("gate", "up")}
    mlp |= {"feed_forward.down_proj.weight": random(d, 4 * d), "input_layernorm.weight": random(d, around=1)}
    attention = mlp | {f"self_attn.{p}_proj.weight": random(d, d) for p in "qo"}
    attention |= {f"self_attn.{p}_proj.weight": random(d // 2, d) for p in "kv"}
    attention |= {"pre_ff_layernorm.weight": random(d, around=1)}
    blocks = {"M": mamba, "+": mlp, "*": attention}
    letters = layout or "MM"
    tensors = {f"layers.{k}.{n}": t for k, letter in enumerate(letters) for n, t in blocks[letter].items()}
    tensors |= {"embeddings.weight": random(vocab, d), "norm_f.weight": random(d, around=1)}
    tensors = {f"backbone.{name}": t.clone() for name, t in tensors.items()}
    tensors["lm_head.weight"] = random(vocab, d)
    config = {
        "architectures": ["HelixmRNAForCausalLM" if layout else "Mamba2ForCausalLM"],
        "model_type": "mamba2", "num_hidden_layers": len(letters), "hidden_size": d, "expand": 2,
        "num_heads": heads, "head_dim": head_dim, "state_size": state, "n_groups": 1, "conv_kernel": 4,
        "chunk_size": 256, "vocab_size": vocab, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": False,
        "hidden_act": "silu", "residual_in_fp32": True, "time_step_limit": [0.0, float("inf")],
    }  # fmt: skip
    if layout:
        config |= {
            "layers_block_type_string": layout, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 32,
        }  # fmt: skip
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Published layouts by the name that the drop-in would fetch."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "helix-mrna": str(helix_folder(root / "helix", "M+M*+")),
        "mamba2-mrna": str(helix_folder(root / "mamba2", None)),
        "rnafm": str(FIXTURES / "rnafm" / "rna.pth"),
        "scgpt-cp": str(FIXTURES / "scgpt" / "plain"),
    }


@pytest.fixture
def adata():
    """12 cells of two kinds, with genes of the tiny vocabulary and one that it lacks."""
    generator = np.random.default_rng(0)
    counts = generator.poisson(1.5, (12, 21)).astype(np.float32)
    counts[::2, :10] += generator.poisson(6, (6, 10))
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.var_names = [*(f"GENE{k}" for k in range(20)), "NOSUCHGENE"]
    cells.obs_names = [f"cell{k}" for k in range(12)]
    cells.obs["cell_type"] = ["B cell", "T cell"] * 6
    return cells

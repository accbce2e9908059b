"""Make a whole-human scGPT checkpoint with random weights, and the answers of the published program.

    pip install --no-deps scgpt==0.2.4   # in an environment of its own, see tests/fixtures/make_scgpt.py
    python peer_cells.py FOLDER

Reads FOLDER/cells.npz (`matrix`, `genes`: cells by gene symbols); without it, it makes the weights alone.
Writes FOLDER/weights (best_model.pt with the 163 tensors of the published file, args.json, vocab.json) and
the answers: `expected.safetensors` and `exact.safetensors` for the network in float32 and float64,
`embedding.safetensors` for cells from a matrix by the published binning, collator and network, with 1/2 in
the place of the random draws for ties.

Nothing of ribozyme is imported: vocabulary, weights and answers come from the peer alone.
"""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
import make_scgpt

DIM, LAYERS, PAD_VALUE = 512, 12, -2


def main(folder: Path) -> None:
    torch.set_grad_enabled(False)
    vocab = vocabulary()
    TransformerModel, _, _ = make_scgpt.published()
    model = TransformerModel(
        len(vocab),
        DIM,
        8,
        DIM,
        LAYERS,
        nlayers_cls=3,
        n_cls=1,
        vocab=vocab,
        dropout=0.2,
        do_mvc=True,
        pad_value=PAD_VALUE,
    )
    make_scgpt.randomise(model, 1)
    write_weights(folder / "weights", model.state_dict(), vocab)
    if not (folder / "cells.npz").exists():
        return
    with np.load(folder / "cells.npz") as file:
        matrix, genes = file["matrix"].astype(np.float32), file["genes"]
    columns = torch.tensor([vocab[gene] for gene in genes])
    batch = collate(matrix, columns, vocab)
    lengths = (batch["gene"] != vocab["<pad>"]).sum(1).tolist()
    ids = [row[:n].numpy() for row, n in zip(batch["gene"], lengths)]
    values = [row[:n].double().numpy() for row, n in zip(batch["expr"], lengths)]
    inputs = {"ids": np.concatenate(ids), "values": np.concatenate(values), "lengths": np.array(lengths)}
    for name in ("expected", "exact"):
        kind = torch.float32 if name == "expected" else torch.float64
        model.to(kind)
        given = [row.astype(np.float32 if name == "expected" else np.float64) for row in values]
        make_scgpt.PAD, make_scgpt.LAYERS = vocab["<pad>"], LAYERS
        answers = make_scgpt.answer(model, ids, given, PAD_VALUE, MVC=True)
        save(folder / f"{name}.safetensors", answers | inputs)
        if name == "expected":
            cls = answers["cell"] / np.linalg.norm(answers["cell"], axis=1, keepdims=True)
            whole = {"matrix": matrix, "columns": columns.numpy(), "cls": cls}
            save(folder / "embedding.safetensors", whole)


def vocabulary() -> dict[str, int]:
    """The gene list in the published package, and its special tokens."""
    package = Path(importlib.util.find_spec("scgpt").submodule_search_locations[0])
    genes = json.loads((package / "tokenizer" / "default_census_vocab.json").read_text())
    return genes | {token: len(genes) + k for k, token in enumerate(("<pad>", "<cls>", "<eoc>"))}


def write_weights(folder: Path, state: dict[str, torch.Tensor], vocab: dict[str, int]) -> None:
    """As published: attention as `Wqkv`, no classifier, and the flag table of pretraining."""
    tensors = {k: v.clone() for k, v in state.items() if not k.startswith("cls_decoder")}
    tensors = {k.replace("self_attn.in_proj_", "self_attn.Wqkv."): v for k, v in tensors.items()}
    tensors["flag_encoder.weight"] = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    assert len(tensors) == 163
    assert sum(t.numel() for t in tensors.values()) == 51_330_049
    folder.mkdir()
    torch.save(tensors, folder / "best_model.pt")
    args = {"embsize": DIM, "nheads": 8, "d_hid": DIM, "nlayers": LAYERS, "n_layers_cls": 3, "dropout": 0.2}
    args |= {
        "pad_token": "<pad>",
        "pad_value": PAD_VALUE,
        "mask_value": -1,
        "n_bins": 51,
        "max_seq_len": 1200,
    }
    args |= {"input_emb_style": "continuous", "input_style": "binned"}
    (folder / "args.json").write_text(json.dumps(args, indent=2))
    (folder / "vocab.json").write_text(json.dumps(vocab, indent=2))


def collate(matrix: np.ndarray, columns: torch.Tensor, vocab: dict[str, int]) -> dict[str, torch.Tensor]:
    """As `get_batch_cell_embeddings` of the published tasks/cell_emb.py, without its loader and its GPU."""
    from scgpt.data_collator import DataCollator

    np.random.rand = lambda *shape: np.full(shape, 0.5)  # of ties
    collator = DataCollator(
        do_padding=True, pad_token_id=vocab["<pad>"], pad_value=PAD_VALUE, do_mlm=False, max_length=1200
    )
    examples = []
    for k, row in enumerate(matrix):
        (expressed,) = np.nonzero(row)
        genes = torch.cat([torch.tensor([vocab["<cls>"]]), columns[expressed]])
        values = torch.from_numpy(np.insert(row[expressed], 0, PAD_VALUE))
        examples.append({"id": k, "genes": genes, "expressions": values})
    return collator(examples)


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    tensors = {k: torch.as_tensor(np.asarray(v)) for k, v in arrays.items()}
    small = {
        k: t.float().contiguous() if t.is_floating_point() else t.contiguous() for k, t in tensors.items()
    }
    save_file(small, path, metadata={"scgpt": version("scgpt"), "torch": torch.__version__})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

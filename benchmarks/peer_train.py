"""One published training loop, which takes the same steps each time it is asked.

    python peer_train.py make-NETWORK FOLDER SIZES     # a checkpoint with the peer's own first weights
    python peer_train.py PROGRAM SETTINGS              # the protocol of `peer_embed.py`

What is run is the peer's own code: transformers' Trainer over multimolecule, helical's `train`, scGPT's
`train`. The answer to a run is the loss of each step. All begin with the same weights in every run, without
dropout, and hide the same letters or bins (`hidden`), so the first loss can be compared.

Runs in the environment of the peer and imports nothing of ours. `our_train.py` answers in the same way.
"""

import copy
import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peer_embed import Embed, Settings, serve, without_extras

RATE, CLIP = 1e-4, 1.0
LETTERS, BINS = 0.15, 0.4
"""Shares of letters and bins that are hidden."""
PAD_VALUE, MASK_VALUE = -2, -1


def hidden(number: int, count: int, share: float) -> np.ndarray:
    """(count,) which letters, or genes, are hidden of input `number`; at least one."""
    drawn = np.random.default_rng([7, number]).random(count)
    return drawn <= max(share, drawn.min())


# --------------------------------------------------------------------------------------------- checkpoints


def make_rnafm(folder: Path, sizes: dict[str, int]) -> None:
    """As multimolecule begins."""
    import torch
    from multimolecule import RnaFmConfig, RnaFmForPreTraining, RnaTokenizer

    torch.manual_seed(0)
    RnaFmForPreTraining(RnaFmConfig(**sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(RnaTokenizer().get_vocab()), encoding="utf-8")


def make_helix(folder: Path, sizes: dict[str, int]) -> None:
    """Random weights in the layout of the Hub."""
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    import make_helix as maker

    maker.HYBRID.update(sizes)
    tensors = {key: torch.zeros(shape) for key, shape in maker.hybrid_shapes().items()}
    maker.randomise(tensors, 4)
    named = {key if key.startswith("lm_head") else f"backbone.{key}": t for key, t in tensors.items()}
    folder.mkdir()
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(maker.HYBRID, indent=2) + "\n")


def make_scgpt(folder: Path, sizes: dict[str, int]) -> None:
    """As scgpt begins."""
    import torch

    vocab = {f"GENE{k}": k for k in range(sizes["genes"])}
    vocab |= {token: len(vocab) + k for k, token in enumerate(("<pad>", "<cls>", "<eoc>"))}
    torch.manual_seed(0)
    args = {"embsize": sizes["dim"], "nheads": sizes["heads"], "d_hid": sizes["ffn"]}
    args |= {"nlayers": sizes["layers"], "n_layers_cls": 3, "dropout": 0.0, "pad_token": "<pad>"}
    args |= {"pad_value": PAD_VALUE, "mask_value": MASK_VALUE, "n_bins": 51, "max_seq_len": 1200}
    args |= {"input_emb_style": "continuous", "input_style": "binned"}
    folder.mkdir()
    state = scgpt_network(args, vocab).state_dict()
    torch.save({k: v for k, v in state.items() if "cls_decoder" not in k}, folder / "best_model.pt")
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "vocab.json").write_text(json.dumps(vocab))


def scgpt_network(args: dict[str, Any], vocab: dict[str, int]) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    import make_scgpt as maker
    import torch

    TransformerModel, _, _ = maker.published()
    torch.backends.mha.set_fastpath_enabled(True)  # the maker switches it off; training does not take it
    sizes = args["embsize"], args["nheads"], args["d_hid"], args["nlayers"]
    common = {"vocab": vocab, "pad_value": PAD_VALUE, "do_mvc": True, "use_fast_transformer": False}
    return TransformerModel(len(vocab), *sizes, **common, dropout=0.0)


# ----------------------------------------------------------------------------------------------- the peers


def multimolecule(settings: Settings) -> Embed:
    """RnaFmForMaskedLM in transformers' Trainer. batch, attention."""
    import torch
    from multimolecule import RnaFmForMaskedLM, RnaTokenizer
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    how = {"attn_implementation": settings["attention"]} if settings.get("attention") else {}
    how |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = RnaFmForMaskedLM.from_pretrained(settings["weights"], **how)
    first = copy.deepcopy(model.state_dict())
    tokenizer = RnaTokenizer()

    class InOrder(Trainer):  # as ours takes them, so that the first steps are the same
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    def collate(examples: list[dict[str, Any]]) -> Any:
        batch = tokenizer.pad([{"input_ids": one["input_ids"]} for one in examples], return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for row, one in enumerate(examples):
            where = torch.tensor(1 + one["hidden"])  # <cls> is in front
            labels[row, where] = batch["input_ids"][row, where]
            batch["input_ids"][row, where] = tokenizer.mask_token_id
        return {**batch, "labels": labels}

    def train(inputs: list[dict[str, Any]]) -> Any:
        torch.set_grad_enabled(True)
        model.load_state_dict(first)
        sequences = [one["sequence"] for one in inputs]
        data = [
            {"input_ids": tokenizer(s)["input_ids"], "hidden": np.flatnonzero(hidden(k, len(s), LETTERS))}
            for k, s in enumerate(sequences)
        ]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=settings["batch"],
                num_train_epochs=1,
                learning_rate=RATE,
                max_grad_norm=CLIP,
                lr_scheduler_type="constant",
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                remove_unused_columns=False,
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = InOrder(model=model, args=arguments, train_dataset=data, data_collator=collate)
            trainer.train()
        return np.array([line["loss"] for line in trainer.state.log_history if "loss" in line])

    return train


def helical(settings: Settings) -> Embed:
    """HelixmRNAFineTuningModel.train of 1.3.0, all layers, one number a sequence. batch."""
    import torch
    from helical.models.helix_mrna.fine_tuning_model import HelixmRNAFineTuningModel
    from helical.models.helix_mrna.helix_mrna_config import HelixmRNAConfig
    from helical.models.helix_mrna.helix_mrna_tokenizer import CharTokenizer

    CharTokenizer(model_max_length=12288).save_pretrained(settings["weights"])
    config = HelixmRNAConfig(batch_size=settings["batch"], device="cpu")
    config.config["model_name"] = settings["weights"]
    torch.manual_seed(0)
    model = HelixmRNAFineTuningModel(config, fine_tuning_head="regression", output_size=1)
    model.model.config.use_cache = False  # as published; True fails
    model.fine_tuning_head.dropout.p = 0.0
    first = copy.deepcopy(model.state_dict())

    def train(inputs: list[dict[str, Any]]) -> Any:
        torch.set_grad_enabled(True)
        model.load_state_dict(first)
        losses: list[float] = []

        def loss(outputs: Any, labels: Any) -> Any:
            found = torch.nn.functional.mse_loss(outputs[:, 0], labels.float())
            losses.append(found.item())
            return found

        labels = np.array([one["label"] for one in inputs])
        data = model.process_data([one["sequence"] for one in inputs])
        model.train(data, labels, optimizer_params={"lr": RATE}, loss_function=loss, trainable_layers=0)
        return np.array(losses)

    return train


def scgpt(settings: Settings) -> Embed:
    """`scgpt.trainer.train`: masked expression, from gene rows and from the cell. batch, window."""
    import torch

    folder = Path(settings["weights"])
    vocab = json.loads((folder / "vocab.json").read_text())
    model = scgpt_network(json.loads((folder / "args.json").read_text()), vocab)
    forward = model.forward
    model.forward = lambda *given, mod_types=None, **how: forward(
        *given, **how
    )  # of several modalities alone
    without_extras()
    package = sys.modules["scgpt"]
    package.SubsetsBatchSampler = object  # for batches of one origin, which this objective has not
    sys.modules["wandb"] = types.ModuleType("wandb")
    sys.modules["wandb"].log = lambda *_: None
    from scgpt.loss import masked_mse_loss
    from scgpt.tokenizer.gene_tokenizer import pad_batch
    from scgpt.trainer import prepare_dataloader
    from scgpt.trainer import train as epoch

    first = torch.load(folder / "best_model.pt", weights_only=True)
    off = dict.fromkeys(("amp", "use_batch_labels", "DSBN", "CLS", "ESC", "DAR", "use_mod"), False)
    config = types.SimpleNamespace(**off, GEP=True, GEPC=True, explicit_zero_prob=False, task="integration")
    config.pad_token, config.mask_value, config.log_interval = "<pad>", MASK_VALUE, 10**9

    def train(inputs: list[dict[str, Any]]) -> Any:
        torch.set_grad_enabled(True)
        model.load_state_dict(first, strict=False)
        cells = [
            (
                torch.tensor([vocab["<cls>"], *one["ids"]]),
                torch.tensor([PAD_VALUE, *one["bins"]]).float(),
                None,
            )
            for one in inputs
        ]
        padded = pad_batch(cells, settings["window"], vocab, pad_value=PAD_VALUE, cls_appended=True)
        values = padded["values"].clone()
        for k, one in enumerate(inputs):
            values[k, 1 + np.flatnonzero(hidden(k, len(one["ids"]), BINS))] = MASK_VALUE
        data = {"gene_ids": padded["genes"], "values": values, "target_values": padded["values"]}
        loader = prepare_dataloader(
            data | {"batch_labels": torch.zeros(len(cells)).long()}, batch_size=settings["batch"]
        )
        losses: list[float] = []

        def criterion(*given: Any) -> Any:
            found = masked_mse_loss(*given)
            losses.append(found.item())
            return found

        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=1e-8)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        unused: list[Any] = [None, None]  # criteria
        epoch(model, loader, vocab, criterion, *unused, scaler, optimizer, None, "cpu", config, None, 1)
        return np.array(losses).reshape(-1, 2).sum(1)  # gene rows, cell

    return train


MAKERS = {"make-rnafm": make_rnafm, "make-helix": make_helix, "make-scgpt": make_scgpt}
PROGRAMS: dict[str, Callable[[Settings], Embed]] = {
    "multimolecule": multimolecule,
    "helical": helical,
    "scgpt": scgpt,
}

if __name__ == "__main__":
    if sys.argv[1] in MAKERS:
        MAKERS[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        serve(PROGRAMS)

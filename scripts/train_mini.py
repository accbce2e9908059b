#!/usr/bin/env python3
"""The recipes of the small models in the package: python scripts/train_mini.py rnafm-mini [--steps N]

Reads the corpora under RIBOZYME_DATA (default ../shared/data), trains on one CPU core in well under an hour
a model, and writes weights, settings and the model card to src/ribozyme/weights/NAME.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ribozyme import data
from ribozyme.engine.family import formats_of
from ribozyme.packing import Packed
from ribozyme.train.pretrain import (
    History,
    Recipe,
    cropped,
    masked_letters,
    masked_values,
    next_letter,
    pretrain,
    shuffled,
    shuffled_cells,
)

DATA = Path(os.environ.get("RIBOZYME_DATA", Path(__file__).parents[2] / "shared" / "data"))
WEIGHTS = Path(__file__).parents[1] / "src" / "ribozyme" / "weights"
VALIDATION = 200  # sequences kept apart, for the loss in the card


@dataclass
class Run:
    """One model with its data: everything that `main` needs to train, judge and save it."""

    module: Any
    tokens: Any  # tokenizer or vocabulary, whatever the family's formats.save takes
    batches: Iterator[Packed]
    loss: Callable[[Packed], torch.Tensor]
    held_out: list[Packed]
    recipe: Recipe
    about: str
    objective: str


def rnafm_mini(steps: int) -> Run:
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    config = Config(layers=6, dim=128, heads=4, ffn_dim=512, contact_head=False)
    module, tokenizer = RNAFM(config), Tokenizer(config.vocabulary)
    module.initialise(torch.Generator().manual_seed(0))
    table = pd.read_parquet(DATA / "ncrna" / "corpus.parquet", columns=["sequence"])
    table = unlike(table, data.rnas()["sequence"])
    around = (np.array(tokenizer.prefix), np.array(tokenizer.suffix))
    ids = [np.concatenate([around[0], tokenizer.encode(s)[:1022], around[1]]) for s in table["sequence"]]
    train, held = split(ids)
    letters = torch.tensor([tokenizer.letters.index(letter) for letter in "ACGU"])
    loss = masked_letters(module, tokenizer.mask_id, letters, torch.Generator().manual_seed(1), weight=0.3)
    crops = np.random.default_rng(4)
    return Run(
        module,
        tokenizer,
        (cropped(batch, crops) for batch in shuffled(train, 2048, 512, np.random.default_rng(0))),
        loss,
        [cropped(batch, crops) for batch in fixed(held, 512)],
        Recipe(steps=steps, learning_rate=1e-3),
        "ncRNA corpus (Rfam, SILVA, GtRNAdb, Eterna and others), 8.1 Mnt",
        "masked letters + 0.3 x contrast of two parts of a sequence, nats",
    )


def helix_mrna_mini(steps: int) -> Run:
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import Tokenizer

    config = Config(dim=128, heads=8, head_dim=32, state=64, attention_heads=8, kv_heads=4)
    module, tokenizer = HelixMRNA(config), Tokenizer()
    module.initialise(torch.Generator().manual_seed(0))
    table = pd.read_parquet(DATA / "mrna" / "corpus.parquet", columns=["sequence", "cds_start", "cds_end"])
    table = unlike(table, data.mrnas()["sequence"])
    generator = np.random.default_rng(0)
    ids = [tokenizer.encode(marked(*row, generator)) for row in table.itertuples(index=False)]
    train, held = split(ids)
    weights = torch.ones(config.vocab_size)
    weights[tokenizer.letters.index("E")] = 0.2  # E follows from the frame: easy, and not what we want learnt
    return Run(
        module,
        tokenizer,
        shuffled(train, 2048, 1024, np.random.default_rng(1)),
        next_letter(module, weights),
        fixed(held, 1024),
        Recipe(steps=steps, learning_rate=3e-3),
        "mRNA corpus (CDS, UTR, full mRNAs), 38 Mnt",
        "next letter, nats (E weighs 0.2)",
    )


def scgpt_mini(steps: int) -> Run:
    import anndata as ad

    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary
    from ribozyme.pp.binning import binning

    cells = ad.read_h5ad(DATA / "cells" / "corpus" / "corpus_cells.h5ad")
    seen = np.asarray((cells.X > 0).sum(0)).ravel()
    most = np.sort(np.argsort(-seen, kind="stable")[:12_000])
    cells = cells[:, most]
    vocabulary = Vocabulary([*cells.var_names, "<pad>", "<cls>", "<eoc>"])
    config = Config(
        vocab_size=len(vocabulary), layers=4, dim=128, heads=4, ffn_dim=256, dropout=0.1, flag=False
    )
    module = ScGPT(config)
    module.initialise(torch.Generator().manual_seed(0))
    bins = binning(cells.X, n_bins=config.n_bins)
    kept = (cells.obs["split"] == "val").to_numpy()
    ids = vocabulary.lookup(cells.var_names)
    first = (vocabulary.cls_id, config.pad_value)

    def batches(part: Any, seed: int) -> Iterator[Packed]:
        return shuffled_cells(part, ids, first, 2048, 400, np.random.default_rng(seed))

    loss = masked_values(module, config.mask_value, config.n_bins, torch.Generator().manual_seed(1))
    held = batches(bins[kept], 3)
    return Run(
        module,
        vocabulary,
        batches(bins[~kept], 0),
        loss,
        [next(held) for _ in range(20)],
        Recipe(steps=steps, learning_rate=1e-3),
        "12,780 human cells of public data sets without a non-commercial term, 12,000 genes",
        "squared error of hidden bins, of the gene rows and of the cell, in units of all bins",
    )


def marked(sequence: str, start: int, end: int, generator: np.random.Generator) -> str:
    """The sequence, with E before every codon of its CDS in 60 % of the cases."""
    from ribozyme.pp.codons import mark_codons

    if start < 0 or (end - start) % 3 or generator.random() > 0.6:
        return sequence
    return mark_codons(sequence, start, end)


def unlike(table: pd.DataFrame, examples: pd.Series, k: int = 30) -> pd.DataFrame:
    """The rows that share no k-mer with the examples of the demo, so that it shows something unseen."""
    known = {s[i : i + k] for s in examples.str.replace("U", "T") for i in range(len(s) - k + 1)}

    def shares(sequence: str) -> bool:
        letters = sequence.replace("U", "T")
        return any(letters[i : i + k] in known for i in range(len(letters) - k + 1))

    return table[~table["sequence"].map(shares)]


def split(ids: list[Any]) -> tuple[list[Any], list[Any]]:
    """Training part and the sequences kept apart, shuffled once."""
    order = np.random.default_rng(2).permutation(len(ids))
    return [ids[k] for k in order[VALIDATION:]], [ids[k] for k in order[:VALIDATION]]


def fixed(held: list[Any], longest: int) -> list[Packed]:
    """The held-out sequences in a few batches."""
    return [Packed.of([ids[:longest] for ids in held[k : k + 20]]) for k in range(0, len(held), 20)]


@torch.no_grad()
def held_out_loss(run: Run) -> float:
    """Mean loss on the held-out batches (masks drawn as in training)."""
    return float(np.mean([float(run.loss(batch)) for batch in run.held_out]))


RECIPES = {
    "rnafm-mini": (rnafm_mini, 1500),
    "helix-mrna-mini": (helix_mrna_mini, 2000),
    "scgpt-mini": (scgpt_mini, 1400),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    make, steps = RECIPES[options.name]
    torch.manual_seed(0)
    run = make(options.steps or steps)
    folder = options.output or WEIGHTS / options.name
    formats_of(run.module)  # a broken writer is found before hours of work, not after
    before = held_out_loss(run)

    def log(history: History) -> None:
        print(
            f"step {history.steps[-1]:6d}  loss {history.losses[-1]:.4f}  "
            f"{history.tokens[-1] / history.seconds[-1]:7.0f} tokens/s",
            flush=True,
        )
        if history.steps[-1] % 500 == 0:
            save(run, folder, options.name, history, before)

    history = pretrain(run.module, run.batches, run.loss, run.recipe, log=log)
    save(run, folder, options.name, history, before)


def save(run: Run, folder: Path, name: str, history: History, before: float) -> None:
    """Weights (in bfloat16: the files stay small, and they widen exactly), settings and card."""
    run.module.eval()
    after = held_out_loss(run)
    formats_of(run.module).save(copy.deepcopy(run.module).bfloat16(), run.tokens, folder)
    card = {
        "name": name,
        "trained_on": run.about,
        "objective": run.objective,
        "licence": "Apache-2.0",
        "steps": history.steps[-1],
        "tokens": history.tokens[-1],
        "seconds": round(history.seconds[-1]),
        "held_out_loss": round(after, 4),
        "held_out_loss_untrained": round(before, 4),
        "recipe": f"scripts/train_mini.py {name}",
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    curve = {"steps": history.steps, "losses": [round(x, 4) for x in history.losses]}
    (folder / "curve.json").write_text(json.dumps(curve) + "\n")
    run.module.train()


if __name__ == "__main__":
    main()

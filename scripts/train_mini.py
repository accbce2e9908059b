#!/usr/bin/env python3
"""The recipes of the small models in the package: python scripts/train_mini.py rnafm-mini [--steps N]

Reads the corpora under RIBOZYME_DATA (default ../shared/data) and trains on one CPU core in well under an
hour a model, or on a GPU. The run is kept in runs/NAME; when it was stopped, the same command goes on from
its last checkpoint. At the end weights, settings and model card are written to src/ribozyme/weights/NAME.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ribozyme import data
from ribozyme.engine.cells import CellModel
from ribozyme.engine.device import choose_device
from ribozyme.engine.family import formats_of
from ribozyme.engine.sequences import SequenceModel
from ribozyme.train.components import Components
from ribozyme.train.history import History, State
from ribozyme.train.kmer_components import KmerComponents, kmer_components
from ribozyme.train.pretrain import Recipe, parts, pretrain
from ribozyme.train.processes import first_process, process_device

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
WEIGHTS = ROOT / "src" / "ribozyme" / "weights"


@dataclass(frozen=True, kw_only=True)
class Mini:
    """One model with its data: everything that `main` needs to train and describe it.

    stages : trained one after the other, each from where the last one ended
    components : what the embedding learns to tell
    """

    model: Any
    corpus: Any
    validation: Any = None
    stages: tuple[Recipe, ...]
    components: Components | KmerComponents | None = None
    about: str
    objective: str


def rnafm_mini(device: torch.device) -> Mini:
    from ribozyme.models.rnafm.config import Config
    from ribozyme.models.rnafm.model import RNAFM
    from ribozyme.models.rnafm.tokenizer import Tokenizer

    config = Config(layers=6, dim=128, heads=4, ffn_dim=512, contact_head=False)
    module = RNAFM(config)
    look_around(module, torch.Generator().manual_seed(0))
    tokenizer: Any = Tokenizer(config.vocabulary)  # its types are narrower than those that a model asks for
    table = pd.read_parquet(DATA / "ncrna" / "corpus.parquet", columns=["id", "sequence"])
    model, corpus = SequenceModel(module, tokenizer, device), unlike(table, data.rnas()["sequence"])
    recipe = Recipe(steps=1500, step_tokens=4096, longest=512)
    return Mini(
        model=model,
        corpus=corpus,
        components=kmers_of(model, corpus, recipe),
        stages=(recipe,),
        about="ncRNA corpus (Rfam, SILVA, GtRNAdb, Eterna and others), 8.1 Mnt",
        objective="masked letters, nats, + squared error of a sequence's principal components of k-mers",
    )


def look_around(module: Any, generator: torch.Generator) -> None:
    """Weights to start from in which the heads of two layers look at neighbours: 1, 2, then 3, 5 letters off.

    A table of learnt positions does not know which rows are neighbours, and to find that out takes most of a
    short training. So a quarter of each row is sines and cosines of the position, by which a head that turns
    its query by o positions finds the letter o further on; the tables have nothing else in that quarter.
    """
    module.initialise(generator)
    wide = module.config.dim // module.config.heads
    count = torch.arange(1, wide // 2 + 1)
    frequencies = torch.pi * (0.7 * count.sqrt() % 1)  # with no common period below 512 letters
    waves = torch.arange(module.config.positions)[:, None] * frequencies
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.mul_(3)  # 0.06: this network is narrower than those that 0.02 is meant for
        module.tokens.weight.mul_(5)[:, -wide:] = 0
        module.positions.weight.zero_()[:, -wide:] = 0.14 * torch.cat([waves.sin(), waves.cos()], 1)
        for block, offsets in zip(module.layers, ((-1, 1, -2, 2), (-3, 3, -5, 5))):
            turn = torch.tensor(offsets)[:, None] * frequencies  # (heads, wide / 2)
            sine, cosine = torch.diag_embed(turn.sin()), torch.diag_embed(turn.cos())
            query = torch.cat([torch.cat([cosine, sine], 2), torch.cat([-sine, cosine], 2)], 1)
            of_heads = block.attention.qkv.weight.view(3, len(offsets), wide, -1)
            of_heads[0, :, :, -wide:] += 2.5 * query
            of_heads[1, :, :, -wide:] += torch.eye(wide)


def helix_mrna_mini(device: torch.device) -> Mini:
    from ribozyme.models.helix.config import Config
    from ribozyme.models.helix.model import HelixMRNA
    from ribozyme.models.helix.tokenizer import Tokenizer

    config = Config(dim=128, heads=8, head_dim=32, state=64, attention_heads=8, kv_heads=4)
    module = HelixMRNA(config)
    module.initialise(torch.Generator().manual_seed(0))
    columns = ["id", "sequence", "cds_start", "cds_end"]
    table = pd.read_parquet(DATA / "mrna" / "corpus.parquet", columns=columns)
    model, corpus = SequenceModel(module, Tokenizer(), device), unlike(table, data.mrnas()["sequence"])
    recipe = Recipe(steps=4000, step_tokens=2048, longest=1024, coding="mark", learning_rate=3e-3)
    return Mini(
        model=model,
        corpus=corpus,
        components=kmers_of(model, corpus, recipe),
        stages=(recipe,),
        about="mRNA corpus (CDS, UTR, full mRNAs), 38 Mnt",
        objective="next letter, nats (E weighs 0.2), + squared error of components of k-mers and codons",
    )


def scgpt_mini(device: torch.device) -> Mini:
    import anndata as ad
    import numpy as np

    from ribozyme.models.scgpt.config import Config
    from ribozyme.models.scgpt.model import ScGPT
    from ribozyme.models.scgpt.vocab import Vocabulary
    from ribozyme.train.components import principal_components
    from ribozyme.train.corpus import CellCorpus

    cells = ad.read_h5ad(DATA / "cells" / "corpus" / "corpus_cells.h5ad")
    seen = np.asarray((cells.X > 0).sum(0)).ravel()
    cells = cells[:, np.sort(np.argsort(-seen, kind="stable")[:12_000])].copy()
    vocabulary = Vocabulary([*cells.var_names, "<pad>", "<cls>", "<eoc>"])
    config = Config(
        vocab_size=len(vocabulary),
        layers=3,
        dim=128,
        heads=4,
        ffn_dim=256,
        dropout=0.0,
        flag=False,
        mvc=False,
    )
    module = ScGPT(config)
    generator = torch.Generator().manual_seed(0)
    module.initialise(generator)
    kept = (cells.obs["split"] == "val").to_numpy()
    model = CellModel(module, vocabulary, device)
    corpus = CellCorpus(source=cells[~kept].copy(), lookup=model.lookup, n_bins=config.n_bins)
    components = principal_components(corpus, len(vocabulary), config.n_bins, config.dim)
    module.genes.table.weight.data.copy_(components.gene_rows(generator))
    # few genes of many cells first, which is fast; then nearly all genes of a cell, as users give them
    few = Recipe(steps=700, step_tokens=5120, longest=159, schedule="constant", warmup=24, held=0)
    many = Recipe(steps=400, step_tokens=8192, longest=599, share=0.15, schedule="linear", warmup=10, held=0)
    return Mini(
        model=model,
        corpus=corpus,
        components=components,
        validation=cells[kept][:100].copy(),
        stages=(replace(few, validate_every=100), replace(many, validate_every=100)),
        about="12,780 human cells of public data sets without a non-commercial term, 12,000 genes",
        objective="squared error of hidden bins (in units of all bins) + of a cell's principal components",
    )


def kmers_of(model: Any, corpus: Any, recipe: Recipe) -> KmerComponents:
    """As many components as the network is wide, of the part of the corpus that is trained on."""
    return kmer_components(parts(model, corpus, recipe)[0], model.tokenizer.letters, model.config.dim)


def unlike(table: pd.DataFrame, examples: pd.Series, k: int = 30) -> pd.DataFrame:
    """The rows that share no k-mer with the examples of the demo, so that it shows something unseen."""
    known = {s[i : i + k] for s in examples.str.replace("U", "T") for i in range(len(s) - k + 1)}

    def shares(sequence: str) -> bool:
        letters = sequence.replace("U", "T")
        return any(letters[i : i + k] in known for i in range(len(letters) - k + 1))

    return table[~table["sequence"].map(shares)]


RECIPES: dict[str, Callable[[torch.device], Mini]] = {
    "rnafm-mini": rnafm_mini,
    "helix-mrna-mini": helix_mrna_mini,
    "scgpt-mini": scgpt_mini,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, help="of each stage, instead of those of the recipe")
    parser.add_argument("--run", type=Path, help="folder of the run; default runs/NAME")
    parser.add_argument("--output", type=Path, help="folder of the weights; default that of the package")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    mini = RECIPES[options.name](choose_device(process_device(options.device)))
    folder = options.run or ROOT / "runs" / options.name
    histories = []
    for number, stage in enumerate(mini.stages, start=1):
        recipe = stage if options.steps is None else replace(stage, steps=options.steps)
        run = folder / f"stage{number}" if len(mini.stages) > 1 else folder
        histories.append(
            pretrain(
                mini.model,
                mini.corpus,
                run,
                recipe,
                validation=mini.validation,
                components=mini.components,
                watch=say,
            )
        )
    if first_process():
        save(options.name, mini, histories, options.output or WEIGHTS / options.name)


def say(state: State) -> None:
    held = state.history.validation_loss
    print(
        f"step {state.step:6d}  loss {state.history.loss[-1]:.4f}  "
        f"held out {held[-1] if held else float('nan'):.4f}  {state.tokens / state.seconds:7.0f} tokens/s",
        flush=True,
    )


def save(name: str, mini: Mini, histories: list[History], folder: Path) -> None:
    """Weights (in bfloat16: the files stay small, and they widen exactly), settings and card.

    What was measured with weights is in `scores.json` beside them, with their sha256. It is left as it is:
    `ribozyme info` shows it where it is of these weights, so new ones need new scores.
    """
    tokens = mini.model.vocabulary if mini.model.reads == "cells" else mini.model.tokenizer
    formats_of(mini.model.module).save(copy.deepcopy(mini.model.module).bfloat16(), tokens, folder)
    card = {
        "name": name,
        "trained_on": mini.about,
        "objective": mini.objective,
        "licence": "Apache-2.0",
        "steps": sum(one.best_step or 0 for one in histories),
        "tokens": sum(one.tokens[-1] for one in histories),
        "seconds": round(sum(one.seconds[-1] for one in histories)),
        "held_out_loss": round(min(histories[-1].validation_loss), 4),
        "held_out_loss_untrained": round(histories[0].validation_loss[0], 4),
        "recipe": f"scripts/train_mini.py {name}",
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    steps, before = [], 0
    for one in histories:
        steps += [before + step for step in one.steps]
        before += one.steps[-1]
    curve = {"steps": steps, "losses": [round(x, 4) for one in histories for x in one.loss]}
    (folder / "curve.json").write_text(json.dumps(curve) + "\n")


if __name__ == "__main__":
    main()

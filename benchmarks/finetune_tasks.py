"""The labelled tables of RIBOZYME_DATA, each with its own split, as `finetune.py` learns them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ribozyme.io.cells import read_cells
from ribozyme.pp.codons import mark_codons

METRICS = {"regression": "spearman", "classification": "accuracy", "token": "r2"}
MOST_TEST = 2_000
"""Test rows at most: enough for intervals that are narrower than what matters."""
OPENVACCINE = ("reactivity", "deg_Mg_pH10", "deg_Mg_50C")


@dataclass(frozen=True, slots=True)
class Task:
    """A table with a label.

    coding : the sequences are coding, which Helix-mRNA reads with marks
    clean : column that is true for test rows that have a copy among the training rows
    published : what others report, to be read beside ours
    """

    path: str
    target: str
    kind: str
    models: tuple[str, ...]
    published: str = ""
    coding: bool = False
    clean: str | None = None
    split: str = "split"
    metric: str = ""


MRNA, NCRNA, CELLS = ("helix-mrna-mini",), ("rnafm-mini",), ("scgpt-mini",)
BOTH = MRNA + NCRNA


def _number(path: str, target: str, models: tuple[str, ...], published: str, coding: bool = False) -> Task:
    return Task(f"mrna/{path}", target, "regression", models, published, coding)


def _cells(path: str, published: str, target: str = "cell_type", split: str = "split") -> Task:
    return Task(f"cells/{path}", target, "classification", CELLS, published, split=split)


TASKS = {
    "mrl_random": _number("utr5_mrl_random", "mrl", BOTH, "k-mer ridge .652, forest .689"),
    "mrl_human": _number("utr5_mrl_human", "mrl", BOTH, "k-mer ridge .698, Optimus .847"),
    "utr3_jurkat": _number("utr3_stability", "stability_jurkat", MRNA, "k-mer ridge .494"),
    "mrfp": _number("mrfp_expression", "expression", MRNA, "codon ridge .786, CodonBERT .85", coding=True),
    "cov": _number("cov_vaccine_degradation", "degradation", BOTH, "TextCNN .80, CodonBERT .77"),
    "riboswitch": _number("tc_riboswitch", "switching_factor", BOTH, "RNA-FM + TextCNN .58"),
    "stability": _number("mrna_stability", "decay_rate", MRNA, "k-mer ridge .284", coding=True),
    "half_life_mammal": _number("half_life_mammal", "half_life_pc1", MRNA, "codon ridge .573", coding=True),
    "half_life_yeast": _number("half_life_yeast", "log2_half_life", MRNA, "codon ridge .314", coding=True),
    "kozak": _number("kozak_tis", "efficiency", BOTH, "k-mer ridge .721"),
    "ecoli": Task(
        "mrna/ecoli_expression",
        "high_expression",
        "classification",
        MRNA,
        "codons .621 (10-fold)",
        coding=True,
    ),
    "openvaccine": Task("mrna/openvaccine", ",".join(OPENVACCINE), "token", BOTH),
    "families": Task(
        "ncrna/families", "label", "classification", NCRNA, "RNA-FM .968, k-mers .882", clean="near_train"
    ),
    "modification": Task(
        "ncrna/modification", "label", "classification", NCRNA, "k-mers .907 (AUC)", metric="roc_auc"
    ),
    "pbmc": _cells("annotate_pbmc_3tech", "PCA + logistic regression .953"),
    "breast": _cells("annotate_breast_tnbc", "PCA + logistic regression .968"),
    "breast_minor": _cells(
        "annotate_breast_tnbc", "PCA + logistic regression .830", target="cell_type_minor"
    ),
    "sorted": _cells("annotate_pbmc_sorted", "PCA + logistic regression .857"),
    "kang": _cells("stim_kang_ifnb_labelled", "PCA + logistic regression .917", split="split_donor"),
    "rnamix": _cells("integrate_rnamix", "nearest neighbours in PCA .865"),
    "skin": _cells("map_skin_ctcl", "PCA + logistic regression .978", target="disease"),
    "onek1k": _cells("map_onek1k_donors", "PCA + logistic regression .990"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs, labels, groups, and which rows are clean."""

    X: Any
    y: Any
    groups: Any = None
    clean: Any = None

    def __len__(self) -> int:
        return len(self.y)


def read(task: Task, folder: Path, rows: int | None, model: str) -> dict[str, Part]:
    """The parts of a task as a model reads them, of large ones some rows drawn with seed 0.

    rows : at most so many to train on, and a fifth of that to validate on; tests are on the same rows always
    """
    most = {"train": rows, "val": None if rows is None else rows // 5, "test": MOST_TEST}
    if task.path.startswith("cells/"):
        cells = read_cells(folder / f"{task.path}.h5ad")
        frame = cells.obs.reset_index(drop=True)
    else:
        cells, frame = None, pd.read_parquet(folder / f"{task.path}.parquet")
    names = {"train": ("train", "reference"), "val": ("val",), "test": ("test", "test_public", "query")}
    parts = {}
    for part, called in names.items():
        chosen = frame[frame[task.split].isin(called)]
        if task.kind == "token":
            chosen = chosen[(chosen["SN_filter"] != 0) & chosen["scored"]]
        else:
            chosen = chosen[chosen[task.target].notna()]
        if (count := most[part]) is not None and len(chosen) > count:
            chosen = chosen.sample(count, random_state=0)
        if task.kind == "classification" and parts:  # a class that is in no training row cannot be learnt
            chosen = chosen[chosen[task.target].isin(parts["train"].y)]
        if not len(chosen):
            continue
        X = sequences(chosen, task, model) if cells is None else cells[chosen.index.to_numpy()]
        groups = chosen["group"].to_numpy() if "group" in chosen else None
        clean = None if task.clean is None else ~chosen[task.clean].fillna(False).to_numpy(bool)
        parts[part] = Part(X, labels(chosen, task), groups, clean)
    return parts


def sequences(frame: pd.DataFrame, task: Task, model: str) -> list[str]:
    """As the model reads them."""
    if not (task.coding and model.startswith("helix")):
        return frame["sequence"].tolist()
    return [mark_codons(one, 0, len(one) - len(one) % 3) for one in frame["sequence"]]


def labels(frame: pd.DataFrame, task: Task) -> Any:
    """As the estimator reads them."""
    if task.kind != "token":
        return frame[task.target].to_numpy()
    found = []
    for row in frame.itertuples():
        table = np.full((len(row.sequence), len(OPENVACCINE)), np.nan)
        for k, name in enumerate(OPENVACCINE):
            table[: row.seq_scored, k] = getattr(row, name)
        found.append(table)
    return found


def groups_to_keep(train: Part, test: Part) -> Any:
    """The groups of the training rows, unless the published split tests on the same groups."""
    cut = train.groups is not None and np.isin(test.groups, train.groups).any()
    return None if cut else train.groups

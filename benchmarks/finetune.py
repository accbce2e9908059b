"""What the embedded models add, task by task: frozen, LoRA and whole, against the same network untrained.

    RIBOZYME_DATA=... python benchmarks/finetune.py -o finetune.json
    RIBOZYME_DATA=... python benchmarks/finetune.py --only families --rows 400 --seeds 1

Every labelled table of RIBOZYME_DATA with its own split: trained on `train`, the best epoch chosen on `val`
(or a tenth of `train`, whole groups), scored once on `test`. Each mode of training is run with several seeds,
which draw the head, the order and the weights of untrained networks; the interval is of the first seed, by
bootstrap over (groups of) test examples. Beside them the simple baselines, tuned on the training part, and
the figures that others report. Where test rows have near copies among training rows, clean rows are scored
too.
"""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

import ribozyme as rz
from ribozyme.errors import InputWarning
from ribozyme.io.cells import read_cells
from ribozyme.pp.codons import mark_codons
from ribozyme.train.baselines import baselines

ROOT = Path(__file__).parents[1]
MODES: dict[str, dict[str, Any]] = {
    "frozen": {"layers": 0},
    "lora": {"layers": 0, "lora_rank": 8, "epochs": 15},
    "full": {"layers": None, "learning_rate": 1e-3, "epochs": 15},
}
MAIN = {"regression": "spearman", "classification": "accuracy", "token": "r2"}
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


def _cells(path: str, published: str) -> Task:
    return Task(f"cells/{path}", "cell_type", "classification", CELLS, published)


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
    "sorted": _cells("annotate_pbmc_sorted", "PCA + logistic regression .857"),
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


@dataclass(slots=True)
class Line:
    """One predictor on one task: the main metric by seed, all metrics of the first seed."""

    task: str
    model: str
    mode: str
    metric: str
    n: int
    values: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    seconds: float = 0.0
    scores: dict[str, Any] = field(default_factory=dict)


def read(task: Task, folder: Path, rows: int | None, model: str) -> dict[str, Part]:
    """The parts of a task as a model reads them; of large ones `rows` of each, drawn with seed 0."""
    if task.path.startswith("cells/"):
        cells = read_cells(folder / f"{task.path}.h5ad")
        frame = cells.obs.reset_index(drop=True)
    else:
        cells, frame = None, pd.read_parquet(folder / f"{task.path}.parquet")
    names = {"train": ("train",), "val": ("val", "validation"), "test": ("test", "test_public")}
    parts = {}
    for part, called in names.items():
        chosen = frame[frame[task.split].isin(called)]
        if task.kind == "token":
            chosen = chosen[(chosen["SN_filter"] != 0) & chosen["scored"]]
        else:
            chosen = chosen[chosen[task.target].notna()]
        if rows is not None and len(chosen) > rows:
            chosen = chosen.sample(rows, random_state=0)
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


def estimator(task: Task, model: Any, seed: int, mode: str) -> Any:
    """An estimator of the task in a mode."""
    kind = {"regression": rz.Regressor, "classification": rz.Classifier, "token": rz.TokenRegressor}[
        task.kind
    ]
    how = {"overlong": "truncate", "seed": seed, "batch_size": 32, "patience": 4, **MODES[mode]}
    if task.kind != "token" and not task.path.startswith("cells/"):
        how["pooling"] = "mean+last" if getattr(model.config, "causal", False) else "mean"
    return kind(model, **how)


def scored(line: Line, fitted: Any, test: Part, first: bool) -> None:
    """Add one run to the line."""
    how = {} if test.groups is None else {"groups": test.groups}
    found = fitted.evaluate(test.X, test.y, **(how if first else {"resamples": 0}))
    line.values.append(found[line.metric].value)
    if first:
        line.scores = {name: score.to_dict() for name, score in found.items()}
    if test.clean is not None:
        rows = np.flatnonzero(test.clean)
        X, y = [test.X[k] for k in rows], test.y[rows]
        line.clean.append(fitted.evaluate(X, y, resamples=0)[line.metric].value)


def run_task(
    name: str,
    task: Task,
    folder: Path,
    rows: int | None,
    seeds: int,
    modes: Sequence[str],
    said: Callable[..., None],
) -> list[Line]:
    """Every model and baseline on a task."""
    lines = []
    for model in task.models:
        parts = read(task, folder, rows, model)
        train, test = parts["train"], parts["test"]
        held = (parts["val"].X, parts["val"].y) if "val" in parts else None
        groups = groups_to_keep(train, test)
        for mode in modes:
            for trained in (True, False):
                line = Line(
                    name, model if trained else f"{model}, untrained", mode, metric_of(task), len(test)
                )
                began = time.perf_counter()
                for seed in range(seeds):
                    loaded = rz.load(model, dtype="float32")
                    network = loaded if trained else loaded.untrained(seed)
                    fitted = estimator(task, network, seed, mode)
                    fitted.fit(train.X, train.y, groups=groups, validation_data=held)
                    scored(line, fitted, test, seed == 0)
                line.seconds = (time.perf_counter() - began) / seeds
                lines.append(line)
                said(line)
    parts = read(task, folder, rows, "")
    train, groups = parts["train"], groups_to_keep(parts["train"], parts["test"])
    level = "token" if task.kind == "token" else "input"
    kind: Any = "regression" if task.kind == "token" else task.kind
    for called, baseline in baselines(kind, train.X, level=level, groups=groups).items():
        line = Line(name, called, "baseline", metric_of(task), len(parts["test"]))
        began = time.perf_counter()
        baseline.fit(train.X, train.y, **({"groups": groups} if called == "TextCNN" else {}))
        scored(line, Plain(baseline, kind, level), parts["test"], True)
        line.seconds = time.perf_counter() - began
        lines.append(line)
        said(line)
    return lines


def groups_to_keep(train: Part, test: Part) -> Any:
    """The groups of the training rows, unless the published split tests on the same groups."""
    cut = train.groups is not None and np.isin(test.groups, train.groups).any()
    return None if cut else train.groups


@dataclass(frozen=True, slots=True)
class Plain:
    """A baseline with the `evaluate` of our estimators."""

    baseline: Any
    kind: Any
    level: str

    def evaluate(self, X: Any, y: Any, **how: Any) -> dict[str, rz.metrics.Score]:
        """Every metric."""
        predicted = self.baseline.predict(X)
        if self.level == "token":
            return rz.metrics.letters_summary(self.kind, y, predicted, **how)
        if self.kind == "regression":
            return rz.metrics.summary("regression", y, predicted, **how)
        chances = self.baseline.predict_proba(X)
        return rz.metrics.summary(self.kind, y, predicted, chances, classes=self.baseline.classes_, **how)


def metric_of(task: Task) -> str:
    """The metric that is shown."""
    return task.metric or MAIN[task.kind]


def say(line: Line) -> None:
    """One line as soon as it is known."""
    print(f"{line.task} {line.model} {line.mode}: {np.mean(line.values):.3f}", flush=True)


def shown(lines: Sequence[Line]) -> Table:
    """A row a predictor."""
    table = Table(
        "task", "model", "mode", "metric", "mean of seeds", "sd", "interval (seed 0)", "clean", "s", box=None
    )
    for one in lines:
        score = one.scores[one.metric]
        interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
        spread = f"{np.std(one.values, ddof=1):.3f}" if len(one.values) > 1 else ""
        clean = f"{np.mean(one.clean):.3f}" if one.clean else ""
        mean = f"{np.mean(one.values):.3f}"
        table.add_row(
            one.task, one.model, one.mode, one.metric, mean, spread, interval, clean, f"{one.seconds:.0f}"
        )
    return table


def main(
    only: Annotated[str, typer.Option(help="tasks, joined by commas; all by default")] = "",
    modes: Annotated[str, typer.Option(help="frozen, lora, full")] = "frozen,full",
    seeds: Annotated[int, typer.Option(help="runs of each")] = 3,
    rows: Annotated[int | None, typer.Option(help="of each part at most, for a quick look")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="a .json file")] = None,
) -> None:
    """Fine-tune the embedded models on the tables of RIBOZYME_DATA; print a table, write JSON."""
    warnings.simplefilter("ignore", InputWarning)
    folder = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
    names = only.split(",") if only else list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise typer.BadParameter(f"{unknown[0]!r} is not among {', '.join(TASKS)}")
    console = Console(width=150)
    machine = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    lines: list[Line] = []
    for name in names:
        lines += run_task(name, TASKS[name], folder, rows, seeds, modes.split(","), say)
        if output is not None:
            about = {
                "machine": machine,
                "rows": rows,
                "seeds": seeds,
                "modes": MODES,
                "ribozyme": rz.__version__,
            }
            content = {
                **about,
                "tasks": {n: asdict(TASKS[n]) for n in names},
                "lines": [asdict(x) for x in lines],
            }
            output.write_text(json.dumps(content, indent=1) + "\n")
    console.print(shown(lines))
    for name in names:
        if TASKS[name].published:
            console.print(f"{name}: others report {TASKS[name].published}", highlight=False)


if __name__ == "__main__":
    typer.run(main)

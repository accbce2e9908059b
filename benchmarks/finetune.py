"""What the embedded models add, task by task: frozen, LoRA and whole, against the same network untrained.

    RIBOZYME_DATA=... python benchmarks/finetune.py -o finetune
    RIBOZYME_DATA=... python benchmarks/finetune.py -o quick --only families --rows 400 --seeds 1

Every labelled table of RIBOZYME_DATA with its own split: trained on `train`, asked once about `test` (at most
2,000 rows). Each mode of training is run with several seeds, which draw the head, the order and the weights
of untrained networks. Beside them the simple baselines, tuned on the training part. Where test rows have near
copies among training rows, clean rows are scored too.

`frozen` is a linear head on the embeddings. It learns from what the baselines learn from and no more.
`framed` is the same on three means of a sequence, one for each place in a codon (pooling `frame`); tables of
cells and of letters have no such mode. `lora` and `full` choose their best epoch on `val` (or a tenth of
`train`, whole groups). `frozen+counts` is the mean of what `frozen` and the linear baseline on counts (of
codons, k-mers, genes) predict: what embeddings add.

Predictions are kept in the folder, a file a training. The same command does what is not there yet, so the
whole of it, many hours, may be run in parts and by several processes; `--show` only makes the tables. A
TextCNN takes hours on long sequences: `--baselines k-mers,codons,forest`.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from finetune_tasks import METRICS, MOST_TEST, TASKS, Part, Task, groups_to_keep, read
from parity import machine, wide_console
from rich.table import Table

import ribozyme as rz
from ribozyme.errors import InputWarning
from ribozyme.files import AtomicFile, digest
from ribozyme.hub import resolve
from ribozyme.metrics import Score, UndefinedError, difference
from ribozyme.metrics.summary import paired_letters
from ribozyme.train.baselines import baselines

ROOT = Path(__file__).parents[1]
MODES: dict[str, dict[str, Any]] = {
    "frozen": {"layers": 0, "validation": 0.0},
    "framed": {"layers": 0, "validation": 0.0, "pooling": "frame"},
    "lora": {"layers": 0, "lora_rank": 8, "epochs": 15},
    "full": {"layers": None, "learning_rate": 5e-4, "epochs": 10},
}
COUNTS = ("codons", "k-mers", "PCA", "neighbourhood")
"""Linear baselines; the first that a task has is the one of `frozen+counts`. Others: a forest, a TextCNN."""
RESAMPLES = 400

Values = Any


@dataclass(frozen=True, slots=True)
class Training:
    """One predictor of one task. model : or the name of a baseline; mode : of `MODES`, or `baseline`"""

    task: str
    model: str
    mode: str
    untrained: bool = False
    seed: int = 0

    @property
    def file(self) -> str:
        """Where its predictions are kept."""
        kind = f"{self.mode}-untrained" if self.untrained else self.mode
        return f"{self.task}.{self.model}.{kind}.{self.seed}.npz"


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a predictor says of the test part; of letters, those that have a label, end to end.

    true, predicted : (n,) or (n, k); of a metric of probabilities `predicted` is (n, classes)
    groups : (n,) rows that are drawn together
    clean : (n,) without a copy among the training rows; all, where none is known
    classes : columns of probabilities, else empty
    """

    true: Values
    predicted: Values
    groups: Values
    clean: Values
    classes: Values
    seconds: float
    about: str

    def write(self, path: Path) -> None:
        """All of it, or nothing."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        with AtomicFile(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **content)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """What `write` wrote."""
        with np.load(path, allow_pickle=False) as kept:
            content = {one.name: kept[one.name] for one in fields(cls)}
        return cls(**{**content, "seconds": float(content["seconds"]), "about": str(content["about"].item())})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. weights : of each model, its name or a folder"""

    data: Path
    rows: int | None
    weights: dict[str, str]

    def about(self, one: Training) -> str:
        """What must be the same for predictions to be kept."""
        known: dict[str, Any] = {"rows": self.rows, "test": MOST_TEST, "task": repr(TASKS[one.task])}
        if one.mode != "baseline":
            known["how"] = MODES[one.mode]
        if one.mode != "baseline" and not one.untrained:
            known["weights"] = _digest(self.weights[one.model])
        return json.dumps(known)

    def done(self, one: Training, folder: Path) -> bool:
        """Whether its predictions are there."""
        path = folder / one.file
        return path.exists() and Predictions.read(path).about == self.about(one)

    def run(self, one: Training) -> Predictions:
        """Train, and predict."""
        task, began = TASKS[one.task], perf_counter()
        parts = _parts(one.task, self.data, self.rows, "" if one.mode == "baseline" else one.model)
        train, test = parts["train"], parts["test"]
        groups = groups_to_keep(train, test)
        if one.mode == "baseline":
            fitted = _baselines(task, train, groups)[one.model]
            whole = {"groups": groups} if one.model == "TextCNN" else {}
            fitted.fit(train.X, train.y, **whole)
        else:
            loaded = rz.load(self.weights[one.model], dtype="float32")
            network = loaded.untrained(one.seed) if one.untrained else loaded
            held = None
            if "val" in parts and one.mode != "frozen":
                held = (parts["val"].X, parts["val"].y)
            fitted = estimator(task, network, one.seed, one.mode)
            fitted.fit(train.X, train.y, groups=groups, validation_data=held)
        return predictions(task, fitted, test, self.about(one), began)


@lru_cache
def _digest(weights: str) -> str:
    return digest(resolve(weights).path / "model.safetensors")


@lru_cache(maxsize=1)
def _parts(task: str, data: Path, rows: int | None, model: str) -> dict[str, Part]:
    return read(TASKS[task], data, rows, model)


def _baselines(task: Task, train: Part, groups: Any) -> dict[str, Any]:
    kind: Any = "regression" if task.kind == "token" else task.kind
    level: Any = "token" if task.kind == "token" else "input"
    return baselines(kind, train.X, level=level, groups=groups)


def estimator(task: Task, model: Any, seed: int, mode: str) -> Any:
    """An estimator of the task in a mode."""
    kind = {"regression": rz.Regressor, "classification": rz.Classifier, "token": rz.TokenRegressor}[
        task.kind
    ]
    how = {"overlong": "truncate", "seed": seed, "batch_size": 32, "patience": 4, **MODES[mode]}
    if _of_sequences(task):
        last = "+last" if getattr(model.config, "causal", False) else ""
        how["pooling"] = how.get("pooling", "mean") + last
    return kind(model, **how)


def _of_sequences(task: Task) -> bool:
    return task.kind != "token" and not task.path.startswith("cells/")


def predictions(task: Task, fitted: Any, test: Part, about: str, began: float) -> Predictions:
    """Of the test part; rows that get no prediction (cells without a known gene) are left out."""
    classes = np.array([])
    if task.kind == "classification":
        predicted, classes = fitted.predict_proba(test.X), np.asarray(fitted.classes_)
    else:
        predicted = fitted.predict(test.X)
    if task.kind == "token":
        true, (predicted,), owner = paired_letters(test.y, predicted)
    else:
        true, owner = np.asarray(test.y), np.arange(len(test.y))
    groups = owner if test.groups is None else np.unique(test.groups, return_inverse=True)[1][owner]
    clean = np.ones(len(true), bool) if test.clean is None else test.clean[owner]
    known = ~np.isnan(np.asarray(predicted, float).reshape(len(true), -1)).any(1)
    kept = [np.asarray(one)[known] for one in (true, predicted, groups, clean)]
    kept[0] = kept[0].astype(str if task.kind == "classification" else float)
    return Predictions(*kept, classes.astype(str), perf_counter() - began, about)


def statistic(metric: str, classes: Values) -> Callable[[Values, Values], float]:
    """The mean of a metric over seeds: true (n, ...), predicted (n, seeds, ...)."""

    def one(true: Values, predicted: Values) -> float:
        if metric == "roc_auc":
            score = rz.metrics.roc_auc(true, predicted, classes=classes, resamples=0)
        elif metric == "accuracy":
            score = rz.metrics.accuracy(true, classes[predicted.argmax(1)], resamples=0)
        else:
            score = getattr(rz.metrics, metric)(true, predicted, resamples=0)
        if np.isnan(score.value):
            raise UndefinedError(score.reason)
        return score.value

    return lambda true, predicted: float(
        np.mean([one(true, predicted[:, k]) for k in range(predicted.shape[1])])
    )


def with_counts(kept: dict[Training, Predictions]) -> dict[Training, Predictions]:
    """The mode `frozen+counts`, of what is there."""
    found = {}
    for one, p in kept.items():
        linear = (kept.get(Training(one.task, name, "baseline")) for name in COUNTS)
        if one.mode == "frozen" and (simple := next(filter(None, linear), None)):
            mean = (p.predicted + simple.predicted) / 2
            found[replace(one, mode="frozen+counts")] = replace(p, predicted=mean)
    return found


@dataclass(frozen=True, slots=True)
class Rival:
    """What a model is compared with: its value of the metric, and by how much the model is better.

    gain : with the interval over groups of test rows
    """

    name: str
    value: float
    gain: Score


@dataclass(frozen=True, slots=True)
class Compared:
    """A model on a task in a mode.

    by_seed : of the metric
    untrained : the same network untrained, mean over seeds
    linear, best : the baseline that is best on the test rows, of the linear ones and of all
    clean : (trained, best baseline) on the rows without a copy among the training rows
    """

    task: str
    model: str
    mode: str
    metric: str
    n: int
    by_seed: list[float]
    untrained: Rival
    linear: Rival
    best: Rival
    clean: tuple[float, float] | None
    seconds: float


def compare(task: str, model: str, mode: str, kept: dict[Training, Predictions]) -> Compared | None:
    """Of what is there; None without the model, trained and untrained, or without a linear baseline."""

    def of(untrained: bool) -> list[Predictions]:
        wanted = replace(Training(task, model, mode), untrained=untrained)
        return [p for one, p in kept.items() if replace(one, seed=0) == wanted]

    trained, untrained = of(False), of(True)
    simple = {one.model: p for one, p in kept.items() if (one.task, one.mode) == (task, "baseline")}
    if not (trained and untrained and set(simple) & set(COUNTS)):
        return None
    first = trained[0]
    metric = TASKS[task].metric or METRICS[TASKS[task].kind]
    measured = statistic(metric, first.classes)
    ours, theirs = _stacked(trained), _stacked(untrained)
    others = {"untrained": theirs} | {name: _stacked([p]) for name, p in simple.items()}
    values = {name: measured(first.true, of) for name, of in others.items()}
    best = max(simple, key=lambda name: values[name])
    linear = max((name for name in COUNTS if name in simple), key=lambda name: values[name])
    how = {"groups": first.groups, "resamples": RESAMPLES}
    found = {
        name: Rival(name, values[name], difference(measured, first.true, ours, others[name], **how))
        for name in {"untrained", linear, best}
    }
    clean = None
    if not first.clean.all():
        clean = tuple(measured(first.true[first.clean], p[first.clean]) for p in (ours, others[best]))
    return Compared(
        task,
        model,
        mode,
        metric,
        len(first.true),
        [measured(first.true, ours[:, k : k + 1]) for k in range(len(trained))],
        found["untrained"],
        found[linear],
        found[best],
        clean,
        float(np.mean([p.seconds for p in trained])),
    )


def _stacked(found: Sequence[Predictions]) -> Values:
    return np.stack([one.predicted for one in found], axis=1)


COLUMNS = (
    *("task", "metric", "n", "model", "mode", "trained", "sd", "untrained", "gain"),
    *("linear", "gain over it", "best of all", "gain over it", "clean", "s"),
)


def row_of(one: Compared) -> tuple[str, ...]:
    """What the tables say of a model, task and mode."""
    spread = f"{np.std(one.by_seed, ddof=1):.3f}" if len(one.by_seed) > 1 else ""
    clean = "" if one.clean is None else f"{one.clean[0]:.3f}, {one.clean[1]:.3f}"
    start = (one.task, one.metric, str(one.n), one.model, one.mode, f"{np.mean(one.by_seed):.3f}", spread)
    untrained = (f"{one.untrained.value:.3f}", _signed(one.untrained.gain))
    simple = (
        cell for of in (one.linear, one.best) for cell in (f"{of.name} {of.value:.3f}", _signed(of.gain))
    )
    return (*start, *untrained, *simple, clean, f"{one.seconds:.0f}")


def shown(lines: Sequence[Compared]) -> Table:
    """For a terminal."""
    table = Table(*COLUMNS, box=None)
    for one in lines:
        table.add_row(*row_of(one))
    return table


def markdown(lines: Sequence[Compared]) -> str:
    """For the documentation."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row_of(one) for one in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def overview(lines: Sequence[Compared]) -> str:
    """A row a model and task, a column a mode: trained (untrained), for the documentation."""
    modes = [mode for mode in MODES if any(one.mode == mode for one in lines)]
    columns = ("model", "task", "metric", "n", "linear", "best of all", *modes, "others report")
    rows = [columns, ("---",) * len(columns)]
    for model, task in dict.fromkeys((one.model, one.task) for one in lines):
        of = {one.mode: one for one in lines if (one.model, one.task) == (model, task)}
        first = next(iter(of.values()))
        simple = (f"{one.name} {one.value:.3f}" for one in (first.linear, first.best))
        values = (_marked(of[mode]) if mode in of else "" for mode in modes)
        rows.append((model, task, first.metric, str(first.n), *simple, *values, TASKS[task].published))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _marked(one: Compared) -> str:
    """With a star where it is better by more than chance than untrained and linear, bold if than all."""
    value = f"{np.mean(one.by_seed):.3f}"
    over = [rival.gain.low > 0 for rival in (one.untrained, one.linear, one.best)]
    shown = f"**{value}**" if all(over) else f"{value}*" if all(over[:2]) else value
    return f"{shown} ({one.untrained.value:.3f})"


def _signed(score: Score) -> str:
    """With a star where the interval does not hold 0."""
    if np.isnan(score.low):
        return f"{score.value:+.3f}"
    star = "*" if score.low > 0 or score.high < 0 else ""
    return f"{score.value:+.3f}{star} [{score.low:+.3f}, {score.high:+.3f}]"


def won(lines: Sequence[Compared]) -> Iterator[str]:
    """How often each model is better, and worse, by more than chance."""
    for model, mode in dict.fromkeys((one.model, one.mode) for one in lines):
        own = [one for one in lines if (one.model, one.mode) == (model, mode)]
        for name, gains in (
            ("the untrained network", [one.untrained.gain for one in own]),
            ("the linear baseline", [one.linear.gain for one in own]),
            ("the best of all baselines", [one.best.gain for one in own]),
        ):
            better, worse = sum(g.low > 0 for g in gains), sum(g.high < 0 for g in gains)
            yield f"{model}, {mode}: better than {name} in {better}, worse in {worse} of {len(own)} tasks"


def write_cards(lines: Sequence[Compared], plan: Plan) -> None:
    """`scores.json` beside the weights of each model: what `ribozyme info` shows."""
    size = "all rows" if plan.rows is None else f"at most {plan.rows} training rows"
    for model in dict.fromkeys(one.model for one in lines):
        own = [one for one in lines if one.model == model]
        folder = resolve(plan.weights[model]).path
        tasks = {f"{one.task}, {one.mode}": _on_card(one) for one in own}
        content = {
            "weights_sha256": _digest(plan.weights[model]),
            "what": f"benchmarks/finetune.py, {size}; gains with 95 % intervals over groups of test rows",
            "limits": "; ".join(won(own)),
            "tasks": tasks,
        }
        (folder / "scores.json").write_text(json.dumps(content, indent=1) + "\n")


def _on_card(one: Compared) -> dict[str, dict[str, float]]:
    """The scores, and the gains as value, low and high."""
    rivals = {
        "untrained": one.untrained,
        f"linear baseline ({one.linear.name})": one.linear,
        f"best baseline ({one.best.name})": one.best,
    }
    found = {"trained": {one.metric: round(float(np.mean(one.by_seed)), 3)}}
    for name, of in rivals.items():
        gain = {key: getattr(of.gain, key) for key in ("value", "low", "high")}
        known = {key: round(value, 3) for key, value in gain.items() if not np.isnan(value)}
        found |= {name: {one.metric: round(of.value, 3)}, f"over {name}": known}
    return found


def to_do(
    names: Sequence[str], modes: Sequence[str], simple: Sequence[str], seeds: int, plan: Plan
) -> Iterator[Training]:
    """Baselines first, of those in `simple`, then seed by seed."""
    models = plan.weights
    for name in names:
        task = TASKS[name]
        if set(models) & set(task.models):
            train = _parts(name, plan.data, plan.rows, "")["train"]
            known = (one for one in _baselines(task, train, None) if one in simple)
            yield from (Training(name, one, "baseline") for one in known)
    for seed in range(seeds):
        for mode in modes:
            for name in names:
                known = TASKS[name].models if mode != "framed" or _of_sequences(TASKS[name]) else ()
                for model in (one for one in known if one in models):
                    yield from (Training(name, model, mode, untrained, seed) for untrained in (False, True))


def kept_in(folder: Path, plan: Plan) -> dict[Training, Predictions]:
    """The predictions of a folder that are of this plan: its models, their weights, its rows."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        task, model, kind, seed = path.name.removesuffix(".npz").split(".")
        mode = kind.removesuffix("-untrained")
        one, of = Training(task, model, mode, kind != mode, int(seed)), Predictions.read(path)
        if (mode == "baseline" or model in plan.weights) and of.about == plan.about(one):
            found[one] = of
    return found


def report(folder: Path, plan: Plan) -> list[Compared]:
    """Print the tables; write them as JSON, and in Markdown."""
    kept = kept_in(folder, plan)
    kept |= with_counts(kept)
    combinations = dict.fromkeys((one.task, one.model, one.mode) for one in kept if one.mode != "baseline")
    order = list(TASKS)
    found = [
        compare(*one, kept) for one in sorted(combinations, key=lambda c: (c[1], c[2], order.index(c[0])))
    ]
    lines = [one for one in found if one is not None]
    console = wide_console()
    console.print(shown(lines))
    for line in won(lines):
        console.print(line, highlight=False)
    for name in dict.fromkeys(one.task for one in lines):
        if TASKS[name].published:
            console.print(f"{name}: others report {TASKS[name].published}", highlight=False)
    about = {"machine": machine(), "rows": plan.rows, "modes": MODES, "ribozyme": rz.__version__}
    content = {**about, "lines": [_line(one) for one in lines]}
    (folder / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "overview.md").write_text(overview(lines))
    (folder / "table.md").write_text(markdown(lines) + "\n" + "".join(f"- {line}\n" for line in won(lines)))
    return lines


def _line(one: Compared) -> dict[str, Any]:
    values = {field.name: getattr(one, field.name) for field in fields(one)}
    return {name: _rival(of) if isinstance(of, Rival) else of for name, of in values.items()}


def _rival(one: Rival) -> dict[str, Any]:
    return {"name": one.name, "value": one.value, "gain": one.gain.to_dict()}


def _among(given: str, known: list[str]) -> list[str]:
    """Names joined by commas; all that are known where none is given."""
    names = given.split(",") if given else known
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is not among {', '.join(known)}")
    return names


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of the predictions")],
    only: Annotated[str, typer.Option(help="tasks, joined by commas; all by default")] = "",
    models: Annotated[str, typer.Option(help="joined by commas; NAME=FOLDER for other weights")] = (
        "helix-mrna-mini,rnafm-mini,scgpt-mini"
    ),
    modes: Annotated[str, typer.Option(help="frozen, framed, lora, full")] = "frozen,full",
    simple_: Annotated[str, typer.Option("--baselines", help="joined by commas; all by default")] = "",
    seeds: Annotated[int, typer.Option(help="runs of each")] = 3,
    rows: Annotated[int | None, typer.Option(help="to train on, at most")] = None,
    show: Annotated[bool, typer.Option("--show", help="train nothing")] = False,
    cards: Annotated[bool, typer.Option("--cards", help="write the scores beside the weights")] = False,
) -> None:
    """Fine-tune the embedded models on the tables of RIBOZYME_DATA; print a table, write JSON."""
    warnings.simplefilter("ignore", InputWarning)
    names, wanted = _among(only, list(TASKS)), _among(modes, list(MODES))
    simple = _among(simple_, [*COUNTS, "forest", "TextCNN"])
    weights = {name: folder or name for name, _, folder in (one.partition("=") for one in models.split(","))}
    data = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
    plan = Plan(data, rows, weights)
    output.mkdir(parents=True, exist_ok=True)
    for one in () if show else to_do(names, wanted, simple, seeds, plan):
        if not plan.done(one, output):
            found = plan.run(one)
            found.write(output / one.file)
            print(f"{one.file.removesuffix('.npz')}: {found.seconds:.0f} s", flush=True)
    lines = report(output, plan)
    if cards:
        write_cards(lines, plan)


if __name__ == "__main__":
    typer.run(main)

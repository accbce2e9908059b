"""What the embedded models learnt in pretraining, beside simple models of the same corpus.

    RIBOZYME_DATA=... python benchmarks/pretrain.py -o pretrain.json --picture curves.png
    RIBOZYME_DATA=... python benchmarks/pretrain.py --only rnafm --weights runs/rnafm-mini

The part of each corpus that `scripts/train_mini.py` holds out (`ribozyme.train.pretrain.parts`) is given to
the models as their training validates them; the simple models (`pretrain_baselines.py`) are fitted on the
other part, and see what the models see. Intervals are by bootstrap over sequences, or cells.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from parity import data_folder, machine
from pretrain_baselines import OTHER, Contexts, GeneMeans, LikeCells, Text, side_by_side
from rich.console import Console
from rich.table import Table

import ribozyme as rz
from ribozyme.metrics import Score, bootstrap
from ribozyme.packing import plan
from ribozyme.train.objectives import Example, MaskedLetters, MaskedValues, NextLetter
from ribozyme.train.pretrain import Recipe, objective_of, parts

ROOT = Path(__file__).parents[1]
MODELS = ("helix-mrna-mini", "rnafm-mini", "scgpt-mini")
MOST, BUDGET, PIECE = 4_096, 4_096, 512
"""Held-out examples; tokens that go through a network at once; training examples that are counted at once."""
TUNED = 50
"""Every so many training examples are not counted: the simple models are tuned on them."""
WHOLE = 1 << 30

Sums = npt.NDArray[np.float64]
"""(n, k) of each sequence or cell, from whose totals a measure is made."""
Objective = NextLetter | MaskedLetters


@dataclass(frozen=True, slots=True)
class Case:
    """A corpus, and how it is read."""

    model: Any
    corpus: Any
    validation: Any
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Measure:
    """A number from totals; `better` is 1 where more is better, else -1."""

    name: str
    better: int
    of: Callable[[Sums], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One predictor by one measure. ahead : of the best simple model, positive where this one is better"""

    model: str
    what: str
    predictor: str
    measure: str
    score: Score
    ahead: Score | None = None


# ---------------------------------------------------------------------------------------------------- cases


def case(name: str, weights: str | None, *, examples: bool) -> Case:
    """A model with the corpus that it was trained on, or with the examples in the package."""
    model = rz.load(weights or name, device="cpu", dtype="float32")
    if not examples:
        mini = recipes()[name](torch.device("cpu"))
        return Case(model, mini.corpus, mini.validation, replace(mini.stages[-1], contrast=0.0))
    if name == "scgpt-mini":
        cells = rz.data.cells()
        return Case(model, cells[::2].copy(), cells[1::8].copy(), Recipe(longest=99, held=0))
    table = rz.data.mrnas() if name == "helix-mrna-mini" else rz.data.rnas()
    recipe = Recipe(longest=200, coding="mark" if name == "helix-mrna-mini" else "whole", held=0)
    return Case(model, table[::2], table[1::2], recipe)


def recipes() -> dict[str, Callable[[torch.device], Any]]:
    """Of `scripts/train_mini.py`."""
    spec = importlib.util.spec_from_file_location("train_mini", ROOT / "scripts" / "train_mini.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["train_mini"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    found: dict[str, Callable[[torch.device], Any]] = module.RECIPES
    return found


def examples_of(corpus: Any) -> Iterator[Example]:
    return (one for one in corpus.read(np.random.default_rng(0)) if one is not None)


def keys_of(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(2**64, size=count, dtype=np.uint64)


# -------------------------------------------------------------------------------------------------- letters


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about letters: of all, or of those in codons, whose frame is marked.

    simple : how the simple models are made
    """

    what: str
    objective: Objective
    coding: bool
    simple: dict[str, Callable[[], Contexts]]


def asked_of(model: Any, recipe: Recipe) -> list[Asked]:
    """For Helix-mRNA its sequences without and with marks, for RNA-FM its masks."""
    objective = objective_of(model, recipe)
    if isinstance(objective, MaskedLetters):
        around = [sign * k for k in range(1, 6) for sign in (-1, 1)]
        simple = {"unigram": lambda: Contexts(()), "letters on both sides": lambda: Contexts(around)}
        return [Asked("masked letters", objective, False, simple)]
    assert isinstance(objective, NextLetter)
    before = [-k for k in range(1, 11)]
    chain = {"unigram": lambda: Contexts(()), "Markov chain": lambda: Contexts(before)}
    plain, marked = objective, None
    if objective.reading.optional is not None:  # E, which is always left out, or never
        bare = replace(objective.reading, optional=(objective.reading.optional[0], 1.0))
        plain = replace(objective, reading=bare)
        marked = replace(objective, reading=replace(objective.reading, optional=None))
    found = [Asked("next nucleotide", plain, False, chain)]
    if marked is not None:
        phased = {"Markov chain with the frame": lambda: Contexts(before[:8], phased=True)}
        found.append(Asked("next nucleotide in codons, marked", marked, True, chain | phased))
    return found


class Reader:
    """From a batch of the objective to a `Text`: letters as 0-3, and the place in the codon."""

    def __init__(self, model: Any, asked: Asked) -> None:
        letters = model.tokenizer.letters
        self.numbers = np.array(["ACGU".find(one) if one else -1 for one in letters], np.int8)
        self.numbers[self.numbers < 0] = OTHER
        self.mark = letters.index("E") if "E" in letters else -1
        self.mask = model.tokenizer.mask_id
        self.coding = asked.coding

    def clean(self, batch: Any) -> npt.NDArray[np.int64]:
        """The letters as they were."""
        ids = batch.inputs.ids.numpy().copy()
        if self.mask is not None:
            ids[batch.targets["rows"].numpy()] = batch.targets["letters"].numpy()
        return ids

    def frames(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """1, 2, 3 for the three letters after a mark, else 0."""
        marks = np.where(ids == self.mark, np.arange(len(ids)), -4)
        after = np.arange(len(ids)) - np.maximum.accumulate(marks)
        return np.where(after <= 3, after, 0)

    def scored(self, batch: Any) -> npt.NDArray[np.bool_]:
        """(rows,) which of the asked rows count: A C G U, masked or in a codon."""
        letters = batch.targets["letters"].numpy()
        rows = batch.targets["rows"].numpy()
        counts = self.numbers[letters] < OTHER
        if self.mask is not None:
            counts &= batch.inputs.ids.numpy()[rows] == self.mask
        if self.coding:
            counts &= self.frames(batch.inputs.ids.numpy())[rows + 1] > 0
        return np.asarray(counts)

    def text(self, batch: Any, *, everything: bool) -> Text:
        """What is scored as a text, or every letter, to be counted."""
        clean, ids = self.clean(batch), batch.inputs.ids.numpy()
        asked = self.numbers[clean] < OTHER
        if not everything:
            rows = batch.targets["rows"].numpy()[self.scored(batch)] + (self.mask is None)
            asked = np.zeros(len(ids), bool)
            asked[rows] = True
        frames, letter = self.frames(ids), ids != self.mark
        split = [letter[a:b] for a, b in _spans(batch)]

        def each(values: Any) -> list[Any]:
            return [values[a:b][kept] for (a, b), kept in zip(_spans(batch), split)]

        numbers = self.numbers
        return side_by_side(each(numbers[ids]), each(asked), each(numbers[clean]), each(frames))


def _spans(batch: Any) -> list[tuple[int, int]]:
    ends = batch.inputs.cu_seqlens.tolist()
    return list(pairwise(ends))


def fit_letters(reader: Reader, asked: Asked, corpus: Any) -> dict[str, Contexts]:
    """The simple models, from the whole training part."""
    whole = replace(asked.objective, reading=replace(asked.objective.reading, longest=WHOLE))
    fitted = {name: make() for name, make in asked.simple.items()}
    kept: list[Example] = []
    examples = examples_of(corpus)
    for number in count():
        if not (some := list(islice(examples, PIECE))):
            break
        kept += some[::TUNED]
        others = [one for k, one in enumerate(some) if k % TUNED]
        if others:
            text = reader.text(whole.batch(others, keys_of(len(others), number)), everything=True)
            for model in fitted.values():
                model.add(text)
    tuning = reader.text(whole.batch(kept, keys_of(len(kept))), everything=False)
    for model in fitted.values():
        model.tune(tuning)
    return fitted


@torch.inference_mode()
def score_letters(
    model: Any, reader: Reader, asked: Asked, simple: dict[str, Contexts], held: Sequence[Example]
) -> dict[str, Sums]:
    """Of each sequence nats, letters, and letters that were told right, by predictor."""
    keys = keys_of(len(held))
    sums = {name: np.zeros((len(held), 3)) for name in ("model", *simple)}
    for group in plan([asked.objective.length(one) for one in held], BUDGET):
        batch = asked.objective.batch([held[k] for k in group], keys[group])
        counts = torch.from_numpy(reader.scored(batch))
        rows, letters = batch.targets["rows"][counts], batch.targets["letters"][counts]
        owner = np.repeat(group, batch.inputs.lengths)[rows.numpy()]
        logits = model.module.logits(model.module.encode(batch.inputs)[rows]).float().log_softmax(-1)
        nats = -logits.gather(1, letters[:, None])[:, 0].numpy()
        _add(sums["model"], owner, nats, (logits.argmax(-1) == letters).numpy())
        text = reader.text(batch, everything=False)
        for name, contexts in simple.items():
            found = contexts(text)
            nats = -np.log(found[np.arange(len(found)), text.letters])
            _add(sums[name], owner, nats, found.argmax(1) == text.letters)
    return sums


def _add(sums: Sums, owner: Any, *columns: Any) -> None:
    nats, right = columns
    for k, column in enumerate((nats, np.ones(len(nats)), right)):
        np.add.at(sums[:, k], owner, column)


PERPLEXITY = Measure("perplexity", -1, lambda sums: float(np.exp(sums[:, 0].sum() / sums[:, 1].sum())))
ACCURACY = Measure("accuracy", 1, lambda sums: float(sums[:, 2].sum() / sums[:, 1].sum()))


def of_letters(name: str, given: Case, most: int) -> Iterator[Line]:
    """The lines of a model of sequences."""
    corpus, held = parts(given.model, given.corpus, given.recipe, given.validation, most=most)
    for asked in asked_of(given.model, given.recipe):
        reader = Reader(given.model, asked)
        simple = fit_letters(reader, asked, corpus)
        sums = score_letters(given.model, reader, asked, simple, held)
        kept = sums["model"][:, 1] > 0
        sums = {_named(key, simple): value[kept] for key, value in sums.items()}
        yield from lines(name, asked.what, sums, (PERPLEXITY, ACCURACY))


def _named(predictor: str, simple: dict[str, Contexts]) -> str:
    order = simple[predictor].order if predictor in simple else 0
    return f"{predictor}, {order} letters" if order else predictor


# ---------------------------------------------------------------------------------------------------- cells


def of_cells(name: str, given: Case, most: int) -> Iterator[Line]:
    """The lines of a model of cells: hidden bins."""
    corpus, held = parts(given.model, given.corpus, given.recipe, given.validation, most=most)
    means = GeneMeans(given.model.config.vocab_size)
    alike = LikeCells(means)
    for one in examples_of(corpus):
        assert one.values is not None
        means.add(one.ids, one.values)
        alike.add(one.ids, one.values)
    alike.ready()
    objective = objective_of(given.model, given.recipe)
    assert isinstance(objective, MaskedValues)
    sums = score_cells(given.model, objective, means, alike, held)
    yield from lines(name, "hidden bins", sums, (ERROR, CORRELATION))


@torch.inference_mode()
def score_cells(
    model: Any, objective: MaskedValues, means: GeneMeans, alike: LikeCells, held: Sequence[Example]
) -> dict[str, Sums]:
    """Of each cell the moments of hidden bins and of what is expected, in units of all bins."""
    keys, bins_in_all = keys_of(len(held)), objective.bins
    sums: dict[str, Sums] = {
        name: np.zeros((len(held), 6)) for name in ("model", "overall mean", "mean of the gene", "like cells")
    }
    for group in plan([objective.length(one) for one in held], BUDGET):
        batch = objective.batch([held[k] for k in group], keys[group])
        predicted = model.module(batch.inputs, heads=("expression",)).expression.value.float().numpy()
        assert batch.inputs.values is not None
        ids, bins = batch.inputs.ids.numpy(), batch.inputs.values.numpy()
        hidden = np.zeros(len(ids), bool)
        hidden[batch.targets["rows"].numpy()] = True
        clean = bins.copy()
        clean[hidden] = batch.targets["values"].numpy()
        for k, (a, b) in zip(group, _spans(batch)):
            asked, seen = hidden[a:b], ~hidden[a:b]
            seen[0] = False  # <cls>
            genes, truth = ids[a:b][asked], clean[a:b][asked]
            told = {
                "model": predicted[a:b][asked],
                "overall mean": np.full(len(genes), means.overall),
                "mean of the gene": means(genes),
                "like cells": alike(ids[a:b][seen], clean[a:b][seen], genes),
            }
            for name, expected in told.items():
                sums[name][k] = moments(truth / bins_in_all, expected / bins_in_all)
    return {name: value[sums["model"][:, 0] > 0] for name, value in sums.items()}


def moments(x: Any, y: Any) -> Sums:
    """n, and the sums of x, y, x^2, y^2 and x y."""
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def correlation(sums: Sums) -> float:
    """Pearson's, over all hidden bins."""
    n, x, y, xx, yy, xy = sums.sum(0)
    of_x, of_y = xx - x * x / n, yy - y * y / n
    if of_x < 1e-9 * xx or of_y < 1e-9 * yy:  # all alike
        return 0.0
    return float((xy - x * y / n) / np.sqrt(of_x * of_y))


def error(sums: Sums) -> float:
    """Mean squared, in units of all bins."""
    n, _, _, xx, yy, xy = sums.sum(0)
    return float((xx + yy - 2 * xy) / n)


ERROR, CORRELATION = Measure("squared error", -1, error), Measure("correlation", 1, correlation)


# -------------------------------------------------------------------------------------------------- results


def lines(model: str, what: str, sums: dict[str, Sums], measures: Sequence[Measure]) -> Iterator[Line]:
    """Each predictor by each measure; the model last, beside the best of the others."""
    for one in measures:
        others = [name for name in sums if name != "model"]
        best = max(others, key=lambda name: one.better * one.of(sums[name]))
        for name in others:
            yield Line(model, what, name, one.name, bootstrap(one.of, sums[name]))
        ahead = bootstrap(lambda a, b, m=one: m.better * (m.of(a) - m.of(b)), sums["model"], sums[best])
        yield Line(model, what, model, one.name, bootstrap(one.of, sums["model"]), ahead)


def show(found: Sequence[Line], console: Console) -> None:
    table = Table("asked", "predictor", "measure", "n", "value", "ahead of the best simple one")
    for one in found:
        mine = one.ahead is not None
        table.add_row(
            one.what,
            f"[bold]{one.predictor}[/]" if mine else one.predictor,
            one.measure,
            f"{one.score.n:,}",
            _interval(one.score),
            _interval(one.ahead) if one.ahead is not None else "",
            end_section=mine,
        )
    console.print(table)


def _interval(score: Score) -> str:
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]"


def draw(names: Sequence[str], path: Path) -> None:
    """The losses of their training, a panel a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder = ROOT / "src" / "ribozyme" / "weights"
    curves = {name: folder / name / "curve.json" for name in names if (folder / name / "curve.json").exists()}
    figure = Figure(figsize=(4.5 * len(curves), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for (name, curve), axes in zip(curves.items(), figure.subplots(1, len(curves), squeeze=False)[0]):
        rz.pl.training_curve(curve, title=name, ax=axes)
    figure.savefig(path, dpi=150)


def main(
    only: Annotated[str, typer.Option(help=f"models with this in the name: {', '.join(MODELS)}")] = "",
    weights: Annotated[
        str | None, typer.Option(help="folder to read instead of the package's weights")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="the examples in the package: that it runs")] = False,
    most: Annotated[int, typer.Option(help="held-out examples of each corpus")] = MOST,
    picture: Annotated[Path | None, typer.Option(help="draw the training curves")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every line")] = None,
) -> None:
    """Print a table a model."""
    console, found = Console(width=150), []
    if not small and data_folder() is None:
        raise typer.BadParameter("set RIBOZYME_DATA, or take --small")
    names = [name for name in MODELS if only in name]
    for name in names:
        given = case(name, weights, examples=small)
        mine = list((of_cells if name.startswith("scgpt") else of_letters)(name, given, most))
        show(mine, console)
        found += mine
    if picture is not None:
        draw(names, picture)
    if output is not None:
        rows = [{**asdict(one), "score": one.score.to_dict(), "ahead": one.ahead and one.ahead.to_dict()}
                for one in found]  # fmt: skip
        output.write_text(json.dumps({"machine": machine(), "small": small, "lines": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

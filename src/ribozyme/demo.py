"""`ribozyme demo`: the example RNAs, mRNAs and cells through the small models, judged by their neighbours.

A good embedding lays an RNA beside one of its own family, and a cell beside one of its own type. The share of
nearest neighbours that do is told beside that of a simple method without a network, of the same network with
random weights, and of chance. The examples are few, and a model may have read some of the sequences in
training (never their labels): they show that all works, and do not rank models.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ribozyme.data as data
from ribozyme.errors import InputError, InputWarning

Array = npt.NDArray[np.float32]
Views = Mapping[str, Array]  # embeddings by the name of the method, in the order they are drawn
MODELS = ("rnafm-mini", "helix-mrna-mini", "scgpt-mini")
LETTERS_OF_KMER = 6  # of 3, 4, 5, 6 the best on the example RNAs: the baseline is given its best chance
COMPONENTS = 50  # as scanpy does
TWINS = 5  # shuffled copies of an mRNA


@dataclass(frozen=True, slots=True)
class Share:
    """How often something held."""

    hits: int
    of: int

    def __str__(self) -> str:
        return f"{self.hits}/{self.of}"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How often the nearest neighbour (by cosine) has the same label.

    nearest : (n,) the row of each one's nearest neighbour
    cosine : (n,) how similar it is
    """

    same: Share
    nearest: npt.NDArray[np.int64]
    cosine: Array


@dataclass(frozen=True, slots=True)
class Examples:
    """What is embedded: names, labels of one kind, and inputs as a model takes them."""

    what: str
    label: str
    names: Sequence[str]
    labels: Sequence[str]
    inputs: Any


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of input through one model.

    what, model, label : such as "RNAs", "rnafm-mini", "family"
    embeddings : (n, dim) by the model
    seconds : of `model.embed`
    trained, untrained, baseline : neighbours by the model, by its network with random weights, and by
        `baseline_name`
    chance : the share that a random neighbour would have
    """

    what: str
    model: str
    label: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    embeddings: Array
    seconds: float
    trained: Neighbours
    untrained: Neighbours
    baseline: Neighbours
    baseline_name: str
    chance: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-likelihoods of mRNAs, and of twins with the codons of the CDS in random order.

    real : (n,) nats a letter; twins : (n, TWINS)
    trained, untrained : how many twins score below their mRNA, by the model and with random weights
    """

    names: tuple[str, ...]
    real: Array
    twins: Array
    trained: Share
    untrained: Share


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the demo found, and the files it wrote."""

    tasks: tuple[Task, ...]
    scores: Scores
    files: tuple[Path, ...]


def run(folder: str | Path, seed: int = 0, models: Mapping[str, Any] | None = None) -> Results:
    """Embed the examples, compare neighbours, write pictures and embeddings to `folder`.

    Parameters
    ----------
    seed : of the random weights, the shuffled codons and the pictures
    models : other models in place of those of the package, by the names in `MODELS`

    Raises
    ------
    InputError : `folder` is a file, or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made a folder ({error.strerror})", hint="choose another"
        ) from error
    if models is None:
        from ribozyme.engine.load import load

        models = {name: load(name, dtype="float32") for name in MODELS}  # the same numbers everywhere
    rnafm, helix, scgpt = (models[name] for name in MODELS)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", InputWarning
        )  # the small model knows most genes of the example, not all
        seen = _embed_all(rnafm, helix, scgpt, seed)
    scores = _score(helix, data.mrnas(), seed)
    files = [file for task, views in seen for file in _write(folder, task, views, scores, seed)]
    return Results(tuple(task for task, _ in seen), scores, tuple(files))


def _embed_all(rnafm: Any, helix: Any, scgpt: Any, seed: int) -> list[tuple[Task, Views]]:
    rnas, mrnas, cells = data.rnas(), data.mrnas(), data.cells()
    kmers = f"{LETTERS_OF_KMER}-mers"
    return [
        _task(
            Examples("RNAs", "family", rnas["id"], rnas["family"], list(zip(rnas["id"], rnas["sequence"]))),
            (MODELS[0], rnafm),
            (kmers, kmer_profiles(rnas["sequence"])),
            seed,
        ),
        _task(
            Examples("mRNAs", "gene", mrnas["id"], mrnas["gene"], list(zip(mrnas["id"], _marked(mrnas)))),
            (MODELS[1], helix),
            (kmers, kmer_profiles(mrnas["sequence"])),
            seed,
        ),
        _task(
            Examples("cells", "cell type", cells.obs_names, cells.obs["cell_type"], cells),
            (MODELS[2], scgpt),
            ("PCA", principal_components(cells.X, seed)),
            seed,
        ),
    ]


def _task(
    given: Examples, model: tuple[str, Any], baseline: tuple[str, Array], seed: int
) -> tuple[Task, Views]:
    labels = tuple(str(label) for label in given.labels)
    begin = time.perf_counter()
    trained = np.asarray(model[1].embed(given.inputs))
    seconds = time.perf_counter() - begin
    untrained = np.asarray(model[1].untrained(seed=seed).embed(given.inputs))
    task = Task(
        what=given.what,
        model=model[0],
        label=given.label,
        names=tuple(str(name) for name in given.names),
        labels=labels,
        embeddings=trained,
        seconds=seconds,
        trained=neighbours(trained, labels),
        untrained=neighbours(untrained, labels),
        baseline=neighbours(baseline[1], labels),
        baseline_name=baseline[0],
        chance=chance(labels),
    )
    return task, {baseline[0]: baseline[1], f"{model[0]}, untrained": untrained, model[0]: trained}


def neighbours(X: Any, labels: Sequence[str]) -> Neighbours:
    """Nearest neighbours by cosine among the rows of X (n, dim), and how many have the label of their row."""
    matrix = np.asarray(X, dtype=np.float64)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    cosine = matrix @ matrix.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = cosine.argmax(1)
    kinds = np.asarray(labels)
    same = int((kinds[nearest] == kinds).sum())
    return Neighbours(Share(same, len(kinds)), nearest, cosine.max(1).astype(np.float32))


def chance(labels: Sequence[str]) -> float:
    """The expected share of same labels if neighbours were drawn at random."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    total = counts.sum()
    return float((counts * (counts - 1)).sum() / (total * (total - 1)))


def kmer_profiles(sequences: Sequence[str], letters: int = LETTERS_OF_KMER) -> Array:
    """(n, distinct k-mers) TF-IDF weights."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(analyzer="char", ngram_range=(letters, letters)).fit_transform(sequences)
    return np.asarray(weights.toarray(), dtype=np.float32)


def principal_components(X: Any, seed: int) -> Array:
    """(n, COMPONENTS) of log-normalised expression, as cells are usually compared."""
    from sklearn.decomposition import PCA

    dense = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    return np.asarray(PCA(COMPONENTS, random_state=seed).fit_transform(dense), dtype=np.float32)


def shuffled_codons(sequence: str, start: int, end: int, generator: np.random.Generator) -> str:
    """The mRNA with the codons of its CDS in random order; start codon, stop codon and UTRs stay."""
    codons = [sequence[k : k + 3] for k in range(start, end, 3)]
    inner = generator.permutation(len(codons) - 2) + 1
    return sequence[:start] + codons[0] + "".join(codons[k] for k in inner) + codons[-1] + sequence[end:]


def _marked(mrnas: Any) -> list[str]:
    """The mRNAs with E before every codon of the CDS, as Helix-mRNA reads them."""
    from ribozyme.pp.codons import mark_codons

    return [mark_codons(m.sequence, m.cds_start, m.cds_end) for m in mrnas.itertuples()]


def _score(model: Any, mrnas: Any, seed: int) -> Scores:
    generator = np.random.default_rng(seed)
    copies = mrnas.loc[mrnas.index.repeat(TWINS)].reset_index(drop=True)
    copies["sequence"] = [
        shuffled_codons(m.sequence, m.cds_start, m.cds_end, generator) for m in copies.itertuples()
    ]
    inputs = [*_marked(mrnas), *_marked(copies)]

    def scored(by: Any) -> tuple[Array, Array, Share]:
        values = np.asarray(by.score(inputs), dtype=np.float32)
        real, twins = values[: len(mrnas)], values[len(mrnas) :].reshape(len(mrnas), TWINS)
        return real, twins, Share(int((real[:, None] > twins).sum()), twins.size)

    real, twins, trained = scored(model)
    untrained = scored(model.untrained(seed=seed))[2]
    return Scores(tuple(mrnas["id"]), real, twins, trained, untrained)


def _write(folder: Path, task: Task, views: Views, scores: Scores, seed: int) -> tuple[Path, Path]:
    """A picture and a table."""
    from ribozyme.io.tables import open_writer

    picture, table = (folder / f"{task.what.lower()}{suffix}" for suffix in (".png", ".parquet"))
    with open_writer(table) as writer:
        for name, row in zip(task.names, task.embeddings):
            writer.write(name, row)
    if task.label == "gene":
        _draw_mrnas(picture, task, scores)
    else:
        _draw_views(picture, task, views, seed)
    return picture, table


def _draw_views(path: Path, task: Task, views: Views, seed: int) -> None:
    """The baseline, the untrained and the trained network side by side."""
    from matplotlib.figure import Figure

    from ribozyme.pl import embedding
    from ribozyme.pl.style import finish

    figure = Figure(figsize=(4.2 * len(views) + 1.6, 4.2), dpi=150, layout="constrained")
    shares = (task.baseline.same, task.untrained.same, task.trained.same)
    axes = figure.subplots(1, len(views))
    for ax, (name, X), share in zip(axes, views.items(), shares):
        title = f"{name}\nnearest neighbour of the same {task.label}: {share}"
        legend_loc = "right margin" if ax is axes[-1] else None
        embedding(X, task.labels, title=title, legend_loc=legend_loc, seed=seed, ax=ax)
        ax.title.set_fontsize(9.5)
    finish(figure, path)


def _draw_mrnas(path: Path, task: Task, scores: Scores) -> None:
    """Similarity of the embeddings, and the scores of the mRNAs beside those of their twins."""
    from matplotlib.figure import Figure

    from ribozyme.pl import dots, similarity
    from ribozyme.pl.style import finish

    figure = Figure(figsize=(10.0, 4.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    similarity(task.embeddings, task.names, title=f"{task.model}: embeddings", ax=left)
    dots(
        scores.names,
        scores.real,
        scores.twins,
        called=("mRNA", "codons shuffled"),
        xlabel="log-likelihood (nats per letter)",
        title=f"Likelier than shuffled: {scores.trained}",
        ax=right,
    )
    finish(figure, path)


def report(results: Results, folder: str | Path, print_: Callable[..., None] | None = None) -> None:
    """Print what was found, for people; `print_` takes what rich can print (by default to stdout)."""
    from rich.console import Console
    from rich.table import Table

    say = print_ or Console().print
    table = Table("", "model", "seconds", "trained", "untrained", "baseline", "chance", box=None)
    table.pad_edge, table.collapse_padding = False, False
    for task in results.tasks:
        table.add_row(
            f"{len(task.names)} {task.what}",
            task.model,
            f"{task.seconds:.2f}",
            str(task.trained.same),
            str(task.untrained.same),
            f"{task.baseline_name} {task.baseline.same}",
            f"{task.chance:.0%}",
        )
    say("Nearest neighbours of the same family (RNAs), gene (mRNAs) or cell type (cells):\n")
    say(table)
    scores = results.scores
    say("\nmRNAs that score higher than a twin with the codons of their CDS shuffled:")
    say(f"  {scores.trained} pairs; untrained {scores.untrained}")
    say("\nNearest neighbours, such as:")
    for line in examples(results):
        say(f"  {line}")
    say(f"\nPictures and embeddings in {folder}:", soft_wrap=True)
    for task, picture, file in zip(results.tasks, results.files[::2], results.files[1::2]):
        rows, width = task.embeddings.shape
        say(f"  {picture.name}, {file.name} ({rows} x {width})")


def examples(results: Results, count: int = 2) -> list[str]:
    """A few neighbours of each task, of different labels, in words."""
    lines = []
    for task in results.tasks:
        for row in sorted({label: k for k, label in enumerate(task.labels)}.values())[:count]:
            near, cosine = int(task.trained.nearest[row]), task.trained.cosine[row]
            lines.append(f"{_called(task, row)}: {_called(task, near)}, cosine {cosine:.3f}")
    return lines


def _called(task: Task, row: int) -> str:
    """The name where it tells the label, else the label: cells have barcodes for names."""
    name, label = task.names[row], task.labels[row]
    return name if name.startswith(label) else label

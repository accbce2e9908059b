"""How far our numbers are from those of the published programs: every layer and head, layout by layout.

    python benchmarks/parity.py -o parity.json

compares with the answers in tests/fixtures (tiny networks; no other program is needed; seconds). With

    python benchmarks/parity.py --full --peers PEERS/bin/python --scgpt SCGPT/bin/python

the published programs make full-size checkpoints with random weights, and answer for real sequences and cells
(RIBOZYME_DATA, else the examples in the package), each in its own environment. Then we read those files.
README.md, beside this file, says which programs, and what is compared. Exit status 1 above 1e-4.
"""

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import ribozyme as rz
from ribozyme.models.scgpt.perturb import predict_perturbation
from ribozyme.packing import Packed
from ribozyme.pp.binning import bin_rows

LIMIT = 1e-4
ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
Expected = dict[str, Tensor]
Answers = Iterator[tuple[str, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Case:
    """One checkpoint in one layout, and what a peer answers.

    model, layout, peer : names for people
    path : of the weights
    expected : the peer's numbers; `ours` reads both and gives (what, our answer, theirs)
    exact : the same peer in float64, where it can
    sequences : what the peer was given, where it read letters itself
    """

    model: str
    layout: str
    peer: str
    path: Path
    expected: Path
    ours: Callable[["Case", Expected], Answers]
    exact: Path | None = None
    sequences: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """The worst difference of one quantity over all inputs of a case.

    worst : |ours - peer|; largest : |peer|
    worst_exact : |ours - peer in float64|; peer_exact : |peer - peer in float64|; None where it was not run
    """

    model: str
    layout: str
    peer: str
    what: str
    worst: float
    largest: float
    numbers: int
    worst_exact: float | None = None
    peer_exact: float | None = None


# ---------------------------------------------------------------------------------------- what is compared


def rnafm(case: Case, expected: Expected) -> Answers:
    """Each sequence alone for layers and maps; all packed together for logits and for `embed`."""
    model = rz.load(case.path, device="cpu", dtype="float32")
    ids = numbered(expected, "ids")
    yield from _tokens(model, case.sequences, ids)
    for k, one in enumerate(ids):
        if f"layers.{k}" in expected:
            yield from _layers(model.module, alone(one), expected[f"layers.{k}"])
        for head, answer in (("attentions", model.module.attentions), ("contacts", model.module.contacts)):
            if f"{head}.{k}" in expected:
                yield head, answer(one), expected[f"{head}.{k}"]
        if f"pairs.{k}" in expected:
            yield "pair logits", model.module.pair_logits(one), expected[f"pairs.{k}"]
    if "logits.0" in expected:
        batch = Packed.of([one.numpy() for one in ids])
        logits = batch.split(model.module.logits(model.module.encode(batch)))
        yield from (("logits", one, expected[f"logits.{k}"]) for k, one in enumerate(logits))
    yield from _embeddings(model, case.sequences, [expected.get(f"layers.{k}") for k in range(len(ids))])


def helix(case: Case, expected: Expected) -> Answers:
    """Each sequence alone for layers; all packed together for the last rows, logits and `embed`."""
    model = rz.load(case.path, device="cpu", dtype="float32")
    count = sum(key.endswith(".ids") for key in expected)
    ids = [expected[f"{k}.ids"] for k in range(count)]
    yield from _tokens(model, case.sequences, ids)
    for k, one in enumerate(ids):
        if f"{k}.layers" in expected:
            yield from _layers(model.module, alone(one), expected[f"{k}.layers"])
    batch = Packed.of([one.numpy() for one in ids])
    rows = model.module.encode(batch)
    yield from (("last rows", one, expected[f"{k}.last"]) for k, one in enumerate(batch.split(rows)))
    if "0.logits" in expected:
        logits = batch.split(model.module.logits(rows))
        yield from (("logits", one, expected[f"{k}.logits"]) for k, one in enumerate(logits))
    yield from _embeddings(model, case.sequences, [expected[f"{k}.last"][None] for k in range(count)])


def scgpt(case: Case, expected: Expected) -> Answers:
    """All cells packed together: layers and every head that there is an answer for."""
    model = rz.load(case.path, device="cpu", dtype="float32")
    cuts = np.cumsum(expected["lengths"].tolist())[:-1]
    batch = Packed.of(np.split(expected["ids"].numpy(), cuts), np.split(expected["values"].numpy(), cuts))
    side: dict[str, Any] = {
        k: expected[k].long() for k in ("labels", "modalities", "perturbed") if k in expected
    }
    given = expected["given"].tolist() if "given" in expected else None
    coded = {k: v for k, v in side.items() if k != "modalities"}
    if "layers" in expected:
        yield from _layers(model.module, batch, expected["layers"], given=given, **coded)
    heads = tuple(h for h in ("expression", "mvc", "classes", "adversary") if h in expected)
    out = model.module(batch, heads=heads, given=given, **side)
    yield from _heads(out, expected)
    if "prompted_rows" in expected:
        again = model.module(batch, heads=heads, given=given, cell=out.cell, **side)
        yield from _heads(again, expected, "prompted_")
    if "generated" in expected:
        bare = Packed(batch.ids, batch.cu_seqlens, batch.lengths)
        for name, genes in (("generated", bare), ("generated_with_values", batch)):
            yield name, model.module.generate(expected["prompts"], genes).value, expected[name]
    for style in ("avg-pool", "w-pool"):
        if style in expected:
            cell = model.module.cell_embedding(batch, style=style, normalise=False)
            yield f"cell, {style}", cell, expected[style]
    if "all" in expected:
        shape = expected["matrix"].shape
        screen = expected["matrix"], side["perturbed"].view(shape), expected["genes"]
        for shown in ("all", "expressed"):
            found = predict_perturbation(model.module, *screen, shown=shown)
            yield f"perturbation, {shown} genes", found, expected[shown]


def cells(case: Case, expected: Expected) -> Answers:
    """From a matrix of cells to embeddings, as a user asks for them."""
    from anndata import AnnData

    model = rz.load(case.path, device="cpu", dtype="float32")
    # the published collator has 51 bins, whatever the settings of the network say
    model.module.config = replace(model.config, n_bins=51)
    matrix = expected["matrix"].numpy()
    genes = [model.vocabulary.tokens[i] for i in expected.get("columns", torch.arange(matrix.shape[1]))]
    adata = AnnData(matrix)
    adata.var_names = genes
    yield "embed", torch.from_numpy(model.embed(adata)), expected["cls"]


def bins(case: Case, expected: Expected) -> Answers:
    """Bins of expression with the draws that the peer took for ties."""
    cuts = expected["indptr"][1:-1].tolist()
    kinds = [np.float64 if double else np.float32 for double in expected["double"]]
    rows = zip(*(np.split(expected[k].numpy(), cuts) for k in ("values", "u", "bins")), kinds)
    for values, u, theirs, kind in rows:
        found = bin_rows(values.astype(kind), np.array([0, len(values)]), u=u)
        yield "bins", torch.from_numpy(found), torch.from_numpy(theirs)


def _layers(module: Any, batch: Packed, expected: Tensor, **side: Any) -> Answers:
    """The input of the layers, what each gives, and the last with its norm; in one pass."""
    rows = [module.encode(batch, 0, **side)]
    hooks = [
        layer.register_forward_hook(lambda _, __, out: rows.append(out[0] if isinstance(out, tuple) else out))
        for layer in module.layers
    ]
    last = module.encode(batch, **side)
    for hook in hooks:
        hook.remove()
    for layer, (ours, theirs) in enumerate(zip([*rows[:-1], last], expected, strict=True)):
        yield f"layer {layer}", ours, theirs


def _tokens(model: Any, sequences: Sequence[str], ids: Sequence[Tensor]) -> Answers:
    tokenizer = model.tokenizer
    for sequence, theirs in zip(sequences, ids):
        ours = np.concatenate([tokenizer.prefix, tokenizer.encode(sequence), tokenizer.suffix])
        yield "token ids", torch.from_numpy(ours), theirs


def _embeddings(model: Any, sequences: Sequence[str], layers: Sequence[Tensor | None]) -> Answers:
    """`embed` on the sequences themselves, without the rows of special tokens."""
    if not sequences or layers[0] is None:
        return
    before, after = len(model.tokenizer.prefix), len(model.tokenizer.suffix)
    for rows, theirs in zip(model.embed(list(sequences), pooling="none"), layers):
        assert theirs is not None
        yield "embed", torch.from_numpy(rows), theirs[-1][before : theirs.shape[1] - after]


def _heads(out: Any, expected: Expected, prefix: str = "") -> Answers:
    found = {"rows": out.rows, "cell": out.cell, "classes": out.classes, "adversary": out.adversary}
    for name in ("expression", "mvc"):
        if (prediction := getattr(out, name)) is not None:
            nonzero = "nonzero" if name == "expression" else "mvc_nonzero"
            found |= {name: prediction.value, nonzero: prediction.nonzero}
    for name, ours in found.items():
        if ours is not None and prefix + name in expected:
            yield prefix + name, ours, expected[prefix + name]


def numbered(expected: Expected, what: str) -> list[Tensor]:
    """`what.0`, `what.1`, ..."""
    return [expected[f"{what}.{k}"] for k in range(sum(key.startswith(what + ".") for key in expected))]


def alone(ids: Tensor) -> Packed:
    """One sequence as a batch."""
    return Packed.of([ids.numpy()])


# ------------------------------------------------------------------------------------------------- measures


@torch.inference_mode()
def measure(case: Case) -> list[Measure]:
    """The worst difference of each quantity of a case; layers first, in order."""
    found: dict[str, Measure] = {}
    for what, ours, theirs, exact in _answers(case):
        last = found.get(what) or Measure(case.model, case.layout, case.peer, what, 0.0, 0.0, 0)
        found[what] = replace(
            last,
            worst=max(last.worst, difference(ours, theirs)),
            largest=max(last.largest, theirs.abs().max().item()),
            numbers=last.numbers + theirs.numel(),
            worst_exact=_larger(last.worst_exact, ours, exact),
            peer_exact=_larger(last.peer_exact, theirs, exact),
        )
    return sorted(found.values(), key=lambda m: _order(m.what))


def _answers(case: Case) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """(what, ours, the peer's, the peer's in float64)."""
    expected = case.ours(case, read(case.expected))
    if case.exact is None:
        yield from ((*one, None) for one in expected)
    else:
        exact = case.ours(case, read(case.exact))
        yield from ((*one, truth) for one, (_, _, truth) in zip(expected, exact, strict=True))


def _larger(before: float | None, one: Tensor, exact: Tensor | None) -> float | None:
    return before if exact is None else max(before or 0.0, difference(one, exact))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or a number is missing on one side alone."""
    if ours.shape != theirs.shape:
        return float("inf")
    apart = (ours.double() - theirs.double()).abs()
    apart[ours.isnan() & theirs.isnan()] = 0
    return apart.nan_to_num(nan=float("inf")).max().item() if apart.numel() else 0.0


def _order(what: str) -> tuple[bool, int, str]:
    match = re.fullmatch(r"layer (\d+)", what)
    return match is None, int(match[1]) if match else 0, what


def read(path: Path) -> Expected:
    """Tensors of a .safetensors or .npz file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


# ------------------------------------------------------------------------------------------------- fixtures


def fixture_cases(fixtures: Path = FIXTURES) -> Iterator[Case]:
    """The committed answers of peers for tiny networks."""
    for expected in sorted((fixtures / "helix").glob("*.expected.safetensors")):
        name = expected.name.removesuffix(".expected.safetensors")
        peer = "float64 recurrence" if name == "hybrid" else "transformers"
        yield Case("helix-mrna" if name == "hybrid" else "mamba2-mrna", name, peer, *_beside(expected), helix)
    for expected in sorted((fixtures / "rnafm").glob("*.expected.safetensors")):
        path, _ = _beside(expected)
        peer = "rna-fm" if path.suffix == ".pth" else "multimolecule"
        model = "mrnafm" if path.stem in ("mrna", "mm-codon") else "rnafm"
        model = "rnafm-ss" if "-ss" in path.name or "ResNet" in path.name else model
        yield Case(model, path.name, peer, path, expected, rnafm)
    for path in sorted((fixtures / "scgpt").iterdir()):
        peer = "float64 definition" if path.name == "generative" else "scgpt in float64"
        yield Case("scgpt", path.name, peer, path, path / "expected.npz", scgpt)
    plain, binning = fixtures / "scgpt" / "plain", fixtures / "binning"
    yield Case("scgpt", "plain, from a matrix", "scgpt", plain, binning / "embedding.npz", cells)
    yield Case("scgpt", "bins with ties", "scgpt", plain, binning / "bins.npz", bins)


def _beside(expected: Path) -> tuple[Path, Path]:
    name = expected.name.removesuffix(".expected.safetensors")
    folder = expected.parent / name
    return (folder if folder.is_dir() else folder.with_suffix(".pth")), expected


def fixture_versions(fixtures: Path = FIXTURES) -> dict[str, str]:
    """The versions of the peers that the scripts beside the fixtures name."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(fixtures.glob("make_*.py")))
    return dict(pair for text in texts for pair in re.findall(r"([\w-]+)(?:==|` )(\d+\.\d+\.\d+)", text))


# ------------------------------------------------------------------------------------------------ full size

SEQUENCE_CASES = {
    "rnafm.pth": ("rnafm", "rna-fm", rnafm, "rna"),
    "mrnafm.pth": ("mrnafm", "rna-fm", rnafm, "cds"),
    "rnafm-ss.pth": ("rnafm-ss", "rna-fm", rnafm, "rna"),
    "rnafm folder": ("rnafm", "multimolecule", rnafm, "rna"),
    "mrnafm folder": ("mrnafm", "multimolecule", rnafm, "cds"),
    "mamba2 folder": ("mamba2-mrna", "transformers", helix, "mrna"),
    "hybrid folder": ("helix-mrna", "float64 recurrence", helix, "mrna"),
}


def full_cases(peers: str | None, scgpt_python: str | None, work: Path, only: str) -> Iterator[Case]:
    """Checkpoints and answers made by the peers, one at a time; each is gone when the next is asked for."""
    here = Path(__file__).parent
    letters = real_sequences()
    for layout, (model, peer, compare, kind) in SEQUENCE_CASES.items():
        if peers is None or only not in f"{model} {layout}":
            continue
        with tempfile.TemporaryDirectory(dir=work) as folder:
            (Path(folder) / "sequences.json").write_text(json.dumps(letters[kind]), encoding="utf-8")
            ask(peers, here / "peer_sequences.py", layout, folder)
            yield _made(Path(folder), model, layout, peer, compare, letters[kind])
    if scgpt_python is not None and only in "scgpt whole-human":
        with tempfile.TemporaryDirectory(dir=work) as folder:
            write_real_cells(Path(folder) / "cells.npz")
            ask(scgpt_python, here / "peer_cells.py", folder)
            yield _made(Path(folder), "scgpt", "whole-human", "scgpt", scgpt)
            whole = Path(folder) / "embedding.safetensors"
            weights = Path(folder) / "weights"
            yield Case("scgpt", "whole-human, from a matrix", "scgpt", weights, whole, cells)


def _made(
    folder: Path, model: str, layout: str, peer: str, compare: Any, sequences: Sequence[str] = ()
) -> Case:
    weights = next(p for p in sorted(folder.iterdir()) if p.stem == "weights" or p.suffix == ".pth")
    exact = folder / "exact.safetensors"
    expected = folder / "expected.safetensors"
    return Case(model, layout, peer, weights, expected, compare, exact if exact.exists() else None, sequences)


def ask(python: str, *arguments: object) -> None:
    """Run a peer in its own environment."""
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr[-3000:]}")


def made_versions(case: Case) -> dict[str, str]:
    """The versions that a peer wrote beside its answers."""
    with safe_open(case.expected, "pt") as file:
        return dict(file.metadata() or {})


def data_folder() -> Path | None:
    """RIBOZYME_DATA, or `../shared/data` beside the repository, if it is there."""
    folder = Path(os.environ.get("RIBOZYME_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def real_sequences() -> dict[str, list[str]]:
    """A few real RNAs, coding sequences and mRNAs of very different lengths, in the letters A C G U."""
    import pandas as pd

    data = data_folder()
    if data is None:
        rna, genes = rz.data.rnas().sequence, rz.data.mrnas()
        cds = [s[a:b] for s, a, b in zip(genes.sequence, genes.cds_start, genes.cds_end)]
        return {"rna": pick(rna, (70, 150, 400)), "cds": pick(cds, (300, 1050)), "mrna": list(genes.sequence)}
    table = pd.read_parquet(data / "mrna" / "corpus.parquet")
    cds = [s for s in table.sequence[table.kind == "cds"] if len(s) % 3 == 0]
    rna = pd.read_parquet(data / "ncrna" / "corpus.parquet").sequence
    return {
        "rna": pick(rna, (40, 76, 300, 1022)),
        "cds": pick(cds, (150, 450, 1500)),
        "mrna": pick(table.sequence[table.kind == "mrna"], (100, 257, 900)),
    }


def pick(sequences: Iterable[str], lengths: Sequence[int]) -> list[str]:
    """For each length the first sequence that comes closest to it; none longer than the last length."""
    plain = [s.replace("T", "U") for s in sequences if len(s) <= lengths[-1] and not set(s) - set("ACGUT")]
    return [min(plain, key=lambda s: abs(len(s) - length)) for length in lengths]


def write_real_cells(path: Path) -> None:
    """A few cells of very different sizes; only genes that are in the published vocabulary by exact name."""
    import anndata

    from ribozyme.models.scgpt.vocab import Vocabulary

    data = data_folder()
    where = rz.data.path("cells.h5ad") if data is None else data / "cells" / "annotate_pbmc_sorted.h5ad"
    adata = anndata.read_h5ad(where)
    vocabulary = Vocabulary.census()
    known = np.array([name in vocabulary for name in adata.var_names])
    rows = adata.X[:, known].tocsr()
    sizes = np.diff(rows.indptr)
    chosen = [int(np.argmin(np.abs(sizes - size))) for size in (150, 400, 700, 1100)]
    np.savez(path, matrix=rows[chosen].toarray(), genes=np.array(adata.var_names[known], dtype=str))


# -------------------------------------------------------------------------------------------------- results


def machine() -> dict[str, Any]:
    """Where the numbers were made; the same sums in another order give other last digits elsewhere."""
    able = torch.cpu.get_capabilities()
    flags = sorted(name for name, value in able.items() if value is True)
    return {
        "processor": able.get("cpu_name", platform.processor()),
        "flags": flags,
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ribozyme": version("ribozyme"),
    }


def wide_console() -> Console:
    """As wide as the terminal, and wide enough for the tables in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=170)


def print_table(measures: Sequence[Measure], console: Console) -> None:
    """One line a quantity; the layers of a checkpoint share one, with the worst of them."""
    table = Table("model", "layout", "peer", "what", "worst", "largest", "v. float64", "peer v. float64")
    for case, group in groupby(measures, key=lambda m: (m.model, m.layout, m.peer)):
        rows = list(group)
        layers = [m for m in rows if m.what.startswith("layer ")]
        lines = [(m.what, [m]) for m in rows if m not in layers]
        if layers:
            at = max(layers, key=lambda m: m.worst).what.removeprefix("layer ")
            lines.insert(0, (f"layers 0-{len(layers) - 1} (worst: {at})", layers))
        for n, (what, some) in enumerate(lines):
            table.add_row(
                *(case if n == 0 else ("", "", "")), what, *_cells(some), end_section=n == len(lines) - 1
            )
    console.print(table)


def _cells(measures: Sequence[Measure]) -> list[str]:
    worst = max(m.worst for m in measures)
    mark = "[red]" if worst > LIMIT else ""
    exact = [m.worst_exact for m in measures if m.worst_exact is not None]
    peer = [m.peer_exact for m in measures if m.peer_exact is not None]
    return [
        f"{mark}{worst:.1e}",
        f"{max(m.largest for m in measures):.3g}",
        f"{max(exact):.1e}" if exact else "",
        f"{max(peer):.1e}" if peer else "",
    ]


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every number")] = None,
    full: Annotated[bool, typer.Option("--full", help="full-size networks; needs the peers")] = False,
    peers: Annotated[
        str | None, typer.Option(help="python with transformers, multimolecule and rna-fm")
    ] = None,
    scgpt_python: Annotated[str | None, typer.Option("--scgpt", help="python with scgpt")] = None,
    only: Annotated[str, typer.Option(help="only full-size cases with this in model or layout")] = "",
) -> None:
    """Print the worst differences; exit status 1 if one is above 1e-4."""
    if full and peers is None and scgpt_python is None:
        raise typer.BadParameter("--full needs --peers or --scgpt, or both")
    console, measures, versions = wide_console(), [], {} if full else fixture_versions()
    with tempfile.TemporaryDirectory() as work:
        os.environ["RIBOZYME_CACHE"] = work  # random weights are not worth keeping
        cases = full_cases(peers, scgpt_python, Path(work), only) if full else fixture_cases()
        for case in cases:
            found = measure(case)
            measures += found
            if full:  # minutes each
                versions |= made_versions(case)
                print_table(found, console)
    if not full:
        print_table(measures, console)
    worst = max(measures, key=lambda m: m.worst)
    about = machine()
    console.print(
        f"{about['processor']} ({', '.join(about['flags'])}), torch {about['torch']}; peers: {versions}"
    )
    console.print(
        f"worst: {worst.worst:.1e} ({worst.model}, {worst.layout}, {worst.what}); limit {LIMIT:.0e}"
    )
    if output is not None:
        content = {"limit": LIMIT, "worst": worst.worst, "full": full, "machine": about, "peers": versions}
        output.write_text(json.dumps(content | {"measures": [asdict(m) for m in measures]}, indent=1) + "\n")
    if not worst.worst <= LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

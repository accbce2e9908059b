"""What twice the input costs: the slope of processor time over tokens, in logarithms; 1 is linear.

    python benchmarks/scaling.py -o scaling.json --picture docs/images/scaling.png

Once over the number of sequences, 1,000 to 100,000 short RNAs streamed through rnafm-mini, and once over the
length of mRNAs, 256 to 12,288 nt through helix-mrna-mini, whose attention is measured apart, because it
grows with the square. One thread, one process, sizes in turn; a point is the median of the rounds. Synthetic
sequences, all different. A few minutes.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from parity import machine
from rich.console import Console
from rich.table import Table

import ribozyme as rz

COUNTS = (1_000, 3_162, 10_000, 31_623, 100_000)
LENGTHS = (256, 512, 1_024, 2_048, 4_096, 8_192, 12_288)
LETTERS = 49_152
"""Of all sequences of one length together, so that short ones can be timed too."""
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over tokens. slope, error : least squares on the logarithms, and its standard error"""

    name: str
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    slope: float
    error: float

    @property
    def linear(self) -> bool:
        return abs(self.slope - 1) <= TOLERANCE


def curve(name: str, tokens: Sequence[int], seconds: Sequence[float]) -> Curve:
    """The line through the logarithms; its error is 0 for two points."""
    x, y = np.log(np.asarray(tokens, float)), np.log(np.asarray(seconds, float))
    slope, intercept = np.polyfit(x, y, 1)
    left = y - (slope * x + intercept)
    spread = np.sqrt((left**2).sum() / max(1, len(x) - 2) / ((x - x.mean()) ** 2).sum())
    return Curve(name, tuple(tokens), tuple(seconds), float(slope), float(spread))


def letters(rng: np.random.Generator, lengths: Sequence[int]) -> list[str]:
    """Random sequences of these lengths."""
    return ["".join(rng.choice(list("ACGU"), n)) for n in lengths]


def processor(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def over_counts(counts: Sequence[int], rounds: int, rng: np.random.Generator) -> list[Curve]:
    """One stream of short RNAs through rnafm-mini, for each number of them."""
    model = rz.load("rnafm-mini", device="cpu", dtype="float32")
    sequences = letters(rng, rng.integers(16, 33, max(counts)))
    model.embed(sequences[:100])
    taken: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            taken[count].append(processor(lambda n=count: [None for _ in model.stream(iter(sequences[:n]))]))
    tokens = [sum(map(len, sequences[:count])) for count in counts]
    seconds = [median(taken[count]) for count in counts]
    return [curve(f"rnafm-mini, {min(counts):,} to {max(counts):,} sequences", tokens, seconds)]


def over_lengths(lengths: Sequence[int], rounds: int, rng: np.random.Generator) -> list[Curve]:
    """mRNAs of one length through helix-mrna-mini, for one of them: all of it, and all but the attention."""
    model = rz.load("helix-mrna-mini", device="cpu", dtype="float32")
    taken: dict[int, list[tuple[float, float]]] = {length: [] for length in lengths}
    for k in range(rounds + 1):  # the first is for warmth
        for length in lengths:
            many = letters(rng, [length] * max(1, LETTERS // length))
            with attention_time(model.module) as inside:
                whole = processor(lambda some=many: model.embed(some)) / len(many)
            if k:
                taken[length].append((whole, whole - sum(inside) / len(many)))
    whole, rest = ([median(pair[j] for pair in taken[length]) for length in lengths] for j in (0, 1))
    return [
        curve("helix-mrna-mini, without attention", lengths, rest),
        curve("helix-mrna-mini, all", lengths, whole),
    ]


@contextmanager
def attention_time(module: torch.nn.Module) -> Iterator[list[float]]:
    """The processor seconds that attention blocks take meanwhile."""
    started: list[float] = []
    inside: list[float] = []
    hooks = []
    for part in module.modules():
        if type(part).__name__ == "Attention":
            hooks.append(part.register_forward_pre_hook(lambda *_: started.append(time.process_time())))
            hooks.append(
                part.register_forward_hook(lambda *_: inside.append(time.process_time() - started.pop()))
            )
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Both axes in logarithms, with a line of slope 1 through the first point of each."""
    from matplotlib.figure import Figure

    from ribozyme.pl.style import FAINT, MARKERS, PALETTE, quiet

    figure = Figure(figsize=(5.6, 3.6), dpi=150, layout="constrained")
    ax = figure.subplots()
    for k, one in enumerate(curves):
        label = f"{one.name}: slope {one.slope:.2f}"
        ideal = [one.seconds[0] * n / one.tokens[0] for n in one.tokens]
        ax.plot(one.tokens, ideal, color=FAINT, linewidth=0.8, zorder=1)
        ax.plot(one.tokens, one.seconds, MARKERS[k], color=PALETTE[k], markersize=4.5, label=label)
    ax.set(xscale="log", yscale="log", xlabel="nucleotides", ylabel="processor seconds")
    ax.legend(frameon=False, fontsize=7.5)
    quiet(ax, title="Cost grows with the input; grey: slope 1")
    figure.savefig(path)


def main(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every point")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of the curves")] = None,
    rounds: Annotated[int, typer.Option(help="each point is the median of these")] = 3,
    most: Annotated[int, typer.Option(help="sequences at most")] = COUNTS[-1],
    longest: Annotated[int, typer.Option(help="nucleotides of an mRNA at most")] = LENGTHS[-1],
) -> None:
    """Print the slopes; whatever they are, the exit status is 0."""
    lengths, counts = [n for n in LENGTHS if n <= longest], [n for n in COUNTS if n <= most]
    if min(len(lengths), len(counts)) < 3:
        raise typer.BadParameter("a slope needs three sizes: --most 10000 and --longest 1024 at least")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    curves = over_lengths(lengths, rounds, rng) + over_counts(counts, rounds, rng)
    table = Table("what", "from", "to", "slope", f"1 +- {TOLERANCE}")
    for one in curves:
        points = list(zip(one.tokens, one.seconds))
        ends = (f"{n:,} nt, {s:.2g} s" for n, s in (points[0], points[-1]))
        judged = "" if one.name.endswith("all") else "met" if one.linear else "not met"
        table.add_row(one.name, *ends, f"{one.slope:.3f} +- {one.error:.3f}", judged)
    Console(width=120).print(table)
    if picture is not None:
        draw(curves, picture)
    if output is not None:
        content = {"machine": machine(), "curves": [asdict(one) for one in curves]}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

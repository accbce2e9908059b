"""How fast we embed on this processor, beside the programs that people use: same weights, same inputs.

    python benchmarks/embed.py --peers PEERS/bin/python --scgpt SCGPT/bin/python --helical HELICAL/bin/python

Each program is a process of its own that loads its network once (`peer_embed.py`, `our_embed.py`) and runs
when it is asked; the rounds go ours, peer, peer, ours ..., so that a drift of the machine hits all. A ratio
is the quotient of medians, its spread the least and the largest quotient of one round. README.md, beside
this file, says what is compared with what; `embed_tasks.py` has the targets. Whatever the speed, the exit
status is 0; it is 1 if a program fails.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from embed_tasks import (
    HERE,
    TASKS,
    Bench,
    Pair,
    Program,
    Task,
    expected_minutes,
    hardware,
    mrnas,
    peak_of,
    write_sequences,
)
from parity import machine, wide_console
from rich.console import Console
from rich.table import Table

STARTUP_SECONDS, MEMORY_MIB = 4.0, 2048
LONGEST = 12_288


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one program: wall seconds, processor seconds, peak memory of the process so far."""

    seconds: float
    cpu: float
    peak: int

    def by(self, clock: str) -> float:
        """Seconds of the `wall` clock, or of the processor."""
        return self.seconds if clock == "wall" else self.cpu


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours against one peer. ratio, least, most : the peer's time over ours

    difference, largest : of the numbers that both compute alike; None where no input is alike
    """

    task: str
    threads: int | None
    ours: str
    peer: str
    seconds: float
    peer_seconds: float
    ratio: float
    least: float
    most: float
    target: float | None
    difference: float | None
    largest: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One absolute figure with what it should be. at_least : False where less is better."""

    task: str
    threads: int | None
    what: str
    value: float
    unit: str
    target: float | None
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


# ------------------------------------------------------------------------------------------------ processes


class Child:
    """A program in a process of its own."""

    def __init__(self, program: Program, threads: int | None, work: Path) -> None:
        self.program = program
        self.answer = Path(tempfile.mkdtemp(dir=work)) / "vectors.npy"
        self.said = (self.answer.parent / "said.txt").open("w+")
        settings = json.dumps({**program.settings, "threads": threads})
        command = [program.python, str(HERE / program.script), program.kind, settings]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        environment = {**os.environ, **limits(threads), "RIBOZYME_CACHE": str(work / "cache")}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.versions: dict[str, str] = {}

    def wait(self) -> None:
        """Until it is loaded and warm."""
        self.versions = self._line()["versions"]

    def run(self) -> tuple[Run, np.ndarray]:
        """One run over all inputs, and its vectors."""
        self.process.stdin.write(f"{self.answer}\n")
        self.process.stdin.flush()
        run = Run(**self._line())
        return run, np.load(self.answer)

    def _line(self) -> Any:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.said.seek(0)
        status = self.process.wait()
        raise SystemExit(f"{self.program.name} ended with status {status}:\n{self.said.read()[-3000:]}")

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()


def limits(threads: int | None) -> dict[str, str]:
    """Variables that keep libraries to so many threads; quiet and offline."""
    some = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return some if threads is None else some | {name: str(threads) for name in names}


# ------------------------------------------------------------------------------------------------- measures


@dataclass(slots=True)
class Measured:
    """All runs of a task, by the names of its programs."""

    task: Task
    threads: int | None
    runs: dict[str, list[Run]]
    vectors: dict[str, np.ndarray]
    versions: dict[str, dict[str, str]]

    def times(self, name: str, clock: str) -> list[float]:
        return [run.by(clock) for run in self.runs[name]]


def measure(task: Task, threads: int | None, rounds: int, work: Path, console: Console) -> Measured:
    """`rounds` rounds of every program in turn."""
    found = Measured(task, threads, {p.name: [] for p in task.programs}, {}, {})
    with ExitStack() as stack:
        children = [stack.enter_context(Child(p, threads, work)) for p in task.programs]
        for child in children:
            child.wait()
            found.versions[child.program.name] = child.versions
        start = time.perf_counter()
        for k in range(rounds):
            for child in children:
                run, found.vectors[child.program.name] = child.run()
                found.runs[child.program.name].append(run)
            if k == 0:
                seconds = time.perf_counter() - start
                console.print(
                    f"{task.title}, {counted(task)}, {on(threads)}: a round takes {seconds:.0f} s, "
                    f"{rounds} rounds {seconds * rounds / 60:.1f} min"
                )
    return found


def counted(task: Task) -> str:
    return f"{task.count:,} {task.unit} ({task.tokens:,} tokens)"


def on(threads: int | None) -> str:
    return "all threads" if threads is None else "1 thread" if threads == 1 else f"{threads} threads"


def ratio(found: Measured, pair: Pair, clock: str) -> Ratio:
    ours, peer = found.times(pair.ours, clock), found.times(pair.peer, clock)
    each = [b / a for a, b in zip(ours, peer, strict=True)]
    difference = largest = None
    if pair.alike:
        mine, theirs = (found.vectors[name][list(pair.alike)] for name in (pair.ours, pair.peer))
        difference, largest = float(np.abs(mine - theirs).max()), float(np.abs(theirs).max())
    a, b = median(ours), median(peer)
    names = found.task.name, found.threads, pair.ours, pair.peer
    return Ratio(*names, a, b, b / a, min(each), max(each), pair.target, difference, largest)


def figures(found: Measured, bench: Bench, clock: str) -> Iterable[Figure]:
    """Speed of every program; for ours the share of the measured peak of matrix products."""
    task = found.task
    kinds = {form.name: form.hardware for form in bench.forms()}
    per = task.rate[0] if task.rate else "tokens"
    amount = task.count if per == task.unit else task.tokens
    for program in task.programs:
        name = program.name
        if program.kind == "products":
            continue
        first = name in kinds and kinds[name] == "cuda"
        target = task.rate[1] if task.rate and first else None
        rate = amount / median(found.times(name, clock))
        yield Figure(task.name, found.threads, name, rate, f"{per}/s", target)
        if task.flops and name in kinds:
            # the vectors of the products are (operations a second, operations a processor second)
            limit = found.vectors[peak_of(name)][0 if clock == "wall" else 1]
            share = task.flops / median(found.times(name, clock)) / limit
            what = f"{name}, share of {limit / 1e9:,.0f} GFLOP/s in matrix products"
            wanted = task.share.get(kinds[name])
            yield Figure(task.name, found.threads, what, 100 * share, "%", wanted and 100 * wanted)


def alone(task: Task, threads: int | None, clock: str, work: Path) -> Iterable[Figure]:
    """Ours with many inputs, once."""
    program = task.programs[0]
    run = once(program, threads, work)
    seconds = run.by(clock)
    yield Figure(task.name, threads, f"{program.name}, {counted(task)}", seconds, "s", None)
    yield Figure(task.name, threads, "tokens", task.tokens / seconds, "tokens/s", None)
    yield Figure(task.name, threads, "peak memory", run.peak / 2**20, "MiB", None)


def once(program: Program, threads: int | None, work: Path) -> Run:
    """One run in a fresh process."""
    with Child(program, threads, work) as child:
        child.wait()
        return child.run()[0]


def memory(task: Task, threads: int | None, work: Path) -> Iterable[Figure]:
    """The longest mRNA that Helix-mRNA was trained for, in a process of its own."""
    letters = "".join(mrnas(20, LONGEST))
    letters = (letters * (LONGEST // len(letters) + 1))[:LONGEST]
    inputs = write_sequences(work / "longest.json", [letters])
    program = task.programs[0]
    program = replace(program, settings={**program.settings, "inputs": str(inputs)})
    run = once(program, threads, work)
    yield Figure(
        task.name, threads, f"peak memory of {LONGEST:,} nt", run.peak / 2**20, "MiB", MEMORY_MIB, False
    )
    yield Figure(task.name, threads, f"seconds for {LONGEST:,} nt", run.seconds, "s", None)


def startup(peers: str | None, threads: int, rounds: int, clock: str, work: Path) -> Iterable[Figure]:
    """From the command to the result of one short sequence, beside the import of multimolecule alone."""
    source = work / "one.fa"
    source.write_text(">one\nGGGAAACGCUUCGGCGUUUCCC\n", encoding="utf-8")
    main = "from ribozyme.cli import main; main()"
    ours = [sys.executable, "-c", main, "embed", str(source), "--model", "rnafm-mini", "-o"]
    taken: dict[str, list[Run]] = {"ribozyme embed, one short sequence, rnafm-mini": []}
    if peers is not None:
        taken["import multimolecule"] = []
    for _ in range(rounds + 1):  # the first fills the system's cache
        for name, runs in taken.items():
            output = Path(tempfile.mkdtemp(dir=work)) / "one.npz"
            command = [*ours, str(output)] if name.startswith("ribozyme") else [str(peers), "-c", name]
            runs.append(timed(command, threads))
    for name, runs in taken.items():
        target = STARTUP_SECONDS if name.startswith("ribozyme") else None
        seconds = median(run.by(clock) for run in runs[1:])
        yield Figure("startup", threads, name, seconds, "s", target, at_least=False)


def timed(command: Sequence[str], threads: int) -> Run:
    """One command from start to end."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        environment = {**os.environ, **limits(threads)}
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


# -------------------------------------------------------------------------------------------------- results


def about() -> dict[str, Any]:
    """The machine, with the processor's family, which its name may hide."""
    found = machine()
    path = Path("/proc/cpuinfo")
    if path.exists():
        pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in pairs}
        found["processor"] = facts.get("model name", found["processor"])
        found["family"] = f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"
    return found | {"cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()}


def describe(found: dict[str, Any], kind: str) -> str:
    fast = [flag for flag in found["flags"] if flag.startswith(("amx", "avx"))]
    speeds = {"amx": "bfloat16 in AMX", "avx512": "bfloat16 in AVX-512", "float32": "no fast bfloat16"}
    return (
        f"{found['processor']} ({found.get('family', '')}), {found['cores']} cores, {', '.join(fast)}: "
        f"{speeds.get(kind, kind)}; torch {found['torch']}, load {found['load'][0]:.1f}"
    )


def print_ratios(ratios: Sequence[Ratio], console: Console) -> None:
    columns = ("task", "threads", "ours", "peer", "s", "peer s", "ratio (spread)", "target", "")
    table = Table(*columns, "difference (of)")
    for one in ratios:
        table.add_row(
            one.task,
            str(one.threads or "all"),
            one.ours,
            one.peer,
            f"{one.seconds:.2f}",
            f"{one.peer_seconds:.2f}",
            f"{one.ratio:.2f} ({one.least:.2f}-{one.most:.2f})",
            "" if one.target is None else f"{one.target:g}",
            verdict(None if one.target is None else one.ratio >= one.target),
            "" if one.difference is None else f"{one.difference:.1e} ({one.largest:.2g})",
        )
    console.print(table)


def print_figures(some: Sequence[Figure], console: Console) -> None:
    table = Table("task", "threads", "what", "value", "target", "")
    for one in some:
        sign = "" if one.target is None else ">= " if one.at_least else "<= "
        target = "" if one.target is None else f"{sign}{one.target:,.4g} {one.unit}"
        value = f"{one.value:,.1f}" if one.value < 1_000 else f"{one.value:,.0f}"
        table.add_row(
            one.task, str(one.threads or "all"), one.what, f"{value} {one.unit}", target, verdict(one.met)
        )
    console.print(table)


def print_versions(measured: Sequence[Measured], console: Console) -> None:
    """What ran in each environment; every program once."""
    for name, some in {name: some for one in measured for name, some in one.versions.items()}.items():
        console.print(f"{name}: {', '.join(f'{k} {v}' for k, v in some.items())}", highlight=False)


def verdict(met: bool | None) -> str:
    return "" if met is None else "[green]met[/]" if met else "[red]not met[/]"


def as_json(found: Measured) -> dict[str, Any]:
    runs = {name: [asdict(run) for run in some] for name, some in found.runs.items()}
    task = found.task
    return {"task": task.name, "threads": found.threads, "count": task.count, "tokens": task.tokens} | {
        "runs": runs,
        "versions": found.versions,
    }


def chosen(bench: Bench, only: str, console: Console) -> Iterable[str]:
    """Names of the tasks that were asked for and whose programs are there."""
    for name, entry in TASKS.items():
        missing = [f"--{need}" for need in entry.needs if getattr(bench, need) is None]
        if only in name and missing:
            console.print(f"{name} is left out: it needs {' and '.join(missing)}")
        elif only in name:
            yield name


@dataclass(slots=True)
class Results:
    """What was measured so far. failed : tasks that could not be, with the words of the program"""

    measured: list[Measured] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path | None, bench: Bench, clock: str, **more: Any) -> None:
        content = {"machine": about(), "hardware": bench.hardware, "clock": clock, "size": bench.size} | {
            "ratios": [asdict(one) for one in self.ratios],
            "figures": [asdict(one) for one in self.figures],
            "tasks": [as_json(one) for one in self.measured],
            "failed": self.failed,
        }
        if path is not None:
            path.write_text(json.dumps(content | more, indent=1) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        print_versions(self.measured, console)
        if self.ratios:
            print_ratios(self.ratios, console)
        print_figures(self.figures, console)
        for name, why in self.failed.items():
            console.print(f"[red]{name} failed[/]: {why}", highlight=False)


def run_all(
    bench: Bench,
    names: Sequence[str],
    rounds: int,
    threads: Sequence[int | None],
    clock: str,
    console: Console,
) -> Iterator[Results]:
    """All results so far, after each task; its table is printed when it is done."""
    results = Results()
    for name in names:
        try:
            run_task(TASKS[name].make(bench), bench, rounds, threads, clock, console, results)
        except SystemExit as error:  # of a peer, some of the others may run all the same
            results.failed[name] = str(error)
        print_ratios([one for one in results.ratios if one.task == name], console)
        yield results


def run_task(
    task: Task,
    bench: Bench,
    rounds: int,
    threads: Sequence[int | None],
    clock: str,
    console: Console,
    results: Results,
) -> None:
    for count in threads:
        found = measure(task, count, rounds, bench.work, console)
        results.measured.append(found)
        results.ratios += [ratio(found, pair, clock) for pair in task.pairs]
        results.figures += figures(found, bench, clock)
        if task.name == "hybrid" and bench.device == "cpu":
            results.figures += memory(task, count, bench.work)


Python = Annotated[str | None, typer.Option(help="python of an environment; README.md says what is in it")]
Only = Annotated[str, typer.Option(help=f"tasks with this in the name: {', '.join(TASKS)}, startup")]
Work = Annotated[Path | None, typer.Option(help="folder that keeps the checkpoints for another run")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="JSON with every run")]


def main(
    peers: Python = None,
    scgpt: Python = None,
    helical: Python = None,
    only: Only = "",
    rounds: Annotated[int, typer.Option(help="of each task; medians are of these")] = 5,
    threads: Annotated[str, typer.Option(help="numbers of threads, each measured on its own")] = "1,2",
    size: Annotated[float, typer.Option(help="of the samples; 1: an hour in all, 4: several")] = 1.0,
    small: Annotated[
        bool, typer.Option("--small", help="two short inputs a task, two rounds, one thread")
    ] = False,
    alone_count: Annotated[int, typer.Option("--alone", help="also so many inputs a task, ours only")] = 0,
    clock: Annotated[str, typer.Option(help="wall, or cpu where other programs run beside")] = "wall",
    work: Work = None,
    output: Output = None,
) -> None:
    """Print ratios with their spread, and absolute figures; exit status 1 only if a program fails."""
    if clock not in ("wall", "cpu"):
        raise typer.BadParameter(f"--clock is wall or cpu, not {clock!r}")
    if small:
        rounds, threads = 2, "1"
    counts = [int(one) for one in threads.split(",")]
    console, results = wide_console(), Results()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(work or Path(folder), hardware(), peers, scgpt, helical, size, small=small)
        bench.work.mkdir(parents=True, exist_ok=True)
        names = list(chosen(bench, only, console))
        minutes = expected_minutes(names, 0.1 if small else size, rounds, counts)
        console.print(describe(about(), bench.hardware))
        console.print(f"about {minutes:.0f} minutes on an idle machine whose cores reach 75 GFLOP/s each")
        for results in run_all(bench, names, rounds, counts, clock, console):
            results.write(output, bench, clock)
        if only in "startup":
            results.figures += startup(peers, counts[0], rounds, clock, bench.work)
        for name in names if alone_count else ():
            task = TASKS[name].make(replace(bench, count=alone_count))
            for count in counts:
                results.figures += (found := list(alone(task, count, clock, bench.work)))
                print_figures(found, console)
                results.write(output, bench, clock)
        console.print(describe(about(), bench.hardware))
        results.print(console)
        results.write(output, bench, clock)
    if results.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

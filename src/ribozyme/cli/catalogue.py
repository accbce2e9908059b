"""`ribozyme models | info | convert`: what there is, on what terms, and in which layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ribozyme import registry

CARD, SCORES = "card.json", "scores.json"


def models() -> None:
    """List the models that are known by name."""
    header = ("name", "reads", "licence of the weights", "from", "what it is")
    rows = [header] + [
        (m.name, registry.FAMILIES[m.family], m.licence, _origin(m), m.about) for m in registry.MODELS
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header) - 1)] + [0]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)))


def _origin(model: registry.Model) -> str:
    if model.hub is None:
        return "in the package"
    return model.hub.split("@")[0] + (" (gated)" if model.gated else "")


def info(
    model: Annotated[str, typer.Argument(help="name, folder, file or hub id")],
    download: Annotated[
        bool, typer.Option("--download", help="fetch the weights if they are not here")
    ] = False,
) -> None:
    """Source, revision, licence, citation, files and sizes of a model."""
    from ribozyme.hub import cached_files

    table = Table(box=None, show_header=False, pad_edge=False)
    record = next((m for m in registry.MODELS if m.name == model), None)
    if record is not None:
        org, _, revision = (record.hub or "").partition("@")
        table.add_row("name", record.name)
        table.add_row("about", record.about)
        table.add_row("licence", record.licence + (" (non-commercial)" if record.non_commercial else ""))
        table.add_row("cite", record.cite)
        table.add_row("source", org or "in the package")
        if org:
            table.add_row("revision", revision or "main")
            table.add_row("access", "must be asked for on the hub" if record.gated else "open")
        sizes = {file.name: file.size for file in record.files}
        for file, path in cached_files(record).items():
            size = path.stat().st_size if path else sizes[file]
            told = f" ({size:,} bytes)" if size else ""
            table.add_row("file", f"{file}{told}: {path or 'not fetched yet'}")
    if record is None or record.hub is None or download:
        _describe_weights(table, model)
    if record is not None and record.hub is None:
        _describe_card(table, cached_files(record))
    Console().print(table, soft_wrap=True)


def _describe_weights(table: Table, name: str) -> None:
    from dataclasses import asdict

    from ribozyme.engine.load import load

    loaded = load(name, device="cpu")
    count = sum(p.numel() for p in loaded.module.parameters())
    table.add_row("parameters", f"{count:,}")
    for key, value in asdict(loaded.config).items():
        if key.endswith("_names") and value:
            more = f" and {len(value) - 100:,} more" if len(value) > 100 else ""
            table.add_row(key.replace("_", " "), escape(", ".join(value[:100])) + more)
        elif not isinstance(value, (tuple, list, dict)):
            table.add_row(key, str(value))


def _describe_card(table: Table, files: Mapping[str, Path | None]) -> None:
    """How a small model was trained, and what it scored: with these very weights, or nothing is said."""
    from ribozyme.checkpoint import read_json
    from ribozyme.files import digest

    if card := files.get(CARD):
        for key, value in read_json(card).items():
            if key not in ("name", "licence"):
                table.add_row(key.replace("_", " "), str(value))
    weights, path = files.get("model.safetensors"), files.get(SCORES)
    if weights is None or path is None:
        return
    scores = read_json(path)
    if scores.get("weights_sha256") != digest(weights):
        table.add_row("scores", "not shown: they were measured with other weights")
        return
    table.add_row("scores", scores["what"])
    for task, of in scores["tasks"].items():
        table.add_row("", "\n  ".join([f"{task}: {_value(of['trained'])}", *_rivals(of)]))
    table.add_row("limits", scores["limits"])


def _value(values: Mapping[str, float]) -> str:
    return ", ".join(f"{metric} {value:.3f}" for metric, value in values.items())


def _rivals(of: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What else was scored, and by how much the model is better."""
    for who, values in of.items():
        if (gain := of.get(f"over {who}")) is not None:
            interval = f" [{gain['low']:+.3f}, {gain['high']:+.3f}]" if "low" in gain else ""
            yield f"{who} {_value(values)}, gain {gain['value']:+.3f}{interval}"


def convert(
    checkpoint: Annotated[str, typer.Argument(help="name, folder, file or hub id")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write")],
    layout: Annotated[
        str, typer.Option(help="native; of Helix-mRNA hf; of RNA-FM fairseq, multimolecule; of scGPT scgpt")
    ] = "native",
) -> None:
    """Rewrite a checkpoint in another layout."""
    from ribozyme.engine.load import load

    load(checkpoint, device="cpu", dtype="float32").save(output, layout=layout)
    print(output)

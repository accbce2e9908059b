"""What scGPT's losses of fine-tuning need: labels of the cells, and parts of the network that read them."""

import warnings
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ribozyme.engine.cell_parts import match_cells
from ribozyme.engine.cells import CellModel
from ribozyme.errors import ConfigError, InputError, InputWarning
from ribozyme.io.cells import Cells, open_cells
from ribozyme.models.scgpt.grow import grown
from ribozyme.report import Report
from ribozyme.train.corpus import CellCorpus, Columns, held_out
from ribozyme.train.feed import InMemory
from ribozyme.train.recipe import Recipe


def equipped(
    model: Any, parts: Mapping[str, float], recipe: Recipe, corpus: Any, columns: Columns, held: float
) -> Any:
    """The model itself, or one whose network has what training needs beside, with starting weights.

    The part `batches` of the loss needs the discriminator behind reversed gradients (DAB), `classes` the
    classifier (CLS), `zero` and `mvc_zero` decoders of whether a gene is expressed. Labels in the columns of
    the corpus are learnt beside those that the model knows, and decoders are told the batch of each cell.

    held : share of the cells that is not trained on

    Raises
    ------
    ConfigError : parts and columns that do not go together, or are not for this model.
    InputError : there is no such column, or a cell has nothing in it, or a label that is not trained on.
    """
    asked = {
        "batch_column": columns.batch, "class_column": columns.kind,
        "dsbn": recipe.dsbn, "zero_genes": recipe.zero_genes,
    }  # fmt: skip
    if not isinstance(model, CellModel) or isinstance(corpus, CellCorpus | InMemory | list):
        if given := [name for name, value in asked.items() if value]:
            raise ConfigError(f"{given[0]} is for cells, from a file or an AnnData, and models of cells")
        if isinstance(model, CellModel):
            _check_own(model.config, parts, corpus)
        return model
    config = model.config
    _check(config, parts, asked)
    names, classes, genes = config.batch_names, config.class_names, config.zero_genes
    if genes or any(asked.values()):
        names, classes, genes = _told(model, recipe, corpus, columns, held)
    count = len(names) or len(config.known_batches)
    wanted = replace(
        _with_decoders(config, parts),
        batch_names=names,
        class_names=classes,
        batches=count if columns.batch or config.batches else 0,
        domains=count if recipe.dsbn or config.domains else 0,
        adversary=count if "batches" in parts or config.adversary else 0,
        n_cls=len(classes) or config.n_cls,
        zero_genes=genes,
    )
    if wanted == config:
        return model
    return CellModel(grown(model.module, wanted, recipe.seed), model.vocabulary, model.device)


def _with_decoders(config: Any, parts: Container[str]) -> Any:
    """The config with the decoders that these parts of the loss read."""
    rows = any(part in parts for part in ("expression", "zero", "generated", "prompted"))
    zero = "zero" in parts or "mvc_zero" in parts
    return replace(
        config,
        decoder="plain" if rows and config.decoder == "none" else config.decoder,
        explicit_zero=config.explicit_zero or zero,
        mvc=config.mvc or "mvc" in parts or "mvc_zero" in parts,
    )


def _check(config: Any, parts: Mapping[str, float], asked: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` unless everything goes together."""
    if config.modalities or config.perturbation:
        what = "modalities" if config.modalities else "perturbation"
        raise ConfigError(f"a network with {what} is not trained on cells alone")
    needs = ["part 'batches'"] * ("batches" in parts) + ["dsbn"] * asked["dsbn"]
    needs += ["this network"] * bool(config.batches or config.domains)
    if needs and asked["batch_column"] is None:
        raise ConfigError(f"{needs[0]} needs the batch of each cell", hint="batch_column, a column of obs")
    if ("classes" in parts) != (asked["class_column"] is not None):
        raise ConfigError("part 'classes' and a class_column, of obs, go together")
    if {"zero", "mvc_zero"} & parts.keys() and not (asked["zero_genes"] or config.zero_genes):
        raise ConfigError(
            "parts 'zero' and 'mvc_zero' are about genes that a cell does not express",
            hint="have them read: zero_genes",
        )


def _told(
    model: CellModel, recipe: Recipe, corpus: Any, columns: Columns, held: float
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """The names of batches and of classes, and the genes that are read in every cell, with this corpus."""
    config = model.config
    names, classes, genes = config.batch_names, config.class_names, config.zero_genes
    with open_cells(corpus) as cells:
        if columns.batch is not None:
            names = _joined(config.known_batches, cells, columns.batch, held)
        if columns.kind is not None:
            classes = _joined(config.known_classes, cells, columns.kind, held)
        if recipe.zero_genes or genes:
            report = Report()
            match = match_cells(cells, model.lookup, columns.gene, report, genes).match
            genes = genes or tuple(match.genes.tolist())
            report.finish(stacklevel=5)
    return names, classes, genes


def _check_own(config: Any, parts: Mapping[str, float], corpus: Any) -> None:
    """Raise a `ConfigError` unless the network has all that the parts need, for a corpus of one's own."""
    labels = {"classes": config.n_cls, "batches": config.adversary}
    if lacking := [one for one in parts if _with_decoders(config, [one]) != config or not labels.get(one, 1)]:
        raise ConfigError(
            f"part {lacking[0]!r} needs a part of the network that this one lacks",
            hint="give the cells as a file or an AnnData, and the network gets it",
        )
    if not isinstance(corpus, CellCorpus):
        return
    if corpus.batch_column is None and (config.batches or config.domains):
        raise ConfigError("this network needs the batch of each cell", hint="CellCorpus(batch_column=...)")
    if {*corpus.zero_genes} != {*config.zero_genes}:
        raise ConfigError(
            f"the corpus reads {len(corpus.zero_genes):,} genes in every cell, the model "
            f"{len(config.zero_genes):,}",
            hint="CellCorpus(zero_genes=model.config.zero_genes)",
        )


def _joined(known: Sequence[str], cells: Cells, column: str, held: float) -> tuple[str, ...]:
    """The labels that are known, then those of a column that are not, in order."""
    if not len(cells):
        raise InputError(f"{cells.where}: there are no cells")
    labels = cells.labels(column)
    found = Counter(labels)
    if len(found.keys() | {*known}) < 2:
        raise InputError(
            f"{cells.where}: all cells have the same label in {column!r}", hint="it takes two to tell"
        )
    if 2 * len(found) > len(labels):
        raise InputError(
            f"{cells.where}: {column!r} has {len(found):,} labels for {len(labels):,} cells",
            hint="name a column of batches or classes, which many cells share",
        )
    trained = {label for name, label in zip(cells.names, labels) if not held_out(str(name), held)}
    if unseen := sorted(found.keys() - trained):
        raise InputError(
            f"{cells.where}: of {unseen[0]!r} in {column!r} all cells ({found[unseen[0]]:,}) are held out",
            hint="leave them out, hold another share out (held), or give a validation",
        )
    if known and not found.keys() & {*known}:
        warnings.warn(
            f"{cells.where}: none of the labels in {column!r} is one that the model knows "
            f"({', '.join(known[:10])}); they are learnt anew beside those",
            InputWarning,
            stacklevel=5,
        )
    return (*known, *sorted(found.keys() - {*known}))

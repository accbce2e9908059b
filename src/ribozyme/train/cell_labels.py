"""What scGPT's losses of fine-tuning need: labels of the cells, and parts of the network that read them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ribozyme.engine.cells import CellModel
from ribozyme.errors import ConfigError, InputError
from ribozyme.io.cells import open_cells
from ribozyme.models.scgpt.grow import grown
from ribozyme.train.corpus import CellCorpus, Columns
from ribozyme.train.feed import InMemory
from ribozyme.train.recipe import Recipe


def equip(model: Any, recipe: Recipe, corpus: Any, columns: Columns) -> None:
    """Give a model of cells the parts that training needs, with starting weights; those it has stay.

    The part `batches` of the loss needs the discriminator behind reversed gradients (DAB), `classes` the
    classifier (CLS), `zero` and `mvc_zero` decoders of whether a gene is expressed. Labels in the columns of
    the corpus are learnt beside those that the model knows, and decoders are told the batch of each cell.

    Raises
    ------
    ConfigError : parts and columns that do not go together, or are not for this model.
    InputError : there is no such column, or a cell has nothing in it.
    """
    asked = {
        "batch_column": columns.batch, "class_column": columns.kind,
        "dsbn": recipe.dsbn, "zero_genes": recipe.zero_genes,
    }  # fmt: skip
    if not isinstance(model, CellModel) or isinstance(corpus, CellCorpus | InMemory | list):
        if given := [name for name, value in asked.items() if value]:
            raise ConfigError(f"{given[0]} is for cells, from a file or an AnnData, and models of cells")
        return
    config, parts = model.config, recipe.parts or {}
    _check(config, parts, asked)
    names, count = config.batch_names, len(config.known_batches)
    if columns.batch is not None:
        names = _joined(config.known_batches, corpus, columns.batch)
        count = len(names)
    classes = config.class_names
    if columns.kind is not None:
        classes = _joined(config.known_classes, corpus, columns.kind)
    wanted = replace(
        config,
        batch_names=names,
        class_names=classes,
        batches=count if columns.batch or config.batches else 0,
        domains=count if recipe.dsbn or config.domains else 0,
        adversary=count if "batches" in parts or config.adversary else 0,
        n_cls=len(classes) or config.n_cls,
        explicit_zero=config.explicit_zero or bool({"zero", "mvc_zero"} & parts.keys()),
        mvc=config.mvc or bool({"mvc", "mvc_zero"} & parts.keys()),
        zero_genes=config.zero_genes or recipe.zero_genes,
    )
    if wanted != config:
        model.module = grown(model.module, wanted, recipe.seed)


def _check(config: Any, parts: Mapping[str, float], asked: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` unless everything goes together."""
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


def _joined(known: Sequence[str], corpus: Any, column: str) -> tuple[str, ...]:
    """The labels that are known, then those of a column that are not, in order."""
    with open_cells(corpus) as cells:
        found = set(cells.labels(column))
        where = cells.where
    if len(found | set(known)) < 2:
        raise InputError(f"{where}: all cells have the same label in {column!r}", hint="it takes two to tell")
    return (*known, *sorted(found - set(known)))

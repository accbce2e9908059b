"""Pretraining: a language model of sequences, or a model of cells, from a corpus of any size.

>>> history = pretrain("rnafm-mini", "rna.fa.gz", "run", scratch=True, steps=10_000)
>>> model = ribozyme.load("run")

The same call again goes on from the last checkpoint, and does nothing where the run is complete.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ribozyme.engine.cells import CellModel
from ribozyme.engine.device import batch_tokens as default_batch_tokens
from ribozyme.engine.family import formats_of
from ribozyme.engine.load import load
from ribozyme.errors import InputError, InputWarning
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.train.cell_labels import equipped
from ribozyme.train.components import Components
from ribozyme.train.corpus import CellCorpus, Columns, SequenceCorpus, described, held_examples
from ribozyme.train.feed import Corpus, Feed, InMemory
from ribozyme.train.history import History, State
from ribozyme.train.kmer_components import KmerComponents
from ribozyme.train.loop import Loop
from ribozyme.train.objectives import Example
from ribozyme.train.processes import first_process, process_device
from ribozyme.train.recipe import Recipe, objective_of
from ribozyme.train.run import Run, has_begun, read_settings
from ribozyme.train.schedule import Schedule, parameter_groups
from ribozyme.train.snapshot import weights_digest

__all__ = ["Recipe", "objective_of", "parts", "pretrain"]

BETAS = (0.9, 0.98)  # of AdamW: shorter memory than by default, as usual where gradients change fast
MOST_HELD = 512
NO_COLUMNS = Columns()


def pretrain(
    model: Any,
    corpus: Any,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    scratch: bool = False,
    validation: Any = None,
    components: Components | KmerComponents | None = None,
    batch_tokens: int | None = None,
    save_every: int = 500,
    log_every: int = 50,
    sequence_column: str | None = None,
    gene_column: str | None = None,
    batch_column: str | None = None,
    class_column: str | None = None,
    device: str = "auto",
    watch: Callable[[State], None] | None = None,
) -> History:
    """Train a model on a corpus, in a folder that `ribozyme.load` reads when it is done.

    Parameters
    ----------
    model : what `ribozyme.load` takes, or a loaded model, which is trained itself (and then is no published
        one: its `record` is None)
    corpus : sequences (FASTA, table, list ...) or cells (h5ad, AnnData ...), as `embed` of the model takes;
        files are read as they are needed
    folder : where the run is kept; with one of the same settings in it, the run goes on. Only `steps` may
        differ, if the rates of the steps that were done would have been the same.
    scratch : begin with fresh weights, of the same sizes, instead of those of the model
    validation : another corpus, of which at most 512 inputs are validated on, instead of a part of the first
    components : what the embedding is to tell beside: of masked `values` `Components`, in the place of each
        gene's bin; of letters `KmerComponents`
    batch_tokens : tokens that go through the network at once; bounds the memory, not the result, but where
        inputs that go through at once are compared (`contrast`, `similarity`, `dsbn`): by default those of
        a step
    save_every, log_every : steps between checkpoints, and between lines of the log
    gene_column : of `var`, as of `embed`; batch_column, class_column : of `obs`, with what the parts
        `batches` and `classes`, `dsbn`, and decoders that are told the batch need. A network gets the parts
        that it lacks, with starting weights, and knows the labels by name.
    watch : called after each line of the log

    Raises
    ------
    InputError : the corpus cannot be read, or there is nothing in it.
    ConfigError : a setting that makes no sense, a run of other settings in the folder, or a loss that became
        infinite.
    KeyboardInterrupt, SystemExit : on Ctrl-C or SIGTERM, when the checkpoint was written.
    """
    recipe = recipe or Recipe()
    loaded = load(model, device=process_device(device), dtype="float32") if _is_name(model) else model
    objective = objective_of(loaded, recipe, components)
    columns = Columns(sequence_column, gene_column, batch_column, class_column)
    share = recipe.held if validation is None else 0.0
    given, loaded = loaded, equipped(loaded, objective.parts, recipe, corpus, columns, share)
    if scratch:
        loaded = given = loaded.untrained(recipe.seed)
    set_matmul_dtype(loaded.module, torch.float32)
    formats_of(loaded.module)  # a writer that is broken is found before hours of work, not after
    source, held = parts(loaded, corpus, recipe, validation, columns)
    recipe = replace(recipe, warmup=_warmup(recipe, Path(folder)))
    compares = _compares(objective, loaded.config)
    budget = batch_tokens or (recipe.step_tokens if compares else default_batch_tokens(loaded.device))
    first = not _untrained(loaded)
    loop = _loop(recipe, budget, save_every=save_every, log_every=log_every, validate_first=first)
    feed = _feed(recipe, source)
    groups = parameter_groups(loaded.module.named_parameters(), recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS)
    settings = {
        "kind": "pretraining",
        "model": model if _is_name(model) and isinstance(model, str) else type(loaded.module).__name__,
        "network": asdict(loaded.config),
        "scratch": scratch,
        # of a loaded model that is trained itself, a call that goes on finds other weights than the first
        "first weights": weights_digest(loaded.module) if scratch or _is_name(model) else None,
        "corpus": described(source),
        "validation": None if validation is None else described(held),
        "components": described(components),
        "columns": asdict(columns),
        "batch_tokens": budget if compares else None,
        **asdict(recipe),
    }
    run = Run(
        folder, settings, schedule=loop.schedule, writes=first_process(), also=lambda: loaded.save(folder)
    )
    try:
        return loop.train(loaded.module, objective, feed, optimizer, held=held, run=run, watch=watch)
    finally:
        if optimizer.state:  # it was trained
            given.module, given.record = loaded.module, None
            _say_untrained(loaded)


def _untrained(model: Any) -> list[int]:
    """Batches whose norm (DSBN) has seen no cell, so that their cells are neither judged nor embedded."""
    return model.module.untrained_domains() if isinstance(model, CellModel) else []


def _say_untrained(model: Any) -> None:
    if untrained := _untrained(model):
        names = ", ".join(model.config.known_batches[k] for k in untrained[:10])
        warnings.warn(
            f"no cell of batch {names} was trained on, so the model cannot embed those: train for longer, or "
            "leave them out",
            InputWarning,
            stacklevel=4,
        )


def _warmup(recipe: Recipe, folder: Path) -> int:
    """Steps of rising rate: as asked, or as the run in the folder has them, or 2 %."""
    if recipe.warmup is not None:
        return recipe.warmup
    known = (read_settings(folder) or {}).get("warmup") if has_begun(folder) else None
    return round(0.02 * recipe.steps) if known is None else int(known)


def _compares(objective: Any, config: Any) -> bool:
    """Whether the result depends on which inputs go through the network at once."""
    return getattr(objective, "compares", False) or getattr(config, "domains", 0) > 0


def _loop(
    recipe: Recipe, batch_tokens: int, *, save_every: int, log_every: int, validate_first: bool
) -> Loop:
    return Loop(
        schedule=Schedule(
            steps=recipe.steps, kind=recipe.schedule, warmup=recipe.warmup or 0, decay=recipe.decay
        ),
        batch_tokens=batch_tokens,
        clip=recipe.clip,
        log_every=log_every,
        validate_every=recipe.validate_every,
        validate_first=validate_first,
        save_every=save_every,
        patience=recipe.patience,
        precision=recipe.precision,
        seed=recipe.seed,
    )


def _feed(recipe: Recipe, corpus: Corpus) -> Feed:
    return Feed(
        corpus=corpus,
        size=recipe.step_tokens,
        buffer=recipe.buffer,
        sorted_steps=recipe.sorted_steps,
        seed=recipe.seed,
    )


def parts(
    model: Any,
    corpus: Any,
    recipe: Recipe,
    validation: Any = None,
    columns: Columns = NO_COLUMNS,
    most: int = MOST_HELD,
) -> tuple[Corpus, list[Example]]:
    """What `pretrain` with the same arguments trains on, and at most `most` examples that it holds out."""
    if validation is not None:
        recipe = replace(recipe, held=0.0)
    source = _corpus(model, corpus, recipe, columns)
    if validation is not None:
        other = _corpus(model, validation, recipe, columns)
        if isinstance(other, InMemory):
            return source, list(other.examples)
        held = held_examples(replace(other, held=1.0), most)
        if not held:
            raise InputError(f"{other.where}: there is nothing to validate on")
        return source, held
    held = [] if isinstance(source, InMemory) or not source.held else held_examples(source, most)
    if recipe.held and not held:
        if isinstance(source, InMemory):
            what = "examples in memory are all trained on"
        else:
            what = "it is small" if source.held else "the corpus says so itself"
        warnings.warn(
            f"nothing of {source.where} is held out ({what}), so the last weights are kept: give another "
            "share (held), or a validation",
            InputWarning,
            stacklevel=3,
        )
    return source, held


def _is_name(model: Any) -> bool:
    return isinstance(model, str | Path)


def _corpus(
    model: Any, source: Any, recipe: Recipe, columns: Columns
) -> SequenceCorpus | CellCorpus | InMemory:
    """Whatever the user gave as a corpus; one of ours, or a list of examples, as it is."""
    if isinstance(source, SequenceCorpus | CellCorpus | InMemory):
        return source
    if isinstance(source, list) and source and isinstance(source[0], Example):
        return InMemory(source)
    if isinstance(source, str | Path) and not Path(source).exists():
        raise InputError(f"{source}: there is no such file or folder")
    if isinstance(model, CellModel):
        return CellCorpus(
            source=source,
            lookup=model.lookup,
            n_bins=model.config.n_bins,
            gene_column=columns.gene,
            batch_column=columns.batch,
            batch_names=model.config.known_batches,
            class_column=columns.kind,
            class_names=model.config.known_classes,
            zero_genes=model.config.zero_genes,
            held=recipe.held,
        )
    if not isinstance(source, str | Path) and not hasattr(source, "columns"):
        source = list(source)  # an iterator could be read once only
    return SequenceCorpus(
        source=source,
        tokenizer=model.tokenizer,
        sequence_column=columns.sequence,
        coding=recipe.coding,
        held=recipe.held,
    )

"""Pretraining: a language model of sequences, or a model of cells, from a corpus of any size.

>>> history = pretrain("rnafm-mini", "rna.fa.gz", "run", scratch=True, steps=10_000)
>>> model = ribozyme.load("run")

The same call again goes on from the last checkpoint, and does nothing where the run is complete.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ribozyme.engine.cells import CellModel
from ribozyme.engine.device import batch_tokens as default_batch_tokens
from ribozyme.engine.family import formats_of
from ribozyme.engine.load import load
from ribozyme.errors import ConfigError, InputError
from ribozyme.nn.linear import set_matmul_dtype
from ribozyme.train.components import Components
from ribozyme.train.corpus import CellCorpus, Coding, SequenceCorpus, held_examples
from ribozyme.train.feed import BUFFER, Corpus, Feed, InMemory
from ribozyme.train.history import History, State
from ribozyme.train.loop import Loop, Objective, evaluate
from ribozyme.train.objectives import (
    Example,
    Generative,
    Genes,
    Letters,
    MaskedLetters,
    MaskedValues,
    NextLetter,
)
from ribozyme.train.processes import first_process, process_device
from ribozyme.train.run import Run
from ribozyme.train.schedule import Schedule, parameter_groups

OBJECTIVES = ("next", "masked", "values", "generative")
BETAS = (0.9, 0.98)  # of AdamW: shorter memory than by default, as usual where gradients change fast
MOST_HELD = 512
E_WEIGHT = 0.2  # E follows from the reading frame: easy, and not what is to be learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to pretrain; what is None is chosen by the model, the device and the other settings.

    steps, step_tokens : optimizer steps, and tokens of a step over all processes
    longest : letters, or genes, of an input; of a longer one a random part
    objective : `next` letter, `masked` letters, masked `values`, `generative`; by default by the model
    contrast : of `masked`, the coefficient of telling two parts of a sequence from others
    share : of the letters, or bins, that are masked; by default 0.15, 0.4
    schedule, warmup, decay : as of `Schedule`; the warm-up is 2 % of the steps by default
    buffer : inputs that are shuffled together
    sorted_steps : steps whose inputs are sorted by length together
    held : share of the inputs that are held out, of which at most 512 are looked at
    """

    steps: int = 10_000
    step_tokens: int = 8_192
    longest: int | None = None
    objective: str | None = None
    contrast: float = 0.0
    share: float | None = None
    coding: Coding = "whole"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "wsd"
    warmup: int | None = None
    decay: float = 0.4
    clip: float = 1.0
    buffer: int = BUFFER
    sorted_steps: int = 1
    held: float = 0.005
    validate_every: int = 500
    patience: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise ConfigError(
                f"objective {self.objective!r} does not exist", hint=f"one of {', '.join(OBJECTIVES)}"
            )
        if not 0 <= self.held < 1:
            raise ConfigError(f"held {self.held} is a share from 0 to below 1")
        if self.longest is not None and self.longest < 1:
            raise ConfigError(f"longest {self.longest} must be positive")


def pretrain(
    model: Any,
    corpus: Any,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    scratch: bool = False,
    validation: Any = None,
    components: Components | None = None,
    batch_tokens: int | None = None,
    save_every: int = 500,
    log_every: int = 50,
    sequence_column: str | None = None,
    gene_column: str | None = None,
    device: str = "auto",
    watch: Callable[[State], None] | None = None,
) -> History:
    """Train a model on a corpus, in a folder that `ribozyme.load` reads when it is done.

    Parameters
    ----------
    model : what `ribozyme.load` takes, or a loaded model, which is trained itself
    corpus : sequences (FASTA, table, list ...) or cells (h5ad, AnnData ...), as `embed` of the model takes;
        files are read as they are needed
    folder : where the run is kept; with an unfinished one of the same settings in it, the run goes on
    scratch : begin with fresh weights, of the same sizes, instead of those of the model
    validation : another corpus to validate on, instead of a part of the first that is held out
    components : of masked `values`: what the cell embedding is to tell, in the place of each gene's bin
    batch_tokens : tokens that go through the network at once; bounds the memory, not the result
    save_every, log_every : steps between checkpoints, and between lines of the log
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
    if scratch:
        loaded = loaded.untrained(recipe.seed)
    set_matmul_dtype(loaded.module, torch.float32)
    formats_of(loaded.module)  # a writer that is broken is found before hours of work, not after
    objective = objective_of(loaded, recipe, components)
    source, held = parts(
        loaded, corpus, recipe, validation, sequence_column=sequence_column, gene_column=gene_column
    )
    warmup = round(0.02 * recipe.steps) if recipe.warmup is None else recipe.warmup
    loop = Loop(
        schedule=Schedule(steps=recipe.steps, kind=recipe.schedule, warmup=warmup, decay=recipe.decay),
        batch_tokens=batch_tokens or default_batch_tokens(loaded.device),
        clip=recipe.clip,
        log_every=log_every,
        validate_every=recipe.validate_every,
        validate_first=True,
        save_every=save_every,
        patience=recipe.patience,
        precision=recipe.precision,
        seed=recipe.seed,
    )
    feed = Feed(
        corpus=source,
        size=recipe.step_tokens,
        buffer=recipe.buffer,
        sorted_steps=recipe.sorted_steps,
        seed=recipe.seed,
    )
    groups = parameter_groups(loaded.module.named_parameters(), recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS)
    settings = {
        "kind": "pretraining",
        "model": model if _is_name(model) and isinstance(model, str) else type(loaded.module).__name__,
        "network": asdict(loaded.config),
        "scratch": scratch,
        "corpus": _described(corpus),
        "validation": _described(validation),
        "columns": [sequence_column, gene_column],
        **asdict(recipe),
    }
    run = Run(folder, settings, writes=first_process(), also=lambda: loaded.save(folder))
    return loop.train(loaded.module, objective, feed, optimizer, held=held, run=run, watch=watch)


def parts(
    model: Any,
    corpus: Any,
    recipe: Recipe,
    validation: Any = None,
    *,
    sequence_column: str | None = None,
    gene_column: str | None = None,
    most: int = MOST_HELD,
) -> tuple[Corpus, list[Example]]:
    """What `pretrain` with the same arguments trains on, and the first `most` examples that it holds out."""
    source = _corpus(model, corpus, recipe, sequence_column, gene_column)
    if validation is not None:
        other = _corpus(model, validation, recipe, sequence_column, gene_column)
        if isinstance(other, InMemory):
            return source, list(other.examples)
        return source, held_examples(replace(other, held=1.0), most)
    if isinstance(source, InMemory) or not recipe.held:
        return source, []
    return source, held_examples(source, most)


def held_out_loss(model: Any, examples: Sequence[Example], recipe: Recipe) -> float:
    """The loss of a model on examples, as the validation of `pretrain` gives it."""
    budget = default_batch_tokens(model.device)
    return evaluate(model.module, objective_of(model, recipe), examples, budget, seed=recipe.seed)


def _is_name(model: Any) -> bool:
    return isinstance(model, str | Path)


def objective_of(model: Any, recipe: Recipe, components: Components | None = None) -> Objective:
    """What `pretrain` with this recipe trains the model for."""
    cells = model.reads == "cells"
    default = "values" if cells else "next" if model.config.causal else "masked"
    name = recipe.objective or default
    fits = ("values", "generative") if cells else ("next",) if model.config.causal else ("masked",)
    if name not in fits:
        raise ConfigError(f"objective {name!r} is not for this model", hint=f"one of {', '.join(fits)}")
    if components is not None and name != "values":
        raise ConfigError("components are of cells", hint="use them with objective='values'")
    if cells:
        return _of_cells(model, recipe, name, components)
    window = model.config.max_letters
    limits = [limit for limit in (window, recipe.longest) if limit is not None]
    reading = Letters(
        prefix=tuple(model.tokenizer.prefix),
        suffix=tuple(model.tokenizer.suffix),
        longest=min(limits, default=1 << 30),
        optional=_marks(model.tokenizer, recipe),
        views=2 if recipe.contrast else 1,
    )
    if name == "next":
        if reading.optional is None:
            return NextLetter(reading)
        weights = [1.0] * len(model.tokenizer.letters)
        weights[reading.optional[0]] = E_WEIGHT
        return NextLetter(reading, tuple(weights))
    plain = [bool(letter) and not set(letter) - set("ACGU") for letter in model.tokenizer.letters]
    letters = tuple(k for k, is_plain in enumerate(plain) if is_plain)
    share = 0.15 if recipe.share is None else recipe.share
    return MaskedLetters(reading, model.tokenizer.mask_id, letters, share, recipe.contrast)


def _marks(tokenizer: Any, recipe: Recipe) -> tuple[int, float] | None:
    """The letter in front of codons, which 40 % of the sequences do without: users have both kinds."""
    if recipe.coding != "mark":
        return None
    if "E" not in tokenizer.letters:
        raise ConfigError("this model has no letter E to mark codons with", hint="use coding='whole'")
    return tokenizer.letters.index("E"), 0.4


def _of_cells(model: Any, recipe: Recipe, name: str, components: Components | None) -> Objective:
    config = model.config
    longest = 1_199 if recipe.longest is None else recipe.longest
    reading = Genes(cls_id=model.vocabulary.cls_id, cls_value=config.pad_value, longest=longest)
    if name == "generative":
        if not config.flag:
            raise ConfigError("this network has no flag for genes to generate", hint="use objective='values'")
        return Generative(reading, config.n_bins)
    share = 0.4 if recipe.share is None else recipe.share
    of_cell = "components" if components is not None else "mvc" if config.mvc else None
    told = {"expression": 1.0} | ({of_cell: 1.0} if of_cell else {})
    return MaskedValues(reading, config.mask_value, config.n_bins, share, told, components=components)


def _corpus(
    model: Any, source: Any, recipe: Recipe, sequence_column: str | None, gene_column: str | None
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
            gene_column=gene_column,
            held=recipe.held,
        )
    if not isinstance(source, str | Path) and not hasattr(source, "columns"):
        source = list(source)  # an iterator could be read once only
    return SequenceCorpus(
        source=source,
        tokenizer=model.tokenizer,
        sequence_column=sequence_column,
        coding=recipe.coding,
        held=recipe.held,
    )


def _described(source: Any) -> Any:
    """What of a corpus must be the same for a run to go on."""
    if source is None:
        return None
    if isinstance(source, str | Path):
        path = Path(source)
        return [path.name, path.stat().st_size if path.is_file() else None]
    return [type(source).__name__, len(source) if hasattr(source, "__len__") else None]

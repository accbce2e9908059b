"""How a model is pretrained: the settings, and the objective that they make for a model."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ribozyme.errors import ConfigError
from ribozyme.train.components import Components
from ribozyme.train.corpus import Coding
from ribozyme.train.feed import BUFFER
from ribozyme.train.kmer_components import KmerComponents
from ribozyme.train.loop import Objective
from ribozyme.train.objectives import Generative, Genes, Letters, MaskedLetters, MaskedValues, NextLetter
from ribozyme.train.objectives.cells import GENERATED, OF_GENES

OBJECTIVES = ("next", "masked", "values", "generative")
UNMARKED = 0.4
E_WEIGHT = 0.2  # E follows from the reading frame: easy, and not what is to be learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to pretrain; what is None is chosen by the model, the device and the other settings.

    steps, step_tokens : optimizer steps, and tokens of a step over all processes
    longest : letters, or genes, of an input; of a longer one a random part
    objective : `next` letter, `masked` letters, masked `values`, `generative`; by default by the model
    contrast : of `masked`, the coefficient of telling two parts of a sequence from others
    parts : of `values` and `generative`, parts of the loss with their coefficients, as of `MaskedValues` and
        `Generative`; threshold : of its part `similarity`
    dsbn : of cells, norm the input by the batch; zero_genes : read genes that a cell does not express, too
    share : of the letters, or bins, that are masked; by default 0.15, 0.4
    coding : `whole`, `mark`, `only`, as of `SequenceCorpus`
    learning_rate : the highest; weight_decay : of matrices, of AdamW; clip : longest gradient
    schedule, warmup, decay : as of `Schedule`; the warm-up is 2 % of the steps by default
    buffer : inputs that are shuffled together, and in memory
    sorted_steps : steps whose inputs are sorted by length together
    held : share of the inputs that are held out, of which at most 512 are looked at
    validate_every, patience : steps between validations, and how many that are no better end the training
    precision : `auto`, `float32` or `bfloat16`, as of `Loop`
    seed : of everything random
    """

    steps: int = 10_000
    step_tokens: int = 8_192
    longest: int | None = None
    objective: str | None = None
    contrast: float = 0.0
    parts: dict[str, float] | None = None
    threshold: float = 0.8
    dsbn: bool = False
    zero_genes: bool = False
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
        if self.share is not None and not 0 <= self.share < 1:
            raise ConfigError(f"share {self.share} of the letters or bins must be from 0 to below 1")
        for name in ("contrast", "learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} {getattr(self, name)} must be 0 or above")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} is a cosine from 0 to 1")
        if self.parts is not None and not (isinstance(self.parts, dict) and self.parts):
            raise ConfigError(f"parts {self.parts!r} are a dict of coefficients", hint="{'expression': 1.0}")
        for part, value in (self.parts or {}).items():
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ConfigError(f"part {part!r} has the coefficient {value!r}, no number above 0")


def objective_of(
    model: Any, recipe: Recipe, components: Components | KmerComponents | None = None
) -> Objective:
    """What `pretrain` with this recipe trains the model for."""
    cells = model.reads == "cells"
    fits = ("values", "generative") if cells else ("next",) if model.config.causal else ("masked",)
    name = recipe.objective or fits[0]
    if name not in fits:
        raise ConfigError(f"objective {name!r} is not for this model", hint=f"one of {', '.join(fits)}")
    kind = Components if name == "values" else KmerComponents
    if components is not None and (name == "generative" or not isinstance(components, kind)):
        raise ConfigError(
            f"these components are not for objective {name!r}",
            hint="Components of cells go with 'values', KmerComponents with 'next' and 'masked'",
        )
    if cells and recipe.contrast:
        raise ConfigError("contrast is not for models of cells", hint="name it among parts")
    if cells and recipe.coding != "whole":
        raise ConfigError("coding is not for models of cells")
    if not cells and recipe.parts:
        raise ConfigError(f"parts is not for models of {model.reads}")
    if recipe.share == 0 and components is None and not recipe.contrast and not recipe.parts:
        raise ConfigError("share 0 masks nothing, so there is nothing to learn")
    if cells:
        return _of_cells(model, recipe, name, components)
    return (_of_next if name == "next" else _of_masked)(model, recipe, components)


def _of_next(model: Any, recipe: Recipe, components: Any) -> Objective:
    reading = _letters(model, recipe)
    if reading.optional is None:
        return NextLetter(reading, components=components)
    weights = [1.0] * len(model.tokenizer.letters)
    weights[reading.optional[0]] = E_WEIGHT
    return NextLetter(reading, tuple(weights), components)


def _of_masked(model: Any, recipe: Recipe, components: Any) -> Objective:
    plain = [bool(letter) and not set(letter) - set("ACGU") for letter in model.tokenizer.letters]
    letters = tuple(k for k, is_plain in enumerate(plain) if is_plain)
    share = 0.15 if recipe.share is None else recipe.share
    reading = _letters(model, recipe)
    return MaskedLetters(reading, model.tokenizer.mask_id, letters, share, recipe.contrast, components)


def _letters(model: Any, recipe: Recipe) -> Letters:
    """How a sequence becomes tokens of the model."""
    limits = [limit for limit in (model.config.max_letters, recipe.longest) if limit is not None]
    return Letters(
        prefix=tuple(model.tokenizer.prefix),
        suffix=tuple(model.tokenizer.suffix),
        longest=min(limits, default=1 << 30),
        optional=_marks(model.tokenizer, recipe),
        views=2 if recipe.contrast else 1,
    )


def _marks(tokenizer: Any, recipe: Recipe) -> tuple[int, float] | None:
    """The letter in front of codons, and the share of sequences that do without: users have both kinds."""
    if recipe.coding != "mark":
        return None
    if "E" not in tokenizer.letters:
        raise ConfigError("this model has no letter E to mark codons with", hint="use coding='whole'")
    return tokenizer.letters.index("E"), UNMARKED


def _of_cells(model: Any, recipe: Recipe, name: str, components: Any) -> Objective:
    config = model.config
    longest = 1_199 if recipe.longest is None else recipe.longest
    reading = Genes(cls_id=model.vocabulary.cls_id, cls_value=config.pad_value, longest=longest)
    if name == "generative":
        if not config.flag:
            raise ConfigError("this network has no flag for genes to generate", hint="use objective='values'")
        parts = recipe.parts or {part: 1.0 for part in GENERATED if config.mvc or part != "mvc"}
        return Generative(reading, config.n_bins, parts=parts)
    share = 0.4 if recipe.share is None else recipe.share
    of_cell = "components" if components is not None else "mvc" if config.mvc else None
    parts = recipe.parts or {"expression": 1.0} | ({of_cell: 1.0} if of_cell else {})
    if not parts.keys() - MaskedValues.against:
        raise ConfigError("part 'batches' alone only forgets", hint="give others beside: expression, mvc")
    if "contrast" in parts and not config.dropout:
        raise ConfigError("part 'contrast' tells draws of dropout apart, which this network has none of")
    if not share and (hidden := OF_GENES.keys() & parts.keys()):
        raise ConfigError(f"share 0 masks nothing, so part {min(hidden)!r} has nothing to learn")
    return MaskedValues(reading, config.mask_value, config.n_bins, share, parts, recipe.threshold, components)

"""What a network is trained for: each objective is a few lines with its formula and source.

An objective turns examples into a `Batch` and a batch into sums, part by part; the loop divides them by the
weight of the whole step. All random numbers (masks, crops, samples of genes) are functions of an example's
key and of the place in it, so they do not depend on how a step is cut into batches, or on processes.

T tokens of all examples end to end, n examples, d width, V letters in the vocabulary.
"""

from ribozyme.train.objectives.cells import Generative, MaskedValues, expressed, squared
from ribozyme.train.objectives.letters import MaskedLetters, NextLetter, info_nce
from ribozyme.train.objectives.reading import Draws, Example, Genes, Letters, each, of_views

__all__ = [
    "Draws",
    "Example",
    "Generative",
    "Genes",
    "Letters",
    "MaskedLetters",
    "MaskedValues",
    "NextLetter",
    "each",
    "expressed",
    "info_nce",
    "of_views",
    "squared",
]

"""Principal components of the k-mers of a corpus: what a sequence embedding can be taught without labels.

A network that must tell them from a sequence of which letters are hidden learns to sum up what is in it,
which predicting one letter from its neighbours does not ask for. A linear model on them is a strong predictor
of its own (latent semantic analysis, doi:10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9).

K k-mers of 1 to 6 letters, d components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.components import principal_directions
from ribozyme.train.kmers import kmer_counts

MOST_SEQUENCES = 20_000
OTHER, SKIPPED = 255, 254
"""Codes of letters that break k-mers, and of those that are passed over: the marks of codons."""

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class KmerComponents:
    """Directions of the sequences of a corpus.

    codes : (V,) 0 to 3 for the ids of A, C, G, U
    weights : (K,) how rare each k-mer is: 1 + ln (1 + n) / (1 + sequences with it)
    directions : (K, d) of (1 + ln count) x weight, at unit length; by the root of their size, so that the
        first few do not outweigh the others
    centre : (d,) where the mean sequence lies
    """

    codes: npt.NDArray[np.uint8]
    weights: Floats
    directions: Floats
    centre: Floats

    def of(self, sequences: Sequence[Ids]) -> Tensor:
        """(n, d) where each sequence of ids lies, of length sqrt(d): as long as a layer-normed row."""
        counts = np.stack([_counts(ids, self.codes) for ids in sequences]).astype(np.float32)
        rows = _weighed(counts, self.weights) @ self.directions - self.centre
        return F.normalize(torch.from_numpy(rows), dim=1) * len(self.centre) ** 0.5


def kmer_components(corpus: Any, letters: Sequence[str], count: int, longest: int = 512) -> KmerComponents:
    """Of the first 20,000 sequences of a corpus, `longest` letters of each.

    letters : of the model's vocabulary, in the order of their ids; count : d

    Raises
    ------
    ConfigError : the vocabulary is not of single nucleotides.
    InputError : the corpus has too few sequences.
    """
    codes = _codes(letters)
    read = corpus.read(np.random.default_rng(0))
    examples = islice((one for one in read if one is not None), MOST_SEQUENCES)
    table = [sparse.csr_array(_counts(one.ids[:longest], codes)[None].astype(np.float32)) for one in examples]
    if len(table) <= count:
        raise InputError(f"{corpus.where}: {count} components need more than {len(table)} sequences")
    counts = sparse.vstack(table).tocsr()
    weights = 1 + np.log((1 + len(table)) / (1 + counts.astype(bool).sum(0)))
    counts.data = 1 + np.log(counts.data)
    counts = counts.multiply(weights).tocsr()
    size = np.sqrt(counts.power(2).sum(1))
    counts = counts.multiply(1 / np.maximum(size, 1e-9)[:, None]).tocsr().astype(np.float32)
    mean = np.asarray(counts.mean(0)).ravel()
    directions = principal_directions(counts, mean, count).astype(np.float32)
    return KmerComponents(
        codes, weights.astype(np.float32), directions, (mean @ directions).astype(np.float32)
    )


def _codes(letters: Sequence[str]) -> npt.NDArray[np.uint8]:
    known = {"A": 0, "C": 1, "G": 2, "U": 3, "E": SKIPPED}
    if not {"A", "C", "G", "U"} <= set(letters):
        raise ConfigError("k-mers are of single nucleotides", hint="this model reads codons")
    return np.array([known.get(letter, OTHER) for letter in letters], np.uint8)


def _counts(ids: Ids, codes: npt.NDArray[np.uint8]) -> Ids:
    found = codes[ids]
    return kmer_counts(found[found != SKIPPED])


def _weighed(counts: Floats, weights: Floats) -> Floats:
    """Logarithms of counts by the weights, at unit length (sublinear TF-IDF)."""
    rows = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * weights
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(size, 1e-9), np.float32)

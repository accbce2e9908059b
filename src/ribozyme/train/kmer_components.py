"""Principal components of the k-mers of a corpus: what a sequence embedding can be taught without labels.

A network that must tell them from a sequence of which letters are hidden learns to sum up what is in it,
which predicting one letter from its neighbours does not ask for. A linear model on them is a strong predictor
of its own (latent semantic analysis, doi:10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9).

K k-mers of 1 to 6 letters, and the 64 codons where a vocabulary has marks for them; d components.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from ribozyme.errors import ConfigError, InputError
from ribozyme.train.components import principal_directions
from ribozyme.train.kmers import kmer_counts, table_of, word_counts

MOST_SEQUENCES = 20_000
OTHER, SKIPPED = 255, 254
"""Codes of letters that break k-mers, and of those that are passed over: the marks of codons."""

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class KmerComponents:
    """Directions of the sequences of a corpus.

    codes : (V,) 0 to 3 for the ids of A, C, G, U
    weigh : of k-mers, and of codons: counts to (1 + ln count) x (1 + ln (1 + n) / (1 + sequences with it)),
        at unit length
    directions : (K, d) of those; by the root of their size, so that the first few do not outweigh the others
    centre : (d,) where the mean sequence lies
    """

    codes: npt.NDArray[np.uint8]
    weigh: tuple[TfidfTransformer, ...]
    directions: Floats
    centre: Floats

    def of(self, sequences: Sequence[Ids]) -> Tensor:
        """(n, d) where each sequence of ids lies, of length sqrt(d): as long as a layer-normed row."""
        counts = _counts(sequences, self.codes)
        table = sparse.hstack([one.transform(of) for one, of in zip(self.weigh, counts)])
        rows = (table.tocsr() @ self.directions - self.centre).astype(np.float32)
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
    counts = _counts((one.ids[:longest] for one in examples), codes)
    if counts[0].shape[0] <= count:
        raise InputError(f"{corpus.where}: {count} components need more than {counts[0].shape[0]} sequences")
    weigh = tuple(TfidfTransformer(sublinear_tf=True).fit(of) for of in counts)
    table = sparse.hstack([one.transform(of) for one, of in zip(weigh, counts)]).tocsr()
    mean = np.asarray(table.mean(0)).ravel()
    directions = principal_directions(table, mean, count).astype(np.float32)
    return KmerComponents(codes, weigh, directions, (mean @ directions).astype(np.float32))


def _codes(letters: Sequence[str]) -> npt.NDArray[np.uint8]:
    known = {"A": 0, "C": 1, "G": 2, "U": 3, "E": SKIPPED}
    if not {"A", "C", "G", "U"} <= set(letters):
        raise ConfigError("k-mers are of single nucleotides", hint="this model reads codons")
    return np.array([known.get(letter, OTHER) for letter in letters], np.uint8)


def _counts(sequences: Iterable[Ids], codes: npt.NDArray[np.uint8]) -> list[Any]:
    """Tables: (n, 5460) of the k-mers, which pass over marks; with marks (n, 64) of the codons behind."""
    found = [codes[ids] for ids in sequences]
    kmers = table_of(kmer_counts(one[one != SKIPPED]) for one in found)
    return [kmers, table_of(map(_codons, found))] if SKIPPED in codes else [kmers]


def _codons(letters: npt.NDArray[np.uint8]) -> Ids:
    """(64,) how often each stands behind a mark."""
    places = np.flatnonzero(letters == SKIPPED)[:, None] + np.arange(1, 4)
    return word_counts(np.append(letters, [OTHER] * 3)[places])

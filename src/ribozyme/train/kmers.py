"""Sequences as counts of their words: k-mers and codons, what the simplest predictors of sequences read."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin

from ribozyme.io.sequences import read_sequences
from ribozyme.train.splits import BASES

LONGEST_KMER = 6
STOPS = ("UAA", "UAG", "UGA")
MOST = 0.95
"""Share of sequences that must look coding for codons to be counted."""

Values = npt.NDArray[Any]


def letters_of(X: Any) -> list[str]:
    """The sequences in capitals, T as U, without marks (E) and gaps."""
    marks = str.maketrans("T", "U", "E-.")
    return [one.sequence.upper().translate(marks) for one in read_sequences(X)]


def are_coding(sequences: Sequence[str]) -> bool:
    """Whether (nearly) all are whole codons without a stop before the last."""
    return bool(np.mean([_is_coding(one) for one in sequences]) >= MOST)


def _is_coding(sequence: str) -> bool:
    inner = (sequence[k : k + 3] for k in range(0, len(sequence) - 3, 3))
    return len(sequence) >= 9 and len(sequence) % 3 == 0 and not any(codon in STOPS for codon in inner)


class _Stateless(TransformerMixin, BaseEstimator):
    """A transformer that has nothing to learn."""

    def fit(self, X: Any, y: Any = None) -> "_Stateless":
        """Nothing to do."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Kmers(_Stateless):
    """Sequences to (n, 4 + 16 + ... + 4^longest) sparse counts of k-mers; other letters break them."""

    def __init__(self, longest: int = LONGEST_KMER) -> None:
        self.longest = longest

    def transform(self, X: Any) -> Any:
        """Count."""
        return table_of([self._counts(one) for one in letters_of(X)])

    def _counts(self, sequence: str) -> Values:
        return kmer_counts(codes_of(sequence), self.longest)


class Codons(_Stateless):
    """Coding sequences to (n, 64 + 4096) sparse counts of codons and of pairs of neighbours."""

    def transform(self, X: Any) -> Any:
        """Count."""
        return table_of([self._counts(one) for one in letters_of(X)])

    def _counts(self, sequence: str) -> Values:
        letters = codes_of(sequence)
        return np.concatenate([word_counts(_words(letters, k, step=3)) for k in (3, 6)])


def kmer_counts(letters: Values, longest: int = LONGEST_KMER) -> Values:
    """(4 + 16 + ... + 4^longest,) how often each k-mer occurs; letters as `codes_of` gives them."""
    return np.concatenate([word_counts(_words(letters, k)) for k in range(1, longest + 1)])


def word_counts(words: Values) -> Values:
    """(4^k,) how often each occurs of (n, k) words; those with other letters are left out."""
    words = words[(words < 4).all(1)]
    k = words.shape[1]
    return np.bincount(words.astype(np.int64) @ (4 ** np.arange(k)[::-1]), minlength=4**k)


def codes_of(sequence: str) -> Values:
    """A, C, G, U as 0 to 3; 255 for others."""
    return BASES[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]


def _words(letters: Values, k: int, step: int = 1) -> Values:
    """(n, k) the windows of a sequence."""
    if len(letters) < k:
        return np.empty((0, k), np.uint8)
    return np.lib.stride_tricks.sliding_window_view(letters, k)[::step]


def table_of(rows: Iterable[Values]) -> Any:
    """Counts, a row an input, as one sparse matrix."""
    return sparse.vstack([sparse.csr_matrix(row[None].astype(np.float64)) for row in rows]).tocsr()

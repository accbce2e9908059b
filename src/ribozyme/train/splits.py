"""Which examples train, and which are held back: at random, by class, by group, by sequence identity.

Near copies on both sides of a split make a model look better than it is. `clusters` puts sequences that share
many k-mers into one cluster, and a split by clusters never cuts one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError
from ribozyme.metrics.score import group_codes

Rows = npt.NDArray[np.int64]
K = 11
IDENTITY = 0.8
COMMON = 0.05
"""A k-mer that more than this share of the sequences has (a tag, a promoter) says nothing of kinship ..."""
COMMON_FROM = 200
"""... once there are so many sequences."""
BASES = np.full(256, 255, np.uint8)
BASES[list(b"ACGUTacgut")] = [0, 1, 2, 3, 3, 0, 1, 2, 3, 3]


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the examples of each part; a part may be empty."""

    train: Rows
    validation: Rows
    test: Rows


def split(
    count: int,
    *,
    validation: float = 0.1,
    test: float = 0.0,
    stratify: Any = None,
    groups: Any = None,
    seed: int = 0,
) -> Split:
    """Positions 0 to `count` - 1 in up to three parts.

    Parameters
    ----------
    validation, test : shares of the examples
    stratify : (n,) classes; each part has about the same share of each
    groups : (n,) a label an example; a group is never cut, so the shares are approximate

    Raises
    ------
    InputError : too few examples, or groups, for the parts.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ConfigError(f"validation {validation} and test {test} leave nothing to train on")
    units, classes = _units(count, groups, stratify)
    shares = np.array([validation, test])
    parts = _dealt(units, classes, shares, np.random.default_rng(seed))
    empty = [
        name
        for name, share, part in zip(("validation", "test"), shares, parts[1:])
        if share and not len(part)
    ]
    if empty or not len(parts[0]):
        what = "groups" if groups is not None else "examples"
        raise InputError(
            f"{len(units):,} {what} are too few for a {(empty or ['training'])[0]} part",
            hint="give more, or another share",
        )
    return Split(*parts)


def folds(
    count: int, k: int = 5, *, stratify: Any = None, groups: Any = None, seed: int = 0
) -> Iterator[tuple[Rows, Rows]]:
    """(train, test) positions of each of `k` folds; every example is tested once. Parameters as of `split`.

    Raises
    ------
    InputError : fewer examples, or groups, than folds.
    """
    units, classes = _units(count, groups, stratify)
    if not 2 <= k <= len(units):
        what = "groups" if groups is not None else "examples"
        raise InputError(f"{len(units):,} {what} do not make {k} folds")
    tests = _dealt(units, classes, np.full(k - 1, 1 / k), np.random.default_rng(seed))
    for held in tests:
        keep = np.ones(count, dtype=bool)
        keep[held] = False
        yield np.flatnonzero(keep), held


def _units(count: int, groups: Any, stratify: Any) -> tuple[list[Rows], Rows]:
    """What must stay together, and the class of each (the commonest of a group)."""
    if count < 1:
        raise InputError("there are no examples to split")
    classes = np.zeros(count, np.int64) if stratify is None else group_codes(stratify, count, "classes")
    if groups is None:
        return [np.array([k]) for k in range(count)], classes
    codes = group_codes(groups, count)
    order = np.argsort(codes, kind="stable")
    units = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return units, np.array([np.bincount(classes[unit]).argmax() for unit in units])


def _dealt(
    units: list[Rows], classes: Rows, shares: npt.NDArray[Any], generator: np.random.Generator
) -> list[Rows]:
    """Deal units to parts, of which the first has what `shares` leave.

    Large units come first, and each goes to the part that lacks most of its class.
    """
    wanted = np.concatenate([[1 - shares.sum()], shares])
    have = np.zeros((classes.max() + 1, len(wanted)))
    sizes = np.array([len(unit) for unit in units])
    total = np.bincount(classes, sizes)
    parts: list[list[Rows]] = [[] for _ in wanted]
    order = generator.permutation(len(units))
    single = sizes.max() == 1
    for k in order if single else order[np.argsort(-sizes[order], kind="stable")]:
        lack = wanted * total[classes[k]] - have[classes[k]]
        # ties and remainders go to parts by what all classes together lack, so that small parts fill too
        lack = lack + 1e-3 * (wanted * total.sum() - have.sum(0)) / max(1.0, total.sum())
        part = int(lack.argmax())
        have[classes[k], part] += sizes[k]
        parts[part].append(units[k])
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]


# ------------------------------------------------------------------------------------------- clusters


def clusters(sequences: Any, identity: float = IDENTITY, k: int = K) -> Rows:
    """(n,) a cluster for each sequence, counted from 0 in order: those alike, also through others, share one.

    Two sequences are linked where they share at least `identity` ** `k` of the k-mers of the one that has
    fewer: random substitutions leave that share at that identity. Clusters are the connected components
    (single linkage), so no link is ever cut by a split of clusters. T and U are one letter; k-mers with other
    letters do not count; k-mers that more than 5 % of 200 or more sequences have (tags, constant ends) are
    left out unless a sequence has no others. Equal sequences are together, also those shorter than `k`.

    This is our own measure, quick and without alignment, and not the identity of CD-HIT or MMseqs2:
    insertions and rearrangements count as in k-mers, and kinship below some 70 % identity is not seen.
    """
    if not (0 < identity <= 1 and 1 <= k <= 31):
        raise ConfigError(f"identity {identity} must be in (0, 1], and k {k} from 1 to 31")
    import pandas as pd
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    names = [str(one).upper().replace("T", "U") for one in sequences]
    distinct, which = np.unique(np.array(names, dtype=object), return_inverse=True)
    has = _kmer_table([str(one) for one in distinct], k)
    first, second = _alike(has, identity**k)
    links = csr_matrix((np.ones(len(first), bool), (first, second)), shape=(len(distinct),) * 2)
    found: Rows = pd.factorize(connected_components(links, directed=False)[1][which])[0]
    return found


def _kmer_table(sequences: list[str], k: int) -> Any:
    """(n, distinct k-mers) sparse 0/1, without k-mers that are too common to say anything."""
    from scipy.sparse import csr_matrix

    codes = [_kmers(one, k) for one in sequences]
    lengths = np.array([len(one) for one in codes])
    known, columns = np.unique(np.concatenate([np.empty(0, np.uint64), *codes]), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    table = csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(codes), len(known)))
    if len(sequences) < COMMON_FROM:
        return table
    rare = np.asarray(table.sum(0)).ravel() <= max(2, COMMON * len(sequences))
    only_common = np.asarray(table[:, rare].sum(1)).ravel() == 0
    used = rare | (np.asarray(table[only_common].sum(0)).ravel() > 0)
    return table[:, used]


def _kmers(sequence: str, k: int) -> npt.NDArray[np.uint64]:
    """The distinct k-mers of letters ACGU, as numbers."""
    letters = BASES[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]
    if len(letters) < k:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, k)
    windows = windows[(windows < 4).all(1)]
    return np.unique(windows.astype(np.uint64) @ (4 ** np.arange(k, dtype=np.uint64)))


def _alike(table: Any, share: float, rows: int = 512) -> tuple[Rows, Rows]:
    """Pairs of rows that share at least `share` of the k-mers of the one with fewer; some rows at a time."""
    sizes = np.asarray(table.sum(1)).ravel()
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    columns = table.T.tocsr()
    for start in range(0, table.shape[0], rows):
        shared = (table[start : start + rows] @ columns).tocoo()
        first, second = shared.row + start, shared.col
        near = shared.data >= share * np.minimum(sizes[first], sizes[second])
        near &= first < second
        firsts.append(first[near])
        seconds.append(second[near])
    return np.concatenate(firsts), np.concatenate(seconds)

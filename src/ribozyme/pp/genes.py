"""Gene names of a table matched to the vocabulary of a model: symbols, Ensembl ids, former names, aliases.

A name is looked up in this order, and the first that answers counts:

1. `symbol`: the vocabulary has exactly this name (some of its names are Ensembl ids or clone names).
2. `ensembl`: it is an Ensembl id, with or without version, of a gene that the vocabulary names in some way.
3. `renamed`: it is today's or a former symbol of one gene, which the vocabulary has under another name.
4. `alias`: it is an alias of one gene in the vocabulary.
5. `case`: one name of the vocabulary differs from it in upper and lower case only.

A name that could mean two genes of the vocabulary matches none. What is left is looked up by the Ensembl id
that stands beside the name, if there is one (`MATR3` is two genes to scGPT). The table of genes is
`data/genes.tsv.xz`.
"""

import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_object_dtype, is_string_dtype
from scipy import sparse

from ribozyme.errors import ConfigError

How = Literal["symbol", "ensembl", "renamed", "alias", "case", "unmatched"]
HOWS: tuple[How, ...] = ("symbol", "ensembl", "renamed", "alias", "case", "unmatched")
INDEX = "index"
"""Stands for `var_names` where a column of `var` can be named."""

_ENSEMBL = re.compile(r"(ENSG\d{11})(\.\d+)?(_PAR_Y)?")
_CARRIES_ENSEMBL = re.compile(
    r"(?:.*_)?(ENSG\d{11})(?:\.\d+)?"
)  # RNF216P1_ENSG00000288620, ENSG00000283886.3


class Gene(NamedTuple):
    """One human gene: its Ensembl id and its symbol ("" where there is none), former symbols, aliases."""

    ensembl: str
    symbol: str
    former: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def key(self) -> str:
        """What tells genes apart: two Ensembl ids with one symbol are one gene."""
        return self.symbol or self.ensembl


@cache
def gene_table() -> tuple[Gene, ...]:
    """Every human gene that the package knows; `data/genes.md` names the sources."""
    content = lzma.decompress(resources.files("ribozyme").joinpath("data", "genes.tsv.xz").read_bytes())
    return tuple(_gene(line) for line in content.decode().splitlines())


def _gene(line: str) -> Gene:
    digits, symbol, former, aliases = (*line.split("\t"), "", "", "")[:4]
    return Gene(f"ENSG{digits}" if digits else "", symbol, _names(former), _names(aliases))


def _names(joined: str) -> tuple[str, ...]:
    return tuple(joined.split("|")) if joined else ()


@dataclass(frozen=True, slots=True)
class Owners:
    """Which genes (their keys) a name belongs to, by the kind of name; an Ensembl id belongs to one."""

    ensembl: Mapping[str, str]
    symbol: Mapping[str, frozenset[str]]
    former: Mapping[str, frozenset[str]]
    alias: Mapping[str, frozenset[str]]

    def of(self, name: str) -> frozenset[str]:
        """By the strongest kind: a symbol of today is never anyone's alias."""
        return self.symbol.get(name) or self.former.get(name) or self.alias.get(name) or frozenset()


@cache
def _owners() -> Owners:
    genes = gene_table()
    return Owners(
        {g.ensembl: g.key for g in genes if g.ensembl},
        _grouped((g.symbol, g.key) for g in genes if g.symbol),
        _grouped((name, g.key) for g in genes for name in g.former),
        _grouped((name, g.key) for g in genes for name in g.aliases),
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for name, key in pairs:
        groups[name].add(key)
    return {name: frozenset(keys) for name, keys in groups.items()}


def known_genes(names: Iterable[str]) -> int:
    """How many of the names are Ensembl ids, or human gene symbols, of today or former."""
    symbols, former = _owners().symbol, _owners().former
    return sum(bool(_ENSEMBL.fullmatch(n)) or n in symbols or n in former for n in names)


@dataclass(frozen=True)
class GeneMatch:
    """Where each column of a table stands in a vocabulary.

    ids : (columns,) the id of each column's gene, -1 where there is none
    names : the name that was looked up for each column
    how : for each column how it was matched
    source : the column of `var` that the names are from, or `index`
    """

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...]
    how: tuple[How, ...]
    source: str = INDEX

    @property
    def counts(self) -> dict[How, int]:
        """Columns by the way they were matched, `unmatched` among them."""
        found = Counter(self.how)
        return {how: found[how] for how in HOWS if found[how]}

    def examples(self, how: How, most: int = 3) -> list[str]:
        """The first few names that were matched in this way."""
        return [name for name, its in zip(self.names, self.how) if its == how][:most]

    @cached_property
    def genes(self) -> npt.NDArray[np.int64]:
        """Ids of the genes that have a column, each once, in the order of their first columns."""
        return self.ids[(self.ids >= 0) & ~self._later]

    def only(self, genes: Sequence[int]) -> "GeneMatch":
        """The same without columns of other genes than these."""
        return replace(self, ids=np.where(np.isin(self.ids, genes), self.ids, -1))

    @property
    def duplicates(self) -> int:
        """Columns that name a gene which an earlier column has already."""
        return int(self._later.sum())

    @cached_property
    def _home(self) -> npt.NDArray[np.int64]:
        """For each column the first column of the same gene."""
        first = np.empty(self.ids.max(initial=-1) + 2, dtype=np.int64)
        first[self.ids[::-1]] = np.arange(len(self.ids))[::-1]  # of several writers the last one stays
        return first[self.ids]

    def select(
        self, rows: sparse.csr_matrix
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The matched, non-zero entries of (cells, columns), columns of one gene summed.

        Returns ids (T,), values (T,) and indptr (cells + 1,); in each cell the genes are in column order.
        """
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        columns, values, indptr = rows.indices, rows.data, rows.indptr.astype(np.int64)
        if self.duplicates:
            columns, values, indptr = self._summed(columns, values, indptr)
        ids = self.ids.take(columns)
        keep = ids >= 0
        if len(values) and values.min() == 0:
            keep &= values != 0
        left_out = np.flatnonzero(~keep)
        if len(left_out) == 0:
            return ids, values, indptr
        return ids[keep], values[keep], indptr - np.searchsorted(left_out, indptr)

    def _summed(self, columns: Any, values: Any, indptr: npt.NDArray[np.int64]) -> tuple[Any, Any, Any]:
        """Numbers in later columns of a gene added to its first column, put in where the cell lacks it."""
        starts = np.arange(len(indptr)) * len(self.ids)
        places = columns + np.repeat(
            starts[:-1], np.diff(indptr)
        )  # in the dense matrix: they rise throughout
        later = np.flatnonzero(self._later.take(columns))
        homes = places[later] + (self._home - np.arange(len(self.ids)))[columns[later]]
        places, more = np.delete(places, later), values[later]
        lacking = np.unique(homes[~_among(homes, places)])
        at = np.searchsorted(places, lacking)
        places, values = np.insert(places, at, lacking), np.insert(np.delete(values, later), at, 0)
        np.add.at(values, np.searchsorted(places, homes), more)
        indptr = np.searchsorted(places, starts)
        return places - np.repeat(starts[:-1], np.diff(indptr)), values, indptr

    @cached_property
    def _later(self) -> npt.NDArray[np.bool_]:
        """Which columns name a gene that an earlier one has already."""
        return (self._home != np.arange(len(self.ids))) & (self.ids >= 0)


def _among(numbers: Any, ordered: Any) -> npt.NDArray[np.bool_]:
    """Which of the numbers are among others, which are in order."""
    at = np.searchsorted(ordered, numbers)
    return ordered.take(at, mode="clip") == numbers if len(ordered) else np.zeros(len(numbers), dtype=bool)


def match_genes(var: Any, vocabulary: Any, *, column: str | None = None) -> GeneMatch:
    """Match the genes of a table to a vocabulary.

    Parameters
    ----------
    var : DataFrame of genes (`adata.var`), or a sequence of names
    vocabulary : a `GeneLookup`, or whatever has `ids`, a dict of name to id
    column : column of `var` that holds the names, `index` for `var_names`; nothing else is looked at. By
        default, of all columns of text the one that matches most genes; among equals CELLxGENE's
        `feature_name`, then `var_names`. Names that it leaves unmatched are looked up by the Ensembl id
        that another column has for them.

    Returns
    -------
    a `GeneMatch`: `ids` (columns,), -1 where a gene is not known, with the names and how they were matched

    Raises
    ------
    ConfigError : there is no such column.
    """
    lookup = vocabulary if isinstance(vocabulary, GeneLookup) else GeneLookup(vocabulary.ids)
    matches = [lookup.match(names, source) for source, names in _name_columns(var, column).items()]
    return _completed(max(matches, key=lambda match: len(match.genes)), matches)


def _completed(match: GeneMatch, others: list[GeneMatch]) -> GeneMatch:
    """The match, with names that lead nowhere found by an Ensembl id beside them, of no other gene."""
    ids, names, how = match.ids.copy(), list(match.names), list(match.how)
    for other in others:
        for k in np.flatnonzero((ids < 0) & (other.ids >= 0)).tolist():
            owners, identifier = _owners().of(names[k]), _ENSEMBL.fullmatch(other.names[k])
            if identifier and (not owners or _owners().ensembl.get(identifier[1]) in owners):
                ids[k], names[k], how[k] = other.ids[k], other.names[k], "ensembl"
    return GeneMatch(ids, tuple(names), tuple(how), match.source)


def _name_columns(var: Any, column: str | None) -> dict[str, list[str]]:
    """The names to try, by where they are from, the preferred first."""
    if not hasattr(var, "columns"):
        return {INDEX: _texts(pd.Series(list(var), dtype=object))}
    texts = [c for c in var.columns if _is_text(var[c])]
    if column is not None and column != INDEX and column not in var.columns:
        raise ConfigError(
            f"var has no column {column!r}", hint=f"one of {', '.join(map(str, [INDEX, *texts]))}"
        )
    chosen = [column] if column is not None else sorted([INDEX, *texts], key=_preference)
    return {c: _texts(var[c] if c in var.columns else var.index.to_series()) for c in chosen}


def _preference(column: str) -> int:
    return {"feature_name": 0, INDEX: 1}.get(column, 2)


def _is_text(values: Any) -> bool:
    kind = values.cat.categories.dtype if hasattr(values, "cat") else values.dtype
    return bool(is_object_dtype(kind) or is_string_dtype(kind))


def _texts(values: pd.Series) -> list[str]:
    names = list(map(str, values.to_numpy(dtype=object)))
    for k in np.flatnonzero(pd.isna(values)):
        names[k] = ""
    return names


class GeneLookup:
    """The names of one vocabulary, and every other name that leads to one of them.

    ids : name to id; names in <angle brackets> are special tokens and not genes
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {name: i for name, i in ids.items() if not name.startswith("<")}
        self._known: dict[str, tuple[int, How]] = {}

    def match(self, names: Sequence[str], source: str = INDEX) -> GeneMatch:
        """Find every name; `source` is only noted. The next file has the same names, so they are kept."""
        self._known.update((name, self.find(name)) for name in set(names).difference(self._known))
        found = [self._known[name] for name in names]
        ids = np.array([k for k, _ in found], dtype=np.int64)
        return GeneMatch(ids, tuple(names), tuple(how for _, how in found), source)

    def find(self, name: str) -> tuple[int, How]:
        """Id of a name and how it was found; (-1, "unmatched") where nothing answers."""
        if (found := self.ids.get(name)) is not None:
            return found, "symbol"
        if identifier := _ENSEMBL.fullmatch(name):
            return _found(self._by_ensembl.get(identifier[1]), "ensembl")
        if name in _owners().symbol:
            return _found(self._by_gene.get(name), "renamed")  # another gene's alias at most: look no further
        if (owners := _owners().former.get(name)) is not None:
            return _found(self._only(owners), "renamed")
        if (owners := _owners().alias.get(name)) is not None:
            return _found(self._only(owners), "alias")
        return _found(self._by_case.get(name.casefold()), "case")

    def _only(self, owners: frozenset[str]) -> int | None:
        """The id of the gene that a name belongs to, unless it belongs to several."""
        return self._by_gene.get(next(iter(owners))) if len(owners) == 1 else None

    @cached_property
    def _by_ensembl(self) -> dict[str, int]:
        """Ensembl id to id: of names that are or contain one, then of genes with a name in the vocabulary."""
        named = {
            gene.ensembl: found
            for gene in gene_table()
            if gene.ensembl and (found := self._by_gene.get(gene.key)) is not None
        }
        return named | self._carried

    @cached_property
    def _carried(self) -> dict[str, int]:
        """Ensembl id to id of the names that are or contain one."""
        carried: dict[str, int] = {}
        for name in sorted(self.ids, key=len):  # the bare id before a versioned one
            if identifier := _CARRIES_ENSEMBL.fullmatch(name):
                carried.setdefault(identifier[1], self.ids[name])
        return carried

    @cached_property
    def _suffixed(self) -> dict[str, set[int]]:
        """Key of a gene to the ids of the names that contain one of its Ensembl ids."""
        ids: dict[str, set[int]] = defaultdict(set)
        for gene in gene_table():
            if gene.ensembl in self._carried:
                ids[gene.key].add(self._carried[gene.ensembl])
        return ids

    @cached_property
    def _by_gene(self) -> dict[str, int]:
        """Key of a gene (today's symbol) to id: by that symbol, else by a name that was this gene's alone."""
        found: dict[str, int] = {}
        for gene in gene_table():
            for name in (gene.symbol, *gene.former, *gene.aliases):
                if name in self.ids and (name == gene.symbol or _owners().of(name) == {gene.key}):
                    found.setdefault(gene.key, self.ids[name])
        for key, ids in self._suffixed.items():
            if len(ids) == 1:
                found.setdefault(key, next(iter(ids)))
        return found

    @cached_property
    def _by_case(self) -> dict[str, int]:
        folded: dict[str, set[int]] = defaultdict(set)
        for name, i in self.ids.items():
            folded[name.casefold()].add(i)
        return {name: next(iter(i)) for name, i in folded.items() if len(i) == 1}


def _found(i: int | None, how: How) -> tuple[int, How]:
    return (-1, "unmatched") if i is None else (i, how)

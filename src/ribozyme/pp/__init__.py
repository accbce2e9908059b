"""Preprocessing: expression bins, gene names, windows of genes, codon marks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ribozyme.pp.binning import binning  # not lazily, or its module would take the name

if TYPE_CHECKING:
    from ribozyme.pp.codons import mark_codons
    from ribozyme.pp.genes import match_genes

_HOME = {"mark_codons": "codons", "match_genes": "genes"}

__all__ = ["binning", "mark_codons", "match_genes"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"ribozyme.pp.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ribozyme.pp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Small real examples inside the package: 50 RNAs of 10 families, 5 mRNAs, 311 cells.

>>> import ribozyme.data
>>> ribozyme.data.rnas().family.nunique()
10

PROVENANCE.md, beside this file, says where each comes from, under which licence, and how it was chosen.
"""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

__all__ = ["cells", "mrnas", "path", "rnas"]

FILES = ("cells.h5ad", "mrnas.fa", "mrnas.tsv", "rnas.fa", "rnas.tsv")


def path(name: str) -> Path:
    """Where an example file lies, to hand to a command: `rnas.fa`, `mrnas.fa`, `cells.h5ad`, or a `.tsv`.

    Raises
    ------
    InputError : there is no example of that name.
    """
    from ribozyme.errors import InputError

    if name not in FILES:
        raise InputError(f"no example file is called {name!r}", hint=f"one of {', '.join(FILES)}")
    return Path(str(resources.files(__name__).joinpath(name)))


def rnas() -> "DataFrame":
    """50 non-coding RNAs, 5 of each of 10 families, no two of a family more than 70 % identical.

    Returns
    -------
    A row an RNA: `id`, `family`, `rfam` (accession of the family, "" for RNase P), `source` (accession and
    coordinates, or the organism for RNase P), `sequence` (A C G U, 67 to 414 nt), and `structure`: the
    consensus of the family's seed alignment projected on the sequence, in dot-bracket, without pseudoknots.
    """
    return _table("rnas.tsv")


def mrnas() -> "DataFrame":
    """5 mRNAs of 2 genes: rhodopsin of three animals, cor6.6 (kin1) of two plants.

    Returns
    -------
    A row an mRNA: `id`, `gene`, `species`, `source` (GenBank accession), `cds_start` and `cds_end` (from 0,
    end excluded, stop codon included), `sequence` (A C G U, 441 to 1,684 nt).
    """
    return _table("mrnas.tsv")


def cells() -> "AnnData":
    """311 blood cells of 10 types, at most 40 of each, with 765 genes.

    Returns
    -------
    `X` is sparse, log-normalised and not negative, `obs["cell_type"]` the published label, `var_names` are
    gene symbols.
    """
    from anndata import read_h5ad

    return read_h5ad(path("cells.h5ad"))


def _table(name: str) -> "DataFrame":
    from pandas import read_csv

    return read_csv(path(name), sep="\t", keep_default_na=False)

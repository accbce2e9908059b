"""Make the example data in src/ribozyme/data from files that Debian and scanpy already ship.

Put these beside each other in a folder, then `python scripts/make_example_data.py FOLDER`:

    apt-get download emboss-test=6.6.0+dfsg-12 python-biopython-doc=1.80+dfsg-4
    apt-get source --download-only infernal=1.1.4-1        (needs a deb-src line)
    pip download --no-deps scanpy==1.11.5

Their SHA-256 are checked, every choice is made by a rule or by a seed, so the text files come out the same
byte for byte, and the cells value for value. Licences and rules are told in PROVENANCE.md, beside the data.
"""

import argparse
import gzip
import hashlib
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

SOURCES = {
    "infernal_1.1.4.orig.tar.gz": "f9493c7dee9fbf25f6405706818883d24b9f5e455121a0662c96c8f0307f95fc",
    "emboss-test_6.6.0+dfsg-12_all.deb": "ea22a043860d11b072303fcc535c132115cb9c3d32b30d4de70bb522b1096f94",
    "python-biopython-doc_1.80+dfsg-4_all.deb": (
        "350b871fa68e73e7dee78d6affec8a27bcbb31cd690843a82aefe187dab1712f"
    ),
    "scanpy-1.11.5-py3-none-any.whl": "fcd383ddcf7acbf7c0ca232c25ad51b00aec9f8d2f7c8954b8c6ee0962257166",
}
ALIGNMENTS = {  # in infernal's source
    "testsuite/tRNA.sto": ["tRNA"],
    "tutorial/5S_rRNA.sto": ["5S_rRNA"],
    "testsuite/3.4.12.rf.stk": ["U1", "U2", "U3"],
    "testsuite/snR75.sto": ["snR75"],
    "testsuite/Vault.sto": ["Vault"],
    "testsuite/Plant_SRP.sto": ["Plant_SRP"],
    "tutorial/Cobalamin.sto": ["Cobalamin"],
    "testsuite/rnaseP-eubact.sto": ["RNaseP_bact"],  # not Rfam: J. W. Brown's database
}
RNAS_PER_FAMILY = 5
LONGEST_RNA = 1022  # what RNA-FM reads
MOST_IDENTICAL = 0.7  # between two RNAs of a family
FULL_LENGTH = 0.75  # of the family's median
PAIRS = {"AU", "UA", "GC", "CG", "GU", "UG"}

EMBOSS = "usr/share/EMBOSS/test/genbank"
BIOPYTHON = "usr/share/doc/python-biopython-doc/Tests/GenBank"
MRNAS = {  # accession: file, gene
    "L07770": (f"{EMBOSS}/gbvrt.seq", "rhodopsin"),
    "Z46957": (f"{EMBOSS}/gbrod1.seq", "rhodopsin"),
    "X07797": (f"{EMBOSS}/gbinv1.seq", "rhodopsin"),
    "X55053": (f"{BIOPYTHON}/cor6_6.gb.gz", "cor6.6"),
    "M81224": (f"{BIOPYTHON}/cor6_6.gb.gz", "cor6.6"),
}

CELLS = "scanpy/datasets/10x_pbmc68k_reduced.h5ad"
CELLS_PER_TYPE = 40
SEED = 0


@dataclass
class Alignment:
    """One family of a Stockholm file: aligned rows by name, and the consensus structure in WUSS."""

    header: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    structure: str = ""


def alignments(text: str) -> Iterator[Alignment]:
    """The alignments of a Stockholm file, interleaved blocks joined."""
    for entry in re.split(r"^//\s*$", text, flags=re.MULTILINE):
        one = Alignment()
        for line in entry.splitlines():
            if line.startswith("#=GF "):
                _, key, value = line.split(maxsplit=2)
                one.header.setdefault(key, value.strip())
            elif line.startswith("#=GC SS_cons"):
                one.structure += line.split()[2]
            elif line.strip() and not line.startswith("#"):
                name, letters = line.split()
                one.rows[name] = one.rows.get(name, "") + letters
        if one.rows:
            yield one


def pairs_of(wuss: str) -> dict[int, int]:
    """Column to column of each nested base pair; letters of pseudoknots are left out."""
    closing = {">": "<", ")": "(", "]": "[", "}": "{"}
    stacks: dict[str, list[int]] = {opening: [] for opening in closing.values()}
    pairs = {}
    for column, sign in enumerate(wuss):
        if sign in stacks:
            stacks[sign].append(column)
        elif sign in closing:
            pairs[stacks[closing[sign]].pop()] = column
    return pairs


def projected(row: str, wuss: str) -> str:
    """The consensus structure on one sequence, as dot-bracket: canonical pairs, loops of 3 or more."""
    signs = ["."] * len(row)
    letters = np.cumsum([c.isalpha() for c in row])
    for left, right in pairs_of(wuss).items():
        if row[left] + row[right] in PAIRS and letters[right] - letters[left] > 3:
            signs[left], signs[right] = "(", ")"
    return "".join(sign for sign, letter in zip(signs, row) if letter.isalpha())


def identity(a: str, b: str) -> float:
    """Identical letters of two aligned rows over the letters of the shorter sequence."""
    same = sum(x == y and x.isalpha() for x, y in zip(a, b))
    return same / min(sum(c.isalpha() for c in row) for row in (a, b))


def chosen(family: Alignment) -> list[str]:
    """Names of full-length, mutually different sequences, looked for in an order drawn by the seed."""
    rows = {name: row.upper().replace("T", "U") for name, row in family.rows.items()}
    lengths = {name: sum(c.isalpha() for c in row) for name, row in rows.items()}
    enough = FULL_LENGTH * float(np.median(list(lengths.values())))
    names: list[str] = []
    for name in np.random.default_rng(SEED).permutation(sorted(rows)):
        letters = {c for c in rows[name] if c.isalpha()}
        if not letters <= set("ACGU") or not enough <= lengths[name] <= LONGEST_RNA:
            continue
        if all(identity(rows[name], rows[other]) <= MOST_IDENTICAL for other in names):
            names.append(str(name))
        if len(names) == RNAS_PER_FAMILY:
            return sorted(names)
    raise SystemExit(f"{family.header}: only {len(names)} sequences pass")


def rnas(tarball: Path) -> pd.DataFrame:
    """Five RNAs of each family."""
    records = []
    with tarfile.open(tarball) as archive:
        for path, families in ALIGNMENTS.items():
            member = archive.extractfile(f"infernal-1.1.4/{path}")
            assert member is not None
            found = {a.header.get("ID", families[0]): a for a in alignments(member.read().decode("latin1"))}
            for family in families:
                for number, name in enumerate(chosen(found[family]), 1):
                    row = found[family].rows[name].upper().replace("T", "U")
                    records.append(
                        {
                            "id": f"{family}_{number}",
                            "family": family,
                            "rfam": found[family].header.get("AC", ""),
                            "source": name,
                            "sequence": "".join(c for c in row if c.isalpha()),
                            "structure": projected(row, found[family].structure),
                        }
                    )
    return pd.DataFrame(records).sort_values(["family", "id"], ignore_index=True)


def genbank(text: str, accession: str) -> tuple[str, str, int, int]:
    """Species, RNA sequence and CDS (from 0, end excluded) of one record of a GenBank flat file."""
    records = re.split(r"^//\s*$", text, flags=re.MULTILINE)
    record = next(one for one in records if f"\nACCESSION   {accession}" in one)
    start, end = (int(n) for n in re.findall(r"^     CDS +(\d+)\.\.(\d+)$", record, re.MULTILINE)[0])
    species = re.findall(r"^  ORGANISM +(.+)$", record, re.MULTILINE)[0]
    letters = re.sub(r"[^A-Za-z]", "", record.split("\nORIGIN")[1].split("\n", 1)[1])
    sequence = letters.upper().replace("T", "U")
    cds = sequence[start - 1 : end]
    if not re.fullmatch("AUG([ACGU]{3})*(UAA|UAG|UGA)", cds):
        raise SystemExit(f"{accession}: the CDS is not whole")
    return species, sequence, start - 1, end


def mrnas(folder: Path) -> pd.DataFrame:
    """Five mRNAs with their CDS."""
    records = []
    for accession, (path, gene) in MRNAS.items():
        content = (folder / path).read_bytes()
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("latin1")
        species, sequence, start, end = genbank(text, accession)
        records.append(
            {
                "id": f"{gene}_{species.split()[0]}",
                "gene": gene,
                "species": species,
                "source": accession,
                "cds_start": start,
                "cds_end": end,
                "sequence": sequence,
            }
        )
    return pd.DataFrame(records)


def cells(path: Path) -> anndata.AnnData:
    """At most 40 cells of each type; X is the log-normalised expression that scanpy keeps in `raw`."""
    whole = anndata.read_h5ad(path)
    rng = np.random.default_rng(SEED)
    labels = whole.obs["bulk_labels"].astype(str)
    kept: list[int] = []
    for _, places in sorted(labels.groupby(labels).indices.items()):
        kept += rng.permutation(places)[:CELLS_PER_TYPE].tolist()
    kept.sort()
    assert whole.raw is not None
    return anndata.AnnData(
        X=csr_matrix(whole.raw.X[kept], dtype=np.float32),
        obs=pd.DataFrame({"cell_type": pd.Categorical(labels.iloc[kept])}, index=list(whole.obs_names[kept])),
        var=pd.DataFrame(index=list(whole.raw.var_names)),
    )


def fasta(table: pd.DataFrame, tags: list[str]) -> str:
    """One line a sequence; what the table knows follows the name."""
    lines = []
    for record in table.to_dict("records"):
        described = " ".join(
            f"{tag}={str(record[tag]).replace(' ', '_')}" for tag in tags if record[tag] != ""
        )
        lines.append(f">{record['id']} {described}\n{record['sequence']}\n")
    return "".join(lines)


def check(downloads: Path) -> None:
    """Stop unless every source is there and is the one we know."""
    for name, expected in SOURCES.items():
        found = hashlib.sha256((downloads / name).read_bytes()).hexdigest()
        if found != expected:
            raise SystemExit(f"{name}: SHA-256 is {found}, not {expected}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("downloads", type=Path)
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("-o", "--output", type=Path, default=here / "src" / "ribozyme" / "data")
    arguments = parser.parse_args()
    downloads, output = arguments.downloads, arguments.output
    check(downloads)
    infernal, *debs, wheel = (downloads / name for name in SOURCES)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", str(deb), folder], check=True)
        ncrna, coding = rnas(infernal), mrnas(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            pbmc = cells(Path(archive.extract(CELLS, folder)))
    ncrna.to_csv(output / "rnas.tsv", sep="\t", index=False, lineterminator="\n")
    coding.to_csv(output / "mrnas.tsv", sep="\t", index=False, lineterminator="\n")
    (output / "rnas.fa").write_text(fasta(ncrna, ["family", "rfam", "source"]), newline="\n")
    (output / "mrnas.fa").write_text(
        fasta(coding, ["gene", "species", "source", "cds_start", "cds_end"]), newline="\n"
    )
    pbmc.write_h5ad(output / "cells.h5ad", compression="gzip", compression_opts=9)
    print(f"{len(ncrna)} RNAs of {ncrna.family.nunique()} families, {len(coding)} mRNAs, {pbmc.shape} cells")


if __name__ == "__main__":
    main()

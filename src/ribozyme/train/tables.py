"""Labelled tables: sequences (or cells) with their labels, parts and groups, checked before anything long.

A table is `.csv`, `.tsv` (also compressed), `.parquet`, or for cells `.h5ad` with labels in `obs`.
"""

import hashlib
import json
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from ribozyme.errors import InputError, InputWarning
from ribozyme.io.sequences import choose_columns, read_record
from ribozyme.train.label_arrays import usual
from ribozyme.train.splits import Split, clusters, split

Kind = Literal["regression", "classification", "token"]
KINDS: tuple[Kind, ...] = ("regression", "classification", "token")
PARTS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation",
    "validation": "validation", "test": "test",
}  # fmt: skip
TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TABLES = (*TEXT, ".parquet")
NUMBER = re.compile(r"[+-]?(0|[1-9]\d{,14})(\.\d*)?([eE][+-]?\d+)?")
"""Classes in text that are numbers; `01` is a name."""
NO_BRACKETS = ", 0123456789"
"""In labels that begin with `[` and are no JSON: that they are no dot-bracket string either."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Inputs with their labels.

    X : list of (name, sequence), or an AnnData
    y : labels as an estimator takes them
    part : (n,) `train`, `validation`, `test`, or None without such a column
    groups : (n,) or None
    """

    names: list[str]
    X: Any
    y: Any
    part: npt.NDArray[Any] | None = None
    groups: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def of(self, rows: Rows) -> "Labelled":
        """Some of the rows."""
        y = self.y.iloc[rows] if hasattr(self.y, "iloc") else [self.y[k] for k in rows]
        return Labelled(
            [self.names[k] for k in rows],
            self.X[rows] if hasattr(self.X, "obs") else [self.X[k] for k in rows],
            y if hasattr(self.y, "iloc") or isinstance(self.y, list) else np.asarray(y),
            None if self.part is None else self.part[rows],
            None if self.groups is None else self.groups[rows],
        )

    def digests(self) -> list[str]:
        """What tells each input from others, whatever it is called: letters, or the counts of a cell."""
        if not hasattr(self.X, "obs"):
            return [_digest(sequence.upper().replace("T", "U").encode()) for _, sequence in self.X]
        values = sparse.csr_matrix(self.X.X, copy=True)  # it is put in order
        values.eliminate_zeros()
        values.sort_indices()
        rows = zip(values.indptr[:-1], values.indptr[1:])
        parts = ((values.indices[a:b].astype(np.int64), values.data[a:b].astype(np.float64)) for a, b in rows)
        return [_digest(genes.tobytes() + counts.tobytes()) for genes, counts in parts]


def read_labelled(
    path: Path,
    targets: Sequence[str],
    kind: Kind,
    *,
    sequence_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    groups_optional: bool = False,
    drop_missing: bool = False,
    as_written: bool = False,
) -> Labelled:
    """Read a table with labels.

    Parameters
    ----------
    targets : columns; several are several numbers, or several labels of 0 and 1
    kind : `token`: a string (one character a letter) or a list (in .csv as JSON) in each cell
    split_column : with `train`, `val` (`validation`, `valid`, `dev`) and `test`
    groups_optional : a table without `group_column` has no groups, instead of an error
    drop_missing : leave rows without a label out, with a warning, instead of an error
    as_written : classes in .csv and .tsv are text, for a predictor that knows what they are; else whole
        numbers (1 and 0 for true and false) where all of them are, and text where not

    Raises
    ------
    InputError : no such file or column, a label or a group that is missing, an unknown part.
    """
    if twice := [name for name in targets if list(targets).count(name) > 1]:
        raise InputError(f"the target {twice[0]!r} is named twice")
    frame, cells = _read(path)
    if groups_optional and group_column not in frame.columns:
        group_column = None
    for name in (*targets, split_column, group_column):
        if name is not None and name not in frame.columns:
            known = ", ".join(map(repr, list(frame.columns)[:20]))
            raise InputError(f"{path}: there is no column {name!r}; it has {known}")
    kept = _labelled_rows(path, frame, targets, kind, drop_missing)
    frame = frame.iloc[kept]
    names, X = _inputs(path, frame, cells, kept, sequence_column)
    return Labelled(
        names,
        X,
        _letters(path, frame, targets)
        if kind == "token"
        else _values(path, frame, targets, kind, as_written),
        None if split_column is None else _parts(path, frame[split_column]),
        None if group_column is None else _groups(path, frame[group_column]),
    )


def groups_of(data: Labelled, how: str = "clusters") -> npt.NDArray[Any] | None:
    """What must stay together: the table's groups, else by `clusters` sequences that are alike."""
    if data.groups is not None or data.part is not None or how != "clusters" or hasattr(data.X, "obs"):
        return data.groups
    return clusters(sequence for _, sequence in data.X)


def parts_of(data: Labelled, *, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """The parts that the table names, else parts that are drawn and cut no group."""
    if data.part is not None:
        rows = {part: np.flatnonzero(data.part == part) for part in ("train", "validation", "test")}
        if not len(rows["train"]):
            raise InputError("no row is for training", hint="the split column needs 'train'")
        return Split(**rows)
    try:
        return split(len(data), validation=validation, test=test, groups=data.groups, seed=seed)
    except InputError as error:
        if data.groups is not None:
            error.add_note("a group, or a cluster of alike sequences, stays in one part; --split random cuts")
        raise


def _labelled_rows(
    path: Path, frame: pd.DataFrame, targets: Sequence[str], kind: Kind, drop_missing: bool
) -> Rows:
    """Positions of the rows that have a label."""
    labels = frame[list(targets)]
    missing = (labels.map(_is_missing) if kind == "token" else labels.isna()).any(axis=1).to_numpy()
    count = int(missing.sum())
    if count and not drop_missing:
        raise InputError(
            f"{path}: {count:,} rows have no label in {', '.join(targets)}, the first is row "
            f"{int(missing.argmax()) + 1:,}",
            hint="label them, or leave them out: --drop-missing",
        )
    if count == len(missing):
        raise InputError(f"{path}: no row has a label")
    if count:
        warnings.warn(
            f"{path}: {count:,} of {len(missing):,} rows have no label and were left out", InputWarning, 3
        )
    return np.flatnonzero(~missing)


def _groups(path: Path, column: Any) -> npt.NDArray[Any]:
    if (without := column.isna().to_numpy()).any():
        raise InputError(
            f"{path}: {int(without.sum()):,} rows have no group in {column.name!r}, the first is row "
            f"{int(column.index[without][0]) + 1:,}",
            hint="give each a group; one that is alone has its own",
        )
    return np.asarray(column)


def _is_missing(labels: Any) -> bool:
    """Of the letters of a row."""
    return labels is None or (np.ndim(labels) == 0 and bool(pd.isna(labels)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> tuple[pd.DataFrame, Any]:
    """The table, and the cells that it is of."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    if path.suffix == ".h5ad" or path.is_dir():
        from ribozyme.io.cells import read_cells

        cells = read_cells(path)
        return cells.obs.reset_index(drop=True), cells
    name = path.name.lower()
    with readable(path):
        if name.endswith(".parquet"):
            return pd.read_parquet(path).reset_index(drop=True), None
        if name.endswith(TEXT):
            return read_text(path, dtype=str), None
    raise InputError(f"{path}: labels are read from a table", hint=f"{', '.join(TABLES)}, or .h5ad for cells")


def read_text(path: Path, **how: Any) -> Any:
    """A .csv or .tsv; keywords as of `pandas.read_csv`."""
    return pd.read_csv(path, sep="\t" if ".tsv" in path.name.lower() else ",", **how)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a table is read is one `InputError`."""
    try:
        yield
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error


def _inputs(
    path: Path, frame: pd.DataFrame, cells: Any, kept: Rows, sequence_column: str | None
) -> tuple[list[str], Any]:
    if cells is not None:
        chosen = cells[kept]
        return [str(name) for name in chosen.obs_names], chosen
    sequence, name = choose_columns(str(path), [str(c) for c in frame.columns], sequence_column)
    names = frame[name] if name is not None else frame.index
    where = f"{path}, column {sequence!r}"
    rows = zip(names, frame[sequence], frame.index)
    records = [read_record(called, text, where, row + 1) for called, text, row in rows]
    return [one.name for one in records], [(one.name, one.sequence) for one in records]


def _values(path: Path, frame: pd.DataFrame, targets: Sequence[str], kind: Kind, as_written: bool) -> Any:
    if kind == "regression":
        numbers = np.stack([_numbers(path, frame[name]) for name in targets], axis=1)
        return numbers[:, 0] if len(targets) == 1 else numbers
    text = path.name.lower().endswith(TEXT) and not (as_written and len(targets) == 1)
    read = _written if text else _classes
    columns = {name: read(frame[name]) for name in targets}
    return columns[targets[0]] if len(targets) == 1 else pd.DataFrame(columns)


def _numbers(path: Path, column: Any) -> npt.NDArray[np.float64]:
    if column.dtype.kind in "mM":
        raise InputError(f"{path}: {column.name!r} holds dates or times", hint="make numbers of them")
    numbers = pd.to_numeric(column, errors="coerce")
    if (odd := ~np.isfinite(numbers.to_numpy(dtype=float, na_value=np.nan))).any():
        raise InputError(
            f"{path}, row {int(column.index[odd][0]) + 1:,}: {column.name!r} holds {column[odd].iloc[0]!r}, "
            "which is no finite number",
            hint="correct it, or leave the row out; classes are learnt with --task classification",
        )
    return numbers.to_numpy(dtype=float)


def _classes(column: Any) -> npt.NDArray[Any]:
    values = column.astype(object) if column.dtype.name == "category" else column
    return np.asarray(values)


def _written(column: Any) -> npt.NDArray[Any]:
    """Text as numbers where all of it is written so; else as it is."""
    values = column.astype(object).to_numpy()
    forms = {one: usual(one) for one in set(values)}
    if all(isinstance(one, int) for one in forms.values()):
        return np.array([forms[one] for one in values])
    if all(NUMBER.fullmatch(one) for one in forms):
        return values.astype(float)
    return values


def _letters(path: Path, frame: pd.DataFrame, targets: Sequence[str]) -> list[Any]:
    """Labels of the letters of each row; of several columns (letters, k)."""
    columns = [[_listed(path, one, row) for row, one in frame[name].items()] for name in targets]
    if len(columns) == 1:
        return columns[0]
    rows = []
    for place, parts in zip(frame.index, zip(*columns)):
        if len({len(one) for one in parts}) > 1:
            raise InputError(f"{path}, row {place + 1:,}: the targets have different numbers of labels")
        rows.append(np.stack([np.asarray(one, dtype=float) for one in parts], axis=1))
    return rows


def _listed(path: Path, labels: Any, row: int) -> Any:
    if isinstance(labels, str) and labels[:1] == "[":
        try:
            labels = json.loads(labels.replace("nan", "NaN"))
        except json.JSONDecodeError as error:
            if set(labels) & set(NO_BRACKETS):
                raise InputError(
                    f"{path}, row {row + 1:,}: the labels are no JSON list ({error})",
                    hint="such as [0.1, null, 0.3], with commas",
                ) from error
    if isinstance(labels, str):
        return labels
    if np.ndim(labels) == 0:
        raise InputError(
            f"{path}, row {row + 1:,}: {labels!r} is a single label",
            hint="labels of letters are a string, one character a letter, or a list",
        )
    return [None if one is None else one for one in labels]


def _parts(path: Path, column: Any) -> npt.NDArray[Any]:
    known = column.astype(str).str.lower().map(PARTS)
    if known.isna().any():
        odd = column[known.isna()]
        raise InputError(
            f"{path}: {column.name!r} has {odd.iloc[0]!r} in row {int(odd.index[0]) + 1:,}",
            hint=f"parts are called {', '.join(PARTS)}; leave other rows out",
        )
    return np.asarray(known, dtype=object)

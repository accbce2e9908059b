"""Matrices: any numbers with names on both sides, and the similarity of embeddings."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ribozyme.errors import InputError
from ribozyme.pl.style import INK, MEDIUM, SMALL, finish, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 80  # beside an axis; past that they could not be read


def heatmap(
    matrix: Any,
    rows: Sequence[Any] | None = None,
    columns: Sequence[Any] | None = None,
    *,
    title: str | None = None,
    bar: str | None = None,
    cmap: str = "cividis",
    vmin: float | None = None,
    vmax: float | None = None,
    ax: "Axes | None" = None,
    save: str | Path | None = None,
) -> "Figure":
    """Draw a matrix as colours.

    Parameters
    ----------
    matrix : (n, m) numbers; a DataFrame brings its own names
    rows, columns : n and m names; a run of equal names is written once, with a line before and after
    bar : what the colours mean, beside the colour bar
    cmap, vmin, vmax : as in matplotlib
    ax, save : as in `embedding`

    Raises
    ------
    InputError : not a matrix, or another number of names than rows or columns.
    """
    if hasattr(matrix, "columns"):
        rows = list(matrix.index) if rows is None else rows
        columns = list(matrix.columns) if columns is None else columns
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"an array of shape {values.shape} is no matrix", hint="give (n, m) numbers")
    height, width = values.shape
    side = float(np.clip(0.11 * max(values.shape), 3.2, 8.0))
    figure, ax = new_axes(
        ax,
        side * min(1.0, width / height) + 1.0 + _inches(rows),
        side * min(1.0, height / width) + 0.4 + _inches(columns),
    )
    image = ax.imshow(values, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest", aspect="equal")
    quiet(ax, title=title, spines=())
    ax.tick_params(length=0)
    _names(ax, "y", rows, height)
    _names(ax, "x", columns, width)
    scale = figure.colorbar(image, ax=ax, shrink=0.6, aspect=24, pad=0.02)
    scale.outline.set_visible(False)
    scale.ax.tick_params(labelsize=SMALL, colors=INK, length=2)
    if bar:
        scale.set_label(bar, fontsize=MEDIUM, color=INK)
    return finish(figure, save)


def similarity(
    X: Any,
    names: Sequence[Any] | None = None,
    *,
    centre: bool = True,
    title: str | None = None,
    ax: "Axes | None" = None,
    save: str | Path | None = None,
) -> "Figure":
    """Draw the cosine similarity of every two embeddings.

    Parameters
    ----------
    X : (n, dim) embeddings, in the order to draw them
    names : n names of rows, or of groups: a run of equal names is written once
    centre : take the mean embedding off first. What all embeddings of a language model share is large, and
        hides what differs: without it all cosines are near 1.
    title, ax, save : as in `embedding`
    """
    matrix = np.asarray(X, dtype=np.float64)
    if matrix.ndim != 2:
        raise InputError(f"an array of shape {matrix.shape} is no matrix", hint="give (n, dim) embeddings")
    if centre:
        matrix = matrix - matrix.mean(0)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    label = "cosine similarity" + (", centred" if centre else "")
    limits = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0} if centre else {}
    return heatmap(matrix @ matrix.T, names, names, title=title, bar=label, ax=ax, save=save, **limits)  # type: ignore[arg-type]


def _inches(names: Sequence[Any] | None) -> float:
    """Room for the longest name."""
    return max((len(str(name)) for name in names), default=0) * SMALL * 0.6 / 72 if names is not None else 0.0


def _names(ax: "Axes", which: str, names: Sequence[Any] | None, count: int) -> None:
    """Names beside an axis, each run of equal ones in its middle, runs parted by white lines."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    if names is None:
        axis.set_ticks([])
        return
    if len(names) != count:
        raise InputError(f"{count:,} rows or columns have {len(names):,} names", hint="give one name each")
    runs = [(str(name), len(list(run))) for name, run in groupby(names)]
    starts = np.cumsum([0, *(length for _, length in runs)])
    if len(runs) > MOST_NAMES:
        axis.set_ticks([])
        return
    axis.set_ticks((starts[:-1] + starts[1:] - 1) / 2, [name for name, _ in runs])
    if which == "x":
        ax.tick_params(axis="x", rotation=90)
    if len(runs) < count:
        line = ax.axhline if which == "y" else ax.axvline
        for start in starts[1:-1]:
            line(start - 0.5, color="white", linewidth=0.9)

"""Curves over the steps of a training run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ribozyme.errors import InputError
from ribozyme.pl.style import PALETTE, SMALL, finish, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = ("step", "steps", "epoch", "epochs")


def training_curve(
    history: Any,
    keys: Sequence[str] | None = None,
    *,
    smooth: float = 0.0,
    title: str | None = None,
    ylabel: str = "loss",
    ax: "Axes | None" = None,
    save: str | Path | None = None,
) -> "Figure":
    """Draw the loss over the steps.

    Parameters
    ----------
    history : columns by name (a mapping or DataFrame), one mapping a step, a dataclass such as the history of
        `pretrain`, or the path of a JSON file that holds one of these
    keys : which columns; by default all whose name has "loss" in it
    smooth : 0 to below 1, the weight of the past in a running mean; the values themselves stay, faint.
        Columns with a value at some steps only (validation) are drawn as they are
    title, ax, save : as in `embedding`

    Raises
    ------
    InputError : there is no such column, or none that is a loss.
    """
    columns = _columns(history)
    steps = next((columns[name] for name in STEPS if name in columns), None)
    chosen = list(keys) if keys is not None else [name for name in columns if "loss" in name.lower()]
    missing = [name for name in chosen if name not in columns]
    if missing or not chosen:
        raise InputError(
            f"the history has no {', '.join(missing) or 'loss'}", hint=f"its columns are {', '.join(columns)}"
        )
    figure, ax = new_axes(ax, 5.2, 3.2)
    ends: list[tuple[float, str, str]] = []
    for colour, name in zip(PALETTE * len(chosen), chosen):
        y = columns[name]
        x = np.arange(1, len(y) + 1) if steps is None else steps[: len(y)]
        known = np.isfinite(y)  # validation columns have a value at some steps only
        x, y = x[known], y[known]
        if len(y) == 0:
            continue
        if smooth and known.all():
            ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
            y = _running_mean(y, smooth)
        ax.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(y) == 1 else None)
        text = f"{name}  {y[-1]:.3g}" if len(chosen) > 1 else f"{y[-1]:.3g}"
        ends.append((float(y[-1]), text, colour))
    ax.set(xlabel="epoch" if "epoch" in columns and "step" not in columns else "step", ylabel=ylabel)
    quiet(ax, title=title)
    _names_at_the_end(figure, ax, ends)
    return finish(figure, save)


def _names_at_the_end(figure: "Figure", ax: "Axes", ends: list[tuple[float, str, str]]) -> None:
    """Each line's name and last value right of the axes, at its height or just above the name below it."""
    figure.draw_without_rendering()  # so that the size of the axes is known
    bottom, scale = ax.get_window_extent().y0, 72 / figure.dpi
    last = float("-inf")
    for value, text, colour in sorted(ends):
        height = (ax.transData.transform((0, value))[1] - bottom) * scale
        last = max(height, last + 1.3 * SMALL)
        ax.annotate(
            text,
            (1.0, 0.0),
            (2.0, last),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=colour,
        )


def _columns(history: Any) -> dict[str, npt.NDArray[np.float64]]:
    """Numbers by name, whatever form the history has."""
    if isinstance(history, (str, Path)):
        history = json.loads(Path(history).read_text())
    if is_dataclass(history) and not isinstance(history, type):
        history = asdict(history)
    if hasattr(history, "to_dict") and hasattr(history, "columns"):
        history = history.to_dict("list")
    if not isinstance(history, Mapping):
        entries = list(history)
        names = dict.fromkeys(name for entry in entries for name in entry)
        history = {name: [entry.get(name, np.nan) for entry in entries] for name in names}
    columns = {}
    for name, values in history.items():
        if isinstance(values, (str, bytes)) or not np.iterable(values):
            continue
        try:
            columns[str(name)] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        except (TypeError, ValueError):  # a column of text
            continue
    return columns


def _running_mean(values: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float64]:
    """Exponential running mean, corrected for its start."""
    total, mass, out = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(total / mass)
    return np.array(out)

"""A value beside the values it is to be compared with, one line a name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ribozyme.errors import InputError
from ribozyme.pl.style import FAINT, PALETTE, SMALL, finish, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def dots(
    names: Sequence[Any],
    values: Any,
    others: Any,
    *,
    called: tuple[str, str] = ("value", "others"),
    xlabel: str = "",
    title: str | None = None,
    ax: "Axes | None" = None,
    save: str | Path | None = None,
) -> "Figure":
    """Draw one value a name beside others, fainter: scores of sequences and of their variants.

    Parameters
    ----------
    names : n names, from top to bottom
    values : (n,) numbers
    others : (n, m) numbers
    called : what values and others are, written at the top
    title, ax, save : as in `embedding`

    Raises
    ------
    InputError : names, values and others are not equally many.
    """
    main, rest = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if main.shape != (len(names),) or rest.ndim != 2 or len(rest) != len(names):
        raise InputError(
            f"{len(names):,} names do not fit values {main.shape} and others {rest.shape}",
            hint="give n names, (n,) values and (n, m) others",
        )
    figure, ax = new_axes(ax, 5.2, 1.2 + 0.4 * len(names))
    places = np.arange(len(names))
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.plot(rest, places, "o", color=FAINT, markersize=4.5, markerfacecolor="none")
    ax.plot(main, places, "D", color=PALETTE[0], markersize=6)
    ax.set_yticks(places, [str(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.9)
    ax.set_xlabel(xlabel)
    first, compared = float(main[0]), float(rest[0].mean())
    sides = ("left", "right") if first >= compared else ("right", "left")
    for text, x, colour, side in zip(called, (first, compared), (PALETTE[0], "#666666"), sides):
        ax.annotate(
            text,
            (x, 0),
            (3 if side == "left" else -3, 8),
            textcoords="offset points",
            ha=side,
            fontsize=SMALL,
            color=colour,
        )
    quiet(ax, title=title, spines=("bottom",))
    ax.tick_params(axis="y", length=0)
    return finish(figure, save)

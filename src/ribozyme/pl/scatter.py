"""Points in two dimensions: one a sequence or cell, coloured by group."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ribozyme.errors import ConfigError, InputError
from ribozyme.pl.style import FAINT, INK, SMALL, finish, group_colours, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Method = Literal["tsne", "pca"]
AXIS_NAMES = {"tsne": "t-SNE", "pca": "PC"}
LEGENDS = ("on data", "right margin", None)


def embedding(
    X: Any,
    labels: Sequence[Any] | None = None,
    *,
    method: Method = "tsne",
    title: str | None = None,
    legend_loc: str | None = "on data",
    seed: int = 0,
    size: float | None = None,
    ax: "Axes | None" = None,
    save: str | Path | None = None,
) -> "Figure":
    """Draw embeddings in two dimensions.

    Parameters
    ----------
    X : (n, dim) embeddings; (n, 2) is drawn as it is
    labels : n group names, for the colours; groups are listed in order of their names
    method : `tsne` (rows of length 1, first 50 principal components, t-SNE) or `pca`
    legend_loc : group names `on data`, in the `right margin`, or None
    seed : of t-SNE
    size : of a point, in points squared
    ax : draw here instead of in a new figure
    save : also write to this path; the suffix chooses the format

    Returns
    -------
    The figure; go on with `figure.axes[0]`.

    Raises
    ------
    InputError : X is no matrix, has NaN (an empty cell), or another number of rows than labels.
    """
    if legend_loc not in LEGENDS:
        raise ConfigError(
            f"legend_loc {legend_loc!r} does not exist", hint="'on data', 'right margin' or None"
        )
    points = layout(X, method=method, seed=seed)
    names = [""] * len(points) if labels is None else [str(label) for label in labels]
    if len(names) != len(points):
        raise InputError(f"{len(points):,} rows have {len(names):,} labels", hint="give one label a row")
    groups = group_colours(sorted(set(names)))
    figure, ax = new_axes(ax, 5.6 if legend_loc == "right margin" else 4.8, 4.4)
    area = size or float(np.clip(6000 / len(points), 6, 46))
    for group, (colour, marker) in groups.items():
        x, y = points[[name == group for name in names]].T
        ax.scatter(x, y, s=area, c=colour, marker=marker, label=group, linewidths=0.4, edgecolors="white")
    quiet(ax, title=title, spines=())
    ax.margins(0.09)
    ax.set(xticks=[], yticks=[])
    if np.shape(X)[1] > 2:
        ax.set_xlabel(f"{AXIS_NAMES[method]} 1", loc="left", fontsize=SMALL, color=FAINT)
        ax.set_ylabel(f"{AXIS_NAMES[method]} 2", loc="bottom", fontsize=SMALL, color=FAINT)
    if labels is not None and legend_loc == "on data":
        _names_on_data(ax, points, names, groups)
    elif labels is not None and legend_loc == "right margin":
        _names_in_margin(ax)
    return finish(figure, save)


def layout(X: Any, *, method: Method = "tsne", seed: int = 0) -> Array:
    """(n, dim) embeddings in two dimensions, as `embedding` draws them; (n, 2) stays as it is."""
    matrix = np.asarray(X, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < 3:
        raise InputError(
            f"embeddings of shape {matrix.shape} cannot be drawn", hint="3 rows or more, (n, dim)"
        )
    if not np.isfinite(matrix).all():
        rows = int((~np.isfinite(matrix)).any(1).sum())
        raise InputError(f"{rows:,} rows have NaN or infinity", hint="leave them out; an empty cell is NaN")
    if method not in AXIS_NAMES:
        raise ConfigError(f"method {method!r} does not exist", hint="tsne or pca")
    if matrix.shape[1] == 2:
        return matrix
    if np.ptp(matrix, axis=0).max(initial=0.0) == 0:  # all rows are equal: one point
        return np.zeros((len(matrix), 2))
    from sklearn.decomposition import PCA

    parts = 2 if method == "pca" else min(50, len(matrix), matrix.shape[1])
    if method == "pca":
        return np.asarray(PCA(parts, random_state=seed).fit_transform(matrix))
    from sklearn.manifold import TSNE

    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    reduced = PCA(parts, random_state=seed).fit_transform(matrix / np.maximum(lengths, 1e-12))
    perplexity = min(30.0, (len(matrix) - 1) / 3)
    # scaled: t-SNE's step depends on the size of the data, and cosines may differ by little
    reduced /= max(float(reduced.std()), 1e-12)
    return np.asarray(
        TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(
            reduced
        )
    )


def _names_on_data(
    ax: "Axes", points: Array, names: Sequence[str], groups: dict[str, tuple[str, str]]
) -> None:
    """Each group's name near its points, where it covers the fewest points and no other name."""
    from matplotlib.patheffects import withStroke

    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that the size of the axes is known
    scale = 72 / figure.dpi
    drawn = ax.transData.transform(points) * scale
    frame = ax.get_window_extent().get_points() * scale
    taken: list[Array] = []
    for group in sorted(groups, key=names.count, reverse=True):
        own = np.array([name == group for name in names])
        half = np.array([0.31 * SMALL * len(group), 0.62 * SMALL])
        taken.append(_free_place(drawn[own], drawn[~own], half, taken, frame))
        ax.annotate(
            group,
            tuple(taken[-1][0] - frame[0]),
            xycoords="axes points",
            ha="center",
            va="center",
            fontsize=SMALL,
            fontweight="bold",
            color=_darker(groups[group][0]),
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            zorder=3,
        )


def _names_in_margin(ax: "Axes") -> None:
    legend = ax.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=SMALL, handletextpad=0.1
    )
    for text, handle in zip(legend.get_texts(), legend.legend_handles):
        text.set_color(INK)
        handle.set_sizes([26.0])  # type: ignore[union-attr]  # a scatter's handle has sizes


def _free_place(own: Array, others: Array, half: Array, taken: list[Array], frame: Array) -> Array:
    """(2, 2): centre and half size of a name, at the best of the places around the points of its group.

    own, others : points of the group, and of all other groups
    taken : names already there; frame : lower left and upper right corner. All in typographic points.
    """
    densest = own[np.linalg.norm(own[:, None] - own[None], axis=-1).sum(1).argmin()]
    near = own[np.linalg.norm(own - densest, axis=1).argsort()[:40]]
    around = np.array([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]) * (half + 4.0)
    places = (near[:, None] + around).reshape(-1, 2)
    places = np.clip(places, frame[0] + half, np.maximum(frame[1] - half, frame[0] + half))
    reach = half + 3.0

    def covered(points: Array) -> Array:
        return (np.abs(places[:, None] - points) < reach).all(-1).sum(1)

    cost = 3.0 * covered(others) + covered(own) + np.linalg.norm(places - densest, axis=1) / 12
    for centre, size in taken:
        cost += 50.0 * (np.abs(places - centre) < half + size).all(-1)
    return np.array([places[cost.argmin()], half])


def _darker(colour: str) -> tuple[float, float, float]:
    """The colour, dark enough for text on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    factor = min(1.0, 0.42 / light)
    return red * factor, green * factor, blue * factor

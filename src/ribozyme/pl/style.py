"""What all pictures share: colours, quiet axes, and how they are saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ribozyme.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's "muted" scheme (personal.sron.nl/~pault): nine colours that stay apart under colour-vision
# deficiency, in an order that sets neighbours far apart, and a dark grey
PALETTE = (
    "#332288",
    "#cc6677",
    "#44aa99",
    "#ddaa33",
    "#882255",
    "#88ccee",
    "#117733",
    "#aa4499",
    "#999933",
    "#555555",
)
MARKERS = ("o", "s", "^", "D", "v", "P")  # past ten groups the shape changes as well
INK, FAINT = "#222222", "#8a8a8a"
SMALL, MEDIUM, LARGE = 7.5, 9.0, 11.0  # points


def new_axes(ax: "Axes | None", width: float, height: float) -> "tuple[Figure, Axes]":
    """The given axes with their figure, or new ones of this size in inches, at 150 dots an inch."""
    if ax is not None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        return figure, ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def quiet(ax: "Axes", *, title: str | None = None, spines: Sequence[str] = ("left", "bottom")) -> None:
    """Small dark text, a title on the left, and only the spines that carry something."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in spines)
        spine.set_color(FAINT)
    ax.tick_params(labelsize=SMALL, colors=INK, color=FAINT, length=2.5)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(fontsize=MEDIUM, color=INK)
    if title:
        ax.set_title(title, loc="left", fontsize=LARGE, color=INK)


def group_colours(groups: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group, in order of first appearance."""
    limit = len(PALETTE) * len(MARKERS)
    if len(groups) > limit:
        raise ConfigError(
            f"{len(groups):,} groups cannot be told apart", hint=f"join groups, to at most {limit}"
        )
    return {group: (PALETTE[k % len(PALETTE)], MARKERS[k // len(PALETTE)]) for k, group in enumerate(groups)}


def finish(figure: "Figure", save: str | Path | None) -> "Figure":
    """Write the figure if a path is given; the suffix chooses the format."""
    if save is not None:
        path = Path(save)
        known = figure.canvas.get_supported_filetypes()
        if path.suffix.lstrip(".").lower() not in known:
            raise ConfigError(
                f"{path}: no picture format is known by this suffix", hint="such as .png, .svg, .pdf"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure

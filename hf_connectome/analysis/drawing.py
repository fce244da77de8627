"""What all figures share: size, colours, the file, the legend. Not what any of them shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import ConfigError, some

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    Curve = Sequence[tuple[float, float]]

# Okabe & Ito 2008, "Color universal design": told apart with any kind of colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)
FAINT, GREY = "#D0D0D0", "#555555"
ARM_COLOURS = {"connectome": BLUE, "random": VERMILION, "dense": BLACK}
LOSS_LABEL = "loss (nats per token)"
LEAST_SEEDS_FOR_A_BAND = 3
WIDE = (14.0, 6.0)
"""Inches of a figure with two panels abreast; 100 pixels each."""
_DPI = 100
_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 13,
    "legend.fontsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
}


@contextmanager
def written_figure(path: Path, size: tuple[float, float] = WIDE) -> Iterator[Figure]:
    """Yield a figure, and write it unless drawing failed; nothing is shared with pyplot.

    Args:
        path: The PNG to write; its folder is made.
        size: Width and height in inches of 100 pixels.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ConfigError(
            "figures need matplotlib, which is not installed. "
            "Run: pip install hf_connectome[report]"
        ) from error
    with rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
        figure = Figure(figsize=size, dpi=_DPI, layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=_DPI)


def check_curves(arms: Mapping[str, Sequence[Curve]]) -> None:
    """Refuse arms that cannot be drawn.

    Raises:
        ConfigError: there is no arm, or one has no curve or an empty one.
    """
    if not arms:
        raise ConfigError("there are no arms to draw; expected one or more.")
    empty = [name for name, curves in arms.items() if not curves or not all(curves)]
    if empty:
        raise ConfigError(f"no curve, or an empty one, for {some(empty)}; expected one per seed.")


def legend_below(figure: Figure) -> None:
    """Put one legend for all panels below them, each entry once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 6)
    )


def xy(points: Curve) -> tuple[list[float], list[float]]:
    """Take pairs apart, as matplotlib wants them."""
    return [x for x, _ in points], [y for _, y in points]

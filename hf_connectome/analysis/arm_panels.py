"""Many arms that learn side by side, one small panel each. Few arms fit one panel: figures.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.arm_kinds import colour_of, ladder_order
from hf_connectome.analysis.drawing import (
    BLACK,
    BLUE,
    GREY,
    LEAST_SEEDS_FOR_A_BAND,
    LOSS_LABEL,
    check_curves,
    written_figure,
    xy,
)
from hf_connectome.evaluation.arms import BASELINE, REFERENCE
from hf_connectome.evaluation.paired import mean_curve, t_interval

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    Curve = Sequence[tuple[float, float]]

_MOST_ABREAST = 5
_WIDTH, _ROW_HEIGHT = 14.0, 2.3
_LONG_NAME = 26
"""Letters that a panel has room for."""
_REFERENCES = {BASELINE: BLACK, REFERENCE: BLUE}


def arm_panels(
    arms: Mapping[str, Sequence[Curve]], path: Path, *, title: str | None = None
) -> None:
    """Draw held-out loss over steps, a panel for each arm, over the means of two that all share.

    These are the dense arm (dashed) and the connectome (dotted). The band is the 95 % interval of
    the mean; the number in a panel is the final mean loss.

    Args:
        arms: Name -> one curve of (step, loss in nats per token) per seed.
        path: The PNG to write, 1400 pixels wide; its folder is made.
        title: Stands above all panels.

    Raises:
        ConfigError: No arm, an arm without a curve, curves of an arm over different steps, a loss
            that is not finite, or matplotlib is missing.
    """
    check_curves(arms)
    references = {name: mean_curve(arms[name]) for name in _REFERENCES if name in arms}
    names = ladder_order(arms.keys() - references.keys() or arms)
    abreast = min(_MOST_ABREAST, len(names))
    rows = math.ceil(len(names) / abreast)
    with written_figure(path, (_WIDTH, 1.2 + _ROW_HEIGHT * rows)) as figure:
        grid = figure.subplots(rows, abreast, sharex=True, sharey=True, squeeze=False)
        panels: list[Axes] = list(grid.flat)
        for axes, name in zip(panels, names, strict=False):
            _draw_panel(axes, name, arms[name], references)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for axes in panels[-abreast:]:
            axes.set_xlabel("step")
        figure.supylabel(f"held-out {LOSS_LABEL}", fontsize=12)
        if title is not None:
            figure.suptitle(title)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def _draw_panel(
    axes: Axes, name: str, curves: Sequence[Curve], references: Mapping[str, Curve]
) -> None:
    for reference, curve in references.items():
        line = "--" if reference == BASELINE else ":"
        look: dict[str, Any] = {"color": _REFERENCES[reference], "linestyle": line}
        axes.plot(*xy(curve), linewidth=1.3, label=f"mean of {reference}", **look)
    colour = colour_of(name)
    mean = mean_curve(curves)
    axes.plot(*xy(mean), color=colour, linewidth=2.2)
    if len(curves) >= LEAST_SEEDS_FOR_A_BAND:
        ends = [t_interval([loss for _, loss in points]) for points in zip(*curves, strict=True)]
        low, high = zip(*(pair for pair in ends if pair is not None), strict=True)
        axes.fill_between(xy(mean)[0], low, high, color=colour, alpha=0.25, linewidth=0)
    size = 11 if len(name) <= _LONG_NAME else 9
    axes.set_title(name, fontsize=size, color=colour, loc="left")
    corner: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.98, 0.96, f"{mean[-1][1]:.3f}", fontsize=11, color=GREY, **corner)

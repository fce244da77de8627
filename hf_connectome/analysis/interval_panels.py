"""Estimates with their intervals as a PNG: one panel a question, one row a treatment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    legend_below,
    written_figure,
)
from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from hf_connectome.evaluation.paired import Estimate

    Rows = Mapping[str, Mapping[str, Estimate]]

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_WIDTH, _LEAST_HEIGHT, _ROW_HEIGHT = 7.0, 3.5, 0.5


def interval_panels(panels: Mapping[str, Rows], path: Path, *, label: str) -> None:
    """Draw every estimate as a dot with its 95 % interval.

    Args:
        panels: title -> treatment -> what it was measured on -> estimate.
        path: The PNG to write, 700 pixels wide a panel; its folder is made.
        label: Of the horizontal axes, with its unit.

    Raises:
        ConfigError: there is nothing to draw, or matplotlib is missing.
    """
    if not panels or not all(panels.values()):
        raise ConfigError(f"{len(panels)} panels, or one without rows; expected rows in each.")
    measured = {on: None for rows in panels.values() for row in rows.values() for on in row}
    colours = {on: _COLOURS[place % len(_COLOURS)] for place, on in enumerate(measured)}
    most = max(map(len, panels.values()))
    size = (_WIDTH * len(panels), max(_LEAST_HEIGHT, 1.8 + _ROW_HEIGHT * most))
    with written_figure(path, size) as figure:
        for axes, (title, rows) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _draw(axes, rows, colours)
            axes.set_title(title)
            axes.set_xlabel(label)
        legend_below(figure)


def _draw(axes: Axes, rows: Rows, colours: Mapping[str, str]) -> None:
    for place, row in enumerate(rows.values()):
        for number, (on, estimate) in enumerate(row.items()):
            y = place + 0.5 * ((number + 1) / (len(row) + 1) - 0.5)
            style: dict[str, Any] = {"color": colours[on], "label": on, "capsize": 3, "fmt": "o"}
            whisker = None
            if estimate.low is not None and estimate.high is not None:
                whisker = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar([estimate.value], [y], xerr=whisker, **style)
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.tick_params(axis="y", length=0)

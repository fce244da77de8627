"""Loss over density: what a child gets from each generation of one evolution, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.drawing import (
    BLACK,
    BLUE,
    GREEN,
    LOSS_LABEL,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    written_figure,
)
from hf_connectome.arms import source_of
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import BASELINE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from hf_connectome.evaluation.arms import ArmSummary

_SIZE = (9.0, 6.0)
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_GENERATION = "generation-"


def of_generation(arm: str) -> bool:
    """Whether an arm is made from another generation of the same run.

    Example:
        >>> of_generation("connectome@generation-3:init_std"), of_generation("connectome")
        (True, False)
    """
    return (source_of(arm) or "").startswith(_GENERATION)


def density_curve(summaries: Sequence[ArmSummary], path: Path, *, title: str | None = None) -> None:
    """Draw the final loss of arms over the density of the generation that they are made from.

    One line for each arm that is there for more than one generation, the last one (the main
    connectome) among them; bars are 95 % intervals of the mean over seeds. The band is the dense
    arm with its interval.

    Args:
        summaries: One an arm.
        path: The PNG to write, 900 x 600 pixels; its folder is made.
        title: Stands above the figure.

    Raises:
        ConfigError: No arm is there for more than one generation, or matplotlib is missing.
    """
    lines = _lines(summaries)
    if not lines:
        raise ConfigError(
            f"of {len(summaries)} arms none is there for more than one generation; expected arms "
            "such as connectome@generation-3 beside connectome."
        )
    with written_figure(path, _SIZE) as figure:
        axes = figure.subplots()
        for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
            _draw_line(axes, name, points, colour)
        for summary in summaries:
            if summary.arm == BASELINE:
                _draw_baseline(axes, summary)
        densities = sorted({_percent(s) for points in lines.values() for s in points})
        axes.set_xticks(densities, [f"{density:.0f}" for density in densities])
        axes.invert_xaxis()  # evolution runs from dense to sparse
        axes.set_xlabel("survivors, % of the weights in scope")
        axes.set_ylabel(f"final held-out {LOSS_LABEL}")
        figure.legend(loc="outside lower center", ncols=3)
        if title is not None:
            figure.suptitle(title)


def _lines(summaries: Sequence[ArmSummary]) -> Mapping[str, list[ArmSummary]]:
    """Group arms that differ in their generation alone, densest first."""
    groups: dict[str, list[ArmSummary]] = {}
    for summary in summaries:
        source = source_of(summary.arm)
        if source is None or of_generation(summary.arm):
            name = summary.arm if source is None else summary.arm.replace(f"@{source}", "")
            groups.setdefault(name, []).append(summary)
    return {
        name: sorted(group, key=_percent, reverse=True)
        for name, group in groups.items()
        if len(group) > 1
    }


def _percent(summary: ArmSummary) -> float:
    return 100 * summary.num_survivors / summary.num_weights


def _draw_line(axes: Axes, name: str, points: Sequence[ArmSummary], colour: str) -> None:
    ends: dict[str, Any] = {}
    bounds = [(s.final.low, s.final.high) for s in points]
    if all(low is not None and high is not None for low, high in bounds):
        below = [s.final_loss - (s.final.low or 0.0) for s in points]
        above = [(s.final.high or 0.0) - s.final_loss for s in points]
        ends["yerr"] = [below, above]
    places = [_percent(s) for s in points]
    look: dict[str, Any] = {"color": colour, "marker": "o", "linewidth": 2, "capsize": 3}
    axes.errorbar(places, [s.final_loss for s in points], label=name, **look, **ends)


def _draw_baseline(axes: Axes, summary: ArmSummary) -> None:
    axes.axhline(
        summary.final_loss, color=BLACK, linestyle="--", linewidth=1.4, label="dense, no connectome"
    )
    if summary.final.low is not None and summary.final.high is not None:
        axes.axhspan(summary.final.low, summary.final.high, color=BLACK, alpha=0.12, linewidth=0)

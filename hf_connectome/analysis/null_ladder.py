"""The null ladder as a PNG: how much of the connectome's gain each arm keeps, one bar an arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.arm_kinds import colour_of, group_of, ladder_order, numbered
from hf_connectome.analysis.drawing import BLACK, BLUE, FAINT, GREY, written_figure
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import BASELINE, REFERENCE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from hf_connectome.evaluation.arms import ArmSummary
    from hf_connectome.evaluation.paired import PairedDifference

_WIDTH, _LEAST_HEIGHT, _ROW_HEIGHT = 12.0, 3.5, 0.36


def null_ladder(summaries: Sequence[ArmSummary], path: Path, *, title: str | None = None) -> None:
    """Draw the difference of each arm to the dense arm as a bar, in the order of the ladder.

    Left of 0 is better than dense, which is N0; the dashed line is the connectome. Whiskers are
    95 % intervals, paired by seed; beside each bar stands its share of the connectome's gain with
    its interval. Whether a control differs from the connectome itself is for the table to say.

    Args:
        summaries: One an arm, the dense arm among them.
        path: The PNG to write, 1200 pixels wide; its folder is made.
        title: Stands above the figure.

    Raises:
        ConfigError: No arm has a seed in common with the dense arm, or matplotlib is missing.
    """
    found = {s.arm: s for s in summaries}
    ordered = [found[arm] for arm in ladder_order(found)]
    compared = [(s, s.difference) for s in ordered if s.difference is not None]
    if not compared:
        raise ConfigError(
            f"of {len(summaries)} arms none has a seed in common with the arm {BASELINE!r}; "
            "expected one or more to compare with it."
        )
    rows = len(compared) + 1
    with written_figure(path, (_WIDTH, max(_LEAST_HEIGHT, 1.6 + _ROW_HEIGHT * rows))) as figure:
        bars, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3.4, 1))
        _draw_bars(bars, compared)
        _write_shares(shares, [s for s, _ in compared])
        if title is not None:
            figure.suptitle(title)


def _draw_bars(axes: Axes, compared: Sequence[tuple[ArmSummary, PairedDifference]]) -> None:
    for place, (summary, difference) in enumerate(compared):
        colour = colour_of(summary.arm)
        axes.barh(place, difference.mean, height=0.62, color=colour, alpha=0.55)
        if difference.low is not None and difference.high is not None:
            ends = [[difference.mean - difference.low], [difference.high - difference.mean]]
            whisker: dict[str, Any] = {"color": BLACK, "capsize": 3, "linewidth": 1.2}
            axes.errorbar([difference.mean], [place], xerr=ends, **whisker)
        if summary.arm == REFERENCE:
            axes.axvline(difference.mean, color=BLUE, linewidth=1.2, linestyle="--", zorder=0)
    for place in _group_starts([s for s, _ in compared]):
        axes.axhline(place - 0.5, color=FAINT, linewidth=1, zorder=0)
    axes.axvline(0, color=BLACK, linewidth=1)
    seeds = sorted({difference.num_pairs for _, difference in compared})
    names = [
        numbered(s.arm) + ("" if d.num_pairs == seeds[-1] else f" ({d.num_pairs} of {seeds[-1]})")
        for s, d in compared
    ]
    axes.set_yticks(range(len(compared)), names)
    axes.set_ylim(len(compared) - 0.5, -0.5)  # the first arm on top
    axes.tick_params(axis="y", length=0)
    seeds_word = "1 seed" if seeds[-1] == 1 else f"{seeds[-1]} seeds"
    axes.set_xlabel(f"final held-out loss minus N0 dense (nats per token; {seeds_word}, paired)")


def _group_starts(summaries: Sequence[ArmSummary]) -> list[int]:
    groups = [group_of(s.arm) for s in summaries]
    return [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def _write_shares(axes: Axes, summaries: Sequence[ArmSummary]) -> None:
    """Write the share of the connectome's gain in the row of each arm."""
    axes.set_axis_off()
    left: dict[str, Any] = {"va": "center", "fontsize": 11, "color": GREY}
    for place, summary in enumerate(summaries):
        share = summary.share_of_gain
        if summary.arm == REFERENCE:
            axes.text(0, place, "100 %", **left)
        elif share is not None:
            interval = ""
            if share.low is not None and share.high is not None:
                interval = f"  ({100 * share.low:.0f} to {100 * share.high:.0f})"
            axes.text(0, place, f"{100 * share.value:.0f} %{interval}", **left)
    axes.set_title("share of the gain", fontsize=11, color=GREY, loc="left")

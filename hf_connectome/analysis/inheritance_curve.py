"""The inheritance curve: what a child's loss is worth in bits of its parent, as a PNG.

Not for loss over steps: figures.py draws that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.arm_kinds import LOOKS, RUNG, RUNGS, colour_of, kind_of
from hf_connectome.analysis.drawing import BLUE, FAINT, GREY, LOSS_LABEL, written_figure, xy
from hf_connectome.analysis.labels import Box, place_labels
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import BASELINE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_connectome.evaluation.arms import ArmSummary

_SIZE = (12.0, 10.0)
_MARKER = 8.0
_CLEAR = 16.0
"""Pixels around a marker that no label enters."""


def inheritance_curve(
    summaries: Sequence[ArmSummary], path: Path, *, title: str | None = None
) -> None:
    """Draw the loss of each arm against the bits that it inherits, after and before training.

    The scale of the bits is logarithmic, with a place for 0 behind a break. Bars are 95 %
    intervals of the mean over seeds; the line joins ``RUNGS``, as far as they are there.

    Args:
        summaries: One an arm; two or more, of which one inherits something.
        path: The PNG to write, 1200 x 1000 pixels; its folder is made.
        title: Stands above the figure.

    Raises:
        ConfigError: There is no curve to draw, or matplotlib is missing.
    """
    if len(summaries) < 2 or not any(s.bits_inherited > 0 for s in summaries):
        raise ConfigError(
            f"{len(summaries)} arms, the most bits inherited "
            f"{max((s.bits_inherited for s in summaries), default=0):,.0f}; an inheritance curve "
            "needs two arms or more, of which one inherits something."
        )
    with written_figure(path, _SIZE) as figure:
        before, after = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
        for axes, is_final in ((before, False), (after, True)):
            _draw_points(axes, summaries, is_final=is_final)
        before.set_ylabel("before the first step")
        after.set_ylabel(f"after training: held-out {LOSS_LABEL}")
        _draw_scale(after, summaries)
        _break_scale(before, after)
        if title is not None:
            figure.suptitle(title)
        _draw_legend(figure, summaries)
        figure.canvas.draw()  # from here on the layout stands, so that pixels can be counted
        _name_points(before, [s for s in summaries if s.arm in RUNGS], summaries, is_final=False)
        _name_points(after, summaries, summaries, is_final=True)


def _place(summary: ArmSummary, *, is_final: bool) -> tuple[float, float]:
    return summary.bits_inherited, summary.final_loss if is_final else summary.initial_loss


def _rungs(summaries: Sequence[ArmSummary], *, is_final: bool) -> list[tuple[float, float]]:
    found = {s.arm: _place(s, is_final=is_final) for s in summaries}
    return [found[arm] for arm in RUNGS if arm in found]


def _draw_points(axes: Axes, summaries: Sequence[ArmSummary], *, is_final: bool) -> None:
    axes.plot(*xy(_rungs(summaries, is_final=is_final)), color=BLUE, linewidth=2, alpha=0.45)
    for summary in summaries:
        bits, loss = _place(summary, is_final=is_final)
        estimate = summary.final if is_final else summary.initial
        look = LOOKS[kind_of(summary.arm)]
        if estimate.low is not None and estimate.high is not None:
            ends = [[loss - estimate.low], [estimate.high - loss]]
            axes.errorbar([bits], [loss], yerr=ends, color=look["color"], capsize=3, linewidth=1.2)
        filled = look["color"] if is_final else "white"
        on_top = 4 if kind_of(summary.arm) == RUNG else 3
        dot: dict[str, Any] = {"markersize": _MARKER, "markerfacecolor": filled, "zorder": on_top}
        axes.plot([bits], [loss], linestyle="none", **look, **dot)
        if summary.arm == BASELINE:
            axes.axhline(loss, color=GREY, linewidth=1, linestyle=":", zorder=0)
    axes.margins(y=0.09)


def _draw_scale(axes: Axes, summaries: Sequence[ArmSummary]) -> None:
    """Scale the bits: logarithmic from the least that is not 0 on, and 0 a little before it."""
    positive = [s.bits_inherited for s in summaries if s.bits_inherited > 0]
    least, most = min(positive), max(positive)
    has_zero = len(positive) < len(summaries)
    start = least / 1.6
    axes.set_xscale("symlog", linthresh=start, linscale=0.3)
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(start)), math.ceil(math.log10(most)) + 1)
        for digit in (1, 2, 5)
    ]
    shown = [tick for tick in ticks if start * 1.05 <= tick <= most * 1.3]
    axes.set_xticks([*([0.0] if has_zero else []), *shown])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda bits, _: _short(bits))
    axes.set_xlim(-0.5 * start if has_zero else start, most * 1.5)
    whole = summaries[0].num_weights
    axes.set_xlabel(f"bits inherited from the parent, for {whole:,} weights in scope")


def _short(bits: float) -> str:
    """Write a round number of bits: 200 k, 5 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits >= size:
            return f"{bits / size:g} {unit}"
    return f"{bits:g}"


def _break_scale(before: Axes, after: Axes) -> None:
    """Mark the place between 0 and the logarithmic part."""
    left, _ = after.get_xlim()
    if left >= 0:
        return
    for axes in (before, after):
        middle = -left  # half of the linear part
        axes.axvline(middle, color=FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        where: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        mark: dict[str, Any] = {"marker": [(-1, -2), (1, 2)], "markersize": 11, "color": GREY}
        axes.plot([middle], [0], linestyle="none", **mark, **where)


def _draw_legend(figure: Figure, summaries: Sequence[ArmSummary]) -> None:
    from matplotlib.lines import Line2D

    present = {kind_of(s.arm) for s in summaries}
    size: dict[str, Any] = {"markersize": _MARKER}
    handles = [
        Line2D([], [], label=kind, linestyle="-" if kind == RUNG else "", **look, **size)
        for kind, look in LOOKS.items()
        if kind in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _name_points(
    axes: Axes, named: Sequence[ArmSummary], summaries: Sequence[ArmSummary], *, is_final: bool
) -> None:
    """Write the name of each arm beside its point, with a leader where it stands apart."""
    pixels: dict[str, Any] = {"xycoords": "figure pixels", "textcoords": "figure pixels"}
    middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 11.5}
    anchors = [_in_pixels(axes, _place(s, is_final=is_final)) for s in named]
    texts = [
        axes.annotate(s.arm, (0, 0), (0, 0), color=colour_of(s.arm), **pixels, **middle)
        for s in named
    ]
    extents = [text.get_window_extent() for text in texts]
    corners = axes.get_window_extent()
    boxes = place_labels(
        [(extent.width + 8, extent.height + 1) for extent in extents],
        anchors,
        bounds=Box(corners.x0 + 2, corners.y0 + 6, corners.x1 - 2, corners.y1),
        obstacles=[box for s in summaries for box in _marks(axes, s, is_final=is_final)],
        lines=_lines(axes, summaries, is_final=is_final),
    )
    for text, anchor, box in zip(texts, anchors, boxes, strict=True):
        text.set(position=box.centre, in_layout=False)
        end = box.nearest(anchor)
        if math.dist(anchor, end) > _CLEAR:
            line = {"arrowstyle": "-", "color": text.get_color(), "linewidth": 0.8, "alpha": 0.7}
            axes.annotate("", end, anchor, arrowprops=line, **pixels).set_in_layout(False)


def _in_pixels(axes: Axes, point: tuple[float, float]) -> tuple[float, float]:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _marks(axes: Axes, summary: ArmSummary, *, is_final: bool) -> list[Box]:
    """Return what is drawn for an arm, which no label may cover: its marker and its bar."""
    bits, loss = _place(summary, is_final=is_final)
    estimate = summary.final if is_final else summary.initial
    boxes = [Box.around(_in_pixels(axes, (bits, loss)), _CLEAR, _CLEAR)]
    if estimate.low is not None and estimate.high is not None:
        (x, low), (_, high) = (_in_pixels(axes, (bits, y)) for y in (estimate.low, estimate.high))
        boxes.append(Box(x - _CLEAR / 4, low, x + _CLEAR / 4, high))
    return boxes


def _lines(
    axes: Axes, summaries: Sequence[ArmSummary], *, is_final: bool
) -> list[tuple[float, float]]:
    """Return points along the line of the rungs and the level of the dense arm, in pixels."""
    corners = [_in_pixels(axes, rung) for rung in _rungs(summaries, is_final=is_final)]
    lines = list(pairwise(corners))
    for summary in summaries:
        if summary.arm == BASELINE:
            bits, loss = axes.get_xlim(), _place(summary, is_final=is_final)[1]
            lines.append((_in_pixels(axes, (bits[0], loss)), _in_pixels(axes, (bits[1], loss))))
    return [
        (start[0] + (end[0] - start[0]) * k / 100, start[1] + (end[1] - start[1]) * k / 100)
        for start, end in lines
        for k in range(101)
    ]

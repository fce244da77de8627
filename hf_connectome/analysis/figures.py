"""Figures of runs as PNG, 1400 x 600 pixels. Not for computing what they show: evaluation does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.drawing import (
    ARM_COLOURS,
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    LEAST_SEEDS_FOR_A_BAND,
    LOSS_LABEL,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    check_curves,
    legend_below,
    written_figure,
    xy,
)
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import mean_curve, steps_to_target, t_interval

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    Curve = Sequence[tuple[float, float]]

_OTHER_COLOURS = (GREEN, PURPLE, ORANGE, SKY)
_LINE_STYLES = ("-", "--", "-.")
_WHOLE_TICKS: dict[str, Any] = {"integer": True, "min_n_ticks": 1, "steps": [1, 2, 5, 10]}


def evolution_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw one run of evolution: loss over steps with its generations, and density beside it.

    Args:
        rows: Metric records: ``step`` and ``generation``, and where known
            ``loss``, ``eval_loss`` (nats per token) and ``density`` (in [0, 1]).
        path: The PNG to write; its folder is made.

    Raises:
        ConfigError: No row, a row without step or generation, or matplotlib is missing.
    """
    if not rows:
        raise ConfigError("there are no metric records to draw; expected one row or more.")
    for index, row in enumerate(rows):
        if "step" not in row or "generation" not in row:
            raise ConfigError(f"row {index} lacks 'step' or 'generation'; it has {sorted(row)}.")
    rows = sorted(rows, key=lambda row: (row["generation"], row["step"]))
    with written_figure(path) as figure:
        losses, generations = figure.subplots(1, 2, width_ratios=(1.9, 1))
        _draw_losses(losses, rows)
        draw_generations(generations, rows)
        legend_below(figure)


def inheritance_curves(
    arms: Mapping[str, Sequence[Curve]], path: Path, *, title: str | None = None
) -> None:
    """Draw arms that learn side by side: held-out loss over steps, and the final loss per seed.

    The dotted line is the final mean loss of the arm ``dense``; where the mean of another arm comes
    down to it, the share of the dense arm's steps is written. Bands are 95 % intervals of the mean.

    Args:
        arms: Name -> one curve of (step, loss in nats per token) per seed, seeds in the same order
            in every arm.
        path: The PNG to write; its folder is made.
        title: Stands above both panels.

    Raises:
        ConfigError: No arm, an arm without a curve, curves of an arm over different steps, a loss
            that is not finite, or matplotlib is missing.
    """
    check_curves(arms)
    with written_figure(path) as figure:
        curves, finals = figure.subplots(1, 2, width_ratios=(1.9, 1))
        _draw_arms(curves, arms)
        _draw_finals(finals, arms)
        if title is not None:
            figure.suptitle(title)
        legend_below(figure)


# Evolution


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Take (step, value) where the value is there and finite."""
    return [
        (row["step"], row[key])
        for row in rows
        if row.get(key) is not None and math.isfinite(row[key])
    ]


def _by_generation(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[int, list[Mapping[str, Any]]]]:
    return [(g, list(part)) for g, part in groupby(rows, key=lambda row: int(row["generation"]))]


def _smoothed(points: Curve) -> list[tuple[float, float]]:
    """Average over a centred window, narrower towards the ends so that it does not lag."""
    most = len(points) // 40
    smooth = []
    for index, (step, _) in enumerate(points):
        half = min(index, len(points) - 1 - index, most)
        window = points[index - half : index + half + 1]
        smooth.append((step, math.fsum(value for _, value in window) / len(window)))
    return smooth


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = rows[0]["step"], rows[-1]["step"]
    label: str | None = "training loss"
    end = first
    for _, part in _by_generation(rows):
        if part[0]["step"] != first:  # a generation begins where the one before was measured last
            axes.axvline(end, color=FAINT, linewidth=1, zorder=0)
        end = part[-1]["step"]
        points = _points(part, "loss")
        if not points:
            continue
        axes.plot(*xy(points), color=SKY, linewidth=0.7, alpha=0.7)
        marker = "o" if len(points) == 1 else None
        smooth = xy(_smoothed(points))
        axes.plot(*smooth, color=BLUE, linewidth=1.5, marker=marker, label=label)
        label = None
    held_out = _points(rows, "eval_loss")
    if held_out:
        dots: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5}
        axes.plot(*xy(held_out), color=VERMILION, label="held-out loss", **dots)
    pad = 0.01 * (last - first) or 1.0
    axes.set_xlim(first - pad, last + pad)
    axes.xaxis.set_major_locator(MaxNLocator(**_WHOLE_TICKS))
    axes.set_xlabel("step" + _cut_peaks(axes, held_out + _points(rows, "loss")))
    axes.set_ylabel(LOSS_LABEL)
    _label_generations(axes, rows)


def _cut_peaks(axes: Axes, points: Curve) -> str:
    """Leave out the highest twentieth where it would take most of the panel, and say so."""
    values = sorted(value for _, value in points)
    if len(values) < 40:
        return ""
    least, usual, most = values[0], values[int(0.95 * (len(values) - 1))], values[-1]
    if not 0 < usual - least < most - usual:
        return ""
    top = usual + 0.1 * (usual - least)
    axes.set_ylim(least - 0.05 * (usual - least), top)
    return f"   (loss above {top:.1f} is not shown; highest {most:.1f})"


def _label_generations(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write number and density above each generation, as far as there is room."""
    parts = _by_generation(rows)
    ends = [part[0]["step"] for _, part in parts[1:]] + [rows[-1]["step"]]
    gap = 0.075 * (rows[-1]["step"] - rows[0]["step"])
    labelled = -math.inf
    for (generation, part), end in zip(parts, ends, strict=True):
        middle = (part[0]["step"] + end) / 2
        if middle - labelled < gap:
            continue
        labelled = middle
        densities = _points(part, "density")
        text = f"gen {generation}" + (f"\n{_percent(densities[-1][1])}" if densities else "")
        where: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "ha": "center"}
        axes.annotate(text, (middle, 1.01), va="bottom", fontsize=10, color=GREY, **where)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def draw_generations(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the density of every generation as a bar, and its last held-out loss where known.

    Args:
        axes: The panel to draw in.
        rows: As for ``evolution_curves``, in order of generation.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    parts = _by_generation(rows)
    densities = _ends(parts, "density")
    held_out = _ends(parts, "eval_loss")
    if densities:
        axes.bar(*xy(densities), width=0.7, color=FAINT, label="density")
    else:
        axes.text(0.5, 0.5, "density not recorded", transform=axes.transAxes, ha="center")
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_locator(MaxNLocator(**_WHOLE_TICKS))
    axes.set_xlim(parts[0][0] - 0.6, parts[-1][0] + 0.6)
    axes.set_xlabel("generation")
    axes.set_ylabel("density (share of weights left)")
    if held_out:
        twin = axes.twinx()
        twin.spines["right"].set_visible(True)
        label = "last held-out loss of a generation"
        twin.plot(*xy(held_out), marker="o", color=VERMILION, label=label)
        twin.set_ylabel(f"held-out {LOSS_LABEL}", color=VERMILION)
        twin.margins(y=0.15)


def _ends(
    parts: Sequence[tuple[int, Sequence[Mapping[str, Any]]]], key: str
) -> list[tuple[float, float]]:
    """Take the last known value of each generation."""
    found = [(generation, _points(part, key)) for generation, part in parts]
    return [(generation, points[-1][1]) for generation, points in found if points]


# Inheritance


def _looks(arms: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Give each arm its colour: a fixed one, or by name the next of the rest."""
    looks = {name: {"color": colour} for name, colour in ARM_COLOURS.items() if name in arms}
    for index, name in enumerate(sorted(arms.keys() - looks.keys())):
        repeat, place = divmod(index, len(_OTHER_COLOURS))
        looks[name] = {
            "color": _OTHER_COLOURS[place],
            "linestyle": _LINE_STYLES[repeat % len(_LINE_STYLES)],
        }
    return looks


def _draw_arms(axes: Axes, arms: Mapping[str, Sequence[Curve]]) -> None:
    looks = _looks(arms)
    for name, curves in arms.items():
        axes.plot(*xy(mean_curve(curves)), linewidth=2.4, label=name, **looks[name])
    band: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
    for name, curves in arms.items():
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*xy(curve), linewidth=0.7, alpha=0.6, **looks[name])
        if len(curves) >= LEAST_SEEDS_FOR_A_BAND:
            steps, low, high = _band(curves)
            axes.fill_between(steps, low, high, color=looks[name]["color"], **band)
    if any(len(curves) >= LEAST_SEEDS_FOR_A_BAND for curves in arms.values()):
        axes.fill_between([], [], [], color=GREY, label="95 % interval of the mean", **band)
    if "dense" in arms:
        _mark_crossings(axes, arms)
    axes.set_xlabel("step")
    axes.set_ylabel(f"held-out {LOSS_LABEL}")


def _band(curves: Sequence[Curve]) -> tuple[list[float], list[float], list[float]]:
    steps, low, high = [], [], []
    for points in zip(*curves, strict=True):
        interval = t_interval([loss for _, loss in points])
        assert interval is not None  # more than one seed
        steps.append(points[0][0])
        low.append(interval[0])
        high.append(interval[1])
    return steps, low, high


def _mark_crossings(axes: Axes, arms: Mapping[str, Sequence[Curve]]) -> None:
    """Mark where each mean reaches the dense arm's final mean; texts stand below all curves."""
    looks = _looks(arms)
    means = {name: mean_curve(curves) for name, curves in arms.items()}
    last_step, target = means.pop("dense")[-1]
    axes.axhline(target, color=BLACK, linewidth=1, linestyle=":", label="final mean of dense")
    crossings = {name: steps_to_target(*xy(mean), target) for name, mean in means.items()}
    reached = [(step, name) for name, step in crossings.items() if step is not None]
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    row = 0.06 * (top - bottom)
    axes.set_ylim(bottom - row * len(reached), top)
    # The last to arrive stands in the top row, so that no line has to pass a text.
    for index, (step, name) in enumerate(sorted(reached, reverse=True)):
        colour = looks[name]["color"]
        loss = min(target, means[name][0][1])
        height = bottom - row * (index + 0.5)
        axes.plot([step, step], [loss, height], color=colour, linewidth=1, linestyle=":")
        axes.plot([step], [loss], marker="o", markersize=8, color=colour, markeredgecolor="white")
        side = -1 if step - left > 0.6 * (right - left) else 1
        axes.annotate(
            f"{name}: {100 * step / max(last_step, 1):.0f} % of the steps",
            (step, height),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=11,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _draw_finals(axes: Axes, arms: Mapping[str, Sequence[Curve]]) -> None:
    looks = _looks(arms)
    finals = [[curve[-1][1] for curve in curves] for curves in arms.values()]
    for seed in range(max(map(len, finals))):
        pairs = [(place, losses[seed]) for place, losses in enumerate(finals) if seed < len(losses)]
        axes.plot(*xy(pairs), color="#999999", linewidth=0.8, zorder=1)
    for place, (name, losses) in enumerate(zip(arms, finals, strict=True)):
        colour = looks[name]["color"]
        axes.scatter([place] * len(losses), losses, s=36, color=colour, zorder=2)
        mean = math.fsum(losses) / len(losses)
        axes.plot([place - 0.22, place + 0.22], [mean, mean], color=colour, linewidth=3, zorder=3)
    slanted: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(arms) > 3 else {}
    )
    axes.set_xticks(range(len(arms)), list(arms), **slanted)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_ylabel(f"final held-out {LOSS_LABEL}")

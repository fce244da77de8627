"""What evaluations found, as PNGs: bars with intervals, lag profiles of reading, layers of brain.

Nothing is computed here but means over regions and where to draw.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.drawing import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    written_figure,
)
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.brain import LANGUAGE_UNITS, TRAINED
from hf_connectome.evaluation.report import CHANCE, UNIFORM, UNTRAINED, brain_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_connectome.evaluation.report import Measure

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
_WIDTH = 14.0
_COLUMNS = 4
_MOST_LETTERS = 40
_LINE_OF_LETTERS = 26
_LARGE = 1000
_CONTROLS = {
    CHANCE: ("|", "97.5 % with sentences shuffled"),
    UNIFORM: ("+", "all tokens equally likely"),
    UNTRAINED: ("x", "same architecture, untrained"),
}
_STYLES: dict[str, dict[str, Any]] = {
    TRAINED: {"linestyle": "-", "marker": "o"},
    "untrained": {"linestyle": ":", "marker": "x"},
    LANGUAGE_UNITS: {"linestyle": "-.", "linewidth": 1},
}


def score_bars(measures: Sequence[Measure], path: Path) -> None:
    """Draw every measure in a panel of its own: a bar a model, with its 95 % interval.

    What its controls gave is marked on the bars.

    Args:
        measures: of ``report.measures``; one that not all models have leaves a gap.
        path: the PNG to write; its folder is made.

    Raises:
        ConfigError: there is no measure, or matplotlib is missing.
    """
    if not measures:
        raise ConfigError("there is no measure to draw; expected one or more.")
    labels = list(dict.fromkeys(m.label for m in measures))
    panels = list(dict.fromkeys((m.name, m.unit) for m in measures if m.control_of is None))
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with written_figure(path) as figure:
        height = 0.9 + rows * (1.1 + 0.34 * max(3, len(labels)))
        figure.set_size_inches(max(6.0, _WIDTH * columns / _COLUMNS), height)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (name, unit) in zip(grid, panels, strict=False):
            found = [m for m in measures if m.unit == unit]
            _draw_bars(axes, [m for m in found if m.name == name], labels)
            _draw_controls(axes, [m for m in found if m.control_of == name], labels)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        _legend(figure)


def lag_profiles(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw how surprisal and length of a word go with the times around it, as filed and put right.

    Where a word seems to slow the word before it (-1), times are misplaced.

    Args:
        results: label of a model -> ``ReadingResult.as_json``, all of one table.
        path: the PNG to write; its folder is made.

    Raises:
        ConfigError: there is no result, or matplotlib is missing.
    """
    if not results:
        raise ConfigError("there is no reading result to draw; expected one or more.")
    alignments = [found["name"] for found in next(iter(results.values()))["alignments"]]
    with written_figure(path) as figure:
        grid = figure.subplots(1, len(alignments), squeeze=False, sharey=True)[0]
        for axes, name in zip(grid, alignments, strict=True):
            _draw_profiles(axes, name, results)
        grid[0].set_ylabel("correlation with the reading time")
        _legend(figure)


def brain_figure(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw predictivity by layer, mean over regions: the model, untrained, chance, the units.

    Args:
        results: label of a model -> ``BrainResult.as_json``, all of one table.
        path: the PNG to write; its folder is made.

    Raises:
        ConfigError: there is no result, or matplotlib is missing.
    """
    if not results:
        raise ConfigError("there is no brain result to draw; expected one or more.")
    first = next(iter(results.values()))
    with written_figure(path) as figure:
        axes = figure.subplots()
        for colour, (label, result) in zip(_cycle(len(results)), results.items(), strict=True):
            _draw_layers(axes, label, result, colour)
        _label_styles(axes)
        _draw_chance(axes, results)
        axes.axhline(0, color=GREY, linewidth=0.8)
        note = ""
        if first["noise_ceilings"]:
            ceilings = list(first["noise_ceilings"].values())
            note = f"   (noise ceiling {math.fsum(ceilings) / len(ceilings):.3f}, not shown)"
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylabel("Pearson's r in folds left out, mean over regions")
        axes.set_title(f"{first['num_sentences']:,} sentences{note}", loc="left")
        _legend(figure)


# ---- drawing -------------------------------------------------------------------------------------


def _legend(figure: Figure) -> None:
    """Put one legend below all panels, in columns that names of models fit into."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    controls = {shown for _, shown in _CONTROLS.values()}
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0] in controls))
    columns = min(len(entries), _COLUMNS)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def _cycle(num: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(num)]


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else "…" + text[1 - _MOST_LETTERS :]


def _draw_bars(axes: Axes, measures: Sequence[Measure], labels: Sequence[str]) -> None:
    first, by_label = measures[0], {m.label: m for m in measures}
    for place, (label, colour) in enumerate(zip(labels, _cycle(len(labels)), strict=True)):
        found = by_label.get(label)
        if found is None:
            continue
        axes.barh(place, found.value, color=colour, height=0.7, label=_short(label))
        if found.low is not None and found.high is not None:
            ends = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar(found.value, place, xerr=ends, color=BLACK, capsize=3, linewidth=1.2)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks([])
    axes.axvline(0, color=GREY, linewidth=0.8)
    if max(m.value for m in measures) >= _LARGE and min(m.value for m in measures) > 0:
        axes.set_xscale("log")
    better = {None: "", True: " →", False: " ←"}[first.higher_is_better]
    axes.set_title(_wrapped(first.name), fontsize=11, loc="left")
    axes.set_xlabel(f"{first.unit or 'score'}{better}", fontsize=10)
    axes.tick_params(labelsize=10)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=4)


def _draw_controls(axes: Axes, controls: Sequence[Measure], labels: Sequence[str]) -> None:
    for control in controls:
        marker, shown = _CONTROLS[control.name.rpartition(", ")[2]]
        place = labels.index(control.label) + 0.2
        style: dict[str, Any] = {"s": 60, "color": BLACK, "zorder": 3, "label": shown}
        axes.scatter([control.value], [place], marker=marker, **style)


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, _LINE_OF_LETTERS))


def _draw_profiles(axes: Axes, name: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    lags: list[str] = []
    for colour, (label, result) in zip(_cycle(len(results)), results.items(), strict=True):
        found = next(a for a in result["alignments"] if a["name"] == name)
        profile = found["lag_profile"]["surprisal"]
        lags = list(profile)
        axes.plot(
            lags,
            list(profile.values()),
            marker="o",
            color=colour,
            label=f"surprisal, {_short(label)}",
        )
    length = next(a for a in next(iter(results.values()))["alignments"] if a["name"] == name)
    values = list(length["lag_profile"]["length"].values())
    axes.plot(lags, values, marker="s", color=GREY, linestyle="--", label="length of the word")
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    axes.set_title(f"times {name}", loc="left")
    axes.set_xlabel("time of the word k positions later (at -1, no reader can be slowed)")


def _draw_layers(axes: Axes, label: str, result: Mapping[str, Any], colour: str) -> None:
    axes.plot([], [], color=colour, linewidth=6, label=_short(label))  # colour: which model
    for model in dict.fromkeys(score["model"] for score in result["scores"]):
        found = brain_layers(result, model)
        units = found.pop(LANGUAGE_UNITS, None)
        layers = [int(name.rpartition(" ")[2]) for name in found]
        style = _STYLES[TRAINED if model == TRAINED else "untrained"]
        axes.plot(layers, list(found.values()), color=colour, **style)
        if units is not None and model == TRAINED:
            axes.axhline(units, color=colour, **_STYLES[LANGUAGE_UNITS])
    axes.locator_params(axis="x", integer=True)


def _label_styles(axes: Axes) -> None:
    """Say in the legend what the kinds of line mean, whatever the colour."""
    for name, style in _STYLES.items():
        axes.plot([], [], color=GREY, label="this model" if name == TRAINED else name, **style)


def _draw_chance(axes: Axes, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Shade what shuffled sentences give, widest over the models, as far as it is known."""
    highs = [
        v for r in results.values() for v in brain_layers(r, TRAINED, "shuffled_high").values()
    ]
    lows = [v for r in results.values() for v in brain_layers(r, TRAINED, "shuffled_low").values()]
    if highs and lows:
        axes.axhspan(min(lows), max(highs), color=FAINT, alpha=0.5, label="sentences shuffled")

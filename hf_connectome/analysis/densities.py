"""Where a connectome is dense: survivors by layer and kind of module, as numbers and as a PNG.

Not for what single weights look like. Names alone decide the layer, so any architecture will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.analysis.drawing import BLUE, GREY, SKY, legend_below, written_figure
from hf_connectome.analysis.figures import draw_generations
from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hf_connectome.connectome import Connectome

    Grid = NDArray[np.float64]

_CONTAINERS = {"layer", "layers", "block", "blocks"}
"""Words that say nothing once the number behind them is gone."""
_COLOURS = ("#E3EEF6", SKY, BLUE, "#00304D")
_TOPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_WIDTH, _LEAST_HEIGHT, _ROW_HEIGHT = 14.0, 6.0, 0.3
_MOST_ROWS = 60
_MOST_VALUES_ABREAST = 16
_MOST_GENERATIONS = 1000


@dataclass(frozen=True)
class KindDensity:
    """One kind of module over the layers that have it."""

    kind: str
    counts: Mapping[int | None, tuple[int, int]] = field(default_factory=dict)
    """Layer -> (survivors, weights); None is the key of what stands outside the layers."""

    @property
    def num_weights(self) -> int:
        """Weights of this kind, over all layers."""
        return sum(weights for _, weights in self.counts.values())

    @property
    def num_survivors(self) -> int:
        """Survivors of this kind, over all layers."""
        return sum(survivors for survivors, _ in self.counts.values())

    @property
    def densities(self) -> dict[int | None, float]:
        """Density by layer."""
        return {layer: kept / weights for layer, (kept, weights) in self.counts.items()}


def densities_by_kind(connectome: Connectome) -> list[KindDensity]:
    """Count survivors by kind of module and layer: what has no layer first, then by name.

    Several matrices of one kind in one layer, such as experts in a list, count together.
    """
    places = {name: _place(name) for name in connectome}
    stacks = _short_stacks({stack for layer, stack, _ in places.values() if layer is not None})
    kinds: dict[tuple[bool, str], dict[int | None, tuple[int, int]]] = {}
    for name, (layer, stack, rest) in places.items():
        kind = ".".join([*stacks.get(stack, ()), *rest]) if layer is not None else ".".join(rest)
        counts = kinds.setdefault((layer is not None, kind), {})
        kept, weights = counts.get(layer, (0, 0))
        entry = connectome[name]
        counts[layer] = (kept + entry.num_survivors, weights + entry.num_weights)
    return [KindDensity(kind, counts) for (_, kind), counts in sorted(kinds.items(), key=_first)]


def density_figure(connectome: Connectome, path: Path) -> None:
    """Draw density by layer and kind of module, and beside it by generation if there is a lineage.

    Args:
        connectome: with one parameter or more.
        path: the PNG to write, 1400 pixels wide; its folder is made.

    Raises:
        ConfigError: the connectome is empty, or matplotlib is missing.
    """
    kinds = densities_by_kind(connectome)
    if not kinds:
        raise ConfigError("the connectome has no parameter, so there is no density to draw.")
    generations = _generations(connectome)
    with written_figure(path) as figure:
        rows = min(len(kinds), _MOST_ROWS)
        figure.set_size_inches(_WIDTH, max(_LEAST_HEIGHT, 1.8 + _ROW_HEIGHT * rows))
        if len(generations) > 1:
            heat, bars = figure.subplots(1, 2, width_ratios=(2.2, 1))
            draw_generations(bars, generations)
            legend_below(figure)
        else:
            heat = figure.subplots()
        _draw_map(figure, heat, kinds)


# ---- names ---------------------------------------------------------------------------------------


def _place(name: str) -> tuple[int | None, tuple[str, ...], tuple[str, ...]]:
    """Split a parameter's name into layer, the stack of layers it is in, and its kind."""
    parts = tuple(name.removesuffix(".weight").split("."))
    index = next((i for i, part in enumerate(parts) if _is_number(part)), None)
    if index is None:
        return None, (), parts
    behind = parts[index + 1 :]
    rest = [
        part
        for part, following in zip(behind, (*behind[1:], ""), strict=False)
        if not _is_number(part) and not (part in _CONTAINERS and _is_number(following))
    ]
    return int(parts[index]), parts[:index], tuple(rest or ("weight",))


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 7


def _short_stacks(stacks: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Name each stack by what tells it from the others: nothing if there is one."""
    all_stacks = sorted(stacks)
    if len(all_stacks) < 2:
        return dict.fromkeys(all_stacks, ())
    start = _common(all_stacks)
    end = _common([stack[start:][::-1] for stack in all_stacks])
    short = {stack: stack[start : len(stack) - end] for stack in all_stacks}
    return short if all(short.values()) else {stack: stack for stack in all_stacks}


def _common(stacks: Sequence[Sequence[str]]) -> int:
    """Count the leading parts that all have."""
    num = 0
    for parts in zip(*stacks, strict=False):
        if len(set(parts)) > 1:
            break
        num += 1
    return num


def _first(item: tuple[tuple[bool, str], Any]) -> tuple[bool, str]:
    return item[0]


# ---- drawing -------------------------------------------------------------------------------------


def _generations(connectome: Connectome) -> list[dict[str, Any]]:
    """Return the lineage and the connectome itself as rows for the bars; odd rows are left out."""
    rows: dict[int, dict[str, Any]] = {}
    for row in connectome.lineage:
        generation = row.get("generation")
        if isinstance(generation, int) and 0 <= generation < _MOST_GENERATIONS:
            rows[generation] = {"density": _number(row.get("density"), most=1.0)}
            rows[generation]["eval_loss"] = _number(row.get("eval_loss"))
    own = connectome.config.generation if connectome.config is not None else 0
    if own < _MOST_GENERATIONS:
        rows[own] = {"density": connectome.density}
    return [{"step": g, "generation": g, **rows[g]} for g in sorted(rows)]


def _number(value: Any, most: float = math.inf) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most and value < 1e6 else None


def _draw_map(figure: Figure, axes: Axes, kinds: Sequence[KindDensity]) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shown = kinds[:_MOST_ROWS]
    layers = sorted({layer for kind in shown for layer in kind.counts if layer is not None}) or [0]
    grid = _grid(shown, layers)
    top = next((top for top in _TOPS if top >= np.nanmax(grid)), 1.0)
    colours = LinearSegmentedColormap.from_list("density", _COLOURS)
    image = axes.pcolormesh(grid, cmap=colours, vmin=0.0, vmax=top)
    axes.invert_yaxis()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    _draw_lines(axes, shown, layers)
    _write_values(axes, shown, layers, top)
    small: dict[str, Any] = {"fontsize": 11 if len(shown) <= 20 else 9}
    axes.set_yticks(np.arange(len(shown)) + 0.5, [_clipped(kind.kind) for kind in shown], **small)
    every = math.ceil(len(layers) / _MOST_VALUES_ABREAST)
    if any(layer is not None for kind in shown for layer in kind.counts):
        axes.set_xticks(np.arange(0, len(layers), every) + 0.5, [str(n) for n in layers[::every]])
        axes.set_xlabel("layer")
    else:
        axes.set_xticks([])
    left = len(kinds) - len(shown)
    unshown = f" ({left} modules not shown)" if left else ""
    axes.set_title(f"density by layer and module, in %{unshown}")
    slim: dict[str, Any] = {"pad": 0.02, "aspect": 5 * figure.get_figheight()}
    percent = PercentFormatter(1.0, decimals=0 if top >= 0.05 else 1, symbol=" %")
    bar = figure.colorbar(image, ax=axes, format=percent, **slim)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    bar.outline.set_visible(False)


def _grid(kinds: Sequence[KindDensity], layers: Sequence[int]) -> Grid:
    """Return kinds x layers, NaN where a layer lacks the kind; without a layer, all across."""
    grid = np.full((len(kinds), len(layers)), np.nan)
    for row, kind in enumerate(kinds):
        for layer, density in kind.densities.items():
            if layer is None:
                grid[row, :] = density
            else:
                grid[row, layers.index(layer)] = density
    return grid


def _draw_lines(axes: Axes, kinds: Sequence[KindDensity], layers: Sequence[int]) -> None:
    white: dict[str, Any] = {"color": "white", "linewidth": 1.5 if len(layers) <= 24 else 0.6}
    outside = sum(None in kind.counts for kind in kinds)
    axes.hlines(range(len(kinds) + 1), 0, len(layers), color="white", linewidth=1.5)
    axes.vlines(range(len(layers) + 1), outside, len(kinds), **white)
    if 0 < outside < len(kinds):
        axes.hlines([outside], 0, len(layers), color="white", linewidth=6)


def _write_values(
    axes: Axes, kinds: Sequence[KindDensity], layers: Sequence[int], top: float
) -> None:
    """Write densities into the cells; where there are too many, the range at the row's end."""
    abreast = len(layers) <= _MOST_VALUES_ABREAST
    middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10}
    for row, kind in enumerate(kinds):
        for layer, density in kind.densities.items():
            colour = "white" if density > 0.55 * top else "black"
            if layer is None:
                text, place = _percent(density), len(layers) / 2
            elif abreast:
                text, place = _percent(density), layers.index(layer) + 0.5
            else:
                continue
            axes.text(place, row + 0.5, text, color=colour, **middle)
        if not abreast and None not in kind.counts:
            where: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 9, "color": GREY}
            axes.text(len(layers) * 1.01, row + 0.5, _range(list(kind.densities.values())), **where)


def _percent(density: float) -> str:
    return f"{100 * density:.1f}" if density < 0.9995 else "100"


def _range(densities: Sequence[float]) -> str:
    low, high = _percent(min(densities)), _percent(max(densities))
    return low if low == high else f"{low} to {high}"


def _clipped(kind: str, most: int = 40) -> str:
    """Shorten a long name at its start; its end tells modules apart. A $ would begin a formula."""
    text = "".join(c for c in kind if c.isprintable()).replace("$", r"\$")
    return text if len(text) <= most else "…" + text[1 - most :]

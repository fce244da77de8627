"""Models that are seeds of one arm: their means, and differences between arms, paired by seed.

What a single model reaches is report.py's. A pair has the same initialisation and data order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_connectome.evaluation.arms import BASELINE
from hf_connectome.evaluation.paired import (
    Estimate,
    PairedDifference,
    least_p_value,
    mean_estimate,
    paired_difference,
)
from hf_connectome.evaluation.report import padded_lines

if TYPE_CHECKING:
    from hf_connectome.evaluation.report import Measure

_SEEDED = re.compile(r"(.*[^-\s])[-\s]seed ?(\d+)")
"""The label of a child of inherit.py (``random-seed3``), or of a fresh model (``g-6 seed 3``)."""


@dataclass(frozen=True)
class GroupScore:
    """One measure of all seeds of one arm."""

    name: str
    unit: str
    arm: str
    mean: Estimate
    difference: PairedDifference | None
    """To the baseline, over the seeds that both have; None for the baseline itself."""
    higher_is_better: bool | None


def group_scores(measures: Iterable[Measure]) -> list[GroupScore]:
    """Compare arms seed by seed, for every measure that two arms or more have.

    The baseline is the arm named dense; without one, the arm that comes first.

    Args:
        measures: of single models; those whose label ends in no seed are left out.

    Returns:
        Arms in the order of their models, for each measure in turn; empty where there are no two
        arms with two seeds in common.
    """
    found: dict[tuple[str, str], dict[str, dict[int, Measure]]] = {}
    for measure in measures:
        seeded = _SEEDED.fullmatch(measure.label)
        if seeded is not None:
            arms = found.setdefault((measure.name, measure.unit), {})
            arms.setdefault(seeded[1], {})[int(seeded[2])] = measure
    return [score for (name, unit), arms in found.items() for score in _scores(name, unit, arms)]


def _scores(name: str, unit: str, arms: dict[str, dict[int, Measure]]) -> list[GroupScore]:
    baseline = next((arm for arm in arms if arm.rpartition("/")[2] == BASELINE), next(iter(arms)))
    base = arms[baseline]
    scores = []
    for arm, seeds in arms.items():
        common = sorted(seeds.keys() & base.keys())
        difference = None
        if arm != baseline and common:
            difference = paired_difference(
                [seeds[seed].value for seed in common], [base[seed].value for seed in common]
            )
        better = next(iter(seeds.values())).higher_is_better
        mean = mean_estimate([seeds[seed].value for seed in sorted(seeds)])
        scores.append(GroupScore(name, unit, arm, mean, difference, better))
    pairs = [s.difference.num_pairs for s in scores if s.difference is not None]
    return scores if any(num > 1 for num in pairs) else []


def group_table(scores: Sequence[GroupScore]) -> str:
    """Return means and differences in Markdown, a row a measure, and what has to be known.

    Args:
        scores: of :func:`group_scores`, at least one.
    """
    arms = list(dict.fromkeys(score.arm for score in scores))
    baseline = next(s.arm for s in scores if s.difference is None)
    compared = [arm for arm in arms if arm != baseline]
    cells = {(s.name, s.unit, s.arm): s for s in scores}
    arrows = {None: "", True: " ↑", False: " ↓"}
    rows = [["", *arms, *(f"{arm} minus {baseline}" for arm in compared)]]
    for name, unit in dict.fromkeys((s.name, s.unit) for s in scores):
        here = {arm: cells.get((name, unit, arm)) for arm in arms}
        better = next(s.higher_is_better for s in here.values() if s is not None)
        head = f"{name}, {unit}" if unit else name
        means = [_mean_cell(score) for score in here.values()]
        rows.append([head + arrows[better], *means, *(_cell(here[arm]) for arm in compared)])
    num = max(s.difference.num_pairs for s in scores if s.difference is not None)
    note = (
        f"- Means over seeds; differences are paired by seed, up to {num} pairs, with their 95 % "
        "interval (Student's t) and the p of an exact sign-flip test, which cannot be below "
        f"{least_p_value(num):.3g} here. Rows of a task that all models read are not drawn anew, "
        "so the interval speaks of other seeds, not of other questions."
    )
    return "\n".join([*padded_lines(rows), "", note])


def groups_as_json(scores: Sequence[GroupScore]) -> list[dict[str, Any]]:
    """Return scores as plain JSON types."""
    return [asdict(score) for score in scores]


def _mean_cell(score: GroupScore | None) -> str:
    return "-" if score is None else _number(score.mean.value)


def _cell(score: GroupScore | None) -> str:
    if score is None or score.difference is None:
        return "-"
    d = score.difference
    if d.low is None or d.high is None:
        return f"{_number(d.mean, sign='+')} (1 seed)"
    ends = f"{_number(d.low, sign='+')} to {_number(d.high, sign='+')}"
    return f"{_number(d.mean, sign='+')} ({ends}; p {d.p_value:.3g})"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2e}" if abs(value) >= 1000 else f"{value:{sign}.4f}"

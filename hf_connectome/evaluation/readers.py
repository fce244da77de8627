"""Readings of single people averaged into times of words, and how reliable the averages are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_connectome.errors import DataError

if TYPE_CHECKING:
    from hf_connectome.evaluation.columns import Array

NUM_SPLITS = 20


@dataclass
class Readings:
    """Rows of a table of times, in its own order."""

    words: list[str]
    items: list[str]
    places: list[int]
    times: Array

    def keys(self) -> list[tuple[str, int]]:
        """Per row, its item and position."""
        return list(zip(self.items, self.places, strict=True))


def reliability_of_means(means: Array, deviations: Array, readers: Array) -> float | None:
    """Share of the variance of word means that is not noise of the mean; None if none is left."""
    known = np.isfinite(means)
    noise = float(np.mean(deviations[known] ** 2 / readers[known]))
    variance = float(np.var(means[known], ddof=1)) if known.sum() > 1 else 0.0
    return 1 - noise / variance if variance > noise else None


def averaged(table: Readings, subjects: list[str]) -> tuple[Readings, float | None]:
    """Average over people, and correlate the means of random halves of them."""
    seen: dict[tuple[str, int, str], int] = {}
    for index, (key, subject) in enumerate(zip(table.keys(), subjects, strict=True)):
        first = seen.setdefault((*key, subject), index)
        if first != index:
            raise DataError(
                f"rows {first + 1} and {index + 1} are both the reading of position {key[1]} of "
                f"item {key[0]!r} by subject {subject!r}; expected one. Remove one."
            )
    order = list(dict.fromkeys(table.keys()))
    row_of = {key: row for row, key in enumerate(order)}
    column_of = {subject: column for column, subject in enumerate(sorted(set(subjects)))}
    grid = np.full((len(order), len(column_of)), np.nan)
    words: list[str] = [""] * len(order)
    for index, (key, subject) in enumerate(zip(table.keys(), subjects, strict=True)):
        row = row_of[key]
        if words[row] not in ("", table.words[index]):
            raise DataError(
                f"row {index + 1}: position {key[1]} of item {key[0]!r} is {table.words[index]!r}, "
                f"and {words[row]!r} for another subject; expected one word."
            )
        words[row] = table.words[index]
        grid[row, column_of[subject]] = table.times[index]
    averaged = Readings(words, [k[0] for k in order], [k[1] for k in order], _row_means(grid))
    return averaged, _split_half(grid)


def _row_means(grid: Array) -> Array:
    known = np.isfinite(grid)
    counts = known.sum(1)
    sums = np.where(known, grid, 0.0).sum(1)
    means: Array = np.divide(sums, counts, out=np.full(len(grid), np.nan), where=counts > 0)
    return means


def _split_half(grid: Array) -> float | None:
    found = []
    generator = np.random.default_rng(0)
    for _ in range(NUM_SPLITS):
        shuffled = generator.permutation(grid.shape[1])
        half = len(shuffled) // 2
        left, right = (_row_means(grid[:, part]) for part in (shuffled[:half], shuffled[half:]))
        both = np.isfinite(left) & np.isfinite(right)
        if both.sum() < 3 or min(np.ptp(left[both]), np.ptp(right[both])) == 0:
            return None
        r = float(np.corrcoef(left[both], right[both])[0, 1])
        found.append(2 * r / (1 + r) if r > -1 else -math.inf)
    mean = float(np.mean(found))
    return mean if mean > 0 else None

"""The weakest of many scores by one sweep over them: a sample says between which values they end.

Exact or nothing: what a sample cannot settle is left to the slower ways of selection.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[np.floating[Any]]
    Flags = NDArray[np.bool_]
    Parts = Callable[[str], tuple[Scores, Flags]]

CHUNK = 1 << 17
"""Weights at a time: the scores and flags of so many stay in a core's cache."""
_STRIDE = 127
"""One score of so many is in the sample; prime, so that no column is left out."""
_DEVIATIONS = 3
"""How far the bracket reaches to both sides, in standard deviations of a rank in the sample."""


@dataclass
class Kept:
    """The survivors of one part that stay; of several parts they are packed."""

    above: NDArray[Any]
    """Flags of those that are not below the bracket, as bool or packed bits."""
    values: Scores
    """Scores in the bracket."""
    places: NDArray[np.intp]
    """Where they are; in the end, only of those that are dropped."""
    size: int

    def pack(self) -> None:
        """Hold an eighth of the memory."""
        self.above = np.packbits(self.above, bitorder="little")

    def flags(self) -> Flags:
        """Return one flag a weight."""
        flags = self.above
        if flags.dtype == np.uint8:
            flags = np.unpackbits(flags, count=self.size, bitorder="little").view(np.bool_)
        flags[self.places] = False
        return flags


def chunks(size: int) -> Iterator[slice]:
    """Cut ``size`` weights into slices of CHUNK and a last one of what is left."""
    return (slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK))


def keep_by_bracket(
    parts: Parts, names: Sequence[str], n_drop: int, num_survivors: int
) -> dict[str, Kept] | None:
    """Drop the ``n_drop`` survivors of lowest score over all parts together.

    Args:
        parts: name -> flat scores and flags of the survivors; asked twice for each, never held.
        names: the parts; ties go to the first, then to the lower flat index.
        n_drop: at least 1 and at most ``num_survivors``.
        num_survivors: of all parts.

    Returns:
        Name -> what stays; None where a score is NaN, the sample misled, or an eighth of the
        scores is as good as equal.

    Source:
        Floyd & Rivest 1975, Algorithm 489: a sample brackets the wanted rank; its text was not
        read for this page.
    """
    low, high = _bracket(parts, names, n_drop / num_survivors)
    kept: dict[str, Kept] = {}
    room, left = max(num_survivors // 8, CHUNK), n_drop - num_survivors
    for name in names:
        swept = _sweep(*parts(name), low, high)
        if swept is None:
            return None
        kept[name], num_above = swept
        left += num_above
        room -= len(kept[name].places)
        if room < 0:
            return None
        if len(names) > 1:
            kept[name].pack()
    if not 0 <= left <= sum(len(part.places) for part in kept.values()):
        return None
    weak = _weakest(np.concatenate([part.values for part in kept.values()]), left)
    for part in kept.values():
        own, weak = weak[: len(part.places)], weak[len(part.places) :]
        part.places, part.values = part.places[own], part.values[:0]
    return kept


def _bracket(parts: Parts, names: Sequence[str], fraction: float) -> tuple[Any, Any]:
    """Guess two scores between which the given fraction of all survivors ends."""
    sample = np.sort(np.concatenate([_sample(*parts(name)) for name in names]))
    reach = _DEVIATIONS * (len(sample) * fraction * (1 - fraction)) ** 0.5 + 1
    first, last = (int(fraction * len(sample) + way * reach) for way in (-1, 1))
    infinity = sample.dtype.type(np.inf)
    low = sample[first] if first > 0 else -infinity
    return low, sample[last] if last < len(sample) else infinity


def _sample(scores: Scores, alive: Flags) -> Scores:
    return scores[::_STRIDE][alive[::_STRIDE]]


def _sweep(scores: Scores, alive: Flags, low: Any, high: Any) -> tuple[Kept, int] | None:
    """Flag the survivors from ``low`` on and count them; None where a score is NaN."""
    above = np.empty_like(alive)
    num_above, values, places = 0, [], []
    for chunk in chunks(len(alive)):
        part, flags = scores[chunk], above[chunk]
        if np.isnan(part.max()):
            return None
        np.greater_equal(part, low, out=flags)
        flags &= alive[chunk]
        num_above += int(np.count_nonzero(flags))
        inside = part <= high
        inside &= flags
        found = np.flatnonzero(inside)
        values.append(part[found])
        places.append(found + chunk.start)
    return Kept(above, np.concatenate(values), np.concatenate(places), len(alive)), num_above


def _weakest(values: Scores, count: int) -> Flags:
    """Return flags of the ``count`` lowest; what is equal goes in its order."""
    weak = np.zeros(len(values), np.bool_)
    if count:
        threshold = np.partition(values, count - 1)[count - 1]
        np.less(values, threshold, out=weak)
        ties = np.flatnonzero(values == threshold)
        weak[ties[: count - int(np.count_nonzero(weak))]] = True
    return weak

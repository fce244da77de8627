"""Where names stand beside the points they name: near them, and on nothing else.

Geometry alone, in pixels; nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_NUM_DIRECTIONS = 24
_GAPS = (10, 16, 24, 34, 46, 60, 76, 96, 121, 151, 186, 226)
_NEAR = 12.0
"""Pixels; places nearer than that are equally near."""
_CROWD = 90.0
_COST_OF_A_LINE, _COST_OF_A_CROSSING, _COST_OF_AN_OVERLAP = 15.0, 60.0, 10_000.0


@dataclass(frozen=True)
class Box:
    """An upright rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, centre: Point, width: float, height: float) -> Box:
        """Return the box with this centre."""
        (x, y), half = centre, (width / 2, height / 2)
        return cls(x - half[0], y - half[1], x + half[0], y + half[1])

    @property
    def centre(self) -> Point:
        """Middle of the box."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlaps(self, other: Box) -> bool:
        """Whether both have a point in common, edges aside."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def inside(self, other: Box) -> bool:
        """Whether no part of it lies outside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )

    def nearest(self, point: Point) -> Point:
        """Return the point of the box that is nearest to one outside."""
        return (
            min(max(point[0], self.left), self.right),
            min(max(point[1], self.bottom), self.top),
        )


def place_labels(
    sizes: Sequence[tuple[float, float]],
    anchors: Sequence[Point],
    *,
    bounds: Box,
    obstacles: Sequence[Box] = (),
    lines: Sequence[Point] = (),
) -> list[Box]:
    """Place one label for each anchor; the same input always gives the same places.

    One after the other, those in a crowd first, each takes the cheapest of a fixed set of places:
    near, off the lines, not behind another's leader. Labels overlap only where no place is free.

    Args:
        sizes: Width and height of each label.
        anchors: The point that each label names.
        bounds: No label leaves it, unless every place would.
        obstacles: What no label may stand on, such as markers.
        lines: Points along curves that labels should rather not stand on.
    """
    placed: dict[int, Box] = {}
    for index in sorted(range(len(anchors)), key=lambda i: (-_neighbours(anchors, i), i)):
        leaders = [(anchors[i], box.nearest(anchors[i])) for i, box in placed.items()]
        taken = list(placed.values())
        surroundings = _Surroundings(bounds, taken, [*taken, *obstacles], leaders, lines)
        placed[index] = surroundings.cheapest(anchors[index], sizes[index])
    return [placed[index] for index in range(len(anchors))]


@dataclass(frozen=True)
class _Surroundings:
    """What one label has to keep clear of."""

    bounds: Box
    labels: Sequence[Box]
    solid: Sequence[Box]
    """Labels and obstacles."""
    leaders: Sequence[tuple[Point, Point]]
    lines: Sequence[Point]

    def cheapest(self, anchor: Point, size: tuple[float, float]) -> Box:
        """Return the place of least cost; of equals the first, which is right of the anchor."""
        best, least = Box.around(anchor, *size), math.inf
        for gap in _GAPS:
            if least <= gap / 2:  # further out, hardly any place is as near
                break
            for box in _candidates(anchor, size, gap):
                cost = self.cost(box, anchor, least)
                if cost < least:
                    best, least = box, cost
        return best

    def cost(self, box: Box, anchor: Point, most: float) -> float:
        """Weigh a place; as soon as it costs ``most``, what is left is not counted."""
        end = box.nearest(anchor)
        overlaps = sum(map(box.overlaps, self.solid)) + (not box.inside(self.bounds))
        cost = max(math.dist(anchor, end), _NEAR) + _COST_OF_AN_OVERLAP * overlaps
        if cost >= most:
            return cost
        crossed = sum(_crosses(box, *leader) for leader in self.leaders)
        crossed += sum(_crosses(other, anchor, end) for other in self.labels)
        cost += _COST_OF_A_CROSSING * crossed
        if cost >= most:
            return cost
        return cost + _COST_OF_A_LINE * min(sum(_holds(box, point) for point in self.lines), 4)


def _neighbours(anchors: Sequence[Point], index: int) -> int:
    return sum(math.dist(anchors[index], other) < _CROWD for other in anchors)


def _candidates(anchor: Point, size: tuple[float, float], gap: float) -> Iterator[Box]:
    """Give the places in all directions at a gap, right of the anchor first."""
    width, height = size
    for turn in range(_NUM_DIRECTIONS):
        angle = 2 * math.pi * turn / _NUM_DIRECTIONS
        x = anchor[0] + math.cos(angle) * (width / 2 + gap)
        y = anchor[1] + math.sin(angle) * (height / 2 + gap)
        yield Box.around((x, y), width, height)


def _holds(box: Box, point: Point) -> bool:
    return box.left < point[0] < box.right and box.bottom < point[1] < box.top


def _crosses(box: Box, start: Point, end: Point) -> bool:
    """Whether a straight line passes through the box, by points a few pixels apart."""
    num = max(2, int(math.dist(start, end) / 4))
    return any(
        _holds(
            box,
            (
                start[0] + (end[0] - start[0]) * k / num,
                start[1] + (end[1] - start[1]) * k / num,
            ),
        )
        for k in range(num + 1)
    )

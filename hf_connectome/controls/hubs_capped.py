"""No row or column far above the others; what is too much moves where there is room (N9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import log2_binomial, mask_bits
from hf_connectome.controls.places import matrices, rebuilt, shuffled_within, signs_after_moves
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_connectome.connectome import SignedMask
    from hf_connectome.controls.places import Flags

_MOST_MISSES = 16
"""Draws in a row without a free place, after which places are searched instead."""


@register("hubs-capped")
@dataclass(frozen=True)
class HubsCapped(EntryControl):
    """Cap the survivors of rows and of columns at their mean + ``deviations`` standard deviations.

    A line above its cap loses the surplus by lot, rows first; it goes by lot to free places in
    lines below theirs, the more room the likelier. The cap is rounded down but never below the
    mean, so there is room for all, and it follows the matrix: an absolute cap would mean something
    else in every one. In a random mask a line in six is above one deviation, by little.

    Source:
        Romero Chisco 2026 caps the degrees of a fly's connectome at 40, three times its mean, and
        finds it better than the original. Mean + 1 deviation is ours.
    """

    deviations: float = 1.0

    rung = "N9"
    keeps = "survivors of every matrix, negatives of every tensor; all that need not move"
    destroys = "rows and columns above mean + 1 standard deviation of their kind"
    paper = "Romero Chisco 2026, fly-distill (hub cap)"
    citation = "none"

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Cap one parameter."""
        draw = self.draw(name, seed)
        blocks = matrices(entry)
        for block in blocks:
            _cap(block, caps(block, self.deviations), draw)
        return rebuilt(entry, blocks, signs_after_moves(entry, blocks, draw))

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the connectome less the choice of which survivors moved and where to.

        Counted on one draw, and as if any survivor could have moved to any free place, which is
        more choice than there is: a lower bound. Signs count where the survivor stayed.
        """
        blocks, moved = matrices(entry), 0
        for number, block in enumerate(blocks):
            before = block.copy()
            _cap(block, caps(block, self.deviations), generator(0, "bits", self.name, number))
            moved += int(np.count_nonzero(before & ~block))
        num_dead = entry.num_weights - entry.num_survivors
        choice = log2_binomial(entry.num_survivors, moved) + log2_binomial(num_dead, moved)
        stayed = 0 if entry.sign_bits is None else entry.num_survivors - moved
        return max(0.0, mask_bits(entry) - choice) + stayed


def caps(mask: Flags, deviations: float = 1.0) -> tuple[int, int]:
    """Return the most survivors that a row and a column may have.

    Example:
        >>> caps(np.eye(4, dtype=bool) | (np.arange(4) == 0))
        (2, 3)
    """
    row, column = (
        max(math.ceil(degrees.mean()), math.floor(degrees.mean() + deviations * degrees.std()))
        for degrees in (np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0))
    )
    return row, column


def _cap(mask: Flags, most: tuple[int, int], draw: torch.Generator) -> None:
    before = int(np.count_nonzero(mask))
    _thin(mask, most[0], draw)
    _thin(mask.T, most[1], draw)
    _fill(mask, before - int(np.count_nonzero(mask)), most, draw)


def _thin(mask: Flags, most: int, draw: torch.Generator) -> None:
    """Leave every row at most ``most`` of its survivors, by lot."""
    degrees = np.count_nonzero(mask, axis=1)
    hubs = np.flatnonzero(degrees > most)
    sizes, lines = degrees[hubs], mask[hubs]
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lines[lines] = shuffled_within(rank < most, sizes, draw)
    mask[hubs] = lines


def _fill(mask: Flags, num: int, most: tuple[int, int], draw: torch.Generator) -> None:
    """Add ``num`` survivors by lot where row and column have room."""
    row_room = most[0] - np.count_nonzero(mask, axis=1)
    column_room = most[1] - np.count_nonzero(mask, axis=0)
    misses = 0
    while num:
        rows, columns = (_seats(room, num, draw) for room in (row_room, column_room))
        free = ~mask[rows, columns]
        places = np.unique(rows[free] * mask.shape[1] + columns[free])
        rows, columns = np.divmod(places, mask.shape[1])
        mask[rows, columns] = True
        row_room -= np.bincount(rows, minlength=len(row_room))
        column_room -= np.bincount(columns, minlength=len(column_room))
        num -= len(places)
        misses = 0 if len(places) else misses + 1
        if misses == _MOST_MISSES and num:
            _search(mask, row_room, column_room)
            num, misses = num - 1, 0


def _seats(room: NDArray[Any], num: int, draw: torch.Generator) -> NDArray[Any]:
    """Draw ``num`` of the free seats of all lines, and give their lines."""
    seats: NDArray[Any] = np.repeat(np.arange(len(room)), room)
    drawn: NDArray[Any] = seats[torch.randperm(len(seats), generator=draw)[:num].numpy()]
    return drawn


def _search(mask: Flags, row_room: NDArray[Any], column_room: NDArray[Any]) -> None:
    """Add one survivor where no free place joins a row and a column with room.

    Others make way: breadth first, a row takes a free place, the column's other rows give theirs
    up for places elsewhere. As rows times cap and columns times cap both suffice, there is a way.
    """
    to_column = np.full(mask.shape[1], -1)  # row by whose free place a column was reached
    to_row = np.full(mask.shape[0], -2)  # column whose survivor a row may give up; -1: has room
    queue = np.flatnonzero(row_room > 0).tolist()
    to_row[queue] = -1
    for row in queue:
        reached = np.flatnonzero(~mask[row] & (to_column == -1))
        to_column[reached] = row
        open_columns = reached[column_room[reached] > 0]
        if len(open_columns):
            _make_way(mask, int(open_columns[0]), to_row, to_column, row_room, column_room)
            return
        for column in reached:
            owners = np.flatnonzero(mask[:, column] & (to_row == -2))
            to_row[owners] = column
            queue.extend(owners.tolist())
    raise AssertionError("the caps leave no room")


def _make_way(
    mask: Flags,
    column: int,
    to_row: NDArray[Any],
    to_column: NDArray[Any],
    row_room: NDArray[Any],
    column_room: NDArray[Any],
) -> None:
    column_room[column] -= 1
    while column >= 0:
        row = int(to_column[column])
        mask[row, column] = True
        column = int(to_row[row])
        if column >= 0:
            mask[row, column] = False
    row_room[row] -= 1

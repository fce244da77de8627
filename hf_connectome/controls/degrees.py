"""Places redrawn among all that leave every row and column its number of survivors (N3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import balance_bits, margin_bits
from hf_connectome.controls.places import matrices, negatives, rebuilt, shuffled_within

if TYPE_CHECKING:
    from hf_connectome.connectome import SignedMask
    from hf_connectome.controls.places import Flags

SPARE_TRADES = 16
_BLOCK = 1 << 22
"""Weights whose rows trade at once: keeps the working memory small and in cache."""


@register("degrees")
class Degrees(EntryControl):
    """Redraw a mask uniformly among those of equal row and column sums, by global trades.

    In a trade two rows throw together the columns that only one of them has, and deal them out
    again by lot, each as many as it had. In a global trade all rows are paired by lot and trade.
    Every step is as likely as its reverse, and steps lead everywhere, so all masks of these sums
    are equally likely in the end. Each row keeps its multiset of signs, dealt by lot within it.

    Source:
        Strona et al. 2014, A fast and unbiased procedure to randomize ecological binary matrices
        with fixed row and column totals. Carstens et al. 2018, Parallel and I/O-efficient
        randomisation of massive networks using global curveball trades (arXiv:1804.08487).
    """

    rung = "N3"
    keeps = "survivors of every row and every column; the signs of each row as a multiset"
    destroys = "which of the row's columns, and which of them are negative"
    paper = "Strona et al. 2014, A fast and unbiased procedure to randomize ecological binary ..."
    citation = "10.1038/ncomms5114"

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Redraw one parameter."""
        draw = self.draw(name, seed)
        blocks = matrices(entry)
        for block in blocks:
            for _ in range(num_trades(block)):
                _global_trade(block, draw)
        negative = negatives(entry)
        if negative is not None:
            by_row = np.count_nonzero(blocks, axis=2).reshape(-1)
            negative = shuffled_within(negative, by_row, draw)
        return rebuilt(entry, blocks, negative)

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the margins (an approximation, see counting.py) and each row's negatives."""
        negative = negatives(entry)
        if negative is None:
            return margin_bits(entry)
        by_row = np.count_nonzero(matrices(entry), axis=2).reshape(-1)
        before = np.concatenate([[0], np.cumsum(negative, dtype=np.int64)])
        ends = np.cumsum(by_row)
        return margin_bits(entry) + balance_bits(by_row, before[ends] - before[ends - by_row])


def num_trades(mask: Flags) -> int:
    """Return how many global trades mix a matrix: log2 of its survivors, and 16 to spare.

    A trade leaves a row half of what it alone had, so among rows of like sums a weight remembers
    its own start by 2^-t after t of them: log2 of the survivors leaves one to remember in the whole
    matrix. The spare ones are for rows of very unlike sums, and for the one that an odd number
    leaves over: with 8, a test of 8,000 draws tells small such matrices from uniform ones.

    Example:
        >>> num_trades(np.ones((1024, 1024), dtype=bool))
        36
    """
    if min(mask.shape) < 2:
        return 0  # the sums leave no choice
    return SPARE_TRADES + max(1, int(np.count_nonzero(mask))).bit_length() - 1


def _global_trade(mask: Flags, draw: torch.Generator) -> None:
    """Pair the rows by lot (one is left over where their number is odd) and let each pair trade."""
    order = torch.randperm(len(mask), generator=draw).numpy()
    half = len(mask) // 2
    step = max(1, _BLOCK // mask.shape[1])
    for first in range(0, half, step):
        last = min(first + step, half)
        ours, theirs = order[first:last], order[half + first : half + last]
        mine = mask[ours]
        differ = mine ^ mask[theirs]
        mine[differ] = shuffled_within(mine[differ], np.count_nonzero(differ, axis=1), draw)
        mask[theirs] ^= mask[ours] ^ mine  # what one row gave, the other has
        mask[ours] = mine

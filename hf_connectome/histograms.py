"""The weakest of scores that lie on several processes: small histograms travel, no score does.

Works for any scores, on one process too; brackets.py is faster where few scores are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.brackets import Kept, chunks
from hf_connectome.errors import ScopeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_connectome.brackets import Flags, Parts, Scores

    Counts = NDArray[np.int64]
    Keys = NDArray[np.uint32]

_HALF = 16
"""Bits of a score that one histogram counts."""


class Ranks:
    """The processes that each hold some rows of every parameter, in the order of the rows."""

    def __init__(self, group: Any = None, device: torch.device | None = None) -> None:
        """Take the process group and where its collectives work; without a group, this process."""
        self._group, self._device = group, device
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.count = 1 if group is None else torch.distributed.get_world_size(group)

    def total(self, counts: Any) -> Any:
        """Return the sum over the processes (a collective call)."""
        counts = np.asarray(counts)
        if self._group is None:
            return counts
        tensor = torch.from_numpy(counts).to(self._device)
        torch.distributed.all_reduce(tensor, group=self._group)
        return tensor.cpu().numpy()

    def share(self, available: Counts, wanted: int) -> Counts:
        """Share ``wanted`` among parts and, within a part, processes: who comes first, first."""
        table = np.zeros((len(available), self.count), np.int64)
        table[:, self.rank] = available
        table = self.total(table)
        before = (np.cumsum(table) - table.reshape(-1)).reshape(table.shape)
        shares: Counts = np.clip(wanted - before, 0, table)[:, self.rank]
        return shares


ALONE = Ranks()


def keep_by_histograms(
    parts: Parts, names: Sequence[str], n_drop: int, ranks: Ranks = ALONE
) -> dict[str, Kept]:
    """Drop the ``n_drop`` survivors of lowest score over all parts of all processes.

    Args:
        parts: name -> this process's flat scores (float32) and flags of the survivors; asked five
            times for each, never held.
        names: the parts, the same on all processes; ties go to the first, within it to the lower
            rank, then to the lower flat index.
        n_drop: at most the survivors of all.
        ranks: the processes.

    Returns:
        Name -> what stays of this process's weights.

    Raises:
        ScopeError: a score of a survivor is NaN, on any process.
    """

    def keys() -> Iterator[Keys]:
        for name in names:
            yield from _keys(*parts(name))

    _check_numbers(parts, names, ranks)
    high, before = _bucket((k >> np.uint32(_HALF) for k in keys()), n_drop, ranks)
    low, before_low = _bucket(
        (k[k >> np.uint32(_HALF) == high] & np.uint32(0xFFFF) for k in keys()),
        n_drop - before,
        ranks,
    )
    threshold = np.uint32(high << _HALF | low)
    ties = np.array(
        [sum(np.count_nonzero(k == threshold) for k in _keys(*parts(n))) for n in names]
    )
    own = ranks.share(ties, n_drop - before - before_low)
    return {n: _kept(*parts(n), threshold, int(t)) for n, t in zip(names, own, strict=True)}


def _check_numbers(parts: Parts, names: Sequence[str], ranks: Ranks) -> None:
    found = [any(np.isnan(some).any() for some in _survivors(*parts(name))) for name in names]
    for name, processes in zip(names, ranks.total(np.array(found, np.int64)), strict=True):
        if processes:
            raise ScopeError(f"{name!r} has NaN scores on survivors; the weights have diverged.")


def _survivors(scores: Scores, alive: Flags) -> Iterator[Scores]:
    return (scores[chunk][alive[chunk]] for chunk in chunks(len(alive)))


def _keys(scores: Scores, alive: Flags) -> Iterator[Keys]:
    return map(_sortable, _survivors(scores, alive))


def _bucket(halves: Iterable[Keys], rank: int, ranks: Ranks) -> tuple[int, int]:
    """Find the 16-bit bucket of the ``rank``-th smallest value, and how many come before it."""
    counts = np.zeros(1 << _HALF, dtype=np.int64)
    for half in halves:
        counts += np.bincount(half, minlength=1 << _HALF)
    counts = ranks.total(counts)
    cumulative = np.cumsum(counts)
    bucket = int(np.searchsorted(cumulative, rank))
    return bucket, int(cumulative[bucket] - counts[bucket])


def _kept(scores: Scores, alive: Flags, threshold: np.uint32, num_ties: int) -> Kept:
    """Keep what is above the threshold, and of what equals it all but the first ``num_ties``."""
    bits = []
    for chunk in chunks(len(alive)):
        flags = alive[chunk].copy()
        keys = _sortable(scores[chunk])
        flags &= keys >= threshold
        ties = np.flatnonzero(flags & (keys == threshold))[:num_ties]
        flags[ties] = False
        num_ties -= len(ties)
        bits.append(np.packbits(flags, bitorder="little"))
    packed = np.concatenate(bits) if bits else np.zeros(0, np.uint8)
    return Kept(packed, scores[:0], np.zeros(0, np.intp), len(alive))


def _sortable(scores: Scores) -> Keys:
    """Map float32 to uint32 so that the order of the values is the order of the integers."""
    bits = (scores + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0: they tie
    flip = np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return bits ^ flip

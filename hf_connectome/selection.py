"""From scores to survivors: the only place that ranks weights.

Counts are exact for any tie pattern and the result depends on no device, thread or parameter order.
What the scores mean is not known here (criteria/), nor how many to drop (schedule.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_connectome.errors import ScopeError
from hf_connectome.scope import output_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Scores = NDArray[np.float32]
    Flags = NDArray[np.bool_]


def keep(score: Tensor, mask: Tensor, n_drop: int, *, name: str = "parameter") -> Tensor:
    """Drop exactly ``n_drop`` survivors of lowest score.

    Ties go to the lower flat index, so the result does not depend on the device. Scores are
    compared in float32 (float64 scores in float64).

    Args:
        score: shape of the parameter, finite on survivors; higher is kept.
        mask: bool, same shape, True = survivor.
        n_drop: how many survivors lose their place, at least 0.
        name: what to call the parameter in an error.

    Returns:
        bool, same shape: a subset of ``mask`` with ``n_drop`` fewer True.

    Raises:
        ScopeError: ``n_drop`` exceeds the survivors, shapes differ, or a score is NaN.

    Source:
        Ours: the published code compares with ``<`` against the k-th smallest value, which drops
        k - 1 weights, and none at all when all survivors are equal.

    Example:
        >>> import torch
        >>> keep(torch.tensor([3.0, 1.0, 1.0, 2.0]), torch.ones(4, dtype=torch.bool), 1).tolist()
        [True, False, True, True]
    """
    flat = _scores(score, mask, name)
    alive = _flags(mask)
    num_survivors = int(np.count_nonzero(alive))
    _check_count(n_drop, num_survivors, name)
    candidates = flat[alive]
    _check_numbers(candidates, name)
    kept = alive.copy()
    if n_drop:
        candidates.partition(n_drop - 1)
        threshold = candidates[n_drop - 1]
        kept &= flat >= threshold
        _drop_first_ties(kept, flat, threshold, num_survivors - n_drop)
    return torch.from_numpy(kept.reshape(tuple(mask.shape))).to(mask.device)


def keep_per_row(
    score: Tensor, mask: Tensor, n_drop: int, *, orientation: str, name: str = "parameter"
) -> Tensor:
    """Drop exactly ``n_drop`` survivors, the weakest of each output row.

    All rows end with equally many survivors, as far as they have them; where that leaves a
    remainder, later rows keep one more. Ties within a row go to the lower flat index.

    Args:
        score: as in :func:`keep`; compared within a row only.
        mask: bool, same shape.
        n_drop: how many survivors lose their place in all.
        orientation: how the parameter is stored, which says what a row is (scope.output_rows).
        name: what to call the parameter in an error.

    Returns:
        bool, same shape: a subset of ``mask`` with ``n_drop`` fewer True.

    Raises:
        ScopeError: as :func:`keep`.

    Source:
        Sun et al. 2023, Wanda: weights are compared within each output.

    Example:
        >>> score, everything = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2) > 0
        >>> keep_per_row(score, everything, 2, orientation="out_in").tolist()
        [[False, True], [False, True]]
    """
    flat, alive = _scores(score, mask, name), _flags(mask)
    places = np.flatnonzero(alive)
    _check_count(n_drop, len(places), name)
    _check_numbers(flat[places], name)
    rows = output_rows(mask.shape, orientation).numpy().reshape(-1)[places]
    order = np.lexsort((flat[places], rows))  # stable: ties stay in flat order
    per_row = np.bincount(rows)
    starts = np.cumsum(per_row) - per_row
    dropped = per_row - _evenly(per_row, len(places) - n_drop)
    rank = np.arange(len(places)) - starts[rows[order]]
    kept = alive.copy()
    kept[places[order[rank < dropped[rows[order]]]]] = False
    return torch.from_numpy(kept.reshape(tuple(mask.shape))).to(mask.device)


def _evenly(available: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """Share ``total`` among rows, at most ``available`` in each; a remainder goes to later rows."""
    levels = range(int(available.max(initial=0)) + 1)
    level = bisect_right(levels, total, key=lambda n: int(np.minimum(available, n).sum())) - 1
    shares = np.minimum(available, level)
    more = np.flatnonzero(available > level)
    shares[more[len(more) - (total - int(shares.sum())) :]] += 1
    return shares


def keep_globally(
    score_of: Callable[[str], Tensor],
    masks: Mapping[str, Tensor],
    n_drop: int,
    *,
    min_survivors: int = 1,
) -> dict[str, Tensor]:
    """Drop exactly ``n_drop`` survivors of lowest score over all parameters together.

    Nothing is concatenated: two histograms over the bits of the scores find the threshold, and
    one parameter's scores are in memory at a time (``score_of`` is called four times a name).
    Ties go to the parameter first in sorted name order, then to the lower flat index.

    Args:
        score_of: name -> scores of that parameter, as in :func:`keep`; compared in float32.
        masks: name -> bool mask.
        n_drop: how many survivors lose their place in all.
        min_survivors: each parameter keeps at least so many of its best weights (or all it has).

    Returns:
        name -> bool mask; together ``n_drop`` fewer True than ``masks``.

    Raises:
        ScopeError: the floor leaves fewer than ``n_drop`` weights to drop, or a score is NaN.
    """
    names = sorted(masks)
    candidates = {name: _candidates(score_of, masks[name], name, min_survivors) for name in names}
    _check_count(n_drop, sum(int(c.sum()) for c in candidates.values()), "all parameters together")
    if n_drop == 0:
        return {name: masks[name].clone() for name in names}

    def keys(name: str) -> NDArray[np.uint32]:
        score = score_of(name).to(torch.float32)
        return _sortable(_scores(score, masks[name], name)[candidates[name]])

    # The n_drop-th smallest key, its high half first, then its low half among equal high halves.
    high, before = _bucket(((keys(name) >> 16) for name in names), n_drop)
    low, before_low = _bucket(
        ((k[(k >> 16) == high] & 0xFFFF) for k in map(keys, names)), n_drop - before
    )
    threshold = np.uint32((high << 16) | low)
    ties_to_drop = n_drop - before - before_low
    kept = {}
    for name in names:
        key = keys(name)
        drop = key < threshold
        ties = np.flatnonzero(key == threshold)[:ties_to_drop]
        drop[ties] = True
        ties_to_drop -= len(ties)
        flat = _flags(masks[name]).copy()
        flat[np.flatnonzero(candidates[name])[drop]] = False
        kept[name] = torch.from_numpy(flat.reshape(tuple(masks[name].shape)))
        kept[name] = kept[name].to(masks[name].device)
    return kept


def keep_rows(
    score: Tensor, mask: Tensor, num_kept: int | Tensor, *, name: str = "parameter"
) -> Tensor:
    """Keep exactly so many of the best survivors of every row.

    Ties go to the lower column, as in :func:`keep`.

    Args:
        score: ``(R, C)`` float, finite on survivors; higher is kept.
        mask: bool, same shape, True = survivor.
        num_kept: survivors left in each row, one number or ``(R,)`` integers.
        name: what to call the parameter in an error.

    Returns:
        bool, same shape: a subset of ``mask`` with ``num_kept`` True in every row.

    Raises:
        ScopeError: a row has fewer survivors, or a score is NaN.

    Example:
        >>> import torch
        >>> score = torch.tensor([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
        >>> keep_rows(score, torch.ones(2, 4, dtype=torch.bool), 2).int().tolist()
        [[1, 0, 0, 1], [0, 0, 1, 1]]
    """
    values = _scores(score, mask, name).reshape(tuple(mask.shape))
    alive = _flags(mask).reshape(values.shape)
    _check_numbers(values[alive], name)
    wanted = np.broadcast_to(np.asarray(num_kept, dtype=np.int64), (len(values),))
    found = np.count_nonzero(alive, axis=1)
    if short := np.flatnonzero((wanted < 0) | (wanted > found)).tolist():
        raise ScopeError(
            f"{name!r}: cannot keep {wanted[short[0]]} weights of row {short[0]}, which has "
            f"{found[short[0]]} survivors. Keep fewer in each row."
        )
    # The dead first, then the weakest; what is equal stays in its order.
    order = np.lexsort((values, alive), axis=1)
    kept = np.zeros_like(alive)
    last = np.arange(values.shape[1]) >= (values.shape[1] - wanted)[:, None]
    np.put_along_axis(kept, order, last, axis=1)
    return torch.from_numpy(kept).to(mask.device)


def _candidates(
    score_of: Callable[[str], Tensor], mask: Tensor, name: str, min_survivors: int
) -> Flags:
    """Return the flat survivors that may be dropped: all but the best ``min_survivors``."""
    alive = _flags(mask)
    num_free = max(int(np.count_nonzero(alive)) - min_survivors, 0)
    return alive & ~_flags(keep(score_of(name).to(torch.float32), mask, num_free, name=name))


def _drop_first_ties(kept: Flags, flat: Scores, threshold: float, target: int) -> None:
    """Clear the lowest flat indices equal to ``threshold`` until ``target`` flags are left."""
    surplus = int(np.count_nonzero(kept)) - target
    if surplus:
        ties = np.flatnonzero(kept & (flat == threshold))
        kept[ties[:surplus]] = False


def _bucket(parts: object, rank: int) -> tuple[int, int]:
    """Find the 16-bit bucket of the ``rank``-th smallest value, and how many come before it."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for part in parts:  # type: ignore[attr-defined]
        counts += np.bincount(part, minlength=1 << 16)
    cumulative = np.cumsum(counts)
    bucket = int(np.searchsorted(cumulative, rank))
    return bucket, int(cumulative[bucket] - counts[bucket])


def _sortable(score: Scores) -> NDArray[np.uint32]:
    """Map float32 to uint32 so that the order of the values is the order of the integers."""
    bits = (score + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0: they tie
    flip = np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return bits ^ flip


def _scores(score: Tensor, mask: Tensor, name: str) -> Scores:
    if score.shape != mask.shape:
        raise ScopeError(
            f"{name!r}: the scores are {tuple(score.shape)} but the mask is {tuple(mask.shape)}."
        )
    dtype = torch.float64 if score.dtype == torch.float64 else torch.float32
    flat: Scores = score.detach().to("cpu", dtype).contiguous().view(-1).numpy()
    return flat


def _flags(mask: Tensor) -> Flags:
    flat: Flags = mask.detach().cpu().contiguous().view(-1).numpy()
    return flat


def _check_numbers(scores: Scores, name: str) -> None:
    if np.isnan(scores).any():
        raise ScopeError(f"{name!r} has NaN scores on survivors; the weights have diverged.")


def _check_count(n_drop: int, available: int, name: str) -> None:
    if not 0 <= n_drop <= available:
        raise ScopeError(
            f"cannot drop {n_drop} weights of {name!r}: {available} may be dropped. Use a smaller "
            "prune_fraction, fewer generations or a lower floor."
        )

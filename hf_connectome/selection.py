"""From scores to survivors: the only place that ranks weights.

Counts are exact for any tie pattern and the result depends on no device, thread or parameter order.
What the scores mean is not known here (criteria/), nor how many to drop (schedule.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_connectome.brackets import chunks, keep_by_bracket
from hf_connectome.errors import ScopeError
from hf_connectome.histograms import ALONE, Ranks, keep_by_histograms
from hf_connectome.scope import output_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hf_connectome.brackets import Flags, Kept, Parts, Scores


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
    swept = None
    if n_drop:
        swept = keep_by_bracket(lambda _: (flat, alive), [name], n_drop, num_survivors)
    kept = _keep(flat, alive, n_drop, name) if swept is None else swept[name].flags()
    return torch.from_numpy(kept.reshape(tuple(mask.shape))).to(mask.device)


def _keep(flat: Scores, alive: Flags, n_drop: int, name: str) -> Flags:
    """Do the same whatever the scores are; slower."""
    candidates = flat[alive]
    _check_numbers(candidates, name)
    kept = alive.copy()
    if n_drop:
        candidates.partition(n_drop - 1)
        threshold = candidates[n_drop - 1]
        num_kept = len(candidates) - n_drop
        del candidates
        kept &= flat >= threshold
        _drop_first_ties(kept, flat, threshold, num_kept)
    return kept


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
    ranks: Ranks = ALONE,
) -> Mapping[str, Tensor]:
    """Drop exactly ``n_drop`` survivors of lowest score over all parameters together.

    One parameter's scores are in memory at a time: ``score_of`` is called twice a name, and
    five times more where many scores are equal; all of that again where the floor bites.
    Ties go to the parameter first in sorted name order, then to the lower flat index.

    Args:
        score_of: name -> scores of that parameter, as in :func:`keep`; compared in float32.
        masks: name -> bool mask.
        n_drop: how many survivors lose their place in all.
        min_survivors: each parameter keeps at least so many of its best weights (or all it has).
        ranks: the processes, if scores and masks are this one's rows of the parameters (a
            collective call then, and all get what one process would get from the whole).

    Returns:
        Name -> bool mask, unpacked when asked for; together ``n_drop`` fewer True than ``masks``.

    Raises:
        ScopeError: the floor leaves fewer than ``n_drop`` weights to drop, or a score is NaN.
    """
    names = sorted(masks)

    def part(name: str) -> tuple[Scores, Flags]:
        score = score_of(name).to(torch.float32)
        return _scores(score, masks[name], name), _flags(masks[name])

    alive = dict(zip(names, _count((masks[n] for n in names), ranks), strict=True))
    free = sum(max(count - min_survivors, 0) for count in alive.values())
    _check_count(n_drop, free, "all parameters together")
    return Masks(_rank_together(part, alive, n_drop, min_survivors, ranks), masks)


def _rank_together(
    part: Parts, alive: Mapping[str, int], n_drop: int, floor: int, ranks: Ranks
) -> dict[str, Kept]:
    """Rank without the floor; parts that fall below it are done anew, each by itself."""
    names, kept = list(alive), None
    if n_drop and ranks is ALONE:
        kept = keep_by_bracket(part, names, n_drop, sum(alive.values()))
    if kept is None:
        kept = keep_by_histograms(part, names, n_drop, ranks)
    left = ranks.total([np.count_nonzero(kept[name].flags()) for name in names])
    free = {name: max(alive[name] - floor, 0) for name in names}
    # A list: all processes must go through it in the same order.
    short = [n for n, count in zip(names, left, strict=True) if alive[n] - count > free[n]]
    for name in short:
        kept |= _rank_together(part, {name: alive[name]}, free[name], 0, ranks)
    if short:
        others = {name: count for name, count in alive.items() if name not in short}
        n_drop -= sum(free[name] for name in short)
        kept |= _rank_together(part, others, n_drop, floor, ranks)
    return kept


class Masks(Mapping[str, "Tensor"]):
    """Masks by name, held as packed bits and unpacked when asked for."""

    def __init__(self, kept: Mapping[str, Kept], like: Mapping[str, Tensor]) -> None:
        """Take flags and, for shapes and devices, the masks that they are subsets of."""
        self._kept, self._like = kept, like

    def __getitem__(self, name: str) -> Tensor:
        """Return a bool tensor."""
        like = self._like[name]
        return torch.from_numpy(self._kept[name].flags().reshape(tuple(like.shape))).to(like.device)

    def __iter__(self) -> Iterator[str]:
        """Give the names in sorted order."""
        return iter(sorted(self._kept))

    def __len__(self) -> int:
        """Count the masks."""
        return len(self._kept)


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


def _drop_first_ties(kept: Flags, flat: Scores, threshold: float, target: int) -> None:
    """Clear the lowest flat indices equal to ``threshold`` until ``target`` flags are left."""
    surplus = int(np.count_nonzero(kept)) - target
    for chunk in chunks(len(kept)):
        if not surplus:
            return
        ties = np.flatnonzero(kept[chunk] & (flat[chunk] == threshold))[:surplus]
        kept[chunk][ties] = False
        surplus -= len(ties)


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


def _count(masks: Iterable[Tensor], ranks: Ranks) -> list[int]:
    """Count the survivors of each mask, over all processes."""
    counts: list[int] = ranks.total([np.count_nonzero(_flags(mask)) for mask in masks]).tolist()
    return counts


def _check_numbers(scores: Scores, name: str) -> None:
    if np.isnan(scores).any():
        raise ScopeError(f"{name!r} has NaN scores on survivors; the weights have diverged.")


def _check_count(n_drop: int, available: int, name: str) -> None:
    if not 0 <= n_drop <= available:
        raise ScopeError(
            f"cannot drop {n_drop} weights of {name!r}: {available} may be dropped. Use a smaller "
            "prune_fraction, fewer generations or a lower floor."
        )

"""How a density goes from its first to its last value while training goes on; plain formulas."""

from __future__ import annotations

import math


def cubic(progress: float, first: float, last: float) -> float:
    """Fall fast, then ever slower: ``last + (first - last) (1 - t)^3``.

    Args:
        progress: t, in [0, 1].
        first: density at t = 0.
        last: density at t = 1.

    Source:
        Formula as in Zhu & Gupta 2017 (arXiv:1710.01878), used by Liu et al. 2021, GraNet
        (arXiv:2106.10404); their texts were not read for this module.

    Example:
        >>> [round(cubic(t, 0.5, 0.1), 4) for t in (0.0, 0.5, 1.0)]
        [0.5, 0.15, 0.1]
    """
    return last + (first - last) * (1.0 - progress) ** 3


def sigmoid(progress: float, first: float, last: float, steepness: float = 6.0) -> float:
    """Fall slowly, then fast, then slowly: a logistic curve that meets both ends exactly.

    Args:
        progress: t, in [0, 1].
        first: density at t = 0.
        last: density at t = 1.
        steepness: k; the curve is the logistic function between -k and k.

    Source:
        CHTss, arXiv:2501.19107, as published in its code: k = 6.

    Example:
        >>> [round(sigmoid(t, 0.5, 0.1), 4) for t in (0.0, 0.5, 1.0)]
        [0.5, 0.3, 0.1]
    """

    def logistic(t: float) -> float:
        return 1.0 / (1.0 + math.exp(-steepness * (2.0 * t - 1.0)))

    low, high = logistic(0.0), logistic(1.0)
    return first + (last - first) * (logistic(progress) - low) / (high - low)

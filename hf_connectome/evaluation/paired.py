"""Statistics for arms that are paired by seed, and for curves of loss over steps.

Not for arms whose seeds differ: what two runs share (data, order, initial values) is the pairing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_connectome.errors import ConfigError

MOST_EXACT_PAIRS = 16
_NUM_RANDOM_FLIPS = 65536


@dataclass(frozen=True)
class PairedDifference:
    """The mean of ``ours - theirs`` over pairs; negative means that ours is lower.

    Attributes:
        mean: Mean difference.
        low: Lower end of the 95 % interval, None for one pair.
        high: Upper end of the 95 % interval, None for one pair.
        num_pairs: Number of seeds.
        p_value: Of the two-sided sign-flip test, in (0, 1].
    """

    mean: float
    low: float | None
    high: float | None
    num_pairs: int
    p_value: float


@dataclass(frozen=True)
class Estimate:
    """A number over seeds, with the interval that its method gives.

    Attributes:
        value: The estimate itself.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end of the 95 % interval, None where there is none.
        num_seeds: Number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    num_seeds: int


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Compare two arms seed by seed.

    Args:
        ours: One finite number per seed.
        theirs: The same seeds in the same order.

    Raises:
        ConfigError: Unequal lengths, no pair, or a number that is not finite.

    Source: Student 1908, "The probable error of a mean", Biometrika 6: the interval of the mean of
    the differences; the test is ``sign_flip_p_value``.

    Example:
        >>> result = paired_difference([3.0, 3.2, 3.1], [3.5, 3.6, 3.7])
        >>> round(result.mean, 3), round(result.low, 3), round(result.high, 3), result.p_value
        (-0.5, -0.748, -0.252, 0.25)
    """
    if len(ours) != len(theirs):
        raise ConfigError(
            f"{len(ours)} values are paired with {len(theirs)}; expected one of each per seed."
        )
    _check_finite("ours", ours)
    _check_finite("theirs", theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = t_interval(differences) or (None, None)
    return PairedDifference(
        mean=math.fsum(differences) / len(differences),
        low=low,
        high=high,
        num_pairs=len(differences),
        p_value=sign_flip_p_value(differences),
    )


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Give the 95 % interval of the mean, None for one value.

    ``mean -+ t(0.975, n - 1) * s / sqrt(n)``, with s the standard deviation over n - 1.

    Args:
        values: Finite and independent.

    Raises:
        ConfigError: No value, or one that is not finite.

    Source: Student 1908, "The probable error of a mean", Biometrika 6.
    """
    _check_finite("values", values)
    num = len(values)
    if num == 1:
        return None
    mean = math.fsum(values) / num
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
    half = t_quantile(0.975, num - 1) * math.sqrt(variance / num)
    return mean - half, mean + half


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Give the mean with its ``t_interval``.

    Args:
        values: Finite and independent, one per seed.

    Raises:
        ConfigError: No value, or one that is not finite.
    """
    low, high = t_interval(values) or (None, None)
    return Estimate(math.fsum(values) / len(values), low, high, len(values))


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """Give the mean of ``above`` in units of the mean of ``below``, with its 95 % interval.

    The interval holds each ratio r for which the t interval of ``above - r * below`` holds 0; so it
    agrees with ``t_interval`` on whether 0 and 1 lie inside. It has no ends where the t interval of
    ``below`` itself holds 0: then any ratio is possible.

    Args:
        above: One finite number per seed.
        below: The same seeds in the same order.

    Returns:
        The ratio, None unless the mean of ``below`` is positive.

    Raises:
        ConfigError: Unequal lengths, no pair, or a number that is not finite.

    Source: Fieller 1954, "Some problems in interval estimation", J. R. Stat. Soc. B 16, with n - 1
    degrees of freedom.

    Example:
        >>> share = ratio_of_means([0.1, 0.1, 0.1], [0.4, 0.5, 0.6])
        >>> round(share.value, 3), round(share.low, 3), round(share.high, 3)
        (0.2, 0.134, 0.397)
    """
    if len(above) != len(below):
        raise ConfigError(
            f"{len(above)} values are divided by {len(below)}; expected one of each per seed."
        )
    _check_finite("above", above)
    _check_finite("below", below)
    num = len(above)
    mean_above, mean_below = math.fsum(above) / num, math.fsum(below) / num
    if mean_below <= 0:
        return None
    value = mean_above / mean_below
    if num == 1:
        return Estimate(value, None, None, num)
    factor = t_quantile(0.975, num - 1) ** 2 / (num * (num - 1))

    def spread(left: Sequence[float], right: Sequence[float]) -> float:
        middles = math.fsum(left) / num, math.fsum(right) / num
        pairs = zip(left, right, strict=True)
        return factor * math.fsum((a - middles[0]) * (b - middles[1]) for a, b in pairs)

    # The ends are the roots of (mean_above - r mean_below)^2 = t^2 * squared error of the same.
    square = mean_below**2 - spread(below, below)
    middle = mean_above * mean_below - spread(above, below)
    rest = mean_above**2 - spread(above, above)
    if square <= 0:
        return Estimate(value, None, None, num)
    half = math.sqrt(max(0.0, middle**2 - square * rest))
    return Estimate(value, (middle - half) / square, (middle + half) / square, num)


def t_quantile(probability: float, degrees: int) -> float:
    """Invert Student's t distribution.

    Args:
        probability: In (0, 1).
        degrees: Degrees of freedom, 1 or more.

    Returns:
        The t below which ``probability`` lies, to about 12 digits.

    Raises:
        ConfigError: An argument outside its range.

    Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4: finite sums, exact for a whole number of
    degrees; solved by bisection over the angle ``atan(t / sqrt(degrees))``.

    Example:
        >>> round(t_quantile(0.975, 7), 3)
        2.365
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ConfigError(
            f"probability {probability} with {degrees} degrees of freedom; "
            "expected a probability between 0 and 1 and at least 1 degree."
        )
    central = abs(2 * probability - 1)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _central_probability(middle, degrees) < central:
            low = middle
        else:
            high = middle
    return math.copysign(math.sqrt(degrees) * math.tan(low), probability - 0.5)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| < t) at ``angle = atan(t / sqrt(degrees))``."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Test that the differences are symmetric about 0, two-sided.

    The share of all ``2^n`` ways to flip signs whose ``|sum|`` is at least the observed one; so n
    pairs cannot give less than ``2 / 2^n``. Above 16 pairs, 65536 random flips of a fixed seed, as
    ``(hits + 1) / (flips + 1)``.

    Args:
        differences: One finite number per pair.

    Raises:
        ConfigError: No difference, or one that is not finite.

    Source: Fisher 1935, The Design of Experiments, section 21; for random flips, Phipson & Smyth
    2010, "Permutation P-values should never be zero".
    """
    _check_finite("differences", differences)
    # Sums that are equal in exact arithmetic count as equal.
    least = abs(sum(differences)) - 1e-12 * sum(map(abs, differences))
    if len(differences) <= MOST_EXACT_PAIRS:
        sums = [0.0]
        for difference in differences:
            sums = [s + d for d in (difference, -difference) for s in sums]
        return sum(1 for s in sums if abs(s) >= least) / len(sums)
    source = random.Random(0)
    hits = 0
    for _ in range(_NUM_RANDOM_FLIPS):
        bits = source.getrandbits(len(differences))
        flipped = sum(-d if bits >> i & 1 else d for i, d in enumerate(differences))
        hits += abs(flipped) >= least
    return (hits + 1) / (_NUM_RANDOM_FLIPS + 1)


def least_p_value(num_pairs: int) -> float:
    """Return the smallest ``sign_flip_p_value`` that so many pairs can give.

    Example:
        >>> least_p_value(4), least_p_value(6)
        (0.125, 0.03125)
    """
    if num_pairs > MOST_EXACT_PAIRS:
        return 1 / (_NUM_RANDOM_FLIPS + 1)
    return math.ldexp(2.0, -num_pairs)


def steps_to_target(steps: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Find where a curve first comes down to a target, linear between evaluations.

    Args:
        steps: Increasing.
        losses: One finite loss per step.
        target: A finite loss.

    Returns:
        The step; the first one if the curve starts there or below, None if it never comes.

    Raises:
        ConfigError: Unequal lengths, no step, steps that do not increase, a number not finite.

    Ours: the number of evaluations is the resolution; without interpolation, two arms would differ
    only in multiples of the evaluation interval.

    Example:
        >>> steps_to_target([0, 100, 200], [5.0, 4.0, 3.0], 3.5)
        150.0
    """
    if len(steps) != len(losses):
        raise ConfigError(f"{len(steps)} steps come with {len(losses)} losses; expected as many.")
    _check_finite("steps", steps)
    _check_finite("losses", losses)
    _check_finite("target", [target])
    if any(after <= before for before, after in pairwise(steps)):
        raise ConfigError("steps do not increase; expected one evaluation a step, in order.")
    for index, loss in enumerate(losses):
        if loss <= target:
            if index == 0:
                return float(steps[0])
            before = losses[index - 1]
            share = (before - target) / (before - loss)
            return steps[index - 1] + share * (steps[index] - steps[index - 1])
    return None


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Average curves of (step, loss) over seeds.

    Args:
        curves: One per seed, all over the same steps.

    Raises:
        ConfigError: No curve, or curves over different steps: their mean would jump.

    Example:
        >>> mean_curve([[(0, 5.0), (10, 4.0)], [(0, 6.0), (10, 3.0)]])
        [(0, 5.5), (10, 3.5)]
    """
    if not curves:
        raise ConfigError("there is no curve to average; expected one per seed.")
    grids = [[step for step, _ in curve] for curve in curves]
    for index, grid in enumerate(grids):
        if grid != grids[0]:
            raise ConfigError(
                f"curve {index} has {len(grid)} steps that differ from the {len(grids[0])} of "
                "curve 0. Evaluate every seed at the same steps, and let every run end."
            )
    return [
        (points[0][0], math.fsum(loss for _, loss in points) / len(points))
        for points in zip(*curves, strict=True)
    ]


def _check_finite(name: str, values: Sequence[float]) -> None:
    if not values:
        raise ConfigError(f"{name} is empty; expected at least one number.")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ConfigError(f"{name}[{index}] is {value}; expected a finite number.")

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import (
    Estimate,
    least_p_value,
    mean_curve,
    mean_estimate,
    paired_difference,
    ratio_of_means,
    sign_flip_p_value,
    steps_to_target,
    t_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [
        (0.975, 1, 12.7062047362),
        (0.975, 2, 4.3026527297),
        (0.975, 3, 3.1824463053),
        (0.975, 4, 2.7764451052),
        (0.975, 7, 2.3646242516),
        (0.975, 30, 2.0422724563),
        (0.975, 1000, 1.9623390808),
        (0.95, 5, 2.0150483733),
        (0.025, 3, -3.1824463053),
        (0.5, 6, 0.0),
    ],
)
def test_t_quantile_agrees_with_tables(probability: float, degrees: int, value: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_t_quantile_refuses_what_has_no_answer(probability: float, degrees: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 degree"):
        t_quantile(probability, degrees)


def test_interval_of_four_pairs() -> None:
    result = paired_difference([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0])
    half = 3.1824463053 * math.sqrt(5 / 3) / 2
    assert result.mean == -2.5
    assert result.low == pytest.approx(-2.5 - half)
    assert result.high == pytest.approx(-2.5 + half)
    assert result.num_pairs == 4
    assert result.p_value == 2 / 16


def test_interval_is_none_when_there_is_one_pair() -> None:
    result = paired_difference([1.0], [3.0])
    assert (result.mean, result.low, result.high) == (-2.0, None, None)
    assert (result.num_pairs, result.p_value) == (1, 1.0)
    assert t_interval([1.0]) is None


def test_interval_is_a_point_when_all_differences_are_equal() -> None:
    result = paired_difference([1.0, 2.0], [0.5, 1.5])
    assert (result.mean, result.low, result.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([1.0], [1.0, 2.0], "1 values are paired with 2"),
        ([], [], "ours is empty"),
        ([1.0, math.nan], [1.0, 2.0], r"ours\[1\] is nan; expected a finite number"),
        ([1.0], [math.inf], r"theirs\[0\] is inf"),
    ],
)
def test_error_when_pairs_are_not_pairs(
    ours: list[float], theirs: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        paired_difference(ours, theirs)


@pytest.mark.parametrize(
    ("differences", "p_value"),
    [
        ([1.0, 1.0, 1.0], 2 / 8),
        ([1.0, -1.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([3.0, 1.0, -1.0], 6 / 8),
        ([0.1, 0.2, -0.3], 1.0),
        ([0.1 * k for k in range(1, 17)], 2 / 2**16),
    ],
)
def test_p_value_counts_all_flips(differences: list[float], p_value: float) -> None:
    assert sign_flip_p_value(differences) == p_value


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8))
def test_p_value_is_that_of_enumeration(values: list[int]) -> None:
    flips = list(itertools.product((1, -1), repeat=len(values)))
    sums = [abs(sum(s * v for s, v in zip(flip, values, strict=True))) for flip in flips]
    share = sum(s >= abs(sum(values)) for s in sums) / len(flips)
    assert sign_flip_p_value([float(v) for v in values]) == share
    assert sign_flip_p_value([0.1 * v for v in values]) == share


def test_p_value_of_many_pairs_is_close_repeatable_and_never_zero() -> None:
    assert sign_flip_p_value([1.0] * 40) == 1 / 65537
    values = [1.0] * 13 + [-1.0] * 5
    exact = 2 * sum(math.comb(18, k) for k in range(6)) / 2**18
    assert sign_flip_p_value(values) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p_value(values) == sign_flip_p_value(values)


@pytest.mark.parametrize(
    ("target", "step"),
    [(3.5, 150.0), (4.0, 100.0), (5.0, 0.0), (9.0, 0.0), (3.0, 200.0), (2.9, None)],
)
def test_steps_to_target_interpolates(target: float, step: float | None) -> None:
    assert steps_to_target([0, 100, 200, 300], [5.0, 4.0, 3.0, 3.2], target) == step


def test_steps_to_target_is_the_first_crossing_when_there_are_two() -> None:
    assert steps_to_target([10, 20, 30, 40], [4.0, 2.0, 4.0, 2.0], 3.0) == 15.0


@pytest.mark.parametrize(
    ("steps", "losses", "target", "message"),
    [
        ([0, 1], [1.0], 1.0, "2 steps come with 1 losses"),
        ([], [], 1.0, "steps is empty"),
        ([1, 1], [2.0, 1.0], 1.0, "steps do not increase"),
        ([0, 1], [math.nan, 1.0], 1.0, r"losses\[0\] is nan"),
        ([0, 1], [2.0, 1.0], math.nan, r"target\[0\] is nan"),
    ],
)
def test_steps_to_target_refuses_what_is_no_curve(
    steps: list[float], losses: list[float], target: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        steps_to_target(steps, losses, target)


def test_mean_curve_averages_over_seeds() -> None:
    assert mean_curve([[(0, 5.0), (10, 4.0)], [(0, 6.0), (10, 3.0)]]) == [(0, 5.5), (10, 3.5)]
    assert mean_curve([[(0, 5.0)]]) == [(0, 5.0)]


def test_mean_curve_refuses_curves_over_different_steps() -> None:
    with pytest.raises(ConfigError, match="curve 1 has 2 steps that differ from the 1 of curve 0"):
        mean_curve([[(0, 5.0)], [(0, 5.0), (1, 4.0)]])
    with pytest.raises(ConfigError, match="no curve"):
        mean_curve([])


@pytest.mark.parametrize("num_pairs", [1, 2, 4, 10, 16, 40])
def test_least_p_value_is_that_of_differences_which_all_agree(num_pairs: int) -> None:
    assert least_p_value(num_pairs) == sign_flip_p_value([1.0] * num_pairs)


def test_estimate_is_mean_and_interval() -> None:
    assert mean_estimate([3.0]) == Estimate(3.0, None, None, 1)
    low, high = t_interval([1.0, 2.0, 4.0]) or (None, None)
    assert mean_estimate([1.0, 2.0, 4.0]) == Estimate(7 / 3, low, high, 3)


def test_ratio_of_means_agrees_with_a_calculation_by_hand() -> None:
    """Means 1 and 2, both of variance 10^-4, no covariance; t = 4.30265 for 2 degrees.

    The ends solve (1 - 2r)^2 = k (1 + r^2) with k = t^2 10^-4 / 3.
    """
    above = [1.0, 1.01, 0.99]
    spread = 0.01 / math.sqrt(3)
    below = [2 - 2 * spread, 2 + spread, 2 + spread]
    k = 4.3026527297**2 / 3 / 1e4
    half = math.sqrt(16 - 4 * (4 - k) * (1 - k))
    ratio = ratio_of_means(above, below)
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low == pytest.approx((4 - half) / (2 * (4 - k)))
    assert ratio.high == pytest.approx((4 + half) / (2 * (4 - k)))
    assert ratio.num_seeds == 3


PAIRS = st.lists(
    st.tuples(st.floats(-5, 5, allow_subnormal=False), st.floats(1, 2)), min_size=2, max_size=8
)


@settings(deadline=None)
@given(PAIRS)
def test_ends_of_a_ratio_are_where_the_t_interval_ends_at_zero(
    pairs: list[tuple[float, float]],
) -> None:
    above, below = [a for a, _ in pairs], [b for _, b in pairs]
    ratio = ratio_of_means(above, below)
    below_low, _ = t_interval(below) or (0.0, 0.0)
    assert ratio is not None
    if ratio.low is None or ratio.high is None:
        assert below_low <= 1e-9
        return
    assert below_low > -1e-9
    assert ratio.low <= ratio.value + 1e-9
    assert ratio.value <= ratio.high + 1e-9
    for end in (ratio.low, ratio.high):
        interval = t_interval([a - end * b for a, b in pairs])
        assert interval is not None
        nearest = min(abs(interval[0]), abs(interval[1]))
        assert nearest <= 1e-6 * max(1.0, end**2)


def test_ratio_has_no_ends_when_what_divides_is_not_certain() -> None:
    assert ratio_of_means([1.0], [2.0]) == Estimate(0.5, None, None, 1)
    assert ratio_of_means([1.0, 1.0], [0.1, 3.9]) == Estimate(0.5, None, None, 2)
    assert ratio_of_means([1.0, 1.0], [-1.0, 1.0]) is None
    assert ratio_of_means([1.0, 1.0], [-1.0, -1.0]) is None


def test_ratio_refuses_what_is_not_paired() -> None:
    with pytest.raises(ConfigError, match="2 values are divided by 1"):
        ratio_of_means([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match=r"below\[1\] is nan"):
        ratio_of_means([1.0, 2.0], [1.0, math.nan])

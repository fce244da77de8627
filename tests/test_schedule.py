from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.errors import ConfigError
from hf_connectome.schedule import GeometricSchedule

FRACTIONS = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    ("num_survivors", "expected"),
    [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 1),
        (5, 1),
        (7, 1),
        (8, 2),
        (10, 2),
        (1000, 200),
        (38597376, 7719475),
    ],
)
def test_drop_is_a_fifth_rounded(num_survivors, expected):
    assert GeometricSchedule(0.2, 6).n_drop(num_survivors) == expected


@pytest.mark.parametrize(
    ("num_weights", "expected"),
    [
        (10, [10, 8, 6, 5, 4, 3, 2]),
        (1000, [1000, 800, 640, 512, 410, 328, 262]),
        (1, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_survivors_are_those_of_one_rounded_drop_after_another(num_weights, expected):
    schedule = GeometricSchedule(0.2, 6)
    assert [schedule.survivors_after(num_weights, g) for g in range(7)] == expected


def test_paper_leaves_26_percent_after_six_generations():
    schedule = GeometricSchedule(0.2, 6)
    assert schedule.density_after(0) == 1.0
    assert schedule.density_after(6) == pytest.approx(0.262144)
    assert schedule.survivors_after(124_318_464, 6) / 124_318_464 == pytest.approx(
        0.262144, abs=1e-7
    )


@given(FRACTIONS, st.integers(0, 10**12))
def test_drop_is_exact_and_never_more_than_there_is(prune_fraction, num_survivors):
    n_drop = GeometricSchedule(prune_fraction, 1).n_drop(num_survivors)
    assert isinstance(n_drop, int)
    assert n_drop == round(prune_fraction * num_survivors)
    assert 0 <= n_drop <= num_survivors


@given(FRACTIONS, st.integers(1, 10**9), st.integers(0, 12))
def test_rounding_never_adds_up(prune_fraction, num_weights, generation):
    schedule = GeometricSchedule(prune_fraction, 12)
    survivors = schedule.survivors_after(num_weights, generation)
    nominal = num_weights * schedule.density_after(generation)
    assert abs(survivors - nominal) <= 0.5 / prune_fraction + 1e-6 * num_weights**0.5
    assert survivors <= schedule.survivors_after(num_weights, max(generation - 1, 0))


@pytest.mark.parametrize("prune_fraction", [0.0, 1.0, -0.2, 1.5, float("nan"), float("inf")])
def test_fraction_is_refused_when_it_is_no_part(prune_fraction):
    with pytest.raises(ConfigError, match=f"prune_fraction is {prune_fraction}; expected a number"):
        GeometricSchedule(prune_fraction, 6)


@pytest.mark.parametrize("num_generations", [0, -1])
def test_generations_are_refused_when_there_are_none(num_generations):
    with pytest.raises(ConfigError, match=f"generations is {num_generations}; expected at least 1"):
        GeometricSchedule(0.2, num_generations)

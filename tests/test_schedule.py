from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.schedule import GeometricSchedule, SigmoidSchedule, make_schedule, schedules

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


# ---- between two densities -----------------------------------------------------------------------

BETWEEN = ["one-shot", "linear", "cubic", "sigmoid"]
DENSITIES = st.floats(0.001, 0.999)


def made(name, final_density, num_generations):
    return make_schedule(
        name, num_generations=num_generations, prune_fraction=0.2, final_density=final_density
    )


def test_schedules_are_registered_with_their_sources():
    assert sorted(schedules) == sorted([*BETWEEN, "geometric"])
    assert all(schedules.get(name).paper and schedules.get(name).citation for name in schedules)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one-shot", [10000, 2000, 2000, 2000, 2000]),
        ("linear", [10000, 8000, 6000, 4000, 2000]),
        ("cubic", [10000, 5375, 3000, 2125, 2000]),  # 2000 + 8000 (1 - g / 4)^3
        ("sigmoid", [10000, 9639, 6000, 2361, 2000]),  # logistic(-3) = .04743, (-6) = .00247
        ("geometric", [10000, 6687, 4472, 2991, 2000]),  # 0.2^(1/4) = .66874 of what there was
    ],
)
def test_survivors_are_those_of_a_hand_computation(name, expected):
    schedule = made(name, 0.2, 4)
    assert [schedule.survivors_after(10000, g) for g in range(5)] == expected


@pytest.mark.parametrize("name", list(schedules))
@given(
    final_density=DENSITIES, num_generations=st.integers(1, 12), num_weights=st.integers(1, 10**9)
)
def test_counts_never_rise_and_end_where_they_should(
    name, final_density, num_generations, num_weights
):
    schedule = made(name, final_density, num_generations)
    assert schedule.density_at(0.0) == 1.0
    assert schedule.density_at(1.0) == pytest.approx(final_density, rel=1e-9)
    assert schedule.density_at(-1.0) == schedule.density_at(0.0)
    assert schedule.density_at(2.0) == schedule.density_at(1.0)
    counts = [schedule.survivors_after(num_weights, g) for g in range(num_generations + 1)]
    assert counts[0] == num_weights
    assert counts == sorted(counts, reverse=True)
    assert all(isinstance(count, int) for count in counts)
    if name != "geometric":  # which rounds every drop
        assert counts[-1] == round(schedule.final_density * num_weights)
    alive = num_weights
    for generation in range(1, num_generations + 1):
        alive = schedule.next_survivors(alive, num_weights, generation)
        assert alive == counts[generation]


@pytest.mark.parametrize("name", list(schedules))
@given(one=DENSITIES, other=DENSITIES, fraction=st.floats(0.0, 1.0))
def test_another_end_keeps_the_shape(name, one, other, fraction):
    moved = made(name, one, 5).towards(other)
    assert moved.density_at(fraction) == pytest.approx(made(name, other, 5).density_at(fraction))


@pytest.mark.parametrize("name", BETWEEN)
def test_first_density_may_be_below_1(name):
    schedule = schedules.get(name)(0.1, 1, initial_density=0.5)
    assert (schedule.density_at(0.0), schedule.density_at(1.0)) == (0.5, 0.1)
    assert schedule.next_survivors(30, 100, 1) == 10
    assert schedule.next_survivors(7, 100, 1) == 7  # no weight comes back


def test_sigmoid_is_steep_in_the_middle():
    gentle, steep = (SigmoidSchedule(0.1, steepness=k).density_at(0.4) for k in (1.0, 20.0))
    assert gentle < steep < 1.0
    assert SigmoidSchedule(0.1).density_at(0.5) == pytest.approx(0.55)
    with pytest.raises(ConfigError, match=r"steepness is 0\.0; expected more than 0"):
        SigmoidSchedule(0.1, steepness=0.0)


@pytest.mark.parametrize("name", list(schedules))
@pytest.mark.parametrize("final_density", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_final_density_is_refused_when_it_is_no_part(name, final_density):
    with pytest.raises(ConfigError, match=f"from density 1.0 to final_density {final_density}"):
        made(name, final_density, 4)


@pytest.mark.parametrize("name", BETWEEN)
def test_schedule_is_refused_without_its_end(name):
    with pytest.raises(ConfigError, match=f"pruning_schedule='{name}' needs a final_density"):
        made(name, None, 4)
    with pytest.raises(ConfigError, match="generations is 0; expected at least 1"):
        made(name, 0.5, 0)


def test_unknown_schedule_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown schedule 'cubik'\. Did you mean 'cubic'"):
        made("cubik", 0.5, 4)

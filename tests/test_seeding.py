from __future__ import annotations

import itertools

import pytest
import torch

from hf_connectome.seeding import generator


def draws(*key):
    return torch.randint(0, 2**31, (3,), generator=generator(*key)).tolist()


@pytest.mark.parametrize(
    ("key", "seed", "expected"),
    [
        ((0, "w"), 4332791843462059224, [1819463324, 1139977296, 1814327430]),
        ((1, "w"), 3258149047907194981, [746850022, 1676909107, 1392359317]),
        ((0, "w", "wiring"), 1264608037823420233, [1472590341, 874149446, 1776334363]),
        ((0, "w", "criterion", 3), 4176838717249092455, [1756426942, 1378916148, 1437433814]),
    ],
)
def test_draws_are_the_same_in_every_process_and_release(key, seed, expected):
    # A changed value means that every connectome drawn by seed is another one from now on.
    assert generator(*key).initial_seed() == seed
    assert draws(*key) == expected


def test_every_part_of_the_key_changes_the_draws():
    keys = [
        (0, "w"),
        (1, "w"),
        (0, "v"),
        (0, "w", "wiring"),
        (0, "w", "criterion"),
        (0, "w", "criterion", 0),
        (0, "w", "criterion", 1),
        (0, "1w"),
        (0, "w", "1", "2"),
        (0, "w", "12"),
    ]
    assert all(draws(*a) != draws(*b) for a, b in itertools.combinations(keys, 2))


def test_parameters_of_equal_shape_get_different_draws():
    names = [f"transformer.h.{n}.mlp.c_fc.weight" for n in range(12)]
    drawn = [torch.rand(8, 8, generator=generator(0, name)) for name in names]
    assert all(not a.equal(b) for a, b in itertools.combinations(drawn, 2))


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draws(0, "w")
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_may_be_negative_or_large():
    assert draws(-1, "w") != draws(2**70, "w")

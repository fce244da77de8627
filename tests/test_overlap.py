"""Overlap against chance: exact tails per tensor, and what z says of all of them together."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_connectome import connectomes, one

from hf_connectome.connectome import Connectome
from hf_connectome.overlap import as_json, hypergeometric_tail
from hf_connectome.wirings.random import draw_entry


@given(st.integers(1, 40), st.data())
def test_tail_is_that_of_exact_fractions(num_weights, data):
    marked, drawn = (data.draw(st.integers(0, num_weights)) for _ in range(2))
    at_least = data.draw(st.integers(-1, num_weights + 1))
    ways = sum(
        math.comb(marked, x) * math.comb(num_weights - marked, drawn - x)
        for x in range(max(0, at_least), min(marked, drawn) + 1)
    )
    exact = Fraction(ways, math.comb(num_weights, drawn))
    found = hypergeometric_tail(num_weights, marked, drawn, at_least)
    assert found == pytest.approx(float(exact), rel=1e-11, abs=1e-300)
    assert 0.0 <= found <= 1.0


def test_tail_of_a_large_matrix_is_near_the_normal_one():
    size, part = 38_597_376, 3_859_737  # GPT-2's token embedding at density 0.1
    mean = part * part / size
    deviation = math.sqrt(mean * (1 - part / size) * (size - part) / (size - 1))
    found = hypergeometric_tail(size, part, part, round(mean + 2 * deviation))
    assert found == pytest.approx(math.erfc(2 / math.sqrt(2)) / 2, rel=0.01)


@given(connectomes())
def test_whole_is_the_sum_of_the_tensors(pair):
    overlap = pair[0].overlap(pair[1])
    for field in ("num_shared", "expected", "variance"):
        total = sum(getattr(shared, field) for shared in overlap.tensors.values())
        assert getattr(overlap.shared, field) == pytest.approx(total)
    assert overlap.num_shared == overlap.shared.num_shared
    for name, shared in overlap.tensors.items():
        assert shared.num_shared == int((pair[0].mask(name) & pair[1].mask(name)).sum())
        sizes = [c[name].num_survivors for c in pair]
        expected = hypergeometric_tail(pair[0][name].num_weights, *sizes, shared.num_shared)
        assert shared.p_value == expected


def test_figures_of_a_small_pair():
    a = Connectome({"w": one([1, 1, 0, 0, 0])})
    b = Connectome({"w": one([1, 1, 1, 0, 0])})
    shared = a.overlap(b).shared
    assert (shared.num_shared, shared.expected) == (2, 1.2)
    assert shared.variance == pytest.approx(0.36)  # 2 x 3 x 3 x 2 / (25 x 4)
    assert shared.z == pytest.approx(0.8 / 0.6)
    assert shared.p_value == pytest.approx(0.3)  # 3 of the 10 places for two are both in b
    assert as_json(shared)["z"] == shared.z


def test_there_is_no_z_where_chance_has_no_choice():
    full = Connectome({"w": one([1, 1]), "v": one([1])})
    for other in (full, Connectome({"w": one([0, 0]), "v": one([1])})):
        shared = full.overlap(other).shared
        assert shared.z is None
        assert shared.p_value == 1.0


def test_random_pairs_have_p_values_as_chance_says():
    found = [
        Connectome({n: draw_entry((30, 30), 200, seed, n) for n in "ab"}).overlap(
            Connectome({n: draw_entry((30, 30), 300, seed + 1000, n) for n in "ab"})
        )
        for seed in range(150)
    ]
    for p_values in ([o.shared.p_value for o in found], [o.tensors["a"].p_value for o in found]):
        # Uniform but for steps: up to 15 of 150 are expected below 0.1, up to 75 below 0.5.
        assert 5 <= sum(p <= 0.1 for p in p_values) <= 27
        assert 45 <= sum(p <= 0.5 for p in p_values) <= 95
    z = torch.tensor([o.shared.z for o in found])
    assert abs(float(z.mean())) < 0.3
    assert 0.8 < float(z.std()) < 1.2

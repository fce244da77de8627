"""Shares of survivors: exact, never below a floor, never above what there is."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.budgets import BUDGETS, apportion, check_budget, erk, matched, uniform
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, ScopedParameter

KINDS = {
    OUT_IN: st.tuples(*[st.integers(1, 30)] * 2),
    IN_OUT: st.tuples(*[st.integers(1, 30)] * 2),
    EMBEDDING: st.tuples(*[st.integers(1, 30)] * 2),
    CONV: st.tuples(*[st.integers(1, 8)] * 4),
    RAW: st.tuples(*[st.integers(1, 8)] * 3),
}


@st.composite
def scopes(draw):
    scope = {}
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(sorted(KINDS)))
        name = f"h.{number}.weight"
        scope[name] = ScopedParameter(name, draw(KINDS[kind]), kind)
    return scope


def scope_of(**parameters):
    return {n: ScopedParameter(n, shape, kind) for n, (shape, kind) in parameters.items()}


SMALL = scope_of(a=((4, 6), OUT_IN), b=((2, 10), IN_OUT), c=((2, 3, 1, 1), CONV))


# ---- Erdos-Renyi-Kernel --------------------------------------------------------------------------


def test_erk_is_that_of_a_hand_computation():
    # Lines: a 4 + 6 = 10, b 12, c 2 + 3 + 1 + 1 = 7. Half of 24 + 20 + 6 weights is 25, so eps is
    # 25 / 29 and c would have 6.03 of 6: it is dense, and 19 are left for 10 + 12 lines.
    # 19 * 10 / 22 = 8.64 and 19 * 12 / 22 = 10.36.
    assert erk(SMALL, 0.5) == {"a": 9, "b": 10, "c": 6}


def test_erk_gives_what_it_would_give_to_all_when_none_is_dense():
    # 0.1 of 50 is 5, for 29 lines: 1.72, 2.07, 1.21.
    assert erk(SMALL, 0.1) == {"a": 2, "b": 2, "c": 1}


def test_erk_counts_every_matrix_of_a_stack():
    stack = scope_of(w=((3, 4, 6), RAW), v=((4, 6), OUT_IN))
    # 3 x 10 lines against 10: 48 of 96 weights are 36 and 12.
    assert erk(stack, 0.5) == {"w": 36, "v": 12}


@given(scopes(), st.floats(0.0, 1.0, exclude_min=True), st.integers(0, 3))
def test_erk_total_is_exact_and_within_bounds(scope, density, floor):
    sizes = {name: prod(p.shape) for name, p in scope.items()}
    floors = {name: min(floor, size) for name, size in sizes.items()}
    total = round(density * sum(sizes.values()))
    if total < sum(floors.values()):
        with pytest.raises(ScopeError, match=f"is {total} survivors, but a floor of {floor} in"):
            erk(scope, density, floor)
        return
    counts = erk(scope, density, floor)
    assert sum(counts.values()) == total
    assert counts.keys() == scope.keys()
    assert all(floors[name] <= counts[name] <= sizes[name] for name in scope)
    assert erk(dict(reversed(scope.items())), density, floor) == counts


@given(scopes(), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_no_parameter_has_fewer_at_a_higher_density(scope, one, other):
    low, high = (erk(scope, density, 0) for density in sorted((one, other)))
    assert all(low[name] <= high[name] for name in scope)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 50)), min_size=1, max_size=8),
    st.data(),
)
def test_shares_follow_the_weights_but_for_rounding(claims, data):
    weights, caps = zip(*claims, strict=True)
    total = data.draw(st.integers(0, sum(caps)))
    shares = apportion(weights, total, caps)
    assert shares.sum() == total
    assert all(0 <= share <= cap for share, cap in zip(shares, caps, strict=True))
    # One number x explains all shares that no cap holds back.
    least = max((s - 0.5) / w for s, w in zip(shares, weights, strict=True))
    most = min(
        ((s + 0.5) / w for s, w, cap in zip(shares, weights, caps, strict=True) if s < cap),
        default=least,
    )
    assert least - 1e-9 * abs(least) <= most


def test_ties_go_to_the_first():
    assert apportion([1.0, 1.0, 1.0], 4, [9, 9, 9]).tolist() == [2, 1, 1]
    assert apportion([1.0, 1.0, 1.0], 5, [9, 1, 9], [0, 0, 3]).tolist() == [1, 1, 3]


# ---- uniform -------------------------------------------------------------------------------------


@given(scopes(), st.floats(0.0, 1.0, exclude_min=True))
def test_uniform_is_the_rounded_density_of_each(scope, density):
    wanted = {name: round(density * prod(p.shape)) for name, p in scope.items()}
    if 0 in wanted.values():
        with pytest.raises(ScopeError, match="would have no survivor at density"):
            uniform(scope, density)
    assert uniform(scope, density, 0) == wanted


def test_floor_is_refused_with_both_numbers():
    message = r"'c' has 6 weights and would have 3 survivors, fewer than 5, at density 0\.5\."
    with pytest.raises(ScopeError, match=message):
        uniform(SMALL, 0.5, 5)
    message = r"density 0\.02 of 50 weights is 1 .*floor of 2 in each of 3 parameters is 6.*0\.12"
    with pytest.raises(ScopeError, match=message):
        erk(SMALL, 0.02, 2)


def test_unknown_budget_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown budget 'erc'\. Did you mean 'erk'"):
        check_budget("erc")
    assert sorted(BUDGETS) == ["erk", "uniform"]


# ---- patterns ------------------------------------------------------------------------------------

LAYERS = [f"h.{n}.{m}.weight" for n in (0, 1, 11) for m in ("attn.q", "mlp.up")]
HOST = scope_of(**dict.fromkeys([*LAYERS, "wte.weight", "experts"], ((2, 2), OUT_IN)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"wte": 0.5}, {"wte.weight": 0.5}),
        ({"wte.weight": 0.5}, {"wte.weight": 0.5}),
        ({"experts": 0.5}, {"experts": 0.5}),
        ({r"h\.1\..*": 0.5}, {"h.1.attn.q.weight": 0.5, "h.1.mlp.up.weight": 0.5}),
        (
            {r"1\.mlp\.up": 0.5, "up": 0.1},
            {
                "h.0.mlp.up.weight": 0.1,
                "h.1.mlp.up.weight": 0.5,
                "h.11.mlp.up.weight": 0.1,
            },
        ),
        ({"up|wte": 0.2, "h.0.mlp.up.weight": 0.3}, {"h.0.mlp.up.weight": 0.3}),
    ],
    ids=str,
)
def test_patterns_match_ends_of_names_from_a_dot_on(pattern, expected):
    found = matched(HOST, pattern)
    assert expected.items() <= found.items()
    if "up|wte" not in pattern:
        assert found == expected
    assert list(found) == [name for name in HOST if name in found]


def test_pattern_is_refused_when_it_matches_nothing():
    message = r"density_pattern names 'p'; expected names of parameters in scope, such as 'h\.0"
    with pytest.raises(ScopeError, match=message):
        matched(HOST, {"wte": 0.5, "p": 0.5})
    with pytest.raises(ScopeError, match=r"'\(' is not a regular expression"):
        matched(HOST, {"(": 0.5})


@pytest.mark.parametrize("density", [0.0, 1.1, -1, float("nan"), True, "0.5", None])
def test_pattern_is_refused_when_the_density_is_none(density):
    with pytest.raises(ConfigError, match=r"density_pattern: wte is .*expected a number in \(0, 1"):
        matched(HOST, {"wte": density})

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, tiny_model

from hf_connectome.connectome import SignedMask
from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.evolution import fresh_twin
from hf_connectome.reset import ResetContext, resets
from hf_connectome.scope import parameters_of

MASK = torch.tensor([[True, False, True, True], [True, True, False, False]])
SIGN = torch.tensor([[1, 1, -1, -1], [1, -1, -1, 1]])
WEIGHT = torch.tensor([[0.5, 9.0, -0.25, 0.0], [1.0, -2.0, 9.0, -9.0]])
# Mean 0, mean square 1: its standard deviation is 1.
FRESH = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
NAMES = sorted(resets)
NEED_SIGN = [name for name in NAMES if resets.get(name).needs_sign]
NEED_FRESH_STD = ["init_std", "variance_preserving"]


def entry_of(mask=MASK, sign=SIGN, scale=(0.5, 0.125)):
    return SignedMask.pack(mask, sign, scale=None if scale is None else torch.tensor(scale))


def context_of(**changes):
    parts = {
        "name": "h.0.weight",
        "magnitude": 0.02,
        "weight": WEIGHT,
        "fresh": lambda: FRESH,
        "early": lambda: 2 * WEIGHT,
    }
    return ResetContext(**parts | changes)


def applied(policy, entry=None, **changes):
    entry = entry_of() if entry is None else entry
    return resets.get(policy)().apply(entry, context_of(**changes))


ROOT = 1.6**0.5  # 1 / sqrt(density)
LITERALS = {
    "sign_constant": [[0.02, 0.0, -0.02, -0.02], [0.02, -0.02, 0.0, 0.0]],
    "init_std": [[1.0, 0.0, -1.0, -1.0], [1.0, -1.0, 0.0, 0.0]],
    "variance_preserving": [[ROOT, 0.0, -ROOT, -ROOT], [ROOT, -ROOT, 0.0, 0.0]],
    "tensor_scale": [[0.5, 0.0, -0.5, -0.5], [0.125, -0.125, 0.0, 0.0]],
    "fresh_magnitude": [[1.0, 0.0, -1.0, -1.0], [1.0, -1.0, 0.0, 0.0]],
    "rewind": [[1.0, 0.0, -0.5, 0.0], [2.0, -4.0, 0.0, 0.0]],
    "keep": [[0.5, 0.0, -0.25, 0.0], [1.0, -2.0, 0.0, 0.0]],
}


def test_there_is_a_literal_for_every_policy():
    assert LITERALS.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_survivors_get_the_values_of_the_policy(name):
    value = applied(name)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.tensor(LITERALS[name]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dead", [float("nan"), float("inf"), -1.0])
def test_dead_weights_are_exactly_zero_whatever_they_were(name, dead):
    weight = torch.where(MASK, WEIGHT, dead)
    value = applied(name, weight=weight, early=lambda: weight)
    assert torch.equal(value[~MASK], torch.zeros(3))
    assert not torch.signbit(value[~MASK]).any()
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", NEED_SIGN)
def test_survivors_have_the_inherited_sign(name):
    value = applied(name)
    assert value[MASK].sign().tolist() == SIGN[MASK].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_values_are_float32_whatever_the_host_is(name):
    half = WEIGHT.to(torch.bfloat16)
    value = applied(name, weight=half, fresh=lambda: FRESH.bfloat16(), early=lambda: half)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_inputs_stay_as_they_are(name):
    weight, fresh, early = WEIGHT.clone(), FRESH.clone(), (2 * WEIGHT).clone()
    applied(name, weight=weight, fresh=lambda: fresh, early=lambda: early).fill_(7)
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(fresh, FRESH)
    assert torch.equal(early, 2 * WEIGHT)


def test_one_scale_serves_the_whole_tensor():
    value = applied("tensor_scale", entry_of(scale=(0.25,)))
    assert value.tolist() == [[0.25, 0, -0.25, -0.25], [0.25, -0.25, 0, 0]]


@given(
    st.integers(0, 2**24 - 1), st.integers(0, 2**24 - 1), st.floats(1e-6, 1e3), st.integers(1, 3)
)
def test_sign_constant_does_nothing_more_when_repeated(mask, sign, magnitude, rows):
    bits = torch.arange(24)
    mask = (torch.tensor(mask) >> bits & 1).bool().reshape(rows * 2, -1)
    weight = (torch.tensor(sign) >> bits & 1).reshape(rows * 2, -1) - 0.5
    first = applied("sign_constant", SignedMask.pack(mask, weight), magnitude=magnitude)
    again = SignedMask.pack(first != 0, first)
    assert torch.equal(again.mask(), mask)
    assert torch.equal(applied("sign_constant", again, magnitude=magnitude), first)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("density", [0.05, 0.26, 1.0])
def test_variance_preserving_keeps_the_second_moment_of_the_fresh_parameter(kind, density):
    host = tiny_model(kind)
    fresh = parameters_of(fresh_twin(host, 3))
    connectome = drawn(host, density=density)
    for name, entry in connectome.items():
        weight = fresh[name].detach()
        value = applied("variance_preserving", entry, fresh=lambda w=weight: w)
        moment, expected = float(value.square().mean()), float(weight.square().mean())
        assert moment == pytest.approx(expected, rel=0.05), name


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry", "changes", "message"),
    [
        *(
            (name, entry_of(sign=None), {}, "'h.0.weight' has a mask but no signs.*reset='keep'")
            for name in NEED_SIGN
        ),
        (
            "tensor_scale",
            entry_of(scale=None),
            {},
            "'h.0.weight' carries no scale, which reset='tensor_scale' needs",
        ),
        (
            "rewind",
            entry_of(),
            {"early": None},
            "'h.0.weight' has no stored early weights, which reset='rewind' needs",
        ),
        *(
            (
                name,
                entry_of(),
                {"fresh": lambda: torch.full((2, 4), 0.02)},
                "'h.0.weight' is initialised to a constant.*Use reset='sign_constant'",
            )
            for name in NEED_FRESH_STD
        ),
    ],
)
def test_entry_is_refused_with_the_way_out_when_it_lacks_what_the_policy_needs(
    name, entry, changes, message
):
    policy, context = resets.get(name)(), context_of(**changes)
    with pytest.raises(ConfigError, match=message):
        policy.check(entry, context)
    with pytest.raises(ConfigError, match=message):
        policy.apply(entry, context)


@pytest.mark.parametrize("name", ["keep", "rewind"])
def test_mask_only_entry_is_enough_when_no_sign_is_needed(name):
    assert torch.equal(applied(name, entry_of(sign=None)) != 0, MASK & (WEIGHT != 0))


@pytest.mark.parametrize("name", NAMES)
def test_parameter_without_survivors_becomes_zero(name):
    nothing = entry_of(mask=torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(applied(name, nothing), torch.zeros(2, 4))


def test_unknown_policy_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown reset 'sign_const'.*'sign_constant'"):
        resets.get("sign_const")


@pytest.mark.parametrize("name", NAMES)
def test_policy_says_where_it_comes_from(name):
    policy = resets.get(name)
    assert policy.paper
    assert policy.citation
    assert "Source:" in policy.__doc__

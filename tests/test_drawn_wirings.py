"""What each wiring draws: the shape that it is named for, on every kind of parameter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.analysis.degrees import degrees
from hf_connectome.budgets import erk
from hf_connectome.controls import controls
from hf_connectome.errors import ConfigError, HostMismatchError, UnknownNameError
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, ScopedParameter
from hf_connectome.testing import check_wiring
from hf_connectome.wirings import Wiring, make_wiring, patterned, wirings
from hf_connectome.wirings.brf import BrfWiring, ring_distance
from hf_connectome.wirings.csti import CstiWiring, correlations
from hf_connectome.wirings.modular import ModularWiring
from hf_connectome.wirings.random import RandomWiring
from hf_connectome.wirings.small_world import SmallWorldWiring

SCOPE = {
    name: ScopedParameter(name, shape, kind)
    for name, shape, kind in (
        ("conv", (4, 3, 2, 2), CONV),
        ("conv1d", (12, 16), IN_OUT),
        ("embed", (20, 6), EMBEDDING),
        ("experts", (3, 8, 4), RAW),
        ("linear", (16, 12), OUT_IN),
    )
}
SPECS = [
    "random",
    "erk",
    "brf",
    "brf:r=0",
    "brf:r=1",
    "brf:degree=uniform",
    "small_world",
    "small_world:beta=0",
    "small_world:beta=1",
    "modular",
    "modular:groups=3,outside_fraction=0",
    "modular:groups=40",
    "modular:outside_fraction=1",
]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(outputs, inputs, name="w"):
    return {name: ScopedParameter(name, (outputs, inputs), OUT_IN)}


# ---- for all -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@given(density=st.floats(0.06, 1.0), seed=st.integers(0, 2**40))
def test_counts_are_exact_on_every_kind_of_parameter(spec, density, seed):
    wiring = make_wiring(spec)
    drawn = wiring.build(SCOPE, density, seed)
    total = sum(p.num_weights for p in SCOPE.values())
    for name, entry in drawn.items():
        wanted = erk(SCOPE, density)[name] if spec == "erk" else round(density * entry.num_weights)
        assert entry.num_survivors == wanted
        assert (entry.shape, entry.orientation) == (SCOPE[name].shape, SCOPE[name].orientation)
        assert int((entry.sign() != 0).sum()) == wanted
    if spec == "erk":
        assert drawn.num_survivors == round(density * total)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_any_matrix_gets_any_number_of_links(outputs, inputs, data):
    links = data.draw(st.integers(1, outputs * inputs))
    for spec in SPECS:
        wiring = make_wiring(spec)
        if hasattr(wiring, "matrix"):
            mask = wiring.matrix(outputs, inputs, links, gen())
            assert mask.shape == (outputs, inputs)
            assert int(mask.sum()) == links, spec


@pytest.mark.parametrize("spec", SPECS)
def test_signs_are_fair_draws(spec):
    drawn = make_wiring(spec).build(linear(200, 160), 0.3, 1)["w"]
    assert abs(drawn.negative_fraction - 0.5) < 4 * 0.5 / drawn.num_survivors**0.5


@pytest.mark.parametrize("spec", ["brf:r=0", "small_world", "modular"])
def test_conv1d_is_wired_as_the_linear_of_the_same_units(spec):
    wiring = make_wiring(spec)
    plain = wiring.build(linear(16, 12), 0.25, 3).mask("w")
    stored = wiring.build({"w": ScopedParameter("w", (12, 16), IN_OUT)}, 0.25, 3).mask("w")
    assert torch.equal(stored.T, plain)


@pytest.mark.parametrize("spec", ["brf", "small_world", "modular"])
def test_every_expert_is_a_matrix_of_its_own(spec):
    drawn = make_wiring(spec).build({"e": ScopedParameter("e", (5, 16, 12), RAW)}, 0.26, 3)
    per_expert = drawn.mask("e").sum((1, 2)).tolist()
    assert per_expert == [50] * 5
    assert len({tuple(mask.flatten().tolist()) for mask in drawn.mask("e")}) == 5
    odd = make_wiring(spec).build({"e": ScopedParameter("e", (5, 16, 12), RAW)}, 252 / 960, 3)
    assert odd.mask("e").sum((1, 2)).tolist() == [51, 51, 50, 50, 50]


@pytest.mark.parametrize("spec", [*SPECS, "random:structure=1:2"])
@pytest.mark.parametrize("control", list(controls))
def test_every_control_takes_every_wiring(spec, control):
    original = make_wiring(spec).build(SCOPE, 0.5, 0)
    twin = controls.get(control)().twin(original, 1)
    assert len(twin) > 0
    assert twin.keys() <= original.keys()
    for name, entry in twin.items():
        before = original[name]
        wanted = before.num_weights if control == "signs-only" else before.num_survivors
        assert entry.num_survivors == wanted
        assert (entry.shape, entry.orientation) == (before.shape, before.orientation)


# ---- random, in a structure ----------------------------------------------------------------------


def test_random_places_can_have_a_structure():
    mask = make_wiring("random:structure=2:4").build(linear(8, 16), 0.5, 0).mask("w")
    assert (mask.reshape(-1, 4).sum(1) == 2).all()
    blocks = make_wiring("random:structure=block:4x4").build(linear(8, 16), 0.4, 0)["w"]
    assert blocks.num_survivors == 64  # 51 rounded up to four blocks of 16
    found = blocks.mask().reshape(2, 4, 4, 4).sum((1, 3))
    assert sorted(found.flatten().tolist()) == [0] * 4 + [16] * 4
    with pytest.raises(ConfigError, match=r"structure 2:4 keeps 64 of the 128 .* ends at 96"):
        make_wiring("random:structure=2:4").build(linear(8, 16), 0.6, 0)
    with pytest.raises(ConfigError, match="structure is 'x'; expected '2:4'"):
        RandomWiring("x")


# ---- receptive fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 48), (48, 12), (24, 24)])
def test_brf_of_0_is_the_band(shape):
    mask = BrfWiring(r=0.0).matrix(*shape, 12 * 12, gen())
    by_unit = mask if shape[0] <= shape[1] else mask.T
    distance = ring_distance(*by_unit.shape)
    for unit, links in enumerate(by_unit):
        assert distance[unit][links].max() <= distance[unit][~links].min()
    assert by_unit.sum(1).min() == by_unit.sum(1).max()


def test_ring_has_no_ends():
    assert ring_distance(2, 6).tolist() == [[0, 1, 2, 3, 2, 1], [3, 2, 1, 0, 1, 2]]


def test_brf_of_1_is_by_lot_and_reach_grows_with_r():
    small, big, links = 64, 256, 64 * 26
    distance = ring_distance(small, big)
    reach = [
        float(distance[BrfWiring(r=r).matrix(small, big, links, gen(1))].mean())
        for r in (0.0, 0.2, 0.4, 0.7, 1.0)
    ]
    assert reach == sorted(reach)
    assert reach[0] == pytest.approx(6.5, abs=0.1)  # 0, 1, 1, ... 12, 12, 13
    # A uniform place is 64 away on average, sd 37, here over 1664 links.
    assert abs(reach[-1] - 64) < 4 * 37 / links**0.5
    # Chi-square over 16 bands of distance, 15 degrees of freedom: 99.9 % are below 37.7.
    mask = BrfWiring(r=1.0).matrix(small, big, links, gen(2))
    band = (distance / 8.07).long().clamp(max=15)
    observed = torch.bincount(band[mask], minlength=16).double()
    expected = torch.bincount(band.flatten(), minlength=16) * links / (small * big)
    assert float(((observed - expected) ** 2 / expected).sum()) < 37.7


@pytest.mark.parametrize("r", [0.3, 0.5, 0.8])
def test_brf_links_fall_off_as_the_power_says(r):
    size = 1500  # units, with one link each
    distance = ring_distance(size, size)
    found = distance[BrfWiring(r=r).matrix(size, size, size, gen())]
    odds = (1.0 + distance[0].double()) ** (-(1.0 - r) / r)
    odds /= odds.sum()
    for near in range(4):
        share = float(odds[distance[0] == near].sum())
        count = int((found == near).sum())
        assert abs(count - share * size) < 4 * (size * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("degree", ["fixed", "uniform"])
def test_degrees_of_the_smaller_side_are_what_they_are_called(degree):
    drawn = BrfWiring(degree=degree).build(linear(100, 400), 0.1, 0)
    found = degrees(drawn)["w"].into_outputs
    assert found.mean == 40
    if degree == "fixed":
        assert (found.least, found.most) == (40, 40)
    else:  # uniform on 0 to 80 has the standard deviation 80 / sqrt(12)
        assert found.least >= 1
        assert found.deviation == pytest.approx(80 / 12**0.5, rel=0.15)


# ---- small worlds --------------------------------------------------------------------------------


def test_small_world_of_0_is_the_band():
    band = BrfWiring(r=0.0).matrix(30, 20, 95, gen(3))
    assert torch.equal(SmallWorldWiring(beta=0.0).matrix(30, 20, 95, gen(3)), band)


def test_small_world_moves_a_share_of_the_band_within_its_unit():
    band = BrfWiring(r=0.0).matrix(60, 200, 60 * 20, gen(3))
    for beta in (0.1, 0.25, 1.0):
        mask = SmallWorldWiring(beta=beta).matrix(60, 200, 60 * 20, gen(3))
        assert torch.equal(mask.sum(1), band.sum(1))
        moved = int((band & ~mask).sum())
        assert abs(moved - beta * 1200) <= 4 * (1200 * beta * (1 - beta)) ** 0.5
    crowded = SmallWorldWiring(beta=1.0).matrix(4, 8, 4 * 6, gen())
    assert (crowded.sum(1) == 6).all()  # two places outside: two links move, four stay


# ---- modules -------------------------------------------------------------------------------------


def test_modules_have_the_densities_that_were_asked_for():
    wiring = ModularWiring(groups=4, outside_fraction=0.2)
    mask = wiring.matrix(40, 80, 640, gen())  # a fifth of 3200
    inside = wiring.blocks(40, 80)
    assert int(inside.sum()) == 800
    # 2400 places outside at 0.2 of the density 0.2 are 96 links, so 544 are within 800 places.
    assert (int(mask[~inside].sum()), int(mask[inside].sum())) == (96, 544)
    blocks = inside.reshape(4, 10, 4, 20).sum((1, 3))
    assert blocks.tolist() == (200 * torch.eye(4)).tolist()


def test_what_does_not_fit_into_the_modules_goes_outside():
    wiring = ModularWiring(groups=4, outside_fraction=0.0)
    inside = wiring.blocks(8, 8)
    mask = wiring.matrix(8, 8, 20, gen())
    assert (int(mask[inside].sum()), int(mask[~inside].sum())) == (16, 4)
    even = ModularWiring(outside_fraction=1.0).matrix(8, 8, 32, gen())
    assert (int(even[inside].sum()), int(even[~inside].sum())) == (8, 24)


# ---- correlated features -------------------------------------------------------------------------


def features(samples=200, inputs=12, seed=0):
    """Draw features of which each pair (0, 1), (2, 3), ... goes together, the rest does not."""
    base = torch.randn(samples, inputs // 2, generator=gen(seed)).repeat_interleave(2, dim=1)
    return base + 0.1 * torch.randn(samples, inputs, generator=gen(seed + 1))


def test_csti_links_what_goes_together():
    wiring = CstiWiring(features={"w": features()})
    mask = wiring.build(linear(24, 12), 1 / 6, 0).mask("w")  # two links for each of 24 outputs
    pairs = torch.block_diag(*[torch.ones(2, 2, dtype=torch.bool)] * 6)
    assert torch.equal(mask, torch.cat([pairs, pairs]))


def test_correlations_are_pearsons_and_0_where_nothing_varies():
    values = torch.tensor([[1.0, 2.0, 5.0, -1.0], [2.0, 4.0, 5.0, 0.0], [3.0, 6.0, 5.0, -3.0]])
    found = correlations(values)
    varying = [0, 1, 3]
    torch.testing.assert_close(
        found[varying][:, varying], torch.corrcoef(values[:, varying].double().T)
    )
    assert found[2].tolist() == [0, 0, 0, 0]


def test_csti_keeps_the_contract_and_draws_the_rest_by_lot():
    check_wiring(CstiWiring(features={"block.0.weight": features()}))
    both = linear(16, 12) | linear(16, 12, "v")
    mixed = CstiWiring(features={"w": features()}).build(both, 0.25, 1)
    assert torch.equal(mixed.mask("v"), RandomWiring().build(both, 0.25, 1).mask("v"))


@pytest.mark.parametrize(
    ("wiring", "error", "message"),
    [
        (CstiWiring(), ConfigError, r"given none. Make it in Python: CstiWiring\(features="),
        (CstiWiring(features={"x": features()}), HostMismatchError, "'x', which is not in scope"),
        (CstiWiring(features={"w": features(inputs=10)}), HostMismatchError, r"\(200, 10\).*12\)"),
        (CstiWiring(features={"w": features(samples=1)}), HostMismatchError, "at least 2 samples"),
    ],
)
def test_csti_is_refused_without_features_that_fit(wiring, error, message):
    with pytest.raises(error, match=message):
        wiring.build(linear(16, 12), 0.25, 0)


# ---- options -------------------------------------------------------------------------------------


def test_options_are_read_by_their_kind():
    assert make_wiring("brf:r=1,degree=uniform") == BrfWiring(1.0, "uniform")
    assert isinstance(make_wiring("brf:r=1").r, float)
    assert make_wiring("modular: groups=8 , outside_fraction=5e-2") == ModularWiring(8, 0.05)
    assert make_wiring("random:structure=block:2x2") == RandomWiring("block:2x2")
    assert {type(make_wiring(name)) for name in wirings} == {wirings.get(n) for n in wirings}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("brff", UnknownNameError, "unknown wiring 'brff'. Did you mean 'brf'"),
        ("brf:", ConfigError, "has ''; expected option=value, as brf:r=0.3"),
        ("brf:r", ConfigError, "has 'r'; expected option=value"),
        ("brf:r=", ConfigError, "has 'r='; expected option=value"),
        ("brf:s=1", UnknownNameError, "the wiring 'brf' has no option 's'"),
        ("brf:degre=fixed", UnknownNameError, "Did you mean 'degree'"),
        ("brf:r=x", ConfigError, "r is 'x'; expected a number"),
        ("brf:r=1.5", ConfigError, r"r is 1\.5; expected 0 \(a band\) to 1"),
        ("brf:r=nan", ConfigError, "r is nan; expected 0"),
        ("brf:degree=x", ConfigError, "degree is 'x'; expected 'fixed' or 'uniform'"),
        ("small_world:beta=-1", ConfigError, r"beta is -1\.0; expected 0 \(the band\)"),
        ("modular:groups=1.5", ConfigError, r"groups is '1\.5'; expected a whole number"),
        ("modular:groups=0", ConfigError, "groups is 0; expected at least 1"),
        ("modular:outside_fraction=2", ConfigError, r"outside_fraction is 2\.0; expected 0"),
        ("csti:features=x", UnknownNameError, "the wiring 'csti' has no option 'features'"),
    ],
)
def test_options_are_refused_with_the_way_out(text, error, message):
    with pytest.raises(error, match=message):
        make_wiring(text)


@dataclass(frozen=True)
class Bare(Wiring):
    """Says nothing of counts, so they are the contract's."""

    paper = "x"
    citation = "none"

    def build(self, scope, density, seed):
        return RandomWiring().build(scope, density, seed)


def test_patterns_go_before_what_the_wiring_shares_out():
    assert patterned(Bare(), SCOPE, 0.5, {}) == 0.5
    mixed = patterned(make_wiring("erk"), SCOPE, 0.25, {"embed": 0.1})
    drawn = make_wiring("erk").build(SCOPE, mixed, 0)
    rest = {name: p for name, p in SCOPE.items() if name != "embed"}
    assert {n: drawn[n].num_survivors for n in rest} == erk(rest, 0.25)
    assert drawn["embed"].num_survivors == 12


# ---- degrees -------------------------------------------------------------------------------------


def test_degrees_are_of_outputs_and_inputs_however_stored():
    drawn = RandomWiring().build(SCOPE, 0.3, 0)
    for name, found in degrees(drawn).items():
        stack = SCOPE[name].matrices(drawn.mask(name)).long()
        by_output, by_input = stack.sum(2).flatten(), stack.sum(1).flatten()
        for spread, links in ((found.into_outputs, by_output), (found.from_inputs, by_input)):
            assert spread.num_units == len(links)
            assert spread.num_unlinked == links.tolist().count(0)
            assert (spread.least, spread.most) == (min(links.tolist()), max(links.tolist()))
            assert spread.mean * len(links) == pytest.approx(drawn[name].num_survivors)
            assert spread.deviation == pytest.approx(float(links.double().std(correction=0)))
    assert degrees(drawn)["conv1d"].into_outputs.num_units == 16
    assert degrees(drawn)["experts"].into_outputs.num_units == 24

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ScopeError
from hf_connectome.scope import ScopedParameter
from hf_connectome.testing import check_wiring
from hf_connectome.wirings import RandomWiring, Wiring, register, wirings
from hf_connectome.wirings.random import draw_entry


def scope_of(**shapes):
    return {name: ScopedParameter(name, shape, "out_in") for name, shape in shapes.items()}


GRAPHS = ("celegans", "file", "larva")
"""Wirings that read a graph of neurons: tests/test_graphs.py has them."""


@pytest.mark.parametrize("name", [name for name in wirings if name not in GRAPHS])
def test_wiring_keeps_the_contract(name):
    check_wiring(wirings.get(name)())


def test_package_has_its_wirings():
    assert "random" in wirings
    assert register.__self__ is wirings


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple),
    st.floats(0.0, 1.0, exclude_min=True),
    st.integers(0, 2**40),
)
def test_random_count_is_exact_at_any_density(shape, density, seed):
    num_weights = torch.Size(shape).numel()
    wanted = round(density * num_weights)
    if wanted == 0:
        with pytest.raises(ScopeError, match=f"of {num_weights} weights; expected a density in"):
            RandomWiring().build(scope_of(w=shape), density, seed)
        return
    drawn = RandomWiring().build(scope_of(w=shape), density, seed)
    assert drawn["w"].num_survivors == wanted
    assert drawn["w"].shape == shape
    assert drawn["w"].orientation == "out_in"
    assert int((drawn.sign("w") != 0).sum()) == wanted


def test_densities_may_differ_by_parameter():
    drawn = RandomWiring().build(scope_of(a=(10, 10), b=(10, 10)), {"a": 0.1, "b": 1.0}, 0)
    assert (drawn["a"].num_survivors, drawn["b"].num_survivors) == (10, 100)


def test_connectome_depends_on_seed_and_name_alone():
    both = scope_of(a=(12, 9), b=(12, 9))
    first = RandomWiring().build(both, 0.3, 5)
    assert first.digest == RandomWiring().build(dict(reversed(both.items())), 0.3, 5).digest
    assert first != RandomWiring().build(both, 0.3, 6)
    alone = RandomWiring().build(scope_of(b=(12, 9)), 0.3, 5)
    assert alone.sign("b").equal(first.sign("b"))


def test_parameters_of_equal_shape_get_different_masks_and_signs():
    drawn = RandomWiring().build(scope_of(**{f"w{n}": (8, 8) for n in range(8)}), 0.5, 0)
    for a, b in itertools.combinations(drawn, 2):
        assert not drawn.mask(a).equal(drawn.mask(b))
        assert not drawn.sign(a).abs().equal(drawn.sign(b).abs())


def test_places_and_signs_are_uniform():
    drawn = RandomWiring().build(scope_of(w=(200, 200)), 0.25, 1)
    assert drawn["w"].negative_fraction == pytest.approx(0.5, abs=0.02)
    rows, columns = drawn.mask("w").float().mean(1), drawn.mask("w").float().mean(0)
    spread = (0.25 * 0.75 / 200) ** 0.5
    assert float(rows.std()) == pytest.approx(spread, rel=0.2)
    assert float(columns.std()) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("density", [0.0, -0.5, 1.0001, float("nan"), 1e-4])
def test_density_is_refused_when_it_leaves_nothing_or_too_much(density):
    with pytest.raises(ScopeError, match=r"'w': density .* of 64 weights"):
        RandomWiring().build(scope_of(w=(8, 8)), density, 0)


def test_densities_are_refused_when_a_parameter_has_none():
    with pytest.raises(ScopeError, match="no density for 'b'"):
        RandomWiring().build(scope_of(a=(8, 8), b=(8, 8)), {"a": 0.5}, 0)


# ---- the conformance check finds what is wrong ---------------------------------------------------


class Mine(Wiring):
    paper, citation = "Ours", "none"

    def build(self, scope, density, seed):
        return RandomWiring().build(scope, density, seed)


def broken(body):
    return type("Broken", (Mine,), {"build": body})()


def altered(change):
    """Draw as RandomWiring does and change the entries."""

    def build(self, scope, density, seed):
        return Connectome(change(dict(RandomWiring().build(scope, density, seed))))

    return broken(build)


def same_for_all(self, scope, density, seed):
    part = (lambda name: density) if isinstance(density, float) else density.__getitem__
    RandomWiring().build(scope, density, seed)
    return Connectome(
        {
            name: draw_entry(
                p.shape, round(part(name) * torch.Size(p.shape).numel()), seed, "w", p.orientation
            )
            for name, p in scope.items()
        }
    )


def by_position(self, scope, density, seed):
    renamed = {
        name: ScopedParameter(str(number), p.shape, p.orientation)
        for number, (name, p) in enumerate(scope.items())
    }
    entries = {}
    for name, p in renamed.items():
        part = density if isinstance(density, float) else density[name]
        entries[name] = RandomWiring().build({p.name: p}, part, seed)[p.name]
    return Connectome(entries)


def rounded_up(self, scope, density, seed):
    if isinstance(density, float):
        density = {name: max(density, 0.1) if density > 0 else density for name in scope}
    return RandomWiring().build(scope, density, seed)


def by_the_global_seed(self, scope, density, seed):
    return RandomWiring().build(scope, density, torch.initial_seed())


def test_sound_wiring_of_somebody_else_passes():
    check_wiring(Mine())


@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        (broken(lambda self, scope, density, seed: {}), "returned a dict"),
        (altered(lambda e: {n: e[n] for n in list(e)[1:]}), "wires .* the scope has"),
        (
            altered(lambda e: {n: SignedMask.pack(x.mask(), x.sign()) for n, x in e.items()}),
            "it has ScopedParameter.*raw.*the scope has .*out_in",
        ),
        (
            altered(
                lambda e: {
                    n: SignedMask.pack(~x.mask(), orientation=x.orientation) for n, x in e.items()
                }
            ),
            "survivors, expected",
        ),
        (broken(by_the_global_seed), "another connectome for the same seed"),
        (broken(by_position), "depends on the order of the scope"),
        (broken(same_for_all), "of equal shape, the same mask"),
        (broken(rounded_up), "accepted density 1e-09"),
    ],
)
def test_wiring_is_refused_when_it_breaks_the_contract(wiring, message):
    with pytest.raises(AssertionError, match=message):
        check_wiring(wiring)

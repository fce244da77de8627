"""Every criterion, wiring and tiny host together, by the checks that plug-ins of others use."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny import KINDS, same, state_of, tiny_model
from torch import nn

from hf_connectome.config import ConnectomeConfig
from hf_connectome.criteria import criteria
from hf_connectome.errors import ScopeError
from hf_connectome.evolution import Pruning, next_generation, reset_host
from hf_connectome.hosts import extract, wire
from hf_connectome.schedule import GeometricSchedule
from hf_connectome.scope import RAW, SCOPES, ScopedParameter, parameters_of, resolve
from hf_connectome.testing import check_host
from hf_connectome.wirings import wirings

GRAPHS = ("celegans", "file", "larva")
"""They fit no tiny host: a graph of neurons has a shape of its own."""
SCHEDULE = GeometricSchedule(0.2, 6)


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in KINDS}


# ---- hosts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_host_keeps_the_contract_and_stays_as_it_is(models, kind):
    before, generator = state_of(models[kind]), torch.get_rng_state()
    check_host(models[kind])
    assert same(state_of(models[kind]), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in models[kind].parameters())


@pytest.mark.parametrize("scope", SCOPES)
def test_host_keeps_the_contract_in_every_scope(models, scope):
    check_host(models["gpt2"], scope=scope)


def test_host_keeps_the_contract_in_half_precision():
    check_host(tiny_model("llama").to(torch.bfloat16))


def test_plain_module_may_be_a_host():
    check_host(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1, bias=False)))


def test_module_without_matrices_is_no_host():
    with pytest.raises(ScopeError, match="matches no parameter"):
        check_host(nn.LayerNorm(4))


class Doubled(nn.Module):
    """Gives another weight than it was given, as a parametrisation would."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def named_parameters(self, *args, **options):
        for name, parameter in super().named_parameters(*args, **options):
            yield name, nn.Parameter(parameter.detach().clone())


def test_host_is_refused_when_what_is_wired_is_not_what_is_read():
    with pytest.raises(AssertionError, match="'weight' was wired and is read back with another"):
        check_host(Doubled())


def test_host_is_refused_when_nothing_is_trained():
    frozen = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(AssertionError, match="has no parameter that is trained"):
        check_host(frozen)


# ---- the matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wiring", [w for w in wirings if w not in GRAPHS])
@pytest.mark.parametrize("criterion", list(criteria))
def test_drawn_connectome_is_pruned_further_with_exact_counts(models, criterion, wiring, kind):
    model = copy.deepcopy(models[kind])
    drawn = wirings.get(wiring)().build(resolve(model), 0.5, 0)
    wire(model, drawn, reset="keep")
    pruning = Pruning(SCHEDULE, criterion=criterion, carry_values=True)
    pruning.check(scope_of(drawn))
    found = next_generation(model, drawn, pruning, ConnectomeConfig(generation=1))
    assert found.names == drawn.names
    for name, entry in found.items():
        before = drawn[name]
        assert entry.num_survivors == before.num_survivors - SCHEDULE.n_drop(before.num_survivors)
        assert not (entry.mask() & ~before.mask()).any()
        sign = torch.where(parameters_of(model)[name] < 0, -1, 1)  # BERT's padding row is all 0
        assert torch.equal(entry.sign(), sign * entry.mask())
    reset_host(model, found, reset="tensor_scale", magnitude=0.02, seed=0)
    assert extract(model) == found.replace(bare(found), values={})


def scope_of(connectome):
    return {n: ScopedParameter(n, e.shape, RAW) for n, e in connectome.items()}


def bare(connectome):
    """Leave out the scales, which a model does not show."""
    return {name: dataclasses.replace(e, scale=None) for name, e in connectome.items()}

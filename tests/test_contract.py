"""Every criterion, wiring, rewiring and tiny host together, by the checks that plug-ins use."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny import KINDS, same, state_of, tiny_model
from tiny_hosts import labelled
from torch import nn

from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome
from hf_connectome.criteria import criteria
from hf_connectome.enforcement import MaskEnforcer
from hf_connectome.errors import ScopeError
from hf_connectome.evolution import next_generation, reset_host
from hf_connectome.hosts import extract, wire
from hf_connectome.pruning import Pruning
from hf_connectome.rewiring import Rewirer, rewirings
from hf_connectome.rewiring.updates import as_matrices
from hf_connectome.schedule import GeometricSchedule
from hf_connectome.scope import RAW, SCOPES, ScopedParameter, parameters_of, resolve
from hf_connectome.testing import check_host, measured
from hf_connectome.wirings import wirings

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
@pytest.mark.parametrize("wiring", [name for name in wirings if not wirings.get(name).needs_data])
@pytest.mark.parametrize("criterion", list(criteria))
def test_drawn_connectome_is_pruned_further_with_exact_counts(models, criterion, wiring, kind):
    model, batches = copy.deepcopy(models[kind]), labelled(KINDS[kind])
    scoped = resolve(model)
    scorer = criteria.get(criterion)()
    raw = {name: p for name, p in scoped.items() if p.orientation == RAW}
    if raw and set(scorer.needs) & {"feature_norm", "correlation"}:
        drawn = wirings.get(wiring)().build(raw, 0.5, 0)
        with pytest.raises(ScopeError, match=f"'{next(iter(raw))}'.* no Linear"):
            measured(scorer, model, drawn, batches)
        scoped = {name: p for name, p in scoped.items() if name not in raw}
    drawn = wirings.get(wiring)().build(scoped, 0.5, 0)
    wire(model, drawn, reset="keep")
    before = state_of(model)
    statistics = measured(scorer, model, drawn, batches)
    assert same(state_of(model), before)
    assert all(p.grad is None for p in model.parameters())
    pruning = Pruning(SCHEDULE, criterion=criterion, carry_values=True)
    pruning.check(scope_of(drawn))
    found = next_generation(model, drawn, pruning, ConnectomeConfig(generation=1), statistics)
    assert found.names == drawn.names
    for name, entry in found.items():
        before = drawn[name]
        assert entry.num_survivors == before.num_survivors - SCHEDULE.n_drop(before.num_survivors)
        assert not (entry.mask() & ~before.mask()).any()
        sign = torch.where(parameters_of(model)[name] < 0, -1, 1)  # BERT's padding row is all 0
        assert torch.equal(entry.sign(), sign * entry.mask())
    reset_host(model, found, reset="tensor_scale", magnitude=0.02, seed=0)
    read = extract(model)
    assert Connectome({name: read[name] for name in found}) == Connectome(bare(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(rewirings))
def test_links_of_a_host_move_with_exact_counts(models, name, kind):
    model = copy.deepcopy(models[kind])
    first = wirings.get("random")().build(resolve(model), 0.25, 0)
    wire(model, first, reset="keep")
    enforcer = MaskEnforcer(model, first).attach(torch.optim.AdamW(model.parameters(), lr=0.01))
    settings = {"density": 0.1} if rewirings.get(name).thins else {}
    method = rewirings.get(name)(interval=1, annealed=False, until=1.0, **settings)
    rewirer = Rewirer(method, enforcer, first=first, seed=0, num_steps=2)
    rewirer.watch(1)
    draw = torch.Generator().manual_seed(1)
    sums = [(p * torch.randn(p.shape, generator=draw)).sum() for p in model.parameters()]
    torch.stack(sums).sum().backward()
    enforcer.optimizers[0].step()
    record, found = rewirer.update(1), enforcer.connectome
    assert enforcer.num_leaks() == 0
    assert record["links"] == sum(found[n].num_survivors for n in rewirer.scope)
    assert (record["births"] > 0) == (name != "gmp")
    assert all(found[n] is first[n] for n in found if n not in rewirer.scope)
    for key in () if method.thins_globally else rewirer.scope:
        assert found[key].num_survivors == expected_links(method, first[key])
    if method.thins_globally:
        num_weights = sum(first[n].num_weights for n in rewirer.scope)
        assert record["links"] == round(0.1 * num_weights)


def expected_links(method, entry):
    """Count what an entry keeps at the last update, each of its matrices on its own."""
    return sum(
        round(method.density_at(1.0, int(part.sum()) / part.numel()) * part.numel())
        for part in as_matrices(entry.mask(), entry.orientation)
    )


def scope_of(connectome):
    return {n: ScopedParameter(n, e.shape, RAW) for n, e in connectome.items()}


def bare(connectome):
    """Leave out the scales, which a model does not show."""
    return {name: dataclasses.replace(e, scale=None) for name, e in connectome.items()}

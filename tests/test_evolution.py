from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import drawn, same, state_of, tiny_model
from torch import nn

from hf_connectome.budgets import BUDGETS, erk
from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError
from hf_connectome.evolution import dense_connectome, fresh_twin, next_generation, reset_host
from hf_connectome.pruning import SELECTIONS, Pruning
from hf_connectome.schedule import (
    CubicSchedule,
    GeometricSchedule,
    LinearSchedule,
    OneShotSchedule,
)
from hf_connectome.scope import ScopedParameter, parameters_of, resolve

SCHEDULE = GeometricSchedule(0.2, 6)
C_FC = "transformer.h.0.mlp.c_fc.weight"
LN = "transformer.ln_f.weight"


def dense(model, scope="all-matrices"):
    return dense_connectome(model, resolve(model, scope), ConnectomeConfig())


@torch.no_grad()
def train(model, connectome, seed):
    """Move all that lives, as training under a mask does."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in parameters_of(model).items():
        step = 0.01 * torch.randn(parameter.shape, generator=draw)
        parameter += step * connectome.mask(name) if name in connectome else step


def evolved(model, pruning, generations, reset="sign_constant"):
    """Give every generation, from the dense one on, each with the weights it was found in."""
    connectome = dense(model)
    yield connectome, state_of(model)
    for generation in range(1, generations + 1):
        train(model, connectome, generation)
        trained = state_of(model)
        config = replace(connectome.config, generation=generation)
        connectome = next_generation(model, connectome, pruning, config)
        assert same(state_of(model), trained), "pruning changed the model"
        reset_host(model, connectome, reset=reset, magnitude=0.02, seed=0)
        yield connectome, trained


@pytest.fixture(scope="module")
def six():
    return list(evolved(tiny_model("gpt2"), Pruning(SCHEDULE), 6))


# ---- per tensor ----------------------------------------------------------------------------------


def test_dense_generation_has_all_weights_and_their_signs(six):
    connectome, weights = six[0]
    assert connectome.density == 1.0
    assert connectome.config.generation == 0
    for name in connectome:
        assert torch.equal(connectome.sign(name), torch.where(weights[name] < 0, -1, 1))


def test_every_tensor_has_exactly_the_survivors_of_the_schedule(six):
    for generation, (connectome, _) in enumerate(six):
        for entry in connectome.values():
            assert entry.num_survivors == SCHEDULE.survivors_after(entry.num_weights, generation)
        assert connectome.density == pytest.approx(0.8**generation, abs=1e-3)


def test_masks_are_nested_and_keep_the_orientation(six):
    for (before, _), (after, _) in itertools.pairwise(six):
        assert after.names == before.names
        for name, entry in after.items():
            assert not (entry.mask() & ~before.mask(name)).any()
            assert entry.orientation == before[name].orientation


def test_the_weakest_survivors_go(six):
    for (before, _), (after, weights) in itertools.pairwise(six):
        for name in after:
            gone = before.mask(name) & ~after.mask(name)
            assert weights[name][gone].abs().max() <= weights[name][after.mask(name)].abs().min()


def test_signs_and_scales_are_those_of_the_trained_survivors(six):
    for connectome, weights in six[1:]:
        for name, entry in connectome.items():
            survivors = weights[name][entry.mask()]
            assert torch.equal(entry.sign()[entry.mask()], survivors.sign().to(torch.int8))
            mean = survivors.abs().mean().reshape(1).to(torch.float16)
            assert entry.scale.tolist() == mean.tolist()


def test_each_generation_records_what_it_is_told(six):
    assert [connectome.config.generation for connectome, _ in six] == list(range(7))


def test_scope_alone_is_pruned():
    model = tiny_model("gpt2")
    connectome = dense(model, ["c_fc"])
    found = next_generation(model, connectome, Pruning(SCHEDULE), ConnectomeConfig(generation=1))
    assert found.names == connectome.names
    assert len(found) == 2


def test_random_criterion_draws_afresh_in_every_generation():
    model = tiny_model("gpt2")
    connectome = dense(model)
    found = {
        next_generation(
            model,
            connectome,
            Pruning(SCHEDULE, criterion="random", seed=seed),
            ConnectomeConfig(generation=generation),
        )
        for generation in (1, 2)
        for seed in (0, 1)
    }
    assert len(found) == 4
    assert {c.num_survivors for c in found} == {
        sum(SCHEDULE.survivors_after(e.num_weights, 1) for e in connectome.values())
    }


@pytest.mark.parametrize("selection", SELECTIONS)
def test_diverged_weights_are_refused_by_name(selection):
    model = tiny_model("gpt2")
    with torch.no_grad():
        parameters_of(model)[C_FC][3, 4] = float("nan")
    pruning = Pruning(SCHEDULE, selection=selection)
    with pytest.raises(ScopeError, match=f"'{C_FC}' has NaN scores"):
        next_generation(model, dense(model), pruning, ConnectomeConfig(generation=1))


# ---- what travels beside -------------------------------------------------------------------------


@pytest.mark.parametrize("carry", [True, False])
def test_norms_and_biases_travel_when_asked_for(carry):
    model = tiny_model("gpt2")
    connectome = dense(model)
    train(model, connectome, 1)
    pruning = Pruning(SCHEDULE, carry_values=carry)
    found = next_generation(model, connectome, pruning, ConnectomeConfig(generation=1))
    small = {n: p for n, p in parameters_of(model).items() if n not in connectome}
    assert found.values_carried.keys() == (small.keys() if carry else set())
    for name, value in found.values_carried.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, small[name])


def test_scales_stay_at_home_when_not_asked_for():
    model = tiny_model("gpt2")
    pruning = Pruning(SCHEDULE, carry_scales=False)
    found = next_generation(model, dense(model), pruning, ConnectomeConfig(generation=1))
    assert all(entry.scale is None for entry in found.values())


# ---- global --------------------------------------------------------------------------------------


def test_global_count_is_exact_in_every_generation():
    model = tiny_model("gpt2")
    pruning = Pruning(GeometricSchedule(0.5, 4), selection="global")
    expected = dense(model).num_weights
    for connectome, _ in evolved(model, pruning, 4, reset="keep"):
        assert connectome.num_survivors == expected
        assert all(entry.num_survivors >= 1 for entry in connectome.values())
        expected -= pruning.schedule.n_drop(expected)


def test_no_tensor_is_emptied_when_all_of_it_is_weak():
    model = tiny_model("gpt2")
    weight = parameters_of(model)[C_FC]
    with torch.no_grad():
        weight.mul_(1e-6)
    pruning = Pruning(GeometricSchedule(0.5, 1), selection="global")
    found = next_generation(model, dense(model), pruning, ConnectomeConfig(generation=1))
    assert found[C_FC].num_survivors == 1
    assert weight[found.mask(C_FC)].abs().item() == weight.abs().max().item()


def test_global_selection_ranks_all_parameters_together():
    model = tiny_model("llama")
    connectome, pruning = dense(model), Pruning(SCHEDULE, selection="global")
    found = next_generation(model, connectome, pruning, ConnectomeConfig(generation=1))
    weights = {name: parameters_of(model)[name].detach().abs() for name in found}
    weakest_kept = min(weights[n][e.mask()].min() for n, e in found.items())
    strongest_gone = max(weights[n][~e.mask()].max() for n, e in found.items())
    assert strongest_gone <= weakest_kept
    assert len(set(found.densities().values())) > 1


def test_global_floor_is_the_one_that_was_asked_for():
    model = tiny_model("gpt2")
    with torch.no_grad():
        parameters_of(model)[C_FC].mul_(1e-6)
    pruning = Pruning(GeometricSchedule(0.5, 1), selection="global", min_survivors=50)
    found = next_generation(model, dense(model), pruning, ConnectomeConfig(generation=1))
    assert found[C_FC].num_survivors == 50
    assert found.num_survivors == dense(model).num_weights - pruning.schedule.n_drop(
        dense(model).num_weights
    )


# ---- schedules, budgets, patterns, structures ----------------------------------------------------


@pytest.mark.parametrize("schedule", [OneShotSchedule, LinearSchedule, CubicSchedule])
def test_other_schedules_are_followed_in_every_tensor(schedule):
    pruning = Pruning(schedule(0.1, 3))
    for generation, (connectome, _) in enumerate(evolved(tiny_model("gpt2"), pruning, 3)):
        for entry in connectome.values():
            expected = pruning.schedule.survivors_after(entry.num_weights, generation)
            assert entry.num_survivors == expected


def test_erk_budget_is_kept_in_every_generation():
    model = tiny_model("gpt2")
    pruning = Pruning(GeometricSchedule(0.5, 4), budget="erk", min_survivors=3)
    scope = resolve(model)
    pruning.check(scope)
    before = None
    for generation, (connectome, _) in enumerate(evolved(model, pruning, 4)):
        counts = {name: entry.num_survivors for name, entry in connectome.items()}
        assert counts == erk(scope, 0.5**generation, 3)
        assert connectome.num_survivors == round(0.5**generation * connectome.num_weights)
        assert before is None or all(counts[n] <= before[n] for n in counts)
        before = counts
    assert len(set(connectome.densities().values())) > 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_patterns_lead_single_parameters_to_their_own_density(budget):
    pattern = {"wte": 1.0, r"h\.0\.mlp\..*": 0.3}
    pruning = Pruning(LinearSchedule(0.1, 2), budget=budget, density_pattern=pattern)
    model = tiny_model("gpt2")
    pruning.check(resolve(model))
    (*_, (half, _), (last, _)) = evolved(model, pruning, 2)
    assert half["transformer.wte.weight"].density == last["transformer.wte.weight"].density == 1.0
    assert half[C_FC].num_survivors == round(0.65 * half[C_FC].num_weights)
    assert last[C_FC].num_survivors == round(0.3 * last[C_FC].num_weights)
    rest = {n: p for n, p in resolve(model).items() if "wte" not in n and "h.0.mlp" not in n}
    assert {n: last[n].num_survivors for n in rest} == BUDGETS[budget](rest, 0.1, 1)


def test_structure_is_there_in_every_generation_and_reached_in_the_last():
    model = tiny_model("gpt2")
    pruning = Pruning(LinearSchedule(0.5, 4), structure="2:4")
    scope = resolve(model, "body")
    pruning.check(scope)
    connectome = dense_connectome(model, scope, ConnectomeConfig())
    # 0.875, 0.75, 0.625 and 0.5 of 4 are 3.5, 3, 2.5 and 2: each is rounded up.
    for generation, expected in enumerate((4, 3, 3, 2), start=1):
        before, config = connectome, ConnectomeConfig(generation=generation)
        train(model, connectome, generation)
        connectome = next_generation(model, before, pruning, config)
        for name, parameter in scope.items():
            mask = connectome.mask(name)
            assert (parameter.matrices(mask).reshape(-1, 4).sum(1) == expected).all()
            assert not (mask & ~before.mask(name)).any()


def test_blocks_fall_whole():
    model = tiny_model("gpt2")
    pruning = Pruning(GeometricSchedule(0.5, 2), structure="block:4x8")
    scope = resolve(model, "body")
    pruning.check(scope)
    connectome = dense_connectome(model, scope, ConnectomeConfig())
    for generation in (1, 2):
        config = ConnectomeConfig(generation=generation)
        connectome = next_generation(model, connectome, pruning, config)
    for name, entry in connectome.items():
        sums = scope[name].matrices(entry.mask()).unfold(1, 4, 4).unfold(2, 8, 8).sum((3, 4))
        assert set(sums.flatten().tolist()) == {0, 32}
        assert entry.num_survivors == -(-(entry.num_weights // 4) // 32) * 32


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"budget": "erc"}, UnknownNameError, r"unknown budget 'erc'\. Did you mean 'erk'"),
        ({"min_survivors": 0}, ConfigError, "min_survivors is 0; expected at least 1"),
        ({"density_pattern": {"w": 2}}, ConfigError, r"density_pattern: w is 2; .* \(0, 1\]"),
        ({"density_pattern": {"x": 0.5}}, ScopeError, "density_pattern names 'x'; .*such as 'w'"),
        ({"structure": "4"}, ConfigError, "structure is '4'; expected '2:4'"),
        ({"structure": "2:5"}, ScopeError, "'w' has 4 inputs, which 5 does not divide"),
        (
            {"structure": "2:4"},
            ConfigError,
            r"keeps 8 of the 16 .* ends at 4\. Use final_density=0",
        ),
        ({"min_survivors": 9}, ScopeError, "'w' has 16 weights and would have 8 survivors, fewer"),
        ({"budget": "erk", "min_survivors": 9}, ScopeError, "is 8 survivors, but a floor of 9"),
        ({"selection": "global", "budget": "erk"}, ConfigError, "so it takes no budget"),
        ({"selection": "global", "structure": "2:4"}, ConfigError, "so it takes no structure"),
        (
            {"selection": "global", "density_pattern": {"w": 0.5}},
            ConfigError,
            "so it takes no density_pattern. Use selection='per-tensor'",
        ),
        (
            {"selection": "global", "min_survivors": 9},
            ScopeError,
            "4 of 16 weights would be left at prune_fraction 0.5, but a floor of 9 in each of 1",
        ),
    ],
    ids=str,
)
def test_run_is_refused_when_its_counts_cannot_be(settings, error, message):
    with pytest.raises(error, match=message):
        Pruning(GeometricSchedule(0.5, 2), **settings).check(scope_of(4, 4))


# ---- refusals before training --------------------------------------------------------------------


def scope_of(*shape):
    return {"w": ScopedParameter("w", shape, "out_in")}


def test_run_is_refused_when_a_parameter_would_die_out():
    message = (
        "'w' has 2 weights and would have no survivor in generation 2 at prune_fraction 0.6. "
        "Prune less"
    )
    with pytest.raises(ScopeError, match=message):
        Pruning(GeometricSchedule(0.6, 3)).check(scope_of(1, 2))


@pytest.mark.parametrize(
    ("pruning", "shape"),
    [
        (Pruning(SCHEDULE), (1, 1)),  # round(0.2) = 0: one weight stays for good
        (Pruning(GeometricSchedule(0.6, 1)), (1, 2)),
        (Pruning(GeometricSchedule(0.5, 3), selection="global"), (1, 9)),
    ],
)
def test_run_is_accepted_when_every_parameter_keeps_a_weight(pruning, shape):
    pruning.check(scope_of(*shape))


def test_run_is_refused_when_the_criterion_is_unknown():
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'magnitud'.*'magnitude'"):
        Pruning(SCHEDULE, criterion="magnitud").check(scope_of(4, 4))


def test_run_is_refused_when_the_selection_is_unknown():
    with pytest.raises(UnknownNameError, match=r"unknown selection 'globl'. Did you mean 'global'"):
        Pruning(SCHEDULE, selection="globl").check(scope_of(4, 4))


# ---- reset ---------------------------------------------------------------------------------------


def test_survivors_start_anew_and_all_else_goes_on():
    model = tiny_model("gpt2")
    connectome = drawn(model, carry=True)
    before = state_of(model)
    reset_host(model, connectome, reset="sign_constant", magnitude=0.5, seed=0)
    for name, parameter in parameters_of(model).items():
        if name in connectome:
            assert torch.equal(parameter, 0.5 * connectome.sign(name).float())
        else:  # also where the connectome carries a value: training goes on with the host's
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("reset", ["init_std", "variance_preserving", "fresh_magnitude"])
def test_fresh_twin_gives_the_magnitudes_when_the_policy_asks(reset):
    model = tiny_model("gpt2", seed=1)
    connectome = drawn(model)
    with torch.no_grad():
        parameters_of(model)[C_FC].fill_(7.0)
    fresh = parameters_of(fresh_twin(model, 5))[C_FC].detach()
    reset_host(model, connectome, reset=reset, magnitude=0.5, seed=5)
    sign, density = connectome.sign(C_FC).float(), connectome[C_FC].density
    std = fresh.std(correction=0)
    expected = {
        "init_std": sign * std,
        "variance_preserving": sign * (std / density**0.5),
        "fresh_magnitude": sign * fresh.abs(),
    }
    assert torch.equal(parameters_of(model)[C_FC], expected[reset])


def test_early_weights_come_back_when_rewound():
    model = tiny_model("gpt2")
    connectome, early = drawn(model), state_of(tiny_model("gpt2", seed=9))
    reset_host(model, connectome, reset="rewind", magnitude=0.5, seed=0, early=early.__getitem__)
    assert torch.equal(parameters_of(model)[C_FC], early[C_FC] * connectome.mask(C_FC))
    with pytest.raises(ConfigError, match="no stored early weights"):
        reset_host(model, connectome, reset="rewind", magnitude=0.5, seed=0)


def test_fresh_twin_depends_on_the_seed_alone():
    model = tiny_model("gpt2", seed=1)
    first = state_of(fresh_twin(model, 5))
    torch.manual_seed(99)
    assert same(state_of(fresh_twin(tiny_model("gpt2", seed=2), 5)), first)
    assert not same(state_of(fresh_twin(model, 6)), first)
    wrapped = torch.nn.DataParallel(model)
    assert same(state_of(fresh_twin(wrapped, 5)), first)


def test_fresh_twin_is_float32_and_leaves_the_hosts_config_alone():
    model = tiny_model("gpt2").to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    twin = fresh_twin(model, 5)
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    assert model.config.dtype == torch.bfloat16
    assert twin.config is not model.config


def test_global_generator_is_left_alone():
    model = tiny_model("gpt2")
    connectome = dense(model)
    before = torch.get_rng_state()
    found = next_generation(
        model, connectome, Pruning(SCHEDULE, criterion="random"), ConnectomeConfig(generation=1)
    )
    reset_host(model, found, reset="init_std", magnitude=0.02, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_module_has_no_twin_but_can_be_reset_without():
    model = nn.Linear(4, 4)
    connectome = dense(model)
    reset_host(model, connectome, reset="sign_constant", magnitude=0.5, seed=0)
    assert torch.equal(model.weight, 0.5 * connectome.sign("weight").float())
    with pytest.raises(ConfigError, match=r"Linear is no transformers model.*Use sign_constant"):
        reset_host(model, connectome, reset="init_std", magnitude=0.5, seed=0)

"""Methods that move links: scores, exact counts, topology, chains, densities; no training here."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, tiny_model
from torch import nn

from hf_connectome.errors import ConfigError, ConnectomeError, ScopeError, UnknownNameError
from hf_connectome.rewiring import Rewiring, RewiringContext, get_rewiring, register, rewirings
from hf_connectome.rewiring.base import gumbel
from hf_connectome.rewiring.chains import (
    Chain,
    drop_dead_chains,
    find_chains,
    share_of_neurons_in_use,
)
from hf_connectome.rewiring.topology import RULES, link_scores
from hf_connectome.rewiring.updates import Update, as_matrices, move_links
from hf_connectome.scope import CONV, IN_OUT, OUT_IN, RAW, ScopedParameter, resolve
from hf_connectome.seeding import generator
from hf_connectome.selection import keep
from hf_connectome.testing import check_rewiring

METHODS = ("cht", "chts", "chtss", "gmp", "granet", "mest", "rigl", "set")
THINNING = ("chtss", "gmp", "granet")


def method(name, **settings):
    settings |= {"density": 0.1} if name in THINNING and "density" not in settings else {}
    return rewirings.get(name)(**settings)


def masks_of(*links):
    return torch.tensor(links, dtype=torch.bool)


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=generator(seed, "mask")) < density


# ---- the contract --------------------------------------------------------------------------------


def test_package_has_its_methods():
    assert tuple(rewirings) == METHODS
    assert register.__self__ is rewirings
    assert tuple(n for n in rewirings if rewirings.get(n).thins) == THINNING
    assert [n for n in rewirings if rewirings.get(n).needs_gradient] == ["granet", "mest", "rigl"]


@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_the_contract(name):
    check_rewiring(method(name))


def test_other_settings_keep_the_contract():
    for settings in ({"relative": True}, {"rule": "ch3"}, {"annealed": True}):
        check_rewiring(method("chts", **settings))


class Careless(Rewiring):
    paper = citation = "none"

    def grow(self, mask, context):
        return torch.rand(mask.shape)


class Greedy(Careless):
    def keep(self, weight, mask, context):
        weight.zero_()
        return mask.float()

    def grow(self, mask, context):
        return torch.rand(mask.shape, generator=context.draw("grow"))


class Nan(Greedy):
    keep = Rewiring.keep

    def grow(self, mask, context):
        return torch.full(mask.shape, float("nan"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Careless(), "drew from torch's global generator"),
        (Greedy(), "changed weight, mask or gradient in place"),
        (Nan(), "Nan.grow with .* has NaN where it counts"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_method_that_breaks_the_contract_is_refused(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_rewiring(wrong)


# ---- scores --------------------------------------------------------------------------------------

WEIGHT = torch.tensor([[0.5, -2.0], [0.25, 0.0]])
GRADIENT = torch.tensor([[1.0, -4.0], [100.0, 0.5]])


@pytest.mark.parametrize("name", ["set", "rigl", "granet", "gmp", "cht"])
def test_most_methods_keep_by_magnitude(name):
    everything = torch.ones(2, 2, dtype=torch.bool)
    score = method(name).keep(WEIGHT, everything, RewiringContext("w", gradient=GRADIENT))
    assert score.tolist() == [[0.5, 2.0], [0.25, 0.0]]


def test_mest_counts_a_hundredth_of_the_gradient():
    everything = torch.ones(2, 2, dtype=torch.bool)
    score = method("mest").keep(WEIGHT, everything, RewiringContext("w", gradient=GRADIENT))
    assert score.flatten().tolist() == pytest.approx([0.51, 2.04, 1.25, 0.005])


@pytest.mark.parametrize("name", ["rigl", "granet"])
def test_rigl_and_granet_grow_by_the_gradient(name):
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    score = method(name).grow(nothing, RewiringContext("w", gradient=GRADIENT))
    assert score.tolist() == [[1.0, 4.0], [100.0, 0.5]]


def test_relative_importance_is_the_share_in_column_and_row():
    weight = torch.tensor([[1.0, 3.0], [1.0, 0.0]])
    mask = weight != 0
    context = RewiringContext("w", progress=0.0)
    noise = gumbel(mask.shape, context.draw("keep"))
    score = method("chts", relative=True).keep(weight, mask, context) - noise
    assert score[mask].exp().tolist() == pytest.approx([1 / 2 + 1 / 4, 1 + 3 / 4, 1 / 2 + 1])


def test_power_of_the_soft_removal_grows_linearly():
    weight = torch.tensor([[2.0]])
    for progress, power in ((0.0, 1.0), (0.5, 5.0), (1.0, 9.0)):
        context = RewiringContext("w", progress=progress)
        noise = gumbel(torch.Size((1, 1)), context.draw("keep"))
        score = method("chts").keep(weight, weight > 0, context) - noise
        assert score.exp().item() == pytest.approx(2.0**power)


def test_soft_choice_has_the_chances_of_its_weights():
    chances = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    draw, counts = generator(0, "chances"), torch.zeros(4)
    everything = torch.ones(4, dtype=torch.bool)
    for _ in range(4000):
        counts += keep(chances.log() + gumbel(chances.shape, draw), everything, 3)
    assert (counts / 4000).tolist() == pytest.approx(chances.tolist(), abs=0.025)


def test_soft_choice_does_not_underflow():
    weight, mask = torch.full((8, 8), 1e-6), random_mask((8, 8), 0.5)
    score = method("chts").keep(weight, mask, RewiringContext("w", progress=1.0))
    assert torch.isfinite(score[mask]).all()
    assert score[mask].unique().numel() == int(mask.sum())


def test_draws_depend_on_seed_name_and_step_alone():
    mask = random_mask((6, 6), 0.3)

    def grown(**context):
        given = {"name": "w", "seed": 1, "step": 5} | context
        return method("set").grow(mask, RewiringContext(**given))

    assert torch.equal(grown(), grown(progress=0.9))
    for other in ({"name": "v"}, {"seed": 2}, {"step": 6}):
        assert not torch.equal(grown(), grown(**other))


# ---- topology ------------------------------------------------------------------------------------


def by_paths(mask, rule):
    """Follow every path of three links, neighbour by neighbour."""
    rows = [{j for j in range(mask.shape[1]) if mask[i, j]} for i in range(mask.shape[0])]
    columns = [{i for i in range(mask.shape[0]) if mask[i, j]} for j in range(mask.shape[1])]

    def side(mine, theirs, u, v):
        found = 0.0
        for z in theirs[v]:
            shared = {x for x in mine[u] if z in theirs[x]}
            if shared:
                others = len(mine[z] - shared - {v})
                found += (1 + len(shared) if rule == "ch2" else 1) / (1 + others)
        return found

    scores = torch.zeros(mask.shape)
    for u, v in itertools.product(range(len(rows)), range(len(columns))):
        scores[u, v] = side(rows, columns, u, v) + side(columns, rows, v, u)
    return scores


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.1, 0.9), st.integers(0, 2**20))
@pytest.mark.parametrize("rule", RULES)
def test_matrix_form_counts_paths(rule, rows, columns, density, seed):
    mask = random_mask((rows, columns), density, seed)
    torch.testing.assert_close(link_scores(mask, rule)[~mask], by_paths(mask, rule)[~mask])


@pytest.mark.parametrize("rule", RULES)
def test_transposed_mask_has_transposed_scores(rule):
    mask = random_mask((9, 5), 0.4)
    torch.testing.assert_close(link_scores(mask.T, rule), link_scores(mask, rule).T)


def test_a_place_without_paths_scores_nothing():
    mask = masks_of([1, 0, 0], [0, 1, 0], [0, 0, 0])
    assert link_scores(mask)[~mask].tolist() == [0.0] * 7


def test_cht_closes_the_one_open_square_and_draws_ties_by_lot():
    mask = masks_of([1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0])
    score = method("cht").grow(mask, RewiringContext("w"))
    assert score.masked_fill(mask, -1).argmax() == 1
    places = {
        int(method("cht").grow(masks_of([0] * 8), RewiringContext("w", seed=seed)).argmax())
        for seed in range(40)
    }
    assert len(places) == 8


# ---- counts --------------------------------------------------------------------------------------


def moved(name, masks, weights, gradients=None, *, progress=0.5, orientation=OUT_IN, **settings):
    scope = {n: ScopedParameter(n, tuple(m.shape), orientation) for n, m in masks.items()}
    update = Update(method(name, **settings), scope, (), seed=3, step=10, progress=progress)
    gradients = gradients or {n: torch.ones_like(w) for n, w in weights.items()}
    return move_links(update, masks, masks, weights.__getitem__, gradients.__getitem__)


def test_rigl_moves_the_smallest_weight_to_the_largest_gradient():
    mask = masks_of([1, 1, 0], [1, 1, 0])
    weight = torch.tensor([[0.5, -0.1, 0.0], [2.0, 1.0, 0.0]])
    gradient = torch.tensor([[9.0, 1.0, 2.0], [9.0, 9.0, -3.0]])
    found = moved("rigl", {"w": mask}, {"w": weight}, {"w": gradient}, progress=0.0)["w"]
    assert found.tolist() == masks_of([1, 0, 0], [1, 1, 1]).tolist()


def test_a_link_may_be_born_where_it_has_just_died():
    mask = masks_of([1, 1, 0])
    weight = torch.tensor([[0.1, 5.0, 0.0]])
    gradient = torch.tensor([[7.0, 0.0, 1.0]])
    found = moved("rigl", {"w": mask}, {"w": weight}, {"w": gradient}, progress=0.0, fraction=0.5)
    assert torch.equal(found["w"], mask)


@given(
    st.sampled_from(METHODS),
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**20),
)
def test_counts_are_exact(name, shape, density, progress, seed):
    mask = random_mask(shape, density, seed)
    weight = torch.randn(shape, generator=generator(seed, "weight")) * mask
    found = moved(name, {"w": mask}, {"w": weight}, progress=progress)["w"]
    first = int(mask.sum()) / mask.numel()
    wanted = method(name).density_at(progress, first) * mask.numel()
    assert int(found.sum()) == round(wanted)
    if not method(name).thins:
        assert int(found.sum()) == int(mask.sum())


def test_no_more_than_the_fraction_goes():
    mask = random_mask((20, 20), 0.3)
    weight = torch.randn(20, 20, generator=generator(0, "weight")) * mask
    num = int(mask.sum())
    for name in ("set", "mest", "rigl", "cht", "chts"):
        found = moved(name, {"w": mask}, {"w": weight}, fraction=0.2, annealed=False)["w"]
        assert 0 < int((mask & ~found).sum()) <= round(0.2 * num)
    annealed = moved("set", {"w": mask}, {"w": weight}, progress=1.0, annealed=True)["w"]
    assert torch.equal(annealed, mask)


def test_a_dense_matrix_stays_as_it_is():
    everything = torch.ones(4, 5, dtype=torch.bool)
    weight = torch.randn(4, 5, generator=generator(0, "weight"))
    for name in ("set", "mest", "rigl", "cht", "chts"):
        assert moved(name, {"w": everything}, {"w": weight})["w"].all()


def test_experts_are_matrices_of_their_own():
    mask = random_mask((3, 6, 4), 0.4)
    mask[1] = False
    mask[1, 2, 3] = True
    weight = torch.randn(3, 6, 4, generator=generator(0, "weight")) * mask
    for name in METHODS:
        found = moved(name, {"w": mask}, {"w": weight}, orientation=RAW, progress=0.0)["w"]
        assert int(found.sum()) == int(mask.sum())
        if name != "granet":
            assert found.sum((1, 2)).tolist() == mask.sum((1, 2)).tolist()
    assert as_matrices(mask, RAW).shape == (3, 6, 4)
    assert as_matrices(torch.ones(8, 3, 2, 2), CONV).shape == (1, 8, 12)
    assert as_matrices(torch.ones(8, 3), RAW).shape == (1, 8, 3)


def test_granet_thins_all_matrices_together():
    masks = {name: torch.ones(10, 10, dtype=torch.bool) for name in ("a", "b")}
    draw = generator(0, "weight")
    weights = {n: s * torch.randn(10, 10, generator=draw) for n, s in (("a", 10.0), ("b", 0.1))}
    found = moved("granet", masks, weights, progress=1.0, density=0.25)
    assert int(found["a"].sum()) + int(found["b"].sum()) == 50
    assert int(found["a"].sum()) > 45
    each = moved("gmp", masks, weights, progress=1.0, density=0.25)
    assert [int(mask.sum()) for mask in each.values()] == [25, 25]


def test_gmp_lets_nothing_be_born():
    mask = random_mask((10, 10), 0.6)
    weight = torch.randn(10, 10, generator=generator(0, "weight")) * mask
    found = moved("gmp", {"w": mask}, {"w": weight}, progress=1.0)["w"]
    assert not (found & ~mask).any()
    assert weight[found].abs().min() >= weight[mask & ~found].abs().max()


def test_weights_that_diverged_are_named():
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ScopeError, match="'w' has NaN scores"):
        moved("set", {"w": mask}, {"w": torch.full((2, 2), float("nan"))})


# ---- schedules -----------------------------------------------------------------------------------


def test_densities_follow_their_formulas():
    assert [method("gmp", density=0.1).density_at(t / 4, 0.5) for t in range(5)] == pytest.approx(
        [0.5, 0.26875, 0.15, 0.10625, 0.1]
    )
    assert [method("chtss", density=0.1).density_at(t / 4, 0.5) for t in range(5)] == pytest.approx(
        [0.5, 0.481929, 0.3, 0.118071, 0.1], abs=1e-6
    )


def test_what_is_thinner_than_the_target_stays_so():
    for name in THINNING:
        assert method(name, density=0.3).density_at(0.7, 0.2) == 0.2


def test_replaced_part_is_constant_or_a_cosine():
    assert [method("set").fraction_at(t) for t in (0.0, 0.5, 1.0)] == [0.3, 0.3, 0.3]
    assert [method("rigl").fraction_at(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.15, 0])
    assert method("gmp").fraction_at(0.2) == 0.0


@pytest.mark.parametrize(
    ("interval", "until", "num_steps", "last"),
    [(100, 0.75, 1000, 700), (10, 1.0, 40, 30), (1, 1.0, 5, 4), (7, 0.5, 15, 7)],
)
def test_last_update_leaves_newborn_links_time_to_learn(interval, until, num_steps, last):
    assert method("set", interval=interval, until=until).last_update(num_steps) == last


def test_a_training_too_short_for_an_update_is_refused():
    with pytest.raises(ConfigError, match="no link would move in a training of 100 steps"):
        method("set").last_update(100)


# ---- settings ------------------------------------------------------------------------------------


def test_settings_may_be_one_text():
    found = get_rewiring("chts:interval=50, fraction=0.2,relative=true,rule=ch3,annealed=false")
    expected = {"interval": 50, "fraction": 0.2, "relative": True, "rule": "ch3"}
    assert found == rewirings.get("chts")(**expected)
    assert get_rewiring("gmp:density=5e-2").density == 0.05


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("rigle", UnknownNameError, "unknown rewiring 'rigle'. Did you mean 'rigl'?"),
        ("rigl:intervall=5", UnknownNameError, "rigl has no setting 'intervall'. Did you mean"),
        ("rigl:interval=many", ConfigError, "interval is 'many'; expected a value of type int"),
        ("rigl:interval", ConfigError, "interval is ''; expected a value of type int"),
        ("chts:relative=maybe", ConfigError, "relative is 'maybe'; expected true or false"),
        ("rigl:interval=0", ConfigError, "interval is 0; expected at least 1"),
        ("rigl:fraction=1", ConfigError, "fraction is 1.0; expected a number between 0 and 1"),
        ("rigl:fraction=0", ConfigError, "fraction is 0.0; expected a number between 0 and 1"),
        ("rigl:fraction=nan", ConfigError, "fraction is nan; expected a number between 0 and 1"),
        ("rigl:until=1.5", ConfigError, r"until is 1.5; expected a number in \(0, 1\]"),
        ("gmp", ConfigError, "GMP lowers the density, and where to must be named"),
        ("granet:density=1.5", ConfigError, "density is 1.5; GraNet lowers the density"),
        ("gmp:density=0.1,fraction=0.5", ConfigError, "fraction is 0.5"),
        ("cht:rule=ch4", UnknownNameError, "unknown rule 'ch4'. Did you mean"),
        ("rigl:density=0.1", UnknownNameError, "rigl has no setting 'density'"),
        ("", UnknownNameError, "unknown rewiring ''"),
    ],
)
def test_bad_settings_are_named(spec, error, message):
    with pytest.raises(error, match=message):
        get_rewiring(spec)


@given(st.text(max_size=30))
def test_any_other_text_is_refused_as_such(text):
    with pytest.raises(ConnectomeError):
        get_rewiring("rigl:" + text + "=")


# ---- chains --------------------------------------------------------------------------------------


def chains_of(model):
    return find_chains(model, resolve(model, "body"))


def test_chains_of_a_sequential_stop_at_layers_with_parameters():
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2), nn.Dropout()
    )
    assert chains_of(model) == [Chain(("0.weight",), "2.weight")]


@pytest.mark.parametrize(
    ("kind", "sources", "target"),
    [
        ("gpt2", ["transformer.h.0.mlp.c_fc"], "transformer.h.0.mlp.c_proj"),
        (
            "llama",
            ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
            "model.layers.0.mlp.down_proj",
        ),
        (
            "t5",
            ["encoder.block.0.layer.1.DenseReluDense.wi"],
            "encoder.block.0.layer.1.DenseReluDense.wo",
        ),
    ],
)
def test_feed_forward_blocks_are_recognised(kind, sources, target):
    expected = Chain(tuple(f"{name}.weight" for name in sources), f"{target}.weight")
    assert expected in chains_of(tiny_model(kind))


def test_values_and_output_are_a_chain_unless_queries_are_grouped():
    model = tiny_model("llama")
    name = "model.layers.0.self_attn.{}.weight"
    chain = Chain((name.format("v_proj"),), name.format("o_proj"))
    grouped = model.config.num_key_value_heads < model.config.num_attention_heads
    assert (chain in chains_of(model)) != grouped
    model = tiny_model("llama", num_key_value_heads=model.config.num_attention_heads)
    assert chain in chains_of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_the_target_of_one_chain_at_most(kind):
    targets = [chain.target for chain in chains_of(tiny_model(kind))]
    assert len(targets) == len(set(targets))


def scope_of(orientation=OUT_IN, **masks):
    return {n: ScopedParameter(n, tuple(m.shape), orientation) for n, m in masks.items()}


def test_links_of_dead_neurons_go_until_none_is_left():
    masks = {
        "a": masks_of([1, 0], [1, 1], [0, 0]),  # neuron 2 has no input
        "b": masks_of([1, 0, 0], [0, 0, 1]),  # neuron 1 has no output, nor has b's neuron 1 input
        "c": masks_of([0, 1]),  # so c's only link goes, then b's neuron 0
    }
    chains = [Chain(("a",), "b"), Chain(("b",), "c")]
    drop_dead_chains(masks, chains, scope_of(**masks))
    assert not any(mask.any() for mask in masks.values())


def test_links_of_living_neurons_stay():
    masks = {"a": masks_of([1, 0], [0, 1]), "b": masks_of([1, 0])}
    drop_dead_chains(masks, [Chain(("a",), "b")], scope_of(**masks))
    assert masks["a"].tolist() == masks_of([1, 0], [0, 0]).tolist()
    assert masks["b"].tolist() == masks_of([1, 0]).tolist()


def test_a_product_needs_both_of_its_sources():
    masks = {"gate": masks_of([1], [1]), "up": masks_of([1], [0]), "down": masks_of([1, 1])}
    drop_dead_chains(masks, [Chain(("gate", "up"), "down")], scope_of(**masks))
    assert masks["gate"].flatten().tolist() == [True, False]
    assert masks["down"].flatten().tolist() == [True, False]


def test_conv1d_is_read_transposed():
    masks = {"fc": masks_of([1, 1], [0, 1]), "proj": masks_of([0, 0, 0], [1, 0, 1])}
    drop_dead_chains(masks, [Chain(("fc",), "proj")], scope_of(IN_OUT, **masks))
    assert masks["fc"].tolist() == masks_of([0, 1], [0, 1]).tolist()
    assert masks["proj"].tolist() == masks_of([0, 0, 0], [1, 0, 1]).tolist()


def test_share_of_neurons_in_use_changes_no_mask():
    masks = {"a": masks_of([1, 0], [0, 1]), "b": masks_of([1, 0])}
    before = {name: mask.clone() for name, mask in masks.items()}
    chains = [Chain(("a",), "b")]
    assert share_of_neurons_in_use(masks, chains, scope_of(**masks)) == 0.5
    assert all(torch.equal(masks[name], before[name]) for name in masks)


def test_counts_are_exact_where_chains_break():
    scope = scope_of(a=torch.ones(12, 6), b=torch.ones(6, 12))
    masks = {n: random_mask(p.shape, 0.1, seed) for seed, (n, p) in enumerate(scope.items())}
    draw = generator(0, "weight")
    weights = {n: torch.randn(m.shape, generator=draw) * m for n, m in masks.items()}
    before = share_of_neurons_in_use(masks, chains := [Chain(("a",), "b")], scope)
    for name in ("cht", "chts"):
        update = Update(method(name), scope, chains, seed=0, step=1, progress=0.0)
        found = move_links(update, masks, masks, weights.__getitem__, weights.__getitem__)
        for key in masks:
            assert int(found[key].sum()) == int(masks[key].sum())
    assert before < 1.0

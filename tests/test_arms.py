"""Arms of the inner loop: what a fresh host takes over, exactly, and what it is said to cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import drawn, same, state_of, tiny_model

from hf_connectome.arms import Estate, arm_names, get_arm, source_of, used_bits
from hf_connectome.arms.rungs import lloyd_levels
from hf_connectome.controls import controls, inherited_bits
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.evolution import dense_connectome
from hf_connectome.scope import parameters_of, resolve

PARENTAL = ["tensor-scale", "2-bit", "4-bit", "weights"]
RIVALS = ["selection", "selection-4-bit", "selection-weights", "embedding-signs", "parent"]


def parent_of(kind):
    """Build a 'trained' parent and the quarter-dense connectome that has its signs."""
    trained = tiny_model(kind, seed=7)
    wiring = drawn(trained, seed=3)
    weights = {n: p.detach() for n, p in parameters_of(trained).items() if n in wiring}
    signs = dense_connectome(trained, resolve(trained, "all-matrices"), wiring.config)
    entries = {}
    for name, entry in wiring.items():
        pack = type(entry).pack
        entries[name] = pack(entry.mask(), signs.sign(name), orientation=entry.orientation)
    return wiring.replace(entries), weights


@pytest.fixture(scope="module")
def gpt2():
    return parent_of("gpt2")


def put(name, connectome, parent, seed=0, kind="gpt2", reset="sign_constant"):
    host = tiny_model(kind, seed=seed)
    arm, own = get_arm(name)
    inherited = arm.put(host, Estate(connectome, seed, own or reset, parent))
    return inherited, parameters_of(host)


def test_every_control_is_an_arm():
    assert set(controls) < set(arm_names())
    assert {"dense", "connectome", "row-scale", *PARENTAL, *RIVALS} < set(arm_names())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "vit", "mixtral"])
@pytest.mark.parametrize("name", sorted({*arm_names()} - {"learned-scale"}))
def test_host_starts_with_its_dead_weights_at_zero(name, kind):
    if (kind, name) in {("vit", "embeddings"), ("vit", "embedding-signs")}:
        pytest.skip("a vision model has no embeddings")
    connectome, weights = parent_of(kind)
    inherited, parameters = put(name, connectome, weights, kind=kind)
    assert inherited.bits >= 0
    for parameter in parameters.values():
        assert torch.isfinite(parameter).all()
    for wired, entry in (inherited.mask or {}).items():
        assert (parameters[wired][~entry.mask()] == 0).all()


def test_dense_arm_changes_nothing(gpt2):
    inherited, parameters = put("dense", *gpt2)
    fresh = parameters_of(tiny_model("gpt2", seed=0))
    assert inherited.bits == 0
    assert inherited.mask is None
    assert all(torch.equal(parameters[name], fresh[name]) for name in fresh)


def test_connectome_arm_is_sign_times_magnitude(gpt2):
    connectome, weights = gpt2
    inherited, parameters = put("connectome", connectome, weights)
    for name in connectome:
        assert torch.equal(parameters[name], connectome.sign(name) * torch.tensor(0.02))
    assert inherited.bits == used_bits(connectome, "sign_constant")


def test_reset_after_a_colon_is_the_arms_own(gpt2):
    _, fresh = put("connectome:fresh_magnitude", *gpt2)
    own = parameters_of(tiny_model("gpt2", seed=0))
    name = "transformer.wte.weight"
    assert torch.equal(fresh[name], gpt2[0].sign(name) * own[name].abs())


def test_bits_grow_along_the_curve(gpt2):
    names = ["dense", "mask-only", "connectome", *PARENTAL, "parent"]
    bits = [put(name, *gpt2)[0].bits for name in names]
    assert bits == sorted(bits)
    assert len(set(bits)) == len(bits)


def test_scales_cost_nothing_where_the_reset_does_not_use_them(gpt2):
    connectome = gpt2[0]
    scaled = connectome.replace(
        {n: replace(e, scale=np.ones(1, np.float16)) for n, e in connectome.items()}
    )
    for name, bits in (("connectome", used_bits(connectome, "sign_constant")), ("random", 0.0)):
        assert put(name, scaled, gpt2[1])[0].bits == bits
        assert put(f"{name}:tensor_scale", scaled, gpt2[1])[0].bits == bits + 16 * len(scaled)


def test_bits_of_a_control_are_those_of_the_null_ladder(gpt2):
    for name in ("random", "degrees", "random-signs"):
        assert put(name, *gpt2)[0].bits == inherited_bits(gpt2[0], name)


@pytest.mark.parametrize(("name", "bits"), [("weights", 16), ("4-bit", 4), ("2-bit", 2)])
def test_survivors_cost_their_bits(gpt2, name, bits):
    connectome, weights = gpt2
    levels = 0 if name == "weights" else 16 * 2 ** (bits - 1) * len(connectome)
    masks = used_bits(connectome, "keep")
    expected = masks + bits * connectome.num_survivors + levels
    assert put(name, connectome, weights)[0].bits == pytest.approx(expected)


def test_surviving_weights_are_the_parents_in_bfloat16(gpt2):
    connectome, weights = gpt2
    _, parameters = put("weights", connectome, weights)
    for name, entry in connectome.items():
        assert torch.equal(parameters[name], weights[name].bfloat16().float() * entry.mask())


def test_scales_are_the_mean_magnitude_of_the_survivors(gpt2):
    connectome, weights = gpt2
    name = "transformer.h.0.mlp.c_fc.weight"
    alive = connectome.mask(name)
    _, parameters = put("tensor-scale", connectome, weights)
    assert parameters[name].abs().unique().tolist() == [
        0.0,
        pytest.approx(weights[name].abs()[alive].mean().item(), rel=1e-3),
    ]
    _, parameters = put("row-scale", connectome, weights)
    row = weights[name][5].abs()[alive[5]].mean().item()
    assert parameters[name][5].abs().max().item() == pytest.approx(row, rel=1e-3)


def test_more_bits_are_nearer_to_the_parent(gpt2):
    connectome, weights = gpt2
    errors = []
    for name in ["connectome", "tensor-scale", "2-bit", "4-bit", "weights"]:
        _, parameters = put(name, connectome, weights)
        gaps = [(parameters[n].detach() - weights[n])[e.mask()] for n, e in connectome.items()]
        errors.append(float(torch.cat(gaps).square().mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["selection", "selection-4-bit", "selection-weights"])
def test_selection_spends_its_budget_and_no_more(gpt2, name):
    connectome, weights = gpt2
    inherited, parameters = put(name, connectome, weights)
    rival = {"selection": "connectome", "selection-4-bit": "4-bit", "selection-weights": "weights"}
    budget = put(rival[name], connectome, weights)[0].bits
    fresh = parameters_of(tiny_model("gpt2", seed=0))
    copied = sum(int((parameters[n] != fresh[n]).sum()) for n in connectome)
    assert inherited.bits == 16 * copied
    assert inherited.bits <= budget + 16 * len(connectome)
    assert inherited.bits >= 0.95 * budget - 16 * len(connectome) - 32 * 8 * len(connectome)
    for n in connectome:
        changed = parameters[n] != fresh[n]
        assert torch.equal(parameters[n][changed], weights[n].bfloat16().float()[changed])


def test_embedding_signs_cost_a_bit_a_weight(gpt2):
    connectome, weights = gpt2
    inherited, parameters = put("embedding-signs", connectome, weights)
    names = ["transformer.wpe.weight", "transformer.wte.weight"]
    assert inherited.bits == sum(weights[n].numel() + 16 for n in names)
    assert inherited.mask is None
    for name in names:
        assert torch.equal(parameters[name] < 0, weights[name] < 0)
        assert len(parameters[name].abs().unique()) == 1


@pytest.mark.parametrize("spec", ["signs-only:init_std", "dense:init_std", "weights:init_std"])
def test_reset_that_would_change_nothing_is_refused(spec):
    with pytest.raises(ConfigError, match="has first values of its own"):
        get_arm(spec)


def test_sign_control_is_refused_under_a_reset_without_signs(gpt2):
    with pytest.raises(ConfigError, match=r"'random-signs' is about signs.*'keep' uses none"):
        put("random-signs", *gpt2, reset="keep")


def test_signs_only_counts_the_same_under_any_reset(gpt2):
    scaled = gpt2[0].replace(
        {n: replace(e, scale=np.ones(1, np.float16)) for n, e in gpt2[0].items()}
    )
    bits = {put("signs-only", scaled, gpt2[1], reset=r)[0].bits for r in ("keep", "tensor_scale")}
    assert bits == {float(gpt2[0].num_survivors)}


def test_values_that_travel_whole_are_counted_on_every_rung(gpt2):
    connectome, weights = gpt2
    carrying = connectome.replace(values={"transformer.ln_f.weight": torch.ones(32)})
    for name in ("connectome", *PARENTAL):
        with_values = put(name, carrying, weights)[0].bits
        assert with_values == put(name, connectome, weights)[0].bits + 32 * 32


def test_arm_that_needs_the_parent_is_refused_without(gpt2):
    arm, _ = get_arm("weights")
    with pytest.raises(ConfigError, match=r"the arm 'weights' carries weights.*--parent"):
        arm.check(Estate(gpt2[0], 0, "keep"), "weights")


@pytest.mark.parametrize(
    ("spec", "said"),
    [("conectome", "unknown arm 'conectome'. Did you mean 'connectome'"),
     ("connectome:initstd", "unknown reset 'initstd'. Did you mean 'init_std'")],
)  # fmt: skip
def test_unknown_name_is_answered_with_the_nearest(spec, said):
    with pytest.raises(UnknownNameError, match=said):
        get_arm(spec)


@pytest.mark.parametrize(
    ("spec", "source", "reset"),
    [
        ("connectome", None, None),
        ("connectome:init_std", None, "init_std"),
        ("random@generation-3", "generation-3", None),
        ("connectome@org/x@generation-3:keep", "org/x@generation-3", "keep"),
        ("learned-scale@runs/a.b/generation-1", "runs/a.b/generation-1", None),
    ],
)
def test_arm_names_its_connectome_and_its_reset(spec, source, reset):
    arm, own = get_arm(spec)
    assert (source_of(spec), own) == (source, reset)
    assert arm.takes_source


# ---- quantisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([1.0, 1.0, 3.0, 3.0], 2, [1.0, 3.0]),
        ([0.0, 0.2, 0.8, 1.0], 2, [0.1, 0.9]),
        ([2.0], 1, [2.0]),
        ([5.0], 2, [5.0, 5.0]),
        ([], 2, [0.0, 0.0]),
        ([1.0, 2.0, 3.0, 10.0], 2, [2.0, 10.0]),
    ],
)
def test_levels_are_those_of_least_error(values, count, expected):
    assert lloyd_levels(torch.tensor(values), count).tolist() == pytest.approx(expected)


def test_levels_move_until_nothing_is_won():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).abs().sort().values
    levels = lloyd_levels(values, 8)
    nearest = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
    means = torch.stack([values[nearest == i].double().mean() for i in range(8)]).float()
    torch.testing.assert_close(levels, means)


def test_levels_lose_less_than_equal_steps():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)).abs()
    levels = lloyd_levels(values, 8)
    equal = (torch.arange(8) + 0.5) / 8 * values.max()

    def loss(table):
        return (values[:, None] - table).abs().min(1).values.square().mean()

    assert loss(levels) < 0.6 * loss(equal)


# ---- learned scales ------------------------------------------------------------------------------


def text(num_blocks=64):
    """Blocks that one token follows another in, so that there is something to learn."""
    start = torch.arange(num_blocks)[:, None]
    return [{"input_ids": row} for row in (start + 7 * torch.arange(12)) % 60]


def test_learned_scales_lower_the_loss_and_change_sizes_alone(gpt2):
    connectome = gpt2[0]
    estate = Estate(connectome, 0, "sign_constant", blocks=text())
    host = tiny_model("gpt2")
    plain = tiny_model("gpt2")
    inherited = get_arm("learned-scale")[0].put(host, estate)
    get_arm("connectome")[0].put(plain, estate)
    assert inherited.bits == used_bits(connectome, "sign_constant")
    batch = collate(text()[:16])
    with torch.no_grad():
        assert host(**batch).loss < plain(**batch).loss
    for name, entry in connectome.items():
        weight = parameters_of(host)[name].detach()
        assert torch.equal(weight.sign().to(torch.int8), entry.sign())
        assert len(weight[entry.mask()].abs().unique()) == 1
    for name, parameter in parameters_of(host).items():
        if name not in connectome:
            assert torch.equal(parameter, parameters_of(plain)[name])
            assert parameter.grad is None


def test_learned_scales_are_the_same_for_the_same_seed(gpt2):
    states = []
    for seed in (0, 0, 1):
        host = tiny_model("gpt2")
        get_arm("learned-scale")[0].put(host, Estate(gpt2[0], seed, "keep", blocks=text(40)))
        states.append(state_of(host))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_learned_scales_need_text(gpt2):
    arm, _ = get_arm("learned-scale")
    with pytest.raises(ConfigError, match=r"learns scales from blocks of text.*NoneType"):
        arm.check(Estate(gpt2[0], 0, "keep"), "learned-scale")

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, drawn, tiny_model

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.controls import Control, controls, inherited_bits, random_twin, register
from hf_connectome.controls.counting import (
    balance_bits,
    log2_binomial,
    margin_bits,
    mask_bits,
    whole_bits,
)
from hf_connectome.controls.degrees import num_trades
from hf_connectome.controls.hubs_capped import HubsCapped, caps
from hf_connectome.controls.places import matrices, shuffled_within
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError
from hf_connectome.hosts import extract, wire
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, resolve
from hf_connectome.testing import check_control

LADDER = {
    "N1": "random",
    "N2": "permuted",
    "N3": "degrees",
    "N4": "random-signs",
    "N5": "shuffled-signs",
    "N6": "moved-signs",
    "N7": "embeddings",
    "N8": "body",
    "N9": "hubs-capped",
}
ALL = sorted(controls)
PARTS = ("body", "embeddings")
WHOLE = [name for name in ALL if name not in PARTS]
OF_PLACES = ("degrees", "hubs-capped", "moved-signs", "permuted", "random")
OF_SIGNS = ("moved-signs", "random-signs", "shuffled-signs", "signs-only")


def twin_of(name, connectome, seed=1):
    return controls.get(name)().twin(connectome, seed)


def packed(mask, *, seed=0, orientation=OUT_IN, signs=True):
    """Pack a mask with uneven signs."""
    sign = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) + 0.3
    return SignedMask.pack(mask, sign if signs else None, orientation=orientation)


def hubby(rows, columns, *, seed=0, spread=1.0):
    """Draw a mask whose rows and columns have very unlike sums."""
    draw = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, 1, generator=draw) + torch.randn(1, columns, generator=draw)
    return spread * score + torch.randn(rows, columns, generator=draw) > 1.0


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def originals(models):
    return {kind: drawn(models[kind], density=0.3, carry=True) for kind in KINDS}


@pytest.fixture(scope="module")
def original(originals):
    return originals["gpt2"]


@pytest.fixture(scope="module")
def uneven():
    """Unlike densities, degrees and shares of negatives, in all orientations; two equal shapes."""
    return Connectome(
        {
            "conv": packed(hubby(6, 12).reshape(6, 3, 2, 2), orientation=CONV),
            "embed": packed(hubby(40, 9, seed=2), orientation=EMBEDDING),
            "equal.0": packed(hubby(24, 17, seed=1)),
            "equal.1": packed(hubby(24, 17, seed=1)),
            "experts": packed(hubby(24, 10, seed=3).reshape(3, 8, 10), orientation=RAW),
            "io": packed(hubby(17, 24, seed=4), orientation=IN_OUT),
        }
    )


@pytest.fixture(scope="module")
def extreme():
    """What leaves little or no choice."""
    yes = torch.ones(5, 7, dtype=torch.bool)
    one = torch.zeros(5, 7, dtype=torch.bool)
    one[3, 2] = True
    return Connectome(
        {
            "column": packed(hubby(9, 1)),
            "empty": packed(~yes),
            "full": packed(yes),
            "one": packed(one),
            "only": packed(torch.ones(1, 1, dtype=torch.bool)),
            "row": packed(torch.arange(11)[None] % 3 == 0),
            "table": packed(torch.eye(4) > 0, orientation=EMBEDDING),
            "vector": packed(torch.arange(6) % 2 == 0, orientation=RAW),
        }
    )


# ---- the contract, for every control -------------------------------------------------------------


def test_ladder_is_complete_and_says_what_it_is():
    rungs = {controls.get(n).rung: n for n in ALL if controls.get(n).rung != "-"}
    assert rungs == LADDER
    assert set(ALL) >= {*LADDER.values(), "mask-only", "signs-only"}
    for name in ALL:
        kind = controls.get(name)
        assert kind.name == name
        for text in (kind.keeps, kind.destroys, kind.paper, kind.citation):
            assert text
            assert "\n" not in text


def check_kept(name, original, twin):
    """Check what all twins have in common with their originals."""
    if name not in PARTS:
        assert twin.names == original.names
        resets = {"mask-only": "keep", "signs-only": "fresh_magnitude"}
        if name in resets and original.config is not None:
            assert twin.config == dataclasses.replace(original.config, reset=resets[name])
        else:
            assert twin.config is original.config
    for parameter, entry in twin.items():
        before = original[parameter]
        assert (entry.shape, entry.orientation) == (before.shape, before.orientation)
        full = name == "signs-only"
        assert entry.num_survivors == (entry.num_weights if full else before.num_survivors)
        assert (entry.sign_bits is None) == (before.sign_bits is None or name == "mask-only")
        if name != "mask-only" and before.scale is not None:
            assert sorted(entry.scale.tolist()) == sorted(before.scale.tolist())
    values = {} if name == "embeddings" else original.values_carried
    assert twin.values_carried.keys() == values.keys()
    assert all(twin.values_carried[n].equal(value) for n, value in values.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_twin_is_exact_stored_and_wired_on_every_host(name, kind, models, originals, tmp_path):
    original, model = originals[kind], models[kind]
    if name == "embeddings" and kind == "vit":
        with pytest.raises(ScopeError, match="none of them embeddings"):
            twin_of(name, original)
        return
    generator = torch.get_rng_state()
    twin = twin_of(name, original)
    assert torch.equal(torch.get_rng_state(), generator)
    check_kept(name, original, twin)
    assert twin_of(name, original) == twin
    assert (twin_of(name, original, seed=2) != twin) == controls.get(name).uses_seed
    twin.save_pretrained(tmp_path)
    assert Connectome.from_pretrained(tmp_path, host=model) == twin
    host = tiny_model(kind, seed=3)
    wire(host, twin, reset="keep" if name == "mask-only" else "sign_constant")
    found = extract(host)
    for parameter, entry in twin.items():
        assert found.mask(parameter).logical_not().logical_or(entry.mask()).all()


@pytest.mark.parametrize("name", ALL)
def test_twin_of_a_parameter_depends_on_its_own_name_and_content_alone(name, uneven):
    twin = twin_of(name, uneven)
    backwards = Connectome({n: uneven[n] for n in reversed(uneven.names)})
    assert twin_of(name, backwards) == twin
    if name in PARTS:
        return
    alone = twin_of(name, Connectome({"equal.1": uneven["equal.1"]}))
    assert alone["equal.1"].mask_bits.tolist() == twin["equal.1"].mask_bits.tolist()
    if alone.has_signs:
        assert alone["equal.1"].sign_bits.tolist() == twin["equal.1"].sign_bits.tolist()


@pytest.mark.parametrize("name", [n for n in WHOLE if controls.get(n).uses_seed])
def test_parameters_of_equal_content_get_unlike_draws(name, uneven):
    twin = twin_of(name, uneven)
    assert not twin.sign("equal.0").equal(twin.sign("equal.1"))
    if name in OF_PLACES:
        assert not twin.mask("equal.0").equal(twin.mask("equal.1"))


@pytest.mark.parametrize("name", ALL)
def test_twin_exists_where_there_is_little_or_no_choice(name, extreme):
    twin = twin_of(name, extreme)
    check_kept(name, extreme, twin)
    assert 0 <= inherited_bits(extreme, name) <= whole_bits(extreme)


@pytest.mark.parametrize("name", ALL)
def test_mask_only_connectome_has_a_mask_only_twin_or_is_refused(name, uneven):
    bare = Connectome({n: dataclasses.replace(e, sign_bits=None) for n, e in uneven.items()})
    if name in OF_SIGNS:
        with pytest.raises(ConfigError, match=r"'conv', 'embed', 'equal\.0' and 3 more has a mask"):
            twin_of(name, bare)
        with pytest.raises(ConfigError, match=f"the control '{name}' needs signs"):
            inherited_bits(bare, name)
    else:
        check_kept(name, bare, twin_of(name, bare))
        assert inherited_bits(bare, name) < inherited_bits(uneven) - bare.num_survivors + 1


@pytest.mark.parametrize("name", OF_PLACES)
def test_places_of_the_twin_are_new(name, uneven):
    overlap = uneven.overlap(twin_of(name, uneven))
    assert overlap.jaccard < 0.8
    if name in ("random", "permuted", "moved-signs"):
        assert overlap.jaccard == pytest.approx(overlap.chance_jaccard, abs=0.05)


@given(st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.booleans())
def test_every_twin_keeps_counts_at_any_size_and_density(seed, rows, columns, density, signs):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=draw) < density
    original = Connectome({"w": packed(mask, seed=seed % 7, signs=signs)})
    for name in WHOLE:
        if signs or name not in OF_SIGNS:
            check_kept(name, original, twin_of(name, original, seed))
            assert 0 <= inherited_bits(original, name) <= inherited_bits(original) + 1e-6


def test_control_of_somebody_else_is_registered_and_named():
    @register("nothing-lost")
    class NothingLost(Control):
        def twin(self, connectome, seed):
            return connectome

        def bits(self, connectome):
            return whole_bits(connectome)

    try:
        original = Connectome({"w": packed(torch.eye(3) > 0)})
        assert controls.get("nothing-lost")().name == "nothing-lost"
        assert inherited_bits(original, "nothing-lost") == inherited_bits(original)
    finally:
        del controls._classes["nothing-lost"]


# ---- random --------------------------------------------------------------------------------------


def test_random_twin_does_not_depend_on_where_the_original_has_its_weights(uneven):
    elsewhere = uneven.replace(
        {
            name: SignedMask.pack(
                entry.mask().flip(0), -entry.sign().flip(0), orientation=entry.orientation
            )
            for name, entry in uneven.items()
        }
    )
    assert elsewhere != uneven
    assert random_twin(elsewhere, 3) == random_twin(uneven, 3) == twin_of("random", uneven, 3)


def test_random_twins_overlap_with_the_original_is_near_chance(original):
    for seed in range(1, 5):
        overlap = original.overlap(random_twin(original, seed))
        assert overlap.jaccard == pytest.approx(overlap.chance_jaccard, abs=0.01)
        assert overlap.sign_agreement == pytest.approx(overlap.chance_sign_agreement, abs=0.03)
        assert overlap.chance_sign_agreement == pytest.approx(0.5, abs=0.01)


# ---- matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "orientation", "expected"),
    [
        ((6, 4), OUT_IN, (1, 6, 4)),
        ((6, 4), RAW, (1, 6, 4)),
        ((6,), RAW, (1, 6, 1)),
        ((6, 4, 3, 2), CONV, (1, 6, 24)),
        ((3, 6, 4), RAW, (3, 6, 4)),
        ((2, 3, 6, 4), RAW, (6, 6, 4)),
    ],
)
def test_parameter_is_one_matrix_or_a_stack_of_them(shape, orientation, expected):
    mask = torch.arange(math.prod(shape)).reshape(shape) % 3 == 0
    found = matrices(SignedMask.pack(mask, orientation=orientation))
    assert found.shape == expected
    assert found.ravel().tolist() == mask.ravel().tolist()


# ---- permuted ------------------------------------------------------------------------------------


def signed_blocks(connectome, name):
    return connectome.sign(name).numpy().reshape(matrices(connectome[name]).shape)


@pytest.mark.parametrize("name", ["conv", "embed", "equal.0", "experts", "io"])
def test_permuted_matrix_has_the_degrees_as_multisets_and_other_places(name, uneven):
    before = signed_blocks(uneven, name)
    after = signed_blocks(twin_of("permuted", uneven), name)
    for old, new in zip(before, after, strict=True):
        for axis in (0, 1):
            for sign in (-1, 1):
                assert sorted((new == sign).sum(axis)) == sorted((old == sign).sum(axis))
        # Inner products of rows, sorted, tell a permuted matrix from one of the same margins.
        assert sorted((new @ new.T).ravel()) == sorted((old @ old.T).ravel())
    assert not np.array_equal(before, after)


def test_scales_by_row_go_with_their_permuted_rows():
    mask = torch.arange(6)[None] < torch.arange(1, 6)[:, None]  # row r has r + 1 survivors
    scale = torch.arange(1, 6) / 8
    entry = SignedMask.pack(mask, torch.ones(5, 6), scale=scale, orientation=OUT_IN)
    twin = twin_of("permuted", Connectome({"w": entry}))["w"]
    assert (twin.mask().sum(1) / 8).tolist() == twin.scale.tolist() != scale.tolist()


# ---- degrees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_columns_have_their_survivors_in_the_degrees_twin(kind, originals):
    check_margins(originals[kind], twin_of("degrees", originals[kind]))


def test_degrees_hold_where_they_are_very_unlike(uneven, extreme):
    for connectome in (uneven, extreme):
        check_margins(connectome, twin_of("degrees", connectome))


def check_margins(original, twin):
    for name, entry in original.items():
        before, after = matrices(entry), matrices(twin[name])
        assert np.array_equal(before.sum(1), after.sum(1))
        assert np.array_equal(before.sum(2), after.sum(2))
        negative, still = signed_blocks(original, name) < 0, signed_blocks(twin, name) < 0
        assert np.array_equal(negative.sum(2), still.sum(2))


def fitting_masks(mask):
    """List all masks of the same row and column sums."""
    rows, columns = mask.shape
    choices = [list(itertools.combinations(range(columns), int(num))) for num in mask.sum(1)]
    found = []
    for choice in itertools.product(*choices):
        other = np.zeros((rows, columns), dtype=bool)
        for row, kept in enumerate(choice):
            other[row, list(kept)] = True
        if np.array_equal(other.sum(0), mask.sum(0)):
            found.append(other)
    return found


SMALL = [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]],
    [[1, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]],
]


def chi_square(mask, num_draws):
    """Compare the degrees twins of a matrix with the uniform draw of a matrix that fits."""
    original = Connectome({"w": packed(torch.from_numpy(mask), signs=False)})
    found = Counter(
        twin_of("degrees", original, seed).mask("w").numpy().tobytes() for seed in range(num_draws)
    )
    wanted = {other.tobytes() for other in fitting_masks(mask)}
    assert found.keys() <= wanted
    expected = num_draws / len(wanted)
    return sum((found[m] - expected) ** 2 / expected for m in wanted), len(wanted) - 1


@pytest.mark.parametrize("rows", SMALL, ids=lambda rows: f"{len(rows)}x{len(rows[0])}")
def test_degrees_twins_are_uniform_among_the_masks_that_fit(rows):
    statistic, freedom = chi_square(np.array(rows, dtype=bool), 900)
    assert statistic < freedom + 3 * math.sqrt(2 * freedom)


def test_chi_square_sees_too_few_trades(monkeypatch):
    monkeypatch.setattr("hf_connectome.controls.degrees.SPARE_TRADES", 0)
    statistic, freedom = chi_square(np.array(SMALL[1], dtype=bool), 900)
    assert statistic > freedom + 20 * math.sqrt(2 * freedom)


def test_degrees_twin_forgets_its_start_as_much_as_a_second_twin_does():
    original = Connectome({"w": packed(hubby(120, 60, spread=1.5))})
    twins = [twin_of("degrees", original, seed) for seed in range(6)]
    shared = [original.overlap(twin).num_shared for twin in twins]
    between = [a.overlap(b).num_shared for a, b in itertools.combinations(twins, 2)]
    assert np.mean(shared) == pytest.approx(np.mean(between), abs=4 * np.std(between) / 6**0.5)
    assert np.mean(between) < 0.9 * original.num_survivors


def test_trades_grow_with_the_survivors_and_are_none_where_sums_decide():
    assert num_trades(np.ones((1, 50), dtype=bool)) == num_trades(np.ones((50, 1), dtype=bool)) == 0
    assert num_trades(np.zeros((4, 4), dtype=bool)) == 16
    assert num_trades(np.ones((64, 64), dtype=bool)) == 28


def test_blocks_of_rows_do_not_change_what_is_kept(monkeypatch, uneven):
    monkeypatch.setattr("hf_connectome.controls.degrees._BLOCK", 40)
    check_margins(uneven, twin_of("degrees", uneven))


def test_shuffle_within_groups_keeps_each_groups_count_and_is_fair():
    sizes = np.array([3, 0, 1, 4] * 500)
    values = np.array([True, False, False, True, True, True, False, False] * 500)
    draw = torch.Generator().manual_seed(0)
    shuffled = shuffled_within(values, sizes, draw).reshape(-1, 8)
    assert (shuffled[:, :3].sum(1) == 1).all()
    assert shuffled[:, 3].all()
    assert (shuffled[:, 4:].sum(1) == 2).all()
    assert shuffled.mean(0) == pytest.approx([1 / 3] * 3 + [1] + [0.5] * 4, abs=0.08)


# ---- signs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random-signs", "shuffled-signs", "mask-only"])
def test_mask_is_kept(name, uneven):
    twin = twin_of(name, uneven)
    assert all(twin.mask(n).equal(uneven.mask(n)) for n in uneven)


@pytest.mark.parametrize("name", ["shuffled-signs", "moved-signs", "degrees", "permuted"])
def test_negatives_of_every_tensor_are_exact(name, uneven):
    twin = twin_of(name, uneven)
    for parameter, entry in uneven.items():
        assert twin[parameter].negative_fraction == entry.negative_fraction
        assert not twin.sign(parameter).equal(entry.sign())


def test_random_signs_are_fair_whatever_the_original_has():
    original = Connectome({"w": SignedMask.pack(torch.ones(80, 50) > 0, torch.ones(80, 50))})
    fraction = twin_of("random-signs", original)["w"].negative_fraction
    assert fraction == pytest.approx(0.5, abs=0.03)


def test_moved_signs_keep_what_they_meet_on_the_places_of_the_random_twin(uneven):
    twin, random = twin_of("moved-signs", uneven, 4), random_twin(uneven, 4)
    for name in uneven:
        assert twin.mask(name).equal(random.mask(name))
    overlap = uneven.overlap(twin)
    assert overlap.sign_agreement == 1.0
    assert 0 < overlap.num_shared < uneven.num_survivors


def test_signs_only_has_every_weight_and_the_sign_of_every_survivor(uneven):
    twin = twin_of("signs-only", uneven)
    assert twin.density == 1.0
    for name, entry in uneven.items():
        kept = entry.mask()
        assert twin.sign(name)[kept].equal(entry.sign()[kept])
    new = torch.cat([twin.sign(n)[~e.mask()] for n, e in uneven.items()]).float()
    assert float(new.mean()) == pytest.approx(0.0, abs=0.12)


def test_signs_only_on_fresh_magnitudes_is_the_fresh_host_with_the_survivors_signs(
    models, original
):
    host, fresh = tiny_model("gpt2", seed=5), tiny_model("gpt2", seed=5)
    wire(host, twin_of("signs-only", original), reset="fresh_magnitude")
    for name, entry in original.items():
        value, start = host.get_parameter(name), fresh.get_parameter(name)
        assert value.abs().equal(start.abs())
        kept = entry.mask()
        assert torch.where(value < 0, -1, 1)[kept].equal(entry.sign()[kept].long())


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "vit"])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_are_the_scopes_of_the_same_name(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied)
    original = drawn(model, density=0.3)
    embeddings, body = twin_of("embeddings", original), twin_of("body", original)
    for name, twin in (("embeddings", embeddings), ("body", body)):
        scope = resolve(model, name)
        assert set(twin.names) == set(scope)
        assert twin.config.target_modules == name
        assert all(twin[n] is original[n] for n in twin)
    assert len(embeddings) + len(body) == len(original)


def test_part_keeps_a_scope_of_ones_own_and_needs_no_config(original):
    named = original.replace(
        config=dataclasses.replace(original.config, target_modules=["wte", "c_attn"])
    )
    assert twin_of("embeddings", named).config.target_modules == ["wte", "c_attn"]
    assert twin_of("body", Connectome(dict(original))).config is None


def test_linear_in_a_layer_is_no_head_though_it_has_the_shape_of_the_embedding():
    mask = torch.eye(6) > 0
    original = Connectome(
        {
            "embed.weight": packed(mask, orientation=EMBEDDING),
            "head.weight": packed(mask),
            "layers.0.q.weight": packed(mask),
            "position.weight": packed(mask[:4], orientation=EMBEDDING),
        }
    )
    assert twin_of("body", original).names == ("layers.0.q.weight",)


def test_part_of_which_nothing_is_left_is_refused(original):
    only = twin_of("embeddings", original)
    with pytest.raises(ScopeError, match="has 2 parameters, none of them body"):
        twin_of("body", only)


# ---- hubs ----------------------------------------------------------------------------------------


def test_no_row_or_column_is_above_the_cap_and_few_survivors_move(uneven):
    twin = twin_of("hubs-capped", uneven)
    for name, entry in uneven.items():
        for before, after in zip(matrices(entry), matrices(twin[name]), strict=True):
            most = caps(before)
            assert (before.sum(1).max(), before.sum(0).max()) > most
            assert after.sum(1).max() <= most[0]
            assert after.sum(0).max() <= most[1]
            assert after.sum() == before.sum()
    overlap = uneven.overlap(twin)
    assert 0.6 * uneven.num_survivors < overlap.num_shared < uneven.num_survivors
    assert overlap.sign_agreement == 1.0


def test_matrix_without_hubs_stays_as_it_is():
    ring = torch.eye(8) + torch.eye(8).roll(1, 0) > 0
    original = Connectome({"w": packed(ring)})
    assert twin_of("hubs-capped", original) == original


@given(st.integers(0, 2**40), st.integers(2, 10), st.integers(2, 10), st.floats(0, 1))
def test_caps_hold_exactly_where_there_is_hardly_room(seed, rows, columns, deviations):
    mask = hubby(rows, columns, seed=seed % 1000, spread=2.0).logical_or(torch.eye(rows, columns))
    entry = packed(mask)
    twin = HubsCapped(deviations * 0.5).redraw(entry, "w", seed).mask().numpy()
    most = caps(mask.numpy(), deviations * 0.5)
    assert twin.sum() == mask.sum()
    assert twin.sum(1).max() <= most[0]
    assert twin.sum(0).max() <= most[1]


def test_survivors_make_way_where_no_free_place_has_room():
    # The only row and the only column with room meet in a place that is taken.
    entry = packed(torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1]]) > 0)
    for seed in range(20):
        twin = HubsCapped(0.0).redraw(entry, "w", seed).mask()
        assert twin.sum() == 7
        assert int(twin.sum(0).max()) <= 3 >= int(twin.sum(1).max())
    staircase = packed(torch.ones(6, 6).tril() > 0)
    for seed in range(20):
        twin = HubsCapped(0.0).redraw(staircase, "w", seed).mask()
        assert (int(twin.sum()), int(twin.sum(0).max()), int(twin.sum(1).max())) == (21, 4, 4)


# ---- bits ----------------------------------------------------------------------------------------


def test_bits_of_the_whole_are_masks_signs_scales_and_values(original):
    entropy = sum(
        e.num_weights
        * -(e.density * math.log2(e.density) + (1 - e.density) * math.log2(1 - e.density))
        for e in original.values()
    )
    scales = sum(e.scale.size for e in original.values())
    values = sum(v.numel() for v in original.values_carried.values())
    rest = original.num_survivors + 16 * scales + 32 * values
    assert scales > 0 < values
    assert inherited_bits(original) < entropy + rest
    assert inherited_bits(original) == pytest.approx(entropy + rest, abs=10 * len(original))
    assert inherited_bits(original, "dense") == 0.0
    assert inherited_bits(original, "random") == 16 * scales + 32 * values


def test_bits_of_controls_are_what_their_twins_depend_on(uneven):
    bits = {name: inherited_bits(uneven, name) for name in ("connectome", "dense", *ALL)}
    masks = sum(mask_bits(entry) for entry in uneven.values())
    assert bits["dense"] == bits["random"] == 0
    assert bits["connectome"] == masks + uneven.num_survivors
    assert bits["mask-only"] == bits["random-signs"] == masks
    assert bits["signs-only"] == uneven.num_survivors
    assert bits["embeddings"] + bits["body"] == pytest.approx(bits["connectome"])
    assert masks < bits["shuffled-signs"] < masks + 0.2 * uneven.num_survivors
    met = sum(e.density * e.num_survivors for e in uneven.values())
    assert met < bits["moved-signs"] < uneven.num_survivors
    for name in ("degrees", "hubs-capped", "permuted"):
        assert 0 < bits[name] < bits["connectome"]


def test_bits_of_margins_are_near_the_count_of_the_masks_that_fit():
    for rows in SMALL:
        mask = np.array(rows, dtype=bool)
        exact = math.log2(math.comb(mask.size, int(mask.sum())) / len(fitting_masks(mask)))
        assert margin_bits(packed(torch.from_numpy(mask))) == pytest.approx(exact, abs=0.8)
    assert margin_bits(packed(torch.ones(3, 4) > 0)) == 0.0


def test_counts_are_those_of_the_formula():
    assert log2_binomial(10, 3) == pytest.approx(math.log2(120))
    assert log2_binomial(np.array([4, 5]), np.array([2, 5])) == pytest.approx(math.log2(6))
    assert balance_bits(10, 0) == pytest.approx(10.0)
    assert balance_bits(2, 1) == pytest.approx(1.0)
    assert balance_bits(0, 0) == 0.0


def test_unknown_control_is_refused_with_the_names_there_are(original):
    with pytest.raises(UnknownNameError, match=r"unknown arm 'degree'\. Did you mean 'degrees'"):
        inherited_bits(original, "degree")


# ---- the contract that other people's controls are held to ---------------------------------------


@pytest.mark.parametrize("name", list(controls))
def test_control_keeps_the_contract(name):
    check_control(controls.get(name)())


class Leaky(Control):
    """Breaks its promise: says that it draws, but gives the connectome itself."""

    name, rung, keeps, destroys = "leaky", "-", "all", "nothing"
    paper, citation = "none", "none"

    def twin(self, connectome, seed):
        """Return the connectome."""
        return connectome

    def bits(self, connectome):
        """Count nothing."""
        return 0.0


def test_control_that_breaks_the_contract_is_told_so():
    with pytest.raises(AssertionError, match=r"Leaky\.twin gives equal twins for other seeds"):
        check_control(Leaky())

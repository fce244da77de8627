from __future__ import annotations

import itertools

import pytest
import torch
from tiny import drawn, tiny_model

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.controls import random_twin


@pytest.fixture(scope="module")
def original():
    return drawn(tiny_model("gpt2"), density=0.3, carry=True)


@pytest.fixture(scope="module")
def uneven():
    """Densities and shares of negative signs that no single number describes."""
    draw, entries = torch.Generator().manual_seed(0), {}
    for number in range(1, 5):
        weight = torch.randn(24, 17, generator=draw) + 0.2 * number
        entries[f"w.{number}"] = SignedMask.pack(
            torch.rand(24, 17, generator=draw) < 0.2 * number, weight, orientation="in_out"
        )
    return Connectome(entries)


def test_twin_has_the_exact_count_of_every_parameter(original, uneven):
    for connectome in (original, uneven):
        twin = random_twin(connectome, 1)
        assert twin.names == connectome.names
        for name, entry in connectome.items():
            assert twin[name].num_survivors == entry.num_survivors
            assert (twin[name].shape, twin[name].orientation) == (entry.shape, entry.orientation)


def test_twin_is_the_same_for_the_same_seed_and_another_for_each(uneven):
    twins = [random_twin(uneven, seed) for seed in range(4)]
    assert random_twin(uneven, 2).digest == twins[2].digest
    assert len({uneven, *twins}) == 5


def test_twin_does_not_depend_on_where_the_original_has_its_weights(uneven):
    elsewhere = uneven.replace(
        {
            name: SignedMask.pack(entry.mask().flip(0), -entry.sign().flip(0), orientation="in_out")
            for name, entry in uneven.items()
        }
    )
    assert elsewhere != uneven
    assert random_twin(elsewhere, 3) == random_twin(uneven, 3)


def test_parameters_of_equal_shape_differ():
    everywhere = SignedMask.pack(torch.arange(64).reshape(8, 8) % 2 == 0, torch.ones(8, 8))
    twin = random_twin(Connectome({f"w.{n}": everywhere for n in range(6)}), 0)
    for a, b in itertools.combinations(twin, 2):
        assert not twin.mask(a).equal(twin.mask(b))


def test_scales_values_and_config_stay(original):
    twin = random_twin(original, 1)
    assert twin.config is original.config
    assert twin.values_carried.keys() == original.values_carried.keys() != set()
    for name, value in original.values_carried.items():
        assert twin.values_carried[name].equal(value)
    for name, entry in original.items():
        assert twin[name].scale.tolist() == entry.scale.tolist()


def test_overlap_with_the_original_is_near_chance(original):
    overlaps = [original.overlap(random_twin(original, seed)) for seed in range(1, 5)]
    for overlap in overlaps:
        assert overlap.jaccard == pytest.approx(overlap.chance_jaccard, abs=0.01)
        assert overlap.sign_agreement == pytest.approx(overlap.chance_sign_agreement, abs=0.03)
        assert overlap.chance_sign_agreement == pytest.approx(0.5, abs=0.01)


def test_twin_is_mask_only_when_the_original_is():
    mask_only = Connectome({"w": SignedMask.pack(torch.eye(8) > 0)})
    assert not random_twin(mask_only, 0).has_signs


def test_global_generator_is_left_alone(original):
    before = torch.get_rng_state()
    random_twin(original, 0)
    assert torch.equal(torch.get_rng_state(), before)

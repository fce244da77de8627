"""What the published code does, restated as arithmetic, beside what this package does.

docs/FIDELITY.md refers to these tests by name. The reference is the repository
TuKoResearch/GenerationalConnectomes at commit 298e4f4; its formulas are written anew here.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import get_scheduler

from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.controls import random_twin
from hf_connectome.enforcement import MaskEnforcer
from hf_connectome.evolution import dense_connectome, next_generation, reset_host
from hf_connectome.hosts import wire
from hf_connectome.pruning import Pruning
from hf_connectome.schedule import GeometricSchedule
from hf_connectome.scope import ScopedParameter, resolve
from hf_connectome.selection import keep
from hf_connectome.wirings import RandomWiring

ROOT = Path(__file__).parent.parent
PRUNE_FRACTION = 0.2
MAGNITUDE = 0.02


# ---- the reference's formulas --------------------------------------------------------------------


def reference_keep(weight: Tensor, mask: Tensor) -> Tensor:
    """Cut below the int(0.2 n)-th smallest survivor, that one itself excluded."""
    magnitudes = weight.abs()
    survivors = magnitudes[mask]
    rank = int(PRUNE_FRACTION * len(survivors))
    if rank < 1:
        return mask.clone()
    threshold = survivors.sort().values[rank - 1]
    return mask & ~(magnitudes < threshold)


def reference_reset(weight: Tensor, mask: Tensor) -> Tensor:
    """Give survivors their sign times 0.02 and touch nothing else."""
    return torch.where(mask, weight.sign() * MAGNITUDE, weight)


def reference_guess(weight: Tensor) -> Tensor:
    """Take for a survivor whatever lies within 1e-5 of plus or minus 0.02."""
    return (weight.abs() - MAGNITUDE).abs() < 1e-5


def reference_learning_rate(step: int) -> float:
    """Rise for 250 steps, hold, fall to 0 over the last 1800 of 7001."""
    if step < 250:
        return 0.0018 * step / 250
    if step > 7001 - 1800:
        return 0.0018 - 0.0018 * (step - (7001 - 1800)) / 1800
    return 0.0018


# ---- a small host --------------------------------------------------------------------------------


class Host(nn.Module):
    """An embedding, a matrix and a norm, with weights that all differ."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        draw = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)


def one_generation(host: Host) -> tuple[Connectome, Connectome]:
    """Prune a host once and reset it in place; return generation 0 and 1."""
    pruning = Pruning(GeometricSchedule(PRUNE_FRACTION, num_generations=1))
    first = dense_connectome(host, resolve(host), ConnectomeConfig())
    second = next_generation(host, first, pruning, ConnectomeConfig(generation=1))
    reset_host(host, second, reset="sign_constant", magnitude=MAGNITUDE, seed=0)
    return first, second


# ---- how many weights are dropped ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_weights", "reference_drops", "ours_drop"),
    [(4, 0, 1), (8, 0, 2), (10, 1, 2), (100, 19, 20), (10_000, 1999, 2000)],
)
def test_count_is_rounded_and_exact_where_the_reference_drops_one_less(
    num_weights: int, reference_drops: int, ours_drop: int
) -> None:
    order = torch.randperm(num_weights, generator=torch.Generator().manual_seed(1))
    weight, mask = (order + 1).float(), torch.ones(num_weights, dtype=torch.bool)
    n_drop = GeometricSchedule(PRUNE_FRACTION, 1).n_drop(num_weights)
    assert num_weights - int(reference_keep(weight, mask).sum()) == reference_drops
    assert num_weights - int(keep(weight.abs(), mask, n_drop).sum()) == ours_drop


def test_ties_drop_the_exact_count_where_the_reference_drops_none() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(50)
    weight, mask = signs * MAGNITUDE, torch.ones(100, dtype=torch.bool)
    assert int(reference_keep(weight, mask).sum()) == 100
    kept = keep(weight.abs(), mask, 20)
    assert int(kept.sum()) == 80
    assert not kept[:20].any()  # the lower flat index goes first


def test_rounding_to_bfloat16_changes_the_reference_count_but_not_ours() -> None:
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(10_000, generator=draw).to(torch.bfloat16)
    mask = torch.ones(10_000, dtype=torch.bool)
    assert 10_000 - int(reference_keep(weight, mask).sum()) < 1999
    assert 10_000 - int(keep(weight.abs(), mask, 2000).sum()) == 2000


def test_six_generations_leave_the_nominal_density_up_to_rounding() -> None:
    schedule = GeometricSchedule(PRUNE_FRACTION, 6)
    num_weights = 768 * 3072
    survivors = schedule.survivors_after(num_weights, 6)
    assert abs(survivors - 0.8**6 * num_weights) < 3
    assert schedule.density_after(6) == pytest.approx(0.262144)


# ---- what the weights are afterwards -------------------------------------------------------------


def test_dropped_weights_are_zero_where_the_reference_leaves_them() -> None:
    host = Host()
    before = host.linear.weight.detach().clone()
    first, second = one_generation(host)
    dropped = first.mask("linear.weight") & ~second.mask("linear.weight")
    assert int(dropped.sum()) == 4
    assert torch.equal(host.linear.weight[dropped], torch.zeros(4))
    reference = reference_reset(before, second.mask("linear.weight"))
    assert torch.equal(reference[dropped], before[dropped])


def test_survivors_get_their_sign_times_the_magnitude_as_in_the_reference() -> None:
    host = Host()
    before = host.linear.weight.detach().clone()
    _, second = one_generation(host)
    mask = second.mask("linear.weight")
    reference = reference_reset(before, mask)
    assert torch.equal(host.linear.weight[mask], reference[mask])


def test_survivor_of_value_zero_is_positive_where_the_reference_loses_it() -> None:
    weight = torch.tensor([[0.5, 0.0, -0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    reference = reference_reset(weight, mask)
    assert torch.equal(reference, torch.tensor([[MAGNITUDE, 0.0, -MAGNITUDE]]))
    assert reference_guess(reference).tolist() == [[True, False, True]]
    assert SignedMask.pack(mask, weight).sign().tolist() == [[1, 1, -1]]


def test_vectors_are_left_alone_where_the_reference_resets_them() -> None:
    host = Host()
    vectors = {name: p.detach().clone() for name, p in host.named_parameters() if p.ndim == 1}
    one_generation(host)
    assert sorted(vectors) == ["linear.bias", "norm.bias", "norm.weight"]
    for name, before in vectors.items():
        assert torch.equal(host.get_parameter(name), before)
        everything = torch.ones_like(before, dtype=torch.bool)
        assert torch.allclose(reference_reset(before, everything).abs(), torch.tensor(MAGNITUDE))


def test_mask_is_stored_where_the_reference_reads_it_off_the_values() -> None:
    weight = torch.tensor([[0.5, -0.4, 0.3, 0.020004, 0.01]])
    mask = torch.tensor([[True, True, True, False, False]])
    checkpoint = reference_reset(weight, mask)
    assert reference_guess(checkpoint).tolist() == [[True, True, True, True, False]]
    stored = Connectome({"w": SignedMask.pack(mask, weight)})
    assert torch.equal(stored.mask("w"), mask)


# ---- what is in scope ----------------------------------------------------------------------------


def test_embeddings_are_in_scope_as_in_the_reference_and_can_be_left_out() -> None:
    assert list(resolve(Host())) == ["embedding.weight", "linear.weight"]
    assert list(resolve(Host(), "body")) == ["linear.weight"]


# ---- the random control --------------------------------------------------------------------------


def test_random_control_keeps_density_and_magnitude_where_the_reference_keeps_neither() -> None:
    host = Host()
    _, evolved = one_generation(host)
    twin = random_twin(evolved, seed=0)
    wire(host, twin, reset="sign_constant", magnitude=MAGNITUDE)
    for name in evolved:
        assert twin[name].num_survivors == evolved[name].num_survivors
        weight = host.get_parameter(name)
        assert torch.equal(weight != 0, twin.mask(name))
        assert set(weight.abs().unique().tolist()) == {0.0, torch.tensor(MAGNITUDE).item()}
    # The reference: int(0.1 n) weights of magnitude 0.1, all others trainable (a mask of ones).
    assert int(0.1 * 40) != evolved["embedding.weight"].num_survivors


def test_random_masks_of_equal_shape_differ_and_depend_on_no_order() -> None:
    scope = {name: ScopedParameter(name, (16, 16), "out_in") for name in ("a", "b", "c")}
    wiring = RandomWiring()
    drawn = wiring.build(scope, 0.5, 0)
    assert not torch.equal(drawn.mask("a"), drawn.mask("b"))
    turned = wiring.build(dict(reversed(scope.items())), 0.5, 0)
    assert turned == drawn
    alone = wiring.build({"b": scope["b"]}, 0.5, 0)
    assert torch.equal(alone.mask("b"), drawn.mask("b"))


# ---- training ------------------------------------------------------------------------------------


def test_a_step_is_the_references_bit_for_bit() -> None:
    draw = torch.Generator().manual_seed(3)
    mask = torch.rand(5, 4, generator=draw) < 0.5
    batches = torch.randn(6, 8, 4, generator=draw)
    start = torch.randn(5, 4, generator=draw) * mask

    def layer() -> nn.Linear:
        module = nn.Linear(4, 5, bias=False)
        module.weight.data = start.clone()
        return module

    def backward_and_clip(module: nn.Linear, batch: Tensor, mask_first: bool) -> None:
        module(batch).pow(2).mean().backward()
        if mask_first:
            module.weight.grad.mul_(mask)
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)

    reference, ours = layer(), layer()
    reference_optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1)
    wiring = Connectome({"weight": SignedMask.pack(mask, orientation="out_in")})
    MaskEnforcer(ours, wiring).attach(optimizer)
    for batch in batches:
        backward_and_clip(reference, batch, mask_first=True)
        reference_optimizer.step()
        reference.weight.data.mul_(mask)
        reference_optimizer.zero_grad()
        backward_and_clip(ours, batch, mask_first=False)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(ours.weight, reference.weight)
    assert torch.equal(ours.weight != 0, mask)


def paper_settings() -> Any:
    text = (ROOT / "recipes" / "configs" / "paper_gpt2.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def test_learning_rates_of_the_paper_config_are_the_references() -> None:
    paper = paper_settings()
    peak = float(paper["learning_rate"])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = get_scheduler(
        paper["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=paper["warmup_steps"],
        num_training_steps=paper["steps_per_generation"],
        scheduler_specific_kwargs=paper["lr_scheduler_kwargs"],
    )
    (factor,) = scheduler.lr_lambdas
    for step in range(paper["steps_per_generation"]):
        expected = reference_learning_rate(step)
        assert peak * factor(step) == pytest.approx(expected, abs=1e-12)


def test_weight_decay_of_the_paper_config_is_zero_where_the_reference_gets_torchs_default() -> None:
    assert paper_settings()["weight_decay"] == 0.0
    default = inspect.signature(torch.optim.AdamW).parameters["weight_decay"].default
    assert default == 0.01

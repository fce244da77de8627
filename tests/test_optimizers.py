"""Moments of survivors alone give the weights of torch's AdamW, in a fraction of the bytes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import drawn, tiny_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import TrainingArguments

from hf_connectome import Connectome, GenerationalArguments, MaskEnforcer, SignedMask
from hf_connectome.data import Corpus
from hf_connectome.errors import ConfigError, RunError, UnknownNameError, UnsupportedError
from hf_connectome.inheritance import InheritanceArguments, train_arm
from hf_connectome.optimizers import SurvivorAdamW, SurvivorAllReduce, optimizer_of
from hf_connectome.optimizers.places import Places

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

SETTINGS: list[dict[str, Any]] = [{}, {"foreach": True}, {"amsgrad": True}, {"maximize": True}]


def wiring_of(**masks: Tensor) -> Connectome:
    return Connectome(
        {name: SignedMask.pack(mask, orientation="out_in") for name, mask in masks.items()}
    )


def random_mask(*shape: int, density: float = 0.25, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


class Trained:
    """A layer under a mask and an optimizer, trained on drawn batches."""

    def __init__(self, layer: nn.Linear, mask: Tensor, kind: Any, **options: Any) -> None:
        self.layer = copy.deepcopy(layer)
        self.optimizer = kind(self.layer.parameters(), lr=1e-2, weight_decay=0.1, **options)
        self.enforcer = MaskEnforcer(self.layer, wiring_of(weight=mask)).attach(self.optimizer)

    def step(self, *numbers: int) -> Trained:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            rows = torch.randn(3, self.layer.in_features, generator=draw)
            self.layer(rows).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def same_weights(self, other: Trained) -> bool:
        pairs = zip(self.layer.parameters(), other.layer.parameters(), strict=True)
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def linear(rows: int, columns: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows)


def bytes_of(optimizer: AdamW) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values())


# ---- places --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 700), max_size=40), st.integers(1, 3))
def test_packing_is_boolean_indexing_whatever_the_distances(gaps: list[int], rows: int) -> None:
    places = torch.tensor([sum(gaps[: i + 1]) + i for i in range(len(gaps))], dtype=torch.int64)
    columns = (int(places[-1]) if gaps else 0) // rows + 1
    mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, places, True)
    mask = mask.view(rows, columns)
    values = torch.arange(1.0, rows * columns + 1).view(rows, columns)
    found = Places(SignedMask.pack(mask))
    assert torch.equal(found.pack(values), values[mask])
    into = torch.full_like(values, 9.0)
    found.unpack(found.pack(values), into)
    assert torch.equal(into, values * mask)


def test_places_take_one_byte_a_survivor() -> None:
    mask = random_mask(64, 100)
    assert Places(SignedMask.pack(mask)).num_bytes == int(mask.sum())


@pytest.mark.parametrize(("gap", "num_far"), [(255, 0), (256, 3), (511, 3), (512, 3)])
def test_distances_beyond_a_byte_are_listed(gap: int, num_far: int) -> None:
    mask = torch.zeros(1, 4 * gap, dtype=torch.bool)
    mask[0, ::gap] = True
    (chunk,) = Places(SignedMask.pack(mask)).chunks
    assert len(chunk.far) == num_far
    assert chunk.index().tolist() == [0, gap, 2 * gap, 3 * gap]


def test_many_survivors_come_in_chunks() -> None:
    mask = torch.ones(3, 1 << 17, dtype=torch.bool)
    mask[0, 0] = mask[2, 5] = False
    places = Places(SignedMask.pack(mask))
    assert [chunk.part.stop - chunk.part.start for chunk in places.chunks] == [
        1 << 17,
        1 << 17,
        (1 << 17) - 2,
    ]
    values = torch.arange(float(mask.numel())).view(mask.shape)
    assert torch.equal(places.pack(values), values[mask])


# ---- the same weights ----------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.0, 1.0),
    st.sampled_from(SETTINGS),
    st.integers(0, 9),
)
def test_weights_equal_those_of_dense_moments_to_the_bit(
    rows: int, columns: int, density: float, options: dict[str, Any], seed: int
) -> None:
    mask, layer = random_mask(rows, columns, density=density, seed=seed), linear(rows, columns)
    dense = Trained(layer, mask, AdamW, **options).step(*range(12))
    ours = Trained(layer, mask, SurvivorAdamW, **options).step(*range(12))
    assert ours.same_weights(dense)
    assert ours.enforcer.num_leaks() == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("fused", [False, True])
def test_models_train_equally(kind: str, fused: bool) -> None:
    weights = []
    for optimizer_class in (AdamW, SurvivorAdamW):
        model = tiny_model(kind)
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = optimizer_class(groups, lr=1e-2, betas=(0.9, 0.95), fused=fused)
        MaskEnforcer(model, drawn(model)).attach(optimizer)
        for step in range(8):
            tokens = torch.randint(2, 97, (4, 6), generator=torch.Generator().manual_seed(step))
            model(input_ids=tokens, labels=tokens).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    if fused:  # its last few elements are rounded otherwise, and Adam divides by small gradients
        assert torch.allclose(*weights, atol=1e-4)
    else:
        assert torch.equal(*weights)


def test_bfloat16_weights_have_bfloat16_moments_and_equal_dense_ones() -> None:
    layer, mask = linear(16, 24).bfloat16(), random_mask(16, 24)
    runs = [Trained(layer, mask, kind) for kind in (AdamW, SurvivorAdamW)]
    for run in runs:
        for _ in range(4):
            run.layer(torch.ones(2, 24, dtype=torch.bfloat16)).sum().backward()
            run.optimizer.step()
    assert runs[0].same_weights(runs[1])
    assert runs[1].optimizer.state[runs[1].layer.weight]["exp_avg"].dtype == torch.bfloat16


def test_a_weight_that_is_not_contiguous_is_trained_too() -> None:
    mask = random_mask(16, 24)
    runs = []
    for kind in (AdamW, SurvivorAdamW):
        layer = linear(16, 24)
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
        runs.append(Trained(layer, mask, kind).step(*range(4)))
    assert not runs[1].layer.weight.is_contiguous()
    assert runs[0].same_weights(runs[1])


def test_closure_and_missing_gradients_are_as_in_torch() -> None:
    run = Trained(linear(4, 6), random_mask(4, 6), SurvivorAdamW)
    before = copy.deepcopy(run.layer.state_dict())
    run.optimizer.step()
    assert all(torch.equal(before[n], p) for n, p in run.layer.state_dict().items())

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = run.layer(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss

    first = run.optimizer.step(closure)
    assert run.optimizer.step(closure) < first


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.26, 0.35])
def test_state_is_at_most_the_density_of_the_dense_one_and_a_twentieth(density: float) -> None:
    layer, mask = linear(256, 300), random_mask(256, 300, density=density)
    dense = Trained(layer, mask, AdamW).step(0)
    ours = Trained(layer, mask, SurvivorAdamW).step(0)
    share = ours.optimizer.num_state_bytes / bytes_of(dense.optimizer)
    assert share <= float(mask.float().mean()) + 0.05
    count = int(mask.sum())
    assert ours.optimizer.num_state_bytes == 9 * count + 8 * 256 + 2 * 4


@pytest.mark.parametrize("num_dead", [0, 1, 70, 72])
def test_state_is_packed_where_a_weight_is_dead(num_dead: int) -> None:
    mask = torch.ones(8, 9, dtype=torch.bool)
    mask.view(-1)[:num_dead] = False
    run = Trained(linear(8, 9), mask, SurvivorAdamW).step(0)
    moment = run.optimizer.state[run.layer.weight]["exp_avg"]
    assert moment.shape == ((72 - num_dead,) if num_dead else (8, 9))
    assert not run.layer.weight[~mask].any()


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*SETTINGS, {"fused": True}])
def test_resume_from_a_file_equals_the_whole_run_to_the_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    layer, mask = linear(16, 24), random_mask(16, 24)
    whole = Trained(layer, mask, SurvivorAdamW, **options).step(0, 1, 2)
    torch.save(whole.optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = Trained(whole.layer, mask, SurvivorAdamW, **options)
    resumed.optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert resumed.step(3, 4).same_weights(whole.step(3, 4))


def test_state_may_be_loaded_before_the_masks_are_known() -> None:
    layer, mask = linear(16, 24), random_mask(16, 24)
    whole = Trained(layer, mask, SurvivorAdamW).step(0, 1)
    host = copy.deepcopy(whole.layer)
    optimizer = SurvivorAdamW(host.parameters(), lr=1.0)
    optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    MaskEnforcer(host, wiring_of(weight=mask)).attach(optimizer)
    whole.step(2)
    host(torch.randn(3, 24, generator=torch.Generator().manual_seed(2))).square().sum().backward()
    optimizer.step()
    assert torch.equal(host.weight, whole.layer.weight)


def test_state_of_torchs_adamw_is_packed_when_loaded() -> None:
    layer, mask = linear(16, 24), random_mask(16, 24)
    dense = Trained(layer, mask, AdamW).step(0, 1)
    ours = Trained(dense.layer, mask, SurvivorAdamW)
    ours.optimizer.load_state_dict(copy.deepcopy(dense.optimizer.state_dict()))
    assert ours.step(2, 3).same_weights(dense.step(2, 3))
    assert ours.optimizer.state[ours.layer.weight]["exp_avg"].numel() == int(mask.sum())


def test_state_of_another_mask_is_refused() -> None:
    layer = linear(16, 24)
    saved = Trained(layer, random_mask(16, 24, seed=1), SurvivorAdamW).step(0)
    other = Trained(layer, random_mask(16, 24, seed=2), SurvivorAdamW)
    other.optimizer.load_state_dict(saved.optimizer.state_dict())
    with pytest.raises(RunError, match=r"\(16, 24\) was saved under another mask"):
        other.step(0)


# ---- masks that change ---------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 99), st.sampled_from([0.05, 0.3, 0.95, 1.0]))
def test_links_that_stay_keep_their_moments_and_new_ones_start_at_zero(
    seed: int, density: float
) -> None:
    first = random_mask(16, 24)
    second = random_mask(16, 24, density=density, seed=seed + 1)
    dense = Trained(linear(16, 24), first, AdamW).step(0, 1)
    ours = Trained(linear(16, 24), first, SurvivorAdamW).step(0, 1)
    for run in (dense, ours):
        run.enforcer.update(wiring_of(weight=second))
    for name in ("exp_avg", "exp_avg_sq"):  # what rewiring does to dense moments
        dense.optimizer.state[dense.layer.weight][name].mul_(first & second)
    assert ours.step(2, 3).same_weights(dense.step(2, 3))


def test_state_dict_after_a_change_is_of_the_new_mask() -> None:
    run = Trained(linear(16, 24), random_mask(16, 24), SurvivorAdamW).step(0)
    mask = random_mask(16, 24, density=0.1, seed=1)
    run.enforcer.update(wiring_of(weight=mask))
    saved = run.optimizer.state_dict()["state"]
    assert saved[0]["exp_avg"].shape == (int(mask.sum()),)


def test_state_that_was_cleared_starts_anew() -> None:
    run = Trained(linear(16, 24), random_mask(16, 24), SurvivorAdamW).step(0, 1)
    mask = random_mask(16, 24, density=0.1, seed=1)
    run.optimizer.state.clear()
    run.enforcer.update(wiring_of(weight=mask))
    fresh = Trained(run.layer, mask, SurvivorAdamW)
    assert run.step(2).same_weights(fresh.step(2))


# ---- refusals ------------------------------------------------------------------------------------


def test_a_step_without_masks_is_refused() -> None:
    layer = linear(4, 6)
    layer(torch.ones(1, 6)).sum().backward()
    with pytest.raises(ConfigError, match=r"has no masks\. Attach it: MaskEnforcer"):
        SurvivorAdamW(layer.parameters()).step()


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_options_that_packing_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot be {name}"):
        SurvivorAdamW(linear(4, 6).parameters(), **{name: True})


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(8, 4, sparse=True)
    entry = SignedMask.pack(random_mask(8, 4), orientation="embedding")
    optimizer = SurvivorAdamW(table.parameters())
    MaskEnforcer(table, Connectome({"weight": entry})).attach(optimizer)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match=r"\(8, 4\) is sparse"):
        optimizer.step()


def test_shards_are_refused() -> None:
    layer = linear(4, 6)
    enforcer = MaskEnforcer(layer, wiring_of(weight=random_mask(4, 6)))
    layer.weight.device_mesh = "as FSDP2 leaves it"  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match="'weight' is an FSDP2 shard"):
        SurvivorAdamW(layer.parameters()).follow(enforcer)


def test_exchange_without_ddp_is_refused() -> None:
    layer = linear(4, 6)
    enforcer = MaskEnforcer(layer, wiring_of(weight=random_mask(4, 6)))
    with pytest.raises(UnsupportedError, match="under DDP alone; the model is a Linear"):
        SurvivorAllReduce(enforcer).register(layer)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"optimizer_state": "survivor"}, UnknownNameError, "Did you mean 'survivors'"),
        ({"optimizer_state": "survivors", "optim": "adafactor"}, ConfigError, "optim 'adafactor'"),
        (
            {"optimizer_state": "survivors", "fsdp": "full_shard", "fsdp_config": {"version": 2}},
            UnsupportedError,
            "FSDP leaves each rank a shard",
        ),
        (
            {"survivor_all_reduce": True, "fsdp": "full_shard", "fsdp_config": {"version": 2}},
            UnsupportedError,
            "FSDP has one of its own",
        ),
    ],
)
def test_arguments_refuse_what_cannot_work(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        GenerationalArguments(str(tmp_path), use_cpu=True, **options)


def test_an_arm_without_masks_keeps_the_trainers_own_optimizer(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, learning_rate=0.25)
    mask = wiring_of(weight=random_mask(4, 6))
    assert optimizer_of(arguments, "survivors", None) is None
    assert optimizer_of(arguments, "dense", mask) is None
    chosen = optimizer_of(arguments, "survivors", mask)
    assert chosen is not None
    assert chosen[0] is SurvivorAdamW
    assert chosen[1]["lr"] == 0.25


# ---- with accelerate and the Trainer -------------------------------------------------------------


def test_accelerate_prepares_it() -> None:
    layer, mask = linear(16, 24), random_mask(16, 24)
    expected = Trained(layer, mask, SurvivorAdamW).step(0, 1)
    optimizer = SurvivorAdamW(layer.parameters(), lr=1e-2, weight_decay=0.1)
    prepared, wrapped = Accelerator(cpu=True).prepare(layer, optimizer)
    MaskEnforcer(prepared, wiring_of(weight=mask)).attach(wrapped)
    for number in (0, 1):
        rows = torch.randn(3, 24, generator=torch.Generator().manual_seed(number))
        prepared(rows).square().sum().backward()
        wrapped.step()
        wrapped.zero_grad()
    assert torch.equal(layer.weight, expected.layer.weight)


def test_an_evolution_is_the_same_and_resumes_to_the_bit(tmp_path: Path) -> None:
    options = {"optim": "adamw_torch", "optimizer_state": "survivors"}
    whole = evolve_worker.trainer(tmp_path / "lean", **options)
    whole.train()
    expected = evolve_worker.trainer(tmp_path / "dense", optim="adamw_torch")
    expected.train()
    assert evolve_worker.outcome(whole) == evolve_worker.outcome(expected)
    kept = torch.load(tmp_path / "lean/checkpoint-18/optimizer.pt", weights_only=True)["state"]
    sizes = {s["exp_avg"].numel() for s in kept.values() if "mask" in s}
    third = Connectome.from_pretrained(whole.generation_folder(2))
    assert sizes == {entry.num_survivors for entry in third.values()}
    for step in (8, 12):
        resumed = evolve_worker.trainer(tmp_path / "lean", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"lean/checkpoint-{step}"))
        assert evolve_worker.outcome(resumed) == evolve_worker.outcome(whole)


@pytest.mark.parametrize("arm", ["connectome", "dense"])
def test_an_arm_of_the_inner_loop_is_the_same(tmp_path: Path, arm: str) -> None:
    rows = [{"input_ids": block["input_ids"].tolist()} for block in evolve_worker.blocks(24, 8)]
    data = Dataset.from_list(rows)
    corpus = Corpus(data, data.select(range(4)), None, None, 32)
    connectome = drawn(tiny_model("gpt2"), reset="sign_constant")
    losses = []
    for state in ("dense", "survivors"):
        result = train_arm(
            arm,
            0,
            connectome=connectome,
            corpus=corpus,
            arguments=InheritanceArguments("", steps=4, optimizer_state=state),
            training=TrainingArguments(
                str(tmp_path), use_cpu=True, optim="adamw_torch", report_to="none"
            ),
        )
        losses.append(result.losses)
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][-1]


def test_the_inner_loop_refuses_an_unknown_state() -> None:
    with pytest.raises(UnknownNameError, match="unknown optimizer_state 'sparse'"):
        InheritanceArguments("", optimizer_state="sparse")

"""Continual use: held links are bit-equal under any optimizer, and old tasks come back exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KINDS, drawn, same, state_of, tiny_model
from tiny_hosts import inputs, logits
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.continual import HoldCallback, LinkHolder, TaskSequence
from hf_connectome.errors import HostMismatchError, ScopeError, UnsupportedError
from hf_connectome.scope import parameters_of

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.5, momentum=0.9),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.5),
}


def blocks(seed, number=8):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (number, 8), generator=draw)
    return [{"input_ids": i, "labels": i} for i in ids]


def trained(data, folder, **changes):
    """Make a function that trains by a stock Trainer."""
    options = {
        "max_steps": 3, "learning_rate": 0.05, "weight_decay": 0.3, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "save_strategy": "no", "seed": 1,
    } | changes  # fmt: skip

    def train(model, callback):
        arguments = TrainingArguments(output_dir=str(folder), **options)
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()

    return train


# ---- the holder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_held_weights_are_bit_equal_in_every_architecture(kind, optimizer):
    model = tiny_model(kind).train()
    free, before = drawn(model, density=0.4), state_of(model)
    parameters = parameters_of(model)
    step(model, kind, OPTIMIZERS[optimizer](model.parameters()), free, num_steps=3)
    for name in free:
        weight, mask = parameters[name].detach(), free.mask(name)
        assert weight[~mask].equal(before[name][~mask])
        moved = (weight[mask] != before[name][mask]).float().mean()
        assert moved > 0.9, name  # weight decay moves all but those that are 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_held_weights_are_bit_equal_under_every_optimizer(optimizer):
    model = tiny_model("gpt2").train()
    free, before = drawn(model, density=0.4), state_of(model)
    step(model, "gpt2", OPTIMIZERS[optimizer](model.parameters()), free, num_steps=4)
    for name in free:
        weight, mask = parameters_of(model)[name].detach(), free.mask(name)
        assert weight[~mask].equal(before[name][~mask])
        assert not weight[mask].equal(before[name][mask])


def step(model, kind, optimizer, free, num_steps):
    holder = LinkHolder(model, free).attach(optimizer)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(**inputs(KINDS[kind])).logits.square().mean().backward()
        optimizer.step()
    assert holder.num_leaks() == 0
    holder.detach()


@given(st.lists(st.integers(0, 2**12 - 1), min_size=2, max_size=2), st.integers(1, 3))
@settings(max_examples=20)
def test_held_weights_stay_even_where_the_gradient_is_not_finite(numbers, num_steps):
    bits, special = (
        torch.tensor([number >> place & 1 for place in range(12)]).bool().reshape(3, 4)
        for number in numbers
    )
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight[special] = -0.0
    before = layer.weight.detach().clone()
    free = Connectome({"weight": SignedMask.pack(bits, orientation="out_in")})
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    holder = LinkHolder(layer, free).attach(optimizer)
    for _ in range(num_steps):
        layer.weight.grad = torch.full_like(layer.weight, float("inf"))
        optimizer.step()
    held = layer.weight.detach().view(torch.int32)[~bits]
    assert held.equal(before.view(torch.int32)[~bits])
    assert holder.num_leaks() == 0
    assert not torch.isfinite(layer.weight.detach()[bits]).any()


def test_gradients_of_held_weights_are_0_before_clipping():
    model = tiny_model("gpt2").train()
    free = drawn(model, density=0.4)
    LinkHolder(model, free).attach()
    model(**inputs("GPT2LMHeadModel")).logits.square().mean().backward()
    for name in free:
        assert not parameters_of(model)[name].grad[~free.mask(name)].any()


def test_holding_goes_on_when_the_model_is_replaced_or_the_links_change():
    model = tiny_model("gpt2")
    free = drawn(model, density=0.4)
    holder = LinkHolder(model, free)
    before = state_of(model)
    copied = copy.deepcopy(model.transformer.h[0].mlp.c_fc.weight)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight = nn.Parameter(copied + 1.0)
    holder.project()
    name = "transformer.h.0.mlp.c_fc.weight"
    weight, mask = parameters_of(model)[name].detach(), free.mask(name)
    assert weight[~mask].equal(before[name][~mask])
    assert weight[mask].equal((copied + 1.0)[mask])
    other = drawn(model, density=0.4, seed=1)
    holder.update(other)
    now = state_of(model)
    with torch.no_grad():
        parameters_of(model)[name].add_(1.0)
    assert holder.num_leaks() == int((~other.mask(name)).sum())
    holder.project()
    assert parameters_of(model)[name][~other.mask(name)].equal(now[name][~other.mask(name)])


# ---- the sequence --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Learn three tasks, and note what the model gave right after each."""
    folder = tmp_path_factory.mktemp("tasks")
    model = tiny_model("gpt2")
    sequence, given, weights = TaskSequence(model), [], []
    for number in range(3):
        train = trained(blocks(number), folder)
        sequence.learn(f"task {number}", train, density=0.25, retrain=train)
        given.append(logits(model.eval(), "GPT2LMHeadModel"))
        weights.append(state_of(model))
    return sequence, given, weights


def test_every_task_comes_back_bit_for_bit(taught):
    sequence, given, _ = taught
    for task, before in zip(sequence.tasks, given, strict=True):
        twin = sequence.model_of(task.connectome).eval()
        assert logits(twin, "GPT2LMHeadModel").equal(before)
    assert not given[0].equal(given[2])


def test_links_of_earlier_tasks_never_move_or_die(taught):
    sequence, _, weights = taught
    for number, task in enumerate(sequence.tasks[:-1]):
        for later in weights[number + 1 :]:
            for name in task.connectome:
                mask = task.connectome.mask(name)
                assert later[name][mask].equal(weights[number][name][mask])
    assert all(
        task.connectome.overlap(after.connectome).num_shared == task.connectome.num_survivors
        for task, after in zip(sequence.tasks, sequence.tasks[1:], strict=False)
    )


def test_births_and_free_links_are_counted_exactly(taught):
    sequence, _, weights = taught
    sizes = {name: entry.num_weights for name, entry in sequence.free.items()}
    born = sum(round(0.25 * size) for size in sizes.values())
    for number, task in enumerate(sequence.tasks, 1):
        assert task.num_births == born
        assert task.num_free == sum(sizes.values()) - number * born
        assert {n: e.num_survivors for n, e in task.own.items()} == {
            n: round(0.25 * size) for n, size in sizes.items()
        }
        for name, entry in task.connectome.items():
            weight = weights[number - 1][name]
            assert not weight[~entry.mask()].any()  # free links are 0
            assert entry.sign().equal(torch.where(weight < 0, -1, 1).to(torch.int8) * entry.mask())
            own = task.own.sign(name)
            assert own.equal(entry.sign() * (own != 0))
        assert [row["task"] for row in task.connectome.lineage] == [
            f"task {n}" for n in range(number)
        ]
    last = sequence.tasks[-1]
    assert sequence.free.num_survivors == last.num_free == sequence.free.num_weights - 3 * born


def test_the_largest_free_links_are_kept(tmp_path):
    model = tiny_model("gpt2")
    seen = {}

    def train(model, callback):
        trained(blocks(0), tmp_path)(model, callback)
        seen.update(state_of(model))

    task = TaskSequence(model).learn("one", train, density=0.3)
    for name, entry in task.own.items():
        kept, gone = seen[name].abs()[entry.mask()], seen[name].abs()[~entry.mask()]
        assert kept.min() >= gone.max()
        assert parameters_of(model)[name][entry.mask()].equal(seen[name][entry.mask()])


def test_sequence_goes_on_in_another_process_bit_for_bit(taught, tmp_path):
    sequence, given, weights = taught
    sequence.tasks[1].connectome.save_pretrained(tmp_path / "second")
    model = tiny_model("gpt2", seed=9)
    model.load_state_dict(weights[1])
    used = Connectome.from_pretrained(tmp_path / "second", host=model)
    again = TaskSequence(model, used=used)
    assert again.free == TaskSequence(model, used=sequence.tasks[1].connectome).free
    train = trained(blocks(2), tmp_path)
    task = again.learn("task 2", train, density=0.25, retrain=train)
    assert task.connectome == sequence.tasks[2].connectome
    assert logits(model.eval(), "GPT2LMHeadModel").equal(given[2])
    second = again.model_of(used).eval()
    assert logits(second, "GPT2LMHeadModel").equal(given[1])


def test_training_resumed_within_a_task_is_bit_identical(tmp_path):
    def learn(folder, **changes):
        model = tiny_model("gpt2")
        free = drawn(model, density=0.4)
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2} | changes
        arguments = TrainingArguments(
            output_dir=str(folder), learning_rate=0.05, weight_decay=0.3, use_cpu=True,
            report_to=[], disable_tqdm=True, **options,
        )  # fmt: skip
        callbacks = [HoldCallback(free)]
        return model, Trainer(model, arguments, train_dataset=blocks(0), callbacks=callbacks)

    whole, trainer = learn(tmp_path)
    trainer.train()
    assert not (tmp_path / "checkpoint-2" / "connectome").exists()
    resumed, trainer = learn(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(state_of(whole), state_of(resumed))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, -1.0, 1e-9, 1.5])
def test_density_that_cannot_be_had_is_refused_before_training(density):
    def never(model, callback):
        raise AssertionError("trained")

    with pytest.raises(ScopeError, match="links; expected 1 to"):
        TaskSequence(tiny_model("gpt2")).learn("one", never, density=density)


def test_task_is_refused_when_too_few_links_are_free(taught):
    sequence, _, _ = taught
    message = r"asks for 922 links; expected 1 to 768, which are free of 3072"
    with pytest.raises(ScopeError, match=message):
        sequence.learn("too much", lambda *_: None, density=0.3)


def test_model_with_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(UnsupportedError, match="'1' keeps running statistics"):
        TaskSequence(model)


def test_used_links_of_another_model_are_refused():
    used = drawn(tiny_model("gpt2", n_layer=3))
    with pytest.raises(HostMismatchError):
        TaskSequence(tiny_model("gpt2"), used=used)

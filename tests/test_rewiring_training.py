"""Links that move while a model trains: optimizer state, gradients, resume, both loops."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny import drawn, same, state_of, tiny_model
from torch import nn
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

from hf_connectome import Connectome, ConnectomeConfig, MaskEnforcer
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, RunError, ScopeError, UnsupportedError
from hf_connectome.hosts import describe, wire
from hf_connectome.inheritance import REWIRED_FOLDER, InheritanceArguments, check_arms, train_arm
from hf_connectome.rewiring import Rewirer, get_rewiring
from hf_connectome.rewiring.gradients import DenseGradients
from hf_connectome.rewiring_callbacks import RewiringCallback
from hf_connectome.runs import last_checkpoint
from hf_connectome.scope import resolve
from hf_connectome.wirings import RandomWiring

# ---- one update ----------------------------------------------------------------------------------


def small(optimizer_class, *, spec="set:interval=1,until=1", density=0.3, **settings):
    """Return a wired network, its optimizer and what rewires it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    scope = resolve(model)
    first = RandomWiring().build(scope, density, 0)
    first = first.replace(config=describe(model, ConnectomeConfig(), scope))
    wire(model, first, reset="keep")
    optimizer = optimizer_class(model.parameters(), lr=0.05, **settings)
    enforcer = MaskEnforcer(model, first).attach(optimizer)
    rewirer = Rewirer(get_rewiring(spec), enforcer, first=first, seed=0, num_steps=50)
    return model, optimizer, rewirer


def backward(model, seed, count=6):
    torch.manual_seed(seed)
    model(torch.randn(count, 12)).square().sum().backward()


def train_step(model, optimizer, rewirer, step):
    rewirer.watch(step)
    backward(model, step)
    optimizer.step()
    optimizer.zero_grad()


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "nadam": (torch.optim.NAdam, {}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_memory_of_dead_and_newborn_links_is_cleared_and_that_of_others_stays(kind):
    optimizer_class, settings = OPTIMIZERS[kind]
    model, optimizer, rewirer = small(optimizer_class, **settings)
    train_step(model, optimizer, rewirer, 1)
    weight, before = model[0].weight, rewirer.enforcer.connectome.mask("0.weight")
    states = {k: v.clone() for k, v in optimizer.state[weight].items() if v.shape == weight.shape}
    old = weight.detach().clone()
    assert (kind == "adafactor") == (not states)
    rewirer.update(1)
    after = rewirer.enforcer.connectome.mask("0.weight")
    assert (after & ~before).any()
    assert (before & ~after).any()
    stay = after & before
    for key, value in [*states.items(), ("weight", old)]:
        now = weight.detach() if key == "weight" else optimizer.state[weight][key]
        assert torch.equal(now[stay], value[stay])
        assert value[stay].any()
        assert not now[~stay].any()


def test_state_of_integers_is_refused():
    model, optimizer, rewirer = small(torch.optim.AdamW)
    train_step(model, optimizer, rewirer, 1)
    weight = model[0].weight
    optimizer.state[weight]["exp_avg"] = torch.zeros(weight.shape, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match=r"AdamW keeps 'exp_avg' as torch\.uint8"):
        rewirer.update(1)


@pytest.mark.parametrize("spec", ["set", "rigl", "mest", "cht", "chts", "granet:density=0.2"])
def test_counts_and_zeros_are_exact_at_every_step(spec):
    spec += (":" if ":" not in spec else ",") + "interval=3,until=0.5"
    model, optimizer, rewirer = small(torch.optim.AdamW, spec=spec, weight_decay=0.1)
    first, updates = rewirer.first, 0
    for step in range(1, 31):
        train_step(model, optimizer, rewirer, step)
        record = rewirer.update(step)
        updates += record is not None
        found = rewirer.enforcer.connectome
        assert rewirer.enforcer.num_leaks() == 0
        if not rewirer.method.thins:
            assert [e.num_survivors for e in found.values()] == [
                e.num_survivors for e in first.values()
            ]
    assert updates == 8
    assert found != first
    if rewirer.method.thins:
        assert found.num_survivors == round(0.2 * found.num_weights)


def test_records_say_what_happened():
    model, optimizer, rewirer = small(torch.optim.AdamW)
    train_step(model, optimizer, rewirer, 1)
    first = rewirer.first
    record = rewirer.update(1)
    found = rewirer.enforcer.connectome
    shared = sum(int((first.mask(n) & found.mask(n)).sum()) for n in found)
    links = found.num_survivors
    assert record == {
        "links": links,
        "births": links - shared,
        "deaths": links - shared,
        "turnover": (links - shared) / links,
        "overlap": shared / (2 * links - shared),
    }
    assert rewirer.update(50) is None  # after the last update


def test_signs_are_those_of_the_weights():
    model, optimizer, rewirer = small(torch.optim.AdamW)
    train_step(model, optimizer, rewirer, 1)
    rewirer.update(1)
    for step in (2, 3):
        train_step(model, optimizer, rewirer, step)
    found = rewirer.signed()
    mask = found.mask("0.weight")
    expected = torch.where(model[0].weight[mask] < 0, -1, 1)
    assert torch.equal(found.sign("0.weight")[mask], expected)


def test_a_mask_without_signs_stays_one():
    _, _, rewirer = small(torch.optim.AdamW)
    bare = {n: dataclasses.replace(e, sign_bits=None) for n, e in rewirer.first.items()}
    rewirer.enforcer.update(rewirer.first.replace(bare))
    rewirer.update(1)
    assert not rewirer.enforcer.connectome.has_signs


# ---- gradients -----------------------------------------------------------------------------------


def test_observed_gradient_is_the_dense_one_of_all_micro_steps():
    model, _, rewirer = small(torch.optim.SGD, spec="rigl:interval=1,until=1")
    torch.manual_seed(5)
    inputs = torch.randn(6, 12)
    rewirer.watch(1)
    for part in inputs.split(2):
        model(part).square().sum().backward()
    observed = rewirer.enforcer.observer.of("0.weight")
    masked = model[0].weight.grad.clone()
    assert not masked[~rewirer.first.mask("0.weight")].any()
    rewirer.enforcer.detach()
    model.zero_grad()
    model(inputs).square().sum().backward()
    torch.testing.assert_close(observed, model[0].weight.grad)
    torch.testing.assert_close(masked, observed * rewirer.first.mask("0.weight"))


def test_gradients_are_looked_at_in_update_steps_only():
    _, _, rewirer = small(torch.optim.SGD, spec="rigl:interval=3,until=1")
    seen = []
    for step in range(1, 10):
        rewirer.watch(step)
        seen.append(rewirer.enforcer.observer is not None)
    assert seen == [False, False, True] * 3
    _, _, rewirer = small(torch.optim.SGD, spec="set:interval=1,until=1")
    rewirer.watch(1)
    assert rewirer.enforcer.observer is None


def test_no_gradient_is_an_error():
    _, _, rewirer = small(torch.optim.SGD, spec="rigl:interval=1,until=1")
    rewirer.watch(1)
    with pytest.raises(ConfigError, match=r"'0\.weight' has had no gradient .* which RigL grows"):
        rewirer.update(1)


def test_other_parameters_are_not_collected():
    gradients = DenseGradients({"a"}, "RigL")
    gradients("b", torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ConfigError, match="'b' has had no gradient"):
        gradients.of("b")


# ---- what cannot be rewired ----------------------------------------------------------------------


def test_a_frozen_parameter_is_refused():
    model, _, rewirer = small(torch.optim.SGD)
    model[2].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"'2\.weight' would be rewired but is not trained"):
        Rewirer(rewirer.method, rewirer.enforcer, first=rewirer.first, seed=0, num_steps=9)


def test_embeddings_stay_as_they_are_unless_asked_for():
    model = tiny_model("gpt2")
    first = drawn(model)
    enforcer = MaskEnforcer(model, first).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    for scope, expected in (("body", False), ("all-matrices", True)):
        method = get_rewiring(f"set:interval=1,scope={scope}")
        rewirer = Rewirer(method, enforcer, first=first, seed=0, num_steps=9)
        assert ("transformer.wte.weight" in rewirer.scope) is expected
        assert "transformer.h.0.attn.c_attn.weight" in rewirer.scope
    body = first.replace({n: e for n, e in first.items() if ".h." in n})
    method, enforcer = get_rewiring("set:scope=embeddings"), MaskEnforcer(model, body)
    with pytest.raises(ScopeError, match="has none of the 8 parameters of the connectome"):
        Rewirer(method, enforcer, first=body, seed=0, num_steps=900)


def test_a_matrix_too_large_for_its_topology_is_refused(monkeypatch):
    method = get_rewiring("cht:interval=1")
    monkeypatch.setattr(type(method), "most_nodes", 12)
    _, _, rewirer = small(torch.optim.SGD)
    with pytest.raises(
        ScopeError, match=r"'0.weight' is \(16, 12\); CHT keeps the square of its 16"
    ):
        Rewirer(method, rewirer.enforcer, first=rewirer.first, seed=0, num_steps=9)


# ---- any Trainer ---------------------------------------------------------------------------------


def stock(folder, spec, connectome=None, seed=0, **options):
    model = tiny_model("llama", seed)
    first = drawn(tiny_model("llama")) if connectome is None else connectome
    wire(model, first, reset="sign_constant")
    rows = torch.randint(2, 97, (64, 6), generator=torch.Generator().manual_seed(0))
    settings = {
        "max_steps": 9,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **options,
    }
    callback = RewiringCallback(first, spec, seed=3)
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **settings),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )
    return trainer, callback


@pytest.mark.parametrize("spec", ["rigl", "chtss:density=0.1,last_power=3"])
def test_a_resumed_child_equals_the_uninterrupted_one(tmp_path, spec):
    spec += ("," if ":" in spec else ":") + "interval=2,until=0.9"
    whole, ended = stock(tmp_path / "whole", spec)
    whole.train()
    moved = [r for r in whole.state.log_history if "births" in r]
    assert [r["step"] for r in moved] == [2, 4, 6, 8]
    for step in (3, 4):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed, callback = stock(folder, spec, seed=1)
        resumed.train(resume_from_checkpoint=True)
        assert same(state_of(resumed.model), state_of(whole.model))
        assert callback.connectome == ended.connectome
        assert [r for r in resumed.state.log_history if "births" in r] == moved
    saved = Connectome.from_pretrained(tmp_path / "whole" / "checkpoint-9" / "connectome")
    assert saved == ended.connectome
    assert saved != ended.first


def test_another_checkpoint_than_the_wiring_is_refused(tmp_path):
    spec = "rigl:interval=2,until=0.9"
    whole, _ = stock(tmp_path / "whole", spec)
    whole.train()
    elsewhere, _ = stock(tmp_path / "elsewhere", spec)
    with pytest.raises(RunError, match="should hold the wiring at step 4"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    wrong = tmp_path / "wrong" / "checkpoint-4" / "connectome"
    shutil.copytree(tmp_path / "whole" / "checkpoint-1" / "connectome", wrong)
    elsewhere, _ = stock(tmp_path / "wrong", spec)
    with pytest.raises(RunError, match="has weights outside the wiring"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))


def test_a_connectome_that_no_checkpoint_could_carry_is_refused(tmp_path):
    bare = Connectome(dict(drawn(tiny_model("llama"))))
    trainer, _ = stock(tmp_path, "set:interval=2", bare)
    with pytest.raises(ConfigError, match="has no config, so no checkpoint could carry it"):
        trainer.train()
    trainer, callback = stock(tmp_path, "set:interval=2", bare, save_strategy="no")
    trainer.train()
    assert callback.connectome.num_survivors == bare.num_survivors


def test_a_dense_connectome_is_refused_unless_it_is_thinned(tmp_path):
    dense = drawn(tiny_model("llama"), density=1.0)
    trainer, _ = stock(tmp_path, "set:interval=2", dense)
    with pytest.raises(ScopeError, match="every matrix in the scope 'body' is dense"):
        trainer.train()
    trainer, callback = stock(tmp_path / "gmp", "gmp:interval=2,density=0.25", dense)
    trainer.train()
    body = resolve(trainer.model, "body")
    assert all(callback.connectome[n].density == pytest.approx(0.25, abs=0.01) for n in body)
    assert callback.connectome["model.embed_tokens.weight"].density == 1.0


def test_gradients_under_fp16_are_refused(tmp_path):
    trainer, callback = stock(tmp_path, "rigl:interval=2")
    trainer.args.fp16 = True
    with pytest.raises(UnsupportedError, match="RigL looks at gradients, which fp16 scales"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


# ---- the outer loop ------------------------------------------------------------------------------


def outcome(run):
    return json.loads(json.dumps(evolve_worker.outcome(run)))


def moves(run):
    return [r for r in run.state.log_history if "births" in r]


@pytest.mark.parametrize("method", ["rigl", pytest.param("chts", marks=pytest.mark.slow)])
def test_evolution_goes_on_bit_for_bit_from_every_checkpoint(tmp_path, method):
    spec = f"{method}:interval=2"
    whole = evolve_worker.trainer(tmp_path / "whole", rewiring=spec, save_steps=1)
    whole.train()
    assert [r["step"] for r in moves(whole)] == [8, 10, 14, 16]  # generation 0 is dense
    assert [r["generation"] for r in moves(whole)] == [1, 1, 2, 2]
    for step in (9, 14):
        folder = tmp_path / f"from-{step}"
        folder.mkdir()
        for found in (tmp_path / "whole").glob("generation-*"):
            shutil.copytree(found, folder / found.name)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = evolve_worker.trainer(folder, rewiring=spec, save_steps=1)
        resumed.train(resume_from_checkpoint=True)
        assert outcome(resumed) == outcome(whole)
        assert moves(resumed) == moves(whole)


def test_evolution_keeps_its_counts_and_records_births(tmp_path):
    run = evolve_worker.trainer(tmp_path, rewiring="set:interval=2", save_steps=2)
    run.train()
    still = evolve_worker.trainer(tmp_path / "still")
    still.train()
    for name, entry in run.connectome.items():
        assert entry.num_survivors == still.connectome[name].num_survivors
    assert run.connectome.lineage[-1]["rewiring"] == "set:interval=2"
    assert still.connectome.lineage[-1]["rewiring"] is None
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    kept = [record for record in map(json.loads, lines) if "births" in record]
    assert kept == json.loads(json.dumps(moves(run)))
    assert all(r["births"] == r["deaths"] > 0 and 0 < r["overlap"] < 1 for r in kept)
    trained = Connectome.from_pretrained(last_checkpoint(tmp_path) / "connectome")
    begun = Connectome.from_pretrained(tmp_path / "generation-2")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert trained.mask(name).sum() == begun.mask(name).sum()
    assert not torch.equal(trained.mask(name), begun.mask(name))
    assert trained["transformer.wte.weight"].mask_bits.tobytes() == (
        begun["transformer.wte.weight"].mask_bits.tobytes()
    )


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("gmp:density=0.1,interval=1", ConfigError, "falls from generation to generation"),
        ("set:interval=6", ConfigError, "no link would move in a training of 6 steps"),
        ("sett", ValueError, "unknown rewiring 'sett'"),
    ],
)
def test_evolution_refuses_what_cannot_be(tmp_path, spec, error, message):
    with pytest.raises(error, match=message):
        evolve_worker.trainer(tmp_path, rewiring=spec)


def test_evolution_is_not_resumed_under_another_rewiring(tmp_path):
    run = evolve_worker.trainer(tmp_path, rewiring="set:interval=2", save_steps=1)
    run.train()
    shutil.rmtree(tmp_path / "checkpoint-18")
    other = evolve_worker.trainer(tmp_path, save_steps=1)
    with pytest.raises(RunError, match="rewiring is 'set:interval=2' there, None here"):
        other.train(resume_from_checkpoint=True)


# ---- the inner loop ------------------------------------------------------------------------------


class Blocks:
    """What train_arm reads of a corpus."""

    train = evaluation = evolve_worker.blocks(32)
    collate = collate


def inherit(tmp_path, connectome, arm="connectome", **settings):
    arguments = InheritanceArguments("unused", arms=[arm], seeds=1, steps=6, **settings)
    training = TrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, report_to="none", learning_rate=1e-2
    )
    options = {"connectome": connectome, "corpus": Blocks, "arguments": arguments}
    return train_arm(arm, 0, training=training, **options)


@pytest.fixture(scope="module")
def evolved():
    return drawn(evolve_worker.model(), density=0.3, reset="sign_constant")


def test_arms_rewire_while_they_learn(tmp_path, evolved):
    still = inherit(tmp_path / "still", evolved)
    moving = inherit(tmp_path / "moving", evolved, rewiring="rigl:interval=2")
    assert moving.num_survivors == still.num_survivors
    assert moving.losses[0] == still.losses[0]
    assert moving.losses[-1] != still.losses[-1]
    folder = tmp_path / "moving" / REWIRED_FOLDER / "connectome-seed0"
    found = Connectome.from_pretrained(folder)
    assert found.num_survivors == evolved.num_survivors
    assert found != evolved
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "births" in r] == [2, 4]
    assert not (tmp_path / "still" / REWIRED_FOLDER).exists()


def test_an_arm_that_is_thinned_says_what_is_left(tmp_path, evolved):
    result = inherit(tmp_path, evolved, rewiring="gmp:interval=2,density=0.1")
    assert result.num_survivors < evolved.num_survivors
    found = Connectome.from_pretrained(tmp_path / REWIRED_FOLDER / "connectome-seed0")
    assert result.num_survivors == found.num_survivors


def test_dense_arms_alone_cannot_be_rewired(evolved):
    arguments = InheritanceArguments("unused", arms=["dense"], rewiring="set:interval=2")
    with pytest.raises(ConfigError, match=r"every arm \(dense\) is dense"):
        check_arms(evolved, arguments, 16)
    check_arms(evolved, InheritanceArguments("unused", rewiring="set:interval=2"), 16)


def test_inheritance_refuses_an_interval_without_updates():
    with pytest.raises(ConfigError, match="no link would move in a training of 50 steps"):
        InheritanceArguments("unused", steps=50, rewiring="rigl")

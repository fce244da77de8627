import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

from hf_connectome import Connectome, GenerationalArguments, GenerationalTrainer
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, RunError, ScopeError, StorageError
from hf_connectome.runs import last_checkpoint
from hf_connectome.scope import resolve

WORKER = Path(evolve_worker.__file__)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **parts):
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run = evolve_worker.trainer(folder)
    run.train()
    return run


def outcome(run):
    return json.loads(json.dumps(evolve_worker.outcome(run)))


# ---- counts --------------------------------------------------------------------------------------


def test_every_generation_has_exactly_the_rounded_survivors_of_every_tensor(finished):
    schedule = finished.args.schedule
    for generation in range(4):
        saved = Connectome.from_pretrained(finished.generation_folder(generation))
        assert saved.config.generation == generation
        assert len(saved) == 10
        for entry in saved.values():
            expected = schedule.survivors_after(entry.num_weights, generation)
            assert entry.num_survivors == expected


def test_masks_are_nested_over_generations(finished):
    older = Connectome.from_pretrained(finished.generation_folder(1))
    newer = Connectome.from_pretrained(finished.generation_folder(3))
    for name in newer:
        assert not (newer.mask(name) & ~older.mask(name)).any()


def test_lineage_records_what_each_generation_reached(finished):
    rows = finished.connectome.lineage
    assert [row["generation"] for row in rows] == [0, 1, 2]
    assert [row["steps"] for row in rows] == [6, 12, 18]
    evaluated = {r["step"]: r["eval_loss"] for r in finished.state.log_history if "eval_loss" in r}
    assert [row["eval_loss"] for row in rows] == [evaluated[s] for s in (6, 12, 18)]
    assert [row["digest"] for row in rows] == [
        Connectome.from_pretrained(finished.generation_folder(g)).digest for g in range(3)
    ]


def test_signs_are_those_of_the_weights_that_the_generation_was_found_in(finished):
    trained = AutoModelForCausalLM.from_pretrained(finished.output_folder / "checkpoint-12")
    found = Connectome.from_pretrained(finished.generation_folder(2))
    weights = dict(trained.named_parameters())
    for name in found:
        mask = found.mask(name)
        assert torch.equal(found.sign(name)[mask], torch.where(weights[name][mask] < 0, -1, 1))


def test_dead_weights_are_zero_in_every_checkpoint(finished):
    for checkpoint in sorted(finished.output_folder.glob("checkpoint-*")):
        weights = dict(AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters())
        saved = Connectome.from_pretrained(checkpoint / "connectome")
        for name in saved:
            assert not weights[name][~saved.mask(name)].any()


def test_no_file_of_a_run_is_readable_by_its_owner_alone(finished):
    checkpoint = finished.output_folder / "checkpoint-18"
    for folder in (finished.generation_folder(3), checkpoint / "connectome"):
        assert all(file.stat().st_mode & 0o044 for file in folder.rglob("*"))


# ---- boundaries ----------------------------------------------------------------------------------


def test_evaluation_at_a_boundary_sees_the_trained_unpruned_weights(finished):
    evaluated = {r["step"]: r["eval_loss"] for r in finished.state.log_history if "eval_loss" in r}
    assert sorted(evaluated) == [6, 12, 18]
    model = AutoModelForCausalLM.from_pretrained(finished.output_folder / "checkpoint-12").eval()
    rows = torch.stack([block["input_ids"] for block in evolve_worker.blocks()[:8]])
    with torch.no_grad():
        loss = model(input_ids=rows, labels=rows).loss.item()
    assert loss == pytest.approx(evaluated[12], abs=1e-5)


def test_learning_rate_restarts_and_data_goes_on_in_every_generation(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **parts):
            seen.append(parts["lr_scheduler"].get_last_lr()[0])

    run = evolve_worker.trainer(tmp_path, generations=2, save_strategy="no")
    run.add_callback(Watch())
    batches = []
    step = run.training_step

    def recorded(model, inputs, num_items_in_batch=None):
        batches.append(inputs["input_ids"].clone())
        return step(model, inputs, num_items_in_batch)

    run.training_step = recorded
    run.train()
    assert seen[:6] == seen[6:]
    first, second = (torch.cat(batches[i : i + 12]).tolist() for i in (0, 12))
    assert not any(row in first for row in second)


def test_optimizer_state_is_new_after_a_boundary(tmp_path):
    steps = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **parts):
            optimizer = parts["optimizer"]
            steps[state.global_step] = {int(s["step"]) for s in optimizer.state.values()}

    run = evolve_worker.trainer(tmp_path, generations=2, save_strategy="no")
    run.add_callback(Watch())
    run.train()
    assert steps[6] == {6}
    assert steps[7] == {1}


@pytest.mark.parametrize(
    "reset",
    ["init_std", "variance_preserving", "tensor_scale", "fresh_magnitude", "rewind", "keep"],
)
def test_every_reset_runs_and_leaves_its_values(tmp_path, reset):
    run = evolve_worker.trainer(tmp_path, generations=2, reset=reset, rewind_steps=2)
    kept = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **parts):
            if state.global_step in (2, 6):
                weights = {n: p.detach().clone() for n, p in model.named_parameters()}
                kept[state.global_step] = weights

    run.add_callback(Watch())
    run.train()
    assert run.generation == 2
    name = "transformer.h.0.mlp.c_fc.weight"
    weight, mask = run.model.get_parameter(name).detach(), run.connectome.mask(name)
    assert not weight[~mask].any()
    assert weight[mask].all()
    if reset == "tensor_scale":
        scale = run.connectome[name].scale.item()
        assert weight[mask].abs().unique().tolist() == [scale]
    if reset in ("init_std", "variance_preserving"):
        assert weight[mask].abs().unique().numel() == 1
    if reset == "rewind":
        assert torch.equal(weight[mask], kept[2][name][mask])


def test_global_selection_drops_the_exact_total(tmp_path):
    run = evolve_worker.trainer(tmp_path, generations=2, selection="global")
    run.train()
    expected = run.args.schedule.survivors_after(run.connectome.num_weights, 2)
    assert run.connectome.num_survivors == expected
    assert all(entry.num_survivors > 0 for entry in run.connectome.values())
    assert len(set(run.connectome.densities().values())) > 2


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, 6, 9, 12])
def test_resume_is_bit_identical_wherever_it_stopped(finished, tmp_path, step):
    run = evolve_worker.trainer(tmp_path)
    run.add_callback(StopAt(step))
    run.train()
    run = evolve_worker.trainer(tmp_path)
    run.train(resume_from_checkpoint=True if last_checkpoint(tmp_path) else None)
    assert outcome(run) == outcome(finished)


def test_resume_is_bit_identical_under_another_schedule_budget_and_structure(tmp_path):
    settings = {
        "pruning_schedule": "cubic",
        "final_density": 0.1,
        "budget": "erk",
        "final_density_pattern": {"wte": 0.5},
        "structure": "block:4x4",
    }
    whole = evolve_worker.trainer(tmp_path / "whole", **settings)
    whole.train()
    counts = {name: entry.num_survivors for name, entry in whole.connectome.items()}
    scope = resolve(whole.model)
    alive = {name: parameter.num_weights for name, parameter in scope.items()}
    for generation in (1, 2, 3):
        alive = whole.args.pruning.survivors(scope, alive, generation)
        saved = Connectome.from_pretrained(whole.generation_folder(generation))
        assert {name: entry.num_survivors for name, entry in saved.items()} == alive
    assert counts["transformer.wte.weight"] == 1024
    row = whole.connectome.lineage[-1]
    assert {key: row[key] for key in settings} == settings
    run = evolve_worker.trainer(tmp_path / "run", **settings)
    run.add_callback(StopAt(9))
    run.train()
    run = evolve_worker.trainer(tmp_path / "run", **settings)
    run.train(resume_from_checkpoint=True)
    assert outcome(run) == outcome(whole)
    other = evolve_worker.trainer(tmp_path / "run", **settings | {"budget": "uniform"})
    with pytest.raises(RunError, match="budget is 'erk' there, 'uniform' here"):
        other.train(resume_from_checkpoint=True)


def test_kill_at_three_random_moments_changes_nothing(finished, tmp_path):
    draw = random.Random(20504)
    moments = [
        "checkpoint-4/model.safetensors",
        "checkpoint-6/optimizer.pt",
        "generation-1/adapter_config.json",
        "checkpoint-8/connectome/adapter_model.safetensors",
        "checkpoint-12/scheduler.pt",
        "generation-2/adapter_model.safetensors",
        "checkpoint-16/config.json",
    ]
    for moment in sorted(draw.sample(range(len(moments)), 3)):
        worker = subprocess.Popen([sys.executable, str(WORKER), str(tmp_path)])
        deadline = time.monotonic() + 120
        while not (tmp_path / moments[moment]).exists() and worker.poll() is None:
            assert time.monotonic() < deadline
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    last = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(last.stdout.splitlines()[-1]) == outcome(finished)


def test_the_last_pruning_is_made_up_for_when_training_is_over(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.output_folder, folder)
    shutil.rmtree(folder / "generation-3")
    run = evolve_worker.trainer(folder)
    run.train(resume_from_checkpoint=True)
    assert Connectome.from_pretrained(folder / "generation-3") == finished.connectome
    assert outcome(run)["weights"] == outcome(finished)["weights"]


def test_a_half_written_checkpoint_is_passed_over(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.output_folder, folder)
    (folder / "checkpoint-18" / "trainer_state.json").write_text('{"global_step": 1')
    assert last_checkpoint(folder) == folder / "checkpoint-16"
    run = evolve_worker.trainer(folder)
    run.train(resume_from_checkpoint=True)
    assert outcome(run) == outcome(finished)
    assert last_checkpoint(folder) == folder / "checkpoint-18"


def test_fused_experts_survive_a_resume(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    def run(folder, stop=None):
        torch.manual_seed(0)
        model = MixtralForCausalLM(
            MixtralConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                vocab_size=64,
                num_local_experts=2,
            )
        )
        arguments = GenerationalArguments(
            str(folder),
            generations=2,
            steps_per_generation=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = GenerationalTrainer(
            model, arguments, train_dataset=evolve_worker.blocks(32), data_collator=collate
        )
        if stop:
            trainer.add_callback(StopAt(stop))
        trainer.train(resume_from_checkpoint=True if last_checkpoint(folder) else None)
        return evolve_worker.outcome(trainer)

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=4)
    assert run(tmp_path / "parts")["weights"] == whole["weights"]


# ---- without this package ------------------------------------------------------------------------


def test_trained_checkpoint_loads_where_this_package_cannot_be_imported(finished):
    checkpoint = finished.output_folder / "checkpoint-18"
    script = (
        "import sys; sys.modules['hf_connectome'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(checkpoint)!r}).eval()\n"
        "ids = torch.arange(16)[None]\n"
        "logits = model(input_ids=ids).logits\n"
        "zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)\n"
        "print(zeros, logits.detach().double().sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    zeros, total = done.stdout.split()
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    logits = model(input_ids=torch.arange(16)[None]).logits.detach()
    dead = Connectome.from_pretrained(checkpoint / "connectome")
    assert int(zeros) == dead.num_weights - dead.num_survivors
    assert float(total) == logits.double().sum().item()


# ---- bad input -----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_configuration_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.output_folder, folder)
    with pytest.raises(RunError, match="reset is 'sign_constant' there, 'init_std' here"):
        evolve_worker.trainer(folder, reset="init_std").train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match=r"prune_fraction is 0\.2 there, 0\.3 here"):
        evolve_worker.trainer(folder, prune_fraction=0.3).train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match="steps_per_generation"):
        evolve_worker.trainer(folder, steps_per_generation=10).train(resume_from_checkpoint=True)


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(RunError, match="no checkpoint that was written to its end"):
        evolve_worker.trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_generation_without_survivors_is_refused_before_training(tmp_path):
    with pytest.raises(ScopeError, match="would have no survivor in generation"):
        evolve_worker.trainer(tmp_path, prune_fraction=0.99)


def test_a_scope_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(ScopeError, match="matches no parameter of GPT2LMHeadModel"):
        evolve_worker.trainer(tmp_path, scope="embedings")


def test_a_peft_model_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(evolve_worker.model(), config)
    with pytest.raises(ConfigError, match=r"model\.get_base_model"):
        GenerationalTrainer(model, GenerationalArguments(str(tmp_path), use_cpu=True))


def test_disk_full_while_saving_a_generation_leaves_the_others_whole(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.output_folder, folder)
    shutil.rmtree(folder / "generation-3")
    run = evolve_worker.trainer(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"generation-3.*What was there before is whole"):
            run.train(resume_from_checkpoint=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folder / "generation-3").exists()
    assert not list(folder.glob(".generation-3*"))
    assert Connectome.from_pretrained(folder / "generation-2").config.generation == 2
    again = evolve_worker.trainer(folder)
    again.train(resume_from_checkpoint=True)
    assert Connectome.from_pretrained(folder / "generation-3") == finished.connectome

"""Runs whose criterion needs more than weights: refused before the first step, resumed exactly."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker
from test_trainer import StopAt, outcome
from tiny import tiny_model

from hf_connectome import GenerationalTrainer
from hf_connectome.arguments import GenerationalArguments
from hf_connectome.calibration import Calibrator
from hf_connectome.config import ConnectomeConfig
from hf_connectome.criteria import criteria
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, RunError, ScopeError
from hf_connectome.evolution import next_generation
from hf_connectome.pruning import Pruning
from hf_connectome.scope import output_rows


def trainer(folder, criterion, **options):
    settings = {
        "criterion": criterion,
        "calibration_batches": 2,
        "generations": 2,
        "steps_per_generation": 3,
        "save_steps": 2,
    }
    return evolve_worker.trainer(folder, **{**settings, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the uninterrupted run of a criterion."""

    @functools.cache
    def run(criterion):
        found = trainer(tmp_path_factory.mktemp(criterion), criterion)
        found.train()
        return found

    return run


@pytest.mark.parametrize(
    ("criterion", "step"),
    [("movement", 2), ("movement", 3), ("movement", 6), ("taylor", 3), ("wanda", 6)],
)
def test_resume_is_bit_identical_within_a_generation_and_at_its_end(
    whole, tmp_path, criterion, step
):
    run = trainer(tmp_path, criterion)
    run.add_callback(StopAt(step))
    run.train()
    run = trainer(tmp_path, criterion)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert measured_outcome(run) == measured_outcome(whole(criterion))


def measured_outcome(run):
    """Leave out the summary that closes a training: a run that was over has none."""
    found = outcome(run)
    return found | {"losses": [r for r in found["losses"] if {"loss", "eval_loss"} & r.keys()]}


def test_counts_are_exact_and_the_criterion_is_recorded(whole):
    run = whole("movement")
    for entry in run.connectome.values():
        assert entry.num_survivors == run.args.schedule.survivors_after(entry.num_weights, 2)
    assert [row["criterion"] for row in run.connectome.lineage] == ["movement", "movement"]


def test_every_criterion_has_its_own_survivors_and_leaves_the_random_state_alone(whole):
    run = whole("movement")
    before, digests = torch.get_rng_state(), set()
    for criterion in criteria:
        calibrator = Calibrator(criteria.get(criterion).needs, run, run.connectome)
        statistics = calibrator.statistics(run.model, run.connectome, 2)
        if criterion == "movement":
            assert statistics == {"movement": {}}  # no step was taken since
            continue
        pruning = Pruning(run.args.schedule, criterion=criterion)
        config = ConnectomeConfig(generation=3)
        found = next_generation(run.model, run.connectome, pruning, config, statistics)
        digests.add(found.digest)
    assert len(digests) == 10
    assert torch.get_rng_state().equal(before)


def test_rows_keep_equally_many_when_compared_per_row(tmp_path):
    run = trainer(tmp_path, "wanda", selection="per-row", steps_per_generation=1)
    run.train()
    assert [row["selection"] for row in run.connectome.lineage] == ["per-row"] * 2
    for entry in run.connectome.values():
        assert entry.num_survivors == run.args.schedule.survivors_after(entry.num_weights, 2)
        rows = output_rows(entry.shape, entry.orientation)
        per_row = rows[entry.mask()].bincount(minlength=int(rows.max()) + 1)
        assert int(per_row.max() - per_row.min()) <= 1


# ---- batches -------------------------------------------------------------------------------------


def drawn_batches(run, generation):
    return torch.cat([b["input_ids"] for b in run._calibrator._draw(generation)]).tolist()


def test_batches_are_a_function_of_seed_and_generation(tmp_path):
    run, again = trainer(tmp_path, "snip"), trainer(tmp_path, "snip")
    torch.manual_seed(1)  # of no importance
    first = drawn_batches(run, 0)
    torch.manual_seed(2)
    assert drawn_batches(again, 0) == first
    assert drawn_batches(run, 1) != first
    assert drawn_batches(trainer(tmp_path, "snip", seed=6), 0) != first
    assert len(first) == 2 * 4
    rows = [row["input_ids"].tolist() for row in evolve_worker.blocks()]
    assert all(row in rows for row in first)
    assert len({tuple(row) for row in first}) == len(first)


def test_collator_that_draws_is_seeded_and_the_training_does_not_notice(tmp_path):
    def noisy(rows):
        batch = collate(rows)
        return batch | {"input_ids": torch.randint_like(batch["input_ids"], 64)}

    run = trainer(tmp_path, "snip")
    run.data_collator = noisy
    before = torch.get_rng_state()
    first = drawn_batches(run, 0)
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    assert drawn_batches(run, 0) == first


def test_small_training_set_gives_what_it_has(tmp_path):
    assert len(drawn_batches(trainer(tmp_path, "snip", calibration_batches=99), 0)) == 96


def test_nothing_is_drawn_where_nothing_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(Calibrator, "_draw", None)
    for criterion in ("magnitude", "movement"):
        options = {"generations": 1, "steps_per_generation": 1}
        trainer(tmp_path / criterion, criterion, **options).train()


# ---- refusals, all before the first step ---------------------------------------------------------


class Streamed(IterableDataset):
    def __iter__(self):
        yield from evolve_worker.blocks()


def streamed_trainer(folder, criterion):
    arguments = GenerationalArguments(
        str(folder),
        criterion=criterion,
        generations=1,
        steps_per_generation=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    return GenerationalTrainer(
        evolve_worker.model(), arguments, train_dataset=Streamed(), data_collator=collate
    )


def test_streamed_data_is_refused_for_what_is_measured_on_batches(tmp_path):
    with pytest.raises(ConfigError, match=r"drawn by index, and Streamed has no index.*movement"):
        streamed_trainer(tmp_path, "wanda")
    streamed_trainer(tmp_path, "movement").train()


def test_parameters_without_inputs_are_refused(tmp_path):
    arguments = GenerationalArguments(str(tmp_path), criterion="ria", use_cpu=True)
    with pytest.raises(ScopeError, match=r"'model\.layers\.0\.mlp\.experts\.down_proj'"):
        GenerationalTrainer(tiny_model("mixtral"), arguments, train_dataset=evolve_worker.blocks())


@pytest.mark.parametrize("value", [0, -1])
def test_there_is_at_least_one_batch(value):
    with pytest.raises(ConfigError, match=f"calibration_batches is {value}; expected at least 1"):
        GenerationalArguments("unused", calibration_batches=value, use_cpu=True)


def test_checkpoint_without_movement_is_refused(whole, tmp_path):
    run = trainer(tmp_path, "movement")
    run.add_callback(StopAt(2))
    run.train()
    (tmp_path / "checkpoint-2" / "movement.safetensors").unlink()
    with pytest.raises(RunError, match=r"movement\.safetensors is missing or damaged"):
        trainer(tmp_path, "movement").train(resume_from_checkpoint=True)

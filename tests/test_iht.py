from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import evolve_worker

from hf_connectome import Connectome, GenerationalArguments, GenerationalTrainer
from hf_connectome.errors import ConfigError, ScopeError, UnsupportedError
from hf_connectome.outer_loops import OuterLoopArguments, ThresholdTrainer, outer_loop
from hf_connectome.outer_loops.iht import Annealing
from hf_connectome.outer_loops.thresholds import HardThresholds, zero_smallest
from hf_connectome.runs import last_checkpoint
from hf_connectome.sources import find_connectome

VALUES = [-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.0 + 2.0**-7, 2.0, float("inf")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


# ---- one parameter -------------------------------------------------------------------------------


def thresholded(weight, n_drop):
    """Zero the smallest weights by Python's own sort; of equals, the first ones."""
    flat = weight.flatten().tolist()
    for index in sorted(range(len(flat)), key=lambda i: (abs(flat[i]), i))[:n_drop]:
        flat[index] = 0.0
    return torch.tensor(flat, dtype=weight.dtype).reshape(weight.shape)


@st.composite
def weights(draw):
    """Draw a parameter with ties."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    pool = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=5))
    values = draw(st.lists(st.sampled_from(pool), min_size=rows * columns, max_size=rows * columns))
    weight = torch.tensor(values, dtype=torch.float64).reshape(rows, columns)
    return weight.to(draw(st.sampled_from(DTYPES)))


@given(weights(), st.floats(0, 1), st.integers(1, 12))
def test_result_is_that_of_ranking_all_weights_whatever_is_sampled(weight, fraction, num_sampled):
    n_drop = round(fraction * weight.numel())
    expected = thresholded(weight, n_drop)
    zero_smallest(weight, n_drop, num_sampled=num_sampled)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_drop", [50, 600, 1476, 1990])
def test_few_weights_are_ranked_when_the_sample_is_large(dtype, n_drop):
    draw = torch.Generator().manual_seed(n_drop)
    weight = torch.randn(40, 50, generator=draw).to(dtype)
    for _ in range(4):  # from the second on, as after a step: many small weights, then a gap
        weight += 0.01 * torch.randn(weight.shape, generator=draw).to(dtype)
        expected = thresholded(weight, n_drop)
        num_ranked = zero_smallest(weight, n_drop, num_sampled=500)
        assert torch.equal(weight, expected)
        assert 0 < num_ranked < 500


def test_all_weights_are_ranked_when_the_sample_misleads(monkeypatch):
    monkeypatch.setattr("hf_connectome.outer_loops.thresholds._bracket", lambda *_: (50.0, 60.0))
    weight = torch.arange(1.0, 101.0)
    assert zero_smallest(weight, 30) == 100
    assert weight[:30].count_nonzero() == 0
    assert weight.count_nonzero() == 70


def test_a_transposed_parameter_is_changed_in_place():
    weight = torch.arange(1.0, 13.0).reshape(3, 4).t()
    expected = thresholded(weight, 5)
    zero_smallest(weight, 5, num_sampled=5)
    assert torch.equal(weight, expected)


def test_a_parameter_without_small_weights_loses_none_when_nothing_is_dropped():
    weight = torch.tensor([0.0, -1.0])
    assert zero_smallest(weight, 0) == 0
    assert weight.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("weight", "n_drop", "message"),
    [
        ([1.0, float("nan"), 2.0], 1, "'w' has NaN scores"),
        ([1.0, 2.0], 3, "cannot drop 3 weights of 'w': 2 may be dropped"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(weight, n_drop, message):
    with pytest.raises(ScopeError, match=message):
        zero_smallest(torch.tensor(weight), n_drop, name="w")


def test_a_zeroed_weight_comes_back_when_its_gradient_is_large():
    weight = torch.nn.Parameter(torch.tensor([3.0, 2.0, 1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    held = HardThresholds({"w": weight}).attach(optimizer)
    held.n_drop = {"w": 1}
    held.project()
    assert weight.tolist() == [3.0, 2.0, 0.0]
    weight.grad = torch.tensor([0.0, 0.5, -4.0])
    optimizer.step()
    assert weight.tolist() == [3.0, 0.0, 4.0]
    assert held.mask("w").tolist() == [True, False, True]
    held.detach()
    optimizer.step()
    assert weight.tolist() == [3.0, -0.5, 8.0]


def test_shards_are_refused_because_their_largest_weights_are_not_the_wholes():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.device_mesh = "mesh"
    with pytest.raises(UnsupportedError, match="'w' is sharded"):
        HardThresholds({"w": weight})


# ---- schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "expected"), [(1, [0, 20, 40, 60, 80, 80]), (3, [0, 46, 70, 79, 80, 80])]
)
def test_counts_come_down_as_the_schedule_says(power, expected):
    annealing = Annealing(num_steps=4, power=power)
    assert [annealing.n_drop(100, 20, step) for step in range(6)] == expected


@given(st.integers(1, 10**6), st.floats(0, 1), st.integers(1, 1000), st.sampled_from([1, 3]))
def test_counts_never_rise_again_and_end_exactly(num_weights, density, num_steps, power):
    annealing, last = Annealing(num_steps, power), round(density * num_weights)
    dropped = [annealing.n_drop(num_weights, last, step) for step in range(num_steps + 2)]
    assert dropped[0] == 0
    assert dropped[-2:] == [num_weights - last] * 2
    assert all(before <= after for before, after in itertools.pairwise(dropped))


# ---- the trainer ---------------------------------------------------------------------------------

# 18 steps: the density comes down until step 9, the wiring is fixed from step 14 on.


class Watch(TrainerCallback):
    """Keeps the places of what is not 0 after every step, and the learning rates."""

    def __init__(self, stop=None):
        self.stop, self.alive, self.rates = stop, {}, []

    def on_step_end(self, args, state, control, model=None, **parts):
        self.alive[state.global_step] = {n: p != 0 for n, p in model.named_parameters()}
        self.rates.append(parts["lr_scheduler"].get_last_lr()[0])
        if state.global_step == self.stop:
            control.should_training_stop = True


def trainer(folder, loop=None, model=None, **options):
    base = evolve_worker.trainer(folder, **{"logging_steps": 1, **options})
    return ThresholdTrainer(
        model or base.model,
        base.args,
        loop=OuterLoopArguments(outer_loop="iht", **(loop or {})),
        train_dataset=base.train_dataset,
        eval_dataset=base.eval_dataset,
        data_collator=base.data_collator,
    )


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, watch):
    run = trainer(tmp_path_factory.mktemp("finished"), save_steps=2)
    run.add_callback(watch)
    run.train()
    return run


def outcome(run):
    return {**evolve_worker.outcome(run), "lineage": list(run.connectome.lineage)}


def test_every_step_leaves_exactly_the_scheduled_weights(finished, watch):
    annealing = finished.annealing
    assert (annealing.num_steps, finished.fixed_from, len(watch.alive)) == (9, 14, 18)
    for step, alive in watch.alive.items():
        for name, entry in finished.connectome.items():
            last = finished.final_counts[name]
            expected = entry.num_weights - annealing.n_drop(entry.num_weights, last, step)
            assert int(alive[name].sum()) == expected


def test_the_end_has_the_counts_that_the_generations_would_leave(finished):
    schedule = finished.args.schedule
    for entry in finished.connectome.values():
        assert entry.num_survivors == schedule.survivors_after(entry.num_weights, 3)


def test_links_come_back_until_the_wiring_is_fixed(finished, watch):
    names = list(finished.connectome)

    def returned(step):
        return sum(int((watch.alive[step][n] & ~watch.alive[step - 1][n]).sum()) for n in names)

    assert sum(returned(step) for step in range(2, 15)) > 0
    assert all(returned(step) == 0 for step in range(15, 19))
    assert all(torch.equal(watch.alive[14][n], watch.alive[18][n]) for n in names)


def test_one_schedule_of_the_learning_rate_spans_all_steps(finished, watch):
    assert watch.rates.index(max(watch.rates)) < 3
    assert all(before >= after for before, after in itertools.pairwise(watch.rates[2:-1]))


def test_inherit_finds_the_last_wiring_in_the_folder_of_the_run(finished):
    found = Connectome.from_pretrained(find_connectome(finished.output_folder))
    assert found == finished.connectome
    assert found.config.generation == 3
    assert find_connectome(finished.output_folder / "checkpoint-4").name == "connectome"


def test_rows_of_the_lineage_say_what_was_measured_under_the_next_wiring(finished):
    rows = finished.connectome.lineage
    assert [row["steps"] for row in rows] == [6, 12, 18]
    assert [row["digest"] for row in rows] == [
        Connectome.from_pretrained(finished.generation_folder(g)).digest for g in (1, 2, 3)
    ]
    measured = {r["step"]: r["eval_loss"] for r in finished.state.log_history if "eval_loss" in r}
    assert [row["eval_loss"] for row in rows] == [measured[step] for step in (6, 12, 18)]
    assert {row["outer_loop"] for row in rows} == {"iht"}
    assert rows[0]["iht_anneal_fraction"] == 0.5
    assert "search_steps" not in rows[0]
    assert "prune_fraction" not in rows[0]


@pytest.mark.parametrize("step", [4, 12, 14, 16, 18])
def test_a_checkpoint_holds_the_wiring_of_its_weights(finished, step):
    checkpoint = finished.output_folder / f"checkpoint-{step}"
    weights = dict(AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters())
    saved = Connectome.from_pretrained(checkpoint / "connectome")
    for name in saved:
        assert torch.equal(weights[name] != 0, saved.mask(name))
        assert torch.equal(weights[name].sign().to(torch.int8), saved.sign(name))


def test_records_have_the_density_of_their_step(finished):
    logged = {r["step"]: r["density"] for r in finished.state.log_history if "loss" in r}
    assert logged[3] == pytest.approx(1 - (1 - 0.512) / 3, abs=1e-3)
    assert logged[18] == finished.connectome.density


@pytest.mark.parametrize("step", [5, 6, 14, 16])
def test_resume_is_bit_identical_in_every_part_of_the_training(finished, tmp_path, step):
    run = trainer(tmp_path, save_steps=step)
    run.add_callback(Watch(stop=step))
    run.train()
    assert last_checkpoint(tmp_path).name == f"checkpoint-{step}"
    other = evolve_worker.model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)  # so that nothing is left of the weights that it starts with
    run = trainer(tmp_path, model=other, save_steps=100)
    run.train(resume_from_checkpoint=True)
    assert outcome(run) == outcome(finished)


def test_the_last_wiring_is_made_up_for_when_training_is_over(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.output_folder, folder)
    shutil.rmtree(folder / "generation-3")
    run = trainer(folder)
    run.train(resume_from_checkpoint=True)
    assert Connectome.from_pretrained(folder / "generation-3") == finished.connectome
    assert run.connectome.lineage == finished.connectome.lineage


def test_a_wiring_that_is_never_fixed_ends_with_exact_counts_too(tmp_path):
    loop = {"iht_fixed_fraction": 0.0, "iht_anneal_fraction": 1.0, "iht_anneal": "cubic"}
    run = trainer(tmp_path, loop, final_density=0.1, save_strategy="no")
    run.train()
    assert run.generation == 3
    for name, entry in run.connectome.items():
        assert entry.num_survivors == round(0.1 * entry.num_weights)
        weight = run.model.get_parameter(name).detach()
        assert torch.equal(weight != 0, entry.mask())


def test_diverged_weights_stop_the_run_by_name(tmp_path):
    run = trainer(tmp_path, learning_rate=float("1e30"), max_grad_norm=0.0, save_strategy="no")
    with pytest.raises(ScopeError, match="has NaN scores"):
        run.train()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_loop": "ith"}, "unknown outer_loop 'ith'. Did you mean 'iht'"),
        ({"iht_anneal": "cubic"}, "iht_anneal is 'cubic', but outer_loop is 'generational'"),
        ({"outer_loop": "iht", "search_steps": 5}, "search_steps is 5, but outer_loop is 'iht'"),
        ({"outer_loop": "iht", "iht_anneal": "square"}, "unknown iht_anneal 'square'"),
        ({"outer_loop": "iht", "iht_anneal_fraction": 0.0}, "iht_anneal_fraction is 0.0"),
        ({"outer_loop": "iht", "iht_fixed_fraction": 1.0}, "iht_fixed_fraction is 1.0"),
        (
            {"outer_loop": "iht", "iht_anneal_fraction": 0.8, "iht_fixed_fraction": 0.3},
            "expected a sum of at most 1",
        ),
        ({"outer_loop": "search", "search_turnover": 0.0}, "search_turnover is 0.0"),
        ({"outer_loop": "search", "search_parents": 0}, "search_parents is 0; expected at least 1"),
        ({"outer_loop": "search", "search_signs": "flip"}, "unknown search_signs 'flip'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OuterLoopArguments(**settings)


@pytest.mark.parametrize(
    ("loop", "training", "message"),
    [
        ("iht", {"criterion": "random"}, "criterion is 'random', but iht keeps the largest"),
        ("iht", {"selection": "global"}, "selection is 'global', but iht keeps the largest"),
        ("iht", {"structure": "2:4"}, "structure is '2:4', but iht keeps the largest"),
        ("search", {"rewiring": "set"}, "rewiring is 'set', but search draws the links"),
        ("iht", {"reset": "rewind"}, "reset is 'rewind', but outer_loop 'iht' never goes back"),
        ("search", {"reset": "rewind"}, "reset is 'rewind', but outer_loop 'search'"),
        ("search", {"steps_per_generation": 60}, "which is 3 candidates a generation; expected at"),
    ],
)
def test_settings_of_the_training_that_the_loop_would_not_heed_are_refused(loop, training, message):
    arguments = GenerationalArguments("unused", use_cpu=True, **training)
    with pytest.raises(ConfigError, match=message):
        OuterLoopArguments(outer_loop=loop).check(arguments)


def test_a_density_that_leaves_a_parameter_nothing_is_refused(tmp_path):
    with pytest.raises(ScopeError, match=r"keep 0 of \d+ weights|floor|survivor"):
        trainer(tmp_path, final_density=1e-4)


def test_budgets_and_floors_are_heeded(tmp_path):
    run = trainer(tmp_path, final_density=0.1, budget="erk", min_survivors=3)
    densities = {n: c / run.connectome[n].num_weights for n, c in run.final_counts.items()}
    assert len(set(densities.values())) > 1
    total = 0.1 * run.connectome.num_weights
    assert abs(sum(run.final_counts.values()) - total) <= len(densities)


def test_the_default_is_the_generational_trainer():
    assert outer_loop(OuterLoopArguments()) is GenerationalTrainer

"""Settings that cannot work are refused before anything is loaded, with the way out."""

from __future__ import annotations

import dataclasses
import os
from typing import Any
from unittest import mock

import pytest
from tiny import tiny_model
from transformers import HfArgumentParser, TrainingArguments

from hf_connectome import GenerationalArguments, GenerationalTrainer
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError, UnsupportedError
from hf_connectome.parsing import parse
from hf_connectome.schedule import CubicSchedule

OWN = sorted(
    {field.name for field in dataclasses.fields(GenerationalArguments)}
    - {field.name for field in dataclasses.fields(TrainingArguments)}
)


def arguments(**settings: Any) -> GenerationalArguments:
    return GenerationalArguments("unused", **{"use_cpu": True, "report_to": "none", **settings})


# ---- ranges --------------------------------------------------------------------------------------


def test_defaults_are_the_papers_numbers() -> None:
    chosen = arguments()
    assert (chosen.generations, chosen.prune_fraction, chosen.magnitude) == (6, 0.2, 0.02)
    assert (chosen.criterion, chosen.selection) == ("magnitude", "per-tensor")
    assert (chosen.reset, chosen.scope) == ("sign_constant", "all-matrices")


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_prune_fraction_is_between_0_and_1(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"prune_fraction is {value}; expected a number between"):
        arguments(prune_fraction=value)


@pytest.mark.parametrize("name", ["generations", "steps_per_generation"])
@pytest.mark.parametrize("value", [0, -1])
def test_there_is_at_least_one_generation_and_one_step(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}; expected at least 1"):
        arguments(**{name: value})


@pytest.mark.parametrize("value", [-1, 10])
def test_rewind_goes_to_a_step_of_generation_0(value: int) -> None:
    with pytest.raises(ConfigError, match=rf"rewind_steps is {value}; .*0 to 9\."):
        arguments(steps_per_generation=10, reset="rewind", rewind_steps=value)


@pytest.mark.parametrize("value", [0.0, -0.02, float("nan"), float("inf")])
def test_magnitude_is_a_positive_number(value: float) -> None:
    with pytest.raises(ConfigError, match=f"magnitude is {value}; expected a positive number"):
        GenerationalTrainer(tiny_model("gpt2"), arguments(magnitude=value))


def test_max_steps_follow_from_the_generations() -> None:
    chosen = arguments(generations=3, steps_per_generation=7)
    assert chosen.max_steps == 21
    assert arguments(generations=3, steps_per_generation=7, max_steps=21).max_steps == 21
    assert dataclasses.replace(chosen, seed=1).max_steps == 21


def test_other_max_steps_are_refused() -> None:
    expected = "max_steps is 20, but 3 generations of 7 steps are 21. Leave max_steps out."
    with pytest.raises(ConfigError, match=expected):
        arguments(generations=3, steps_per_generation=7, max_steps=20)


# ---- schedules and budgets -----------------------------------------------------------------------


def test_final_density_decides_the_fraction_of_the_geometric_schedule() -> None:
    chosen = arguments(final_density=0.262144)
    assert chosen.schedule.density_after(6) == pytest.approx(0.262144)
    assert chosen.schedule.density_after(1) == pytest.approx(0.8)
    assert "prune_fraction" not in chosen.pruning_record()
    assert arguments().pruning_record()["prune_fraction"] == 0.2
    assert dataclasses.replace(chosen, seed=1).schedule == chosen.schedule


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"final_density": 0.1, "prune_fraction": 0.3},
            ConfigError,
            r"prune_fraction is 0\.3 and final_density 0\.1; .* 6 generations\. Give one of them",
        ),
        ({"final_density": 0.0}, ConfigError, "from density 1.0 to final_density 0.0"),
        ({"pruning_schedule": "cubic"}, ConfigError, "='cubic' needs a final_density"),
        ({"pruning_schedule": "cubik"}, UnknownNameError, "Did you mean 'cubic'"),
        ({"budget": "erkk"}, UnknownNameError, "Did you mean 'erk'"),
        ({"min_survivors": 0}, ConfigError, "min_survivors is 0"),
        ({"min_survivors": 1.5}, ConfigError, r"min_survivors is 1\.5; expected a whole number"),
        ({"structure": "2x4"}, ConfigError, "structure is '2x4'; expected '2:4'"),
        (
            {"final_density_pattern": {"wte": 2.0}},
            ConfigError,
            r"wte is 2\.0; expected a number in",
        ),
        ({"structure": "2:4", "selection": "global"}, ConfigError, "it takes no structure"),
    ],
    ids=str,
)
def test_counts_that_cannot_be_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        arguments(**settings)


def test_schedules_and_budgets_are_read_from_a_command_line() -> None:
    line = (
        "--output_dir o --use_cpu true --pruning_schedule cubic --final_density 1e-1 --budget erk"
    )
    line += ' --final_density_pattern {"wte":0.5} --structure rows:4'
    (chosen,) = parse((GenerationalArguments,), line.split(), prog="x", description="y")
    assert chosen.schedule == CubicSchedule(0.1, 6)
    assert chosen.pruning.density_pattern == {"wte": 0.5}
    assert (chosen.pruning.budget, chosen.pruning.structure) == ("erk", "rows:4")


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "hint"),
    [
        ({"selection": "globl"}, ConfigError, "Did you mean 'global'"),
        ({"reset": "sign-constant"}, UnknownNameError, "Did you mean 'sign_constant'"),
        ({"criterion": "magnitud"}, UnknownNameError, "Did you mean 'magnitude'"),
        ({"scope": "all-matrixes"}, ScopeError, "Did you mean 'all-matrices'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unknown_name_is_answered_with_the_nearest_one(
    settings: dict[str, str], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error, match=hint):
        GenerationalTrainer(tiny_model("gpt2"), arguments(**settings))


# ---- what would break enforcement or the outer loop ----------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"deepspeed": {"zero_optimization": {"stage": 3}}},
            UnsupportedError,
            "flat partitions .* Use DDP or FSDP2",
        ),
        ({"deepspeed": "ds_config.json"}, UnsupportedError, "DeepSpeed ZeRO"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps"},
            ConfigError,
            "under the mask of another. Leave it out",
        ),
        (
            {"auto_find_batch_size": True},
            ConfigError,
            "generation already advanced. Set per_device_train_batch_size",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            ConfigError,
            "'reduce_lr_on_plateau' follows the loss .* such as cosine",
        ),
        ({"optim": "lomo"}, UnsupportedError, "'lomo' updates weights during the backward pass"),
        ({"optim": "adalomo"}, UnsupportedError, "'adalomo' updates weights during the backward"),
        (
            {"optim": "galore_adamw_layerwise"},
            UnsupportedError,
            "'galore_adamw_layerwise' updates .* Use adamw_torch, adafactor, sgd",
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_incompatible_setting_is_refused_with_the_reason(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        arguments(**settings)


def test_fsdp1_is_refused_and_fsdp2_is_not() -> None:
    with mock.patch.dict(os.environ):  # transformers tells accelerate by the environment
        with pytest.raises(UnsupportedError, match=r"FSDP version 1, .* Use version 2\."):
            arguments(fsdp=True, fsdp_config={"version": 1})
        assert arguments(fsdp=True, fsdp_config={"version": 2}).max_steps == 6000


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"])
def test_optimizers_with_an_ordinary_step_are_allowed(optim: str) -> None:
    assert arguments(optim=optim).optim == optim


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_every_field_has_a_help_text(name: str) -> None:
    field = GenerationalArguments.__dataclass_fields__[name]
    text = field.metadata["help"]
    assert text.endswith(".")
    assert len(text.split()) > 3


def test_settings_are_read_from_a_command_line_and_its_help_is_printed() -> None:
    parser = HfArgumentParser(GenerationalArguments)
    assert all(f"--{name}" in parser.format_help() for name in OWN)
    line = ["--output_dir=o", "--use_cpu=true", "--generations=2", "--prune_fraction=0.5"]
    (chosen,) = parser.parse_args_into_dataclasses([*line, "--reset=keep"])
    assert (chosen.generations, chosen.prune_fraction, chosen.reset) == (2, 0.5, "keep")
    assert chosen.max_steps == 2000

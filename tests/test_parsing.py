from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import TrainingArguments

from hf_connectome.errors import ConfigError, RunError
from hf_connectome.parsing import explicit_settings, friendly_errors, parse, settings_difference


class Mode(Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass
class RecipeArguments:
    """What the recipe does.

    More about it.
    """

    model: str = field(metadata={"help": "Name of a model."})
    arms: list[str] = field(default_factory=lambda: ["connectome"], metadata={"help": "Arms."})
    seeds: int = field(default=4, metadata={"help": "Number of seeds."})
    fraction: float = field(default=0.2, metadata={"help": "Drops 20 % of the survivors."})
    mode: Mode = field(default=Mode.EXACT, metadata={"help": "How."})
    level: Literal["low", "high"] = "low"
    limit: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    check: bool = True
    where: Path | None = None
    secret_token: str | None = None
    derived: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction is {self.fraction}; expected 0 to 1.")
        if self.limit == 13:
            raise RunError("limit 13 is unlucky")
        self.derived = self.seeds


@dataclass
class OwnTrainingArguments(TrainingArguments):
    """The outer loop."""

    num_generations: int = field(default=6, metadata={"help": "Prunings."})


@dataclass
class Undocumented:
    size: int = 1


@dataclass
class Refusing:
    size: int = 0

    def __post_init__(self) -> None:
        if self.size == 0:
            raise ConfigError("size must be given")


BOTH = (RecipeArguments, OwnTrainingArguments)


def read(*argv: str, kinds: Any = (RecipeArguments,), config_dir: Path | None = None) -> Any:
    result = parse(
        kinds,
        ["--model", "gpt2", *argv],
        prog="evolve",
        description="Evolve.",
        config_dir=config_dir,
    )
    return result[0] if len(result) == 1 else result


@pytest.fixture
def yaml(tmp_path: Path) -> Any:
    def write(text: str, name: str = "x.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_defaults_stand_when_nothing_is_given() -> None:
    arguments = read()
    assert arguments == RecipeArguments(model="gpt2")
    assert arguments.mode is Mode.EXACT


def test_command_line_gives_every_type() -> None:
    arguments = read(
        *["--arms", "connectome,random", "dense", "--fraction=1e-1", "--mode", "fast"],
        *[
            "--level",
            "high",
            "--limit",
            "3",
            "--betas",
            "0.8",
            "0.9",
            "--no_check",
            "--where",
            "a/b",
        ],
    )
    assert arguments.arms == ["connectome", "random", "dense"]
    assert arguments.fraction == 0.1
    assert arguments.mode is Mode.FAST
    assert arguments.level == "high"
    assert arguments.limit == 3
    assert arguments.betas == (0.8, 0.9)
    assert arguments.check is False
    assert arguments.where == Path("a/b")


@pytest.mark.parametrize(
    ("argv", "check"),
    [
        ((), True),
        (("--check",), True),
        (("--check", "false"), False),
        (("--no-check",), False),
        (("--check=yes",), True),
    ],
)
def test_booleans_in_all_their_spellings(argv: tuple[str, ...], check: bool) -> None:
    assert read(*argv).check is check


def test_file_gives_every_type(yaml: Any) -> None:
    path = yaml(
        "arms: [random, dense]\nseeds: 1e1\nfraction: 6e-4\nmode: fast  # why\nlevel: high\n"
        "limit: null\nbetas:\n- 0.8\n- .9\ncheck: no\nwhere: a/b\nsecret_token: 0012\n"
    )
    arguments = read("--config", path)
    assert arguments.arms == ["random", "dense"]
    assert (arguments.seeds, arguments.fraction, arguments.limit) == (10, 6e-4, None)
    assert (arguments.mode, arguments.level) == (Mode.FAST, "high")
    assert arguments.betas == (0.8, 0.9)
    assert arguments.check is False
    assert arguments.where == Path("a/b")
    assert arguments.secret_token == "0012"


def test_list_may_be_written_with_commas_in_a_file(yaml: Any) -> None:
    assert read("--config", yaml("arms: random, dense")).arms == ["random", "dense"]
    assert read("--config", yaml("arms: ['a, b']")).arms == ["a, b"]


def test_command_line_overrides_files_and_later_files_earlier_ones(yaml: Any) -> None:
    first = yaml("seeds: 1\nfraction: 0.1\nlimit: 1", "first.yaml")
    second = yaml("seeds: 2\nfraction: 0.3", "second.yaml")
    arguments = read("--config", first, "--seeds", "3", "--config", second)
    assert (arguments.seeds, arguments.fraction, arguments.limit) == (3, 0.3, 1)


def test_null_on_the_command_line_clears_what_a_file_set(yaml: Any) -> None:
    assert read("--config", yaml("limit: 3"), "--limit", "null").limit is None


def test_required_setting_may_stand_in_a_file(yaml: Any) -> None:
    path = yaml("model: gpt2")
    (arguments,) = parse([RecipeArguments], ["--config", path], prog="p", description="d")
    assert arguments.model == "gpt2"


def test_error_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="'--model' must be given"):
        parse([RecipeArguments], [], prog="p", description="d")


def test_config_is_found_by_name_in_the_directory(yaml: Any, tmp_path: Path) -> None:
    yaml("seeds: 9", "openstax.yaml")
    assert read("--config", "openstax", config_dir=tmp_path).seeds == 9
    assert read("--config", "openstax.yaml", config_dir=tmp_path).seeds == 9
    with pytest.raises(ConfigError, match=r"one of openstax\. Did you mean 'openstax'\?"):
        read("--config", "opnstax", config_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"'openstax' is not a file; expected the path of one."):
        read("--config", "openstax")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3", r"x\.yaml: unknown setting 'seed'\. Did you mean 'seeds'\?"),
        ("env: {A: b}", r"x\.yaml: unknown setting 'env'\."),
        ("no-check: 1", "unknown setting 'no-check'"),
        ("derived: 1", "unknown setting 'derived'"),
        ("fraction: fast", r"x\.yaml: fraction is 'fast'; expected float\."),
        (
            "mode: exactly",
            r"mode is 'exactly'; expected one of fast, exact\. Did you mean 'exact'\?",
        ),
        ("seeds: [1]", r"seeds is \['1'\]; expected int"),
        ("seeds: 1\nseeds: 2", "'seeds' is given more than once"),
        ("- seeds", "x.yaml holds a list; expected lines of the form 'setting: value'"),
        ("seeds: [", "x.yaml cannot be read as YAML"),
        ("seeds: !!python/name:os.system", "expected int"),
    ],
)
def test_error_names_file_and_key_when_a_file_is_wrong(yaml: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("--config", yaml(text))


def test_empty_file_changes_nothing(yaml: Any) -> None:
    assert read("--config", yaml("# nothing\n")) == RecipeArguments(model="gpt2")


def test_error_when_a_file_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read("--config", str(path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--seed", "3"), r"unknown option '--seed'\. Did you mean '--seeds'\?"),
        (("--arm=3",), r"unknown option '--arm'\. Did you mean '--arms'\?"),
        (("random",), r"unexpected argument 'random'\. Run with --help"),
        (("--fraction", "fast"), r"--fraction is 'fast'; expected float\."),
        (("--mode", "slow"), r"--mode is 'slow'; expected one of fast, exact\."),
        (("--fraction",), "--fraction: expected one argument"),
        (("--fraction", "2"), r"RecipeArguments: fraction is 2\.0; expected 0 to 1\."),
        (("--betas", "1"), r"--betas is \['1'\]; expected tuple of float"),
    ],
)
def test_error_names_the_option_when_the_command_line_is_wrong(
    argv: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(*argv)


def test_own_errors_of_a_dataclass_pass_unchanged() -> None:
    with pytest.raises(RunError, match="unlucky"):
        read("--limit", "13")


def test_training_arguments_from_a_file(yaml: Any, tmp_path: Path) -> None:
    path = yaml(
        f"output_dir: {tmp_path}\nlearning_rate: 6e-4\neval_strategy: no\nsave_strategy: steps\n"
        "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs:\n  num_decay_steps: 1800\n"
        "  min_lr_ratio: 1e-1\nreport_to: [tensorboard]\nuse_cpu: true\nmax_steps: 1e2\n"
        "run_name: 7\nlabel_names: labels\nnum_generations: 2\n"
    )
    recipe, training = read("--config", path, kinds=BOTH)
    assert recipe.model == "gpt2"
    assert isinstance(training, OwnTrainingArguments)
    assert training.learning_rate == 6e-4
    assert training.eval_strategy == "no"
    assert training.lr_scheduler_type == "warmup_stable_decay"
    assert training.lr_scheduler_kwargs == {"num_decay_steps": 1800, "min_lr_ratio": 0.1}
    assert training.report_to == ["tensorboard"]
    assert (training.max_steps, training.run_name) == (100, "7")
    assert training.label_names == ["labels"]
    assert training.num_generations == 2


def test_training_arguments_from_the_command_line(tmp_path: Path) -> None:
    _, training = read(
        *["--output_dir", str(tmp_path), "--use_cpu", "--lr_scheduler_type", "cosine"],
        *["--save_strategy", "no", "--eval-strategy", "steps", "--logging_steps", "5"],
        *["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--disable_tqdm", "--report_to", "none"],
        *["--max_steps", "-1", "--debug", "underflow_overflow"],
        kinds=BOTH,
    )
    assert training.lr_scheduler_type == "cosine"
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (training.save_strategy, training.eval_strategy) == ("no", "steps")
    assert training.eval_steps == 5
    assert training.disable_tqdm is True
    assert training.report_to == []
    assert training.debug == ["underflow_overflow"]


def test_error_when_training_arguments_refuse(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected one of linear, cosine, .* mean 'cosine'\?"):
        read("--lr_scheduler_type", "cosin", kinds=BOTH)
    with pytest.raises(ConfigError, match=r"OwnTrainingArguments: .*load_best_model_at_end"):
        read("--output_dir", str(tmp_path), "--load_best_model_at_end", kinds=BOTH)


def test_help_groups_own_options_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help", kinds=(OwnTrainingArguments, RecipeArguments, Undocumented))
    assert caught.value.code == 0
    page = capsys.readouterr().out
    titles = ["What the recipe does:", "The outer loop:", "Undocumented:", "--learning_rate X"]
    places = [page.index(title) for title in titles]
    assert places[-1] == max(places)
    assert "Name of a model. (required)" in page
    assert "Drops 20 % of the survivors. (default: 0.2)" in page
    assert "--mode {fast,exact}" in page
    assert "--no_check" in page
    assert "More about it" not in page
    assert "--learning-rate" not in page


def test_friendly_errors_print_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @friendly_errors("evolve")
    def fail() -> None:
        raise ConfigError("seeds is 0; expected 1 or more.")

    monkeypatch.delenv("HF_CONNECTOME_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught:
        fail()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "evolve: error: seeds is 0; expected 1 or more.\n"
    monkeypatch.setenv("HF_CONNECTOME_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        fail()


def test_friendly_errors_leave_other_errors_alone() -> None:
    with pytest.raises(KeyError), friendly_errors("evolve"):
        raise KeyError("bug")


def test_explicit_settings_are_what_differs(tmp_path: Path) -> None:
    instances = read(
        *["--output_dir", str(tmp_path), "--use_cpu", "--learning_rate", "1e-3", "--seeds", "4"],
        *["--lr_scheduler_type", "cosine", "--where", "a", "--mode", "fast", "--betas", "1,1"],
        *["--secret_token", "hf_abc", "--report_to", "none", "--hub_token", "hf_def"],
        kinds=BOTH,
    )
    settings = explicit_settings(instances)
    assert settings.pop("dataloader_pin_memory") is False  # what use_cpu implies
    assert settings == {
        "model": "gpt2",
        "mode": "fast",
        "betas": [1.0, 1.0],
        "where": "a",
        "secret_token": "<SECRET_TOKEN>",
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "hub_token": "<HUB_TOKEN>",
    }
    assert json.loads(json.dumps(settings)) == settings


def test_explicit_settings_do_not_touch_the_running_state(tmp_path: Path) -> None:
    _, training = read("--output_dir", str(tmp_path), "--use_cpu", kinds=BOTH)
    before = training.distributed_state.device
    explicit_settings([training])
    assert training.distributed_state.device == before
    assert training.device.type == "cpu"


def test_explicit_settings_when_the_defaults_are_refused() -> None:
    assert explicit_settings([Refusing(size=2)]) == {"size": 2}


def test_settings_difference_says_what_changed() -> None:
    old = {"learning_rate": 0.001, "seed": 1, "mode": "fast"}
    new = {"learning_rate": 0.002, "seed": 1, "limit": None}
    assert settings_difference(old, new) == [
        "learning_rate: 0.001 -> 0.002",
        "limit: (default) -> None",
        "mode: fast -> (default)",
    ]
    assert settings_difference(old, dict(old)) == []

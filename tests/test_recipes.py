import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_connectome import Connectome

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = ("the", "a", "small", "large", "red", "stone", "river", "bird", "runs", "sings", "falls")


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    for number in range(40):
        text = ". ".join(" ".join(draw.choices(WORDS, k=8)) for _ in range(30))
        (folder / f"{number}.txt").write_text(text)
    return folder


def evolve_options(texts, output, *more):
    return [
        "--dataset", str(texts), "--tokenizer", "bpe:300", "--block_size", "16",
        "--part", "0:0.7", "--eval_fraction", "0.2",
        "--model_overrides", "n_layer=1,n_embd=16,n_head=2,n_positions=16",
        "--generations", "2", "--steps_per_generation", "8", "--learning_rate", "1e-2",
        "--per_device_train_batch_size", "4", "--save_steps", "4", "--logging_steps", "2",
        "--use_cpu", "true", "--disable_tqdm", "true", "--output_dir", str(output), *more,
    ]  # fmt: skip


def inherit_options(texts, run, *more):
    return [
        "--connectome", str(run), "--dataset", str(texts), "--block_size", "16",
        "--part", "0.7:1", "--eval_fraction", "0.2", "--seeds", "2", "--steps", "6",
        "--eval_steps", "3", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4",
        "--use_cpu", "true", "--disable_tqdm", "true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "tiny"
    recipe("evolve").main(evolve_options(texts, output))
    return output


def test_evolve_leaves_loadable_generations_metrics_and_curves(run):
    for generation in range(3):
        saved = Connectome.from_pretrained(run / f"generation-{generation}")
        assert saved.config.generation == generation
        assert (run / f"generation-{generation}" / "tokenizer.json").is_file()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {r["step"] for r in records if "eval_loss" in r} == {8, 16}
    assert all({"generation", "density"} <= r.keys() for r in records)
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_evolve_started_again_says_where_it_goes_on(texts, run, capsys):
    before = Connectome.from_pretrained(run / "generation-2").digest
    recipe("evolve").main(evolve_options(texts, run))
    said = capsys.readouterr().out
    assert f"going on from {run / 'checkpoint-16'}: step 16 of 16" in said
    assert "to inherit" in said
    assert Connectome.from_pretrained(run / "generation-2").digest == before


def test_evolve_refuses_the_folder_of_another_configuration(texts, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe("evolve").main(evolve_options(texts, run, "--prune_fraction", "0.3"))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "belongs to a run of another configuration" in message
    assert "prune_fraction" in message


def test_inherit_compares_the_arms_and_trains_only_what_is_missing(texts, run, capsys):
    recipe("inherit").main(inherit_options(texts, run))
    first = capsys.readouterr().out
    folder = run / "inherit"
    results = json.loads((folder / "results.json").read_text())
    assert len(results["runs"]) == 6
    by_arm = {row["arm"]: row for row in results["summary"]}
    assert by_arm["connectome"]["num_survivors"] == by_arm["random"]["num_survivors"]
    assert by_arm["connectome"]["bytes_inherited"] > 0
    assert by_arm["random"]["bytes_inherited"] == by_arm["dense"]["bytes_inherited"] == 0
    assert by_arm["dense"]["difference"] is None
    assert by_arm["connectome"]["difference"]["num_pairs"] == 2
    assert results["runs"][0]["steps"] == [0, 3, 6]
    assert (folder / "curves.png").is_file()
    table = (folder / "table.md").read_text()
    assert table in first

    (folder / "arms" / "random-seed1.json").unlink()
    kept = (folder / "arms" / "dense-seed0.json").stat().st_mtime_ns
    recipe("inherit").main(inherit_options(texts, run))
    again = json.loads((folder / "results.json").read_text())
    assert (folder / "arms" / "dense-seed0.json").stat().st_mtime_ns == kept
    assert [r["losses"] for r in again["runs"]] == [r["losses"] for r in results["runs"]]


def test_arms_of_a_seed_share_the_fresh_host_and_seeds_differ(run):
    results = json.loads((run / "inherit" / "results.json").read_text())
    start = {(r["arm"], r["seed"]): r["losses"][0] for r in results["runs"]}
    assert start["dense", 0] != start["dense", 1]
    assert start["random", 0] != start["random", 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "bpe:400"], "tokenizer"),
        (["--arms", "connectome,randon"], "Did you mean 'random'"),
        (["--conectome", "x"], "Did you mean"),
        (["--child_reset", "tensor_scales"], "tensor_scale"),
    ],
)
def test_inherit_refuses_bad_options_in_one_line(texts, run, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        recipe("inherit").main(
            inherit_options(texts, run, "--output_dir", str(run / "bad"), *options)
        )
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_inherit_refuses_a_folder_without_a_connectome(texts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("inherit").main(inherit_options(texts, tmp_path))
    assert "holds no connectome" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(p.stem for p in (RECIPES / "configs").glob("*.yaml")))
def test_every_config_is_taken_by_its_recipe(name, monkeypatch, tmp_path):
    inherits = name.endswith("inherit")
    module = recipe("inherit" if inherits else "evolve")
    reached = {}

    class ReachedError(Exception):
        pass

    def claim(folder, settings):
        reached.update(settings)
        raise ReachedError

    monkeypatch.setattr(module, "claim", claim)
    options = ["--config", name, "--output_dir", str(tmp_path), "--use_cpu", "true"]
    if inherits:
        with pytest.raises(SystemExit):  # everything was read but the connectome
            module.main([*options, "--connectome", str(tmp_path)])
        return
    with pytest.raises(ReachedError):
        module.main([*options, "--bf16", "false"])
    for key, value in yaml.safe_load((RECIPES / "configs" / f"{name}.yaml").read_text()).items():
        if key in reached and isinstance(value, (int, float)) and not isinstance(value, bool):
            assert reached[key] == value


def test_help_lists_the_recipe_s_own_options_first():
    shown = subprocess.run(
        [sys.executable, RECIPES / "evolve.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.index("--dataset") < shown.index("--prune_fraction") < shown.index("--per_device")


def test_two_processes_evolve_one_connectome(texts, tmp_path):
    options = evolve_options(texts, tmp_path / "two", "--ddp_backend", "gloo")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*launch, RECIPES / "evolve.py", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("to inherit") == 1  # one process speaks
    saved = Connectome.from_pretrained(tmp_path / "two" / "generation-2")
    assert saved.config.generation == 2

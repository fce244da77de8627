import errno
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from hf_connectome import Connectome
from hf_connectome.data import DataArguments, tokenizer_digest
from hf_connectome.errors import ConfigError, HubError, StorageError
from hf_connectome.evaluation.arms import ArmResult
from hf_connectome.evaluation.subjects import CHECKPOINT, SPARSE, find_subjects
from hf_connectome.inheritance import (
    InheritanceArguments,
    check_arms,
    check_vocabulary,
    stored_result,
)
from hf_connectome.runs import last_checkpoint
from hf_connectome.sources import default_output, find_connectome

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


def changed(options, **settings):
    """Give other values to some of the options."""
    options = list(options)
    for name, value in settings.items():
        option = f"--{name}"
        if option in options:
            options[options.index(option) + 1] = str(value)
        else:
            options += [option, str(value)]
    return options


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


@pytest.mark.parametrize(
    ("loop", "more"),
    [
        ("iht", ["--iht_anneal", "cubic"]),
        ("search", ["--search_steps", "4", "--search_parents", "2"]),
    ],
)
def test_evolve_by_another_loop_leaves_what_inherit_takes(texts, tmp_path, capsys, loop, more):
    options = evolve_options(texts, tmp_path / "run", "--outer_loop", loop, *more)
    recipe("evolve").main(options)
    said = capsys.readouterr().out
    assert "to inherit" in said
    found = Connectome.from_pretrained(find_connectome(tmp_path / "run"))
    assert found.config.generation == 2
    assert found.lineage[-1]["outer_loop"] == loop
    assert (tmp_path / "run" / "generation-2" / "tokenizer.json").is_file()
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"

    recipe("evolve").main(options)
    assert capsys.readouterr().out.endswith(said[said.index("generation   density") :])
    again = Connectome.from_pretrained(find_connectome(tmp_path / "run"))
    assert (again, again.lineage) == (found, found.lineage)


def test_evolve_refuses_a_loop_s_settings_without_the_loop(texts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("evolve").main(evolve_options(texts, tmp_path, "--search_start", "somewhere"))
    assert "Use outer_loop search, or leave it out" in capsys.readouterr().err


def test_inherit_compares_the_arms_and_trains_only_what_is_missing(texts, run, capsys):
    recipe("inherit").main(inherit_options(texts, run))
    first = capsys.readouterr().out
    folder = run / "inherit"
    results = json.loads((folder / "results.json").read_text())
    assert len(results["runs"]) == 6
    by_arm = {row["arm"]: row for row in results["summary"]}
    assert by_arm["connectome"]["num_survivors"] == by_arm["random"]["num_survivors"]
    assert by_arm["connectome"]["bits_inherited"] > 0
    assert by_arm["random"]["bits_inherited"] == by_arm["dense"]["bits_inherited"] == 0
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


@pytest.mark.slow
def test_report_has_what_earlier_commands_trained_too(texts, run, tmp_path, capsys):
    options = changed(inherit_options(texts, run), output_dir=tmp_path / "parts", seeds=1)
    recipe("inherit").main(options)
    recipe("inherit").main(changed(options, first_seed=1, arms="mask-only,learned-scale"))
    capsys.readouterr()
    results = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert {(r["arm"], r["seed"]) for r in results["runs"]} == {
        ("connectome", 0), ("random", 0), ("dense", 0), ("mask-only", 1), ("learned-scale", 1),
    }  # fmt: skip
    assert all(r["tokens_per_step"] > 0 for r in results["runs"])
    assert (tmp_path / "parts" / "ladder.png").is_file()


def test_arms_of_other_generations_and_runs_stand_beside_the_connectome(
    texts, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = "./other"
    shutil.copytree(run / "generation-1", other)
    options = changed(inherit_options(texts, run), output_dir=tmp_path / "out", seeds=1)
    arms = f"connectome,dense,connectome@generation-1,random@generation-1,connectome@{other}"
    recipe("inherit").main(changed(options, arms=arms))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    by_arm = {row["arm"]: row for row in results["summary"]}
    first = Connectome.from_pretrained(run / "generation-1")
    assert by_arm["connectome"]["num_survivors"] < first.num_survivors
    for arm in ("connectome@generation-1", "random@generation-1", f"connectome@{other}"):
        assert by_arm[arm]["num_survivors"] == first.num_survivors
    losses = {r["arm"]: r["losses"] for r in results["runs"]}
    assert losses["connectome@generation-1"] == losses[f"connectome@{other}"]
    assert losses["connectome@generation-1"] != losses["connectome"]
    assert (tmp_path / "out" / "densities.png").is_file()

    recipe("inherit").main(changed(options, arms=arms))  # found again, whatever their names hold
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["runs"] == results["runs"]


def test_saved_children_are_checkpoints_that_can_be_evaluated(texts, run, tmp_path):
    options = changed(
        inherit_options(texts, run), output_dir=tmp_path / "out", seeds=1, arms="connectome,dense"
    )
    recipe("inherit").main(options)
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    recipe("inherit").main(changed(options, save_children="true"))  # trained again, equally
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["losses"] for r in after["runs"]] == [r["losses"] for r in before["runs"]]
    children = tmp_path / "out" / "children"
    kinds = {s.label: s.kind for s in find_subjects([str(c) for c in children.iterdir()])}
    assert kinds == {"connectome-seed0": SPARSE, "dense-seed0": CHECKPOINT}
    (child,) = find_subjects([str(children / "connectome-seed0")])
    child.load("cpu")  # which checks that its dead weights are 0
    wiring = Connectome.from_pretrained(children / "connectome-seed0" / "connectome")
    assert wiring == Connectome.from_pretrained(run / "generation-2")


def test_results_of_another_connectome_by_the_same_name_are_refused(texts, run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run / "generation-1", other)
    options = changed(
        inherit_options(texts, run), output_dir=tmp_path / "out", seeds=1, arms=f"random@{other}"
    )
    recipe("inherit").main(options)
    shutil.rmtree(other)
    shutil.copytree(run / "generation-2", other)
    with pytest.raises(SystemExit):
        recipe("inherit").main(options)
    assert "belongs to a run of another configuration: connectome" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("connectome@generation-9", "no 'generation-9' beside .* 'generation-0', 'generation-1'"),
        ("weights@generation-1", "expected one after an arm that is made from a connectome alone"),
        ("connectome@", "names the connectome ''"),
    ],
)
def test_other_connectome_that_is_not_there_is_refused(texts, run, tmp_path, capsys, arm, message):
    options = changed(inherit_options(texts, run), output_dir=tmp_path / "out", arms=arm)
    with pytest.raises(SystemExit):
        recipe("inherit").main(options)
    assert re.search(message, capsys.readouterr().err)


def test_results_of_another_start_are_not_taken_for_this_one(texts, run, tmp_path, capsys):
    twin = tmp_path / "generation-2"
    shutil.copytree(run / "generation-2", twin)
    config = json.loads((twin / "adapter_config.json").read_text())
    (twin / "adapter_config.json").write_text(json.dumps(config | {"magnitude": 0.2}))
    options = changed(
        inherit_options(texts, run), output_dir=tmp_path / "out", seeds=1, arms="dense"
    )
    recipe("inherit").main(options)
    with pytest.raises(SystemExit):
        recipe("inherit").main(changed(options, connectome=twin))
    assert "magnitude: 0.02 there, 0.2 here" in capsys.readouterr().err


def test_weights_of_another_parent_are_not_mixed(texts, run, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    parent = last_checkpoint(run)
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    weights = load_file(other / "model.safetensors")
    save_file({n: 2 * w for n, w in weights.items()}, other / "model.safetensors", {"format": "pt"})
    options = changed(
        inherit_options(texts, run), output_dir=tmp_path / "out", seeds=1, arms="weights"
    )
    recipe("inherit").main(changed(options, parent=parent))
    with pytest.raises(SystemExit):
        recipe("inherit").main(changed(options, parent=other))
    assert "weights: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parent", "said"),
    [("org/model", "is no checkpoint's folder here"), (None, "carries weights of the parent")],
)
def test_parent_that_cannot_be_had_is_refused_before_training(texts, run, capsys, parent, said):
    options = changed(inherit_options(texts, run), arms="weights")
    with pytest.raises(SystemExit):
        recipe("inherit").main(options if parent is None else changed(options, parent=parent))
    assert said in capsys.readouterr().err


def test_arms_of_a_seed_share_the_fresh_host_and_seeds_differ(texts, run):
    recipe("inherit").main(inherit_options(texts, run))
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


def test_inherit_goes_on_with_a_corrected_command(texts, run, tmp_path, capsys):
    output = ["--output_dir", str(tmp_path), "--seeds", "1", "--arms", "dense"]
    wrong = (
        (["--block_size", "17"], "blocks of 17 tokens do not fit a model with n_positions=16"),
        (["--child_reset", "rewind"], "Use 'sign_constant'"),
        (["--tokenizer", "bpe:400"], "Leave --tokenizer out"),
    )
    for options, message in wrong:
        with pytest.raises(SystemExit):
            recipe("inherit").main(
                inherit_options(texts, run, *output, "--arms", "connectome", *options)
            )
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    recipe("inherit").main(inherit_options(texts, run, *output))
    assert (tmp_path / "results.json").is_file()


def test_inherit_refuses_the_folder_of_another_corpus(texts, run, tmp_path, capsys):
    other = tmp_path / "texts"
    shutil.copytree(texts, other)
    (other / "0.txt").write_text("the red stone " * 200)
    options = ["--output_dir", str(tmp_path / "out"), "--seeds", "1", "--arms", "dense"]
    recipe("inherit").main(inherit_options(texts, run, *options))
    with pytest.raises(SystemExit):
        recipe("inherit").main(inherit_options(other, run, *options))
    assert "belongs to a run of another configuration: corpus" in capsys.readouterr().err


def test_every_arm_is_wired_once_before_any_is_trained(run):
    saved = Connectome.from_pretrained(run / "generation-2")
    bare = saved.replace({n: replace(e, scale=None) for n, e in saved.items()})
    options = {"connectome": "", "child_reset": "tensor_scale"}
    with pytest.raises(ConfigError, match="carries no scale"):
        check_arms(bare, InheritanceArguments(arms=["dense", "random"], **options), 16)
    check_arms(bare, InheritanceArguments(arms=["dense"], **options), 16)


def copy_of(run, folder, **changes):
    """Copy the last generation with its tokenizer and change its config."""
    source = run / "generation-2"
    saved = Connectome.from_pretrained(source)
    saved.replace(config=replace(saved.config, **changes)).save_pretrained(folder)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_inherit_says_so_when_a_recorded_reset_cannot_be_had(texts, run, tmp_path, capsys):
    folder = copy_of(run, tmp_path / "rewound", reset="rewind")
    recipe("inherit").main(inherit_options(texts, folder, "--seeds", "1", "--arms", "connectome"))
    assert "reset: sign_constant, because the recorded 'rewind'" in capsys.readouterr().out


def test_inherit_takes_a_checkpoint_and_finds_its_tokenizer(texts, run):
    checkpoint = run / "checkpoint-16"
    assert find_connectome(checkpoint) == checkpoint / "connectome"
    connectome = Connectome.from_pretrained(checkpoint / "connectome")
    tokenizer = recipe("inherit").inherited_tokenizer(
        connectome, checkpoint / "connectome", DataArguments()
    )
    assert tokenizer_digest(tokenizer) == connectome.config.tokenizer_digest


def test_inherit_asks_for_the_tokenizer_that_is_recorded_but_not_there(run, tmp_path):
    folder = copy_of(run, tmp_path / "bare")
    (folder / "tokenizer_config.json").unlink()
    inherited = recipe("inherit").inherited_tokenizer
    connectome = Connectome.from_pretrained(folder)
    with pytest.raises(ConfigError, match="Name it with --tokenizer"):
        inherited(connectome, folder, DataArguments())
    unknown = connectome.replace(config=replace(connectome.config, tokenizer_digest=None))
    assert inherited(unknown, folder, DataArguments()) is None
    with pytest.raises(ConfigError, match="has 258 tokens, the model of the connectome"):
        check_vocabulary(altered_vocabulary(unknown, 200), range(258))


def altered_vocabulary(connectome, size):
    base_config = connectome.config.base_config | {"vocab_size": size}
    return connectome.replace(config=replace(connectome.config, base_config=base_config))


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("run", "run/inherit"),
        ("run/generation-1", "run/inherit-generation-1"),
        ("run/checkpoint-12", "run/inherit-checkpoint-12"),
        ("run/checkpoint-12/connectome", "run/inherit-checkpoint-12"),
        ("/run/generation-1", "/run/inherit-generation-1"),
    ],
)
def test_inherit_writes_into_no_folder_that_is_uploaded_or_removed(given, output):
    assert default_output(given) == Path(output)


def test_hub_id_that_cannot_be_had_is_answered_with_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=r"hf download some/name\. It is no folder here either"):
        find_connectome("some/name")


@pytest.mark.parametrize("content", ["", '{"arm": "den', "[]", "{}", '{"arm": "dense"}'])
def test_arm_whose_result_is_not_whole_is_trained_again(tmp_path, content):
    file = tmp_path / "dense-seed0.json"
    file.write_text(content)
    assert stored_result(file) is None
    result = ArmResult("dense", 0, [0], [1.0], 1, 1, 0, 0.0)
    file.write_text(json.dumps(asdict(result)))
    assert stored_result(file) == result
    assert stored_result(file.rename(tmp_path / "dense-seed1.json")) is None


def test_report_names_a_full_disk_and_does_without_curves(tmp_path, monkeypatch, capsys):
    module = recipe("inherit")
    results = [ArmResult("dense", 0, [0, 1], [2.0, 1.0], 1, 1, 0, 0.0)]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "inheritance_curves", full)
    module.report(results, tmp_path)
    said = capsys.readouterr().out
    assert "no curves.png: " in said
    assert f"saved table.md, results.json in {tmp_path}" in said
    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(StorageError, match=r"cannot write .*table\.md: No space"):
        module.report(results, tmp_path)


def test_inherit_refuses_a_folder_without_a_connectome(texts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe("inherit").main(inherit_options(texts, tmp_path))
    assert "holds no connectome" in capsys.readouterr().err


CONFIGS = sorted(p.stem for p in (RECIPES / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("jepa")])
def test_every_config_is_taken_by_its_recipe(name, monkeypatch, tmp_path):
    inherits = name.endswith("inherit")
    module = recipe("inherit" if inherits else "evolve")
    reached = {}

    class ReachedError(Exception):
        pass

    def claim(folder, settings, *, record=True):
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


def test_a_failed_first_try_leaves_the_folder_free(texts, tmp_path, capsys):
    output = tmp_path / "run"
    with pytest.raises(SystemExit):
        recipe("evolve").main(evolve_options(texts / "missing", output))
    with pytest.raises(SystemExit):
        recipe("evolve").main(evolve_options(texts, output, "--model_overrides", "n_layer=x"))
    capsys.readouterr()
    recipe("evolve").main(evolve_options(texts, output, "--steps_per_generation", "2"))
    assert "to inherit" in capsys.readouterr().out


def test_a_corpus_that_changed_is_refused_before_anything_is_written(texts, tmp_path, capsys):
    changed = tmp_path / "texts"
    shutil.copytree(texts, changed)
    output = tmp_path / "run"
    recipe("evolve").main(evolve_options(changed, output, "--steps_per_generation", "2"))
    for number in range(8):
        (changed / f"{number}.txt").write_text("another text " * 50)
    with pytest.raises(SystemExit) as stopped:
        recipe("evolve").main(evolve_options(changed, output, "--steps_per_generation", "2"))
    assert stopped.value.code == 2
    assert "corpus: 'train: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume_from_checkpoint", "x"], "goes on by itself"),
        (["--model_overrides", "n_layer=1,n_embd=16,n_head=2,vocab_size=200"], "vocab_size=200"),
        (["--model_overrides", "n_layer=1,n_embd=16,n_head=2,n_positions=8"], "do not fit"),
        (["--model_overrides", "activation_function=foo"], "foo"),
        (["--per_device_train_batch_size", "0"], "expected at least 1"),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "5000"], "no more"),
        (["--scope", "all-matrixes"], "Did you mean 'all-matrices'"),
    ],
)
def test_evolve_refuses_what_cannot_work_in_one_message(texts, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        recipe("evolve").main(evolve_options(texts, tmp_path / "run", *options))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_ctrl_c_is_no_traceback(capsys):
    from hf_connectome.parsing import friendly_errors

    with pytest.raises(SystemExit) as stopped, friendly_errors("evolve.py"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert "The same command goes on" in capsys.readouterr().err


@pytest.mark.slow
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

"""recipes/jepa.py from the command line: trains, resumes, refuses; and its parts."""

# ruff: noqa: F811 (the fixture `texts` of another file)

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
import zstandard
from test_connectome_jepa import TOKENS, small_model
from test_recipes import RECIPES, changed, recipe, texts  # noqa: F401 (texts is a fixture)
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from hf_connectome.data import DataArguments, load_corpus
from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.models.connectome_jepa.arguments import JepaArguments, build_graph
from hf_connectome.models.connectome_jepa.training import TermsTrainer, artefact_bytes
from hf_connectome.parsing import parse

DRAWN = {"wiring": "random", "neurons": 20, "inputs": 4, "outputs": 5, "density": 0.3}


def options(texts, output, **settings):
    given = [
        "--dataset", str(texts), "--tokenizer", "bpe:300", "--block_size", "16",
        "--eval_fraction", "0.2", "--max_eval_tokens", "480",
        "--wiring", "random", "--neurons", "20", "--inputs", "4", "--outputs", "5",
        "--density", "0.3", "--hidden_size", "16", "--hops", "4", "--heads", "2", "--head_dim", "4",
        "--sigreg_weight", "0.001", "--max_steps", "6", "--learning_rate", "1e-2",
        "--per_device_train_batch_size", "4", "--save_steps", "3", "--logging_steps", "3",
        "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none",
        "--output_dir", str(output),
    ]  # fmt: skip
    return changed(given, **settings)


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("jepa") / "run"
    recipe("jepa").main(options(texts, output))
    return output


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the recipe ----------------------------------------------------------------------------------


def test_run_leaves_a_loadable_model_and_what_was_measured(run, texts):
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.vocab_size == len(tokenizer) == 300
    found = json.loads((run / "results.json").read_text())
    assert (found["neurons"], found["edges"], found["step"]) == (20, 120, 6)
    assert found["parameters"] == model.num_parameters() - 4 * (400 - 120)
    assert found["artefact_bytes"] == artefact_bytes(model)
    data = DataArguments(
        str(texts), tokenizer="bpe:300", block_size=16, eval_fraction=0.2, max_eval_tokens=480
    )
    corpus = load_corpus(data, tokenizer)
    with torch.no_grad():
        blocks = torch.tensor(corpus.evaluation["input_ids"])
        loss = float(model(blocks, labels=blocks).loss)
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-4)
    expected = loss / math.log(2) * corpus.num_eval_tokens / corpus.num_eval_bytes
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-4)


def test_every_term_of_the_loss_is_logged_beside_their_sum(run):
    logged = [r for r in metrics(run) if "loss" in r]
    assert [r["step"] for r in logged] == [3, 6]
    for record in logged:
        terms = [record[f"loss_{name}"] for name in ("cross_entropy", "jepa", "sigreg")]
        assert all(term > 0 for term in terms)
        assert sum(terms) == pytest.approx(record["loss"], rel=1e-5)


def test_run_that_was_stopped_ends_in_the_same_weights(run, texts, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "checkpoint-6")
    recipe("jepa").main(options(texts, stopped))
    assert f"going on from {stopped / 'checkpoint-3'}: step 3" in capsys.readouterr().out
    ours, theirs = (f / "model" / "model.safetensors" for f in (run, stopped))
    assert ours.read_bytes() == theirs.read_bytes()
    assert (run / "results.json").read_text() == (stopped / "results.json").read_text()
    last = [next(r for r in metrics(f) if r["step"] == 6 and "loss" in r) for f in (run, stopped)]
    assert last[0] == last[1]


def test_run_that_has_ended_is_measured_again(run, texts, capsys):
    before = (run / "results.json").read_text()
    (run / "results.json").unlink()
    recipe("jepa").main(options(texts, run))
    assert "tokens a second" not in capsys.readouterr().out
    assert (run / "results.json").read_text() == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wiring": "celegnas"}, "Did you mean 'celegans'"),
        ({"twin": "degres"}, "Did you mean 'degrees'"),
        ({"wiring_file": "x.csv"}, "the wiring 'random' takes no wiring_file"),
        ({"wiring": "file"}, "the wiring 'file' reads a graph"),
        ({"neurons": 8}, "4 inputs and 5 outputs are more than the 8 neurons"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"hops": 1}, "num_hops is 1; expected at least 2"),
        ({"density": 0.003}, "reaches the output neurons"),
        ({"max_steps": -1}, "max_steps is -1"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(texts, tmp_path, capsys, settings, said):
    with pytest.raises(SystemExit) as stopped:
        recipe("jepa").main(options(texts, tmp_path / "run", **settings))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_folder_of_another_graph_is_refused(run, texts, capsys):
    with pytest.raises(SystemExit):
        recipe("jepa").main(options(texts, run, twin="roles"))
    assert "belongs to a run of another configuration: twin: None there" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_one_model(texts, tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29533"]
    command += [str(RECIPES / "jepa.py"), *options(texts, tmp_path, ddp_backend="gloo")]
    environment = os.environ | {"PYTHONPATH": str(RECIPES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tokens a second") == 1
    for record in (r for r in metrics(tmp_path) if "loss" in r):
        terms = [record[f"loss_{name}"] for name in ("cross_entropy", "jepa", "sigreg")]
        assert sum(terms) == pytest.approx(record["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["jepa", "jepa_openstax"])
def test_configs_are_settings_of_the_recipe(name):
    kinds = (JepaArguments, DataArguments, TrainingArguments)
    arguments, data, training = parse(
        kinds, ["--config", name], prog="jepa.py", description="", config_dir=RECIPES / "configs"
    )
    assert (arguments.wiring, arguments.direction, data.tokenizer) == (
        "celegans",
        "along",
        "bpe:1024",
    )
    written = yaml.safe_load((RECIPES / "configs" / f"{name}.yaml").read_text())
    assert training.max_steps == written["max_steps"]


# ---- the re-test ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    """Import the study by its path; its dataclasses want their module to be known."""
    file = RECIPES / "studies" / "jepa_retest.py"
    spec = importlib.util.spec_from_file_location("jepa_retest", file)
    sys.modules["jepa_retest"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["jepa_retest"]


@pytest.fixture(scope="module")
def graph_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    graph = build_graph(JepaArguments(**DRAWN))
    edges = [f"{graph.names[i]},{graph.names[j]}" for i, j in graph.adjacency.nonzero().tolist()]
    neurons = [f"{name},{role}" for name, role in zip(graph.names, graph.roles, strict=True)]
    (folder / "edges.csv").write_text("\n".join(["pre,post", *edges]))
    (folder / "neurons.csv").write_text("\n".join(["name,role", *neurons]))
    return folder


def retest_options(texts, graph_files, output, *more):
    return [
        "--dataset", str(texts), "--tokenizer", "bpe:300", "--block_size", "16",
        "--eval_fraction", "0.2", "--max_eval_tokens", "160", "--max_train_tokens", "3200",
        "--wiring", "file", "--wiring_file", str(graph_files / "edges.csv"),
        "--neurons_file", str(graph_files / "neurons.csv"),
        "--hidden_size", "16", "--head_dim", "4", "--max_steps", "2", "--eval_strategy", "steps",
        "--eval_steps", "1", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4",
        "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none",
        "--save_strategy", "no", "--output_dir", str(output), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_retest_trains_what_is_missing_in_its_shard(study, texts, graph_files, tmp_path, capsys):
    arms = ["--arms", "along,degrees,transformer,16-hops-old", "--seeds", "2", "--hint_seeds", "1"]
    given = retest_options(texts, graph_files, tmp_path, *arms)
    study.main([*given, "--shard", "1/2"])
    assert len(list((tmp_path / "arms").iterdir())) == 4
    first = (tmp_path / "arms" / "along-seed0.json").stat().st_mtime_ns
    study.main(given)
    assert (tmp_path / "arms" / "along-seed0.json").stat().st_mtime_ns == first
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert {(r["arm"], r["seed"]) for r in runs} == {
        ("along", 0), ("along", 1), ("degrees", 0), ("degrees", 1), ("transformer", 0),
        ("transformer", 1), ("16-hops-old", 0),
    }  # fmt: skip
    assert all(r["steps"] == [1, 2] for r in runs)
    start = {(r["arm"], r["seed"]): r["losses"][0] for r in runs}
    assert start["along", 0] != start["along", 1]
    assert start["along", 0] != start["degrees", 0]
    sizes = {r["arm"]: r["parameters"] for r in runs}
    assert sizes["degrees"] == sizes["along"]
    assert abs(sizes["transformer"] - sizes["along"]) <= 3 * study.LAYERS * 16
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| 16-hops-old (hint) | 1 |" in table
    assert re.search(r"\| degrees \| 2 \|.* \([+-][\d.]+ to [+-][\d.]+\) \|", table)
    assert (tmp_path / "retest.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arms", "alogn"), "Did you mean 'along'"),
        (("--shard", "3/2"), "shard is '3/2'"),
        (("--shard", "half"), "shard is 'half'"),
        (("--seeds", "0"), "seeds is 0"),
        (("--max_steps", "0"), "max_steps is 0"),
    ],
)
def test_study_that_cannot_be_made_is_refused(
    study,
    texts,
    graph_files,
    tmp_path,
    capsys,
    more,
    said,
):
    with pytest.raises(SystemExit):
        study.main(retest_options(texts, graph_files, tmp_path, *more))
    assert said in capsys.readouterr().err


def test_study_has_its_runs_in_pairs_and_each_in_one_shard(study):
    jobs = study.RetestArguments().jobs()
    assert len(jobs) == len(set(jobs)) == 7 * 4 + 10 * 2
    assert jobs[:7] == [(arm, 0) for arm in study.TOPOLOGIES]
    shards = [study.RetestArguments(shard=f"{n}/3").jobs() for n in (1, 2, 3)]
    assert sorted(job for shard in shards for job in shard) == sorted(jobs)


# ---- graphs by name ------------------------------------------------------------------------------


def test_drawn_graph_has_its_counts_and_its_twin_too():
    graph = build_graph(JepaArguments(**DRAWN))
    assert (graph.num_neurons, graph.num_edges) == (20, 120)
    assert (graph.inputs, graph.outputs) == ((0, 1, 2, 3), (15, 16, 17, 18, 19))
    twin = build_graph(JepaArguments(**DRAWN, twin="degrees"))
    assert twin.adjacency.sum(1).equal(graph.adjacency.sum(1))
    assert not twin.adjacency.equal(graph.adjacency)
    assert not build_graph(JepaArguments(**DRAWN, wiring_seed=1)).adjacency.equal(graph.adjacency)


def test_graph_comes_from_a_file(tmp_path):
    (tmp_path / "edges.csv").write_text("pre,post\na,b\nb,c\n")
    (tmp_path / "neurons.csv").write_text("name,role\na,sensory\nb,inter\nc,motor\n")
    files = {
        "wiring_file": str(tmp_path / "edges.csv"),
        "neurons_file": str(tmp_path / "neurons.csv"),
    }
    graph = build_graph(JepaArguments(wiring="file", **files))
    assert graph.roles == ("sensory", "inter", "motor")
    with pytest.raises(ConfigError, match="the wiring 'celegans' takes no wiring_file"):
        JepaArguments(wiring="celegans", **files)
    with pytest.raises(UnknownNameError):
        build_graph(JepaArguments(wiring="file", **files, twin="none"))


# ---- the trainer's log and the artefact ----------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_terms_are_means_over_the_steps_since_the_last_record(tmp_path, accumulation):
    rows = [{"input_ids": row, "labels": row} for row in TOKENS.repeat(4, 1)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, logging_steps=2, learning_rate=0.0, use_cpu=True,
        per_device_train_batch_size=2 // accumulation, gradient_accumulation_steps=accumulation,
        disable_tqdm=True, report_to="none", save_strategy="no",
    )  # fmt: skip
    model = small_model(jepa_weight=0.0, sigreg_weight=0.0)
    trainer = TermsTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    logged = [r for r in trainer.state.log_history if "loss" in r]
    assert [r["step"] for r in logged] == [2, 4]
    for record in logged:
        assert record["loss_cross_entropy"] == pytest.approx(record["loss"], rel=1e-5)
        assert "loss_jepa" not in record
    evaluated = model.eval()(TOKENS, labels=TOKENS).loss
    assert logged[0]["loss"] == pytest.approx(float(evaluated.detach()), rel=0.2)


def test_artefact_counts_every_part_once():
    model = small_model()
    parts = [np.packbits(model.model.mask.numpy(), axis=-1).tobytes()]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    bound = sum(p.numel() + 2 * len(p) for p in matrices)
    bound += sum(2 * p.numel() for p in model.parameters() if p.ndim < 2)
    bound += sum(2 * b.numel() for b in model.buffers() if b.dtype != torch.bool) + len(parts[0])
    size = artefact_bytes(model)
    assert 0.5 * bound < size < bound + 200
    empty = small_model()
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.zero_()
    zeros = zstandard.ZstdCompressor(level=19).compress(bytes(bound))
    assert artefact_bytes(empty) < len(zeros) + 300

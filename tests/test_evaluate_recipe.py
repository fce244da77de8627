"""recipes/evaluate.py: one tiny run over all tasks, the numbers behind it, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from tiny import drawn, same, state_of, tiny_model

from hf_connectome import Connectome, ConnectomeModel
from hf_connectome.data import tokenizer_digest, train_bpe
from hf_connectome.errors import ConfigError, DataError, FormatError, HostMismatchError, HubError
from hf_connectome.evaluation.arguments import TASKS, EvaluationArguments
from hf_connectome.evaluation.brain import neural_predictivity
from hf_connectome.evaluation.likelihood import held_out_text, text_likelihood
from hf_connectome.evaluation.paired import t_quantile
from hf_connectome.evaluation.reading import reading_times, word_counts
from hf_connectome.evaluation.report import lm_interval, notes
from hf_connectome.evaluation.states import untrained_twin
from hf_connectome.evaluation.subjects import CHECKPOINT, FRESH, SPARSE, find_subjects
from hf_connectome.evaluation.suite import Materials, Outcome, plan
from hf_connectome.evaluation.surprisal import token_surprisals
from hf_connectome.evaluation.tables import natural_stories, sentence_table
from hf_connectome.hosts import wire

RECIPE = Path(__file__).parents[1] / "recipes" / "evaluate.py"
WORDS = ("a", "bone", "cell", "the", "frog", "water", "runs", "under", "of", "sun", "red", "Herz ä")
ALICE = "hf_alice"


def recipe():
    spec = importlib.util.spec_from_file_location("recipe_evaluate", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentence(draw, num_words):
    return " ".join(draw.choices(WORDS, k=num_words))


def write_checkpoint(folder, tokenizer, *, sparse, seed, **changes):
    sizes = {"n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    model = tiny_model("gpt2", seed=seed, vocab_size=len(tokenizer), **sizes | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    if sparse:
        connectome = drawn(model, reset="keep", tokenizer_digest=tokenizer_digest(tokenizer))
        wire(model, connectome, reset="keep")
        connectome.save_pretrained(folder / "connectome")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models of different tokenizers, and small data for every task."""
    root, draw = tmp_path_factory.mktemp("made"), random.Random(0)
    documents = [sentence(draw, 60) for _ in range(6)]
    (root / "held_out.txt").write_text("\n<|endoftext|>\n".join(documents))
    small, large = train_bpe(documents, 270), train_bpe(documents, 300)
    write_checkpoint(root / "run" / "checkpoint-9", small, sparse=True, seed=1)
    child = drawn(
        tiny_model("gpt2", seed=2, vocab_size=len(large), n_positions=64),
        reset="sign_constant",
        tokenizer_digest=tokenizer_digest(large),
    )
    child.save_pretrained(root / "run" / "generation-1")
    large.save_pretrained(root / "run" / "generation-1")
    hellaswag = [
        {
            "ind": i, "activity_label": "Roof", "ctx_a": "a", "ctx_b": "b",
            "ctx": sentence(draw, 4),
            "endings": [sentence(draw, draw.randint(1, 5)) for _ in range(4)],
            "source_id": str(i), "split": "val", "split_type": "indomain", "label": str(i % 4),
        }
        for i in range(6)
    ]  # fmt: skip
    (root / "rows" / "hellaswag").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in hellaswag)
    (root / "rows" / "hellaswag" / "validation.jsonl").write_text(lines)
    table = ["word\tzone\titem\tnItem\tmeanItemRT\tsdItemRT"]
    for item in (1, 2, 3):
        for zone in range(1, 41):
            word, time = draw.choice(WORDS[:-1]), 300 + 50 * draw.random()
            table.append(f"{word}\t{zone}\t{item}\t80\t{time}\t100")
    (root / "stories").mkdir()
    (root / "stories" / "processed_wordinfo.tsv").write_text("\n".join(table) + "\n")
    brain = ["sentence,left,right"]
    brain += [f"{i} {sentence(draw, 5)},{draw.gauss(0, 1)},{draw.gauss(0, 1)}" for i in range(40)]
    (root / "brain.csv").write_text("\n".join(brain) + "\n")
    return root


def options(made, output, *more, tasks="loss,lm,reading,brain"):
    return [
        "--models", str(made / "run" / "checkpoint-9"), str(made / "run" / "generation-1"),
        "--tasks", tasks, "--eval_dataset", str(made / "held_out.txt"),
        "--lm_tasks", "hellaswag", "--data_dir", str(made / "rows"), "--limit", "4",
        "--natural_stories", str(made / "stories"), "--brain_table", str(made / "brain.csv"),
        "--num_shuffles", "3", "--device", "cpu", "--output_dir", str(output), *more,
    ]  # fmt: skip


def arguments(made, **changes):
    given = {
        "models": [str(made / "run" / "checkpoint-9")],
        "output_dir": str(made / "unused"),
        "eval_dataset": [str(made / "held_out.txt")],
        "device": "cpu",
    }
    return EvaluationArguments(**given | changes)


@pytest.fixture(scope="module")
def run(made):
    pytest.importorskip("lm_eval")
    output = made / "out"
    recipe().main(options(made, output))
    return output


def result_of(run, label, task):
    content = json.loads((run / "results.json").read_text())
    [found] = [r for r in content["results"] if (r["label"], r["task"]) == (label, task)]
    return found["result"]


# ---- the numbers ---------------------------------------------------------------------------------


def test_one_command_leaves_a_table_scores_and_figures(run):
    names = {"models", "table.md", "results.json", "scores.png", "reading.png", "brain.png"}
    assert {file.name for file in run.iterdir()} == names
    for figure in run.glob("*.png"):
        assert figure.read_bytes()[:4] == b"\x89PNG"
    content = json.loads((run / "results.json").read_text())
    assert [m["kind"] for m in content["models"]] == [SPARSE, FRESH]
    assert [m["label"] for m in content["models"]] == ["checkpoint-9", "generation-1 seed 0"]
    scores = content["scores"]["checkpoint-9"]
    assert {(s["task"], s["metric"]) for s in scores} == {
        ("hellaswag", "acc"),
        ("hellaswag", "acc_norm"),
    }
    assert scores[0]["dataset"] == "Rowan/hellaswag"
    assert (scores[0]["num_samples"], scores[0]["num_rows"]) == (4, 6)
    assert len(content["results"]) == 2 * len(TASKS)


def test_the_table_says_that_losses_of_two_tokenizers_are_not_to_be_compared(run):
    table = (run / "table.md").read_text()
    assert "nats per token ↓ (tokenizers differ: compare bits per byte)" in table
    assert "have different tokenizers" in table
    assert "hellaswag: 4 of 6 rows" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert any("reading r, as-filed" in row for row in rows)
    assert any("reading r, lag 1" in row for row in rows)
    assert any("brain r, mean over layers, untrained 0" in row for row in rows)
    assert any("held_out.txt, uniform guess, bits per byte" in row for row in rows)
    assert any("reading ΔLL, lag 1, nats per word" in row for row in rows)
    assert any("reading ΔLL, lag 1, untrained 0" in row for row in rows)
    assert any(", chance" in row for row in rows)


def test_numbers_are_those_of_the_library(made, run):
    [sparse] = find_subjects([str(made / "run" / "checkpoint-9")])
    model, tokenizer = sparse.load("cpu"), sparse.tokenizer
    documents = held_out_text(str(made / "held_out.txt")).documents
    loss = text_likelihood(model, tokenizer, documents).as_json()
    assert result_of(run, "checkpoint-9", "loss") == pytest.approx(loss, rel=1e-6)
    table = natural_stories(made / "stories")
    reading = reading_times(model, tokenizer, table, frequency=word_counts(documents))
    found = result_of(run, "checkpoint-9", "reading")
    assert [a["lag"] for a in found["alignments"]] == [0, 1]
    for ours, theirs in zip(found["alignments"], reading.alignments, strict=True):
        assert ours["pearson_r"] == pytest.approx(theirs.pearson_r, rel=1e-4)
        assert ours["delta_log_likelihood"] == pytest.approx(theirs.delta_log_likelihood, rel=1e-3)
    twin = untrained_twin(model, 0)
    control = reading_times(twin, tokenizer, table, frequency=word_counts(documents))
    assert found["untrained 0"]["alignments"][1]["pearson_r"] == pytest.approx(
        control.chosen.pearson_r, rel=1e-4
    )
    brain = neural_predictivity(
        model, tokenizer, sentence_table(made / "brain.csv"), num_shuffles=3, batch_size=16
    )
    scores = result_of(run, "checkpoint-9", "brain")["scores"]
    assert [s["pearson_r"] for s in scores] == pytest.approx(
        [s.pearson_r for s in brain.scores], rel=1e-3, abs=1e-5
    )


def test_lm_scores_are_those_of_evaluate_lm(made, run):
    from hf_connectome.evaluation.lm import evaluate_lm

    [fresh] = find_subjects([str(made / "run" / "generation-1")])
    direct = evaluate_lm(
        fresh.load("cpu"), fresh.tokenizer, ["hellaswag"], limit=4, data_dir=made / "rows"
    )
    found = result_of(run, "generation-1 seed 0", "lm")
    assert found["tasks"] == direct["tasks"]


def test_bits_per_byte_sum_every_token_of_the_text(made):
    [sparse] = find_subjects([str(made / "run" / "checkpoint-9")])
    model, tokenizer = sparse.load("cpu"), sparse.tokenizer
    documents = ["the frog runs", "Herz ä under water", "a"]
    found = text_likelihood(model, tokenizer, documents)
    nats, sizes, num_tokens = [], [], 0
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0, :-1]
        picked = torch.log_softmax(logits.double(), -1)[range(len(ids)), ids]
        nats.append(-float(picked.sum()))
        sizes.append(len(document.encode()))
        num_tokens += len(ids)
    bits = sum(nats) / math.log(2) / sum(sizes)
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5)
    assert found.loss == pytest.approx(sum(nats) / num_tokens, rel=1e-5)
    uniform = num_tokens * math.log2(len(tokenizer)) / sum(sizes)
    assert found.uniform_bits_per_byte == pytest.approx(uniform, rel=1e-9)
    assert (found.num_bytes, found.num_tokens) == (13 + 19 + 1, num_tokens)
    rest = np.array(nats) / math.log(2) - bits * np.array(sizes)
    half = t_quantile(0.975, 2) * math.sqrt((rest**2).sum() * 3 / 2) / sum(sizes)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-4)


def test_one_document_has_no_interval_and_long_ones_are_read_in_windows(made):
    [sparse] = find_subjects([str(made / "run" / "checkpoint-9")])
    model, tokenizer = sparse.load("cpu"), sparse.tokenizer
    text = held_out_text(str(made / "held_out.txt")).documents[0]
    found = text_likelihood(model, tokenizer, [text], context=16)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    [values] = token_surprisals(model, [[tokenizer.eos_token_id, *ids]], context=16)
    assert len(ids) > 64
    assert found.loss == pytest.approx(float(values[1:].mean()), rel=1e-6)
    assert (found.low, found.high, found.context) == (None, None, 16)


def test_a_text_is_the_same_bytes_for_every_model_when_it_is_cut(made):
    whole = held_out_text(str(made / "held_out.txt"))
    cut = held_out_text(str(made / "held_out.txt"), max_bytes=whole.num_bytes - 5)
    assert len(whole.documents) == 6
    assert whole.num_bytes - 8 <= cut.num_bytes <= whole.num_bytes - 5
    assert "".join(whole.documents).startswith("".join(cut.documents))
    part = held_out_text(str(made / "held_out.txt"), fraction=0.4)
    assert 0 < len(part.documents) < 6
    assert set(part.documents) < set(whole.documents)


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "num", "expected"),
    [
        ("acc", 0.5, 0.1, 20, (0.2993, 0.7007)),
        ("acc_norm", 1.0, 0.0, 20, (0.8389, 1.0)),
        ("perplexity", 100.0, 10.0, 20, (100 / math.exp(0.196), 100 * math.exp(0.196))),
        ("likelihood_diff", -2.0, 1.0, 20, (-3.96, -0.04)),
        ("acc", 0.5, None, 20, (None, None)),
    ],
)
def test_intervals_stay_where_scores_can_be(metric, value, stderr, num, expected):
    assert lm_interval(metric, value, stderr, num) == pytest.approx(expected, abs=1e-4)


def test_cut_contexts_are_listed_a_model_at_a_time():
    def outcome(label, item, shortened):
        context = {"max_length": 64, "requests": 10, "shortened": shortened, "windowed": 1}
        return Outcome(label, "lm", item, {"tasks": {}, "context": context}, 0.0, is_new=True)

    seen = [outcome("a", "arc", 0), outcome("a", "hella", 2), outcome("b", "arc", 4)]
    assert (
        "Contexts were cut: a (64 tokens) arc 1 of 10, hella 3 of 10; b (64 tokens) arc 5 of 10. "
        "Compare models of one context length." in notes([], seen)
    )


# ---- going on ------------------------------------------------------------------------------------


def test_the_same_command_redoes_nothing(made, run, capsys, monkeypatch):
    monkeypatch.setattr("hf_connectome.evaluation.subjects.Subject.load", None)
    before = {f: f.read_bytes() for f in run.rglob("*") if f.suffix in (".json", ".md")}
    recipe().main(options(made, run))
    said = capsys.readouterr()
    assert "0 of 8 results are new" in said.out
    assert said.err.count("was there") == 8
    assert {f: f.read_bytes() for f in before} == before


def test_more_seeds_add_only_what_is_missing(made, run, capsys, tmp_path):
    output = tmp_path / "more"
    shutil.copytree(run, output)
    broken = next(output.glob("models/checkpoint-9-*/loss-*/result.json"))
    whole = json.loads(broken.read_text())["result"]
    broken.write_text(broken.read_text()[:40])
    recipe().main(options(made, output, "--seeds", "0", "1", tasks="loss"))
    said = capsys.readouterr()
    assert "2 of 3 results are new" in said.out
    assert said.err.count("was there") == 1
    assert json.loads(broken.read_text())["result"] == whole
    content = json.loads((output / "results.json").read_text())
    assert [m["seed"] for m in content["models"]] == [None, 0, 1]


def test_other_settings_are_refused_before_anything_is_loaded(made, run, capsys, monkeypatch):
    monkeypatch.setattr("hf_connectome.evaluation.subjects.Subject.load", None)
    with pytest.raises(SystemExit) as stopped:
        recipe().main(options(made, run, "--num_shuffles", "4"))
    assert stopped.value.code == 2
    assert "num_shuffles: 3 there, 4 here" in capsys.readouterr().err


# ---- models --------------------------------------------------------------------------------------


def test_a_connectome_is_evaluated_on_fresh_models_of_its_seeds(made):
    path = str(made / "run" / "generation-1")
    first, second = find_subjects([path], seeds=[0, 7], reset="fresh_magnitude")
    assert first.folder_name != second.folder_name
    built = state_of(second.load("cpu"))
    direct = ConnectomeModel.from_pretrained(path, seed=7, reset="fresh_magnitude")
    assert same(built, state_of(direct.get_base_model()))
    assert not same(built, state_of(first.load("cpu")))
    assert first.density == Connectome.from_pretrained(path).density


def test_a_checkpoint_with_other_zeros_than_its_connectome_is_refused(made, tmp_path):
    shutil.copytree(made / "run" / "checkpoint-9", tmp_path / "odd")
    model = find_subjects([str(tmp_path / "odd")])[0].load("cpu")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.fill_(0.5)
    model.save_pretrained(tmp_path / "odd")
    with pytest.raises(HostMismatchError, match="not 0 in the checkpoint"):
        find_subjects([str(tmp_path / "odd")])[0].load("cpu")


def test_results_have_another_name_when_weights_change(made, tmp_path):
    [sparse] = find_subjects([str(made / "run" / "checkpoint-9")])
    names = set()
    for seed in (1, 2):
        write_checkpoint(tmp_path / "model", sparse.tokenizer, sparse=False, seed=seed)
        [subject] = find_subjects([str(tmp_path / "model")])
        assert subject.kind == CHECKPOINT
        names.add(subject.folder_name)
    assert len(names) == 2


def test_models_of_the_hub_are_found_by_id_and_revision(made, hub, client, tmp_path):
    client.log_in(ALICE)
    api = HfApi(token=ALICE)
    for repo, name in (("org/wiring", "generation-1"), ("org/child", "checkpoint-9")):
        api.create_repo(repo)
        api.upload_folder(repo_id=repo, folder_path=made / "run" / name)
    api.create_tag("org/wiring", tag="generation-1")
    found = find_subjects(["org/wiring@generation-1", "org/child"])
    assert [s.kind for s in found] == [FRESH, SPARSE]
    assert [s.label for s in found] == ["generation-1 seed 0", "child"]
    local = find_subjects([str(made / "run" / n) for n in ("generation-1", "checkpoint-9")])
    assert [s.digest for s in found] == [s.digest for s in local]
    found[1].load("cpu")
    with pytest.raises(HubError, match="org/nothing"):
        find_subjects(["org/nothing"])


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["los"]}, "Did you mean 'loss'"),
        ({"tasks": ["loss", "loss"]}, "each once"),
        ({"tasks": ["brain"]}, "--brain_table is not given"),
        ({"tasks": ["reading"]}, "--natural_stories is not given"),
        ({"eval_dataset": []}, "--eval_dataset is not given"),
        (
            {"tasks": ["reading"], "natural_stories": "x", "eval_dataset": []},
            "--frequency",
        ),
        ({"limit": 0}, "limit is 0"),
        ({"seeds": [-1]}, "below 0"),
        ({"eval_fraction": 1.0}, "eval_fraction is 1.0"),
        ({"reset": "sign"}, "unknown reset 'sign'"),
        ({"reset": "rewind"}, "carries none"),
        ({"dataset": ["python-stdlib", "python-stdlib"]}, "named twice"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(made, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(made, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_dataset": ["nowhere/at/all.txt"]}, "does not exist"),
        ({"tasks": ["lm"], "data_dir": "/nowhere"}, "'/nowhere' is no folder"),
        ({"tasks": ["lm"], "lm_tasks": ["helaswag"], "data_dir": "rows"}, "mean 'hellaswag'"),
        ({"tasks": ["lm"], "lm_tasks": ["piqa"], "data_dir": "rows"}, "rows of piqa are not in"),
        ({"tasks": ["reading"], "natural_stories": "/nowhere"}, "processed_wordinfo"),
        ({"tasks": ["brain"], "brain_table": "/nowhere.csv"}, "nowhere.csv"),
        ({"eval_dataset": ["tokens.bin"]}, "tokens"),
    ],
)
def test_missing_data_is_named_before_any_model_is_looked_at(made, monkeypatch, changes, message):
    if changes.get("tasks") == ["lm"]:
        pytest.importorskip("lm_eval")
    monkeypatch.chdir(made)
    Path("tokens.bin").write_bytes(bytes(2048))
    with pytest.raises((DataError, ConfigError, ValueError), match=message):
        Materials(arguments(made, **changes)).check()


def test_rows_that_cannot_be_downloaded_are_said_with_the_way_out(made):
    pytest.importorskip("lm_eval")
    given = arguments(made, tasks=["lm"], lm_tasks=["hellaswag"])
    subjects = find_subjects(given.models)
    [job] = plan(subjects, Materials(given))
    with pytest.raises(DataError, match=r"'hellaswag' could not be read: .*--data_dir"):
        job.measure(subjects[0].load("cpu"))


def test_missing_lm_eval_is_said_with_the_way_to_install_it(made, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hf_connectome\[eval\]'"):
        Materials(arguments(made, tasks=["lm"])).check()


def test_a_model_without_tokenizer_is_refused_and_one_can_be_named(made, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(
        made / "run" / "generation-1", bare, ignore=shutil.ignore_patterns("tokenizer*")
    )
    with pytest.raises(ConfigError, match="without a tokenizer"):
        find_subjects([str(bare)])
    find_subjects([str(bare)], tokenizer=str(made / "run" / "generation-1"))
    with pytest.raises(HostMismatchError, match="embedding rows belong to other tokens"):
        find_subjects([str(bare)], tokenizer=str(made / "run" / "checkpoint-9"))


def test_names_that_are_no_model_are_refused_with_what_is_there(made, tmp_path):
    run = made / "run"
    with pytest.raises(ConfigError, match=r"folder of a run: name one.*generation-1 or .*oint-9"):
        find_subjects([str(run)])
    with pytest.raises(ConfigError, match="Did you mean 'checkpoint-9'"):
        find_subjects([str(run / "checkpoint-8")])
    with pytest.raises(ConfigError, match="same one twice"):
        find_subjects([str(run / "checkpoint-9"), str(run / ".." / "run" / "checkpoint-9")])
    shutil.copy(run / "checkpoint-9" / "config.json", tmp_path)
    with pytest.raises(FormatError, match=r"has no model\.safetensors"):
        find_subjects([str(tmp_path)])


def test_an_encoder_is_refused_for_all_but_brain(made, tmp_path):
    [sparse] = find_subjects([str(made / "run" / "checkpoint-9")])
    bert = tiny_model("bert", vocab_size=len(sparse.tokenizer))
    bert.save_pretrained(tmp_path / "bert")
    sparse.tokenizer.save_pretrained(tmp_path / "bert")
    subjects = find_subjects([str(tmp_path / "bert")])
    with pytest.raises(ConfigError, match="BertForMaskedLM, which is no causal"):
        plan(subjects, Materials(arguments(made)))
    brain = arguments(made, tasks=["brain"], brain_table=str(made / "brain.csv"))
    assert len(plan(subjects, Materials(brain))) == 1


def test_a_context_that_a_model_lacks_is_refused_before_it_is_loaded(made):
    given = arguments(made, context=65)
    with pytest.raises(ConfigError, match="65 tokens, but 'checkpoint-9' has 64 positions"):
        plan(find_subjects(given.models), Materials(given))
    fits = arguments(made, context=64)
    assert len(plan(find_subjects(fits.models), Materials(fits))) == 1


def test_several_processes_are_refused(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        recipe().main(options(made, tmp_path / "out", tasks="loss"))
    assert "in one process, but 2 were started" in capsys.readouterr().err


def test_the_recipe_does_not_stand_in_the_way_of_the_library_of_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(RECIPE.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert "--natural_stories" in capsys.readouterr().out
    assert str(RECIPE.parent) not in sys.path

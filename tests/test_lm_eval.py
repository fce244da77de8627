"""lm-eval on wired models: numbers against plain torch, the three ways to the same numbers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import drawn, tiny_model

pytest.importorskip("lm_eval")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_connectome import ConnectomeModel
from hf_connectome.data import tokenizer_digest
from hf_connectome.errors import ConfigError, DataError, HostMismatchError, UnknownNameError
from hf_connectome.evaluation.__main__ import main
from hf_connectome.evaluation.lm import evaluate_lm, scores
from hf_connectome.evaluation.lm_model import (
    Source,
    choose,
    connectome_lm,
    fit,
    tokenizer_of,
    windowed_lm,
)
from hf_connectome.evaluation.lm_sources import check_tasks, expand, index_of, task_files

WORDS = ("a", "bone", "cell", "the", "frog", "water", "runs", "under", "of", "sun", "red", "heart")
SHORT_CONTEXT = "ignore:.*lost the left end of their context"


def sentence(draw, num_words):
    return " ".join(draw.choice(WORDS) for _ in range(num_words))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([sentence(random.Random(0), 300)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def gpt2(tokenizer, **changes):
    settings = {"vocab_size": len(tokenizer), "n_positions": 256, "initializer_range": 0.4}
    return tiny_model("gpt2", seed=3, **settings | changes)


@pytest.fixture
def model(tokenizer):
    return gpt2(tokenizer)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A folder in the schema of the real data sets."""
    root, draw = tmp_path_factory.mktemp("rows"), random.Random(1)
    hellaswag = []
    for i in range(12):
        a, b = sentence(draw, 5) + ".", sentence(draw, 2)
        hellaswag.append(
            {
                "ind": i,
                "activity_label": "Roof",
                "ctx_a": a,
                "ctx_b": b,
                "ctx": f"{a} {b}",
                "endings": [sentence(draw, draw.randint(1, 9)) + "." for _ in range(4)],
                "source_id": str(i),
                "split": "val",
                "split_type": "indomain",
                "label": str(draw.randrange(4)),
            }
        )
    write(root / "hellaswag/validation.jsonl", hellaswag)
    for subject, splits in {"anatomy": ("dev", "test"), "astronomy": ("test",)}.items():
        for split in splits:
            write(
                root / f"mmlu/{subject}/{split}.jsonl",
                [
                    {
                        "question": sentence(draw, 6) + "?",
                        "subject": subject,
                        "choices": [sentence(draw, draw.randint(1, 7)) for _ in range(4)],
                        "answer": draw.randrange(4),
                    }
                    for _ in range(12)
                ],
            )
    arc = [
        {
            "id": str(i),
            "question": sentence(draw, 5),
            "choices": {"text": [sentence(draw, 2) for _ in range(3)], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
        for i in range(8)
    ]
    write(root / "arc_easy/validation.jsonl", arc)
    write(root / "lambada_openai/test.jsonl", [{"text": sentence(draw, 9)} for _ in range(8)])
    good = [{"sentence_good": "the frog runs", "sentence_bad": "frog the runs"} for _ in range(4)]
    write(root / "blimp/adjunct_island.jsonl", good)
    return root


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def losses_by_hand(model, tokenizer, context, continuation):
    """Loss of every token of ``continuation``, by plain torch."""
    before = tokenizer(context)["input_ids"]
    whole = torch.tensor(tokenizer(context + continuation)["input_ids"])
    assert whole[: len(before)].tolist() == before
    nats = torch.nn.functional.cross_entropy(
        model(whole[None]).logits[0, :-1], whole[1:], reduction="none"
    )
    return nats[len(before) - 1 :]


def accuracies_by_hand(model, tokenizer, items):
    """Means over (context, choices, gold) of the paper's two accuracies."""
    by_sum, by_mean = [], []
    for context, choices, gold in items:
        losses = [losses_by_hand(model, tokenizer, context, " " + c) for c in choices]
        by_sum.append(int(torch.stack([x.sum() for x in losses]).argmin()) == gold)
        by_mean.append(int(torch.stack([x.mean() for x in losses]).argmin()) == gold)
    return sum(by_sum) / len(by_sum), sum(by_mean) / len(by_mean)


def values(report, task):
    return {name: found["value"] for name, found in report["tasks"][task]["metrics"].items()}


# The paper's scores


def test_paper_scores_equal_those_by_hand(model, tokenizer, rows) -> None:
    hellaswag = [
        (row["ctx"], row["endings"], int(row["label"]))
        for row in read(rows / "hellaswag/validation.jsonl")
    ]
    mmlu = [
        (f"Question: {row['question']}\n\nAnswer:", row["choices"], row["answer"])
        for row in read(rows / "mmlu/anatomy/test.jsonl")
    ]
    tasks = ["hellaswag_per_token", "mmlu_cloze_anatomy"]
    report = evaluate_lm(model, tokenizer, tasks, data_dir=rows)
    for task, items in zip(tasks, (hellaswag, mmlu), strict=True):
        acc, acc_norm = accuracies_by_hand(model, tokenizer, items)
        assert acc != acc_norm  # so that one cannot pass for the other
        assert values(report, task) == {
            "acc": pytest.approx(acc),
            "acc_norm": pytest.approx(acc_norm),
        }
    entry = report["tasks"]["mmlu_cloze_anatomy"]
    assert (entry["dataset"], entry["config"], entry["split"]) == ("cais/mmlu", "anatomy", "test")
    assert (entry["num_samples"], entry["num_rows"], entry["num_fewshot"]) == (12, 12, 0)
    stderr = report["tasks"]["hellaswag_per_token"]["metrics"]["acc"]["stderr"]
    acc = values(report, "hellaswag_per_token")["acc"]
    assert stderr == pytest.approx((acc * (1 - acc) / 11) ** 0.5)


def test_choice_divides_by_tokens() -> None:
    assert choose([4.0, 3.0, 5.0], [4, 2, 6]) == (1, 2)
    assert choose([1.0, 1.0], [1, 1]) == (0, 0)


# Stock tasks


def test_stock_lambada_equals_perplexity_by_hand(model, tokenizer, rows) -> None:
    report = evaluate_lm(model, tokenizer, "lambada_openai", data_dir=rows)
    nats = []
    for row in read(rows / "lambada_openai/test.jsonl"):
        context, _, last = row["text"].rpartition(" ")
        nats.append(float(losses_by_hand(model, tokenizer, context, " " + last).sum()))
    found = report["tasks"]["lambada_openai"]["metrics"]["perplexity"]
    assert found["value"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    assert found["stderr"] > 0
    assert found["higher_is_better"] is False


def test_stock_tasks_run_from_a_folder_and_leave_everything_as_it_was(
    model, tokenizer, rows, capsys
) -> None:
    model.train()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    tasks = ["hellaswag", "mmlu_anatomy", "mmlu_anatomy_continuation", "blimp_adjunct_island"]
    report = evaluate_lm(model, tokenizer, tasks, data_dir=rows, limit=3)
    assert list(report["tasks"]) == sorted(tasks)
    assert all(task["num_samples"] == 3 for task in report["tasks"].values())
    assert report["tasks"]["hellaswag"]["num_rows"] == 12
    assert json.loads(json.dumps(report)) == report
    assert model.training
    assert tokenizer.pad_token is None
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert capsys.readouterr().out == ""


def test_rows_for_a_card_name_the_data_set_of_the_hub(model, tokenizer, rows) -> None:
    report = evaluate_lm(model, tokenizer, "hellaswag", data_dir=rows, limit=3)
    found = {row.metric: row for row in scores(report)}
    assert set(found) == {"acc", "acc_norm"}
    row = found["acc_norm"]
    assert (row.dataset, row.split, row.task) == ("Rowan/hellaswag", "validation", "hellaswag")
    assert row.value == values(report, "hellaswag")["acc_norm"]
    assert (row.num_samples, row.num_rows, row.is_complete) == (3, 12, False)
    assert row.harness.startswith("lm-eval 0.")


def test_examples_come_from_their_split(model, tokenizer, rows) -> None:
    report = evaluate_lm(
        model, tokenizer, "mmlu_anatomy_continuation", data_dir=rows, limit=2, num_fewshot=1
    )
    assert report["tasks"]["mmlu_anatomy_continuation"]["num_fewshot"] == 1


# Where rows come from


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    with task_files(["hellaswag"]) as (own,):
        return index_of(own)


def test_a_group_consists_of_all_its_subjects(index) -> None:
    for group in ("mmlu", "mmlu_continuation", "mmlu_cloze"):
        tasks, groups = expand(group, index)
        assert len(set(tasks)) == 57
        assert group in groups
    assert expand("ai2_arc", index) == (["arc_challenge", "arc_easy"], [])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["mmlu_cloze"], r"55 of the 57 tasks of 'mmlu_cloze' have no rows"),
        (["arc_challenge"], r"expected .*ai2_arc/ARC-Challenge/test.jsonl"),
        (["winogr*"], r"no task like 'winogr\*'"),
    ],
)
def test_missing_rows_are_refused(model, tokenizer, rows, tasks, message) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_lm(model, tokenizer, tasks, data_dir=rows)


def test_missing_examples_are_refused(model, tokenizer, rows) -> None:
    with pytest.raises(DataError, match=r"takes its 2 examples from 'dev', but .* has 'test' only"):
        evaluate_lm(model, tokenizer, "mmlu_astronomy", data_dir=rows, num_fewshot=2)


def test_unknown_task_says_what_was_meant(model, tokenizer, rows) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hellaswag'"):
        evaluate_lm(model, tokenizer, "helaswag", data_dir=rows)


def test_folder_that_is_none_is_refused(model, tokenizer, tmp_path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        evaluate_lm(model, tokenizer, "hellaswag", data_dir=tmp_path / "none")


def test_another_split_than_lm_evals_warns(model, tokenizer, rows) -> None:
    with pytest.warns(UserWarning, match="arc_easy is evaluated on 'validation'"):
        report = evaluate_lm(model, tokenizer, "arc_easy", data_dir=rows, limit=2)
    assert report["tasks"]["arc_easy"]["split"] == "validation"


def test_pattern_means_the_tasks_whose_rows_are_there(rows) -> None:
    with task_files(["mmlu_cloze_*"], rows) as (folder,):
        names = sorted(path.stem for path in folder.iterdir())
    assert names == ["mmlu_cloze_anatomy", "mmlu_cloze_astronomy"]
    assert not folder.exists()


def test_names_of_tasks_are_split_and_counted_once() -> None:
    assert check_tasks("a, b,a") == ["a", "b"]
    with pytest.raises(ConfigError, match="names no task"):
        check_tasks([])


def test_limit_below_one_is_refused(model, tokenizer, rows) -> None:
    with pytest.raises(ConfigError, match="limit=0"):
        evaluate_lm(model, tokenizer, "hellaswag", data_dir=rows, limit=0)


# Short contexts


def test_request_that_fits_is_left_alone() -> None:
    assert list(fit([1, 2, 3], [4, 5], 4)) == [(None, [1, 2, 3], [4, 5])]


def test_context_loses_its_left_end() -> None:
    assert list(fit([1, 2, 3, 4], [5, 6], 4)) == [(None, [2, 3, 4], [5, 6])]


def test_long_continuation_becomes_windows_that_score_each_token_once() -> None:
    assert list(fit([1, 2], [3, 4, 5, 6, 7], 2)) == [
        (None, [2], [3, 4]),
        (None, [4], [5, 6]),
        (None, [6], [7]),
    ]


def test_short_context_is_scored_by_hand_and_warns_once(tokenizer, rows) -> None:
    model = gpt2(tokenizer, n_positions=8)
    context, continuation = [5, 9, 11, 40, 50, 60], [*range(70, 81)]
    lm = windowed_lm()(pretrained=model, tokenizer=tokenizer, batch_size=2)
    with pytest.warns(UserWarning, match="1 of 2 requests lost .* and 1 were scored in windows"):
        found = lm._loglikelihood_tokens(
            [(("a", "b"), context, continuation), (("c", "d"), context, [7, 8, 9, 10])]
        )
    with torch.no_grad():
        expected = 0.0
        for ids in ([60, *range(70, 78)], [77, 78, 79, 80]):
            logits = model(torch.tensor([ids[:-1]])).logits[0]
            expected -= torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids[1:]), reduction="sum"
            )
    assert found[0][0] == pytest.approx(float(expected), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = lm._loglikelihood_tokens([(("a", "b"), context, continuation)])
    assert again[0] == pytest.approx(found[0])
    assert (lm.num_requests, lm.num_shortened, lm.num_windowed) == (3, 1, 2)


def test_encoder_and_decoder_are_asked_as_lm_eval_asks_them(tokenizer) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny_model("t5", vocab_size=len(tokenizer))
    model.config.decoder_start_token_id = 0
    expected = ask(HFLM(pretrained=model, tokenizer=tokenizer))
    assert ask_model(model, tokenizer) == expected
    assert len(set(expected)) == 3


@pytest.mark.filterwarnings(SHORT_CONTEXT)
def test_report_counts_what_the_context_cost(tokenizer, rows) -> None:
    model = gpt2(tokenizer, n_positions=16)
    report = evaluate_lm(model, tokenizer, "hellaswag", data_dir=rows, limit=3)
    context = report["context"]
    assert (context["max_length"], context["requests"]) == (16, 12)
    assert context["shortened"] + context["windowed"] > 0


# Ways to the same model


@pytest.fixture(scope="session")
def wired(tokenizer, tmp_path_factory):
    """A connectome with its tokenizer, and a 'trained' checkpoint that holds it."""
    folder = tmp_path_factory.mktemp("wired")
    host = gpt2(tokenizer)
    connectome = drawn(host, density=0.5, tokenizer_digest=tokenizer_digest(tokenizer))
    connectome.save_pretrained(folder / "connectome")
    tokenizer.save_pretrained(folder / "connectome")
    connectome.to(host, reset="keep")
    host.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    connectome.save_pretrained(folder / "checkpoint/connectome")
    gpt2(tokenizer).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    return folder


REQUESTS = [(("k", str(i)), [4, 8, 15 + i], [16, 23, 42 + i]) for i in range(3)]


def ask(lm):
    return [score for score, _ in lm._loglikelihood_tokens(REQUESTS, disable_tqdm=True)]


def ask_model(model, tokenizer):
    return ask(windowed_lm()(pretrained=model, tokenizer=tokenizer))


def test_fresh_model_is_that_of_from_pretrained(wired, tokenizer) -> None:
    path, reset = str(wired / "connectome"), "fresh_magnitude"
    lm = connectome_lm()(connectome=path, seed=5, reset=reset, device="cpu")
    same, other = (
        ConnectomeModel.from_pretrained(path, seed=seed, reset=reset).get_base_model()
        for seed in (5, 6)
    )
    assert ask(lm) == ask_model(same, tokenizer)
    assert ask(lm) != ask_model(other, tokenizer)


def test_checkpoint_frozen_skill_and_memory_give_identical_numbers(wired, tokenizer) -> None:
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(wired / "checkpoint")
    expected = ask_model(model, tokenizer)
    assert ask(connectome_lm()(checkpoint=str(wired / "checkpoint"), device="cpu")) == expected
    skill = connectome_lm()(
        connectome=str(wired / "connectome"), pretrained=str(wired / "dense"), device="cpu"
    )
    assert ask(skill) == expected
    dense = AutoModelForCausalLM.from_pretrained(wired / "dense")
    switched = ConnectomeModel.from_pretrained(dense, wired / "connectome")
    assert ask_model(switched, tokenizer) == expected
    assert ask(HFLM(pretrained=str(wired / "checkpoint"), device="cpu")) == expected
    assert ask(HFLM(pretrained=str(wired / "dense"), device="cpu")) != expected


def test_weights_that_do_not_obey_the_connectome_are_refused(wired) -> None:
    with pytest.raises(HostMismatchError, match="dead are not 0 in the checkpoint"):
        connectome_lm()(
            connectome=str(wired / "connectome"), checkpoint=str(wired / "dense"), device="cpu"
        )


def test_base_of_other_size_is_refused(wired, tokenizer, tmp_path) -> None:
    gpt2(tokenizer, n_embd=16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(HostMismatchError, match=r"is \(16, 48\) in the host, \(32, 96\)"):
        connectome_lm()(
            connectome=str(wired / "connectome"), pretrained=str(tmp_path), device="cpu"
        )


def test_other_tokenizer_is_refused(wired, model, tokenizer, tmp_path) -> None:
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")),
        eos_token="b",
    )
    other.save_pretrained(tmp_path)
    with pytest.raises(HostMismatchError, match="the tokenizer's digest"):
        connectome_lm()(connectome=str(wired / "connectome"), tokenizer=str(tmp_path), device="cpu")
    larger = gpt2(tokenizer, vocab_size=17)
    with pytest.raises(HostMismatchError, match="has 290 tokens, the embedding of the model 17"):
        evaluate_lm(larger, tokenizer, "hellaswag")


def test_connectome_without_tokenizer_asks_for_one(wired, tokenizer, tmp_path) -> None:
    drawn(gpt2(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no tokenizer in .*tokenizer=PATH_OR_REPO"):
        Source(connectome=str(tmp_path)).tokenizer()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither connectome= nor checkpoint="),
        ({"connectome": "a", "pretrained": "b", "checkpoint": "c"}, "'b' and checkpoint='c'"),
    ],
)
def test_arguments_that_name_no_model_are_refused(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Source(**given)


def test_tokenizer_is_found_by_the_arguments_of_any_model(wired) -> None:
    checkpoint, connectome = str(wired / "checkpoint"), str(wired / "connectome")
    for given in (
        {"pretrained": checkpoint},
        {"checkpoint": checkpoint},
        {"connectome": connectome},
        {"tokenizer": connectome, "pretrained": "nowhere"},
    ):
        assert len(tokenizer_of(given)) == 290
    with pytest.raises(ConfigError, match="name no tokenizer"):
        tokenizer_of({})


# The command line


def test_usage_is_printed_when_nothing_is_asked(capsys) -> None:
    main([])
    assert "--model connectome" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ml"], "unknown evaluation 'ml'. Available: lm."),
        (["lm", "--model", "connectome", "--tasks", "hellaswag"], "neither connectome= nor"),
        (
            ["lm", "--model", "connectome", "--model_args", "connectome=/nowhere", "--tasks", "x"],
            "/nowhere",
        ),
        (["lm", "--model", "hf", "--tasks", "hellaswag", "--data_dir", "/nowhere"], "is no folder"),
        (["lm", "--model", "hf", "--data_dir", "/nowhere"], "without --tasks"),
    ],
)
def test_command_says_what_is_wrong_and_exits_with_2(capsys, argv, message) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_command_gives_the_numbers_of_the_memory_path(wired, tokenizer, rows, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(wired / "checkpoint")
    tasks = ["hellaswag", "mmlu_cloze_anatomy"]
    report = evaluate_lm(model, tokenizer, tasks, data_dir=rows)
    for name in ("hf", "connectome"):
        key = {"hf": "pretrained", "connectome": "checkpoint"}[name]
        out = tmp_path / f"{name}.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "hf_connectome.evaluation", "lm", "run", "--model", name),
                *("--model_args", f"{key}={wired / 'checkpoint'}", "--tasks", ",".join(tasks)),
                *("--data_dir", str(rows), "--device", "cpu", "--output_path", str(out)),
            ],
            check=True,
            capture_output=True,
        )
        (written,) = tmp_path.glob(f"{name}*.json")
        results = json.loads(written.read_text())["results"]
        for task in tasks:
            for metric, value in values(report, task).items():
                assert results[task][f"{metric},none"] == value


@pytest.mark.slow
def test_group_is_the_mean_over_the_rows_of_all_subjects(model, tokenizer, index, tmp_path) -> None:
    draw, subjects = random.Random(4), expand("mmlu_cloze", index)[0]
    for i, task in enumerate(subjects):
        rows = [
            {
                "question": sentence(draw, 3),
                "choices": [sentence(draw, 2), sentence(draw, 3)],
                "answer": draw.randrange(2),
            }
            for _ in range(1 + i % 3)
        ]
        write(tmp_path / "mmlu" / task.removeprefix("mmlu_cloze_") / "test.jsonl", rows)
    report = evaluate_lm(model, tokenizer, "mmlu_cloze", data_dir=tmp_path)["tasks"]
    group = report.pop("mmlu_cloze")
    assert len(report) == 57
    total = sum(task["num_rows"] for task in report.values())
    right = sum(t["metrics"]["acc_norm"]["value"] * t["num_rows"] for t in report.values())
    assert (group["num_rows"], group["num_samples"]) == (total, total)
    assert group["metrics"]["acc_norm"]["value"] == pytest.approx(right / total)
    assert (group["dataset"], group["config"]) == ("cais/mmlu", None)


# The real rows, where they are


REAL = Path(
    os.environ.get("HF_CONNECTOME_DATA", Path(__file__).parent.parent.parent / "shared" / "data")
)


@pytest.mark.skipif(not (REAL / "evals").is_dir(), reason="the data sets are not here")
@pytest.mark.filterwarnings(SHORT_CONTEXT, "ignore:arc_easy is evaluated on 'validation'")
def test_real_rows_are_read(model, tokenizer) -> None:
    tasks = ["hellaswag_per_token", "arc_easy", "lambada_openai", "mmlu_cloze_anatomy"]
    report = evaluate_lm(model, tokenizer, tasks, data_dir=REAL / "evals", limit=2)
    assert {name: task["num_samples"] for name, task in report["tasks"].items()} == dict.fromkeys(
        sorted(tasks), 2
    )

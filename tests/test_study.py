"""The study of the outer loop: shares of the work, the table, a small run that is gone on with."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from test_recipes import RECIPES

from hf_connectome.errors import ConfigError, UnknownNameError

VARIANT = "criterion=wanda+selection=per-row+reset=tensor_scale"


@pytest.fixture(scope="module")
def study():
    file = RECIPES / "studies" / "evolution.py"
    spec = importlib.util.spec_from_file_location("study_evolution", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_evolution"] = module  # its dataclasses are looked up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study_evolution"]


def run(study, variant, seed, loss, boundary=0.5):
    return study.Run(variant, seed, 100, "d", loss, 7.0, 0.25, boundary, 60.0)


def test_shares_are_all_runs_once_and_whole_pairs_come_first(study):
    whole = study.StudyArguments(variants=["magnitude", "snip", "wanda"], seeds=2)
    assert whole.runs()[:3] == [("magnitude", 0), ("snip", 0), ("wanda", 0)]
    shared = [
        run
        for share in range(4)
        for run in study.StudyArguments(whole.variants, seeds=2, shard=f"{share}/4").runs()
    ]
    assert sorted(shared) == sorted(whole.runs())


@pytest.mark.parametrize("shard", ["2/2", "1", "-1/2", "a/b", "0/0", "1/2/3"])
def test_share_that_there_is_not_is_refused(study, shard):
    with pytest.raises(ConfigError, match=f"shard is '{shard}'; expected 'i/n' with i < n"):
        study.StudyArguments(shard=shard)
    with pytest.raises(UnknownNameError, match="Did you mean 'wanda'"):
        study.StudyArguments(variants=["wannda"])


def test_variants_are_paired_by_seed_with_the_reference(study):
    runs = [run(study, "magnitude", seed, 4.0 + seed) for seed in (0, 1)]
    runs += [run(study, "snip", seed, 4.5 + seed, boundary=2.0) for seed in (1, 0, 2)]
    runs += [run(study, "random", 3, 9.0)]  # no seed in common
    rows = study.summarise(runs, "magnitude")
    assert [row.variant for row in rows] == ["magnitude", "snip", "random"]
    assert rows[1].difference.num_pairs == 2
    assert study.markdown_table(rows, "magnitude").splitlines()[2:] == [
        "| magnitude | 4.500 | - | - | 2 | 2.0 |",
        "| snip | 5.500 | +0.500 (+0.500 to +0.500) | 0.500 | 3 | 8.0 |",
        "| random | 9.000 | - | - | 1 | 2.0 |",
    ]


@pytest.mark.parametrize(
    ("variant", "error", "message"),
    [
        ("reset=tensor_scle", UnknownNameError, "Did you mean 'tensor_scale'"),
        ("learning_rate=1", ConfigError, "'learning_rate' cannot vary. Use criterion"),
    ],
)
def test_variant_of_settings_that_there_are_not_is_refused(study, variant, error, message):
    with pytest.raises(error, match=message):
        study.StudyArguments(variants=[variant])


def test_study_does_only_what_is_missing(study, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(f"{number} red stones fell into a small river. " * 40)
    options = [
        *("--dataset", str(texts), "--eval_fraction", "0.2", "--tokenizer", "bpe:300"),
        *("--block_size", "16", "--part", "0:0.6", "--child_part", "0.6:1", "--seeds", "1"),
        *("--model_overrides", "n_layer=1,n_embd=16,n_head=2,n_positions=16"),
        *("--generations", "1", "--steps_per_generation", "2", "--child_steps", "2"),
        *("--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out")),
    ]
    study.main([*options, "--variants", "magnitude"])
    assert "1 of 1  magnitude seed 0" in capsys.readouterr().out
    study.main(
        [
            *options,
            "--variants",
            "magnitude",
            VARIANT,
        ]
    )
    said = capsys.readouterr().out
    assert "2 of 2  criterion=wanda" in said
    assert "1 of 2" not in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    by_variant = {run["variant"]: run for run in results["runs"]}
    first, second = by_variant["magnitude"], by_variant[VARIANT]
    assert first["num_survivors"] == second["num_survivors"]
    assert first["digest"] != second["digest"]
    assert (tmp_path / "out" / "table.md").read_text() in said
    assert (tmp_path / "out" / "differences.png").read_bytes()[:4] == b"\x89PNG"

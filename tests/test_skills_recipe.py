"""The worked example of skills: its texts, a tiny run, and the same command again."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from test_recipes import RECIPES

from hf_connectome.analysis.interval_panels import interval_panels
from hf_connectome.connectome import Connectome
from hf_connectome.data.source_parts import pieces_of, read_parts
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import Estimate


@pytest.fixture(scope="module")
def main():
    """The recipe's; its dataclasses look their module up by name."""
    spec = importlib.util.spec_from_file_location("recipe_skills", RECIPES / "skills.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.main
    del sys.modules[spec.name]


SOURCE = '''
"""Module says."""
import os  # why os


def f(x):
    """Only says."""


class A:
    """Class says."""

    y = "# no comment"  # why y
'''


def test_source_comes_apart_into_code_and_prose():
    code, prose = (dict(pieces_of(SOURCE))[part] for part in ("code", "prose"))
    assert code == "import os\n\ndef f(x):\n    pass\n\nclass A:\n    y = '# no comment'"
    assert prose.splitlines() == ["Module says.", "Only says.", "Class says.", "why os", "why y"]


@pytest.mark.parametrize("broken", ["def f(:", "x = '''", "a\n  b\n c"])
def test_source_that_does_not_parse_has_no_parts(broken):
    assert list(pieces_of(broken)) == []


def test_parts_are_of_the_size_asked_for_and_share_no_file():
    parts = read_parts(20_000)
    assert list(parts) == ["code", "prose", "tables"]
    for texts in parts.values():
        sizes = [len(text.encode()) for text in texts]
        assert sum(sizes) >= 20_000 > sum(sizes[:-1])
    assert read_parts(20_000) == parts
    assert not set(parts["code"]) & set(parts["tables"])


def options(folder, *more):
    return [
        "--output_dir", str(folder), "--steps", "2", "--task_steps", "3", "--lots", "1",
        "--blocks", "4", "--max_bytes", "250000", "--block_size", "16", "--vocab_size", "300",
        "--model_overrides", "n_layer=1,n_embd=8,n_head=2,n_positions=16", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(main, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skills")
    main(options(folder))
    return folder


@pytest.mark.slow
def test_recipe_leaves_skills_tables_and_figure(run):
    (result,) = json.loads((run / "results.json").read_text())
    assert set(result["skills"]) == {"fisher", "activation"}
    for method, report in result["skills"].items():
        assert len(report["effects"]) == 3 * 3 * 3
        for part, removed in report["num_removed"].items():
            skill = Connectome.from_pretrained(run / "seed-0" / f"{method}-{part}")
            assert skill.num_survivors == removed
            assert skill.lineage[-1]["method"] == method
    assert (run / "skills.png").read_bytes()[:4] == b"\x89PNG"
    table = (run / "table.md").read_text()
    assert "batches of one seed: a hint, no claim" in table
    assert table.count("| **code** |") == 2


@pytest.mark.slow
def test_links_of_its_own_forget_nothing(run):
    (result,) = json.loads((run / "results.json").read_text())
    own = result["tasks"]["links of its own"]
    assert all(after == end for after, end in own.values())
    births = {row["births"] for row in result["links"]}
    assert len(births) == 1
    free = [row["free"] for row in result["links"]]
    assert free[0] - free[1] == free[1] - free[2] == births.pop()


@pytest.mark.slow
def test_same_command_again_computes_only_what_is_missing(main, run, capsys):
    before = (run / "results.json").read_text()
    kept = (run / "seed-0.json").stat().st_mtime_ns
    main(options(run))
    assert (run / "seed-0.json").stat().st_mtime_ns == kept
    assert (run / "results.json").read_text() == before
    assert "learning" not in capsys.readouterr().out


@pytest.mark.slow
def test_recipe_refuses_the_folder_of_other_settings_and_empty_runs(main, run, capsys):
    for more, said in (
        (["--density", "0.1"], "belongs to a run of another configuration: density"),
        (["--seeds", "0"], "seeds is 0; expected at least 1"),
        (["--blocks", "1"], "blocks is 1; expected at least 2"),
    ):
        with pytest.raises(SystemExit):
            main(options(run, *more))
        assert said in capsys.readouterr().err


def test_too_little_held_out_text_is_refused_before_training(main, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*options(tmp_path), "--max_bytes", "40000", "--block_size", "64"])
    said = capsys.readouterr().err
    assert "held-out" in said
    assert "Raise --max_bytes or lower --block_size" in said


@pytest.mark.parametrize("panels", [{}, {"a": {}}])
def test_figure_of_nothing_is_refused(tmp_path, panels):
    with pytest.raises(ConfigError, match="expected rows in each"):
        interval_panels(panels, tmp_path / "x.png", label="loss")
    assert not (tmp_path / "x.png").exists()


def test_figure_has_a_dot_without_interval_where_there_is_none(tmp_path):
    row = {"here": Estimate(1.0, None, None, 1), "there": Estimate(2.0, 1.5, 2.5, 4)}
    interval_panels({"one": {"a": row}}, tmp_path / "x.png", label="loss")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"

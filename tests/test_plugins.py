"""Plug-ins of others: a module is imported by name or path, and what it registers can be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_recipes import RECIPES, evolve_options, recipe

from hf_connectome import Connectome
from hf_connectome.criteria import criteria
from hf_connectome.errors import ConfigError
from hf_connectome.plugins import import_plugin

PLUG_IN = """
from hf_connectome.criteria import Criterion, register


@register("my_largest")
class MyLargest(Criterion):
    paper, citation = "Ours", "none"
    needs = ("feature_norm",)

    def score(self, weight, mask, context):
        return weight.abs() + context.statistic("feature_norm")
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    file = tmp_path / "my_criteria.py"
    file.write_text(PLUG_IN)
    monkeypatch.setattr(criteria, "_classes", dict(criteria._classes))
    monkeypatch.delitem(sys.modules, "my_criteria", raising=False)
    yield file
    sys.modules.pop("my_criteria", None)


def test_file_is_imported_once(plug_in):
    module = import_plugin(str(plug_in))
    assert criteria.get("my_largest") is module.MyLargest
    assert import_plugin(str(plug_in)) is module


def test_module_is_imported_by_its_dotted_name(plug_in, monkeypatch):
    monkeypatch.syspath_prepend(plug_in.parent)
    import_plugin("my_criteria")
    assert "my_largest" in criteria


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no_such_module", None, "'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("missing.py", None, "'.*missing.py' cannot be imported: FileNotFoundError"),
        ("broken.py", "1 / 0", r"cannot be imported: ZeroDivisionError: .*path of a \.py file"),
        ("json.py", "", "there is a module 'json' already; rename the file"),
    ],
)
def test_plug_in_that_cannot_be_imported_is_refused(tmp_path, name, text, message):
    if name.endswith(".py"):
        name = str(tmp_path / name)
    if text is not None:
        Path(name).write_text(text)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        import_plugin(name)
    assert set(sys.modules) - before == set()


def run(*command, cwd):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(RECIPES.parent), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
    )


def test_recipe_evolves_with_a_criterion_of_somebody_else(plug_in, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"{number} small red stones fell into a river. " * 40)
    options = ["--criterion", "my_largest", "--selection", "per-row", "--import", "my_criteria.py"]
    options = evolve_options(texts, tmp_path / "out", *options)
    done = run(RECIPES / "evolve.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = Connectome.from_pretrained(tmp_path / "out" / "generation-2")
    assert [row["criterion"] for row in found.lineage] == ["my_largest"] * 2


@pytest.mark.parametrize("name", ["evolve", "inherit"])
def test_recipe_says_which_plug_in_is_missing(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        recipe(name).main(["--import", "nowhere.py", "--no_such_option"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "the plug-in 'nowhere.py' cannot be imported: FileNotFoundError" in message


def test_recipe_refuses_an_import_of_nothing(capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe("evolve").main(["--import"])
    assert stopped.value.code == 2
    assert "argument --import: expected one argument" in capsys.readouterr().err


def test_command_line_imports_first_and_says_what_is_missing(tmp_path):
    (tmp_path / "my_mark.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    program = ("-m", "hf_connectome.cli")
    assert run(*program, "--import", "my_mark.py", "--version", cwd=tmp_path).returncode == 0
    assert (tmp_path / "imported").exists()
    refused = run(*program, "--import", "nowhere.py", "show", "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the plug-in 'nowhere.py' cannot be imported: FileNotFoundError" in refused.stderr

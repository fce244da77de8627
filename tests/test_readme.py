"""The README's Python runs as it stands, after the tiny run that its first command would make."""

import re
import shutil
from pathlib import Path

import pytest

from hf_connectome.publishing import publish

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
REPO = "org/my-connectome"
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    from test_recipes import evolve_options, recipe

    folder = tmp_path_factory.mktemp("readme")
    # --dataset python-stdlib is the snippets' default corpus; a small part of it is enough.
    recipe("evolve").main(
        evolve_options(
            "python-stdlib", folder / "runs" / "cpu", "--max_train_tokens", "20000",
            "--max_eval_tokens", "2000", "--block_size", "128", "--generations", "6",
            "--steps_per_generation", "2", "--model_overrides",
            "n_layer=1,n_embd=16,n_head=2,n_positions=128",
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def pushed(workplace, client):
    """Have on a Hub what the README's snippets pull from it."""
    client.log_in("hf_alice")
    publish(workplace / "runs" / "cpu" / "generation-3", REPO)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(workplace, monkeypatch, request, number):
    monkeypatch.chdir(workplace)
    shutil.rmtree(workplace / "runs" / "child", ignore_errors=True)
    if REPO in SNIPPETS[number]:
        request.getfixturevalue("pushed")
    code = SNIPPETS[number].replace("max_steps=200", "max_steps=2")
    exec(compile(code, f"README snippet {number}", "exec"), {})


def test_readme_names_the_commands():
    assert "make evolve" in README
    assert "make test" in README

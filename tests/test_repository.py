"""Facts that stand in two places agree, and what the documents show works."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import hf_connectome
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.criteria import criteria
from hf_connectome.reset import resets
from hf_connectome.storage import to_bytes
from hf_connectome.testing import check_criterion
from hf_connectome.wirings import wirings

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text_of(name), flags=re.MULTILINE | re.DOTALL)


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w-]+)==(\S+)$", text_of(name), flags=re.MULTILINE)
    return {package.lower().replace("_", "-"): version for package, version in found}


# ---- versions ------------------------------------------------------------------------------------


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == hf_connectome.__version__
    newest = re.search(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == hf_connectome.__version__


def test_tested_floors_are_the_declared_ones() -> None:
    declared = {
        package.lower().replace("_", "-"): version
        for package, version in re.findall(r'"([\w-]+)>=([\w.]+)"', text_of("pyproject.toml"))
    }
    tested = pins("constraints/floor.txt")
    libraries = set(tested) - {"torch", "pytest", "pytest-xdist", "hypothesis"}
    assert len(libraries) >= 10
    for package in sorted(libraries):
        assert (tested[package] + ".").startswith(declared[package] + "."), package


def test_hooks_and_ci_use_the_same_tools() -> None:
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    wanted = {d for hook in hooks for d in hook["additional_dependencies"] if "==" in d}
    assert wanted
    ours = pins("constraints/dev.txt")
    for package, version in (pair.split("==") for pair in sorted(wanted) if ";" not in pair):
        assert ours[package] == version


def test_the_worm_is_installed_as_its_error_says() -> None:
    source = text_of("hf_connectome/graphs/celegans.py")
    (version,) = re.findall(r"^CECT := (cect==\S+)$", text_of("Makefile"), flags=re.MULTILINE)
    assert f"pip install --no-deps {version} " in source
    assert f"`pip install --no-deps {version}`" in text_of("docs/paper_index.md")


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_a_document_names_exist(name: str) -> None:
    text = text_of(name)
    linked = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    named = set(re.findall(r"\b(?:docs|recipes|benchmarks|constraints)/[\w./-]*\w\.\w+", text))
    local = {target for target in linked | named if target and "://" not in target}
    assert [target for target in sorted(local) if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_recipe_config_is_a_mapping_of_settings(file: Path) -> None:
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(settings, dict)
    assert all(isinstance(key, str) for key in settings)


def test_no_file_names_somebodys_home() -> None:
    homes = re.compile(r"(?:/home/|/Users/|/root\b|[A-Z]:\\Users)")
    folders = ("hf_connectome", "recipes", "docs", "benchmarks", "model_cards")
    found = [
        str(file.relative_to(ROOT))
        for folder in folders
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in {".py", ".md", ".yaml", ".json", ".txt", ".html", ".jinja"}
        and homes.search(file.read_text(encoding="utf-8"))
    ]
    assert found == []


# ---- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("Criterion", criteria), ("Wiring", wirings), ("Reset", resets)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_plug_in_has_its_place_in_the_paper_index(kind: str, registry: Any) -> None:
    index = text_of("docs/paper_index.md")
    for name in registry:
        heading = f"## {kind} `{name}`"
        assert heading in index, f"docs/paper_index.md lacks '{heading}'"
        rows = [row for row in index.splitlines() if row.startswith("|") and f"[`{name}`]" in row]
        row = next(row for row in rows if f"| {kind.lower()} |" in row)
        citation = registry.get(name).citation
        assert ("ours" if citation == "none" else citation) in row


def test_every_test_that_the_fidelity_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", text_of("docs/FIDELITY.md")))
    written = set(re.findall(r"^def (test_\w+)", text_of("tests/test_fidelity.py"), re.MULTILINE))
    assert named == written


def test_the_reader_in_the_format_page_reads_what_we_write(tmp_path: Path) -> None:
    source, _ = python_blocks("docs/FORMAT.md")
    scope: dict[str, Any] = {}
    exec(source, scope)  # the document is ours
    draw = torch.Generator().manual_seed(0)
    entries, base = {}, {}
    for number, shape in enumerate([(3, 10), (7, 4, 5), (5, 8), (1, 1), (2, 3)]):
        weight = torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.3)
        scale = torch.rand(shape[0], generator=draw) if number == 1 else None
        sign = None if number == 2 else weight
        entries[f"p{number}.weight"] = SignedMask.pack(weight != 0, sign, scale=scale)
        base[f"p{number}.weight"] = (shape, "raw")
    values = {"norm.weight": torch.randn(4, generator=draw), "norm.bias": torch.tensor(2.0)}
    connectome = Connectome(entries, values=values, config=ConnectomeConfig())
    file = tmp_path / "connectome.safetensors"
    file.write_bytes(to_bytes(connectome))
    wiring = scope["read"](file, base)
    assert wiring.keys() == set(connectome)
    for name, entry in connectome.items():
        expected = entry.mask().to(torch.int8) if entry.sign_bits is None else entry.sign()
        assert np.array_equal(wiring[name], expected.numpy())
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(AssertionError):
        scope["read"](file, base)


def test_the_worked_example_of_the_format_page_is_what_we_write() -> None:
    page = text_of("docs/FORMAT.md")
    drawing = re.findall(r"^    row \d: (.+)$", page, flags=re.MULTILINE)
    value = {".": 0.0, "+": 1.0, "-": -1.0}
    weight = torch.tensor([[value[mark] for mark in row.split()] for row in drawing])
    entry = SignedMask.pack(weight != 0, weight, orientation="out_in")
    connectome = Connectome({"w": entry}, config=ConnectomeConfig())
    file = to_bytes(connectome)
    for row in entry.mask_bits:
        assert f"`{bytes(row).hex(' ')}`" in page
    assert entry.sign_bits is not None
    assert f"`{bytes(entry.sign_bits).hex(' ')}`" in page
    assert connectome.digest in page
    assert f"`{file[:8].hex(' ')}` ({int.from_bytes(file[:8], 'little')})" in page
    assert f"{len(file)} bytes" in page
    start = page.index('    {"__metadata__"')
    header = re.sub(r"\n    ", "", page[start + 4 : page.index("\n\n", start)])
    assert file[8:].decode("latin-1").startswith(header)
    scaled = SignedMask.pack(weight != 0, weight, scale=torch.tensor([0.5]), orientation="out_in")
    assert Connectome({"w": scaled}).digest in page


def test_the_example_in_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, its_test = python_blocks("CONTRIBUTING.md")
    (tmp_path / "row_relative.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(criteria, "_classes", dict(criteria._classes))
    name = "hf_connectome.criteria.row_relative"
    monkeypatch.setitem(sys.modules, name, importlib.import_module("row_relative"))
    scope: dict[str, Any] = {}
    exec(its_test, scope)
    scope["test_scores_are_relative_to_the_mean_of_the_row"]()
    check_criterion(criteria.get("row_relative")())

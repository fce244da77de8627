"""A module imports only from modules above it; files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_connectome"
MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_A_FUNCTION = 60

# A folder counts as one module. Not all of them need to exist.
ORDER = (
    "errors",
    "json_files",
    "registry",
    "seeding",
    "bits",
    "signed_mask",
    "connectome",
    "operations",
    "overlap",
    "scope",
    "brackets",
    "histograms",
    "selection",
    "schedule",
    "budgets",
    "structures",
    "graphs",
    "reset",
    "criteria",
    "wirings",
    "controls",
    "config",
    "architecture",
    "hosts",
    "context",
    "shards",
    "codecs",
    "arrays",
    "storage",
    "hub_errors",
    "hub",
    "runs",
    "lineages",
    "early",
    "enforcement",
    "calibration",
    "rewiring",
    "pruning",
    "evolution",
    "bound",
    "refusals",
    "skills",
    "adapter",
    "modeling",
    "skill_finding",
    "optimizers",
    "export",
    "plugins",
    "coercion",
    "parsing",
    "fresh",
    "trained",
    "sources",
    "data",
    "arms",
    "evaluation",
    "skill_tests",
    "analysis",
    "provenance",
    "cards",
    "publishing",
    "publisher",
    "callbacks",
    "rewiring_callbacks",
    "continual",
    "checkpoints",
    "arguments",
    "sharing",
    "trainer",
    "outer_loops",
    "inheritance",
    "models",
    "conversion",
    "cli",
    "testing",
)

# Methods that only lead to the module below that does the work.
FACADE = {
    ("connectome", below)
    for below in ("hosts", "hub", "lineages", "operations", "overlap", "publishing", "storage")
}


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_files() -> list[Path]:
    return sorted(f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")


def imported_by(file: Path) -> Iterator[tuple[str, bool, int]]:
    """Give (module of the package, whether in a function, line); not what is for types only."""
    yield from _imports(ast.parse(file.read_text(encoding="utf-8")).body, in_function=False)


def _imports(nodes: Iterable[ast.AST], *, in_function: bool) -> Iterator[tuple[str, bool, int]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in _modules_named(node):
                yield name, in_function, node.lineno
        elif _is_type_checking(node):
            assert isinstance(node, ast.If)
            yield from _imports(node.orelse, in_function=in_function)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(ast.iter_child_nodes(node), in_function=inside)


def _modules_named(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno} has a relative import"
        module = node.module or ""
        names = [f"{module}.{n}" for n in names] if module == PACKAGE.name else [module]
    inside = {n.split(".")[1] for n in names if n.startswith(f"{PACKAGE.name}.")}
    return {name for name in inside if not name.startswith("__")}  # __version__ is no module


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted({module_of(file) for file in module_files()} - set(ORDER)) == []
    assert len(ORDER) == len(set(ORDER))


def test_modules_import_only_from_modules_above_them() -> None:
    wrong, used = [], set()
    for file in module_files():
        here = module_of(file)
        for there, in_function, line in imported_by(file):
            if there == here or ORDER.index(there) < ORDER.index(here):
                continue
            if in_function and (here, there) in FACADE:
                used.add((here, there))
                continue
            wrong.append(f"{file.relative_to(ROOT)}:{line} imports {there}, which is below it")
    assert wrong == []
    assert used == FACADE, f"not needed any more: {sorted(FACADE - used)}"


def test_the_package_imports_none_of_its_modules_until_asked() -> None:
    assert list(imported_by(PACKAGE / "__init__.py")) == []


def test_the_check_sees_an_import_that_is_hidden(tmp_path: Path) -> None:
    file = tmp_path / "hidden.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from hf_connectome.cli import main\n"
        "try:\n"
        "    from hf_connectome import storage\n"
        "except ImportError:\n"
        "    pass\n"
        "class A:\n"
        "    def b(self):\n"
        "        import hf_connectome.hosts as h\n"
    )
    assert list(imported_by(file)) == [("storage", False, 5), ("hosts", True, 10)]


CODE = sorted(
    file
    for folder in ("hf_connectome", "recipes", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("file", CODE, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    num_lines = text.count("\n")
    assert num_lines <= MOST_LINES_IN_A_FILE
    too_long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MOST_LINES_IN_A_FUNCTION
    ]
    assert too_long == []

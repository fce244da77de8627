"""The study of rewiring, with few steps of the small task: stages, resume, what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

STUDIES = Path(__file__).parent.parent / "recipes" / "studies"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(STUDIES))
    import rewiring

    def run(stage, *options):
        settings = ["--steps", "20", "--width", "40", "--tuning_seeds", "1"]
        rewiring.main([stage, "mlp", "--output", str(tmp_path), *settings, *options])

    yield run
    del sys.modules["rewiring"], sys.modules["rewiring_tasks"]


@pytest.mark.slow
def test_methods_are_compared_at_rates_tuned_alike(study, tmp_path, capsys):
    study("tune")
    assert len(list((tmp_path / "runs").iterdir())) == 15
    methods = ["--methods", "dense", "random", "set", "chtss", "--seeds", "2"]
    study("compare", *methods, "--shard", "1/2")
    study("compare", *methods, "--shard", "2/2")
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").iterdir()}
    assert len(written) == 15 + 8
    capsys.readouterr()
    study("compare", *methods)
    assert written == {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").iterdir()}
    assert "| chtss | 0.01 |" in capsys.readouterr().out
    rows = {r["method"]: r for r in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert list(rows) == ["dense", "random", "set", "chtss"]
    assert rows["set"]["minus_random"]["num_pairs"] == 2
    assert rows["set"]["links"] == rows["random"]["links"] == rows["chtss"]["links"]
    assert 0.0 <= rows["set"]["neurons"] < 1.0
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert (tmp_path / "table.md").read_text().count("\n") == 6


def test_nothing_is_compared_before_it_is_tuned(study, capsys):
    with pytest.raises(SystemExit):
        study("compare")
    assert "Finish 'tune' first" in capsys.readouterr().err

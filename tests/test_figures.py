from __future__ import annotations

import itertools
import math
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_connectome.analysis.figures import evolution_curves, inheritance_curves
from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1400, 600)


def evolution_rows(num_generations: int, steps: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "step": generation * steps + step,
            "generation": generation,
            "loss": 3 + generation / 10 + 6 * math.exp(-step / 8),
            "density": 0.8**generation,
        }
        | ({"eval_loss": 3.1 + generation / 10} if step % 20 == 19 else {})
        for generation in range(num_generations)
        for step in range(steps)
    ]


def arm(num_seeds: int, final: float, speed: float = 20.0) -> list[list[tuple[int, float]]]:
    return [
        [(s, final + seed / 100 + 6 * math.exp(-s / speed)) for s in range(0, 101, 10)]
        for seed in range(num_seeds)
    ]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, to ask what stands on them."""
    figures: list[Figure] = []
    save = Figure.savefig

    def record(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("num_generations", [1, 2, 7, 16])
def test_evolution_writes_a_png_of_the_expected_size(tmp_path: Path, num_generations: int) -> None:
    path = tmp_path / "new" / "evolution.png"
    evolution_curves(evolution_rows(num_generations), path)
    assert png_size(path) == SIZE


def test_evolution_names_its_generations_and_units(tmp_path: Path, drawn: list[Figure]) -> None:
    evolution_curves(evolution_rows(3), tmp_path / "a.png")
    shown = texts(drawn[0])
    assert {"gen 0\n100 %", "gen 1\n80 %", "gen 2\n64 %"} <= set(shown)
    assert "loss (nats per token)" in shown
    assert "held-out loss (nats per token)" in shown
    assert shown.count("held-out loss") == 1


@pytest.mark.parametrize("num_generations", [7, 16, 40])
def test_evolution_labels_do_not_overlap(
    tmp_path: Path, drawn: list[Figure], num_generations: int
) -> None:
    evolution_curves(evolution_rows(num_generations), tmp_path / "a.png")
    labels = [text for text in drawn[0].findobj(Text) if text.get_text().startswith("gen ")]
    assert len(labels) >= min(num_generations, 7)
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.y1 <= SIZE[1] for box in boxes)


def test_evolution_says_what_it_cuts_off(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [{"step": s, "generation": 0, "loss": 3.0 + s % 2 / 10} for s in range(100)]
    rows[0]["loss"] = 10.8
    evolution_curves(rows, tmp_path / "a.png")
    assert "step   (loss above 3.1 is not shown; highest 10.8)" in texts(drawn[0])
    assert drawn[0].axes[0].get_ylim()[1] < 4


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "generation": 0}],
        [{"step": 0, "generation": 0, "loss": 9.0}],
        [{"step": 5, "generation": 0, "eval_loss": 9.0, "density": 1.0}],
        [{"step": 0, "generation": 0, "loss": math.nan, "eval_loss": None, "density": None}],
        [{"step": s, "generation": 0, "loss": 9.0 - s, "density": 1.0} for s in range(3)],
        [{"step": s, "generation": 0, "loss": 9.0 if s == 7 else 3.0} for s in range(50)],
        [{"step": 9, "generation": 1, "loss": 3.0}, {"step": 0, "generation": 0, "loss": 4.0}],
    ],
)
def test_evolution_draws_what_there_is(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    evolution_curves(rows, tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == SIZE


def test_evolution_refuses_what_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metric records"):
        evolution_curves([], tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"row 0 lacks 'step' or 'generation'; it has \['loss'\]"):
        evolution_curves([{"loss": 1.0}], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_seeds", [1, 2, 8])
def test_inheritance_writes_a_png_of_the_expected_size(tmp_path: Path, num_seeds: int) -> None:
    arms = {"connectome": arm(num_seeds, 4.0), "dense": arm(num_seeds, 4.5, 30)}
    inheritance_curves(arms, tmp_path / "a.png", title="tiny")
    assert png_size(tmp_path / "a.png") == SIZE


def test_inheritance_marks_where_an_arm_reaches_the_dense_one(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    dense = [[(0, 8.0), (100, 4.0)]]
    arms = {
        "connectome": [[(0, 6.0), (100, 2.0)]],
        "random": [[(0, 8.0), (100, 5.0)]],
        "scaled": [[(0, 3.0), (100, 2.0)]],
        "dense": dense,
    }
    inheritance_curves(arms, tmp_path / "a.png")
    shown = texts(drawn[0])
    assert [text for text in shown if "of the steps" in text] == [
        "connectome: 50 % of the steps",
        "scaled: 0 % of the steps",
    ]
    assert "95 % interval of the mean" not in shown


def test_inheritance_shows_an_interval_when_there_are_three_seeds(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    inheritance_curves({"dense": arm(3, 4.0), "other": arm(2, 4.0)}, tmp_path / "a.png")
    assert "95 % interval of the mean" in texts(drawn[0])


def test_inheritance_keeps_the_colour_of_an_arm(tmp_path: Path, drawn: list[Figure]) -> None:
    many = {name: arm(1, 4.0) for name in ("x", "y", "dense", "random", "connectome")}
    inheritance_curves(many, tmp_path / "a.png")
    inheritance_curves({"random": arm(1, 4.0)}, tmp_path / "b.png")
    first, second = (
        {line.get_label(): line.get_color() for line in figure.axes[0].lines} for figure in drawn
    )
    assert first["random"] == second["random"] == "#D55E00"
    assert (first["connectome"], first["dense"]) == ("#0072B2", "#000000")
    assert len({first[name] for name in many}) == 5


def test_inheritance_draws_ten_arms_and_seeds_that_are_missing(tmp_path: Path) -> None:
    arms = {f"arm_number_{k}": arm(2 + k % 2, 4.0 + k / 10) for k in range(9)}
    inheritance_curves(arms | {"dense": arm(3, 5.0)}, tmp_path / "a.png")
    assert png_size(tmp_path / "a.png") == SIZE


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "no arms to draw"),
        ({"dense": []}, "no curve, or an empty one, for 'dense'"),
        ({"dense": [[]]}, "no curve, or an empty one, for 'dense'"),
        ({"dense": [[(0, 1.0)], [(1, 1.0)]]}, "curve 1 has 1 steps that differ"),
        ({"dense": [[(0, 1.0)]], "random": [[(0, math.nan)]]}, "is nan; expected a finite number"),
    ],
)
def test_inheritance_refuses_what_is_no_curve(
    tmp_path: Path, arms: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        inheritance_curves(arms, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_error_names_the_extra_when_matplotlib_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install hf_connectome\[report\]"):
        evolution_curves(evolution_rows(1), tmp_path / "a.png")

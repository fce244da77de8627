"""The figures of many arms: what stands on them, and that it can be read."""

from __future__ import annotations

import itertools
import math
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from hf_connectome.analysis.arm_kinds import LOOKS, RUNGS, group_of, kind_of, ladder_order
from hf_connectome.analysis.arm_panels import arm_panels
from hf_connectome.analysis.inheritance_curve import inheritance_curve
from hf_connectome.analysis.labels import Box, place_labels
from hf_connectome.analysis.null_ladder import null_ladder
from hf_connectome.arms import arm_names
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import ArmResult, ArmSummary, by_arm, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# Bits, final loss, loss before the first step: as crowded as a real comparison.
ARMS = {
    "dense": (0, 5.6, 7.65),
    "random": (0, 6.0, 7.63),
    "degrees": (90_000, 6.02, 7.64),
    "moved-signs": (90_000, 6.03, 7.63),
    "embeddings": (230_000, 5.41, 7.3),
    "signs-only": (279_166, 5.62, 7.6),
    "embedding-signs": (524_288, 5.45, 7.2),
    "mask-only": (883_727, 5.75, 7.64),
    "random-signs": (883_727, 5.91, 7.63),
    "shuffled-signs": (900_000, 5.95, 7.63),
    "hubs-capped": (910_000, 5.51, 7.3),
    "body": (930_000, 5.51, 7.6),
    "permuted": (1_050_000, 5.92, 7.61),
    "connectome": (1_162_893, 5.335, 7.19),
    "connectome:init_std": (1_162_893, 5.34, 7.2),
    "connectome:fresh_magnitude": (1_162_893, 5.35, 7.24),
    "connectome:variance_preserving": (1_162_893, 5.27, 6.9),
    "selection": (1_162_893, 5.52, 7.4),
    "tensor-scale": (1_163_181, 5.125, 6.07),
    "row-scale": (1_200_000, 5.122, 6.04),
    "2-bit": (1_443_083, 5.12, 5.95),
    "4-bit": (2_000_391, 5.07, 5.92),
    "selection-4-bit": (2_000_391, 5.49, 7.3),
    "weights": (5_346_656, 5.05, 5.9),
    "selection-weights": (5_346_656, 5.41, 7.1),
    "parent": (17_039_360, 4.95, 6.09),
}


def results(arms: Sequence[str] = tuple(ARMS), num_seeds: int = 4) -> list[ArmResult]:
    found = []
    for place, arm in enumerate(arms):
        bits, final, before = ARMS[arm]
        for seed in range(num_seeds):
            noise = 0.02 * math.sin(7 * place + 3 * seed)
            losses = [before, (before + final) / 2, final + noise]
            found.append(ArmResult(arm, seed, [0, 10, 20], losses, 250, 1000, float(bits), 1.0))
    return found


@pytest.fixture(scope="module")
def crowd() -> list[ArmSummary]:
    return summarise(results())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written, to ask what stands on them."""
    return recorded(monkeypatch)


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, crowd: list[ArmSummary]) -> Figure:
    """The inheritance curve of all arms; its file is checked where it is written."""
    path = tmp_path_factory.mktemp("curve") / "new" / "curve.png"
    with pytest.MonkeyPatch.context() as monkeypatch:
        figures = recorded(monkeypatch)
        inheritance_curve(crowd, path, title="tiny")
    assert png_size(path) == (1200, 1000)
    return figures[0]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def record(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def names_on(figure: Figure, panel: int) -> list[Text]:
    """The names beside the points of a panel; leaders have no text."""
    found = figure.axes[panel].findobj(Annotation)
    return [text for text in found if isinstance(text, Text) and text.get_text()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]  # type: ignore[union-attr]


# ---- the inheritance curve -----------------------------------------------------------------------


def test_every_arm_is_named_once_and_no_name_covers_another_or_a_point(curve: Figure) -> None:
    before, after = names_on(curve, 0), names_on(curve, 1)
    assert sorted(text.get_text() for text in after) == sorted(ARMS)
    assert sorted(text.get_text() for text in before) == sorted(RUNGS)
    for panel, names in enumerate((before, after)):
        axes = curve.axes[panel]
        boxes = [name.get_window_extent() for name in names]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frame = axes.get_window_extent()
        assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)
        for bits, final, first in ARMS.values():
            x, y = axes.transData.transform((bits, final if panel else first))
            assert not any(box.contains(x, y) for box in boxes)


def test_a_name_stands_next_to_its_own_point(curve: Figure) -> None:
    to_pixels = curve.axes[1].transData.transform
    for name in names_on(curve, 1):
        extent = name.get_window_extent()
        box = Box(extent.x0, extent.y0, extent.x1, extent.y1)
        bits, final, _ = ARMS[name.get_text()]
        point = tuple(to_pixels((bits, final)))
        assert math.dist(point, box.nearest(point)) < 80


def test_names_that_stand_apart_have_a_leader(tmp_path: Path, drawn: list[Figure]) -> None:
    crowd = [
        ArmResult(f"arm-of-a-crowd-{k}", 0, [0, 9], [7.0, 5.0], 1, 2, 1000.0, 1.0) for k in range(9)
    ]
    far = ArmResult("far", 0, [0, 9], [6.0, 4.0], 1, 2, 9000.0, 1.0)
    inheritance_curve(summarise([*crowd, far]), tmp_path / "curve.png")
    axes = drawn[0].axes[1]
    leaders = [a for a in axes.findobj(Annotation) if not a.get_text()]
    crossing, alone = (tuple(axes.transData.transform(at)) for at in ((1000, 5.0), (9000, 4.0)))
    assert len(leaders) >= 4
    assert all(math.dist(leader.xyann, crossing) < 1 for leader in leaders)
    assert not any(math.dist(leader.xyann, alone) < 1 for leader in leaders)


def test_bits_are_on_a_logarithmic_scale_with_a_place_for_zero(curve: Figure) -> None:
    axes = curve.axes[1]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0", "100 k", "200 k", "500 k", "1 M", "2 M", "5 M", "10 M", "20 M"]
    x = {bits: axes.transData.transform((bits, 5))[0] for bits in (0, 1e5, 1e6, 1e7)}
    assert x[1e7] - x[1e6] == pytest.approx(x[1e6] - x[1e5])
    assert 40 < x[1e5] - x[0] < x[1e6] - x[1e5]
    assert "bits inherited from the parent, for 1,000 weights in scope" in texts(curve)


def test_line_joins_the_rungs_and_bars_are_intervals(
    curve: Figure, crowd: list[ArmSummary]
) -> None:
    for panel, column in ((0, 2), (1, 1)):
        line = curve.axes[panel].lines[0]
        assert list(line.get_xdata()) == [ARMS[arm][0] for arm in RUNGS]
        losses = list(line.get_ydata())
        assert losses == pytest.approx([ARMS[arm][column] for arm in RUNGS], abs=0.02)
    bars = curve.axes[1].containers
    assert len(bars) == len(ARMS)
    segments = [bar.lines[2][0].get_segments()[0] for bar in bars]
    for summary, segment in zip(crowd, segments, strict=True):
        assert segment[:, 1] == pytest.approx([summary.final.low, summary.final.high])


@pytest.mark.parametrize(
    ("arms", "num_seeds"),
    [
        (("dense", "connectome"), 1),
        (("connectome", "parent"), 2),
        (("random", "selection", "embedding-signs"), 3),
    ],
)
def test_curve_of_few_arms_is_drawn(
    tmp_path: Path, drawn: list[Figure], arms: tuple[str, ...], num_seeds: int
) -> None:
    inheritance_curve(summarise(results(arms, num_seeds)), tmp_path / "curve.png")
    assert sorted(text.get_text() for text in names_on(drawn[0], 1)) == sorted(arms)
    assert len(drawn[0].axes[1].containers) == (len(arms) if num_seeds > 1 else 0)
    assert ("0" in [t.get_text() for t in drawn[0].axes[1].get_xticklabels()]) == (
        "connectome" not in arms or "dense" in arms
    )


@pytest.mark.parametrize("arms", [(), ("connectome",), ("dense", "random")])
def test_curve_is_refused_when_nothing_is_inherited(tmp_path: Path, arms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"{len(arms)} arms, the most bits inherited"):
        inheritance_curve(summarise(results(arms)), tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


# ---- labels --------------------------------------------------------------------------------------

BOUNDS = Box(0, 0, 1000, 800)
POINTS = st.lists(
    st.tuples(st.integers(20, 980), st.integers(20, 780)), min_size=1, max_size=12, unique=True
)


@settings(deadline=None, max_examples=20)
@given(POINTS)
def test_labels_are_free_of_each_other_and_of_markers(points: list[tuple[int, int]]) -> None:
    markers = [Box.around(point, 12, 12) for point in points]
    boxes = place_labels([(70, 14)] * len(points), points, bounds=BOUNDS, obstacles=markers)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.overlaps(marker) for box in boxes for marker in markers)
    assert all(box.inside(BOUNDS) for box in boxes)


def test_label_leaves_a_line_free_when_there_is_room() -> None:
    alone = place_labels([(60, 14)], [(500, 400)], bounds=BOUNDS)[0]
    line = [(float(x), 400.0) for x in range(400, 700, 5)]
    beside = place_labels([(60, 14)], [(500, 400)], bounds=BOUNDS, lines=line)[0]
    assert alone.left > 500
    assert alone.bottom < 400 < alone.top
    assert not beside.bottom < 400 < beside.top


def test_boxes_that_touch_do_not_overlap() -> None:
    box = Box(0, 0, 10, 10)
    assert not box.overlaps(Box(10, 0, 20, 10))
    assert box.overlaps(Box(9, 9, 20, 20))
    assert box.nearest((15, 5)) == (10, 5)
    assert box.nearest((5, 5)) == (5, 5)
    assert Box.around((5, 5), 10, 10) == box
    assert box.inside(box)
    assert not Box(-1, 0, 5, 5).inside(box)


# ---- the null ladder -----------------------------------------------------------------------------


def test_ladder_stands_in_order_and_numbers_its_rungs(
    tmp_path: Path, drawn: list[Figure], crowd: list[ArmSummary]
) -> None:
    null_ladder(crowd, tmp_path / "ladder.png", title="tiny")
    width, height = png_size(tmp_path / "ladder.png")
    assert width == 1200
    assert 900 < height < 1300
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert names[:10] == [
        "connectome",
        "N1  random",
        "N2  permuted",
        "N3  degrees",
        "N4  random-signs",
        "N5  shuffled-signs",
        "N6  moved-signs",
        "N7  embeddings",
        "N8  body",
        "N9  hubs-capped",
    ]
    assert names[10:12] == ["mask-only", "signs-only"]
    assert names[12:18] == list(RUNGS[3:])
    assert len(names) == len(ARMS) - 1
    assert drawn[0].axes[0].yaxis_inverted()


def test_ladder_writes_the_share_of_the_gain_beside_each_bar(
    tmp_path: Path, drawn: list[Figure], crowd: list[ArmSummary]
) -> None:
    null_ladder(crowd, tmp_path / "ladder.png")
    bars, shares = drawn[0].axes
    written = {round(text.get_position()[1]): text.get_text() for text in shares.texts}
    assert written[0] == "100 %"
    found = {s.arm: s for s in crowd}
    share, difference = found["random"].share_of_gain, found["random"].difference
    assert share is not None
    assert share.low is not None
    assert share.high is not None
    assert difference is not None
    assert written[1] == (
        f"{100 * share.value:.0f} %  ({100 * share.low:.0f} to {100 * share.high:.0f})"
    )
    assert bars.patches[1].get_width() == pytest.approx(difference.mean)


def test_ladder_says_which_arms_have_fewer_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    some = results(("dense", "connectome", "random")) + results(("degrees",), 1)
    null_ladder(summarise(some), tmp_path / "ladder.png")
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert names == ["connectome", "N1  random", "N3  degrees (1 of 4)"]
    assert "final held-out loss minus N0 dense (nats per token; 4 seeds, paired)" in texts(drawn[0])


def test_ladder_is_refused_when_there_is_no_dense_arm(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of 2 arms none has a seed in common with the arm 'den"):
        null_ladder(summarise(results(("connectome", "random"))), tmp_path / "ladder.png")


# ---- kinds and panels ----------------------------------------------------------------------------


def test_every_arm_has_a_kind_and_a_place() -> None:
    assert {kind_of(arm) for arm in arm_names()} <= LOOKS.keys()
    others = [arm for arm in arm_names() if "other arms" in kind_of(arm)]
    assert others == []
    assert sorted(ladder_order(arm_names())) == arm_names()
    assert set(RUNGS) < set(arm_names())
    assert (group_of("mine"), kind_of("mine")) == (5, "other arms")


def curves() -> dict[str, list[list[tuple[int, float]]]]:
    return {arm: [run.curve for run in runs] for arm, runs in by_arm(results()).items()}


def test_panels_show_every_arm_over_dense_and_connectome(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    arm_panels(curves(), tmp_path / "curves.png", title="tiny")
    width, height = png_size(tmp_path / "curves.png")
    assert width == 1400
    assert height == 120 + 230 * 5
    panels = [axes for axes in drawn[0].axes if axes.get_title(loc="left")]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ladder_order(ARMS.keys() - {"dense", "connectome"})
    assert all(len(axes.lines) == 3 for axes in panels)
    shown = texts(drawn[0])
    assert "mean of dense" in shown
    assert "mean of connectome" in shown
    for axes in panels:
        (title,) = (t for t in axes.findobj(Text) if t.get_text() == axes.get_title(loc="left"))
        assert title.get_window_extent().x1 <= axes.get_window_extent().x1 + 5
    boxes = [t.get_window_extent() for t in drawn[0].findobj(Text) if t.get_text() in titles]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("arms", [("dense",), ("random",), ("dense", "connectome"), RUNGS])
def test_panels_draw_what_there_is(tmp_path: Path, arms: tuple[str, ...]) -> None:
    some = {arm: [run.curve for run in runs] for arm, runs in by_arm(results(arms, 2)).items()}
    arm_panels(some, tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png")[0] == 1400


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "no arms to draw"),
        ({"dense": [[]]}, "no curve, or an empty one, for 'dense'"),
        ({"dense": [[(0, 1.0)], [(1, 1.0)]]}, "curve 1 has 1 steps that differ"),
    ],
)
def test_panels_refuse_what_is_no_curve(tmp_path: Path, arms: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm_panels(arms, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", [inheritance_curve, null_ladder])
def test_error_names_the_extra_when_matplotlib_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crowd: list[ArmSummary],
    draw: Callable[[Sequence[ArmSummary], Path], None],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install hf_connectome\[report\]"):
        draw(crowd, tmp_path / "a.png")


# ---- what the recipe writes ----------------------------------------------------------------------


def test_report_of_a_ladder_writes_its_figures_and_orders_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_recipes import recipe

    recipe("inherit").report(results(tuple(reversed(ARMS))), tmp_path)
    table, saved = capsys.readouterr().out.rsplit("\n\n", 1)
    arms = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert arms == ["arm", *ladder_order(ARMS)]
    names = ["table.md", "results.json", "curves.png", "ladder.png", "inheritance_curve.png"]
    assert f"saved {', '.join(names)} in {tmp_path}" in saved
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert png_size(tmp_path / "curves.png")[1] > 600
    notes = (tmp_path / "table.md").read_text().split("\n\n")[1]
    assert notes.startswith("- Differences are paired by seed, over the 4 seeds")


def test_report_of_the_usual_three_writes_one_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_recipes import recipe

    recipe("inherit").report(results(("connectome", "random", "dense")), tmp_path)
    assert f"saved table.md, results.json, curves.png in {tmp_path}" in capsys.readouterr().out
    assert png_size(tmp_path / "curves.png") == (1400, 600)


def test_report_goes_on_when_one_figure_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_recipes import recipe

    recipe("inherit").report(results(("connectome", "tensor-scale")), tmp_path)
    said = capsys.readouterr().out
    assert "no ladder.png: of 2 arms none has a seed in common with the arm 'dense'" in said
    assert "curves.png, inheritance_curve.png in" in said

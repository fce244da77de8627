"""Arms of several models: grouped by the names of their seeds, compared in pairs."""

from __future__ import annotations

from hf_connectome.evaluation.groups import group_scores, group_table, groups_as_json
from hf_connectome.evaluation.paired import paired_difference
from hf_connectome.evaluation.report import Measure

VALUES = {"connectome": [0.30, 0.28, 0.33], "dense": [0.25, 0.26, 0.27], "random": [0.20, 0.21]}


def measures(name: str = "hellaswag acc", label: str = "{}-seed{}") -> list[Measure]:
    return [
        Measure(label.format(arm, seed), "lm", name, "", value, None, None, True)
        for arm, values in VALUES.items()
        for seed, value in enumerate(values)
    ]


def test_arms_are_compared_with_the_dense_one_over_common_seeds() -> None:
    scores = {s.arm: s for s in group_scores(measures())}
    assert list(scores) == ["connectome", "dense", "random"]
    assert scores["dense"].difference is None
    expected = paired_difference(VALUES["connectome"], VALUES["dense"])
    assert scores["connectome"].difference == expected
    assert scores["random"].difference == paired_difference([0.20, 0.21], [0.25, 0.26])
    assert scores["random"].mean.value == (0.20 + 0.21) / 2


def test_pairs_are_of_equal_seeds_whatever_their_order() -> None:
    assert group_scores(measures()[::-1])[-1].difference == group_scores(measures())[0].difference


def test_fresh_models_of_connectomes_are_groups_too() -> None:
    scores = group_scores(measures(label="run/{} seed {}"))
    assert [s.arm for s in scores] == ["run/connectome", "run/dense", "run/random"]
    assert scores[1].difference is None  # dense is the baseline under any folder


def test_first_arm_is_the_baseline_where_none_is_dense() -> None:
    others = [m for m in measures() if not m.label.startswith("dense")]
    assert [s.difference is None for s in group_scores(others)] == [True, False]


def test_single_models_and_single_seeds_make_no_comparison() -> None:
    lonely = [Measure(x, "lm", "acc", "", 0.5, None, None, True) for x in ("gpt2", "a-seed0")]
    assert group_scores(lonely) == []
    assert group_scores([m for m in measures() if m.label.endswith("0")]) == []
    assert group_scores([m for m in measures() if m.label.startswith("dense")]) == []


def test_table_has_means_differences_and_the_smallest_p() -> None:
    scores = group_scores([*measures(), *measures("perplexity")])
    lines = group_table(scores).splitlines()
    assert lines[0].split("|")[2].strip() == "connectome"
    assert "connectome minus dense" in lines[0]
    assert "random minus dense" in lines[0]
    assert lines[2].startswith("| hellaswag acc ↑")
    d = scores[0].difference
    assert d is not None
    assert f"+{d.mean:.4f} (" in lines[2]
    assert "cannot be below 0.25" in lines[-1]
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_json_has_every_arm() -> None:
    rows = groups_as_json(group_scores(measures()))
    assert [row["arm"] for row in rows] == ["connectome", "dense", "random"]
    assert rows[0]["difference"]["num_pairs"] == 3

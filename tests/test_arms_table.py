"""The table of the arms: who is compared with whom, over which seeds; when bits are paid for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import (
    ArmResult,
    ArmSummary,
    as_json,
    has_ladder,
    markdown_table,
    summarise,
    table_notes,
)
from hf_connectome.evaluation.description import description_length, saved_bits

BIT = math.log(2)
SEEDS = range(4)


def run(arm: str, seed: int, final: float, **changes: Any) -> ArmResult:
    known: dict[str, Any] = {
        "steps": [0, 10, 20],
        "losses": [7.0, 6.0, final],
        "num_survivors": 2,
        "num_weights": 4,
        "bits_inherited": 100.0,
        "seconds": 1.5,
    }
    return ArmResult(arm=arm, seed=seed, **(known | changes))


def runs(arm: str, finals: list[float], **changes: Any) -> list[ArmResult]:
    return [run(arm, seed, final, **changes) for seed, final in enumerate(finals)]


DENSE = runs("dense", [5.0, 5.1, 5.2, 5.3], bits_inherited=0.0)
WHOLE = runs("connectome", [4.0, 4.2, 4.1, 4.3])
HALF = runs("embeddings", [4.5, 4.65, 4.65, 4.8])
WORSE = runs("random", [5.5, 5.7, 5.7, 5.9], bits_inherited=0.0)


def by_name(results: list[ArmResult]) -> dict[str, ArmSummary]:
    return {summary.arm: summary for summary in summarise(results)}


def rows(table: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_arms_are_compared_with_dense_and_with_the_connectome() -> None:
    found = by_name(DENSE + WHOLE + HALF + WORSE)
    half = found["embeddings"]
    assert half.difference is not None
    assert half.to_connectome is not None
    assert half.share_of_gain is not None
    assert half.difference.mean == pytest.approx(-0.5)
    assert half.to_connectome.mean == pytest.approx(0.5)
    assert half.share_of_gain.value == pytest.approx(0.5)
    assert (half.share_of_gain.low, half.share_of_gain.high) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert found["dense"].difference is None
    assert found["dense"].share_of_gain is None
    assert found["connectome"].to_connectome is None
    assert found["connectome"].share_of_gain is None
    assert found["random"].share_of_gain is not None
    assert found["random"].share_of_gain.value < 0


def test_only_common_seeds_are_compared() -> None:
    late = [run("weights", seed, 4.0) for seed in (2, 3, 4)]
    found = by_name(DENSE + WHOLE[:3] + late)["weights"]
    assert found.num_seeds == 3
    assert found.difference is not None
    assert (found.difference.num_pairs, found.difference.p_value) == (2, 0.5)
    assert found.to_connectome is not None
    assert found.to_connectome.num_pairs == 1
    assert found.share_of_gain is not None
    assert (found.share_of_gain.num_seeds, found.share_of_gain.low) == (1, None)
    assert len(found.steps_to_dense) == 2


def test_arm_without_a_common_seed_is_compared_with_nothing() -> None:
    found = by_name([*DENSE, *WHOLE, run("weights", 9, 4.0)])["weights"]
    assert (found.difference, found.to_connectome, found.share_of_gain) == (None, None, None)
    alone = summarise(WHOLE)
    assert alone[0].difference is None
    assert "so nothing is compared" in table_notes(alone)


def test_share_is_unknown_when_the_connectome_gains_nothing() -> None:
    nothing = runs("connectome", [5.0, 5.1, 5.2, 5.3])
    assert by_name(DENSE + nothing + HALF)["embeddings"].share_of_gain is None


def test_steps_to_dense_have_an_interval_when_every_seed_arrives() -> None:
    found = by_name(DENSE + WHOLE + WORSE)
    mean = found["connectome"].mean_steps_to_dense
    assert mean is not None
    expected = [
        10 + 10 * (6 - d.losses[-1]) / (6 - w.losses[-1]) for d, w in zip(DENSE, WHOLE, strict=True)
    ]
    assert mean.value == pytest.approx(sum(expected) / 4)
    assert mean.low is not None
    assert mean.low < mean.value
    assert found["connectome"].fraction_of_steps == pytest.approx(mean.value / 20)
    assert found["random"].mean_steps_to_dense is None
    cell = rows(markdown_table(list(found.values())))["connectome"]["steps to dense's loss"]
    assert cell == "15 of 20 (73%, 14 to 15)"


def test_steps_to_dense_have_no_mean_when_a_seed_never_arrives() -> None:
    once = runs("body", [5.5, 5.7, 5.1, 5.9])
    summaries = summarise(DENSE + once)
    assert summaries[1].steps_to_dense[0] is None
    assert summaries[1].steps_to_dense[2] is not None
    assert summaries[1].mean_steps_to_dense is None
    assert summaries[1].fraction_of_steps is None
    table = rows(markdown_table(summaries))
    assert table["body"]["steps to dense's loss"] == "1 of 4 seeds"


def test_table_of_the_usual_three_has_no_further_columns() -> None:
    table = markdown_table(summarise(WHOLE + WORSE + DENSE))
    assert list(rows(table)["dense"]) == [
        "arm",
        "held-out loss",
        "before step 1",
        "minus dense (95 % interval)",
        "steps to dense's loss",
        "survivors",
        "bits inherited",
        "seconds",
    ]
    assert not has_ladder({"connectome": 1, "random": 1, "dense": 1})
    assert not has_ladder({"dense": 1})
    assert has_ladder({"dense": 1, "connectome:init_std": 1})


def test_table_of_a_ladder_compares_with_the_connectome() -> None:
    table = rows(markdown_table(summarise(DENSE + WHOLE + HALF)))
    assert table["embeddings"]["minus connectome"] == "+0.500 (+0.435 to +0.565)"
    assert table["embeddings"]["share of the gain"] == "50% (50% to 50%)"
    assert table["connectome"]["minus connectome"] == "-"
    assert not {"seeds", "p to dense", "p to connectome"} & table["dense"].keys()


def test_columns_are_there_when_arms_differ_in_them() -> None:
    mixed = runs("body", [5.1, 5.0, 5.4, 5.2])
    table = rows(markdown_table(summarise(DENSE + WHOLE + mixed + [HALF[0]])))
    assert table["body"]["p to dense"] == "1"
    assert table["connectome"]["p to dense"] == "0.125"
    assert (table["body"]["seeds"], table["embeddings"]["seeds"]) == ("4", "1")
    assert table["embeddings"]["minus dense (95 % interval)"] == "-0.500 (1 seed)"
    assert table["embeddings"]["share of the gain"] == "50%"


def test_notes_never_hide_the_smallest_p_value() -> None:
    notes = table_notes(summarise(DENSE + WHOLE + WORSE))
    assert "over the 4 seeds that both arms have" in notes
    assert "Smallest possible p by seeds: 0.125 with 4; here 0.125 for every difference." in notes
    assert "Fieller" in notes
    assert "Paid for" not in notes
    notes = table_notes(summarise(DENSE + WHOLE + [HALF[0]]))
    assert "over the 1 or 4 seeds" in notes
    assert "1 with 1, 0.125 with 4." in notes


def test_json_has_method_numbers_and_runs() -> None:
    content = json.loads(json.dumps(as_json(DENSE + WHOLE + HALF)))
    assert {"interval", "p_value", "share_of_gain", "description"} <= content["method"].keys()
    half = content["summary"][2]
    assert half["share_of_gain"]["value"] == pytest.approx(0.5)
    assert half["to_connectome"]["num_pairs"] == 4
    assert [ArmResult(**one) for one in content["runs"]] == DENSE + WHOLE + HALF


def test_result_written_before_tokens_were_counted_still_reads() -> None:
    old = {key: value for key, value in vars(DENSE[0]).items() if key != "tokens_per_step"}
    assert ArmResult(**old) == DENSE[0]


# ---- description length --------------------------------------------------------------------------


def test_saved_bits_are_trapezoids_over_tokens() -> None:
    dense, ours = [5 * BIT, 5 * BIT, 3 * BIT], [4 * BIT, 2 * BIT, 4 * BIT]
    assert saved_bits([0, 10, 30], dense, ours, 8) == pytest.approx([0, 160, 320])


@pytest.mark.parametrize(
    ("bits", "tokens"),
    [(80.0, 40 * (math.sqrt(5) - 1)), (160.0, 80.0), (210.0, 80 + 50 / 3), (281.0, None)],
)
def test_break_even_is_where_the_saved_bits_are_the_bits_inherited(
    bits: float, tokens: float | None
) -> None:
    """Gains of 1, 3, 3 bits a token at steps of 8: 160 bits after 80 tokens, 280 after 120.

    In the first stretch x + x^2 / 80 are saved after x tokens, in the second 3 more a token.
    """
    steps, dense = [0, 10, 15], [9 * BIT] * 3
    ours = [8 * BIT, 6 * BIT, 6 * BIT]
    found = description_length(steps, [(dense, ours)], 8, bits)
    assert found.num_tokens == 120
    assert found.saved_bits.value == pytest.approx(280)
    assert found.share_paid == pytest.approx(280 / bits)
    if tokens is None:
        assert found.tokens_to_break_even == [None]
        assert found.break_even is None
    else:
        assert found.tokens_to_break_even == [pytest.approx(tokens)]
        assert found.break_even is not None
        assert found.break_even.value == pytest.approx(tokens)


def test_break_even_counts_when_the_arm_falls_behind_again() -> None:
    ours = [6 * BIT, 6 * BIT, 10 * BIT, 14 * BIT]
    found = description_length([0, 1, 2, 3], [([8 * BIT] * 4, ours)], 10, 22.0)
    assert found.saved_bits.value == pytest.approx(-20)
    # 20 bits after 10 tokens; then 2 x - 0.2 x^2 = 2.
    assert found.tokens_to_break_even == [pytest.approx(10 + (2 - math.sqrt(2.4)) / 0.4)]


def test_break_even_needs_every_seed() -> None:
    pairs = [([8 * BIT] * 2, [7 * BIT] * 2), ([8 * BIT] * 2, [7.9 * BIT] * 2)]
    found = description_length([0, 10], pairs, 10, 50.0)
    assert found.tokens_to_break_even == [pytest.approx(50), None]
    assert found.break_even is None
    assert found.saved_bits.num_seeds == 2


GAINS = st.lists(st.floats(-2, 2), min_size=2, max_size=6)


@settings(deadline=None)
@given(GAINS, st.floats(1, 60))
def test_break_even_is_that_of_adding_up_token_by_token(gains: list[float], bits: float) -> None:
    steps = list(range(len(gains)))
    ours = [-gain * BIT for gain in gains]
    found = description_length(steps, [([0.0] * len(gains), ours)], 16, bits)
    total, fine, reached = 0.0, 200, None
    for index in range((len(gains) - 1) * 16 * fine):
        step, share = divmod((index + 0.5) / fine / 16, 1)
        start, end = gains[int(step)], gains[int(step) + 1]
        total += (start + share * (end - start)) / fine
        if total >= bits:
            reached = (index + 1) / fine
            break
    tokens = found.tokens_to_break_even[0]
    if reached is None or tokens is None:
        assert total == pytest.approx(found.saved_bits.value, abs=1e-3) or tokens == reached
        return
    assert saved_at(gains, tokens) == pytest.approx(bits, rel=1e-6)
    assert tokens <= reached + 0.02


def saved_at(gains: list[float], tokens: float) -> float:
    """Integrate a gain that is linear between steps of 16 tokens."""
    step, rest = divmod(tokens, 16)
    whole = sum(8 * (gains[i] + gains[i + 1]) for i in range(int(step)))
    if rest == 0:
        return whole
    start, end = gains[int(step)], gains[int(step) + 1]
    return whole + rest * start + rest**2 * (end - start) / 32


def test_table_says_after_how_many_tokens_bits_are_paid_for() -> None:
    tokens = {"tokens_per_step": 8}
    cheap = runs("embeddings", [4.0] * 4, bits_inherited=20.0, **tokens)
    dear = runs("parent", [4.0] * 4, bits_inherited=1e6, **tokens)
    worse = runs("degrees", [6.5] * 4, bits_inherited=20.0, **tokens)
    summaries = summarise(DENSE + cheap + dear + worse)
    table = rows(markdown_table(summaries))
    cells = {arm: row["tokens until it is paid for"] for arm, row in table.items()}
    assert cells["dense"] == "-"
    assert cells["embeddings"] == "124 (120 to 128)"
    assert cells["parent"] == "not within 160 (0% paid)"
    assert cells["degrees"] == "not within 160 (nothing paid)"
    assert "Paid for: when the code of the training text" in table_notes(summaries)


def test_description_is_unknown_when_tokens_are_or_steps_differ() -> None:
    assert by_name(DENSE + WHOLE)["connectome"].description is None
    other = runs("weights", [4.0] * 4, steps=[0, 5, 20], tokens_per_step=8)
    assert by_name(DENSE + other)["weights"].description is None
    known = [WHOLE[0], run("connectome", 1, 4.2, tokens_per_step=8)]
    assert by_name(DENSE + known)["connectome"].description is not None
    differ = [run("connectome", seed, 4.2, tokens_per_step=8 + seed) for seed in (0, 1)]
    assert by_name(DENSE + differ)["connectome"].description is None


@pytest.mark.parametrize(
    ("steps", "pair", "tokens", "bits", "message"),
    [
        ([0, 1], ([1.0, 1.0], [1.0, 1.0]), 8, 0.0, "has nothing to pay for"),
        ([0, 1], ([1.0, 1.0], [1.0, 1.0]), 0, 5.0, "at least 1 token per step"),
        ([0, 1], ([1.0], [1.0, 1.0]), 8, 5.0, "2 steps come with 1 losses of the dense arm"),
        ([0, 0], ([1.0, 1.0], [1.0, 1.0]), 8, 5.0, "steps do not increase"),
        ([0, 1], ([1.0, math.nan], [1.0, 1.0]), 8, 5.0, "losses at step 1 differ by nan"),
    ],
)
def test_description_refuses_what_cannot_be_weighed(
    steps: list[float],
    pair: tuple[list[float], list[float]],
    tokens: int,
    bits: float,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        description_length(steps, [pair], tokens, bits)

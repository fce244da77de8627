from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.errors import ScopeError
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, output_rows
from hf_connectome.selection import keep, keep_globally, keep_per_row, keep_rows

INF = float("inf")
NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Few distinct values, so that most draws have ties; 0.0 and -0.0 tie, 1 and 1 + 2^-30 in float32.
VALUES = [-INF, -3.0, -1.0, -0.0, 0.0, 1.0, 1.0 + 2.0**-30, 2.0, INF]


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


@st.composite
def cases(draw, least=1):
    """Draw (scores, mask), a flat tensor each."""
    size = draw(st.integers(least, 24))
    pool = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=4))
    scores = draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(scores, dtype=torch.float64).to(draw(st.sampled_from(DTYPES))), flags(*mask)


def ranked(score, mask):
    """List the survivors' flat indices, weakest first, by Python's own sort."""
    score = score.tolist()
    return sorted(
        (i for i, alive in enumerate(mask.tolist()) if alive), key=lambda i: (score[i], i)
    )


# ---- one parameter -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "mask", "n_drop", "expected"),
    [
        ([3, 1, 4, 2], [1, 1, 1, 1], 0, [1, 1, 1, 1]),
        ([3, 1, 4, 2], [1, 1, 1, 1], 1, [1, 0, 1, 1]),
        ([3, 1, 4, 2], [1, 1, 1, 1], 3, [0, 0, 1, 0]),
        ([3, 1, 4, 2], [1, 1, 1, 1], 4, [0, 0, 0, 0]),
        ([3, 1, 4, 2], [1, 0, 1, 1], 1, [1, 0, 1, 0]),
        ([3, 1, 4, 2], [0, 0, 0, 0], 0, [0, 0, 0, 0]),
        # Ties go to the lower flat index.
        ([1, 1, 1, 1], [1, 1, 1, 1], 1, [0, 1, 1, 1]),
        ([1, 1, 1, 1], [1, 1, 1, 1], 3, [0, 0, 0, 1]),
        ([1, 1, 1, 1], [0, 1, 0, 1], 1, [0, 0, 0, 1]),
        ([2, 1, 1, 2], [1, 1, 1, 1], 1, [1, 0, 1, 1]),
        ([2, 1, 1, 2], [1, 1, 1, 1], 3, [0, 0, 0, 1]),
        ([0, 0, 5, 0], [1, 1, 1, 1], 2, [0, 0, 1, 1]),
        # Signed zeros tie; infinities have their place; dead scores may be anything.
        ([0.0, -0.0, 1, 1], [1, 1, 1, 1], 1, [0, 1, 1, 1]),
        ([-0.0, 0.0, 1, 1], [1, 1, 1, 1], 1, [0, 1, 1, 1]),
        ([INF, -INF, INF, 0], [1, 1, 1, 1], 3, [0, 0, 1, 0]),
        ([-5, -1, -3, 0], [1, 1, 1, 1], 2, [0, 1, 0, 1]),
        ([NAN, 1, -INF, 2], [0, 1, 0, 1], 1, [0, 0, 0, 1]),
        ([7], [1], 1, [0]),
    ],
)
def test_weakest_survivors_are_dropped(score, mask, n_drop, expected):
    kept = keep(torch.tensor(score, dtype=torch.float32), flags(*mask), n_drop)
    assert kept.dtype == torch.bool
    assert kept.tolist() == flags(*expected).tolist()


def test_flat_order_is_row_by_row_whatever_the_strides():
    score, mask = torch.ones(3, 2).t(), torch.ones(3, 2, dtype=torch.bool).t()
    assert keep(score, mask, 4).tolist() == [[False, False, False], [False, True, True]]


@given(cases(), st.data())
def test_count_is_exact_and_order_respected_for_any_ties(case, data):
    score, mask = case
    n_drop = data.draw(st.integers(0, int(mask.sum())))
    before = score.clone(), mask.clone()
    kept = keep(score, mask, n_drop)
    order = ranked(score, mask)
    assert torch.nonzero(kept).flatten().tolist() == sorted(order[n_drop:])
    assert int(kept.sum()) == int(mask.sum()) - n_drop
    assert not (kept & ~mask).any()
    dropped = score[mask & ~kept].tolist()
    assert not dropped or n_drop == len(order) or max(dropped) <= min(score[kept].tolist())
    assert score.equal(before[0])
    assert mask.equal(before[1])


def test_float64_scores_are_compared_in_float64():
    score = torch.tensor([1.0 + 2.0**-40, 1.0], dtype=torch.float64)
    assert keep(score, flags(1, 1), 1).tolist() == [True, False]


def test_scores_may_require_a_gradient():
    score = torch.tensor([2.0, 1.0], requires_grad=True)
    assert keep(score, flags(1, 1), 1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("score", "mask", "n_drop", "message"),
    [
        ([1, 2], [1, 0], 2, r"cannot drop 2 weights of 'h.0': 1 may be dropped. Use a smaller"),
        ([1, 2], [1, 1], -1, "cannot drop -1 weights of 'h.0'"),
        ([NAN, 2], [1, 1], 1, "'h.0' has NaN scores on survivors"),
        ([NAN, 2], [1, 1], 0, "'h.0' has NaN scores on survivors"),
        ([[1, 2]], [1, 1], 1, r"'h.0': the scores are \(1, 2\) but the mask is \(2,\)"),
    ],
)
def test_selection_is_refused_with_the_name(score, mask, n_drop, message):
    with pytest.raises(ScopeError, match=message):
        keep(torch.tensor(score, dtype=torch.float32), flags(*mask), n_drop, name="h.0")


# ---- all parameters together ---------------------------------------------------------------------


def globally_by_brute_force(scores, masks, n_drop, min_survivors):
    """Rank the concatenation of what lies above no parameter's floor, by Python's own sort."""
    free = []
    for name in sorted(masks):
        score = scores[name].to(torch.float32)
        order = ranked(score, masks[name])
        values = score.tolist()
        free += [(values[i], name, i) for i in order[: max(len(order) - min_survivors, 0)]]
    dropped = {(name, i) for _, name, i in sorted(free)[:n_drop]}
    assert len(dropped) == n_drop
    return {
        name: [alive and (name, i) not in dropped for i, alive in enumerate(mask.tolist())]
        for name, mask in masks.items()
    }


@given(st.lists(cases(), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_global_selection_is_that_of_brute_force_for_any_ties(parts, min_survivors, data):
    names = data.draw(st.permutations(["b", "a", "d", "c"]))[: len(parts)]
    scores = {name: score for name, (score, _) in zip(names, parts, strict=True)}
    masks = {name: mask for name, (_, mask) in zip(names, parts, strict=True)}
    free = sum(max(int(mask.sum()) - min_survivors, 0) for mask in masks.values())
    n_drop = data.draw(st.integers(0, free))
    kept = keep_globally(scores.__getitem__, masks, n_drop, min_survivors=min_survivors)
    expected = globally_by_brute_force(scores, masks, n_drop, min_survivors)
    assert {name: mask.tolist() for name, mask in kept.items()} == expected
    for name, mask in kept.items():
        assert not (mask & ~masks[name]).any()
        assert int(mask.sum()) >= min(min_survivors, int(masks[name].sum()))


@given(st.lists(cases(), min_size=2, max_size=4), st.data())
def test_global_selection_does_not_depend_on_the_order_of_parameters(parts, data):
    scores = {f"w.{n}": score for n, (score, _) in enumerate(parts)}
    masks = {f"w.{n}": mask for n, (_, mask) in enumerate(parts)}
    n_drop = data.draw(st.integers(0, sum(max(int(m.sum()) - 1, 0) for m in masks.values())))
    shuffled = {name: masks[name] for name in data.draw(st.permutations(sorted(masks)))}
    first = keep_globally(scores.__getitem__, masks, n_drop)
    second = keep_globally(scores.__getitem__, shuffled, n_drop)
    assert first.keys() == second.keys() == masks.keys()
    assert all(first[name].equal(second[name]) for name in masks)


def test_global_selection_is_that_of_one_parameter_when_there_is_one():
    draw = torch.Generator().manual_seed(0)
    score = torch.randn(50, 40, generator=draw).to(torch.bfloat16)
    mask = torch.rand(50, 40, generator=draw) < 0.7
    kept = keep_globally({"w": score}.__getitem__, {"w": mask}, 333)
    assert kept["w"].equal(keep(score, mask, 333))


def test_ties_go_to_the_first_name_then_to_the_lower_index():
    masks = {"b": flags(1, 1, 1), "a": flags(1, 1, 1)}
    kept = keep_globally(lambda name: torch.ones(3), masks, 3)
    assert kept["a"].tolist() == [False, False, True]
    assert kept["b"].tolist() == [False, True, True]


def test_every_parameter_keeps_its_best_weights_when_all_are_weak():
    scores = {"weak": torch.tensor([0.1, 0.3, 0.2]), "strong": torch.tensor([5.0, 6.0, 7.0])}
    masks = {name: flags(1, 1, 1) for name in scores}
    kept = keep_globally(scores.__getitem__, masks, 3)
    assert kept["weak"].tolist() == [False, True, False]
    assert kept["strong"].tolist() == [False, True, True]
    emptied = keep_globally(scores.__getitem__, masks, 3, min_survivors=0)
    assert emptied["weak"].tolist() == [False, False, False]


def test_masks_are_copied_when_nothing_is_dropped():
    masks = {"w": flags(1, 0)}
    kept = keep_globally(lambda name: torch.ones(2), masks, 0)
    kept["w"].fill_(True)
    assert masks["w"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("scores", "n_drop", "message"),
    [
        ({"a": [1, 2], "b": [1, 2]}, 3, "cannot drop 3 weights of 'all parameters .*: 2 may be"),
        ({"a": [1, 2], "b": [1, 2]}, -1, "cannot drop -1 weights"),
        ({"a": [1, 2], "b": [1, NAN]}, 1, "'b' has NaN scores on survivors"),
        ({"a": [1, 2], "b": [1, NAN]}, 0, "'b' has NaN scores on survivors"),
        ({"a": [1, 2], "b": [1, 2, 3]}, 1, r"'b': the scores are \(3,\) but the mask is \(2,\)"),
    ],
)
def test_global_selection_is_refused_with_the_name(scores, n_drop, message):
    masks = {name: flags(1, 1) for name in scores}
    with pytest.raises(ScopeError, match=message):
        keep_globally(lambda name: torch.tensor(scores[name], dtype=torch.float32), masks, n_drop)


def test_global_selection_holds_the_scores_of_one_parameter_at_a_time():
    draw = torch.Generator().manual_seed(0)
    masks = {f"w.{n}": torch.rand(64, 32, generator=draw) < 0.8 for n in range(5)}
    memory, calls = [], []

    def score_of(name):
        held = [other for other, array in zip(calls, memory, strict=True) if array() is not None]
        assert held == [], f"the scores of {held} are held while {name!r} is scored"
        score = np.random.default_rng(int(name[2:])).random((64, 32), np.float32)
        calls.append(name)
        memory.append(weakref.ref(score))  # lives as long as any view of the tensor does
        return torch.from_numpy(score)

    kept = keep_globally(score_of, masks, 1000)
    assert sum(int(mask.sum()) for mask in kept.values()) + 1000 == sum(
        int(mask.sum()) for mask in masks.values()
    )
    assert set(calls) == set(masks)
    assert max(map(calls.count, masks)) <= 4


# ---- row by row ----------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_every_row_keeps_its_best_for_any_ties(rows, columns, data):
    values = st.sampled_from([-INF, -1.0, -0.0, 0.0, 1.0, 1.0, INF])
    cells = st.lists(values, min_size=rows * columns, max_size=rows * columns)
    score = torch.tensor(data.draw(cells)).reshape(rows, columns)
    alive = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    mask = torch.tensor(data.draw(alive)).reshape(rows, columns)
    num_kept = [data.draw(st.integers(0, n)) for n in mask.sum(1).tolist()]
    kept = keep_rows(score, mask, torch.tensor(num_kept))
    for row in range(rows):
        expected = keep(score[row], mask[row], int(mask[row].sum()) - num_kept[row])
        assert torch.equal(kept[row], expected)


@pytest.mark.parametrize(
    ("num_kept", "message"),
    [
        (3, "'h.0': cannot keep 3 weights of row 1, which has 2 survivors. Keep fewer"),
        (-1, "'h.0': cannot keep -1 weights of row 0"),
        (torch.tensor([0, 3]), "'h.0': cannot keep 3 weights of row 1"),
    ],
)
def test_row_is_refused_when_it_has_too_few(num_kept, message):
    mask = torch.tensor([[True, True, True], [True, False, True]])
    with pytest.raises(ScopeError, match=message):
        keep_rows(torch.ones(2, 3), mask, num_kept, name="h.0")


def test_rows_with_diverged_scores_are_refused_by_name():
    score = torch.tensor([[1.0, NAN]])
    with pytest.raises(ScopeError, match=r"'h\.0' has NaN scores on survivors"):
        keep_rows(score, torch.tensor([[True, True]]), 1, name="h.0")
    assert keep_rows(score, torch.tensor([[True, False]]), 1).tolist() == [[True, False]]


# ---- per output row ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_drop", "expected"),
    [
        (0, [[1, 1, 1], [1, 1, 1]]),
        (1, [[1, 0, 1], [1, 1, 1]]),  # a remainder: the later row keeps one more
        (2, [[1, 0, 1], [0, 1, 1]]),
        (3, [[1, 0, 0], [0, 1, 1]]),
        (4, [[1, 0, 0], [0, 0, 1]]),
        (5, [[0, 0, 0], [0, 0, 1]]),
        (6, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_each_row_loses_its_weakest(n_drop, expected):
    score = torch.tensor([[3.0, 1.0, 2.0], [10.0, 30.0, 40.0]])
    everything = torch.ones(2, 3, dtype=torch.bool)
    kept = keep_per_row(score, everything, n_drop, orientation=OUT_IN)
    assert kept.tolist() == torch.tensor(expected).bool().tolist()
    for stored in (IN_OUT, EMBEDDING):
        transposed = keep_per_row(score.t(), everything.t(), n_drop, orientation=stored)
        assert transposed.t().equal(kept)


def test_rows_with_few_survivors_keep_what_they_have():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()
    kept = keep_per_row(torch.ones(4, 4), mask, 3, orientation=OUT_IN)
    assert kept.sum(1).tolist() == [1, 2, 0, 2]
    assert kept[1].tolist() == [False, False, True, True]  # ties go to the lower index


SHAPES = st.sampled_from(
    [(3, 4), (4, 3), (1, 5), (5, 1), (2, 3, 2), (3, 2, 2, 2)],
)


@given(SHAPES, st.sampled_from([OUT_IN, IN_OUT, EMBEDDING, CONV, RAW]), st.data())
def test_rows_are_even_and_counts_exact_for_any_ties(shape, orientation, data):
    size = int(np.prod(shape))
    score = torch.tensor(
        data.draw(st.lists(st.sampled_from(VALUES), min_size=size, max_size=size))
    ).reshape(shape)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    mask = mask.reshape(shape)
    n_drop = data.draw(st.integers(0, int(mask.sum())))
    kept = keep_per_row(score, mask, n_drop, orientation=orientation)
    assert int(kept.sum()) == int(mask.sum()) - n_drop
    assert not (kept & ~mask).any()
    rows = output_rows(shape, orientation)
    counts = []
    for row in rows.unique():
        places = (rows == row).flatten().nonzero().flatten()
        there, left = mask.flatten()[places], kept.flatten()[places]
        counts.append((int(there.sum()), int(left.sum())))
        # Within a row it is what keep() gives.
        n_gone = counts[-1][0] - counts[-1][1]
        assert left.equal(keep(score.flatten()[places], there, n_gone))
    for available, count in counts:
        assert count == available or all(count >= other - 1 for _, other in counts)


@pytest.mark.parametrize(
    ("score", "n_drop", "message"),
    [
        ([1.0, 2.0], 3, "cannot drop 3 weights of 'h.0': 2 may be dropped"),
        ([NAN, 2.0], 1, "'h.0' has NaN scores on survivors"),
    ],
)
def test_selection_per_row_is_refused_with_the_name(score, n_drop, message):
    with pytest.raises(ScopeError, match=message):
        keep_per_row(
            torch.tensor([score]), flags(1, 1)[None], n_drop, orientation=OUT_IN, name="h.0"
        )

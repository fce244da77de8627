from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome import brackets
from hf_connectome.brackets import CHUNK, keep_by_bracket
from hf_connectome.errors import ScopeError
from hf_connectome.histograms import keep_by_histograms
from hf_connectome.selection import keep, keep_globally

SIZE = 2 * CHUNK + 5  # two chunks and a piece


def by_sorting(scores, alive, n_drop):
    """Drop the weakest by a stable sort: equal scores go in their order."""
    places = np.flatnonzero(alive)
    order = np.argsort(scores[places], kind="stable")
    kept = alive.copy()
    kept[places[order[:n_drop]]] = False
    return kept


def drawn(seed, *, levels=None, density=0.8):
    draw = np.random.default_rng(seed)
    scores = draw.standard_normal(SIZE).astype(np.float32)
    if levels:
        scores = np.round(scores * levels) / np.float32(levels)
    return scores, draw.random(SIZE) < density


def misleading():
    """Return scores whose sample lies: the sampled ones are all above the others."""
    scores = np.linspace(0, 1, SIZE, dtype=np.float32)
    scores[:: brackets._STRIDE] += 2
    return scores, np.ones(SIZE, np.bool_)


CASES = {
    "different": drawn(0),
    "hundreds of values": drawn(1, levels=100),
    "three values": drawn(2, levels=1),
    "one value": (np.full(SIZE, 0.02, np.float32), drawn(3)[1]),
    "sample misleads": misleading(),
    "few survivors": drawn(4, density=0.001),
}


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.2, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_every_way_of_ranking_gives_what_sorting_gives(case, fraction):
    scores, alive = CASES[case]
    n_drop = int(fraction * np.count_nonzero(alive))
    expected = by_sorting(scores, alive, n_drop)
    score, mask = torch.from_numpy(scores), torch.from_numpy(alive)
    assert np.array_equal(keep(score, mask, n_drop).numpy(), expected)
    together = keep_globally({"w": score}.__getitem__, {"w": mask}, n_drop, min_survivors=0)
    assert np.array_equal(together["w"].numpy(), expected)
    counted = keep_by_histograms(lambda _: (scores, alive), ["w"], n_drop)["w"].flags()
    assert np.array_equal(counted, expected)


@pytest.mark.parametrize(
    "case", ["different", "hundreds of values", "three values", "few survivors"]
)
def test_a_sample_settles_scores_that_do_not_all_tie(case):
    scores, alive = CASES[case]
    total = int(np.count_nonzero(alive))
    found = keep_by_bracket(lambda _: (scores, alive), ["w"], total // 5, total)
    assert found is not None


@pytest.mark.parametrize("case", ["one value", "sample misleads"])
def test_what_a_sample_cannot_settle_is_left_to_others(case):
    scores, alive = CASES[case]
    total = int(np.count_nonzero(alive))
    assert keep_by_bracket(lambda _: (scores, alive), ["w"], total // 5, total) is None


def test_global_ranking_over_chunks_is_that_of_the_concatenation():
    parts = {"a": CASES["different"], "b": CASES["hundreds of values"], "c": CASES["one value"]}
    scores = np.concatenate([score for score, _ in parts.values()])
    alive = np.concatenate([mask for _, mask in parts.values()])
    for fraction in (0.2, 0.6):  # 0.02, which all of "c" has, is at about 0.57
        n_drop = int(fraction * np.count_nonzero(alive))
        kept = keep_globally(
            lambda name: torch.from_numpy(parts[name][0]),
            {name: torch.from_numpy(mask) for name, (_, mask) in parts.items()},
            n_drop,
        )
        found = np.concatenate([kept[name].numpy() for name in parts])
        assert np.array_equal(found, by_sorting(scores, alive, n_drop))


@pytest.mark.parametrize("place", [0, CHUNK, SIZE - 1])
def test_nan_is_refused_in_any_chunk_and_ignored_where_dead(place):
    scores, alive = (array.copy() for array in CASES["different"])
    scores[place], alive[place] = np.nan, True
    with pytest.raises(ScopeError, match=r"'h\.0' has NaN scores on survivors"):
        keep(torch.from_numpy(scores), torch.from_numpy(alive), 9, name="h.0")
    alive[place] = False
    kept = keep(torch.from_numpy(scores), torch.from_numpy(alive), 9)
    assert np.array_equal(kept.numpy(), by_sorting(scores, alive, 9))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_histograms_drop_exactly_the_weakest_for_any_ties(values, data):
    scores = np.array(values, np.float32) * np.float32(0.5)
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    n_drop = data.draw(st.integers(0, int(alive.sum())))
    kept = keep_by_histograms(lambda _: (scores, alive), ["w"], n_drop)["w"].flags()
    assert np.array_equal(kept, by_sorting(scores, alive, n_drop))

"""Structured masks: exact counts, the structure in the sense of inputs and outputs, best first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.errors import ConfigError, ScopeError
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, ScopedParameter
from hf_connectome.structures import Blocks, OfInputs, make_structure

PARAMETERS = {
    OUT_IN: ScopedParameter("linear", (6, 8), OUT_IN),
    IN_OUT: ScopedParameter("conv1d", (8, 6), IN_OUT),
    EMBEDDING: ScopedParameter("table", (10, 4), EMBEDDING),
    CONV: ScopedParameter("conv", (4, 2, 2, 2), CONV),
    RAW: ScopedParameter("experts", (3, 4, 8), RAW),
}
ALL = sorted(PARAMETERS)


def drawn(parameter, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(parameter.shape, generator=draw)


def everything(parameter):
    return torch.ones(parameter.shape, dtype=torch.bool)


# ---- the view of a parameter as matrices ---------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_matrices_are_outputs_by_inputs_and_go_back(kind):
    parameter, shape = PARAMETERS[kind], PARAMETERS[kind].matrix_shape
    values = drawn(parameter)
    stack = parameter.matrices(values)
    assert tuple(stack.shape) == shape
    assert torch.equal(parameter.from_matrices(stack), values)
    expected = {
        OUT_IN: (1, 6, 8),
        IN_OUT: (1, 6, 8),
        EMBEDDING: (1, 10, 4),
        CONV: (1, 4, 8),
        RAW: (3, 4, 8),
    }
    assert shape == expected[kind]


def test_conv1d_is_the_transpose_of_a_linear():
    linear, conv1d = PARAMETERS[OUT_IN], PARAMETERS[IN_OUT]
    values = drawn(linear)
    assert torch.equal(linear.matrices(values), conv1d.matrices(values.T.contiguous()))


# ---- N of M inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("of", [(2, 4), (1, 4), (1, 2), (3, 4)], ids=str)
def test_every_group_of_inputs_keeps_its_best(kind, of):
    parameter, structure = PARAMETERS[kind], OfInputs(*of)
    score = drawn(parameter)
    num_kept = structure.count(1, parameter) * of[0]
    mask = structure.keep(score, everything(parameter), num_kept, parameter)
    assert mask.shape == score.shape
    assert int(mask.sum()) == num_kept == parameter.num_weights * of[0] // of[1]
    groups = parameter.matrices(mask).reshape(-1, of[1])
    assert (groups.sum(1) == of[0]).all()
    values = parameter.matrices(score).reshape(-1, of[1])
    weakest = values.masked_fill(~groups, torch.inf).amin(1)
    assert (weakest >= values.masked_fill(groups, -torch.inf).amax(1)).all()


def test_ties_go_to_the_lower_input():
    parameter = ScopedParameter("w", (4, 2), IN_OUT)
    mask = OfInputs(1, 4).keep(torch.ones(4, 2), everything(parameter), 2, parameter)
    assert mask.int().tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]


def test_masks_of_one_generation_after_another_are_nested():
    parameter, structure = PARAMETERS[RAW], OfInputs(1, 4)
    mask = everything(parameter)
    for kept in (4, 3, 2, 1):
        before, num_kept = mask, kept * parameter.num_weights // 4
        mask = structure.keep(drawn(parameter, kept), mask, num_kept, parameter)
        assert int(mask.sum()) == num_kept
        assert not (mask & ~before).any()


@given(st.integers(0, 48))
def test_count_is_the_next_that_the_structure_can_have(num_survivors):
    parameter = PARAMETERS[OUT_IN]
    for structure, step in ((OfInputs(2, 4), 12), (Blocks(2, 4), 8), (Blocks(3, None), 24)):
        assert structure.step(parameter) == step
        count = structure.count(num_survivors, parameter)
        assert count % step == 0
        assert num_survivors <= count < num_survivors + step


def test_indivisible_inputs_are_refused_with_names_and_sizes():
    conv1d = ScopedParameter("h.0.c_attn", (6, 8), IN_OUT)  # 6 inputs, 8 outputs
    message = r"'h\.0\.c_attn' has 6 inputs, which 4 does not divide.* 2:4\. Use sizes .*scope"
    with pytest.raises(ScopeError, match=message):
        OfInputs(2, 4).count(1, conv1d)


def test_another_density_than_the_name_says_is_refused():
    parameter = PARAMETERS[OUT_IN]
    OfInputs(2, 4).check_last(24, parameter)
    message = r"structure 2:4 keeps 24 of the 48 weights of 'linear', the run ends at 36\. .*=0\.5"
    with pytest.raises(ConfigError, match=message):
        OfInputs(2, 4).check_last(36, parameter)


def test_group_with_too_few_survivors_is_refused():
    parameter, mask = PARAMETERS[OUT_IN], everything(PARAMETERS[OUT_IN])
    mask[1, 4:7] = False
    with pytest.raises(
        ScopeError, match=r"'linear': cannot keep 2 weights of row 3, which has 1 s"
    ):
        OfInputs(2, 4).keep(drawn(parameter), mask, 24, parameter)


# ---- blocks, rows, columns -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", [(2, 2), (2, None), (None, 2), (1, 4)], ids=str)
def test_the_best_blocks_live_whole(kind, size):
    parameter, structure = PARAMETERS[kind], Blocks(*size)
    score, step = drawn(parameter).abs(), structure.step(parameter)
    num_blocks = parameter.num_weights // step
    num_kept = num_blocks // 2 * step
    mask = structure.keep(score, everything(parameter), num_kept, parameter)
    assert int(mask.sum()) == num_kept
    number, outputs, inputs = parameter.matrix_shape
    rows, columns = size[0] or outputs, size[1] or inputs
    sums = {}
    for i in range(number):
        for top in range(0, outputs, rows):
            for left in range(0, inputs, columns):
                part = (i, slice(top, top + rows), slice(left, left + columns))
                alive = parameter.matrices(mask)[part]
                assert alive.all() or not alive.any()
                total = float(parameter.matrices(score)[part].double().sum())
                sums.setdefault(bool(alive.any()), []).append(total)
    assert len(sums[True]) == num_blocks // 2
    assert min(sums[True]) >= max(sums[False])


def test_rows_of_heads_are_outputs_however_stored():
    parameter = ScopedParameter("c_attn", (4, 6), IN_OUT)  # 4 inputs, 3 heads of 2 outputs
    score = torch.tensor([[1.0, 1, 0, 0, 2, 2]]).expand(4, 6)
    mask = Blocks(2, None).keep(score, everything(parameter), 16, parameter)
    assert mask[0].int().tolist() == [1, 1, 0, 0, 1, 1]
    assert (mask == mask[0]).all()


def test_broken_blocks_are_refused():
    parameter, mask = PARAMETERS[OUT_IN], everything(PARAMETERS[OUT_IN])
    mask[0, 0] = False
    with pytest.raises(ScopeError, match="'linear' has blocks that are neither whole nor empty"):
        Blocks(2, 2).keep(drawn(parameter), mask, 4, parameter)


@pytest.mark.parametrize("structure", [OfInputs(2, 4), Blocks(2, 2)], ids=str)
@pytest.mark.parametrize("num_kept", [1, -12, 96])
def test_count_that_the_structure_cannot_have_is_refused(structure, num_kept):
    parameter = PARAMETERS[OUT_IN]
    with pytest.raises(ScopeError, match=rf"cannot keep {num_kept} weights in the structure"):
        structure.keep(drawn(parameter), everything(parameter), num_kept, parameter)


def test_diverged_scores_are_refused_by_name():
    parameter = PARAMETERS[OUT_IN]
    score = drawn(parameter)
    score[1, 1] = torch.nan
    for structure in (OfInputs(2, 4), Blocks(2, 2)):
        with pytest.raises(ScopeError, match="'linear' has NaN scores"):
            structure.keep(score, everything(parameter), 24, parameter)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("2:4", OfInputs(2, 4)),
        ("block:4x8", Blocks(4, 8)),
        ("rows:64", Blocks(64, None)),
        ("columns:64", Blocks(None, 64)),
    ],
)
def test_name_is_read_and_written(text, structure):
    assert make_structure(text) == structure
    assert str(structure) == text


@pytest.mark.parametrize("text", ["", "2", "2:", "block:4", "rows", "heads:64", "2:4:8", "-1:4"])
def test_unknown_form_is_answered_with_the_known_ones(text):
    with pytest.raises(ConfigError, match=f"structure is '{text}'; expected '2:4'"):
        make_structure(text)


@pytest.mark.parametrize("text", ["0:4", "4:4", "5:4", "0:0", "block:0x4", "rows:0", "columns:0"])
def test_sizes_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match=f"structure is '{text}'; expected"):
        make_structure(text)

"""The terms of Connectome-JEPA's loss, against computations by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from test_connectome_jepa import TOKENS, small_model
from torch.nn import functional

from hf_connectome.models.connectome_jepa.losses import jepa_loss, sigreg_loss, span_mask

CPU = torch.device("cpu")
WHOLE = {"num_directions": 64, "num_knots": 17, "most": 3.0}


# ---- spans ---------------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.integers(2, 70),
    st.floats(0.01, 0.99),
    st.floats(1.0, 9.0),
    st.integers(0, 2**30),
)
def test_number_of_masked_tokens_is_exact_in_every_row(rows, length, fraction, mean_span, seed):
    torch.manual_seed(seed)
    masked = span_mask(rows, length, fraction, mean_span, CPU)
    assert masked.shape == (rows, length)
    assert masked.sum(1).tolist() == [max(1, round(fraction * length))] * rows


def test_spans_have_the_mean_length_and_lie_anywhere():
    torch.manual_seed(0)
    masked = span_mask(4000, 100, 0.3, 4.0, CPU)
    share = masked.float().mean(0)
    assert float((share - 0.3).abs().max()) < 4.5 * (0.3 * 0.7 / 4000) ** 0.5
    begun = (masked & ~masked.roll(1, 1)).sum(1).float()
    # 8 spans and 70 free tokens on a ring: each span is followed at once by another in 7 of 77.
    assert float(begun.mean()) == pytest.approx(8 - 8 * 7 / 77, abs=0.05)
    assert int(begun.max()) == 8


def test_ways_to_mask_are_equally_likely():
    torch.manual_seed(1)
    ways = span_mask(6000, 5, 0.4, 1.0, CPU).long() @ torch.tensor([16, 8, 4, 2, 1])
    counts = ways.bincount(minlength=32)
    assert int((counts > 0).sum()) == 10  # 5 over 2
    assert counts[counts > 0].tolist() == pytest.approx([600] * 10, abs=4.5 * 600**0.5)


# ---- prediction ----------------------------------------------------------------------------------


def test_jepa_is_the_mean_square_at_the_masked_tokens_and_trains_the_prediction_alone():
    predicted = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [0.0, -1.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 0.0], [5.0, 5.0], [2.0, 1.0]]], requires_grad=True)
    loss = jepa_loss(predicted, target, torch.tensor([[True, False, True]]))
    assert float(loss.detach()) == pytest.approx((1 + 4 + 4 + 4) / 4)
    loss.backward()
    assert target.grad is None
    assert predicted.grad.tolist() == [[[0.5, 1.0], [0.0, 0.0], [-1.0, -1.0]]]


def test_jepa_without_a_masked_token_is_zero():
    states = torch.randn(1, 3, 2)
    assert float(jepa_loss(states, states + 1, torch.zeros(1, 3, dtype=torch.bool))) == 0.0


# ---- SIGReg --------------------------------------------------------------------------------------


def test_sigreg_of_one_point_in_one_dimension_is_the_trapezoid_sum_by_hand():
    point = 0.7
    loss = sigreg_loss(
        torch.tensor([[point]]), torch.tensor([True]), num_directions=3, num_knots=4, most=3.0
    )
    expected = 0.0
    for t, width in ((0.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.0, 1.0)):  # both halves at once
        normal = math.exp(-t * t / 2)
        distance = (math.cos(t * point) - normal) ** 2 + math.sin(t * point) ** 2
        expected += width * normal * distance
    assert float(loss) == pytest.approx(expected, rel=1e-5)  # a = +1 and a = -1 give the same


def test_sigreg_is_the_integral_of_epps_and_pulley_times_the_number_of_points():
    points = torch.tensor([[0.3], [-1.2], [2.0]])

    def integrand(t):
        characteristic = (
            sum(complex(math.cos(t * x), math.sin(t * x)) for x in (0.3, -1.2, 2.0)) / 3
        )
        return abs(characteristic - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    loss = sigreg_loss(points, torch.ones(3), num_directions=2, num_knots=301, most=3.0)
    assert float(loss) == pytest.approx(3 * quad(integrand, -3, 3)[0], rel=1e-4)


def test_sigreg_looks_along_unit_directions_whatever_the_width():
    torch.manual_seed(0)
    narrow, wide = (
        float(sigreg_loss(torch.randn(4000, width), torch.ones(4000), **WHOLE)) for width in (2, 64)
    )
    # Of standard normal points, the statistic does not grow with their number or their width.
    assert 0.2 < narrow / wide < 5
    squeezed = float(sigreg_loss(0.1 * torch.randn(4000, 64), torch.ones(4000), **WHOLE))
    assert squeezed > 100 * wide


def test_sigreg_does_not_see_what_is_not_counted():
    torch.manual_seed(0)
    points, counted = torch.randn(40, 5), torch.arange(40) < 25
    losses = []
    for states, mask in ((points, counted), (points[:25], counted[:25])):
        torch.manual_seed(7)
        losses.append(float(sigreg_loss(states, mask, **WHOLE)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_sigreg_pulls_collapsed_states_apart():
    torch.manual_seed(0)
    states = (0.01 * torch.randn(64, 4)).requires_grad_()
    optimizer = torch.optim.Adam([states], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        sigreg_loss(states, torch.ones(64), **WHOLE).backward()
        optimizer.step()
    assert 0.5 < float(states.detach().std()) < 1.5


# ---- in the model --------------------------------------------------------------------------------


def cross_entropy(model, tokens):
    logits = model(tokens).logits[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, tokens[:, 1:].flatten())


@torch.no_grad()
def test_loss_in_evaluation_is_the_cross_entropy_alone():
    model = small_model()
    output = model(TOKENS, labels=TOKENS)
    torch.testing.assert_close(output.loss, cross_entropy(model, TOKENS))
    assert output.jepa is None
    assert output.sigreg is None


@torch.no_grad()
def test_loss_in_training_is_the_sum_of_its_weighted_terms():
    model = small_model(jepa_weight=0.5, sigreg_weight=0.01).train()
    torch.manual_seed(3)
    output = model(TOKENS, labels=TOKENS)
    torch.manual_seed(3)
    config = model.config
    masked = span_mask(2, 8, config.mask_fraction, config.mask_span, CPU)
    states = model.model(TOKENS).last_hidden_state
    holes = model.model(TOKENS, masked=masked).last_hidden_state
    embeds = model.model.embed_tokens(TOKENS)
    embeds[masked] = model.model.mask_embedding
    torch.testing.assert_close(model.model(inputs_embeds=embeds).last_hidden_state, holes)
    torch.testing.assert_close(output.cross_entropy, cross_entropy(model, TOKENS))
    torch.testing.assert_close(output.jepa, 0.5 * jepa_loss(holes, states, masked))
    torch.testing.assert_close(output.sigreg, 0.01 * sigreg_loss(states, torch.ones(2, 8), **WHOLE))
    torch.testing.assert_close(output.loss, output.cross_entropy + output.jepa + output.sigreg)


@torch.no_grad()
def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    model = small_model(jepa_weight=0.0, sigreg_weight=0.0).train()
    calls = []
    monkeypatch.setattr(model.model, "forward", spy(model.model.forward, calls))
    output = model(TOKENS, labels=TOKENS)
    assert len(calls) == 1
    assert torch.equal(output.loss, output.cross_entropy)
    assert "jepa" not in output
    assert "sigreg" not in output


def spy(function, calls):
    def called(*args, **kwargs):
        calls.append(kwargs)
        return function(*args, **kwargs)

    return called


@torch.no_grad()
def test_padding_is_in_no_term():
    model = small_model(sigreg_weight=0.01).train()
    padded, labels = functional.pad(TOKENS, (0, 4)), functional.pad(TOKENS, (0, 4), value=-100)
    mask = functional.pad(torch.ones_like(TOKENS), (0, 4))
    seen = []
    for filler in (0, 11):
        torch.manual_seed(5)
        padded[:, 8:] = filler
        output = model(padded, attention_mask=mask, labels=labels)
        seen.append([float(output[name]) for name in ("cross_entropy", "jepa", "sigreg")])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


@torch.no_grad()
def test_micro_batches_share_the_terms_as_they_share_the_labels():
    model = small_model(sigreg_weight=0.01).train()
    torch.manual_seed(5)
    whole = model(TOKENS[:1], labels=TOKENS[:1])
    torch.manual_seed(5)
    part = model(TOKENS[:1], labels=TOKENS[:1], num_items_in_batch=torch.tensor(28))
    for name in ("loss", "cross_entropy", "jepa", "sigreg"):
        torch.testing.assert_close(part[name], whole[name] * 7 / 28)

"""The two terms that training adds to the cross-entropy: prediction of masked spans, and SIGReg."""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(
    num_rows: int, length: int, fraction: float, mean_span: float, device: torch.device
) -> Tensor:
    """Draw spans of tokens to mask, from torch's global generator.

    Exactly ``round(fraction * length)`` tokens of every row, at least one, in as many spans as make
    their mean length ``mean_span``; all ways to cut and place these spans are equally likely. They
    may touch, and lie on a ring, so that the ends of a row are masked as often as its middle.

    Returns:
        ``(num_rows, length)`` bool, True where a token is masked.

    Source: openai/parameter-golf pull request 1152: 30 %, mean 4. There the lengths are exponential
    and the last span is not cut, so the number of masked tokens varies.
    """
    num_masked = max(1, round(fraction * length))
    num_spans = max(1, round(num_masked / mean_span))
    is_start = torch.rand(num_rows, num_masked, device=device)
    is_start[:, 0] = 2.0  # a span begins with the first masked token
    starts = is_start.argsort(1, descending=True)[:, :num_spans]
    span_of = torch.zeros(num_rows, num_masked, dtype=torch.long, device=device)
    span_of = span_of.scatter(1, starts, 1).cumsum(1) - 1  # (rows, masked)
    spans = torch.zeros(num_rows, num_spans, dtype=torch.long, device=device)
    spans = spans.scatter_add(1, span_of, torch.ones_like(span_of))
    # Spans and single unmasked tokens, in random order.
    num_items = length - num_masked + num_spans
    places = torch.rand(num_rows, num_items, device=device).argsort(1)[:, :num_spans]
    sizes = torch.ones(num_rows, num_items, dtype=torch.long, device=device)
    is_span = torch.zeros(num_rows, num_items, dtype=torch.bool, device=device)
    sizes, is_span = sizes.scatter(1, places, spans), is_span.scatter(1, places, True)
    masked = is_span.reshape(-1).repeat_interleave(sizes.reshape(-1), output_size=num_rows * length)
    shifts = torch.randint(length, (num_rows, 1), device=device)
    around = (torch.arange(length, device=device) + shifts) % length
    return masked.reshape(num_rows, length).gather(1, around)


def jepa_loss(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Return the mean squared difference at the masked tokens; the target gets no gradient.

    Args:
        predicted: ``(rows, length, width)``, what the model makes of the text with holes.
        target: the same shape, what it makes of the whole text.
        masked: ``(rows, length)`` bool; without any True the loss is 0.

    Source: openai/parameter-golf pull request 1152, after Assran et al. 2023 (arXiv:2301.08243).
    """
    squares = (predicted - target.detach()).float().square().mean(-1)  # (rows, length)
    return (squares * masked).sum() / masked.sum().clamp(min=1)


def sigreg_loss(
    states: Tensor, counted: Tensor, *, num_directions: int, num_knots: int, most: float
) -> Tensor:
    """Compare the states with a standard normal distribution, along random directions.

    For a unit direction a and knots t from 0 to ``most``, the squared distance of the empirical
    characteristic function of x.a to that of N(0, 1) is integrated over t from -``most`` to
    ``most`` under the weight exp(-t^2 / 2), by the trapezoid rule; times the number of states; mean
    over the directions.

    Args:
        states: ``(..., width)``, any float type.
        counted: ``(...)`` bool, which of them are states of text.
        num_directions: drawn from torch's global generator at every call.
        num_knots: at least 2.
        most: where the integral ends.

    Source: Balestriero & LeCun 2025, LeJEPA (arXiv:2511.08544), after Epps & Pulley 1983. The
    formula is as in their code; the text was not read. The published Connectome-JEPA leaves the
    number of states out.
    """
    points = states.reshape(-1, states.shape[-1]).float()  # (N, width)
    weight = counted.reshape(-1, 1).float()
    num = weight.sum().clamp(min=1)
    directions = torch.randn(points.shape[1], num_directions, device=points.device)
    projected = points @ (directions / directions.norm(dim=0, keepdim=True))  # (N, directions)
    knots = torch.linspace(0.0, most, num_knots, device=points.device)
    step = most / (num_knots - 1)
    total = torch.zeros(num_directions, device=points.device)
    for number, knot in enumerate(knots):
        normal = torch.exp(-knot.square() / 2)
        real = ((projected * knot).cos() * weight).sum(0) / num
        imaginary = ((projected * knot).sin() * weight).sum(0) / num
        width = step if number in (0, num_knots - 1) else 2 * step  # the half below 0 is its mirror
        total = total + width * normal * ((real - normal).square() + imaginary.square())
    return num * total.mean()

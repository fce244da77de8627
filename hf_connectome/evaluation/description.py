"""Description length: after how much text has what was inherited paid for its own bits?

A model that predicts text one batch after the other, each before it learns from it, is a code for
that text; its length is the sum of the losses. A child that inherits has a shorter code than the
dense child of the same seed, but the inherited bits must be sent first.

The loss on the next training batch is taken from the held-out curve, linear between evaluations.
That holds as far as each training token is met for the first time and held-out text is like the
training text. Evaluations that lie far apart overrate a difference that falls fast at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import Estimate, mean_estimate

LossPair = tuple[Sequence[float], Sequence[float]]
"""Held-out losses of the dense arm and of another, nats per token, at the same steps."""


@dataclass(frozen=True)
class DescriptionLength:
    """What an arm saves on the code of its training text, beside what it inherits."""

    num_tokens: float
    """Training tokens that each seed predicted."""
    saved_bits: Estimate
    """Code length of the dense arm minus that of this one over all of them; bits inherited are not
    yet taken off."""
    share_paid: float
    """Mean of the saved bits / inherited bits; 1 or more: paid for within the run."""
    tokens_to_break_even: list[float | None]
    """Per seed, the tokens after which as many bits are saved as inherited; None: not in the run.
    """
    break_even: Estimate | None
    """Mean of these; None unless every seed breaks even."""


def description_length(
    steps: Sequence[float], losses: Sequence[LossPair], tokens_per_step: int, bits: float
) -> DescriptionLength:
    """Weigh what is saved on predicted tokens against the bits inherited.

    Args:
        steps: Optimizer steps of all curves, 0 first.
        losses: One pair per seed.
        tokens_per_step: Tokens that a step predicts, over all processes.
        bits: Inherited, above 0.

    Raises:
        ConfigError: Curves that are no curves or have other steps; no seed; no token or no bit.

    Source: Dawid 1984, "Present position and potential developments: the prequential approach",
    J. R. Stat. Soc. A 147; as the code length of deep networks, Blier & Ollivier 2018, "The
    Description Length of Deep Learning Models", section 3.4.
    """
    if bits <= 0 or tokens_per_step < 1:
        raise ConfigError(
            f"{bits} bits and {tokens_per_step} tokens per step; expected something inherited and "
            "at least 1 token per step. An arm that inherits nothing has nothing to pay for."
        )
    saved = [saved_bits(steps, *pair, tokens_per_step) for pair in losses]
    total = mean_estimate([curve[-1] for curve in saved])
    even = [_break_even(steps, *pair, tokens_per_step, bits) for pair in losses]
    reached = [tokens for tokens in even if tokens is not None]
    return DescriptionLength(
        num_tokens=(steps[-1] - steps[0]) * tokens_per_step,
        saved_bits=total,
        share_paid=total.value / bits,
        tokens_to_break_even=even,
        break_even=mean_estimate(reached) if len(reached) == len(even) else None,
    )


def saved_bits(
    steps: Sequence[float],
    dense_losses: Sequence[float],
    losses: Sequence[float],
    tokens_per_step: int,
) -> list[float]:
    """Sum up how many bits shorter the code is than the dense arm's, up to each of ``steps``.

    Args:
        steps: Increasing.
        dense_losses: Of the dense arm, nats per token, one a step.
        losses: Of the other arm.
        tokens_per_step: Tokens that a step predicts.

    Returns:
        Bits by the trapezoidal rule, 0 first; negative where the dense arm is ahead.

    Raises:
        ConfigError: Unequal lengths, no step, steps that do not increase, a loss not finite.

    Example:
        >>> saved = saved_bits([0, 100], [3 * math.log(2)] * 2, [2 * math.log(2)] * 2, 10)
        >>> [round(bits) for bits in saved]
        [0, 1000]
    """
    gains = _gains(steps, dense_losses, losses)
    saved = [0.0]
    for (before, after), (gain, next_gain) in zip(pairwise(steps), pairwise(gains), strict=True):
        saved.append(saved[-1] + (after - before) * tokens_per_step * (gain + next_gain) / 2)
    return saved


def _break_even(
    steps: Sequence[float],
    dense_losses: Sequence[float],
    losses: Sequence[float],
    tokens_per_step: int,
    bits: float,
) -> float | None:
    """Return the tokens after which ``bits`` are saved for the first time."""
    gains = _gains(steps, dense_losses, losses)
    saved = saved_bits(steps, dense_losses, losses, tokens_per_step)
    for index, (gain, next_gain) in enumerate(pairwise(gains)):
        tokens = (steps[index + 1] - steps[index]) * tokens_per_step
        further = _first_reached(gain, (next_gain - gain) / (2 * tokens), bits - saved[index])
        if further is not None and further <= tokens * (1 + 1e-12):
            return (steps[index] - steps[0]) * tokens_per_step + further
    return None


def _first_reached(rate: float, bend: float, needed: float) -> float | None:
    """Return the least x > 0 with ``rate * x + bend * x^2 = needed``, where needed > 0."""
    root = rate**2 + 4 * bend * needed
    if root < 0 or rate + math.sqrt(root) <= 0:
        return None
    return 2 * needed / (rate + math.sqrt(root))


def _gains(
    steps: Sequence[float], dense_losses: Sequence[float], losses: Sequence[float]
) -> list[float]:
    """Return by how many bits a token the dense arm is worse, at each step."""
    if not len(steps) == len(dense_losses) == len(losses) > 0:
        raise ConfigError(
            f"{len(steps)} steps come with {len(dense_losses)} losses of the dense arm and "
            f"{len(losses)} of the other; expected one of each per step. Evaluate all arms at the "
            "same steps."
        )
    if any(after <= before for before, after in pairwise(steps)):
        raise ConfigError("steps do not increase; expected one evaluation a step, in order.")
    gains = [(d - o) / math.log(2) for d, o in zip(dense_losses, losses, strict=True)]
    for step, gain in zip(steps, gains, strict=True):
        if not math.isfinite(gain):
            raise ConfigError(f"the losses at step {step} differ by {gain}; expected numbers.")
    return gains

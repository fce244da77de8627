"""Does a criterion keep its contract?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.calibration import MovementSums, measure
from hf_connectome.criteria import STATISTICS, CriterionContext
from hf_connectome.criteria.base import MOVEMENT
from hf_connectome.seeding import generator
from hf_connectome.selection import keep
from hf_connectome.testing.common import check_source, example_weights, expect, twice

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.calibration.subject import Batch
    from hf_connectome.connectome import Connectome
    from hf_connectome.criteria import Criterion, Statistics


def check_criterion(criterion: Criterion) -> None:
    """Check that a criterion keeps its contract (:class:`~hf_connectome.criteria.Criterion`).

    Scores have the weight's shape, are floating-point and finite on survivors, are the same
    whenever seed, name and generation are, and can be ranked; weight, mask and torch's global
    generator stay as they are. Weights are float32, bfloat16 and float16, 1-D to 3-D, with dead
    ones among them, all zero, and with one or no survivor. What it needs beside them is drawn at
    random; :func:`measured` has it measured on a model.

    Raises:
        AssertionError: says what is wrong, and with which weights.

    Example:
        >>> from hf_connectome.criteria import Magnitude
        >>> check_criterion(Magnitude())
    """
    check_source(criterion)
    for kind in criterion.needs:
        expect(
            kind in STATISTICS,
            f"{type(criterion).__name__} needs {kind!r}; expected one or "
            f"more of {', '.join(STATISTICS)}.",
        )
    for case, weight, mask in example_weights():
        label = f"{type(criterion).__name__}.score with {case}"
        statistics = {kind: _statistic(kind, weight.shape) for kind in criterion.needs}
        context = CriterionContext("layer.weight", seed=7, generation=2, statistics=statistics)
        before, mask_before = weight.clone(), mask.clone()

        def score(
            weight: Tensor = weight, mask: Tensor = mask, context: CriterionContext = context
        ) -> Tensor:
            return criterion.score(weight, mask, context)

        first, second = twice(score, label)
        _check_score(first, mask, label)
        expect(torch.equal(weight, before), f"{label} changed the weight in place.")
        expect(torch.equal(mask, mask_before), f"{label} changed the mask in place.")
        expect(
            torch.equal(first[mask], second[mask]),
            f"{label} gave other scores for the same seed, name and generation. Draw from "
            "hf_connectome.seeding.generator(context.seed, context.name, context.generation).",
        )
        num_survivors = int(mask.sum())
        kept = keep(first, mask, num_survivors // 2)
        expect(
            int(kept.sum()) == num_survivors - num_survivors // 2,
            f"{label}: of {num_survivors} survivors {num_survivors // 2} were to go, "
            f"{int(kept.sum())} are left.",
        )


def _statistic(kind: str, shape: torch.Size) -> Tensor:
    """Draw values of the range that a statistic has."""
    values = torch.randn(shape, generator=generator(0, kind))
    if kind == "correlation":
        return values.tanh().abs()
    return values.abs() if kind == "feature_norm" or kind.endswith("squared") else values


def measured(
    criterion: Criterion, model: nn.Module, connectome: Connectome, batches: Sequence[Batch]
) -> Statistics:
    """Measure what a criterion needs, movement in one step of SGD for each batch on a copy.

    Args:
        criterion: says what it needs.
        model: the host under ``connectome``; not changed.
        connectome: names the parameters.
        batches: keyword arguments of the model, with labels.

    Returns:
        What ``evolution.next_generation`` takes.
    """
    needs = [kind for kind in criterion.needs if kind != MOVEMENT]
    found = dict(measure(model, connectome, batches, needs))
    if MOVEMENT in criterion.needs:
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
        sums = MovementSums(connectome)
        sums.attach(twin, optimizer)
        for batch in batches:
            optimizer.zero_grad()
            twin(**batch).loss.backward()
            optimizer.step()
        found[MOVEMENT] = sums.take()
    return found


def _check_score(score: Any, mask: Tensor, label: str) -> None:
    expect(isinstance(score, torch.Tensor), f"{label} returned a {type(score).__name__}.")
    expect(
        score.shape == mask.shape,
        f"{label} has shape {tuple(score.shape)}; expected the weight's, {tuple(mask.shape)}.",
    )
    expect(score.is_floating_point(), f"{label} is {score.dtype}; expected a floating type.")
    bad = int((~torch.isfinite(score[mask])).sum())
    expect(bad == 0, f"{label} is not finite on {bad} of {int(mask.sum())} survivors.")

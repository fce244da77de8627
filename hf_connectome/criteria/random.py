"""Keep weights by lot: the control for every criterion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("random")
class Random(Criterion):
    """Uniform scores, drawn afresh for every parameter and generation."""

    paper = "Control; Frankle & Carbin 2019 prune at random beside magnitude"
    citation = "arXiv:1803.03635"

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return uniform float32 in [0, 1) from the seed, the name and the generation."""
        del mask
        draw = generator(context.seed, context.name, "criterion", context.generation)
        return torch.rand(weight.shape, generator=draw)

"""CHTs: as CHT, but what goes and what comes is drawn, with chances by its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.rewiring.base import RewiringContext, gumbel, rewirings
from hf_connectome.rewiring.cht import CHT
from hf_connectome.rewiring.topology import link_scores

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-5
"""What every free place scores more, so that one without paths has a chance too."""


@rewirings.register("chts")
@dataclass(frozen=True, kw_only=True)
class CHTs(CHT):
    """Keep a sample with chances ``|w|^T``, T growing; grow one with chances by the CH score.

    Source:
        arXiv:2501.19107, as published in its code: T from 1 to 9, or relative importance instead of
        ``|w|``; 1e-5 beside the score. Its language-model code grows by the highest scores instead,
        whatever it is told; ours draws, as its other code does.
    """

    paper = "Zhang et al. 2025, Brain network science modelling of sparse neural networks (CHTs)"
    citation = "arXiv:2501.19107"

    relative: bool = False
    """Whether ``|w|`` over its column's sum plus ``|w|`` over its row's sum stands for ``|w|``."""
    first_power: float = 1.0
    """T at the start."""
    last_power: float = 9.0
    """T at the last update."""

    def keep(self, weight: Tensor, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return T log of the importance, plus Gumbel noise."""
        importance = weight.double().abs() * mask
        if self.relative:
            tiny = torch.finfo(torch.float64).tiny
            columns, rows = importance.sum(0, keepdim=True), importance.sum(1, keepdim=True)
            importance = importance / columns.clamp(min=tiny) + importance / rows.clamp(min=tiny)
        power = self.first_power + (self.last_power - self.first_power) * context.progress
        least = torch.finfo(torch.float32).tiny
        return power * importance.clamp(min=least).log() + gumbel(mask.shape, context.draw("keep"))

    def grow(self, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return the log of the topology's scores, plus Gumbel noise."""
        chance = link_scores(mask, self.rule).double() + _LEAST
        return chance.log() + gumbel(mask.shape, context.draw("grow"))

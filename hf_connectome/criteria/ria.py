"""Keep the weights that are large for their row and their column, given their input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor

_POWER = 0.5
_LEAST = 1e-30


@criteria.register("ria")
class RelativeImportance(Criterion):
    """``(|w| / sum of its column + |w| / sum of its row) x (input norm)^0.5``.

    No row loses all its weights merely because it is small. A row is the first dimension; the sum
    is the same for a transposed matrix.

    Source:
        Zhang et al. 2024, Plug-and-Play: relative importance and activations, power a = 0.5.
    """

    paper = "Zhang et al. 2024, Plug-and-Play (RIA)"
    citation = "ICLR 2024, poster 18549"
    needs = ("feature_norm",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 scores; the sums are over survivors, for dead weights are 0."""
        magnitude = (weight.detach().float().abs() * mask).reshape(len(weight), -1)  # (R, C)
        of_row = magnitude / magnitude.sum(1, keepdim=True).clamp(min=_LEAST)
        of_column = magnitude / magnitude.sum(0, keepdim=True).clamp(min=_LEAST)
        relative = (of_row + of_column).reshape(weight.shape)
        return relative * context.statistic("feature_norm").pow(_POWER)

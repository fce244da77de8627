"""Keep the weights that training moves away from 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import MOVEMENT, Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("movement")
class Movement(Criterion):
    """``-sum of g w`` over the steps of the generation: positive where ``|w|`` was made to grow.

    It needs the history of a training and cannot be had from the weights at its two ends;
    ``|w_end| - |w_start|`` is another criterion, and not offered.

    Source:
        Sanh et al. 2020, Movement Pruning: the scores accumulate ``-(dL/dW) W`` in training. There
        they rank while weights and scores are learned together; here once, at its end. The
        gradients are those that the optimizer gets, so after clipping.
    """

    paper = "Sanh et al. 2020, Movement Pruning"
    citation = "arXiv:2005.07683"
    needs = (MOVEMENT,)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return the sums, float32."""
        del weight, mask
        return context.statistic(MOVEMENT)

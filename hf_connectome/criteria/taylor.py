"""Keep the weights without which the loss of a batch would change most, to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("taylor")
class Taylor(Criterion):
    """The mean over batches of ``(g w)^2``, g the gradient of one batch's loss.

    It differs from ``snip`` in the square alone, which is taken before the mean: a gradient that
    changes its sign from batch to batch counts here and cancels there. With one batch both rank
    equally; with batches of one example it is w^2 times ``fisher``.

    Source:
        Molchanov et al. 2019, Importance Estimation: the squared loss change of removing a
        parameter, to first order, averaged over mini-batches.
    """

    paper = "Molchanov et al. 2019, Importance Estimation for Neural Network Pruning"
    citation = "arXiv:1906.10771"
    needs = ("batch_gradient_squared",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return the root of the mean, float32: the same ranks, and no underflow of a square."""
        del mask
        root = context.statistic("batch_gradient_squared").sqrt()
        return weight.detach().float().abs() * root

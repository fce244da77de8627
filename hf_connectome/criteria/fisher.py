"""Keep the weights on which what the model says of each example depends most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("fisher")
class Fisher(Criterion):
    """The mean over examples of ``g^2``: the diagonal of the empirical Fisher information.

    Empirical: g is of the loss of the labels, not of labels drawn from the model. The weight does
    not enter; w^2 times it is ``taylor`` with batches of one example.

    Source:
        Sung et al. 2021, FISH Mask: the parameters of largest Fisher information are kept in play.
    """

    paper = "Sung et al. 2021, FISH Mask"
    citation = "arXiv:2111.09839"
    needs = ("example_gradient_squared",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 means."""
        del weight, mask
        return context.statistic("example_gradient_squared")

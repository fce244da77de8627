"""Keep the weights that carry the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("grasp")
class Grasp(Criterion):
    """``w (H g)``: by how much half the squared gradient norm falls without the weight.

    Signed: a weight whose removal would raise the norm goes first. The gradient and the Hessian
    are those of the weights in scope.

    Source:
        Wang et al. 2020, GraSP: ``S(-w) = -w (H g)``, of which the highest are removed; turned
        around here, for higher is kept. Theirs is taken of a fresh network.
    """

    paper = "Wang et al. 2020, Picking Winning Tickets (GraSP)"
    citation = "arXiv:2002.07376"
    needs = ("hessian_gradient",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 products."""
        del mask
        return weight.detach().float() * context.statistic("hessian_gradient")

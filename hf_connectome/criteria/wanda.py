"""Keep the weights that are large and have a large input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("wanda")
class Wanda(Criterion):
    """``|w| x the L2 norm of its input``: how far the output moves without the weight.

    Meant to be compared within each output row: ``selection="per-row"``.

    Source:
        Sun et al. 2023, Wanda: ``|W_ij| ||X_j||_2``, ranked within each output.
    """

    paper = "Sun et al. 2023, Wanda"
    citation = "arXiv:2306.11695"
    needs = ("feature_norm",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 products."""
        del mask
        return weight.detach().float().abs() * context.statistic("feature_norm")

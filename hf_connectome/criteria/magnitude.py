"""Keep the weights of largest absolute value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("magnitude")
class Magnitude(Criterion):
    """``|w|``: the paper's criterion.

    Source:
        Kotar & Tuckute 2025: the weakest 20 % of the survivors of each tensor are removed.
    """

    paper = "Kotar & Tuckute 2025, Model Connectomes"
    citation = "arXiv:2504.21047"
    by_weight = True

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return the absolute values, in the weight's dtype."""
        del mask, context
        return weight.detach().abs()

"""Keep the weights between units that are active together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("hebbian")
class Hebbian(Criterion):
    """``|correlation|`` of the input and the output unit that a weight connects.

    The weight itself does not enter, so it scores connections that are not there as well.

    Source:
        G2GNet 2025: free connections are grown where activities before and after correlate most.
        Ours: the same score says which stay.
    """

    paper = "G2GNet 2025 (Hebbian growth)"
    citation = "arXiv:2508.14140"
    needs = ("correlation",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 in [0, 1], for a tied parameter up to the root of its uses."""
        del weight, mask
        return context.statistic("correlation")

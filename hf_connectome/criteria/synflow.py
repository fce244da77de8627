"""Keep the weights through which most paths lead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("synflow")
class SynFlow(Criterion):
    """``|w dR/dw|``, R the summed output of a network whose weights in scope are all ``|w|``.

    Where it is the whole pruning, it takes many rounds: a hundred of
    :func:`hf_connectome.evolution.prune_in_rounds` with ``selection="global"``.

    Source:
        Tanaka et al. 2020, SynFlow: an input of ones, 100 exponential rounds. The absolute values
        are of the weights in scope alone, not of norms and their running statistics.
    """

    paper = "Tanaka et al. 2020, SynFlow"
    citation = "arXiv:2006.05467"
    needs = ("synaptic_flow",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 absolute products."""
        del mask
        return (weight.detach().float() * context.statistic("synaptic_flow")).abs()

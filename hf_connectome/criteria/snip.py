"""Keep the weights to which the loss of all batches together is most sensitive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria

if TYPE_CHECKING:
    from torch import Tensor


@criteria.register("snip")
class Snip(Criterion):
    """``|g w|``, g the gradient of the mean loss over all batches.

    Opposite gradients of two batches cancel, unlike in ``taylor``. SNIP's own use is on a fresh
    network, before any training (:func:`hf_connectome.evolution.prune_in_rounds`); at the end of a
    training g is near 0, and what is left of it is noise.

    Source:
        Lee et al. 2019, SNIP: ``|g w|`` at initialisation, over its sum, which changes no rank.
    """

    paper = "Lee et al. 2019, SNIP"
    citation = "arXiv:1810.02340"
    needs = ("gradient",)

    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Return float32 absolute products."""
        del mask
        return (weight.detach().float() * context.statistic("gradient")).abs()

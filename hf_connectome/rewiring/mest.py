"""MEST: weights that are small and about to stay so go, new links come by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.rewiring.base import RewiringContext, rewirings
from hf_connectome.rewiring.set import SET

if TYPE_CHECKING:
    from torch import Tensor


@rewirings.register("mest")
@dataclass(frozen=True, kw_only=True)
class MEST(SET):
    """Keep by ``|w| + 0.01 |gradient|``, grow uniformly; the replaced part is annealed.

    Source:
        Formula as in Yuan et al. 2021 (MEST, elastic mutation); its text was not read for this
        module. Its variant that holds a higher density at first is not implemented.
    """

    paper = "Yuan et al. 2021, MEST: Accurate and Fast Memory-Economic Sparse Training"
    citation = "arXiv:2110.14032"
    needs_gradient = True

    annealed: bool = True
    gradient_share: float = 0.01
    """What a unit of gradient counts beside a unit of weight."""

    def keep(self, weight: Tensor, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return ``|w| + gradient_share x |gradient|``."""
        del mask
        assert context.gradient is not None
        return weight.abs() + self.gradient_share * context.gradient.abs()

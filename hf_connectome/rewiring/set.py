"""SET: the smallest weights go, new links come by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.rewiring.base import Rewiring, RewiringContext, rewirings

if TYPE_CHECKING:
    from torch import Tensor


@rewirings.register("set")
@dataclass(frozen=True, kw_only=True)
class SET(Rewiring):
    """Keep by ``|w|``, grow uniformly; the replaced part stays the same.

    Source:
        Formula as in Mocanu et al. 2018; its text was not read for this module. They remove the
        smallest positive and the largest negative weights, which is by magnitude but for the
        balance of signs.
    """

    paper = "Mocanu et al. 2018, Scalable training of artificial neural networks (SET)"
    citation = "doi:10.1038/s41467-018-04316-3"

    def grow(self, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return uniform float64 in [0, 1)."""
        return torch.rand(mask.shape, generator=context.draw("grow"), dtype=torch.float64)

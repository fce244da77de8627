"""RigL: the smallest weights go, new links come where the gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.rewiring.base import Rewiring, RewiringContext, rewirings

if TYPE_CHECKING:
    from torch import Tensor


@rewirings.register("rigl")
@dataclass(frozen=True, kw_only=True)
class RigL(Rewiring):
    """Keep by ``|w|``, grow by ``|gradient|``; the replaced part falls along half a cosine.

    Source:
        Formula as in Evci et al. 2020; its text was not read for this module. Values there: 0.3 of
        the links every 100 steps, up to 75 % of the training.
    """

    paper = "Evci et al. 2020, Rigging the Lottery (RigL)"
    citation = "arXiv:1911.11134"
    needs_gradient = True

    annealed: bool = True

    def grow(self, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return the absolute gradients."""
        del mask
        assert context.gradient is not None
        return context.gradient.abs()

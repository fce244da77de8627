"""CHT: the smallest weights go, new links come where the wiring's own topology expects them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import UnknownNameError, did_you_mean
from hf_connectome.rewiring.base import Rewiring, RewiringContext, rewirings
from hf_connectome.rewiring.topology import MOST_NODES, RULES, link_scores

if TYPE_CHECKING:
    from torch import Tensor

_TIES = 1e-9
"""Below what two scores differ by; places of equal score are drawn by lot."""


@rewirings.register("cht")
@dataclass(frozen=True, kw_only=True)
class CHT(Rewiring):
    """Keep by ``|w|``, grow by the Cannistraci-Hebb score; dead chains go first.

    Source:
        Formula as in Zhang et al. 2024 and arXiv:2501.19107, as its code has it; the texts were
        not read for this module.
    """

    paper = "Zhang et al. 2024, Epitopological learning and Cannistraci-Hebb network shape (CHT)"
    citation = "openreview:iayEcORsGd"
    most_nodes = MOST_NODES

    chains: bool = True
    rule: str = "ch2"
    """The score of a missing link, one of topology.RULES."""

    def __post_init__(self) -> None:
        """Refuse an unknown rule."""
        super().__post_init__()
        if self.rule not in RULES:
            raise UnknownNameError(f"unknown rule {self.rule!r}. {did_you_mean(self.rule, RULES)}")

    def grow(self, mask: Tensor, context: RewiringContext) -> Tensor:
        """Return the topology's scores in float64, ties by lot."""
        draw = context.draw("grow")
        lot = torch.rand(mask.shape, generator=draw, dtype=torch.float64)
        return link_scores(mask, self.rule) + _TIES * lot

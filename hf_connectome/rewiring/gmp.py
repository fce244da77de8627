"""GMP: the network is thinned out; no link is ever born."""

from __future__ import annotations

from dataclasses import dataclass

from hf_connectome.rewiring.base import Thinning, rewirings
from hf_connectome.rewiring.set import SET


@rewirings.register("gmp")
@dataclass(frozen=True, kw_only=True)
class GMP(SET, Thinning):
    """Thin each matrix by its smallest ``|w|``; nothing is replaced.

    Source:
        Formula as in Zhu & Gupta 2017; its text was not read for this module.
    """

    paper = "Zhu & Gupta 2017, To prune, or not to prune (gradual magnitude pruning)"
    citation = "arXiv:1710.01878"

    fraction: float = 0.0

    def _is_fraction(self, fraction: float) -> bool:
        return fraction == 0.0

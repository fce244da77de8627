"""GraNet: the network is thinned out, and beside it links move as in RigL."""

from __future__ import annotations

from dataclasses import dataclass

from hf_connectome.rewiring.base import Thinning, rewirings
from hf_connectome.rewiring.rigl import RigL


@rewirings.register("granet")
@dataclass(frozen=True, kw_only=True)
class GraNet(RigL, Thinning):
    """Thin by the smallest ``|w|`` of all matrices together, then replace as RigL does.

    Source:
        Formula as in Liu et al. 2021; its text was not read for this module. The cubic schedule is
        that of Zhu & Gupta 2017; 0.5 of the links are replaced at first, along half a cosine.
    """

    paper = "Liu et al. 2021, Sparse Training via Boosting Pruning Plasticity (GraNet)"
    citation = "arXiv:2106.10404"
    thins_globally = True

    fraction: float = 0.5

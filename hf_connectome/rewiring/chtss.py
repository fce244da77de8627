"""CHTss: as CHTs, while the network is thinned out along a sigmoid."""

from __future__ import annotations

from dataclasses import dataclass

from hf_connectome.rewiring.base import Thinning, rewirings
from hf_connectome.rewiring.chts import CHTs
from hf_connectome.schedule import SigmoidSchedule


@rewirings.register("chtss")
@dataclass(frozen=True, kw_only=True)
class CHTss(CHTs, Thinning):
    """CHTs with a density that falls along a sigmoid, in every matrix alike.

    Source:
        arXiv:2501.19107, as published in its code: from a density of 0.5, steepness 6.
    """

    paper = "Zhang et al. 2025, Brain network science modelling of sparse neural networks (CHTss)"
    citation = "arXiv:2501.19107"
    schedule = SigmoidSchedule

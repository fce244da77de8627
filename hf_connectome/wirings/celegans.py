"""The synapses of C. elegans as a mask of 300 x 300."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.graphs import celegans_graph
from hf_connectome.wirings.base import wirings
from hf_connectome.wirings.graph import GraphWiring

if TYPE_CHECKING:
    from hf_connectome.graphs import NeuronGraph


@wirings.register("celegans")
@dataclass(frozen=True)
class CelegansWiring(GraphWiring):
    """The hermaphrodite's 5,084 chemical and electrical synapses; needs the package ``cect``."""

    paper = "Cook et al. 2019, Whole-animal connectomes of both Caenorhabditis elegans sexes"
    citation = "10.1038/s41586-019-1352-7"

    def graph(self) -> NeuronGraph:
        """Read it from the package."""
        return celegans_graph()

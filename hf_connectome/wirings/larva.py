"""The synapses of the larva of Drosophila as a mask of 2,952 x 2,952."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.errors import ConfigError
from hf_connectome.graphs import larva_graph
from hf_connectome.wirings.base import wirings
from hf_connectome.wirings.graph import GraphWiring

if TYPE_CHECKING:
    from hf_connectome.graphs import NeuronGraph


@wirings.register("larva")
@dataclass(frozen=True)
class LarvaWiring(GraphWiring):
    """The larva's brain, from files that the user has (:func:`graphs.larva_graph`)."""

    synapses: str = ""
    annotations: str = ""

    paper = "Winding et al. 2023, The connectome of an insect brain"
    citation = "10.1126/science.add9330"

    def graph(self) -> NeuronGraph:
        """Read both files."""
        if not self.synapses or not self.annotations:
            raise ConfigError(
                "the wiring 'larva' reads files that are not part of this package; expected "
                "larva:synapses=….npz,annotations=….csv (or .csv both), from data S1 of Winding "
                "et al. 2023."
            )
        return larva_graph(self.synapses, self.annotations)

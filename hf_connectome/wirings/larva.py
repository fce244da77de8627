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

    synapses: str | None = None
    annotations: str | None = None

    paper = "Winding et al. 2023, The connectome of an insect brain"
    citation = "10.1126/science.add9330"

    def graph(self) -> NeuronGraph:
        """Read both files."""
        if self.synapses is None or self.annotations is None:
            raise ConfigError(
                "the wiring 'larva' reads files that are not part of this package; expected "
                "LarvaWiring(synapses=….npz or .csv, annotations=….csv), from data S1 of Winding "
                "et al. 2023."
            )
        return larva_graph(self.synapses, self.annotations)

"""Graphs of neurons: who synapses onto whom, and where signals come in and go out.

Not how a network uses one (models/connectome_jepa), nor how one is drawn for a scope (wirings/).
"""

from hf_connectome.graphs.base import DIRECTIONS, NeuronGraph
from hf_connectome.graphs.celegans import celegans_graph
from hf_connectome.graphs.files import read_graph
from hf_connectome.graphs.larva import larva_graph

__all__ = ["DIRECTIONS", "NeuronGraph", "celegans_graph", "larva_graph", "read_graph"]

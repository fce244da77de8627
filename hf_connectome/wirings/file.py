"""A graph of neurons of the user's own as a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.errors import ConfigError
from hf_connectome.graphs import read_graph
from hf_connectome.wirings.base import wirings
from hf_connectome.wirings.graph import GraphWiring

if TYPE_CHECKING:
    from hf_connectome.graphs import NeuronGraph


@wirings.register("file")
@dataclass(frozen=True)
class FileWiring(GraphWiring):
    """A graph from an edge list, a matrix or a npz (:func:`graphs.read_graph`)."""

    path: str = ""
    neurons: str = ""

    paper = "hf_connectome"
    citation = "none"

    def graph(self) -> NeuronGraph:
        """Read the file, and the table of neurons if there is one."""
        if not self.path:
            raise ConfigError(
                "the wiring 'file' reads a graph; expected file:path=edges.csv (or .npz), and a "
                "table of neurons by neurons=….csv if there is one."
            )
        return read_graph(self.path, self.neurons or None)

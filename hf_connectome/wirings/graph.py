"""What the wirings of neuron graphs share: the one shape that fits, and how it is stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ScopeError
from hf_connectome.graphs.base import check_direction
from hf_connectome.scope import IN_OUT, OUT_IN
from hf_connectome.seeding import generator
from hf_connectome.wirings.base import Wiring

if TYPE_CHECKING:
    from hf_connectome.graphs import NeuronGraph
    from hf_connectome.scope import ScopedParameter


@dataclass(frozen=True)
class GraphWiring(Wiring):
    """The mask of a square Linear or Conv1D is a graph of neurons; signs are fair draws.

    What the synapses do (excite or inhibit) is not in the graphs, hence the draws. Other shapes
    are refused: there is no honest way to cut a graph to them.
    """

    direction: str = "along"

    def __post_init__(self) -> None:
        """Refuse a direction that is none."""
        check_direction(self.direction)

    @abstractmethod
    def graph(self) -> NeuronGraph:
        """Return the graph."""

    def shapes(self) -> Mapping[tuple[int, ...], int] | None:
        """Return neurons x neurons with the number of edges."""
        graph = self.graph()
        return {(graph.num_neurons, graph.num_neurons): graph.num_edges}

    def build(
        self,
        scope: Mapping[str, ScopedParameter],
        density: float | Mapping[str, float] | None,
        seed: int,
    ) -> Connectome:
        """Put the graph on every parameter; ``density`` is the graph's own, or None for it."""
        graph = self.graph()
        mask = graph.linear_mask(self.direction)
        entries = {}
        for name, parameter in scope.items():
            wanted = density.get(name) if isinstance(density, Mapping) else density
            _check(graph, parameter, wanted)
            draw = generator(seed, name, "wiring")
            sign = torch.randint(0, 2, mask.shape, generator=draw, dtype=torch.int8) * 2 - 1
            stored = mask.T.contiguous() if parameter.orientation == IN_OUT else mask
            entries[name] = SignedMask.pack(stored, sign, orientation=parameter.orientation)
        return Connectome(entries)


def _check(graph: NeuronGraph, parameter: ScopedParameter, density: float | None) -> None:
    num = graph.num_neurons
    if parameter.shape != (num, num) or parameter.orientation not in (OUT_IN, IN_OUT):
        raise ScopeError(
            f"{parameter.name!r} is {parameter.shape}, stored {parameter.orientation}; a graph of "
            f"{num} neurons fits a Linear or Conv1D of ({num}, {num}). Name such modules in the "
            "scope, or use a wiring of any shape, such as 'random'."
        )
    if density is not None and round(density * num**2) != graph.num_edges:
        raise ScopeError(
            f"{parameter.name!r}: density {density} is not that of the graph, "
            f"{graph.num_edges} of {num**2} or {graph.density:.8g}. Give that, or None."
        )

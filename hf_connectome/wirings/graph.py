"""What the wirings of neuron graphs share: the one shape that fits, and how it is stored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hf_connectome.errors import ScopeError
from hf_connectome.graphs.base import check_direction
from hf_connectome.scope import IN_OUT, OUT_IN
from hf_connectome.wirings.base import ParameterWiring

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hf_connectome.graphs import NeuronGraph
    from hf_connectome.scope import ScopedParameter


@dataclass(frozen=True)
class GraphWiring(ParameterWiring):
    """The mask of a square Linear or Conv1D is a graph of neurons; signs are fair draws.

    What the synapses do (excite or inhibit) is not in the graphs, hence the draws. Other shapes
    are refused: there is no honest way to cut a graph to them.
    """

    needs_data = True

    direction: str = "along"

    def __post_init__(self) -> None:
        """Refuse a direction that is none."""
        check_direction(self.direction)

    @abstractmethod
    def graph(self) -> NeuronGraph:
        """Return the graph."""

    @cached_property
    def _own(self) -> NeuronGraph:
        return self.graph()

    def shapes(self) -> Mapping[tuple[int, ...], int] | None:
        """Return neurons x neurons with the number of edges."""
        graph = self._own
        return {(graph.num_neurons, graph.num_neurons): graph.num_edges}

    def default_density(self) -> float:
        """Return the graph's own."""
        return self._own.density

    def counts(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float] | None
    ) -> dict[str, int]:
        """Return the number of edges for every parameter; None is the graph's own density.

        Raises:
            ScopeError: another shape or density than the graph's.
        """
        graph = self._own
        for name, parameter in scope.items():
            wanted = density.get(name) if isinstance(density, Mapping) else density
            _check(graph, parameter, wanted)
        return dict.fromkeys(scope, graph.num_edges)

    def mask(self, parameter: ScopedParameter, num_survivors: int, draw: torch.Generator) -> Tensor:
        """Return the graph, as the parameter is stored."""
        del num_survivors, draw
        mask = self._own.linear_mask(self.direction)
        return mask.T.contiguous() if parameter.orientation == IN_OUT else mask


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

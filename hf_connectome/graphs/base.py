"""NeuronGraph: names, synapses, inputs and outputs; the one place that knows rows from columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean, some
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("along", "against")
"""Along the synapses, from the presynaptic to the postsynaptic neuron; or against them."""

SENSORY, INTER, MOTOR = "sensory", "inter", "motor"


@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """Neurons and directed synapses; ``weights[i, j] > 0`` means that i synapses onto j.

    Rows are presynaptic, here and in every file that is read. A linear map wants it the other way
    round, ``(out, in)``: that is :meth:`linear_mask`, which says in which direction it goes.

    Example:
        >>> graph = NeuronGraph.from_edges(
        ...     "abc", [("a", "b"), ("b", "c"), ("a", "c")], inputs="a", outputs="c"
        ... )
        >>> graph.adjacency.int().tolist()
        [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
        >>> graph.linear_mask("along").int().tolist()
        [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
        >>> graph.num_edges_between("sensory", "motor")
        1
    """

    names: tuple[str, ...]
    """One for each neuron, all different."""
    weights: Tensor
    """``(neurons, neurons)`` float32, rows presynaptic; 0 where there is no synapse."""
    inputs: tuple[int, ...]
    """Neurons that signals come in at: the sensory ones."""
    outputs: tuple[int, ...]
    """Neurons that are read out: the motor ones. All others are interneurons."""

    def __post_init__(self) -> None:
        """Refuse what is no graph; rows and columns are compared with the names."""
        num = len(self.names)
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ConfigError(f"{some(twice)} is the name of more than one neuron; give each one.")
        if tuple(self.weights.shape) != (num, num):
            raise ConfigError(
                f"the adjacency is {tuple(self.weights.shape)}, with {num} names; expected a "
                f"square ({num}, {num}), rows presynaptic."
            )
        object.__setattr__(self, "weights", self.weights.detach().to(torch.float32))
        if not bool((torch.isfinite(self.weights) & (self.weights >= 0)).all()):
            raise ConfigError("a synapse has a negative or infinite weight; expected 0 or more.")
        if not self.num_edges:
            raise ConfigError(f"{num} neurons have no synapse between them; expected at least one.")
        check_neurons(num, self.inputs, self.outputs)

    @classmethod
    def from_edges(
        cls,
        names: Sequence[str],
        edges: Iterable[tuple[str, str] | tuple[str, str, float]],
        *,
        inputs: Iterable[str],
        outputs: Iterable[str],
    ) -> NeuronGraph:
        """Build a graph from named edges.

        Args:
            names: all neurons, in the order of rows and columns.
            edges: ``(pre, post)`` or ``(pre, post, weight)``; the weights of an edge that comes
                several times add up.
            inputs: names of the sensory neurons.
            outputs: names of the motor neurons.

        Raises:
            ConfigError: an edge or a role names a neuron that is not in ``names``.
        """
        place = {name: number for number, name in enumerate(names)}
        edges = list(edges)
        ends = [(edge[0], edge[1]) for edge in edges]
        inputs, outputs = list(inputs), list(outputs)
        used = [*(name for pair in ends for name in pair), *inputs, *outputs]
        unknown = [name for name in dict.fromkeys(used) if name not in place]
        if unknown:
            raise ConfigError(
                f"{some(unknown)} is not among the {len(place)} neurons. Add it to them, or leave "
                "its synapses out."
            )
        weights = torch.zeros(len(names), len(names), dtype=torch.float64)
        pre, post = ([place[pair[side]] for pair in ends] for side in (0, 1))
        sizes = torch.tensor([edge[2] if len(edge) == 3 else 1.0 for edge in edges])
        at = torch.tensor(pre, dtype=torch.long), torch.tensor(post, dtype=torch.long)
        weights.index_put_(at, sizes.double(), accumulate=True)
        roles = (tuple(place[name] for name in role) for role in (inputs, outputs))
        return cls(tuple(names), weights, *roles)

    @property
    def num_neurons(self) -> int:
        """Rows and columns of the adjacency."""
        return len(self.names)

    @cached_property
    def adjacency(self) -> Tensor:
        """``(neurons, neurons)`` bool: ``[i, j]`` says whether i synapses onto j."""
        return self.weights > 0

    @cached_property
    def num_edges(self) -> int:
        """Ordered pairs with a synapse, self loops among them."""
        return int(self.adjacency.sum())

    @property
    def num_self_loops(self) -> int:
        """Neurons that synapse onto themselves."""
        return int(self.adjacency.diagonal().sum())

    @property
    def density(self) -> float:
        """Edges over ordered pairs."""
        return self.num_edges / self.num_neurons**2

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """'sensory', 'inter' or 'motor', one for each neuron."""
        known = dict.fromkeys(self.inputs, SENSORY) | dict.fromkeys(self.outputs, MOTOR)
        return tuple(known.get(number, INTER) for number in range(self.num_neurons))

    def of_role(self, role: str) -> Tensor:
        """Return the neurons of a role, as indices in rising order."""
        found = [number for number, name in enumerate(self.roles) if name == role]
        return torch.tensor(found, dtype=torch.long)

    def num_edges_between(self, pre: str, post: str) -> int:
        """Count the edges from neurons of one role to those of another."""
        return int(self.adjacency[self.of_role(pre)][:, self.of_role(post)].sum())

    def linear_mask(self, direction: str = "along") -> Tensor:
        """Return the ``(out, in)`` mask of a linear map ``y = W x`` over the neurons.

        Args:
            direction: 'along' lets the signal of i reach j where i synapses onto j, so the mask is
                the transpose of the adjacency. 'against' takes the adjacency as it is, so signals
                run from the postsynaptic neuron to the presynaptic one.
        """
        check_direction(direction)
        return self.adjacency.T.contiguous() if direction == "along" else self.adjacency.clone()

    def rewired(self, adjacency: Tensor, seed: int) -> NeuronGraph:
        """Return the same neurons with other edges, as many; weights are dealt to them by lot."""
        assert int(adjacency.sum()) == self.num_edges, "a twin has as many edges"
        order = torch.randperm(self.num_edges, generator=generator(seed, "graph", "weights"))
        weights = torch.zeros_like(self.weights)
        weights[adjacency] = self.weights[self.adjacency][order]
        return replace(self, weights=weights)


def check_direction(direction: str) -> None:
    """Refuse a direction that is none of the two.

    Raises:
        UnknownNameError: names both.
    """
    if direction not in DIRECTIONS:
        raise UnknownNameError(
            f"unknown direction {direction!r}. {did_you_mean(str(direction), DIRECTIONS)}"
        )


def check_neurons(num_neurons: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Refuse inputs and outputs that are empty, do not exist, come twice or overlap.

    Raises:
        ConfigError: names the neurons.
    """
    for what, neurons in (("input", inputs), ("output", outputs)):
        if not neurons:
            raise ConfigError(f"there is no {what} neuron; expected at least one.")
        outside = [n for n in neurons if not 0 <= n < num_neurons]
        if outside:
            raise ConfigError(
                f"the {what} neurons {_numbers(outside)} do not exist; there are {num_neurons}, "
                f"numbered from 0 to {num_neurons - 1}."
            )
        twice = [n for n, count in Counter(neurons).items() if count > 1]
        if twice:
            raise ConfigError(f"the {what} neurons {_numbers(twice)} are listed twice.")
    both = sorted(set(inputs) & set(outputs))
    if both:
        raise ConfigError(
            f"the neurons {_numbers(both)} are inputs and outputs; expected one or the other, or "
            "what comes in would go out without a synapse. Leave them out of one."
        )


def unreached_outputs(
    mask: Tensor, inputs: Sequence[int], outputs: Sequence[int], num_hops: int
) -> list[int]:
    """Return the outputs that no input reaches in at most ``num_hops`` steps.

    Args:
        mask: ``(out, in)`` bool of the linear map that is applied at every step.
        inputs: where signals start.
        outputs: where they are to arrive.
        num_hops: steps; what was reached stays so, as in a residual network.
    """
    reached = torch.zeros(len(mask), dtype=torch.bool)
    reached[list(inputs)] = True
    steps = mask.cpu().float()
    for _ in range(num_hops):
        reached |= steps @ reached.float() > 0
    return [number for number in outputs if not reached[number]]


def _numbers(neurons: Sequence[int]) -> str:
    return some(map(str, neurons)).replace("'", "")

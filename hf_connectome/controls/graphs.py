"""Twins of a graph of neurons: any control of masks, and one that keeps the borders of its roles.

Not registered: 'roles' needs to know the roles, which a connectome does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.controls.base import controls
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.graphs import NeuronGraph

ROLES = "roles"
"""The twin that has as many edges as the original from each role to each role."""

_ENTRY = "graph"


def graph_twin(graph: NeuronGraph, control: str, seed: int) -> NeuronGraph:
    """Redraw the edges of a graph; neurons, roles, the number of edges and their weights stay.

    Args:
        graph: the original; rows are presynaptic, so 'degrees' keeps out- and in-degrees.
        control: a registered control of masks, such as 'random' (Erdos & Renyi with a fixed number
            of edges), 'degrees' and 'hubs-capped'; or 'roles', uniform within each block of the
            adjacency, from one role to another. All may draw self loops.
        seed: same seed, same twin.

    Raises:
        UnknownNameError: there is no such control.
        ConfigError: the control is about signs, or keeps another number of edges.

    Source:
        Ours: 'roles', the null that keeps how many synapses lead from sensory to motor neurons.
    """
    if control == ROLES:
        return graph.rewired(_within_roles(graph, seed), seed)
    if control not in controls:
        raise UnknownNameError(
            f"unknown twin of a graph {control!r}. {did_you_mean(control, [ROLES, *controls])}"
        )
    original = Connectome({_ENTRY: SignedMask.pack(graph.adjacency)})
    twin = controls.get(control)().twin(original, seed)
    if twin.num_survivors != graph.num_edges:
        raise ConfigError(
            f"the control {control!r} leaves {twin.num_survivors} of {graph.num_edges} edges; "
            "expected one that keeps their number, such as random or degrees."
        )
    return graph.rewired(twin.mask(_ENTRY), seed)


def _within_roles(graph: NeuronGraph, seed: int) -> Tensor:
    draw = generator(seed, _ENTRY, "control", ROLES)
    adjacency = torch.zeros_like(graph.adjacency)
    members = [graph.of_role(role) for role in dict.fromkeys(graph.roles)]
    for pre in members:
        for post in members:
            block = graph.adjacency[pre][:, post].reshape(-1)
            drawn = block[torch.randperm(block.numel(), generator=draw)]
            adjacency[pre[:, None], post[None]] = drawn.reshape(len(pre), len(post))
    return adjacency

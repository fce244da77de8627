"""Neurons between two layers that no signal passes: those without any input or without any output.

Layers are recognised by the structure of the modules; what is not recognised is left alone. A bias
is no input: a neuron that has only one is a constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hf_connectome.scope import IN_OUT, ScopedParameter, clean_name, unwrap

if TYPE_CHECKING:
    from torch import Tensor

_PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
    (("v_proj",), "o_proj"),
    (("v_proj",), "out_proj"),
)
"""Children of one module: sources, whose outputs are multiplied where there are two; target."""


@dataclass(frozen=True)
class Chain:
    """Layers whose outputs are the inputs of one other layer, neuron by neuron."""

    sources: tuple[str, ...]
    target: str


def find_chains(model: nn.Module, scope: Mapping[str, ScopedParameter]) -> list[Chain]:
    """Return the chains among the parameters of ``scope`` that the model's structure shows.

    Neighbours in a Sequential with nothing that has parameters between them; and, by the names of
    their modules, the two ends of a feed-forward block (gate and up to down) and an attention's
    values and output, where they have as many neurons (no grouped queries).
    """
    chains = []
    for prefix, module in unwrap(model).named_modules():
        for sources, target in _candidates(module):
            names = [clean_name(f"{prefix}.{n}.weight".lstrip(".")) for n in (*sources, target)]
            if all(name in scope and len(scope[name].shape) == 2 for name in names):
                *first, last = (scope[name] for name in names)
                if all(_num_outputs(source) == _num_inputs(last) for source in first):
                    chains.append(Chain(tuple(names[:-1]), names[-1]))
    return chains


def drop_dead_chains(
    masks: Mapping[str, Tensor], chains: Sequence[Chain], scope: Mapping[str, ScopedParameter]
) -> None:
    """Clear, in place, the links of every neuron that has no input or no output.

    A neuron of several sources has input if each of them gives it some. Repeated until nothing is
    left to clear, because a neuron may lose its last link with its neighbour's.
    """
    changed = True
    while changed:
        changed = False
        for chain in chains:
            sources = [_out_in(masks[name], scope[name]) for name in chain.sources]
            target = _out_in(masks[chain.target], scope[chain.target])
            alive = target.any(0)  # (neurons,)
            for source in sources:
                alive = alive & source.any(1)
            for links in (*sources, target.T):
                changed |= bool(links[~alive].any())
                links[~alive] = False


def share_of_neurons_in_use(
    masks: Mapping[str, Tensor], chains: Sequence[Chain], scope: Mapping[str, ScopedParameter]
) -> float:
    """Return the share of neurons between the layers of ``chains`` with input and output."""
    pruned = {name: mask.clone() for name, mask in masks.items()}
    drop_dead_chains(pruned, chains, scope)
    used = [_out_in(pruned[c.target], scope[c.target]).any(0) for c in chains]
    return sum(int(u.sum()) for u in used) / max(sum(u.numel() for u in used), 1)


def _candidates(module: nn.Module) -> Iterator[tuple[tuple[str, ...], str]]:
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        # Only what has parameters ends a neuron's own line: activations and dropout do not.
        layers = [name for name, child in children.items() if any(True for _ in child.parameters())]
        yield from (((first,), second) for first, second in itertools.pairwise(layers))
        return
    taken = set()
    for sources, target in _PAIRS:
        if target not in taken and all(name in children for name in (*sources, target)):
            taken.add(target)
            yield sources, target


def _num_outputs(parameter: ScopedParameter) -> int:
    return parameter.shape[1 if parameter.orientation == IN_OUT else 0]


def _num_inputs(parameter: ScopedParameter) -> int:
    return parameter.shape[0 if parameter.orientation == IN_OUT else 1]


def _out_in(mask: Tensor, parameter: ScopedParameter) -> Tensor:
    return mask.T if parameter.orientation == IN_OUT else mask

"""How many links units have: the degrees of a connectome, in the sense of inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.scope import ScopedParameter

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import Connectome


@dataclass(frozen=True)
class Spread:
    """Links of the units of one side of a parameter."""

    num_units: int
    num_unlinked: int
    least: int
    mean: float
    most: int
    deviation: float
    """Standard deviation over the units."""


@dataclass(frozen=True)
class Degrees:
    """Links of a parameter's units; those of a stack of matrices are counted each by itself."""

    into_outputs: Spread
    """In-degrees: inputs that an output listens to."""
    from_inputs: Spread
    """Out-degrees: outputs that an input speaks to."""


def degrees(connectome: Connectome) -> dict[str, Degrees]:
    """Return the degrees of every parameter, however it is stored.

    Example:
        >>> import torch
        >>> from hf_connectome.connectome import Connectome, SignedMask
        >>> mask = torch.tensor([[True, True, False], [False, True, False]])
        >>> found = degrees(Connectome({"w": SignedMask.pack(mask, orientation="out_in")}))["w"]
        >>> found.into_outputs.most, found.from_inputs.most, found.from_inputs.num_unlinked
        (2, 2, 1)
    """
    found = {}
    for name, entry in connectome.items():
        parameter = ScopedParameter(name, entry.shape, entry.orientation)
        stack = parameter.matrices(entry.mask())  # (matrices, out, in)
        found[name] = Degrees(_spread(stack.sum(2)), _spread(stack.sum(1)))
    return found


def _spread(links: Tensor) -> Spread:
    exact = links.double()
    return Spread(
        num_units=links.numel(),
        num_unlinked=int((links == 0).sum()),
        least=int(links.min()),
        mean=float(exact.mean()),
        most=int(links.max()),
        deviation=float(exact.std(correction=0)),
    )

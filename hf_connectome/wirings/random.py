"""Survivors and signs by lot, with an exact count in every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.scope import ScopedParameter
from hf_connectome.selection import keep
from hf_connectome.structures import make_structure
from hf_connectome.wirings.base import ParameterWiring, wirings

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import SignedMask


@wirings.register("random")
@dataclass(frozen=True)
class RandomWiring(ParameterWiring):
    """Uniform places, fair signs: the wiring of the paper's RandomConnectome.

    With a ``structure`` (structures.py) what is drawn is which of its groups live; a count is
    rounded up to the next one that the structure can have.
    """

    structure: str = ""

    paper = "Kotar & Tuckute 2025, Model Connectomes (RandomConnectome)"
    citation = "arXiv:2504.21047"

    def __post_init__(self) -> None:
        if self.structure:
            make_structure(self.structure)

    def counts(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float]
    ) -> dict[str, int]:
        """Return round(density * n), or the next count that the structure can have."""
        counts = super().counts(scope, density)
        if self.structure:
            structure = make_structure(self.structure)
            counts = {name: structure.count(n, scope[name]) for name, n in counts.items()}
            for name, count in counts.items():
                structure.check_last(count, scope[name])
        return counts

    def mask(self, parameter: ScopedParameter, num_survivors: int, draw: torch.Generator) -> Tensor:
        """Draw a score for every weight and keep the highest."""
        score = torch.rand(parameter.shape, generator=draw)
        everything = torch.ones(parameter.shape, dtype=torch.bool)
        if self.structure:
            structure = make_structure(self.structure)
            return structure.keep(score, everything, num_survivors, parameter)
        n_drop = parameter.num_weights - num_survivors
        return keep(score, everything, n_drop, name=parameter.name)


def draw_entry(
    shape: tuple[int, ...], num_survivors: int, seed: int, name: str, orientation: str = "raw"
) -> SignedMask:
    """Draw ``num_survivors`` places uniformly and a fair sign for each."""
    return RandomWiring().draw(ScopedParameter(name, shape, orientation), num_survivors, seed)

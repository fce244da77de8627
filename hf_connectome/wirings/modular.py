"""Groups of outputs wired to groups of inputs, densely; the rest sparsely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError
from hf_connectome.selection import keep
from hf_connectome.wirings.base import MatrixWiring, wirings

if TYPE_CHECKING:
    from torch import Tensor


@wirings.register("modular")
@dataclass(frozen=True)
class ModularWiring(MatrixWiring):
    """``groups`` of consecutive outputs, each with its group of inputs; both by lot within.

    Outside the blocks the density is ``outside_fraction`` of the matrix's own, rounded to exact
    counts; the blocks have the rest. What does not fit into the blocks goes outside.

    Source:
        Konstantaropoulos et al. 2025, G2GNet: sparse, modular connectivity between layers. Its
        densities were not read; ours are exact and of any parameter's density.
    """

    groups: int = 4
    outside_fraction: float = 0.1

    paper = "Konstantaropoulos et al. 2025, Ensemble-to-Ensemble Communication Primitives (G2GNet)"
    citation = "arXiv:2508.14140"

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ConfigError(f"modular: groups is {self.groups}; expected at least 1.")
        if not 0.0 <= self.outside_fraction <= 1.0:
            raise ConfigError(
                f"modular: outside_fraction is {self.outside_fraction}; expected 0 (blocks alone) "
                "to 1 (no blocks)."
            )

    def matrix(
        self, outputs: int, inputs: int, num_survivors: int, draw: torch.Generator
    ) -> Tensor:
        """Draw inside and outside of the blocks, each with an exact count."""
        inside = self.blocks(outputs, inputs)
        num_inside = int(inside.sum())
        num_outside = inside.numel() - num_inside
        beyond = round(self.outside_fraction * num_survivors * num_outside / inside.numel())
        within = min(num_survivors - beyond, num_inside)
        score = torch.rand(inside.shape, generator=draw)
        kept = keep(score, inside, num_inside - within)
        return kept | keep(score, ~inside, num_outside - (num_survivors - within))

    def blocks(self, outputs: int, inputs: int) -> Tensor:
        """Return the bool ``(outputs, inputs)`` mask of pairs of the same group."""
        by_output = torch.arange(outputs) * self.groups // outputs
        by_input = torch.arange(inputs) * self.groups // inputs
        return by_output[:, None] == by_input

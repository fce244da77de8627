"""A band with some links thrown anywhere: local, yet a few steps from everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError
from hf_connectome.selection import keep_rows
from hf_connectome.wirings.base import MatrixWiring, wirings
from hf_connectome.wirings.brf import BrfWiring

if TYPE_CHECKING:
    from torch import Tensor


@wirings.register("small_world")
@dataclass(frozen=True)
class SmallWorldWiring(MatrixWiring):
    """The band of ``brf:r=0``, each link rewired with probability ``beta``.

    A rewired link leaves its place for one by lot outside the band, of the same unit of the smaller
    side; where there are fewer places than such links, some stay.

    Source:
        Watts & Strogatz 1998, Collective dynamics of 'small-world' networks; between two layers
        with beta = 0.25 Zhang et al. 2025 (BSW).
    """

    beta: float = 0.25

    paper = "Watts & Strogatz 1998; Zhang et al. 2025 (BSW)"
    citation = "arXiv:2501.19107"

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ConfigError(
                f"small_world: beta is {self.beta}; expected 0 (the band) to 1 (no link of it)."
            )

    def matrix(
        self, outputs: int, inputs: int, num_survivors: int, draw: torch.Generator
    ) -> Tensor:
        """Draw the band, then the links that leave it."""
        band = BrfWiring(r=0.0).matrix(outputs, inputs, num_survivors, draw)
        by_unit = band if outputs <= inputs else band.T
        leaves = torch.rand(by_unit.shape, generator=draw) < self.beta
        # Links that stay come first, then the places outside by lot, then the links that leave.
        score = torch.rand(by_unit.shape, generator=draw)
        score += torch.where(by_unit, torch.where(leaves, -1.0, 1.0), 0.0)
        mask = keep_rows(score, torch.ones_like(by_unit), by_unit.sum(1))
        return mask if outputs <= inputs else mask.T

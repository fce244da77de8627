"""Links near the diagonal of a ring: every unit sees a neighbourhood of the other side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.budgets import apportion
from hf_connectome.errors import ConfigError
from hf_connectome.selection import keep_rows
from hf_connectome.wirings.base import MatrixWiring, wirings

if TYPE_CHECKING:
    from torch import Tensor

DEGREES = ("fixed", "uniform")


@wirings.register("brf")
@dataclass(frozen=True)
class BrfWiring(MatrixWiring):
    """Bipartite receptive fields.

    Each unit of the smaller side has a centre on the other side, which is a ring, and draws its
    links without replacement, a link over distance d in proportion to (1 + d)^-((1 - r) / r).
    ``r = 0`` takes the nearest: a band; ``r = 1`` takes any. ``degree`` 'fixed' gives the units of
    the smaller side equal numbers of links, 'uniform' draws them uniformly between 0 and twice the
    mean (then at least one each, where there are enough).

    Source:
        Zhang et al. 2025, Brain network science modelling of sparse neural networks (BRF). The
        bounds of 'uniform' are ours.
    """

    r: float = 0.3
    degree: str = "fixed"

    paper = "Zhang et al. 2025, Brain network science modelling of sparse neural networks"
    citation = "arXiv:2501.19107"

    def __post_init__(self) -> None:
        if not 0.0 <= self.r <= 1.0:
            raise ConfigError(f"brf: r is {self.r}; expected 0 (a band) to 1 (any place).")
        if self.degree not in DEGREES:
            raise ConfigError(f"brf: degree is {self.degree!r}; expected 'fixed' or 'uniform'.")

    def matrix(
        self, outputs: int, inputs: int, num_survivors: int, draw: torch.Generator
    ) -> Tensor:
        """Draw the links of every unit of the smaller side."""
        small, big = min(outputs, inputs), max(outputs, inputs)
        links = degrees_of(small, big, num_survivors, draw, equal=self.degree == "fixed")
        score = -torch.log1p(ring_distance(small, big))
        if self.r > 0.0:
            # The k highest of log p + Gumbel noise are k draws without replacement.
            uniform = torch.rand(score.shape, generator=draw).clamp_(min=1e-12, max=1 - 1e-7)
            score = score * ((1.0 - self.r) / self.r) - (-uniform.log_()).log_()
        mask = keep_rows(score, torch.ones_like(score, dtype=torch.bool), links)
        return mask if outputs == small else mask.T


def ring_distance(small: int, big: int) -> Tensor:
    """Return ``(small, big)`` distances of places on a ring from each unit's centre."""
    centre = torch.arange(small) * big // small
    distance = (torch.arange(big) - centre[:, None]).abs()
    return torch.minimum(distance, big - distance).float()


def degrees_of(
    small: int, big: int, num_links: int, draw: torch.Generator, *, equal: bool
) -> Tensor:
    """Share out links over units, at most ``big`` each, in an order by lot.

    Returns:
        ``(small,)`` int64 with the sum ``num_links``.
    """
    weights = [1.0] * small if equal else torch.rand(small, generator=draw).clamp(min=1e-6).tolist()
    least = [int(num_links >= small)] * small
    shares = torch.from_numpy(apportion(weights, num_links, [big] * small, least))
    return shares[torch.randperm(small, generator=draw)]

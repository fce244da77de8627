"""Survivors by lot, with more of them in small and narrow parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_connectome.budgets import check_density, erk
from hf_connectome.wirings.base import wirings
from hf_connectome.wirings.random import RandomWiring

if TYPE_CHECKING:
    from hf_connectome.scope import ScopedParameter


@wirings.register("erk")
@dataclass(frozen=True)
class ErkWiring(RandomWiring):
    """As ``random``, but one density is shared out by the Erdos-Renyi-Kernel rule (budgets.erk).

    All parameters together have exactly round(density * n) survivors. Densities that are given by
    parameter name are kept as they are.

    Source:
        Mocanu et al. 2018, SET (Erdos-Renyi); Evci et al. 2020, RigL (with kernels).
    """

    paper = "Evci et al. 2020, Rigging the Lottery (ERK)"
    citation = "arXiv:1911.11134"

    def counts(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float]
    ) -> dict[str, int]:
        """Return what budgets.erk gives, at least one survivor each."""
        if not isinstance(density, Mapping):
            check_density(density, "density")
            sizes = {name: p.num_weights for name, p in scope.items()}
            density = {n: count / sizes[n] for n, count in erk(scope, density).items()}
        return super().counts(scope, density)

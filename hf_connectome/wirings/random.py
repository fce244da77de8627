"""Survivors and signs by lot, with an exact count in every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ScopeError, some
from hf_connectome.seeding import generator
from hf_connectome.selection import keep
from hf_connectome.wirings.base import Wiring, wirings

if TYPE_CHECKING:
    from hf_connectome.scope import ScopedParameter


def draw_entry(
    shape: tuple[int, ...], num_survivors: int, seed: int, name: str, orientation: str = "raw"
) -> SignedMask:
    """Draw ``num_survivors`` places uniformly and a fair sign for each."""
    draw = generator(seed, name, "wiring")
    score = torch.rand(shape, generator=draw)
    everything = torch.ones(shape, dtype=torch.bool)
    mask = keep(score, everything, everything.numel() - num_survivors, name=name)
    sign = torch.randint(0, 2, shape, generator=draw, dtype=torch.int8) * 2 - 1
    return SignedMask.pack(mask, sign, orientation=orientation)


@wirings.register("random")
class RandomWiring(Wiring):
    """Uniform places, fair signs: the wiring of the paper's RandomConnectome."""

    paper = "Kotar & Tuckute 2025, Model Connectomes (RandomConnectome)"
    citation = "arXiv:2504.21047"

    def build(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float], seed: int
    ) -> Connectome:
        """Draw each parameter from its own generator; see :class:`Wiring`."""
        if isinstance(density, Mapping) and (missing := [n for n in scope if n not in density]):
            raise ScopeError(
                f"there is no density for {some(missing)}; expected one for every parameter in "
                "scope. Give it, or one number for all."
            )
        entries = {}
        for name, parameter in scope.items():
            wanted = density[name] if isinstance(density, Mapping) else density
            num_weights = torch.Size(parameter.shape).numel()
            num_survivors = round(wanted * num_weights) if 0.0 < wanted <= 1.0 else 0
            if num_survivors == 0:
                raise ScopeError(
                    f"{name!r}: density {wanted} of {num_weights} weights; expected a density in "
                    "(0, 1] that keeps at least one weight."
                )
            entries[name] = draw_entry(
                parameter.shape, num_survivors, seed, name, parameter.orientation
            )
        return Connectome(entries)

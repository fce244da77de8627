"""Random places and signs at the density of every parameter (N1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.wirings.random import draw_entry

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome, SignedMask


def random_twin(connectome: Connectome, seed: int) -> Connectome:
    """Draw a connectome of the same density in every parameter, with random places and signs (N1).

    Each parameter has its own generator, seeded by ``seed`` and the name, and exactly as many
    survivors as the original. Scales and values that travel whole stay, so that the two differ in
    the wiring alone; the twin of a mask-only connectome is mask-only.

    Source:
        Ours: the published code keeps 10 % instead of the connectome's density, uses magnitude 0.1
        instead of 0.02 and trains with a mask of all ones (docs/FIDELITY.md).
    """
    return Random().twin(connectome, seed)


@register("random")
class Random(EntryControl):
    """Uniform places and fair signs; see :func:`random_twin`. It depends on nothing but counts."""

    rung = "N1"
    keeps = "survivors of every tensor"
    destroys = "places and signs"
    paper = "Kotar & Tuckute 2025, Model Connectomes (RandomConnectome)"
    citation = "arXiv:2504.21047"

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Draw as the wiring 'random' does with the same seed."""
        drawn = draw_entry(entry.shape, entry.num_survivors, seed, name, entry.orientation)
        sign_bits = None if entry.sign_bits is None else drawn.sign_bits
        return replace(drawn, sign_bits=sign_bits, scale=entry.scale)

    def entry_bits(self, entry: SignedMask) -> float:
        """Return 0."""
        del entry
        return 0.0

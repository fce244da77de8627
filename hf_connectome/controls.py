"""Twins of a connectome that keep some of its properties and lose the rest.

They are what a claim about a connectome is tested against.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.wirings.random import draw_entry

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


def random_twin(connectome: Connectome, seed: int) -> Connectome:
    """Draw a connectome of the same density in every parameter, with random places and signs (N1).

    Each parameter has its own generator, seeded by ``seed`` and the name, and exactly as many
    survivors as the original. Scales and values that travel whole stay, so that the two differ in
    the wiring alone; the twin of a mask-only connectome is mask-only.

    Source:
        Ours: the published code keeps 10 % instead of the connectome's density, uses magnitude 0.1
        instead of 0.02 and trains with a mask of all ones (docs/FIDELITY.md).
    """
    entries = {}
    for name, entry in connectome.items():
        drawn = draw_entry(entry.shape, entry.num_survivors, seed, name, entry.orientation)
        sign_bits = None if entry.sign_bits is None else drawn.sign_bits
        entries[name] = replace(drawn, sign_bits=sign_bits, scale=entry.scale)
    return connectome.replace(entries)

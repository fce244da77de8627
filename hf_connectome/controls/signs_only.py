"""The signs without the mask: a building block of the inheritance curve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import sign_bits
from hf_connectome.controls.places import fair_flags, negatives, rebuilt

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome, SignedMask


@register("signs-only")
class SignsOnly(EntryControl):
    """Let every weight exist; survivors have their sign, the others a fair one by lot.

    Put it on a host with reset='fresh_magnitude': as fresh initialisations are symmetric, it is
    then a dense fresh host whose first weights take the connectome's sign where it has one.

    Source:
        Oh et al. 2025, Find a Winning Sign: inherited signs on the magnitudes of a fresh network.
    """

    rung = "-"
    keeps = "the sign of every survivor"
    destroys = "the mask: every weight exists"
    paper = "Oh et al. 2025, Find a Winning Sign"
    citation = "arXiv:2504.05357"
    needs_sign = True

    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Fill every parameter, and record the reset that it is for."""
        full = super().twin(connectome, seed)
        if full.config is None:
            return full
        return full.replace(config=replace(full.config, reset="fresh_magnitude"))

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Fill one parameter."""
        known = negatives(entry)
        assert known is not None
        negative = fair_flags(entry.num_weights, self.draw(name, seed))
        negative[entry.mask().numpy().reshape(-1)] = known
        return rebuilt(entry, np.ones(entry.shape, dtype=np.bool_), negative)

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the signs; where they are cannot be told from those that were drawn."""
        return sign_bits(entry)

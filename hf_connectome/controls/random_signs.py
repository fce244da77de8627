"""The mask with signs by lot (N4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import mask_bits
from hf_connectome.controls.places import fair_flags, rebuilt

if TYPE_CHECKING:
    from hf_connectome.connectome import SignedMask


@register("random-signs")
class RandomSigns(EntryControl):
    """Keep the mask and draw every sign with probability 1/2.

    Source:
        Zhou et al. 2019, Deconstructing Lottery Tickets: masks with signs re-drawn by lot.
    """

    rung = "N4"
    keeps = "the mask"
    destroys = "every sign"
    paper = "Zhou et al. 2019, Deconstructing Lottery Tickets"
    citation = "arXiv:1905.01067"
    needs_sign = True

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Draw the signs of one parameter."""
        return rebuilt(entry, None, fair_flags(entry.num_survivors, self.draw(name, seed)))

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the mask."""
        return mask_bits(entry)

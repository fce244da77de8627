"""The mask with its own signs in another order (N5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import mask_bits, tensor_balance_bits
from hf_connectome.controls.places import negatives, rebuilt, shuffled

if TYPE_CHECKING:
    from hf_connectome.connectome import SignedMask


@register("shuffled-signs")
class ShuffledSigns(EntryControl):
    """Keep the mask and permute the signs among the survivors of the tensor.

    Source:
        Ours: beside 'random-signs' it tells a tensor's share of negatives from their places.
    """

    rung = "N5"
    keeps = "the mask and the number of negative survivors of every tensor"
    destroys = "which survivor is negative"
    paper = "hf_connectome"
    citation = "none"
    needs_sign = True

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Shuffle the signs of one parameter."""
        negative = negatives(entry)
        assert negative is not None
        return rebuilt(entry, None, shuffled(negative, self.draw(name, seed)))

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the mask and the number of negatives."""
        return mask_bits(entry) + tensor_balance_bits(entry)

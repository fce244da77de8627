"""The signs on a random mask, as far as the connectome knows them (N6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import tensor_balance_bits
from hf_connectome.controls.places import rebuilt, signs_after_moves
from hf_connectome.wirings.random import draw_entry

if TYPE_CHECKING:
    from hf_connectome.connectome import SignedMask


@register("moved-signs")
class MovedSigns(EntryControl):
    """Redraw the places at the same density and keep every sign that the connectome can give.

    The places are those of 'random' with the same seed, so that the two differ in signs alone. A
    place that was a survivor's keeps its sign. Of the others the connectome knows no sign: they are
    dealt the signs of the survivors that lost their place, so that negatives stay exact.

    Source:
        Ours: the parent's signs of all weights would be the better half of this test, but dead
        weights have none in a connectome; at density d the share d of the new places has its own.
    """

    rung = "N6"
    keeps = "the sign of each survivor that the new mask meets; the negatives of every tensor"
    destroys = "the mask"
    paper = "hf_connectome"
    citation = "none"
    needs_sign = True

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Move the survivors of one parameter."""
        mask = draw_entry(entry.shape, entry.num_survivors, seed, name).mask().numpy()
        return rebuilt(entry, mask, signs_after_moves(entry, mask, self.draw(name, seed)))

    def entry_bits(self, entry: SignedMask) -> float:
        """Count the signs that keep their place, in expectation, and the balance of the others."""
        met = entry.density
        return met * entry.num_survivors + (1 - met) * tensor_balance_bits(entry)

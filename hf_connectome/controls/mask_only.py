"""The mask without signs: a building block of the inheritance curve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.controls.base import Control, register
from hf_connectome.controls.counting import whole_bits

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


@register("mask-only")
class MaskOnly(Control):
    """Drop the signs, and the scales, which no reset uses without them.

    Put it on a host with reset='keep': survivors have the host's own values.

    Source:
        Mallya et al. 2018, Piggyback: a mask on the weights of a given network.
    """

    rung = "-"
    keeps = "the mask"
    destroys = "signs and scales: the host's own take their place"
    paper = "Mallya et al. 2018, Piggyback"
    citation = "arXiv:1801.06519"
    uses_seed = False

    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Drop the signs; the seed changes nothing."""
        del seed
        config = connectome.config
        return connectome.replace(
            {n: replace(e, sign_bits=None, scale=None) for n, e in connectome.items()},
            config=None if config is None else replace(config, reset="keep"),
        )

    def bits(self, connectome: Connectome) -> float:
        """Count the masks, and the values that travel whole."""
        return whole_bits(self.twin(connectome, 0))

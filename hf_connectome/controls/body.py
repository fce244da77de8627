"""All but the embeddings (N8), which stay dense and fresh in the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.controls.base import Control, register
from hf_connectome.controls.counting import whole_bits
from hf_connectome.controls.embeddings import embedding_names, part

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


@register("body")
class Body(Control):
    """Keep what is no embedding; norms and biases travel with it.

    Source:
        Ours: the other half of 'embeddings'.
    """

    rung = "N8"
    keeps = "all matrices but embeddings and the output embedding, and what travels whole"
    destroys = "the embeddings: dense and fresh in the host"
    paper = "hf_connectome"
    citation = "none"
    uses_seed = False

    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Restrict to the body; the seed changes nothing."""
        del seed
        names = set(connectome) - embedding_names(connectome)
        return part(connectome, names, "body", connectome.values_carried)

    def bits(self, connectome: Connectome) -> float:
        """Count all bits of the part."""
        return whole_bits(self.twin(connectome, 0))

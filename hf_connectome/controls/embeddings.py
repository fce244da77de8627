"""The embeddings alone (N7); everything else of the host stays dense and fresh."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.controls.base import Control, register
from hf_connectome.controls.counting import whole_bits
from hf_connectome.errors import ScopeError
from hf_connectome.scope import EMBEDDING, OUT_IN, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hf_connectome.connectome import Connectome


_OTHER_TABLES = ("position", "wpe", "token_type")
"""In the names of embeddings that are not of tokens."""


def embedding_names(connectome: Connectome) -> set[str]:
    """Find the embeddings of a connectome and its output embedding, without the model.

    An embedding says what it is by its orientation. An output embedding that is not tied is the
    Linear that has the shape of the token embedding and stands outside the numbered layers.
    """
    held = {name for name, entry in connectome.items() if entry.orientation == EMBEDDING}
    if not held:
        return held
    tokens = {name for name in held if not any(word in name for word in _OTHER_TABLES)} or held
    vocabulary = max((connectome[name].shape for name in tokens), key=lambda shape: shape[0])
    heads = {
        name
        for name, entry in connectome.items()
        if entry.orientation == OUT_IN
        and entry.shape == vocabulary
        and not any(part.isdigit() for part in name.split("."))
    }
    return held | heads


def part(
    connectome: Connectome, names: set[str], scope: str, values: Mapping[str, Tensor]
) -> Connectome:
    """Restrict a connectome to ``names``, and its config to that scope.

    Args:
        connectome: the original.
        names: what stays.
        scope: what scope.py calls it; recorded where the scope was all matrices.
        values: the weights that still travel whole.

    Raises:
        ScopeError: no name stays.
    """
    if not names:
        raise ScopeError(
            f"the connectome has {len(connectome)} parameters, none of them {scope}; expected at "
            "least one. Leave this control out."
        )
    entries = {name: entry for name, entry in connectome.items() if name in names}
    config = connectome.config
    if config is not None:
        whole = config.target_modules in (None, "all-matrices")
        config = replace(
            config,
            target_modules=scope if whole else config.target_modules,
            base_fingerprint=fingerprint((n, e.shape, e.orientation) for n, e in entries.items()),
        )
    return connectome.replace(entries, values=values, config=config)


@register("embeddings")
class Embeddings(Control):
    """Keep the embeddings and the output embedding; norms and biases do not travel.

    Source:
        Ours: tells what the wiring of the network adds to a binarised table of tokens.
    """

    rung = "N7"
    keeps = "embeddings and the output embedding, mask and sign"
    destroys = "the rest of the connectome, and what travels whole: dense and fresh in the host"
    paper = "hf_connectome"
    citation = "none"
    uses_seed = False

    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Restrict to the embeddings; the seed changes nothing."""
        del seed
        return part(connectome, embedding_names(connectome), "embeddings", {})

    def bits(self, connectome: Connectome) -> float:
        """Count all bits of the part."""
        return whole_bits(self.twin(connectome, 0))

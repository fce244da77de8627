"""What a child inherits in bits of information, for the connectome and for each of its controls.

Bits of content, not of a file: what a twin has in common with every twin of another parent of the
same densities does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_connectome.controls.base import controls
from hf_connectome.controls.counting import whole_bits
from hf_connectome.errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome

WHOLE, NOTHING = "connectome", "dense"


def inherited_bits(connectome: Connectome, what: str = WHOLE) -> float:
    """Count the bits of ``connectome`` that a child depends on.

    A mask of k survivors among n weights counts log2 C(n, k), which is n H(k / n) but for half a
    log2 of n; a sign counts 1, a scale 16, a weight that travels whole 32. The number of survivors
    of each tensor is common to all arms and counts nothing. How a control counts is said in its
    class.

    Args:
        connectome: the original.
        what: 'connectome' (all of it), 'dense' (0.0) or the name of a control.

    Raises:
        UnknownNameError: nothing is registered under ``what``.

    Example:
        >>> import torch
        >>> from hf_connectome.connectome import Connectome, SignedMask
        >>> c = Connectome({"w": SignedMask.pack(torch.eye(4) > 0, torch.eye(4))})
        >>> [round(inherited_bits(c, what), 2) for what in ("connectome", "mask-only", "random")]
        [14.83, 10.83, 0.0]
    """
    if what == WHOLE:
        return whole_bits(connectome)
    if what == NOTHING:
        return 0.0
    if what not in controls:
        known = [WHOLE, NOTHING, *controls]
        raise UnknownNameError(f"unknown arm {what!r}. {did_you_mean(what, known)}")
    return controls.get(what)().bits(connectome)

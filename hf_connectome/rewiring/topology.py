"""How well a missing link would close the local communities of a bipartite graph.

Cannistraci-Hebb scores look at the mask alone, over paths of three links, as matrix products. A
link between u (a row) and v (a column) would close paths u - x - z - v. What counts is z, a
neighbour of v that shares i >= 1 neighbours with u and has e others, v itself left out: the score
is the sum over all z, plus the same with rows and columns exchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RULES = {
    "ch2": "CH2-L3n: each z counts (1 + i) / (1 + e)",
    "ch3": "CH3-L3n: each z counts 1 / (1 + e)",
}
MOST_NODES = 20_000
"""Rows or columns that a matrix may have: their square in float32 is 1.6 GB."""


def link_scores(mask: Tensor, rule: str = "ch2") -> Tensor:
    """Score every place of a matrix by the links around it.

    Args:
        mask: ``(R, C)`` bool, True = link.
        rule: one of :data:`RULES`.

    Returns:
        ``(R, C)`` float32, at least 0, meant for places without a link; a transposed mask has
        transposed scores.

    Source:
        Formula as in arXiv:2501.19107 (CH2-L3n, CH3-L3n), whose matrix form its code publishes; the
        rules themselves are of Muscoloni et al. 2020.

    Example:
        >>> import torch
        >>> link_scores(torch.tensor([[True, False], [True, True]]))[0, 1].item()
        4.0
    """
    links = mask.float()
    return _over_rows(links, rule) + _over_rows(links.T, rule).T


def _over_rows(links: Tensor, rule: str) -> Tensor:
    shared = links @ links.T  # (R, R): neighbours that u and z have in common
    meets = (shared > 0).float()
    degree = links.sum(1)  # (R,), of z
    others = ((degree - shared) * meets).clamp(min=1) - 1  # 1 of them is v, where z has v
    counts = (shared + meets if rule == "ch2" else meets) / (others + 1)
    return counts @ links

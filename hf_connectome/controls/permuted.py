"""Rows and columns in another order: all of the structure, none of the identity (N2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_connectome.connectome import SignedMask
from hf_connectome.controls.base import EntryControl, register
from hf_connectome.controls.counting import mask_bits, sign_bits
from hf_connectome.controls.places import is_stack, matrices, stacked

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register("permuted")
class Permuted(EntryControl):
    """Permute the rows and the columns of every matrix uniformly, signs with them.

    Each matrix gets two permutations of its own: had two layers the same order for the units that
    they share, the twin would be the original network with its units renamed. A scale by row goes
    with its row.

    Source:
        Ours: the rung between the random mask and the connectome that tells structure from the
        identity of units (in the embedding: which token has which row).
    """

    rung = "N2"
    keeps = "each matrix up to the order of its rows and columns: degrees as multisets, signs"
    destroys = "which row and column is which, within and between matrices"
    paper = "hf_connectome"
    citation = "none"

    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Permute one parameter."""
        draw = self.draw(name, seed)
        content = entry.mask() if entry.sign_bits is None else entry.sign()
        blocks: NDArray[np.int8] = stacked(entry, content.numpy().view(np.int8)).copy()
        scale = entry.scale
        for block in blocks:
            rows = torch.randperm(block.shape[0], generator=draw).numpy()
            columns = torch.randperm(block.shape[1], generator=draw).numpy()
            block[:] = block[rows][:, columns]
            if scale is not None and len(scale) == len(rows) and not is_stack(entry):
                scale = scale[rows]
        dense = torch.from_numpy(blocks.reshape(entry.shape))
        return SignedMask.pack(
            dense != 0,
            None if entry.sign_bits is None else dense,
            scale=None if scale is None else torch.from_numpy(scale.copy()),
            orientation=entry.orientation,
        )

    def entry_bits(self, entry: SignedMask) -> float:
        """Count all bits less those of the order, log2 of rows! columns! a matrix.

        A lower bound: where rows or columns are equal, their order tells less.
        """
        num, rows, columns = matrices(entry).shape
        order = num * (math.lgamma(rows + 1) + math.lgamma(columns + 1)) / math.log(2)
        return max(0.0, mask_bits(entry) + sign_bits(entry) - float(order))

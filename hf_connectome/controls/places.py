"""One parameter opened into places and signs, shuffled exactly, and closed again.

Rows and columns are those of the matrices that a parameter holds: fused experts and other raw
parameters of three and more dimensions are stacks of matrices, everything else is one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome import scope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_connectome.signed_mask import SignedMask

    Flags = NDArray[np.bool_]


def is_stack(entry: SignedMask) -> bool:
    """Whether the parameter holds matrices in its last two dimensions (scope.is_stack)."""
    return scope.is_stack(entry.shape, entry.orientation)


def stacked(entry: SignedMask, array: NDArray[Any]) -> NDArray[Any]:
    """View an array of the parameter's shape as (matrices, rows, columns), row-major as it was."""
    if is_stack(entry):
        return array.reshape(-1, *entry.shape[-2:])
    return array.reshape(1, entry.rows, entry.columns)


def matrices(entry: SignedMask) -> Flags:
    """Return the mask as (matrices, rows, columns), a copy that may be written to."""
    return stacked(entry, entry.mask().numpy())


def negatives(entry: SignedMask) -> Flags | None:
    """Return for every survivor, in row-major order, whether it is negative; None without signs."""
    if entry.sign_bits is None:
        return None
    bits = np.unpackbits(entry.sign_bits, count=entry.num_survivors, bitorder="little")
    flags: Flags = bits.view(np.bool_)
    return flags


def rebuilt(entry: SignedMask, mask: Flags | None, negative: Flags | None) -> SignedMask:
    """Return the entry with other places and signs; scale and orientation stay.

    Args:
        entry: the original.
        mask: any shape of as many weights, row-major; None keeps the places.
        negative: one flag a survivor, row-major; None makes it mask-only.
    """
    bits = entry.mask_bits
    if mask is not None:
        bits = np.packbits(mask.reshape(entry.rows, -1), axis=1, bitorder="little")
    sign_bits = None if negative is None else np.packbits(negative, bitorder="little")
    return replace(entry, mask_bits=bits, sign_bits=sign_bits)


def fair_flags(num: int, draw: torch.Generator) -> Flags:
    """Draw ``num`` flags, each True with probability 1/2."""
    drawn = torch.randint(0, 2, (num,), generator=draw, dtype=torch.uint8)
    flags: Flags = drawn.numpy().view(np.bool_)
    return flags


def shuffled(values: Flags, draw: torch.Generator) -> Flags:
    """Return the values in uniformly random order."""
    reordered: Flags = values[torch.randperm(len(values), generator=draw).numpy()]
    return reordered


def shuffled_within(values: Flags, sizes: NDArray[Any], draw: torch.Generator) -> Flags:
    """Shuffle flags uniformly within consecutive groups, all groups at once.

    One sort does it: a key is the group, then random bits, then the flag itself. Between two
    members of a group ties have odds of 2^(g - 62), g the bits of the number of groups.

    Args:
        values: flags, group by group.
        sizes: how many of them each group has.
        draw: where the random bits come from.
    """
    shift = 63 - len(sizes).bit_length()
    keys = torch.empty(len(values), dtype=torch.int64).random_(generator=draw).numpy()
    keys >>= 63 - shift
    keys &= ~1
    keys |= np.repeat(np.arange(len(sizes), dtype=np.int64) << shift, sizes)
    keys |= values
    keys.sort()
    return (keys & 1).astype(np.bool_)


def signs_after_moves(entry: SignedMask, mask: Flags, draw: torch.Generator) -> Flags | None:
    """Give the signs of survivors that were moved, their number of negatives unchanged.

    A survivor that is still there keeps its sign. The signs of those that lost their place are
    dealt by lot to the places that are new.

    Args:
        entry: before the move.
        mask: after it, as many survivors, row-major.
        draw: where the lots come from.
    """
    negative = negatives(entry)
    if negative is None:
        return None
    before, after = entry.mask().numpy().reshape(-1), mask.reshape(-1)
    dense = np.zeros(before.size, dtype=np.bool_)
    dense[before] = negative
    dense[after & ~before] = shuffled(dense[before & ~after], draw)
    return dense[after]

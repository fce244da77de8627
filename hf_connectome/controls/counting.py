"""How many bits a mask, its signs and its margins take; nothing here knows controls.

All counts are relative to what every arm shares: names, shapes, and the density of each tensor.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.controls.places import matrices, negatives

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_connectome.connectome import Connectome, SignedMask

SCALE_BITS = 16
VALUE_BITS = 32
"""As the file stores them: float16 scales, float32 values that travel whole."""


def log2_binomial(n: int | NDArray[Any], k: int | NDArray[Any]) -> float:
    """Add up log2 of the binomial coefficients ``n`` over ``k``.

    Example:
        >>> round(2 ** log2_binomial(4, 2), 9)
        6.0
    """
    of, chosen = (torch.from_numpy(np.array(x, dtype=np.float64)) for x in (n, k))
    log = torch.lgamma(of + 1) - torch.lgamma(chosen + 1) - torch.lgamma(of - chosen + 1)
    return max(0.0, float(log.sum()) / math.log(2))


def mask_bits(entry: SignedMask) -> float:
    """Count log2 of the masks with as many survivors: n H(density), less half a log2 of n."""
    return log2_binomial(entry.num_weights, entry.num_survivors)


def sign_bits(entry: SignedMask) -> float:
    """Count one bit a survivor, none for a mask-only entry."""
    return 0.0 if entry.sign_bits is None else float(entry.num_survivors)


def balance_bits(num_signs: int | NDArray[Any], num_negative: int | NDArray[Any]) -> float:
    """Count what the number of negatives tells about fair signs, over one or many groups."""
    return max(0.0, float(np.sum(num_signs)) - log2_binomial(num_signs, num_negative))


def tensor_balance_bits(entry: SignedMask) -> float:
    """Count what the number of negative survivors of the tensor tells."""
    negative = negatives(entry)
    return 0.0 if negative is None else balance_bits(len(negative), int(negative.sum()))


def margin_bits(entry: SignedMask) -> float:
    """Count what the survivors of each row and column tell: log2 of masks over those that fit.

    Source:
        Good 1976, On the application of symmetric Dirichlet distributions and their mixtures to
        contingency tables: the 0/1 matrices of given margins number about
        prod C(columns, r_i) prod C(rows, c_j) / C(rows columns, survivors). An approximation.
    """
    fitting = 0.0
    for mask in matrices(entry):
        rows, columns = mask.shape
        by_row, by_column = mask.sum(1, dtype=np.int64), mask.sum(0, dtype=np.int64)
        fitting += log2_binomial(np.full(rows, columns), by_row)
        fitting += log2_binomial(np.full(columns, rows), by_column)
        fitting -= log2_binomial(mask.size, int(by_row.sum()))
    total = mask_bits(entry)
    return min(total, max(0.0, total - fitting))


def travelling_bits(connectome: Connectome) -> float:
    """Count the scales and the values that travel whole."""
    scales = sum(e.scale.size for e in connectome.values() if e.scale is not None)
    values = sum(value.numel() for value in connectome.values_carried.values())
    return float(SCALE_BITS * scales + VALUE_BITS * values)


def whole_bits(connectome: Connectome) -> float:
    """Count all that a connectome hands over: masks, signs, scales and values."""
    wiring = sum(mask_bits(entry) + sign_bits(entry) for entry in connectome.values())
    return wiring + travelling_bits(connectome)

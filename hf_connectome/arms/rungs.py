"""Rungs between a connectome and all of its parent: what each further piece is worth to a child.

Each says how many bits it takes over, so that the loss can be drawn against them: the inheritance
curve. All but the whole parent train under the same mask.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.controls.counting import SCALE_BITS, VALUE_BITS, mask_bits
from hf_connectome.hosts import check_host, like, wire

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.connectome import Connectome

WEIGHT_BITS = 16.0
"""Of a trained weight, carried as bfloat16."""
_MOST_LLOYD_ROUNDS = 10_000


class _ParentValues(Arm):
    """Mask and something of the survivors' trained values."""

    needs_parent = True
    bits_per_survivor = WEIGHT_BITS
    """On top of the mask; a sign is one of them."""

    @abstractmethod
    def values(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the values that survivors start from, of the parameter's shape."""

    def extra_bits(self, connectome: Connectome) -> float:
        """Return the bits beside those of the single survivors, such as levels or scales."""
        del connectome
        return 0.0

    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Give the survivors what is kept of the parent's values, zero the rest."""
        connectome, parent = estate.connectome, estate.parent
        assert parent is not None

        def early(name: str) -> Tensor:
            return self.values(name, parent[name].float(), connectome.mask(name))

        wire(host, connectome, reset="rewind", early=early)
        bits = sum(mask_bits(entry) for entry in connectome.values())
        bits += self.bits_per_survivor * connectome.num_survivors
        bits += VALUE_BITS * sum(value.numel() for value in connectome.values_carried.values())
        return Inherited(connectome, bits + self.extra_bits(connectome))


@arms.register("tensor-scale")
class TensorScales(_ParentValues):
    """Mask, signs, and one 16-bit scale a tensor: the mean |w| of its survivors."""

    keeps = "mask, signs, one scale a tensor"
    bits_per_survivor = 1.0

    def values(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Return sign x mean |w| of the tensor's survivors."""
        del name
        return _signs(weight) * _as_stored(_mean(weight.abs(), mask))

    def extra_bits(self, connectome: Connectome) -> float:
        """Count 16 bits a tensor."""
        return float(SCALE_BITS * len(connectome))


@arms.register("row-scale")
class RowScales(_ParentValues):
    """Mask, signs, and one 16-bit scale a row: the mean |w| of its survivors."""

    keeps = "mask, signs, one scale a row"
    bits_per_survivor = 1.0

    def values(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Return sign x mean |w| of the row's survivors."""
        del name
        flat, alive = weight.abs().flatten(1), mask.flatten(1)
        scale = _as_stored((flat * alive).sum(1) / alive.sum(1).clamp(min=1))
        return _signs(weight) * scale.reshape(-1, *([1] * (weight.ndim - 1)))

    def extra_bits(self, connectome: Connectome) -> float:
        """Count 16 bits a row."""
        return float(SCALE_BITS * sum(entry.rows for entry in connectome.values()))


class _Quantised(_ParentValues):
    """Mask and survivors rounded to ``2 ** bits`` levels, half of them negative."""

    def values(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Return sign x the nearest of the tensor's best levels of |w|."""
        del name
        levels = lloyd_levels(weight.abs()[mask], 2 ** int(self.bits_per_survivor - 1))
        levels = _as_stored(levels)
        edges = (levels[1:] + levels[:-1]) / 2
        return _signs(weight) * levels[torch.bucketize(weight.abs(), edges)]

    def extra_bits(self, connectome: Connectome) -> float:
        """Count the levels: 16 bits each, for every tensor."""
        return SCALE_BITS * 2 ** (self.bits_per_survivor - 1) * len(connectome)


@arms.register("2-bit")
class TwoBit(_Quantised):
    """Mask and survivors of 2 bits: a sign and one of two magnitudes."""

    keeps = "mask and 2 bits a survivor"
    bits_per_survivor = 2.0


@arms.register("4-bit")
class FourBit(_Quantised):
    """Mask and survivors of 4 bits: a sign and one of eight magnitudes."""

    keeps = "mask and 4 bits a survivor"
    bits_per_survivor = 4.0


@arms.register("weights")
class SurvivingWeights(_ParentValues):
    """Mask and the survivors' trained values, 16 bits each."""

    keeps = "mask and all surviving weights"

    def values(self, name: str, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the trained values, rounded to bfloat16."""
        del name, mask
        return weight.bfloat16().float()


@arms.register("parent")
class Parent(Arm):
    """All weights in scope of the trained parent, 16 bits each; no mask."""

    keeps = "every weight of the parent"
    needs_parent = True

    @torch.no_grad()
    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Copy the trained weights."""
        assert estate.parent is not None
        for name, parameter in check_host(estate.connectome, host).items():
            value = estate.parent[name].bfloat16().float()
            parameter.copy_(like(value, parameter))
        return Inherited(None, WEIGHT_BITS * estate.connectome.num_weights)


def lloyd_levels(magnitudes: Tensor, num_levels: int) -> Tensor:
    """Return the levels of least squared error for magnitudes, ascending.

    Source:
        Lloyd 1982, Least squares quantization in PCM, from quantiles on until nothing moves.
    """
    ordered = magnitudes.float().sort().values
    if len(ordered) == 0:
        return torch.zeros(num_levels)
    middles = (torch.arange(num_levels) + 0.5) / num_levels
    levels = ordered[(middles * len(ordered)).long().clamp(max=len(ordered) - 1)]
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.double().cumsum(0)])
    for _ in range(_MOST_LLOYD_ROUNDS):
        inner = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        ends = torch.cat([torch.tensor([0]), inner, torch.tensor([len(ordered)])])
        counts = ends.diff()
        means = (sums[ends[1:]] - sums[ends[:-1]]) / counts.clamp(min=1)
        before, levels = levels, torch.where(counts > 0, means.float(), levels)
        if torch.equal(before, levels):
            break
    return levels


def _signs(weight: Tensor) -> Tensor:
    """Return -1 or +1; a weight that is exactly 0 counts as positive, as everywhere."""
    return torch.where(weight < 0, -1.0, 1.0)


def _as_stored(scale: Tensor) -> Tensor:
    """Round to the 16 bits that a scale is counted with."""
    return scale.half().float()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask].mean() if bool(mask.any()) else torch.zeros(())

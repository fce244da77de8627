"""Rivals: simpler ways to spend the bits of a connectome, and its embeddings at one bit each."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.arms.rungs import WEIGHT_BITS
from hf_connectome.controls.counting import SCALE_BITS, mask_bits, sign_bits
from hf_connectome.hosts import check_host, like
from hf_connectome.scope import resolve
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import nn

    from hf_connectome.connectome import Connectome


class _Selection(Arm):
    """As many trained weights as the budget pays for, 16 bits each, at places drawn by the seed.

    Source:
        Xu et al. 2024, Initializing Models with Larger Ones (weight selection): uniform selection
        did as well as any other. Host and parent have one size here, so weights keep their place.
    """

    needs_parent = True

    @abstractmethod
    def budget(self, connectome: Connectome) -> float:
        """Return the bits to spend."""

    @torch.no_grad()
    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Copy a uniform sample of the trained weights; the others stay fresh."""
        assert estate.parent is not None
        connectome = estate.connectome
        share = min(1.0, self.budget(connectome) / WEIGHT_BITS / connectome.num_weights)
        num_copied = 0
        for name, parameter in check_host(connectome, host).items():
            num_weights = parameter.numel()
            number = round(share * num_weights)
            chosen = torch.randperm(
                num_weights, generator=generator(estate.seed, name, "selection")
            )
            value = parameter.detach().cpu().float().flatten()
            trained = estate.parent[name].bfloat16().float().flatten()
            value[chosen[:number]] = trained[chosen[:number]]
            parameter.copy_(like(value.reshape(parameter.shape), parameter))
            num_copied += number
        return Inherited(None, WEIGHT_BITS * num_copied)


@arms.register("selection")
class SelectionAsConnectome(_Selection):
    """Weight selection for the bits of mask and signs."""

    keeps = "trained weights at random places, for the bits of mask and signs"

    def budget(self, connectome: Connectome) -> float:
        """Return the bits of mask and signs."""
        return sum(mask_bits(entry) + sign_bits(entry) for entry in connectome.values())


@arms.register("selection-4-bit")
class SelectionAsFourBit(_Selection):
    """Weight selection for the bits of mask and 4-bit survivors."""

    keeps = "trained weights at random places, for the bits of 4-bit survivors"

    def budget(self, connectome: Connectome) -> float:
        """Return the bits of mask and 4 bits a survivor."""
        return sum(mask_bits(e) + 4.0 * e.num_survivors for e in connectome.values())


@arms.register("selection-weights")
class SelectionAsWeights(_Selection):
    """Weight selection for the bits of all surviving weights and their mask."""

    keeps = "trained weights at random places, for the bits of all surviving weights"

    def budget(self, connectome: Connectome) -> float:
        """Return the bits of mask and 16 bits a survivor."""
        return sum(mask_bits(e) + WEIGHT_BITS * e.num_survivors for e in connectome.values())


@arms.register("embedding-signs")
class EmbeddingSigns(Arm):
    """One bit for every weight of the trained embeddings, and nothing else."""

    keeps = "the sign of every embedding weight, one scale a table"
    needs_parent = True

    @torch.no_grad()
    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Give embeddings sign x mean |w| of the parent; the rest stays fresh and dense."""
        assert estate.parent is not None
        bits = 0.0
        parameters = check_host(estate.connectome, host)
        for name in resolve(host, "embeddings").keys() & parameters.keys():
            weight = estate.parent[name].float()
            value = torch.where(weight < 0, -1.0, 1.0) * weight.abs().mean()
            parameters[name].copy_(like(value, parameters[name]))
            bits += weight.numel() + SCALE_BITS
        return Inherited(None, bits)

"""Where a generation's weights are ranked: gathered, or by rows on the processes that hold them.

By rows, histograms travel, and of each parameter one byte a weight: its sign, 0 where it is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.histograms import ALONE, Ranks
from hf_connectome.hosts import full_tensor, like
from hf_connectome.signed_mask import SignedMask, as_array

if TYPE_CHECKING:
    from torch import Tensor


class Gathered:
    """Whole parameters, one at a time on the CPU of every process."""

    ranks = ALONE

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Take name -> parameter, plain or a shard."""
        self._parameters = parameters

    def weight(self, name: str) -> Tensor:
        """Return what is ranked here of a parameter."""
        return full_tensor(self._parameters[name]).cpu()

    def mask(self, name: str, whole: Tensor) -> Tensor:
        """Return what is ranked here of a mask."""
        del name
        return whole

    def pack(self, name: str, mask: Tensor, orientation: str, *, with_scale: bool) -> SignedMask:
        """Pack the whole of a parameter from what is kept of it here.

        Args:
            name: of the parameter.
            mask: bool, shape of :meth:`weight`.
            orientation: as it is stored (scope.py).
            with_scale: whether the mean ``|w|`` of the survivors goes with it.
        """
        weight = self.weight(name)
        scale = self._mean_magnitude(weight, mask) if with_scale else None
        signs, mask = self._whole(name, weight, mask)
        return SignedMask.pack(mask, signs, scale=scale, orientation=orientation)

    def _whole(self, name: str, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return signs and mask of the whole parameter."""
        del name
        return weight, mask

    def _mean_magnitude(self, weight: Tensor, mask: Tensor) -> Tensor:
        # In float64: what is summed by process then rounds to the same float16.
        alive = as_array(weight.float())[as_array(mask)]
        total, count = self.ranks.total([np.abs(alive).sum(dtype=np.float64), float(len(alive))])
        return torch.tensor([total / count])


class Rows(Gathered):
    """The rows of each parameter that this process holds, as FSDP2 deals them out."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Take name -> DTensor."""
        super().__init__(parameters)
        first = next(iter(parameters.values()))
        self.ranks = Ranks(first.device_mesh.get_group(), first.device)

    def weight(self, name: str) -> Tensor:
        """Return this process's rows."""
        rows: Tensor = self._parameters[name].detach().to_local().cpu()
        return rows

    def mask(self, name: str, whole: Tensor) -> Tensor:
        """Return this process's rows of a mask that every process has whole."""
        # As bytes: gloo scatters no bool.
        part: Any = like(whole, self._parameters[name], torch.uint8)
        rows: Tensor = part.to_local().cpu().bool()
        return rows

    def _whole(self, name: str, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torch.distributed.tensor import DTensor

        parameter = self._parameters[name]
        signs = torch.where(weight < 0, -1, 1).to(torch.int8) * mask
        whole = DTensor.from_local(
            signs.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        gathered = whole.full_tensor().cpu()
        return gathered, gathered != 0


def lie_by_rows(parameters: Mapping[str, Any]) -> bool:
    """Say whether each parameter is dealt out by rows over one and the same line of processes.

    Not float64 ones: they are compared in float64 where they are whole.
    """
    from torch.distributed.tensor import DTensor, Shard

    meshes = set()
    for parameter in parameters.values():
        if not isinstance(parameter, DTensor) or tuple(parameter.placements) != (Shard(0),):
            return False
        if parameter.dtype == torch.float64:
            return False
        meshes.add(parameter.device_mesh)
    return len(meshes) == 1

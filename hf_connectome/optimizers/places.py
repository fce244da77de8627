"""Where the survivors of a parameter are, in one byte each, and how values are packed by it.

A flat index would cost as much as a packed moment. Survivors lie close together, so the distance
from one to the next fits a byte; what does not is listed beside it. Decoding is a running sum: no
copy to the host, whatever the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_connectome.errors import UnsupportedError
from hf_connectome.hosts import check_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from hf_connectome.connectome import Connectome, SignedMask

# Survivors at a time: on CPU what is computed from them then stays in the cache; elsewhere it
# bounds the memory for indices.
_AT_A_TIME = {"cpu": 1 << 17}
_AT_A_TIME_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Chunk:
    """Some survivors in a row."""

    part: slice
    """Which of the packed values they are."""
    start: int
    """The flat index that the first gap counts from."""
    gaps: Tensor
    """``(n,)`` uint8: distance from the survivor before, modulo 256."""
    far: Tensor
    """``(k,)`` int64: which of them are farther than 255, at most one in 256 weights."""
    leaps: Tensor
    """``(k,)`` int64: by how much farther, a multiple of 256."""

    def index(self) -> Tensor:
        """Return ``(n,)`` int64: places, counted from ``start``."""
        if not len(self.far):
            return self.gaps.cumsum(0)
        return self.gaps.long().index_add_(0, self.far, self.leaps).cumsum_(0)


class Places:
    """The survivors of one parameter, in row-major order.

    Example:
        >>> import torch
        >>> from hf_connectome import SignedMask
        >>> places = Places(SignedMask.pack(torch.eye(2, dtype=torch.bool)))
        >>> places.pack(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([1., 4.])
    """

    def __init__(self, entry: SignedMask, device: torch.device | str = "cpu") -> None:
        """Write down where the mask is True.

        Args:
            entry: the mask.
            device: where the values to pack are.
        """
        self.num_survivors = entry.num_survivors
        flat = np.flatnonzero(entry.mask().numpy())
        most = _AT_A_TIME.get(torch.device(device).type, _AT_A_TIME_ELSEWHERE)
        self.chunks = [
            _chunk(flat, slice(first, min(first + most, len(flat))), device)
            for first in range(0, len(flat), most)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes that the places take in memory."""
        return sum(t.nbytes for c in self.chunks for t in (c.gaps, c.far, c.leaps))

    def pack(self, values: Tensor) -> Tensor:
        """Return the survivors' values, ``(num_survivors,)``."""
        flat = values.reshape(-1)
        parts = [flat[c.start :].index_select(0, c.index()) for c in self.chunks]
        return torch.cat(parts) if parts else flat[:0].clone()

    def unpack(self, packed: Tensor, into: Tensor) -> None:
        """Write packed values to their places in a contiguous tensor; the rest becomes 0."""
        flat = into.view(-1).zero_()
        for c in self.chunks:
            flat[c.start :].scatter_(0, c.index(), packed[c.part])


def _chunk(flat: np.ndarray, part: slice, device: torch.device | str) -> Chunk:
    start = int(flat[part.start - 1]) if part.start else 0
    distances = np.diff(flat[part], prepend=start)
    far = np.flatnonzero(distances > 255)
    return Chunk(
        part,
        start,
        torch.from_numpy(distances.astype(np.uint8)).to(device),
        torch.from_numpy(far).to(device),
        torch.from_numpy(distances[far] & ~255).to(device),
    )


def packed_entries(
    connectome: Connectome, model: nn.Module
) -> Iterator[tuple[nn.Parameter, SignedMask]]:
    """Give the parameters that have dead weights, with their masks.

    One that is not contiguous (channels last) has no flat view and is left out.

    Raises:
        HostMismatchError: the model does not fit.
        UnsupportedError: a parameter is an FSDP2 shard.
    """
    for name, parameter in check_host(connectome, model).items():
        if hasattr(parameter, "device_mesh"):
            raise UnsupportedError(
                f"{name!r} is an FSDP2 shard, of which each rank has other rows; what is kept for "
                "survivors alone is kept for whole parameters. Use DDP, or the dense state "
                "(optimizer_state='dense', survivor_all_reduce=False)."
            )
        entry = connectome[name]
        if entry.num_survivors < entry.num_weights and parameter.is_contiguous():
            yield parameter, entry

"""The largest weights of a parameter, exactly counted after every step, without ranking them all.

What is zeroed is not dead: its gradient is untouched, so the next step may bring it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.enforcement import inner_optimizer
from hf_connectome.errors import UnsupportedError
from hf_connectome.selection import keep

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

_NUM_SAMPLED = 2048
_DEVIATIONS = 4.0
"""Half the width of the bracket, in standard deviations of a rank in the sample."""


@torch.no_grad()
def zero_smallest(
    weight: Tensor, n_drop: int, *, name: str = "parameter", num_sampled: int = _NUM_SAMPLED
) -> int:
    """Set exactly the ``n_drop`` weights of least ``|w|`` to 0, in place.

    A sample brackets the threshold, and only weights inside the bracket are ranked, by
    :func:`hf_connectome.selection.keep`: ties go to the lower flat index. Where the bracket turns
    out to be wrong all weights are ranked, so the result does not depend on the sample.

    Args:
        weight: any shape and strides.
        n_drop: how many become 0, at least 0.
        name: what to call the parameter in an error.
        num_sampled: about the size of the sample; a parameter of up to twice as many weights is
            ranked whole.

    Returns:
        How many weights were ranked.

    Raises:
        ScopeError: a weight that is ranked is NaN, or there are fewer than ``n_drop``.

    Source:
        Bracketing by a sample: Floyd & Rivest 1975, "Expected time bounds for selection"; the text
        was not read.

    Example:
        >>> import torch
        >>> weight = torch.tensor([4.0, -1.0, 2.0, -3.0])
        >>> zero_smallest(weight, 2)
        4
        >>> weight.tolist()
        [4.0, 0.0, 0.0, -3.0]
    """
    if n_drop == 0:
        return 0
    size = weight.abs().reshape(-1)
    size = size if size.dtype == torch.float64 else size.float()
    low, high = _bracket(size, n_drop, num_sampled)
    num_below, inside = _between(size, low, high)
    if not num_below < n_drop <= num_below + len(inside):
        num_below, inside = 0, torch.arange(len(size), device=size.device)
    ranked = size[inside]
    everything = torch.ones_like(ranked, dtype=torch.bool)
    dropped = inside[~keep(ranked, everything, n_drop - num_below, name=name)]
    if num_below:
        torch.hardshrink(weight, low, out=weight)  # 0 where |w| <= low
    weight.put_(dropped, weight.new_zeros(()).expand(len(dropped)))
    return len(inside)


def _bracket(size: Tensor, n_drop: int, num_sampled: int) -> tuple[float, float]:
    """Return sizes that the ``n_drop``-th smallest one very probably lies between."""
    if len(size) <= 2 * num_sampled:
        return -1.0, -1.0  # nothing lies between, so all are ranked
    step = len(size) // num_sampled | 1  # odd, so that it meets every column of most matrices
    sample = size[::step].cpu().numpy()
    fraction = n_drop / len(size)
    middle = fraction * len(sample)
    width = _DEVIATIONS * (middle * (1 - fraction)) ** 0.5 + 1
    first, last = math.floor(middle - width), math.ceil(middle + width)
    inner = [rank for rank in (first, last) if 0 <= rank < len(sample)]
    sample = np.partition(sample, inner) if inner else sample
    low = float(sample[first]) if first >= 0 else -1.0
    high = float(sample[last]) if last < len(sample) else math.inf
    return low, high


def _between(size: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """Count the sizes up to ``low``; give the flat indices of those above it and up to ``high``."""
    if size.device.type == "cpu":  # numpy compares several times as fast there
        flat = size.numpy()
        larger = flat > low
        inside = np.flatnonzero(larger & (flat <= high))
        return len(flat) - int(np.count_nonzero(larger)), torch.from_numpy(inside)
    above = size > low
    return len(size) - int(above.sum()), (above & (size <= high)).nonzero().squeeze(1)


class HardThresholds:
    """Keeps the largest weights of every parameter after each step of an optimizer."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Hold the parameters in scope.

        Raises:
            UnsupportedError: a parameter is a shard, whose own largest weights are not the whole's.
        """
        for name, parameter in parameters.items():
            if hasattr(parameter, "device_mesh"):
                raise UnsupportedError(
                    f"{name!r} is sharded (FSDP2), and the largest weights of a shard are not "
                    "those of the parameter. Use DDP with outer_loop iht."
                )
        self._parameters = dict(parameters)
        self._hook: RemovableHandle | None = None
        self.n_drop: Mapping[str, int] = dict.fromkeys(parameters, 0)
        """How many weights of each parameter are 0 after the next step."""

    def attach(self, optimizer: Optimizer) -> HardThresholds:
        """Zero the smallest weights after every step from now on; gradients stay as they are."""
        self._hook = inner_optimizer(optimizer).register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Remove the hook; weights stay as they are."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def project(self) -> None:
        """Zero the smallest weights now."""
        for name, parameter in self._parameters.items():
            zero_smallest(parameter, self.n_drop[name], name=name)

    def mask(self, name: str) -> Tensor:
        """Return the bool mask of the largest weights of one parameter, on the CPU."""
        size = self._parameters[name].detach().abs().cpu()
        return keep(size, torch.ones_like(size, dtype=torch.bool), self.n_drop[name], name=name)

    def _after_step(self, *_: Any) -> None:
        self.project()

"""The largest weights of a parameter, exactly counted after every step, without ranking them all.

What is zeroed is not dead: its gradient is untouched, so the next step may bring it back.
"""

from __future__ import annotations

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

_BRACKET = 0.05
"""A threshold moves less than this fraction of itself in most steps; if not, all are ranked."""


class RunningThreshold:
    """Zeroes the smallest weights of one parameter, step after step.

    The threshold of the last step brackets the next one: only weights inside the bracket are
    ranked, by :func:`hf_connectome.selection.keep`. Where the bracket turns out to be wrong, all
    weights are ranked, so the result never depends on it.

    Source:
        Ours; the result is that of hard thresholding (Blumensath & Davies 2009).

    Example:
        >>> import torch
        >>> weight = torch.tensor([0.5, -0.1, 0.3, -0.4])
        >>> RunningThreshold("w").zero_smallest(weight, 2)
        >>> weight.tolist() == [0.5, 0.0, 0.0, torch.tensor(-0.4).item()]
        True
    """

    def __init__(self, name: str) -> None:
        """Know nothing of the first threshold; ``name`` is for errors."""
        self.name = name
        self.num_ranked = 0
        """How many weights the last step had to rank."""
        self._bracket = (0.0, 0.0)

    @torch.no_grad()
    def zero_smallest(self, weight: Tensor, n_drop: int) -> None:
        """Set exactly the ``n_drop`` weights of least ``|w|`` to 0, in place.

        Ties go to the lower flat index, as in :func:`hf_connectome.selection.keep`.

        Raises:
            ScopeError: a weight is NaN, or there are fewer than ``n_drop``.
        """
        if n_drop == 0:
            return
        size = weight.abs().reshape(-1)
        size = size if size.dtype == torch.float64 else size.float()
        low, high = self._bracket
        num_below, inside = _between(size, low, high)
        if not num_below < n_drop <= num_below + len(inside):
            num_below, inside = 0, torch.arange(len(size), device=size.device)
        self.num_ranked = len(inside)
        ranked = size[inside]
        everything = torch.ones_like(ranked, dtype=torch.bool)
        dropped = ~keep(ranked, everything, n_drop - num_below, name=self.name)
        if num_below:
            torch.hardshrink(weight, low, out=weight)  # 0 where |w| <= low
        weight.put_(inside[dropped], weight.new_zeros(()).expand(int(dropped.sum())))
        threshold = float(ranked[dropped].max())
        edges = [threshold * (1 - _BRACKET), threshold * (1 + _BRACKET)]
        # Rounded to numbers that the parameter's dtype has, so that all comparisons agree.
        low, high = torch.tensor(edges, dtype=weight.dtype).tolist()
        self._bracket = (low, high)


def _between(size: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """Count the sizes up to ``low``; give the flat indices of those above it and up to ``high``."""
    if size.device.type == "cpu":  # numpy compares several times as fast there
        flat = size.numpy()
        inside = np.flatnonzero((flat > low) & (flat <= high))
        return int(np.count_nonzero(flat <= low)), torch.from_numpy(inside)
    return int((size <= low).sum()), ((size > low) & (size <= high)).nonzero().squeeze(1)


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
        self._running = {name: RunningThreshold(name) for name in parameters}
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
            self._running[name].zero_smallest(parameter, self.n_drop[name])

    def mask(self, name: str) -> Tensor:
        """Return the bool mask of the largest weights of one parameter, on the CPU."""
        size = self._parameters[name].detach().abs().cpu()
        return keep(size, torch.ones_like(size, dtype=torch.bool), self.n_drop[name], name=name)

    def _after_step(self, *_: Any) -> None:
        self.project()

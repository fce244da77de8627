"""The gradient of whole matrices, dead weights included, over one optimizer step."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import distributed

from hf_connectome.enforcement import num_ranks
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import full_tensor

if TYPE_CHECKING:
    from torch import Tensor


class DenseGradients:
    """Collects gradients before they are masked; an observer of MaskEnforcer.

    It is there for one optimizer step at a time, so nothing of it needs to be saved.
    """

    def __init__(self, names: Collection[str], method: str) -> None:
        """Collect those of ``names``, for ``method``."""
        self._names = names
        self._method = method
        self._sums: dict[str, Tensor] = {}

    def __call__(self, name: str, gradient: Tensor, mask: Tensor) -> None:
        """Add the gradient of one micro-step.

        Where weights live the gradient is a running sum already; elsewhere it was masked after
        every earlier micro-step.
        """
        if name in self._names:
            earlier = self._sums.get(name)
            total = gradient.detach().clone()
            self._sums[name] = total if earlier is None else total + earlier * (mask == 0)

    def of(self, name: str) -> Tensor:
        """Return the gradient of the step on the CPU, in float32, as the mean over ranks.

        Raises:
            ConfigError: there was none.
        """
        if name not in self._sums:
            raise ConfigError(
                f"{name!r} has had no gradient since the last step, which {self._method} grows or "
                "keeps links by. Use a Trainer that calls backward() under the masks, or a method "
                "that needs no gradient, such as set or chts."
            )
        gradient = self._sums[name].float()
        is_shard = hasattr(gradient, "full_tensor")  # FSDP2 has taken the mean already
        if not is_shard and num_ranks() > 1:
            distributed.all_reduce(gradient)
            gradient /= num_ranks()
        return full_tensor(gradient).cpu()

    def clear(self) -> None:
        """Forget the step."""
        self._sums.clear()

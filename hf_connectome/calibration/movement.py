"""-(gradient x weight), summed over the steps of a training: what movement pruning ranks by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.enforcement import inner_optimizer
from hf_connectome.errors import RunError
from hf_connectome.hosts import full_tensor, like
from hf_connectome.runs import is_whole
from hf_connectome.scope import parameters_of
from hf_connectome.storage import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

MOVEMENT_FILE = "movement.safetensors"


class MovementSums:
    """Sums up before every step of an optimizer, with the gradients that the optimizer gets.

    Works under DDP and on FSDP2 shards.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> sums = MovementSums(["weight"])
        >>> sums.attach(layer, optimizer)
        >>> layer(torch.ones(1, 1)).sum().backward()
        >>> optimizer.step()
        >>> sums.take()["weight"].item()
        -2.0
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Start at 0 for the parameters of these names."""
        self._names = tuple(names)
        self._sums: dict[str, Tensor] = {}
        self._read: dict[str, Tensor] = {}
        self._hook: RemovableHandle | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Sum from now on."""
        self.detach()

        def add(*_: Any) -> None:
            self._add(model)

        self._hook = inner_optimizer(optimizer).register_step_pre_hook(add)

    def detach(self) -> None:
        """Remove the hook; the sums stay."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _add(self, model: nn.Module) -> None:
        parameters = parameters_of(model)  # anew: loaders and fully_shard replace them
        for name in self._names:
            parameter = parameters[name]
            if name not in self._sums:
                start = self._read.pop(name, None)
                self._sums[name] = (
                    torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
                    if start is None
                    else like(start, parameter, torch.float32)
                )
            if parameter.grad is not None:
                self._sums[name] -= parameter.grad.float() * parameter.float()

    def take(self) -> dict[str, Tensor]:
        """Return the sums, whole and on the CPU, and start again at 0."""
        whole = self._whole()
        self._sums, self._read = {}, {}
        return whole

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the sums so far; every rank calls it, and those with ``write`` write."""
        from safetensors.torch import save

        whole = self._whole()
        if write:
            data = save({name: value.contiguous() for name, value in whole.items()})
            write_atomically(folder / MOVEMENT_FILE, data)

    def load(self, folder: Path) -> None:
        """Go on from the sums that were saved.

        Raises:
            RunError: they are not there, or damaged.
        """
        from safetensors.torch import load_file

        file = folder / MOVEMENT_FILE
        if not is_whole(file):
            raise RunError(
                f"{file} is missing or damaged; the criterion 'movement' cannot go on without its "
                "sums. Resume from another checkpoint, or start the run anew."
            )
        self._sums, self._read = {}, load_file(file)

    def _whole(self) -> dict[str, Tensor]:
        sums = {name: full_tensor(value).cpu() for name, value in self._sums.items()}
        return sums | self._read

"""Ranks exchange the gradients of survivors alone: a communication hook of torch's DDP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hf_connectome.errors import UnsupportedError
from hf_connectome.optimizers.places import Places, packed_entries

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.futures import Future

    from hf_connectome.connectome import Connectome
    from hf_connectome.enforcement import MaskEnforcer


class SurvivorAllReduce:
    """Averages the gradients of survivors over the ranks, and sets those of dead weights to 0.

    It follows the enforcer's connectome. Ranks must have the same one, as they must have anyway.

    Example:
        ``SurvivorAllReduce(enforcer).register(ddp_model)``, before the first backward pass.
    """

    def __init__(self, enforcer: MaskEnforcer) -> None:
        """Hold the enforcer, whose masks say what travels."""
        self.enforcer = enforcer
        self.num_bytes = 0
        """Bytes that this rank has given to all-reduce so far."""
        self._connectome: Connectome | None = None
        self._places: dict[Tensor, Places] = {}

    def register(self, model: nn.Module) -> None:
        """Let a DDP model exchange its gradients by this.

        Raises:
            UnsupportedError: the model is not under DDP.
        """
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        if not isinstance(model, DistributedDataParallel):
            raise UnsupportedError(
                f"gradients of survivors are exchanged under DDP alone; the model is a "
                f"{type(model).__name__}. Wrap it in DistributedDataParallel, or leave "
                "survivor_all_reduce out."
            )
        group = model.process_group
        # Not the method itself: DDP compares a hook's annotations, which here are text.
        model.register_comm_hook(group, lambda group, bucket: self._exchange(group, bucket))

    def _exchange(self, group: Any, bucket: Any) -> Future[Tensor]:
        """Pack a bucket of gradients, average it over the ranks, and unpack it in place."""
        gradients: list[Tensor] = bucket.gradients()
        places = self._places_of(bucket.parameters())
        parts = [
            gradient.reshape(-1) if place is None else place.pack(gradient)
            for gradient, place in zip(gradients, places, strict=True)
        ]
        packed = torch.cat(parts).div_(group.size())
        self.num_bytes += packed.nbytes

        def unpack(done: Future[list[Tensor]]) -> Tensor:
            averages = done.value()[0].split([len(part) for part in parts])
            for gradient, place, average in zip(gradients, places, averages, strict=True):
                if place is None:
                    gradient.copy_(average.view(gradient.shape))
                else:
                    place.unpack(average, into=gradient)
            whole: Tensor = bucket.buffer()
            return whole

        work = distributed.all_reduce(packed, group=group, async_op=True)
        averaged: Future[Tensor] = work.get_future().then(unpack)
        return averaged

    def _places_of(self, parameters: list[Tensor]) -> list[Places | None]:
        """Return where the survivors of each parameter are, None where all of it travels."""
        connectome = self.enforcer.connectome
        if connectome is not self._connectome:
            packed = packed_entries(connectome, self.enforcer.model)
            self._places = {p: Places(entry, p.device) for p, entry in packed}
            self._connectome = connectome
        return [self._places.get(p) for p in parameters]

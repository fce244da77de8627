"""Ranks exchange the gradients of survivors alone: a communication hook of torch's DDP."""

# Annotations are evaluated here: DDP looks at those of a hook.
import torch
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hf_connectome.enforcement import MaskEnforcer
from hf_connectome.errors import UnsupportedError
from hf_connectome.optimizers.places import Places, packed_entries


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
        self._connectome: object = None
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
        self._group = model.process_group
        model.register_comm_hook(self, SurvivorAllReduce.exchange)

    def places_of(self, parameters: list[Tensor]) -> list[Places | None]:
        """Return the places of each parameter's survivors, None where all of it travels."""
        if self.enforcer.connectome is not self._connectome:
            self._connectome = self.enforcer.connectome
            packed = packed_entries(self.enforcer.connectome, self.enforcer.model)
            self._places = {p: Places(entry, p.device) for p, entry in packed}
        return [self._places.get(p) for p in parameters]

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """Pack a bucket, average it over the ranks, and unpack it."""
        gradients = bucket.gradients()
        places = self.places_of(bucket.parameters())
        parts = [
            gradient.reshape(-1) if place is None else place.pack(gradient)
            for gradient, place in zip(gradients, places, strict=True)
        ]
        packed = torch.cat(parts).div_(self._group.size())
        self.num_bytes += packed.nbytes

        def unpack(done: Future[list[Tensor]]) -> Tensor:
            averages = done.value()[0].split([len(part) for part in parts])
            for gradient, place, average in zip(gradients, places, averages, strict=True):
                if place is None:
                    gradient.copy_(average.view(gradient.shape))
                else:
                    place.unpack(average, into=gradient)
            return bucket.buffer()

        work = distributed.all_reduce(packed, group=self._group, async_op=True)
        return work.get_future().then(unpack)

"""Dead weights stay exactly 0 under any optimizer, in place on an untouched model.

Gradients are masked as they are accumulated, so before any clipping; weights are projected after
every optimizer step, so weight decay, momentum and orthogonalisation leave nothing behind.
State-dict keys, the compiled graph and activation memory are those of the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from hf_connectome.errors import ConfigError, HostMismatchError, RunError, UnsupportedError, some
from hf_connectome.hosts import check_host, like, reshard
from hf_connectome.scope import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from hf_connectome.connectome import Connectome


@dataclass
class Bound:
    """One parameter in scope, where it lives (a tied one in several places), its working mask."""

    name: str
    homes: list[tuple[nn.Module, str]]
    parameter: nn.Parameter
    mask: Tensor

    def held(self) -> set[int]:
        """Return the ids of what is in its places now: one, or several if a tie was broken."""
        return {id(module._parameters.get(leaf)) for module, leaf in self.homes}


class MaskEnforcer:
    """Keeps the dead weights of a connectome at exactly 0 while a model trains.

    Works on plain models, under DDP, torch.compile, autocast, gradient checkpointing and on FSDP2
    shards, with any optimizer that has ``register_step_post_hook`` (all of torch.optim's).

    Example:
        >>> import torch
        >>> from hf_connectome import Connectome, SignedMask
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> wiring = Connectome(
        ...     {"weight": SignedMask.pack(torch.eye(2, dtype=torch.bool), orientation="out_in")}
        ... )
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        >>> enforcer = MaskEnforcer(layer, wiring).attach(optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> _ = optimizer.step()
        >>> int((layer.weight != 0).sum())
        2
    """

    def __init__(self, model: nn.Module, connectome: Connectome) -> None:
        """Bind the connectome's parameters by name and zero the dead weights.

        Args:
            model: the host, wrapped (DDP, compiled, ``fully_shard``) or not.
            connectome: what may live.

        Raises:
            HostMismatchError: the model does not fit.
            UnsupportedError: FSDP1 or DeepSpeed hold the weights where no mask can reach them.
        """
        refuse_flat_shards(model)
        self.model = model
        self.connectome = connectome
        self._bound: list[Bound] = []
        self._optimizers: list[tuple[Optimizer, RemovableHandle]] = []
        self._gradient_hooks: list[RemovableHandle] = []
        self.observer: Callable[[str, Tensor, Tensor], None] | None = None
        """Sees name, gradient and working mask before each masking, where one is set."""
        self._bind()
        self.project()

    @property
    def num_bound(self) -> int:
        """How many parameters are under a mask."""
        return len(self._bound)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers, torch's own, whose steps are projected."""
        return [optimizer for optimizer, _ in self._optimizers]

    def attach(self, *optimizers: Optimizer) -> MaskEnforcer:
        """Mask gradients from now on, and project after every step of the given optimizers.

        Without an optimizer only gradients are masked: enough for AdamW, SGD and Adafactor on
        weights that are 0 already, not for optimizers that mix weights, such as Muon.

        Raises:
            UnsupportedError: an optimizer holds flat copies of the weights (DeepSpeed) or does not
                update them in its step (LOMO).
            ConfigError: an optimizer holds none of the parameters in scope.
        """
        self._rebind_if_replaced()
        inner = [inner_optimizer(optimizer) for optimizer in optimizers]
        for optimizer in inner:
            self._held_in_scope(optimizer)
        for optimizer in inner:
            if (follow := getattr(optimizer, "follow", None)) is not None:
                follow(self)  # its state depends on the masks
            hook = optimizer.register_step_post_hook(self._after_step)
            self._optimizers.append((optimizer, hook))
        self._hook_gradients()
        self.project()
        return self

    def detach(self) -> None:
        """Remove every hook; weights stay as they are."""
        for _, hook in self._optimizers:
            hook.remove()
        self._optimizers.clear()
        self._unhook_gradients()

    def update(self, connectome: Connectome) -> None:
        """Exchange the connectome, keep the hooks, and zero what is dead now."""
        self.connectome = connectome
        hooked = bool(self._gradient_hooks)
        self._bind()
        if hooked:
            self._hook_gradients()
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Set every dead weight to 0 now."""
        self._rebind_if_replaced()
        self._put_back(self._bound)

    @torch.no_grad()
    def num_leaks(self) -> int:
        """Count dead weights that are not exactly 0 (on this rank's shard); 0 by construction."""
        self._rebind_if_replaced()
        return sum(int(local_part((b.parameter != 0) & (b.mask == 0)).sum()) for b in self._bound)

    def _bind(self) -> None:
        parameters = check_host(self.connectome, self.model)
        homes = _homes(self.model)
        self._bound = [
            Bound(name, homes[id(p)], p, _working_mask(self.connectome, name, p))
            for name, p in parameters.items()
        ]
        assert len(self._bound) == len(self.connectome)

    def _rebind_if_replaced(self) -> None:
        # Loaders and fully_shard put new Parameter objects in place; masks on the old ones would
        # silently do nothing.
        if not self._is_replaced():
            return
        reshard(self.model)
        if not self._is_replaced():
            return
        for bound in self._bound:
            if len(bound.held()) > 1:
                raise HostMismatchError(
                    f"{bound.name!r} was tied and is now {len(bound.held())} separate parameters, "
                    "of which the mask reaches one. Tie them again (model.tie_weights()) before "
                    "the optimizer is made."
                )
        hooked = bool(self._gradient_hooks)
        self._bind()
        if hooked:
            self._hook_gradients()

    def _is_replaced(self) -> bool:
        return any(
            b.held() != {id(b.parameter)}
            or b.parameter.device != b.mask.device
            or b.parameter.shape != b.mask.shape  # resized embeddings stay the same object
            for b in self._bound
        )

    def _held_in_scope(self, optimizer: Optimizer) -> list[Bound]:
        """Return what an optimizer may change, and refuse one that may change nothing."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = [b for b in self._bound if id(b.parameter) in held]
        if not found:
            raise ConfigError(
                f"the {type(optimizer).__name__} holds none of the {self.num_bound} parameters in "
                f"scope ({some(self.connectome)}). Make it from this model's parameters, after the "
                "model was loaded, sharded or moved."
            )
        return found

    def _hook_gradients(self) -> None:
        self._unhook_gradients()
        for bound in self._bound:
            parameter, trains = bound.parameter, bound.parameter.requires_grad
            # A frozen parameter takes no hook, but may be thawed later.
            hook = parameter.requires_grad_().register_post_accumulate_grad_hook(
                self._gradient_hook(bound)
            )
            parameter.requires_grad_(trains)
            self._gradient_hooks.append(hook)

    def _gradient_hook(self, bound: Bound) -> Callable[[Tensor], None]:
        def mask_gradient(parameter: Tensor) -> None:
            gradient = parameter.grad
            # A sparse gradient (nn.Embedding(sparse=True)) is left to the projection.
            if gradient is not None and gradient.layout == torch.strided:
                if self.observer is not None:
                    self.observer(bound.name, gradient, bound.mask)
                gradient.mul_(bound.mask)

        return mask_gradient

    def _unhook_gradients(self) -> None:
        for hook in self._gradient_hooks:
            hook.remove()
        self._gradient_hooks.clear()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._rebind_if_replaced()
        held = self._held_in_scope(optimizer)
        # With several optimizers each projects its own parameters.
        self._put_back(self._bound if len(self._optimizers) == 1 else held, optimizer)

    def _put_back(self, bound: Iterable[Bound], optimizer: Optimizer | None = None) -> None:
        """Give the weights that must not move the value that they must have: 0."""
        packed = getattr(optimizer, "packed", ())  # SurvivorAdamW writes to no dead weight of these
        _multiply(b for b in bound if b.parameter not in packed)


def num_ranks() -> int:
    """Return how many processes train together; 1 outside torch.distributed."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def compare_ranks(connectome: Connectome, what: str) -> None:
    """Stop where the processes of a run have not found the same connectome.

    Raises:
        RunError: on every rank, with all digests.
    """
    if num_ranks() == 1:
        return
    digests: list[str | None] = [None] * num_ranks()
    distributed.all_gather_object(digests, connectome.digest)
    if len(set(digests)) > 1:
        raise RunError(
            f"the ranks disagree on {what}: digests {digests}. Their weights have drifted apart; "
            "check that every rank has the same data and software."
        )


def refuse_flat_shards(model: nn.Module) -> None:
    """Refuse set-ups that hold the weights in flat buffers, where a mask by name does nothing.

    Raises:
        UnsupportedError: the model is under FSDP1 or DeepSpeed.
    """
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FullyShardedDataParallel" in kinds:
            raise UnsupportedError(
                "the model is under FSDP1, which flattens the weights into one buffer a layer, so "
                "masks by parameter cannot be enforced. Use FSDP2 (fully_shard; with accelerate "
                "fsdp_version: 2) or DDP."
            )
        if "DeepSpeedEngine" in kinds:
            _refuse_deepspeed()
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        _refuse_deepspeed()


def _refuse_deepspeed() -> None:
    raise UnsupportedError(
        "the model is under DeepSpeed ZeRO, whose optimizer steps on flat partitions (and under "
        "ZeRO-3 leaves the parameters empty), so masks would silently do nothing. Use DDP, or "
        "FSDP2 for sharding."
    )


def inner_optimizer(optimizer: Any) -> Optimizer:
    """Return torch's optimizer inside accelerate's wrapper, which has no hooks of its own."""
    while True:
        origins = {kind.__module__.partition(".")[0] for kind in type(optimizer).__mro__}
        if "deepspeed" in origins:
            _refuse_deepspeed()
        if "lomo_optim" in origins:
            raise UnsupportedError(
                f"{type(optimizer).__name__} updates weights during the backward pass, before they "
                "can be projected. Use an optimizer with an ordinary step, such as AdamW."
            )
        if not hasattr(inner := getattr(optimizer, "optimizer", None), "param_groups"):
            found: Optimizer = optimizer
            return found
        optimizer = inner


def _homes(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Map the id of each parameter to the modules and attributes that hold it."""
    homes: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in unwrap(model).modules():
        for leaf, parameter in module._parameters.items():
            homes.setdefault(id(parameter), []).append((module, leaf))
    return homes


def _working_mask(connectome: Connectome, name: str, parameter: Tensor) -> Tensor:
    """Make the mask that is multiplied with: in the parameter's dtype on CPU, bool elsewhere.

    A bool multiply on CPU costs as much as 1.7 AdamW steps, a float one 0.18; on accelerators
    bool moves a quarter of the bytes.
    """
    dtype = parameter.dtype if parameter.device.type == "cpu" else torch.bool
    return like(connectome.mask(name), parameter, dtype)


def _multiply(bound: Iterable[Bound]) -> None:
    """Multiply weights by masks in as few kernel launches as the placement allows."""
    pairs = [(local_part(b.parameter), local_part(b.mask)) for b in bound]
    if pairs:
        parameters, masks = zip(*pairs, strict=True)
        torch._foreach_mul_(parameters, masks)


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of an FSDP2 shard, or the tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    local: Tensor = tensor if to_local is None else to_local()
    return local

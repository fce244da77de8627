"""Moves the links of a model that trains under a MaskEnforcer: masks, weights, optimizer state.

What a link is worth is the method's business (base.py), counting that of updates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.enforcement import compare_ranks
from hf_connectome.errors import ConfigError, ScopeError, UnsupportedError, some
from hf_connectome.hosts import check_host, full_tensor, like
from hf_connectome.rewiring.chains import find_chains
from hf_connectome.rewiring.gradients import DenseGradients
from hf_connectome.rewiring.updates import Update, as_matrices, move_links
from hf_connectome.scope import ScopedParameter, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from hf_connectome.enforcement import MaskEnforcer
    from hf_connectome.rewiring.base import Rewiring

Record = dict[str, float]


class Rewirer:
    """Applies a method at its steps; all else of a training step is as it was.

    Every update is a function of the seed, the step, masks, weights and the gradient of that step,
    so a resume from any checkpoint that has the connectome is bit-identical.
    """

    def __init__(
        self,
        method: Rewiring,
        enforcer: MaskEnforcer,
        *,
        first: Connectome,
        seed: int,
        num_steps: int,
        offset: int = 0,
    ) -> None:
        """Find what is rewired, and check that it can be.

        Args:
            method: how links move.
            enforcer: attached to the optimizer; its connectome changes at every update.
            first: the connectome when the training began.
            seed: the same on all ranks.
            num_steps: optimizer steps of the training.
            offset: the step before its first.

        Raises:
            ScopeError: the connectome has nothing in the method's scope.
            ConfigError: no link would ever move, or a parameter is not trained.
        """
        self.method = method
        self.enforcer = enforcer
        self.first = first
        self.seed = seed
        self.offset = offset
        self.last = method.last_update(num_steps)
        self.scope = rewired_scope(method, enforcer.model, first)
        self._gradients = DenseGradients(self.scope, type(method).__name__)
        self._chains = find_chains(enforcer.model, self.scope) if method.chains else []
        self._check_trained()

    def is_due(self, step: int) -> bool:
        """Whether links move after this optimizer step."""
        step -= self.offset
        return bool(self.scope) and 0 < step <= self.last and step % self.method.interval == 0

    def watch(self, step: int) -> None:
        """Before an optimizer step: look at its gradients if they will be needed."""
        wanted = self.method.needs_gradient and self.is_due(step)
        self.enforcer.observer = self._gradients if wanted else None

    @torch.no_grad()
    def update(self, step: int) -> Record | None:
        """After an optimizer step: move links if it is time.

        Returns:
            None, or what happened: links, births, deaths, turnover (deaths over links) and overlap
            (Jaccard) with the first wiring, of the matrices that are rewired.

        Raises:
            RunError: the ranks disagree.
        """
        if not self.is_due(step):
            return None
        connectome = self.enforcer.connectome
        parameters = check_host(connectome, self.enforcer.model)
        before = {name: connectome.mask(name) for name in self.scope}
        first = {name: self.first.mask(name) for name in self.scope}
        update = Update(
            self.method, self.scope, self._chains, self.seed, step, (step - self.offset) / self.last
        )

        def weight_of(name: str) -> Tensor:
            return full_tensor(parameters[name]).cpu().float()

        after = move_links(update, before, first, weight_of, self._gradients.of)
        self.enforcer.observer = None
        self._gradients.clear()
        for name, mask in after.items():
            self._forget(parameters[name], stay=mask & before[name])
        self.enforcer.update(with_masks(connectome, after, parameters))
        compare_ranks(self.enforcer.connectome, f"the wiring at step {step}")
        return record_of(before, after, first)

    def signed(self) -> Connectome:
        """Return the wiring of the moment with the signs that its weights have now."""
        connectome = self.enforcer.connectome
        masks = {name: connectome.mask(name) for name in self.scope}
        return with_masks(connectome, masks, check_host(connectome, self.enforcer.model))

    def _forget(self, parameter: nn.Parameter, stay: Tensor) -> None:
        """Zero the weights and the optimizer's memory of all but the links that stay."""
        parameter.mul_(like(stay, parameter))
        for optimizer in self.enforcer.optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    _check_state(optimizer, key, value)
                    value.mul_(like(stay, parameter, value.dtype))

    def _check_trained(self) -> None:
        held = {
            id(p) for o in self.enforcer.optimizers for g in o.param_groups for p in g["params"]
        }
        parameters = check_host(self.enforcer.connectome, self.enforcer.model)
        fixed = [
            name
            for name in self.scope
            if id(parameters[name]) not in held or not parameters[name].requires_grad
        ]
        if fixed:
            raise ConfigError(
                f"{some(fixed)} would be rewired but is not trained, so a new link would stay 0. "
                "Train it, or leave it out of the method's scope."
            )


def rewired_scope(
    method: Rewiring, model: nn.Module, connectome: Connectome
) -> dict[str, ScopedParameter]:
    """Return the parameters whose links move: of the connectome, in scope, and not dense.

    A dense matrix has no free place, so only a method that thins reaches it.

    Raises:
        ScopeError: the connectome has nothing in scope, or a matrix is too large for the method.
    """
    scope = {n: p for n, p in resolve(model, method.scope).items() if n in connectome}
    if not scope:
        raise ScopeError(
            f"the scope {method.scope!r} has none of the {len(connectome)} parameters of the "
            f"connectome ({some(connectome)}). Use scope=all-matrices, or another connectome."
        )
    scope = {n: p for n, p in scope.items() if method.thins or connectome[n].density < 1.0}
    for name, parameter in scope.items():
        place = torch.empty(parameter.shape, device="meta")
        num_nodes = max(as_matrices(place, parameter.orientation).shape[1:])
        if method.most_nodes is not None and num_nodes > method.most_nodes:
            raise ScopeError(
                f"{name!r} is {parameter.shape}; {type(method).__name__} keeps the square of its "
                f"{num_nodes} nodes in memory, so at most {method.most_nodes} are taken. Leave it "
                "out of the method's scope."
            )
    return scope


def with_masks(
    connectome: Connectome, masks: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> Connectome:
    """Return a connectome with other masks, and with the signs that the weights have now."""
    entries = dict(connectome)
    for name, mask in masks.items():
        entry = entries[name]
        sign = None if entry.sign_bits is None else full_tensor(parameters[name]).cpu()
        packed = SignedMask.pack(mask, sign, orientation=entry.orientation)
        entries[name] = replace(packed, scale=entry.scale)
    return connectome.replace(entries)


def record_of(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], first: Mapping[str, Tensor]
) -> Record:
    """Count what an update did."""

    def total(mask_of: Callable[[str], Tensor]) -> int:
        return sum(int(mask_of(name).sum()) for name in after)

    deaths = total(lambda name: before[name] & ~after[name])
    shared = total(lambda name: first[name] & after[name])
    return {
        "links": total(after.__getitem__),
        "births": total(lambda name: after[name] & ~before[name]),
        "deaths": deaths,
        "turnover": deaths / total(before.__getitem__),
        "overlap": shared / total(lambda name: first[name] | after[name]),
    }


def _check_state(optimizer: Optimizer, key: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise UnsupportedError(
            f"{type(optimizer).__name__} keeps {key!r} as {value.dtype}, in which the memory of a "
            "dead link cannot be cleared. Use an optimizer whose state is in floating point, such "
            "as AdamW."
        )

"""One update of a wiring: from weights, masks and gradients to the masks after it.

Pure functions with exact counts; models, optimizers and ranks are rewirer.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.rewiring.base import RewiringContext
from hf_connectome.rewiring.chains import drop_dead_chains
from hf_connectome.scope import RAW
from hf_connectome.selection import keep, keep_globally

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.rewiring.base import Rewiring
    from hf_connectome.rewiring.chains import Chain
    from hf_connectome.scope import ScopedParameter


@dataclass(frozen=True)
class Update:
    """What one update depends on beside weights and masks."""

    method: Rewiring
    scope: Mapping[str, ScopedParameter]
    """The parameters that are rewired."""
    chains: Sequence[Chain]
    """Chains among them, if the method asks for it."""
    seed: int
    step: int
    progress: float

    def context(self, name: str, index: int, gradient: Tensor | None = None) -> RewiringContext:
        """Return what the method knows of matrix ``index`` of a parameter."""
        shape = self.scope[name].shape
        several = num_matrices(shape, self.scope[name].orientation) > 1
        label = f"{name}[{index}]" if several else name
        return RewiringContext(label, self.seed, self.step, self.progress, gradient)


def num_matrices(shape: tuple[int, ...], orientation: str) -> int:
    """Return how many matrices a parameter holds: one, but for fused experts."""
    return torch.Size(shape[:-2]).numel() if orientation == RAW else 1


def as_matrices(tensor: Tensor, orientation: str) -> Tensor:
    """View a parameter as ``(num, R, C)``: fused experts one each, a convolution by its filters."""
    num = num_matrices(tuple(tensor.shape), orientation)
    rows = tensor.shape[-2] if orientation == RAW else tensor.shape[0]
    return tensor.reshape(num, rows, -1)


def move_links(
    update: Update,
    masks: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    weight_of: Callable[[str], Tensor],
    gradient_of: Callable[[str], Tensor],
) -> dict[str, Tensor]:
    """Let links go and others be born.

    Args:
        update: method, place in the training, seed.
        masks: name -> bool mask as it is.
        first: name -> bool mask when training began, whose densities a schedule starts from.
        weight_of: name -> float weights on the CPU; called again for each use.
        gradient_of: name -> dense gradient on the CPU; only if the method needs it.

    Returns:
        name -> bool mask. Each matrix has exactly round(density * n) links; under a method that
        thins globally, all of them together have.

    Raises:
        ScopeError: a score is NaN (the run diverged).
    """
    alive, targets = _targets(update, masks, first, weight_of)
    kept, gradients = {}, {}
    for name in masks:
        if update.method.needs_gradient:
            gradients[name] = gradient_of(name)
        kept[name] = _kept(update, name, alive[name], targets[name], weight_of(name), gradients)
    drop_dead_chains(kept, update.chains, update.scope)
    return {
        name: _grown(update, name, mask, targets[name], gradients) for name, mask in kept.items()
    }


def _targets(
    update: Update,
    masks: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    weight_of: Callable[[str], Tensor],
) -> tuple[Mapping[str, Tensor], dict[str, list[int]]]:
    """Return what may stay of each mask, and how many links each matrix has afterwards."""
    method = update.method
    if method.thins_globally:
        num_weights = sum(mask.numel() for mask in masks.values())
        density = sum(int(mask.sum()) for mask in first.values()) / num_weights
        wanted = round(method.density_at(update.progress, density) * num_weights)
        surplus = sum(int(mask.sum()) for mask in masks.values()) - wanted
        masks = keep_globally(lambda name: weight_of(name).abs(), masks, surplus)
        return masks, {name: _counts(update, name, mask) for name, mask in masks.items()}
    targets = {}
    for name, mask in first.items():
        num_weights = mask.numel() // num_matrices(tuple(mask.shape), _orientation(update, name))
        targets[name] = [
            round(method.density_at(update.progress, count / num_weights) * num_weights)
            for count in _counts(update, name, mask)
        ]
    return masks, targets


def _kept(
    update: Update,
    name: str,
    mask: Tensor,
    targets: Sequence[int],
    weight: Tensor,
    gradients: Mapping[str, Tensor],
) -> Tensor:
    """Return the links of one parameter that stay."""
    kept = torch.empty_like(mask)
    fraction = update.method.fraction_at(update.progress)
    weights = _matrices(update, name, weight)
    for index, links in enumerate(_matrices(update, name, mask)):
        context = update.context(name, index, _gradient(update, name, index, gradients))
        score = update.method.keep(weights[index], links, context)
        n_keep = targets[index] - round(fraction * targets[index])
        n_drop = int(links.sum()) - n_keep
        _matrices(update, name, kept)[index] = keep(score, links, n_drop, name=context.name)
    return kept


def _grown(
    update: Update,
    name: str,
    mask: Tensor,
    targets: Sequence[int],
    gradients: Mapping[str, Tensor],
) -> Tensor:
    """Return the links of one parameter once it has its count again."""
    grown = mask.clone()
    for index, links in enumerate(_matrices(update, name, grown)):
        n_grow = targets[index] - int(links.sum())
        if n_grow == 0:
            continue
        context = update.context(name, index, _gradient(update, name, index, gradients))
        score, free = update.method.grow(links, context), ~links
        links |= keep(score, free, int(free.sum()) - n_grow, name=context.name)
    return grown


def _orientation(update: Update, name: str) -> str:
    return update.scope[name].orientation


def _matrices(update: Update, name: str, tensor: Tensor) -> Tensor:
    return as_matrices(tensor, _orientation(update, name))


def _counts(update: Update, name: str, mask: Tensor) -> list[int]:
    counts: list[int] = _matrices(update, name, mask).sum((1, 2)).tolist()
    return counts


def _gradient(
    update: Update, name: str, index: int, gradients: Mapping[str, Tensor]
) -> Tensor | None:
    return _matrices(update, name, gradients[name])[index] if name in gradients else None

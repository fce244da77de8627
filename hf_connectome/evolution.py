"""One step of the outer loop: from trained weights to the next generation's connectome.

Pure functions of weights and settings; training, files and devices are the trainer's business.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.criteria import CriterionContext, criteria
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError, did_you_mean
from hf_connectome.hosts import check_host, full_tensor, wire
from hf_connectome.scope import parameters_of, unwrap
from hf_connectome.selection import keep, keep_globally

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.schedule import GeometricSchedule
    from hf_connectome.scope import ScopedParameter

SELECTIONS = {
    "per-tensor": "every parameter drops the same fraction of its own survivors (the paper's)",
    "global": "all parameters are ranked together; each keeps at least one weight",
}


@dataclass(frozen=True)
class Pruning:
    """How a generation decides which survivors to drop."""

    schedule: GeometricSchedule
    criterion: str = "magnitude"
    selection: str = "per-tensor"
    seed: int = 0
    carry_scales: bool = True
    carry_values: bool = False

    def check(self, scope: Mapping[str, ScopedParameter]) -> None:
        """Refuse, before any training, a run that would leave a parameter without survivors.

        Raises:
            ScopeError: names the parameter, its size and the generation.
            UnknownNameError: no such criterion or selection.
        """
        criteria.get(self.criterion)
        if self.selection not in SELECTIONS:
            raise UnknownNameError(
                f"unknown selection {self.selection!r}. {did_you_mean(self.selection, SELECTIONS)}"
            )
        if self.selection == "global":
            return  # the floor of keep_globally sees to it
        for name, parameter in scope.items():
            num_weights = torch.Size(parameter.shape).numel()
            for generation in range(1, self.schedule.num_generations + 1):
                if self.schedule.survivors_after(num_weights, generation) < 1:
                    raise ScopeError(
                        f"{name!r} has {num_weights} weights and would have no survivor in "
                        f"generation {generation} at prune_fraction "
                        f"{self.schedule.prune_fraction}. Prune less, run fewer generations, or "
                        "leave it out of scope."
                    )


def dense_connectome(
    model: nn.Module, scope: Mapping[str, ScopedParameter], config: ConnectomeConfig
) -> Connectome:
    """Return generation 0: every weight in scope exists, with the sign that it has now."""
    parameters = parameters_of(model)
    entries = {}
    for name, scoped in scope.items():
        weight = full_tensor(parameters[name]).cpu()
        everything = torch.ones(scoped.shape, dtype=torch.bool)
        entries[name] = SignedMask.pack(everything, weight, orientation=scoped.orientation)
    return Connectome(entries, config=config)


@torch.no_grad()
def next_generation(
    model: nn.Module, connectome: Connectome, pruning: Pruning, config: ConnectomeConfig
) -> Connectome:
    """Drop the weakest survivors of a trained model and record the signs of the rest.

    Args:
        model: the host, trained under ``connectome``; not changed.
        connectome: the generation that was trained.
        pruning: criterion, schedule and selection.
        config: what the new connectome records of itself.

    Returns:
        The next generation. Per tensor, exactly round(f * survivors) are gone; globally,
        exactly round(f * all survivors).

    Raises:
        ScopeError: a score is NaN (the run diverged).
    """
    parameters = check_host(connectome, model)
    criterion = criteria.get(pruning.criterion)()
    generation = config.generation - 1

    def weight_of(name: str) -> Tensor:
        return full_tensor(parameters[name]).cpu()

    def score_of(name: str) -> Tensor:
        context = CriterionContext(name=name, seed=pruning.seed, generation=generation)
        return criterion.score(weight_of(name), connectome.mask(name), context)

    masks = _select(connectome, score_of, pruning)
    entries = {}
    for name, entry in connectome.items():
        weight, mask = weight_of(name), masks(name)
        entries[name] = SignedMask.pack(
            mask,
            weight,
            scale=_mean_magnitude(weight, mask) if pruning.carry_scales else None,
            orientation=entry.orientation,
        )
    values = small_values(model, connectome) if pruning.carry_values else None
    return Connectome(entries, values=values, config=config)


def reset_host(
    model: nn.Module,
    connectome: Connectome,
    *,
    reset: str,
    magnitude: float,
    seed: int,
    early: Callable[[str], Tensor] | None = None,
) -> None:
    """Give the survivors of a trained host the first values of the next generation.

    Policies that ask for a fresh host get one of the same class and config, initialised from
    ``seed``; it is built only if asked for.
    """

    @functools.cache
    def fresh_parameters() -> dict[str, Any]:
        return dict(parameters_of(fresh_twin(model, seed)))

    kept = connectome.replace(values={})
    wire(
        model,
        kept,
        reset=reset,
        magnitude=magnitude,
        fresh=lambda name: fresh_parameters()[name].detach(),
        early=early,
    )


def fresh_twin(model: nn.Module, seed: int) -> nn.Module:
    """Build a freshly initialised model of the same class and config, float32, on the CPU."""
    model = unwrap(model)
    from_config = getattr(type(model), "_from_config", None)
    config = getattr(model, "config", None)
    if from_config is None or config is None:
        raise ConfigError(
            f"{type(model).__name__} is no transformers model, so no fresh twin can be built for a "
            "reset that asks for its initialisation. Use sign_constant, tensor_scale or keep."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        # On a copy: transformers notes the twin's dtype in the config that it is given.
        twin: nn.Module = from_config(copy.deepcopy(config), dtype=torch.float32)
    return twin


def _select(
    connectome: Connectome, score_of: Callable[[str], Tensor], pruning: Pruning
) -> Callable[[str], Tensor]:
    """Return name -> new mask; per tensor it is made when asked for, so one is in memory."""
    schedule = pruning.schedule
    if pruning.selection == "per-tensor":

        def per_tensor(name: str) -> Tensor:
            entry = connectome[name]
            n_drop = schedule.n_drop(entry.num_survivors)
            return keep(score_of(name), entry.mask(), n_drop, name=name)

        return per_tensor
    masks = {name: connectome.mask(name) for name in connectome}
    kept = keep_globally(score_of, masks, schedule.n_drop(connectome.num_survivors))
    return kept.__getitem__


def _mean_magnitude(weight: Tensor, mask: Tensor) -> Tensor:
    return weight[mask].float().abs().mean().reshape(1)


def small_values(model: nn.Module, connectome: Connectome) -> dict[str, Tensor]:
    """Return the floating parameters out of scope (norms, biases) as float32 copies."""
    return {
        name: full_tensor(p).cpu().float().clone()
        for name, p in parameters_of(model).items()
        if name not in connectome and p.is_floating_point()
    }

"""One step of the outer loop: from trained weights to the next generation's connectome.

Pure functions of weights and settings; training, files and devices are the trainer's business.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.calibration import measure, model_loss
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.criteria import CriterionContext, criteria
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import check_host, full_tensor, wire
from hf_connectome.scope import ScopedParameter, parameters_of, unwrap
from hf_connectome.selection import keep, keep_globally, keep_per_row
from hf_connectome.shards import Gathered, Rows, lie_by_rows
from hf_connectome.structures import make_structure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.calibration.subject import Batch, Loss
    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.criteria import Statistics
    from hf_connectome.pruning import Pruning


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
    model: nn.Module,
    connectome: Connectome,
    pruning: Pruning,
    config: ConnectomeConfig,
    statistics: Statistics = MappingProxyType({}),
) -> Connectome:
    """Drop the weakest survivors of a trained model and record the signs of the rest.

    Args:
        model: the host, trained under ``connectome``; not changed.
        connectome: the generation that was trained.
        pruning: criterion, schedule and selection.
        config: what the new connectome records of itself.
        statistics: what the criterion needs (calibration.measure).

    Returns:
        The next generation, with exactly the survivors of :meth:`Pruning.survivors`; globally,
        exactly those that the schedule leaves of all.

    Raises:
        ScopeError: a score is NaN (the run diverged).
        ConfigError: the criterion needs a statistic that is not given.
    """
    parameters = check_host(connectome, model)
    criterion = criteria.get(pruning.criterion)()
    generation = config.generation - 1

    by_rows = criterion.by_weight and pruning.by_weight and lie_by_rows(parameters)
    place = Rows(parameters) if by_rows else Gathered(parameters)

    def score_of(name: str) -> Tensor:
        context = CriterionContext(
            name=name,
            seed=pruning.seed,
            generation=generation,
            statistics={kind: measured[name] for kind, measured in statistics.items()},
        )
        mask = place.mask(name, connectome.mask(name))
        return criterion.score(place.weight(name), mask, context)

    masks = _select(connectome, score_of, pruning, config.generation, place)
    return recorded(model, connectome, masks, pruning, config, place)


@torch.no_grad()
def recorded(
    model: nn.Module,
    connectome: Connectome,
    mask_of: Callable[[str], Tensor],
    pruning: Pruning,
    config: ConnectomeConfig,
    place: Gathered | None = None,
) -> Connectome:
    """Return the wiring that masks give a trained model: its signs, and what travels beside them.

    Args:
        model: the host; not changed.
        connectome: names the parameters.
        mask_of: name -> bool mask, asked once a name.
        pruning: says what travels beside mask and sign.
        config: what the new connectome records of itself.
        place: where the masks are, by default whole.
    """
    place = place or Gathered(check_host(connectome, model))
    entries = {
        name: place.pack(name, mask_of(name), entry.orientation, with_scale=pruning.carry_scales)
        for name, entry in connectome.items()
    }
    values = small_values(model, connectome) if pruning.carry_values else None
    return Connectome(entries, values=values, config=config)


def prune_in_rounds(
    model: nn.Module,
    connectome: Connectome,
    pruning: Pruning,
    batches: Sequence[Batch],
    *,
    loss: Loss = model_loss,
) -> Connectome:
    """Prune in rounds without training between them; the criterion is measured anew in each.

    Args:
        model: the host under ``connectome``, often a fresh one; not changed.
        connectome: where to start, such as :func:`dense_connectome`.
        pruning: its schedule's generations are the rounds; the fraction f of n rounds leaves
            (1 - f)^n, so for a density d it is 1 - d^(1/n).
        batches: what the criterion is measured on (calibration.measure).
        loss: of model and batch.

    Source:
        Tanaka et al. 2020, SynFlow: 100 rounds, exponentially down to the density. One round is
        SNIP's and GraSP's pruning at initialisation.
    """
    assert connectome.config is not None
    host = copy.deepcopy(unwrap(model))
    for _ in range(pruning.schedule.num_generations):
        statistics = measure(host, connectome, batches, pruning.needs, loss=loss)
        config = replace(connectome.config, generation=connectome.config.generation + 1)
        connectome = next_generation(host, connectome, pruning, config, statistics)
        wire(host, connectome.replace(values={}), reset="keep")
    return connectome


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
    connectome: Connectome,
    score_of: Callable[[str], Tensor],
    pruning: Pruning,
    generation: int,
    place: Gathered,
) -> Callable[[str], Tensor]:
    """Return name -> new mask; per tensor it is made when asked for, so one is in memory."""
    if pruning.selection != "global":
        scope = {n: ScopedParameter(n, e.shape, e.orientation) for n, e in connectome.items()}
        alive = {name: entry.num_survivors for name, entry in connectome.items()}
        num_kept = pruning.survivors(scope, alive, generation)

        def per_tensor(name: str) -> Tensor:
            n_drop, orientation = alive[name] - num_kept[name], scope[name].orientation
            if isinstance(place, Rows):
                rows = {name: place.mask(name, connectome.mask(name))}
                kept = keep_globally(score_of, rows, n_drop, min_survivors=0, ranks=place.ranks)
                return kept[name]
            score, mask = score_of(name), connectome.mask(name)
            if pruning.structure is not None:
                structure = make_structure(pruning.structure)
                return structure.keep(score, mask, num_kept[name], scope[name])
            if pruning.selection == "per-row":
                return keep_per_row(score, mask, n_drop, orientation=orientation, name=name)
            return keep(score, mask, n_drop, name=name)

        return per_tensor
    num_survivors = connectome.num_survivors
    left = pruning.schedule.next_survivors(num_survivors, connectome.num_weights, generation)
    kept = keep_globally(
        score_of,
        _Masks(connectome, place),
        num_survivors - left,
        min_survivors=pruning.min_survivors,
        ranks=place.ranks,
    )
    return kept.__getitem__


class _Masks(Mapping[str, "Tensor"]):
    """The masks of a connectome where they are ranked, unpacked when asked for."""

    def __init__(self, connectome: Connectome, place: Gathered) -> None:
        self._connectome, self._place = connectome, place

    def __getitem__(self, name: str) -> Tensor:
        return self._place.mask(name, self._connectome.mask(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._connectome)

    def __len__(self) -> int:
        return len(self._connectome)


def small_values(model: nn.Module, connectome: Connectome) -> dict[str, Tensor]:
    """Return the floating parameters out of scope (norms, biases) as float32 copies."""
    return {
        name: full_tensor(p).cpu().float().clone()
        for name, p in parameters_of(model).items()
        if name not in connectome and p.is_floating_point()
    }

"""How a generation decides which survivors to drop: settings, and the exact counts they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_connectome.budgets import BUDGETS, check_budget, check_density, check_floor, matched
from hf_connectome.criteria import criteria
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError, did_you_mean
from hf_connectome.structures import make_structure

if TYPE_CHECKING:
    from hf_connectome.schedule import Schedule
    from hf_connectome.scope import ScopedParameter


SELECTIONS = {
    "per-tensor": "every parameter drops the same fraction of its own survivors (the paper's)",
    "per-row": "as per-tensor, ranked within each output, which all keep equally many (Wanda's)",
    "global": "all parameters are ranked together; each keeps at least min_survivors",
}


@dataclass(frozen=True)
class Pruning:
    """How a generation decides which survivors to drop."""

    schedule: Schedule
    criterion: str = "magnitude"
    selection: str = "per-tensor"
    seed: int = 0
    carry_scales: bool = True
    carry_values: bool = False
    budget: str = "uniform"
    min_survivors: int = 1
    density_pattern: Mapping[str, float] = field(default_factory=dict)
    structure: str | None = None

    @property
    def by_weight(self) -> bool:
        """Whether which weights live together is free, so that rows may be ranked apart."""
        return self.selection != "per-row" and self.structure is None

    @property
    def needs(self) -> tuple[str, ...]:
        """What the criterion asks for beside the weights."""
        return criteria.get(self.criterion).needs

    def check_settings(self) -> None:
        """Refuse what no model could make work.

        Raises:
            UnknownNameError: no such criterion, selection or budget.
            ConfigError: a number out of its range, or settings that exclude each other.
        """
        criteria.get(self.criterion)
        if self.selection not in SELECTIONS:
            raise UnknownNameError(
                f"unknown selection {self.selection!r}. {did_you_mean(self.selection, SELECTIONS)}"
            )
        check_budget(self.budget)
        for key, density in self.density_pattern.items():
            check_density(density, f"density_pattern: {key}")
        if self.min_survivors < 1:
            raise ConfigError(f"min_survivors is {self.min_survivors}; expected at least 1.")
        if self.structure is not None:
            make_structure(self.structure)
        excluded = {
            "budget": self.budget != "uniform",
            "density_pattern": bool(self.density_pattern),
            "structure": self.structure is not None,
        }
        if self.selection == "per-row" and self.structure is not None:
            raise ConfigError(
                f"selection='per-row' and structure={self.structure!r} each say which weights of a "
                "row live together. Use selection='per-tensor', or leave structure out."
            )
        if self.selection == "global" and (named := [n for n, given in excluded.items() if given]):
            raise ConfigError(
                f"selection='global' ranks all weights together, so it takes no {named[0]}. Use "
                f"selection='per-tensor', or leave {named[0]} out."
            )

    def check(self, scope: Mapping[str, ScopedParameter]) -> None:
        """Refuse, before any training, a run that could not be finished on these parameters.

        Raises:
            ScopeError: a parameter would have fewer survivors than its floor, cannot have the
                structure, or a pattern names none; names it, its size and the generation.
            ConfigError: as in :meth:`check_settings`; or the last generation is not what the
                structure's name says.
            UnknownNameError: as in :meth:`check_settings`.
        """
        self.check_settings()
        if self.selection == "global":
            self._check_floors(scope)
            return
        alive = {name: p.num_weights for name, p in scope.items()}
        for generation in range(1, self.schedule.num_generations + 1):
            alive = self.survivors(scope, alive, generation)
            for name, count in alive.items():
                when = f"in generation {generation} at {self.schedule}"
                check_floor(scope[name], count, self.min_survivors, when)
        if self.structure is not None:
            for name, count in alive.items():
                make_structure(self.structure).check_last(count, scope[name])

    def _check_floors(self, scope: Mapping[str, ScopedParameter]) -> None:
        sizes = [parameter.num_weights for parameter in scope.values()]
        left = self.schedule.survivors_after(sum(sizes), self.schedule.num_generations)
        floor = sum(min(self.min_survivors, size) for size in sizes)
        if left < floor:
            raise ScopeError(
                f"{left} of {sum(sizes)} weights would be left at {self.schedule}, but a floor of "
                f"{self.min_survivors} in each of {len(sizes)} parameters is {floor}. Prune less, "
                "or lower min_survivors."
            )

    def survivors(
        self, scope: Mapping[str, ScopedParameter], alive: Mapping[str, int], generation: int
    ) -> dict[str, int]:
        """Return how many survivors each parameter keeps where it is pruned by itself.

        A parameter that a pattern names follows the schedule towards its own density; the others
        get what the budget gives at the density of the generation. No parameter grows; a structure
        rounds up to the next count that it can have.

        Args:
            scope: the parameters.
            alive: survivors of each before.
            generation: the one that begins, at least 1.
        """
        own = matched(scope, self.density_pattern)
        shared = {}
        if self.budget != "uniform":
            rest = {name: p for name, p in scope.items() if name not in own}
            density = self.schedule.density_after(generation)
            shared = BUDGETS[self.budget](rest, density, self.min_survivors) if rest else {}
        kept = {}
        for name, parameter in scope.items():
            wanted, num_weights = own.get(name), parameter.num_weights
            if name in shared:
                count = shared[name]
            elif wanted == 1.0:
                count = num_weights
            else:
                schedule = self.schedule if wanted is None else self.schedule.towards(wanted)
                count = schedule.next_survivors(alive[name], num_weights, generation)
            if self.structure is not None:
                count = make_structure(self.structure).count(count, parameter)
            kept[name] = min(count, alive[name])
        return kept

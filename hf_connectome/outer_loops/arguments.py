"""OuterLoopArguments: which outer loop finds the connectome, and what only that loop knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import ConfigError, did_you_mean
from hf_connectome.schedule import OneShotSchedule

if TYPE_CHECKING:
    from hf_connectome.arguments import GenerationalArguments
    from hf_connectome.scope import ScopedParameter

OUTER_LOOPS = {
    "generational": "train, prune, reset, generation after generation (the paper's)",
    "iht": "iterative hard thresholding: the largest weights live, after every step",
    "search": "evolutionary search: wirings are varied and chosen by a short training",
}
ANNEALS = ("linear", "cubic")
MOVED_SIGNS = ("draw", "keep")
NOT_HEEDED = {
    "criterion": "magnitude",
    "selection": "per-tensor",
    "pruning_schedule": "geometric",
    "structure": None,
    "rewiring": None,
}
"""Settings of pruning that only the generations heed, and the values that they must have."""


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class OuterLoopArguments:
    """Which outer loop finds the connectome; a generation costs as many steps in each."""

    outer_loop: str = _field(
        "generational", f"How the connectome is found: {', '.join(OUTER_LOOPS)}."
    )
    iht_anneal: str = _field(
        "linear", "How the density comes down: linear, or cubic (fast first) in the steps."
    )
    iht_anneal_fraction: float = _field(
        0.5, "Fraction of the steps after which the density has come down, in (0, 1]."
    )
    iht_fixed_fraction: float = _field(
        0.25, "Fraction of the steps, the last ones, in which the wiring is fixed, in [0, 1)."
    )
    search_start: str = _field(
        "random",
        "Wiring to draw the first candidates from, or folder or Hub id of a connectome to vary.",
    )
    search_steps: int = _field(
        20,
        "Steps that a candidate is trained; steps_per_generation / search_steps is the number of "
        "candidates in a generation.",
    )
    search_parents: int = _field(4, "How many of the best candidates have children.")
    search_turnover: float = _field(
        0.1, "Fraction of each parameter's links that a child has elsewhere, in (0, 1]."
    )
    search_signs: str = _field(
        "draw", "Sign of a link that moved: draw a fair one, or keep the one that it had."
    )
    search_eval_blocks: int = _field(
        64, "Training blocks that are kept apart to compare candidates on."
    )

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, and those of a loop that is not asked for."""
        _check_choice("outer_loop", self.outer_loop, OUTER_LOOPS)
        _check_choice("iht_anneal", self.iht_anneal, ANNEALS)
        _check_choice("search_signs", self.search_signs, MOVED_SIGNS)
        self._refuse_settings_of_other_loops()
        anneal, fixed = self.iht_anneal_fraction, self.iht_fixed_fraction
        _check_range("iht_anneal_fraction", anneal, 0 < anneal <= 1, "(0, 1]")
        _check_range("iht_fixed_fraction", fixed, 0 <= fixed < 1, "[0, 1)")
        if anneal + fixed > 1 + 1e-9:
            raise ConfigError(
                f"iht_anneal_fraction is {anneal} and iht_fixed_fraction {fixed}; expected a sum "
                "of at most 1, so that the wiring has its final density before it is fixed."
            )
        turnover = self.search_turnover
        _check_range("search_turnover", turnover, 0 < turnover <= 1, "(0, 1]")
        for name in ("search_steps", "search_parents", "search_eval_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")

    def _refuse_settings_of_other_loops(self) -> None:
        for setting in fields(self):
            owner = setting.name.partition("_")[0]
            given = getattr(self, setting.name) != setting.default
            if given and owner not in ("outer", self.outer_loop):
                raise ConfigError(
                    f"{setting.name} is {getattr(self, setting.name)!r}, but outer_loop is "
                    f"{self.outer_loop!r}, which does not heed it. Use outer_loop {owner}, or "
                    "leave it out."
                )

    def check(self, training: GenerationalArguments) -> None:
        """Refuse settings of the training that the chosen loop would not heed.

        Raises:
            ConfigError: names the setting, its value and the way out.
        """
        if training.reset == "rewind":
            raise ConfigError(
                f"reset is 'rewind', but outer_loop {self.outer_loop!r} never goes back in its "
                "training. Use sign_constant, or another that a child can start from."
            )
        for name, only in NOT_HEEDED.items():
            if getattr(training, name) != only:
                how = "keeps the largest weights" if self.outer_loop == "iht" else "draws the links"
                raise ConfigError(
                    f"{name} is {getattr(training, name)!r}, but {self.outer_loop} {how} of each "
                    f"parameter. Leave it at {only!r}."
                )
        if self.outer_loop == "search" and self.num_children(training) < self.search_parents:
            raise ConfigError(
                f"steps_per_generation is {training.steps_per_generation} and search_steps "
                f"{self.search_steps}, which is {self.num_children(training)} candidates a "
                f"generation; expected at least search_parents, {self.search_parents}. Raise "
                "steps_per_generation, or lower one of the two."
            )

    def num_children(self, training: GenerationalArguments) -> int:
        """Return how many candidates of the search one generation's steps pay for."""
        return training.steps_per_generation // self.search_steps

    def final_counts(
        self, scope: Mapping[str, ScopedParameter], training: GenerationalArguments
    ) -> dict[str, int]:
        """Return the survivors that each parameter has in the end: as many as pruning would leave.

        Raises:
            ScopeError: a parameter would have fewer than its floor.
        """
        pruning = training.pruning
        if training.final_density is not None:
            pruning = replace(pruning, schedule=OneShotSchedule(training.final_density))
        pruning.check(scope)
        counts = {name: parameter.num_weights for name, parameter in scope.items()}
        for generation in range(1, pruning.schedule.num_generations + 1):
            counts = pruning.survivors(scope, counts, generation)
        return counts

    def recorded(self) -> dict[str, Any]:
        """Return what each row of a lineage repeats: the loop and its own settings."""
        own = [f.name for f in fields(self) if f.name.startswith(f"{self.outer_loop}_")]
        return {name: getattr(self, name) for name in ("outer_loop", *own)}


def _check_choice(name: str, value: str, known: Mapping[str, str] | tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}. {did_you_mean(value, known)}")


def _check_range(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits or not math.isfinite(value):
        raise ConfigError(f"{name} is {value}; expected a number in {expected}.")

"""How dense a run is at which point of it, and how many survivors that is. Pure arithmetic.

A schedule serves both loops: by generation (``survivors_after``) and by optimizer step
(``density_at``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from hf_connectome.errors import ConfigError
from hf_connectome.registry import Registry


class Schedule(ABC):
    """Density over a run; it never rises."""

    paper: ClassVar[str]
    """Where the schedule comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    num_generations: int

    @abstractmethod
    def density_at(self, fraction: float) -> float:
        """Return the density after ``fraction`` of the run; before 0 as at 0, after 1 as at 1."""

    @abstractmethod
    def towards(self, density: float) -> Schedule:
        """Return the schedule of the same shape that ends at ``density``."""

    def density_after(self, generation: int) -> float:
        """Return the nominal density after ``generation`` prunings."""
        return self.density_at(generation / self.num_generations)

    def survivors_after(self, num_weights: int, generation: int) -> int:
        """Return the exact survivors of ``num_weights`` weights after ``generation`` prunings."""
        return round(self.density_after(generation) * num_weights)

    def next_survivors(self, num_survivors: int, num_weights: int, generation: int) -> int:
        """Return how many of ``num_survivors`` are left when ``generation`` begins."""
        return min(num_survivors, self.survivors_after(num_weights, generation))


schedules: Registry[Schedule] = Registry("schedule")


def _check_generations(num_generations: int) -> None:
    if num_generations < 1:
        raise ConfigError(f"generations is {num_generations}; expected at least 1.")


def _clamped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)


@schedules.register("geometric")
@dataclass(frozen=True)
class GeometricSchedule(Schedule):
    """Drop the same fraction of the current survivors in every generation.

    Source:
        Kotar & Tuckute 2025, section 2: 20 % of the survivors of each tensor, generation after
        generation, so that (1 - f)^g of the weights are left after g generations.

    Example:
        >>> GeometricSchedule(0.2, 6).density_after(6)
        0.262144...
    """

    prune_fraction: float
    num_generations: int

    paper = "Kotar & Tuckute 2025, Model Connectomes"
    citation = "arXiv:2504.21047"

    def __post_init__(self) -> None:
        if not 0.0 < self.prune_fraction < 1.0:
            raise ConfigError(
                f"prune_fraction is {self.prune_fraction}; expected a number between 0 and 1, both "
                "excluded, such as 0.2 (the paper's)."
            )
        _check_generations(self.num_generations)

    def __str__(self) -> str:
        return f"prune_fraction {self.prune_fraction}"

    def n_drop(self, num_survivors: int) -> int:
        """Return how many of ``num_survivors`` one generation drops: exactly round(f * n)."""
        return round(self.prune_fraction * num_survivors)

    def survivors_after(self, num_weights: int, generation: int) -> int:
        """Return the exact survivors of ``num_weights`` weights after ``generation`` prunings."""
        survivors = num_weights
        for _ in range(generation):
            survivors -= self.n_drop(survivors)
        return survivors

    def next_survivors(self, num_survivors: int, num_weights: int, generation: int) -> int:
        """Return how many are left of those that there are, however many there once were."""
        del num_weights, generation
        return num_survivors - self.n_drop(num_survivors)

    def density_after(self, generation: int) -> float:
        """Return the nominal density (1 - f)^g, without the rounding of counts."""
        return float((1.0 - self.prune_fraction) ** generation)

    def density_at(self, fraction: float) -> float:
        """Return (1 - f)^(fraction x generations)."""
        return float((1.0 - self.prune_fraction) ** (_clamped(fraction) * self.num_generations))

    def towards(self, density: float) -> GeometricSchedule:
        """Return the schedule whose prune_fraction leads to ``density``.

        Example:
            >>> round(GeometricSchedule(0.5, 6).towards(0.262144).prune_fraction, 12)
            0.2
        """
        _check_final(density, 1.0)
        return replace(self, prune_fraction=1.0 - density ** (1.0 / self.num_generations))


def _check_final(final: float, initial: float) -> None:
    if not 0.0 < final < initial <= 1.0:
        raise ConfigError(
            f"a schedule from density {initial} to final_density {final}; expected 0 < "
            "final_density < first density <= 1, such as 1.0 to 0.25."
        )


@dataclass(frozen=True)
class _Between(Schedule):
    """A schedule between two densities: ``(1 - p) first + p last``, p its progress."""

    final_density: float
    num_generations: int = 1
    initial_density: float = 1.0

    def __post_init__(self) -> None:
        _check_final(self.final_density, self.initial_density)
        _check_generations(self.num_generations)

    def __str__(self) -> str:
        return f"final_density {self.final_density}"

    @abstractmethod
    def progress(self, fraction: float) -> float:
        """Return the part of the way that is done after ``fraction`` in [0, 1]: 0 to 1."""

    def density_at(self, fraction: float) -> float:
        """Return the density; exactly the first one at 0 and the last one at 1."""
        done = self.progress(_clamped(fraction))
        return (1.0 - done) * self.initial_density + done * self.final_density

    def towards(self, density: float) -> _Between:
        """Return the schedule with another end."""
        return replace(self, final_density=density)


@schedules.register("one-shot")
@dataclass(frozen=True)
class OneShotSchedule(_Between):
    """Drop everything in the first generation; later ones keep that wiring.

    Source:
        Ours: the control for every gradual schedule, at equal training.
    """

    paper = "hf_connectome"
    citation = "none"

    def progress(self, fraction: float) -> float:
        """Return 1 as soon as anything was done."""
        return float(fraction > 0.0)


@schedules.register("linear")
@dataclass(frozen=True)
class LinearSchedule(_Between):
    """Drop as many weights in every generation.

    Source:
        Ours: the plainest gradual schedule.
    """

    paper = "hf_connectome"
    citation = "none"

    def progress(self, fraction: float) -> float:
        """Return the fraction itself."""
        return fraction


@schedules.register("cubic")
@dataclass(frozen=True)
class CubicSchedule(_Between):
    """Drop fast at first and slowly at last: ``d1 + (d0 - d1)(1 - t)^3``.

    Source:
        Zhu & Gupta 2017, To prune, or not to prune (GMP); Liu et al. 2021, GraNet, has the same.
    """

    paper = "Zhu & Gupta 2017, To prune, or not to prune"
    citation = "arXiv:1710.01878"

    def progress(self, fraction: float) -> float:
        """Return 1 - (1 - t)^3."""
        return 1.0 - (1.0 - fraction) ** 3


@schedules.register("sigmoid")
@dataclass(frozen=True)
class SigmoidSchedule(_Between):
    """Drop slowly, fast, slowly: a logistic curve of ``steepness`` k, made to run from 0 to 1.

    Source:
        Zhang et al. 2025, Brain network science modelling of sparse neural networks (CHTss), k = 6.
    """

    steepness: float = 6.0

    paper = "Zhang et al. 2025, Brain network science modelling of sparse neural networks (CHTss)"
    citation = "arXiv:2501.19107"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.steepness <= 100.0:
            raise ConfigError(f"steepness is {self.steepness}; expected more than 0, at most 100.")

    def progress(self, fraction: float) -> float:
        """Return (s(t) - s(0)) / (s(1) - s(0)), s(t) = 1 / (1 + exp(-k (2 t - 1)))."""
        # In terms of tanh, s(t) = (1 + tanh(k (t - 1/2))) / 2, the ends are exactly 0 and 1.
        half = self.steepness / 2
        return (1.0 + math.tanh(half * (2.0 * fraction - 1.0)) / math.tanh(half)) / 2.0


def make_schedule(
    name: str, *, num_generations: int, prune_fraction: float, final_density: float | None
) -> Schedule:
    """Return the schedule that a run's settings describe.

    Args:
        name: a registered schedule.
        num_generations: how often survivors are pruned.
        prune_fraction: of the geometric schedule, unless ``final_density`` decides it.
        final_density: where the schedule ends; all but the geometric one need it.

    Raises:
        UnknownNameError: no such schedule.
        ConfigError: a number out of its range, or no final_density where one is needed.
    """
    kind = schedules.get(name)
    if issubclass(kind, GeometricSchedule):
        schedule = kind(prune_fraction, num_generations)
        return schedule if final_density is None else schedule.towards(final_density)
    if final_density is None:
        raise ConfigError(
            f"pruning_schedule={name!r} needs a final_density, such as 0.25; the geometric one "
            "alone goes by prune_fraction."
        )
    return kind(final_density, num_generations)  # type: ignore[call-arg]

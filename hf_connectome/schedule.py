"""How many survivors to drop at which generation. Pure arithmetic on counts."""

from __future__ import annotations

from dataclasses import dataclass

from hf_connectome.errors import ConfigError


@dataclass(frozen=True)
class GeometricSchedule:
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

    def __post_init__(self) -> None:
        if not 0.0 < self.prune_fraction < 1.0:
            raise ConfigError(
                f"prune_fraction is {self.prune_fraction}; expected a number between 0 and 1, both "
                "excluded, such as 0.2 (the paper's)."
            )
        if self.num_generations < 1:
            raise ConfigError(f"generations is {self.num_generations}; expected at least 1.")

    def n_drop(self, num_survivors: int) -> int:
        """Return how many of ``num_survivors`` one generation drops: exactly round(f * n)."""
        return round(self.prune_fraction * num_survivors)

    def survivors_after(self, num_weights: int, generation: int) -> int:
        """Return the exact survivors of ``num_weights`` weights after ``generation`` prunings."""
        survivors = num_weights
        for _ in range(generation):
            survivors -= self.n_drop(survivors)
        return survivors

    def density_after(self, generation: int) -> float:
        """Return the nominal density (1 - f)^g, without the rounding of counts."""
        return float((1.0 - self.prune_fraction) ** generation)

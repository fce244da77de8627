"""What a rewiring method is: it scores which links stay and which are born.

It neither counts nor ranks them (selection.py does), nor touches a model (rewirer.py does).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hf_connectome.errors import ConfigError
from hf_connectome.registry import Registry
from hf_connectome.schedule import CubicSchedule, SigmoidSchedule
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RewiringContext:
    """What a method may know beside the weights of one matrix."""

    name: str
    """Name of the parameter; ``name[i]`` for matrix i of a parameter that holds several."""
    seed: int = 0
    """Seed of the run, the same on all ranks."""
    step: int = 0
    """Optimizer step after which links move."""
    progress: float = 0.0
    """Place of this update among all, in [0, 1]; 1 at the last."""
    gradient: Tensor | None = None
    """``(R, C)``: of all weights, dead ones included; for methods that ask for it."""

    def draw(self, purpose: str) -> torch.Generator:
        """Return the generator of one draw; a function of seed, name, purpose and step."""
        return generator(self.seed, self.name, "rewiring", purpose, self.step)


@dataclass(frozen=True, kw_only=True)
class Rewiring(ABC):
    """Moves links during training. Its fields are its settings.

    At every update a part of the links of each matrix goes, those of lowest :meth:`keep`, and as
    many are born, those of highest :meth:`grow`, at weight 0.
    """

    paper: ClassVar[str]
    """Where the method comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    needs_gradient: ClassVar[bool] = False
    """Whether ``context.gradient`` is asked for."""
    thins: ClassVar[bool] = False
    """Whether the density falls while training goes on."""
    thins_globally: ClassVar[bool] = False
    """Whether it falls by the smallest weights of all matrices together, not of each."""

    most_nodes: ClassVar[int | None] = None
    """Rows or columns that a matrix may have, where there is a limit."""

    interval: int = 100
    """Optimizer steps between two updates."""
    fraction: float = 0.3
    """Part of the links of a matrix that one update replaces."""
    annealed: bool = False
    """Whether that part falls along half a cosine, to 0 at the last update."""
    until: float = 0.75
    """Part of the training after which the wiring stays."""
    scope: str = "body"
    """Which matrices of the connectome are rewired (scope.py)."""
    chains: bool = False
    """Whether links of neurons without input or without output go too (chains.py)."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.interval < 1:
            raise ConfigError(f"interval is {self.interval}; expected at least 1 optimizer step.")
        if not self._is_fraction(self.fraction):
            raise ConfigError(
                f"fraction is {self.fraction}; expected a number between 0 and 1, both excluded."
            )
        if not 0.0 < self.until <= 1.0:
            raise ConfigError(f"until is {self.until}; expected a number in (0, 1].")

    def _is_fraction(self, fraction: float) -> bool:
        return 0.0 < fraction < 1.0

    def keep(self, weight: Tensor, mask: Tensor, context: RewiringContext) -> Tensor:
        """Score the links of one matrix; those of lowest score go. By default ``|w|``.

        Args:
            weight: ``(R, C)`` float, on the CPU.
            mask: ``(R, C)`` bool, True = link; scores elsewhere are ignored.
            context: name, seed, step, progress and gradient.

        Returns:
            float, same shape, not NaN on links.
        """
        del mask, context
        return weight.abs()

    @abstractmethod
    def grow(self, mask: Tensor, context: RewiringContext) -> Tensor:
        """Score the free places of one matrix; links are born where it is highest.

        Args:
            mask: ``(R, C)`` bool, True = link that stays; scores there are ignored.
            context: as in :meth:`keep`.

        Returns:
            float, same shape, not NaN on free places.
        """

    def fraction_at(self, progress: float) -> float:
        """Return the part of the links that an update replaces."""
        return self.fraction / 2 * (1 + math.cos(math.pi * progress) if self.annealed else 2)

    def density_at(self, progress: float, first: float) -> float:
        """Return the density at an update, of what had ``first`` when training began."""
        del progress
        return first

    def last_update(self, num_steps: int) -> int:
        """Return the step of the last update in a training of ``num_steps``.

        Raises:
            ConfigError: there would be none.
        """
        last = min(int(self.until * num_steps), num_steps - 1) // self.interval * self.interval
        if last == 0:
            raise ConfigError(
                f"interval is {self.interval} and until {self.until}: no link would move in a "
                f"training of {num_steps} steps. Use a smaller interval, or train longer."
            )
        return last


@dataclass(frozen=True, kw_only=True)
class Thinning(Rewiring):
    """A method whose density falls, to ``density`` at the last update.

    It stands last among the bases of a method, so that defaults are those of the others.
    """

    thins = True
    schedule: ClassVar[type[CubicSchedule | SigmoidSchedule]] = CubicSchedule
    """How the density falls."""

    density: float = 0.0
    """Links over weights, of each matrix, where it ends; must be named."""

    def __post_init__(self) -> None:
        """Refuse a density outside (0, 1), or none."""
        super().__post_init__()
        if not 0.0 < self.density < 1.0:
            raise ConfigError(
                f"density is {self.density}; {type(self).__name__} lowers the density, and where "
                "to must be named: a number between 0 and 1, both excluded, such as density=0.1."
            )

    def density_at(self, progress: float, first: float) -> float:
        """Return the density of the schedule; what is thinner already stays so."""
        if first <= self.density:
            return first
        return self.schedule(self.density, initial_density=first).density_at(progress)


def gumbel(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Draw Gumbel noise: the highest k of ``log p + noise`` are a sample without replacement.

    torch.multinomial takes at most 2^24 categories, and underflows where p is a high power.
    """
    uniform = torch.rand(shape, generator=draw, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp_(min=tiny)))


rewirings: Registry[Rewiring] = Registry("rewiring")

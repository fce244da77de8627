"""What a wiring is: a way to draw a connectome without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ScopeError, some
from hf_connectome.registry import Registry
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.scope import ScopedParameter


class Wiring(ABC):
    """Draws mask and signs for a scope."""

    paper: ClassVar[str]
    """Where the wiring comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    needs_data: ClassVar[bool] = False
    """Whether it goes by data of its own, and fits only what the data fit."""

    @abstractmethod
    def build(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float], seed: int
    ) -> Connectome:
        """Draw a connectome.

        Args:
            scope: the parameters to wire (scope.resolve).
            density: survivors over weights, one for all or by parameter name, in (0, 1].
            seed: same seed, same connectome.

        Returns:
            A connectome with exactly the survivors of :meth:`counts` in every parameter.

        Raises:
            ScopeError: a density or a shape that the wiring does not have.
        """

    def shapes(self) -> Mapping[tuple[int, ...], int] | None:
        """Return the only shapes that fit, each with its number of survivors; None: any shape.

        A wiring that returns shapes has their densities and no other.
        """
        return None

    def default_density(self) -> float:
        """Return the density where none is asked for: the paper's, but for fixed shapes."""
        return 0.25

    def counts(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float]
    ) -> dict[str, int]:
        """Return how many survivors each parameter gets: exactly round(density * n).

        Raises:
            ScopeError: there is no density for a parameter, or one that leaves it no weight.
        """
        if isinstance(density, Mapping) and (missing := [n for n in scope if n not in density]):
            raise ScopeError(
                f"there is no density for {some(missing)}; expected one for every parameter in "
                "scope. Give it, or one number for all."
            )
        counts = {}
        for name, parameter in scope.items():
            wanted = density[name] if isinstance(density, Mapping) else density
            counts[name] = round(wanted * parameter.num_weights) if 0.0 < wanted <= 1.0 else 0
            if counts[name] == 0:
                raise ScopeError(
                    f"{name!r}: density {wanted} of {parameter.num_weights} weights; expected a "
                    "density in (0, 1] that keeps at least one weight."
                )
        return counts


class ParameterWiring(Wiring):
    """A wiring that draws one parameter at a time, from its own generator, with fair signs."""

    def build(
        self, scope: Mapping[str, ScopedParameter], density: float | Mapping[str, float], seed: int
    ) -> Connectome:
        """Draw each parameter; see :class:`Wiring`."""
        counts = self.counts(scope, density)
        return Connectome({name: self.draw(p, counts[name], seed) for name, p in scope.items()})

    def draw(self, parameter: ScopedParameter, num_survivors: int, seed: int) -> SignedMask:
        """Draw exactly ``num_survivors`` places of one parameter and a fair sign for each."""
        draw = generator(seed, parameter.name, "wiring")
        mask = self.mask(parameter, num_survivors, draw)
        sign = torch.randint(0, 2, parameter.shape, generator=draw, dtype=torch.int8) * 2 - 1
        return SignedMask.pack(mask, sign, orientation=parameter.orientation)

    @abstractmethod
    def mask(self, parameter: ScopedParameter, num_survivors: int, draw: torch.Generator) -> Tensor:
        """Return a bool mask of the parameter's shape with exactly ``num_survivors`` True."""


class MatrixWiring(ParameterWiring):
    """A wiring of outputs and inputs: it draws one matrix at a time, however that is stored."""

    def mask(self, parameter: ScopedParameter, num_survivors: int, draw: torch.Generator) -> Tensor:
        """Draw every matrix of the parameter; of a stack, the first ones get what is left over."""
        number, outputs, inputs = parameter.matrix_shape
        each, more = divmod(num_survivors, number)
        stack = [self.matrix(outputs, inputs, each + (i < more), draw) for i in range(number)]
        return parameter.from_matrices(torch.stack(stack))

    @abstractmethod
    def matrix(
        self, outputs: int, inputs: int, num_survivors: int, draw: torch.Generator
    ) -> Tensor:
        """Return a bool ``(outputs, inputs)`` mask with exactly ``num_survivors`` True."""


wirings: Registry[Wiring] = Registry("wiring")

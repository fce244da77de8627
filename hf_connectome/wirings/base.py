"""What a wiring is: a way to draw a connectome without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from hf_connectome.registry import Registry

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome
    from hf_connectome.scope import ScopedParameter


class Wiring(ABC):
    """Draws mask and signs for a scope."""

    paper: ClassVar[str]
    """Where the wiring comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""

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
            A connectome with exactly round(density * n) survivors in every parameter.

        Raises:
            ScopeError: a density or a shape that the wiring does not have.
        """

    def shapes(self) -> Mapping[tuple[int, ...], int] | None:
        """Return the only shapes that fit, each with its number of survivors; None: any shape.

        A wiring that returns shapes has their densities and no other.
        """
        return None


wirings: Registry[Wiring] = Registry("wiring")

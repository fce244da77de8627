"""What a criterion is: it scores weights. It neither ranks nor counts them (selection.py does)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_connectome.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CriterionContext:
    """What a criterion may know beside the weights."""

    name: str
    """Name of the parameter being scored."""
    seed: int = 0
    """Seed of the run; a criterion that draws seeds its own generator with it and the name."""
    generation: int = 0
    """Generation whose survivors are being scored."""


class Criterion(ABC):
    """Scores the weights of one parameter; survivors of highest score stay."""

    paper: ClassVar[str]
    """Where the criterion comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""

    @abstractmethod
    def score(self, weight: Tensor, mask: Tensor, context: CriterionContext) -> Tensor:
        """Score every weight of one parameter.

        Args:
            weight: the parameter, full (never a shard), any floating dtype.
            mask: bool, same shape, True = survivor; scores elsewhere are ignored.
            context: name, seed and generation.

        Returns:
            float, same shape, finite on survivors; higher = keep.
        """


criteria: Registry[Criterion] = Registry("criterion")

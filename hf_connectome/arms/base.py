"""What an arm of the inner loop is: what a fresh host takes over, and how many bits that is.

Arms are compared by train_arms (inheritance.py); what they keep of a connectome is theirs to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_connectome.errors import ConfigError
from hf_connectome.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.connectome import Connectome


@dataclass(frozen=True)
class Estate:
    """What there is to inherit."""

    connectome: Connectome
    seed: int
    """Of what an arm draws; the host's initialisation has the same."""
    reset: str
    """First values of survivors, where the arm itself does not say."""
    parent: Mapping[str, Tensor] | None = None
    """Trained weights of the model that the connectome was found in, by name; if at hand."""
    blocks: Sequence[Mapping[str, Tensor]] | None = None
    """The child's own training text, in blocks of tokens; if at hand."""


@dataclass(frozen=True)
class Inherited:
    """What a host has taken over."""

    mask: Connectome | None
    """Which weights may live during training; None: all."""
    bits: float
    """Information that came from the parent: what a code that knows the rest must still send."""


class Arm(ABC):
    """One way for a fresh host to start."""

    keeps: ClassVar[str]
    """What of the parent reaches the child, in a line."""
    needs_parent: ClassVar[bool] = False
    """Whether the trained weights of the parent are needed."""
    needs_text: ClassVar[bool] = False
    """Whether the child's own text is needed before it trains."""
    takes_reset: ClassVar[bool] = False
    """Whether a reset decides the first values."""
    takes_source: ClassVar[bool] = False
    """Whether the arm is made from a connectome alone, so that it may be made from another."""

    def check(self, estate: Estate, name: str) -> None:
        """Refuse an estate that lacks what the arm needs.

        Raises:
            ConfigError: the arm needs the parent's weights, or signs, and there are none.
        """
        if self.needs_parent and estate.parent is None:
            raise ConfigError(
                f"the arm {name!r} carries weights of the parent, and none are given. Name the "
                "checkpoint that the connectome was pruned from: --parent …/checkpoint-<step>."
            )

    @abstractmethod
    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Give the host its first values; the host is freshly initialised by the seed."""


arms: Registry[Arm] = Registry("arm")

"""What a control is: an exact transformation of a connectome into one that has lost something."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from hf_connectome.controls.counting import travelling_bits
from hf_connectome.errors import ConfigError, some
from hf_connectome.registry import Registry
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    import torch

    from hf_connectome.connectome import Connectome, SignedMask


class Control(ABC):
    """Makes the twin of a connectome."""

    name: ClassVar[str]
    """The name that it is registered under."""
    rung: ClassVar[str]
    """Its place on the null ladder, "N1" to "N9"; "-" for a building block beside it."""
    keeps: ClassVar[str]
    """What the twin has in common with the original, exactly; one line."""
    destroys: ClassVar[str]
    """What it has lost; one line."""
    paper: ClassVar[str]
    """Where the control comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    needs_sign: ClassVar[bool] = False
    """Whether a mask-only connectome is refused."""
    uses_seed: ClassVar[bool] = True
    """Whether other seeds give other twins."""

    @abstractmethod
    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Make the twin; the same for the same seed, whatever the order of parameters.

        Scales and values that travel whole stay as they are, unless ``keeps`` says otherwise.

        Raises:
            ConfigError: the control is about signs and the connectome has none.
            ScopeError: nothing of the connectome would be left.
        """

    @abstractmethod
    def bits(self, connectome: Connectome) -> float:
        """Count the bits of the connectome that its twin still depends on (see bits.py)."""

    def check(self, connectome: Connectome) -> None:
        """Refuse a connectome that has not what the control is about.

        Raises:
            ConfigError: names what is missing and the way out.
        """
        bare = [name for name, entry in connectome.items() if entry.sign_bits is None]
        if self.needs_sign and bare:
            raise ConfigError(
                f"{some(bare)} has a mask but no signs; the control {self.name!r} needs signs. Use "
                "a control of the mask, such as 'random' or 'degrees', or a connectome with signs."
            )


class EntryControl(Control):
    """A control that takes one parameter at a time."""

    def twin(self, connectome: Connectome, seed: int) -> Connectome:
        """Redraw every parameter; see :class:`Control`."""
        self.check(connectome)
        return connectome.replace(
            {name: self.redraw(entry, name, seed) for name, entry in connectome.items()}
        )

    def bits(self, connectome: Connectome) -> float:
        """Add up the parameters, their scales, and the values that travel whole."""
        self.check(connectome)
        whole = travelling_bits(connectome)
        return whole + sum(self.entry_bits(entry) for entry in connectome.values())

    @abstractmethod
    def redraw(self, entry: SignedMask, name: str, seed: int) -> SignedMask:
        """Return the twin of one parameter: same shape, same orientation, same kind of content."""

    @abstractmethod
    def entry_bits(self, entry: SignedMask) -> float:
        """Count the bits of mask and signs that the twin of one parameter still depends on."""

    def draw(self, name: str, seed: int) -> torch.Generator:
        """Return the generator of one parameter; no two parameters or controls share one."""
        return generator(seed, name, "control", self.name)


controls: Registry[Control] = Registry("control")

C = TypeVar("C", bound=type[Control])


def register(name: str) -> Callable[[C], C]:
    """Register the decorated control under ``name``, and tell it its name."""

    def add(cls: C) -> C:
        cls.name = name
        controls.register(name)(cls)
        return cls

    return add

"""The arms that need nothing but a connectome: itself, nothing at all, and each of its controls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.controls import controls
from hf_connectome.controls.counting import whole_bits
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import wire

if TYPE_CHECKING:
    from torch import nn

    from hf_connectome.connectome import Connectome

_RESETS = {"mask-only": "keep", "signs-only": "fresh_magnitude"}
"""Controls that are about another first value than the reset in force."""


def as_used(connectome: Connectome, reset: str) -> Connectome:
    """Leave out what a child under ``reset`` makes no use of.

    Masks count always; signs unless the policy keeps the host's own; scales for 'tensor_scale'.
    """
    entries = dict(connectome)
    if reset != "tensor_scale":
        entries = {name: replace(entry, scale=None) for name, entry in entries.items()}
    if reset == "keep":
        entries = {name: replace(entry, sign_bits=None) for name, entry in entries.items()}
    return connectome.replace(entries)


def used_bits(connectome: Connectome, reset: str) -> float:
    """Count the bits that a child under ``reset`` makes use of."""
    return whole_bits(as_used(connectome, reset))


@arms.register("dense")
class Dense(Arm):
    """The host as it was initialised (N0)."""

    keeps = "nothing"

    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Change nothing."""
        del host, estate
        return Inherited(None, 0.0)


@arms.register("connectome")
class Whole(Arm):
    """Mask and signs, with the first values of the reset in force."""

    keeps = "mask and signs, and the scales where the reset uses them"
    takes_reset = True
    takes_source = True

    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Wire the host."""
        wire(host, estate.connectome, reset=estate.reset)
        return Inherited(estate.connectome, used_bits(estate.connectome, estate.reset))


class ControlArm(Arm):
    """A twin of the connectome, on the same terms as the connectome itself."""

    takes_source = True

    def __init__(self, name: str) -> None:
        """Take the control of this name."""
        self.control = controls.get(name)()

    @property
    def keeps(self) -> str:  # type: ignore[override]
        """What the twin has in common with the connectome."""
        return self.control.keeps

    @property
    def takes_reset(self) -> bool:  # type: ignore[override]
        """Whether the control is tried under any reset."""
        return self.control.name not in _RESETS

    def put(self, host: nn.Module, estate: Estate) -> Inherited:
        """Wire the host by the twin.

        Raises:
            ConfigError: the control is about signs and the reset makes no use of them.
        """
        reset = _RESETS.get(self.control.name, estate.reset)
        if reset == "keep" and self.control.needs_sign:
            raise ConfigError(
                f"the control {self.control.name!r} is about signs, and the reset 'keep' uses "
                "none, so it would change nothing. Leave it out, or use another reset."
            )
        twin = self.control.twin(estate.connectome, estate.seed)
        wire(host, twin, reset=reset)
        return Inherited(twin, self.control.bits(as_used(estate.connectome, reset)))

"""Arms of the inner loop by name: one idea a file in this folder, registered on import.

Every control of a connectome is an arm too.
"""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.arms.wired import ControlArm, used_bits
from hf_connectome.controls import controls
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.reset import resets

register = arms.register

for _module in pkgutil.iter_modules(__path__):  # a new file needs no line here
    importlib.import_module(f"{__name__}.{_module.name}")


def arm_names() -> list[str]:
    """Return the names of all arms."""
    return sorted({*arms, *controls})


def get_arm(spec: str) -> tuple[Arm, str | None]:
    """Return the arm of a name, and the reset after it if there is one: ``connectome:init_std``.

    Raises:
        UnknownNameError: no such arm or reset; the message offers the nearest and lists all.
        ConfigError: a reset after an arm that has first values of its own.
    """
    name, colon, reset = spec.partition(":")
    if colon:
        resets.get(reset)
    if name not in arms and name not in controls:
        raise UnknownNameError(f"unknown arm {name!r}. {did_you_mean(name, arm_names())}")
    arm = arms.get(name)() if name in arms else ControlArm(name)
    if reset and not arm.takes_reset:
        raise ConfigError(
            f"the arm {spec!r} asks for the reset {reset!r}, but {name!r} has first values of its "
            f"own, which no reset changes. Use {name!r} alone."
        )
    return arm, reset or None


__all__ = [
    "Arm",
    "Estate",
    "Inherited",
    "arm_names",
    "arms",
    "get_arm",
    "register",
    "used_bits",
]

"""Arms of the inner loop by name: one idea a file in this folder, registered on import.

Every control of a connectome is an arm too.
"""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.arms.base import Arm, Estate, Inherited, arms
from hf_connectome.arms.wired import ControlArm, used_bits
from hf_connectome.controls import controls
from hf_connectome.errors import UnknownNameError, did_you_mean
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
    """
    name, colon, reset = spec.partition(":")
    if colon:
        resets.get(reset)
    if name in arms:
        return arms.get(name)(), reset or None
    if name in controls:
        return ControlArm(name), reset or None
    raise UnknownNameError(f"unknown arm {name!r}. {did_you_mean(name, arm_names())}")


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

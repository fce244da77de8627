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
    """Return the arm of ``name[@source][:reset]``, and the reset if there is one.

    Example:
        >>> get_arm("connectome@generation-3:init_std")[1], source_of("connectome@generation-3")
        ('init_std', 'generation-3')

    Raises:
        UnknownNameError: no such arm or reset; the message offers the nearest and lists all.
        ConfigError: a reset after an arm that has first values of its own, or another connectome
            for an arm that is not made from one.
    """
    name, source, reset = _parts(spec)
    if reset is not None:
        resets.get(reset)
    if name not in arms and name not in controls:
        raise UnknownNameError(f"unknown arm {name!r}. {did_you_mean(name, arm_names())}")
    arm = arms.get(name)() if name in arms else ControlArm(name)
    if reset is not None and not arm.takes_reset:
        raise ConfigError(
            f"the arm {spec!r} asks for the reset {reset!r}, but {name!r} has first values of its "
            f"own, which no reset changes. Use {name!r} alone."
        )
    if source is not None and not (source and arm.takes_source):
        raise ConfigError(
            f"the arm {spec!r} names the connectome {source!r}; expected one after an arm that is "
            "made from a connectome alone, such as connectome@generation-3 or "
            "random@runs/other/generation-6."
        )
    return arm, reset


def source_of(spec: str) -> str | None:
    """Return the other connectome that an arm is made from, as it is named; None: the main one."""
    return _parts(spec)[1]


def _parts(spec: str) -> tuple[str, str | None, str | None]:
    """Take ``name[@source][:reset]`` apart; a source may be a path or ``owner/name@revision``."""
    head, at, tail = spec.partition("@")
    named, colon, reset = (tail if at else head).partition(":")
    return (head if at else named), (named if at else None), (reset if colon else None)


__all__ = [
    "Arm",
    "Estate",
    "Inherited",
    "arm_names",
    "arms",
    "get_arm",
    "register",
    "source_of",
    "used_bits",
]

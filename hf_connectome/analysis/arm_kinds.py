"""What sort of comparison an arm is, the order in which arms are read, and their colours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hf_connectome.analysis.drawing import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from hf_connectome.controls import controls
from hf_connectome.evaluation.arms import BASELINE, REFERENCE

RUNGS = (
    *("dense", "mask-only", "connectome", "tensor-scale", "row-scale"),
    *("2-bit", "4-bit", "weights", "parent"),
)
"""What a child inherits, piece upon piece: nothing first, the whole parent last."""

RUNG, CONTROL, RIVAL, RESET, OTHER = (
    *("rungs, from nothing to the whole parent", "controls: something was destroyed"),
    *("rivals: the bits spent another way", "the connectome, other first values", "other arms"),
)
LOOKS: dict[str, dict[str, Any]] = {
    RUNG: {"color": BLUE, "marker": "o"},
    CONTROL: {"color": VERMILION, "marker": "v"},
    RIVAL: {"color": GREEN, "marker": "s"},
    RESET: {"color": PURPLE, "marker": "D"},
    OTHER: {"color": ORANGE, "marker": "P"},
}
_OTHER_STARTS = (REFERENCE, "learned-scale")
_RIVALS = ("selection", "embedding-signs")
"""How their names begin."""


def kind_of(arm: str) -> str:
    """Return what sort of arm it is, as a legend says it.

    Example:
        >>> kind_of("degrees"), kind_of("connectome:init_std")
        ('controls: something was destroyed', 'the connectome, other first values')
    """
    if arm in RUNGS:
        return RUNG
    if arm.partition(":")[0] in _OTHER_STARTS:
        return RESET
    if arm in controls:
        return CONTROL
    return RIVAL if arm.startswith(_RIVALS) else OTHER


def colour_of(arm: str) -> str:
    """Return the colour of its sort."""
    return str(LOOKS[kind_of(arm)]["color"])


def numbered(arm: str) -> str:
    """Put its number on the null ladder before the name of a control.

    Example:
        >>> numbered("random"), numbered("signs-only")
        ('N1  random', 'signs-only')
    """
    rung = controls.get(arm).rung if arm in controls else "-"
    return arm if rung == "-" else f"{rung}  {arm}"


def ladder_order(arms: Iterable[str]) -> list[str]:
    """Order arms as they are read: the connectome, N0 to N9, parts, rungs, resets, the rest.

    Example:
        >>> ladder_order(["parent", "selection", "degrees", "random", "dense", "connectome"])
        ['connectome', 'dense', 'random', 'degrees', 'parent', 'selection']
    """
    return sorted(arms, key=lambda arm: (group_of(arm), _place(arm), arm))


def group_of(arm: str) -> int:
    """Return the number of the group that an arm stands in, in reading order."""
    if arm == REFERENCE:
        return 0
    if arm == BASELINE or _number(arm) is not None:
        return 1
    if arm in controls:
        return 2
    if arm in RUNGS:
        return 3
    return 4 if kind_of(arm) == RESET else 5


def _place(arm: str) -> int:
    number = _number(arm)
    if number is not None:
        return number
    return RUNGS.index(arm) if arm in RUNGS else len(RUNGS)


def _number(arm: str) -> int | None:
    """Return the number of a control on the null ladder."""
    found = re.fullmatch(r"N(\d+)", controls.get(arm).rung) if arm in controls else None
    return int(found[1]) if found is not None else None

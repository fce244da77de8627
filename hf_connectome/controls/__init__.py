"""Twins of a connectome that keep some of its properties and lose the rest: the null ladder.

They are what a claim about a connectome is tested against. One file a control in this folder,
registered on import; docs/CONTROLS.md says what each keeps and destroys.
"""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.controls.base import Control, EntryControl, controls, register
from hf_connectome.controls.bits import inherited_bits
from hf_connectome.controls.random import random_twin

for _module in pkgutil.iter_modules(__path__):  # a new file needs no line here
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Control", "EntryControl", "controls", "inherited_bits", "random_twin", "register"]

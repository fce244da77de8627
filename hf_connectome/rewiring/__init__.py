"""Methods that move links during training, by name: one file each, registered on import."""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.rewiring.base import Rewiring, RewiringContext, Thinning, rewirings
from hf_connectome.rewiring.rewirer import Rewirer
from hf_connectome.rewiring.spec import get_rewiring

register = rewirings.register

for _module in pkgutil.iter_modules(__path__):  # a new file needs no line here
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Rewirer",
    "Rewiring",
    "RewiringContext",
    "Thinning",
    "get_rewiring",
    "register",
    "rewirings",
]

"""Wirings by name: one file each in this folder, registered on import."""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.wirings.base import MatrixWiring, ParameterWiring, Wiring, wirings
from hf_connectome.wirings.options import make_wiring, patterned
from hf_connectome.wirings.random import RandomWiring

register = wirings.register

for _module in pkgutil.iter_modules(__path__):  # a new file needs no line here
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "MatrixWiring",
    "ParameterWiring",
    "RandomWiring",
    "Wiring",
    "make_wiring",
    "patterned",
    "register",
    "wirings",
]

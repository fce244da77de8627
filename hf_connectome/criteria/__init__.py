"""Criteria by name: one file each in this folder, registered on import."""

from __future__ import annotations

import importlib
import pkgutil

from hf_connectome.criteria.base import (
    STATISTICS,
    Criterion,
    CriterionContext,
    Statistics,
    criteria,
)
from hf_connectome.criteria.magnitude import Magnitude
from hf_connectome.criteria.random import Random

register = criteria.register

for _module in pkgutil.iter_modules(__path__):  # a new file needs no line here
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "STATISTICS",
    "Criterion",
    "CriterionContext",
    "Magnitude",
    "Random",
    "Statistics",
    "criteria",
    "register",
]

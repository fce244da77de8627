"""Criteria by name: one file each, registered on import."""

from __future__ import annotations

from hf_connectome.criteria.base import Criterion, CriterionContext, criteria
from hf_connectome.criteria.magnitude import Magnitude
from hf_connectome.criteria.random import Random

register = criteria.register

__all__ = ["Criterion", "CriterionContext", "Magnitude", "Random", "criteria", "register"]

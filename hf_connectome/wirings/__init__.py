"""Wirings by name: one file each, registered on import."""

from __future__ import annotations

from hf_connectome.wirings.base import Wiring, wirings
from hf_connectome.wirings.random import RandomWiring

register = wirings.register

__all__ = ["RandomWiring", "Wiring", "register", "wirings"]

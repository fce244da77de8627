"""Optimizers that keep state for survivors alone, and gradients that travel as survivors alone."""

from hf_connectome.optimizers.adamw import (
    STATE_HELP,
    SurvivorAdamW,
    check_optimizer_state,
    optimizer_of,
)
from hf_connectome.optimizers.communication import SurvivorAllReduce

__all__ = [
    "STATE_HELP",
    "SurvivorAdamW",
    "SurvivorAllReduce",
    "check_optimizer_state",
    "optimizer_of",
]

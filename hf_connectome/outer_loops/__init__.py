"""Outer loops by name: other ways to find a connectome than train, prune, reset."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hf_connectome.outer_loops.arguments import OUTER_LOOPS, OuterLoopArguments
from hf_connectome.outer_loops.iht import ThresholdTrainer
from hf_connectome.outer_loops.search import SearchTrainer
from hf_connectome.trainer import GenerationalTrainer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "OUTER_LOOPS",
    "OuterLoopArguments",
    "SearchTrainer",
    "ThresholdTrainer",
    "outer_loop",
]


def outer_loop(loop: OuterLoopArguments) -> Callable[..., GenerationalTrainer]:
    """Return what builds the trainer of the loop that is asked for, as GenerationalTrainer does."""
    if loop.outer_loop == "generational":
        return GenerationalTrainer
    kind = ThresholdTrainer if loop.outer_loop == "iht" else SearchTrainer
    return partial(kind, loop=loop)

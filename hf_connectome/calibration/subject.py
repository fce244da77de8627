"""The model that is measured, at rest: no dropout, no change, no ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = Mapping[str, Any]
    Loss = Callable[[nn.Module, dict[str, Any]], Tensor]
    Measured = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model, its parameters in scope by name, and what it is measured on."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    batches: Sequence[Batch]
    loss: Loss


@contextmanager
def at_rest(subject: Subject) -> Iterator[None]:
    """Have the model in evaluation mode and its scope differentiable, and put both back."""
    modes = [(module, module.training) for module in subject.model.modules()]
    trains = [(p, p.requires_grad) for p in subject.parameters.values()]
    subject.model.eval()
    for parameter, _ in trains:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, trained in trains:
            parameter.requires_grad_(trained)

"""Statistics of what goes into and comes out of the layers that hold the parameters in scope.

One way for all layers: each is linear in its weight, so the gradient of its output by the weight is
a sum over positions of the weight's own input, wherever Conv1D, Embedding or a grouped convolution
store it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from hf_connectome.calibration.subject import Measured, Subject

_LEAST_VARIANCE = 1e-6
"""Of the second moment; below it a unit is constant, and what is left of its variance rounding."""


@dataclass(frozen=True)
class _Call:
    """One call of one layer."""

    module: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Tensor

    def sums(self, power: int, factor: Tensor) -> Tensor:
        """Sum ``input^power x factor`` over positions, for every weight.

        Args:
            power: 0, 1 or 2. The input of an embedding is a token's one-hot vector.
            factor: shape of the output; each weight takes it where its output unit is.

        Returns:
            float64, shape of the weight.
        """
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        if not isinstance(self.module, nn.Embedding):
            first = (*self.arguments, *self.options.values())[0]
            output = type(self.module).forward(self.module, first.detach().pow(power))
        elif power == 0:
            return factor.double().flatten(0, -2).sum(0).expand(weight.shape)
        else:
            output = type(self.module).forward(self.module, *self.arguments, **self.options)
            factor = factor * self._input_of_embedding() if power == 2 else factor
        (found,) = torch.autograd.grad(output, weight, factor)
        return found.double()

    def _input_of_embedding(self) -> Tensor:
        """Return 1, or by how much an embedding scales its rows (Gemma's does)."""
        twin = copy.copy(self.module)
        ones = torch.ones_like(self.module.weight)  # type: ignore[arg-type]
        twin._parameters = {"weight": nn.Parameter(ones, requires_grad=False)}
        scales: Tensor = type(twin).forward(twin, *self.arguments, **self.options)
        return scales


def feature_norms(subject: Subject) -> Measured:
    """Return the L2 norm of the input of every weight; of an embedding, the root of a count.

    Source:
        Sun et al. 2023, Wanda: ``||X_j||_2`` over all tokens of the calibration samples.
    """
    squares = _observe(subject, lambda call: call.sums(2, torch.ones_like(call.output)))
    return {name: torch.stack(uses).sum(0).sqrt() for name, uses in squares.items()}


def correlations(subject: Subject) -> Measured:
    """Return the absolute correlation of the input of every weight with its output unit."""
    moments = _observe(subject, _moments)
    return {
        name: torch.stack([_squared_correlation(use) for use in uses]).sum(0).sqrt()
        for name, uses in moments.items()
    }


def _moments(call: _Call) -> Tensor:
    output = call.output.float()
    one = torch.ones_like(call.output)
    pairs = (
        *((0, one), (1, one), (2, one)),
        *((0, call.output), (0, output.square().to(one.dtype)), (1, call.output)),
    )
    return torch.stack([call.sums(power, factor) for power, factor in pairs])  # (6, *weight)


def _squared_correlation(moments: Tensor) -> Tensor:
    """Return r^2, 0 where a unit is constant."""
    n, x, xx, y, yy, xy = moments
    spread, other = n * xx - x.square(), n * yy - y.square()
    varies = (spread > _LEAST_VARIANCE * n * xx) & (other > _LEAST_VARIANCE * n * yy)
    squared = (n * xy - x * y).square() / torch.where(varies, spread * other, 1.0)
    return torch.where(varies, squared, 0.0).clamp(max=1.0)


def _observe(subject: Subject, of: Callable[[_Call], Tensor]) -> dict[str, list[Tensor]]:
    """Sum ``of`` over all calls, apart for each of the layers that share a parameter.

    Raises:
        ConfigError: no batch reached the layer of a parameter.
    """
    found: dict[str, dict[int, Tensor]] = {name: {} for name in subject.parameters}
    hooks: list[RemovableHandle] = []
    for name, parameter in subject.parameters.items():
        for module in subject.model.modules():
            if module._parameters.get("weight") is parameter:
                hook = _adding(found[name], of)
                hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with torch.no_grad():
            for batch in subject.batches:
                subject.model(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    for name, uses in found.items():
        if not uses:
            raise ConfigError(
                f"no batch reached the layer of {name!r}, so nothing is known of its input. Give "
                "more batches, or leave it out of scope."
            )
    return {name: list(uses.values()) for name, uses in found.items()}


def _adding(sums: dict[int, Tensor], of: Callable[[_Call], Tensor]) -> Any:
    def add(module: nn.Module, arguments: Any, options: Any, output: Tensor) -> None:
        with torch.enable_grad():
            value = of(_Call(module, arguments, options, output.detach()))
        sums[id(module)] = sums[id(module)] + value if id(module) in sums else value

    return add

"""Statistics of the parameters in scope on a fixed number of batches: gradients and their kin.

Only what is asked for is computed. The model is not changed, and dead weights stay 0 in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_connectome.calibration.activations import correlations, feature_norms
from hf_connectome.calibration.subject import Subject, at_rest
from hf_connectome.criteria.base import MOVEMENT, STATISTICS
from hf_connectome.errors import (
    ConfigError,
    ScopeError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
    some,
)
from hf_connectome.hosts import check_host
from hf_connectome.scope import RAW, parameters_of, unwrap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.calibration.subject import Batch, Loss, Measured
    from hf_connectome.connectome import Connectome
    from hf_connectome.criteria import Statistics


def model_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Return the loss that a transformers model computes from its labels.

    Raises:
        ConfigError: it gives none.
    """
    loss: Tensor | None = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ConfigError(
            f"{type(model).__name__} gives no loss for a batch of {some(batch)}. Put labels into "
            "the batches, or pass loss=, a function of model and batch."
        )
    return loss


def measure(
    model: nn.Module,
    connectome: Connectome,
    batches: Iterable[Batch],
    needs: Sequence[str],
    *,
    loss: Loss = model_loss,
) -> Statistics:
    """Measure what a criterion needs.

    Args:
        model: the host under ``connectome``, wrapped (DDP, compiled) or not; run in evaluation
            mode, in the dtype of its weights.
        connectome: names the parameters; its dead weights are 0 in the model.
        batches: keyword arguments of the model, on its device; the same ones on every rank.
        needs: names of :data:`hf_connectome.criteria.STATISTICS`.
        loss: of model and batch.

    Returns:
        statistic -> parameter -> float32 on the CPU, of the parameter's shape. A parameter that is
        used twice (tied) has one gradient, of both uses, and the root of the summed squares of its
        feature norms and correlations, each in the sense of its own use.

    Raises:
        ConfigError: a statistic cannot be had from batches, or not of these.
        ScopeError: a parameter has no input of its own, or a dead weight is not 0.
        UnsupportedError: the model is sharded.
    """
    if not needs:
        return {}
    check_needs(needs, connectome)
    if MOVEMENT in needs:
        raise ConfigError(
            f"{MOVEMENT!r} is summed over the steps of a training, so no batch gives it. "
            "GenerationalTrainer sums it; with a loop of your own use calibration.MovementSums."
        )
    parameters = check_host(connectome, model)
    _check_weights(connectome, parameters)
    subject = Subject(unwrap(model), parameters, list(batches), loss)
    if not subject.batches:
        raise ConfigError(f"{some(needs)} is measured on batches, and there are none. Give some.")
    with at_rest(subject):
        return {
            kind: {name: value.float().cpu() for name, value in _MEASURES[kind](subject).items()}
            for kind in needs
        }


def check_needs(needs: Iterable[str], connectome: Connectome) -> None:
    """Refuse, before any work, what cannot be measured of a scope.

    Raises:
        UnknownNameError: there is no such statistic.
        ScopeError: names the parameters that are no layer's weight, and so have no input.
    """
    for kind in needs:
        if kind not in STATISTICS:
            raise UnknownNameError(f"unknown statistic {kind!r}. {did_you_mean(kind, STATISTICS)}")
        raw = [name for name, entry in connectome.items() if entry.orientation == RAW]
        if kind in _OF_ACTIVATIONS and raw:
            raise ScopeError(
                f"{some(raw)} is no Linear, Conv1D, Embedding or convolution (fused experts and "
                f"tokens are not), so {kind!r}, {STATISTICS[kind]}, is not known of it. Leave it "
                "out of scope (scope: all-linear), or use a criterion of weights or gradients."
            )


def _check_weights(connectome: Connectome, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if hasattr(parameter, "full_tensor"):
            raise UnsupportedError(
                f"{name!r} is an FSDP2 shard, and what the criterion needs is measured on whole "
                "weights. Use DDP, or a criterion that needs no batches: magnitude, movement."
            )
        dead = ~connectome.mask(name).to(parameter.device)
        leaks = int((parameter.detach()[dead] != 0).sum())
        if leaks:
            raise ScopeError(
                f"{leaks} dead weights of {name!r} are not 0, so the model is not the one that is "
                "asked about. Put the connectome on it first: connectome.to(model, reset='keep')."
            )


# ---- gradients -----------------------------------------------------------------------------------


def _gradients(subject: Subject, batch: Batch, **options: Any) -> tuple[Tensor, ...]:
    return _derivatives(subject.loss(subject.model, dict(batch)), subject, **options)


def _derivatives(value: Tensor, subject: Subject, **options: Any) -> tuple[Tensor, ...]:
    """Differentiate by the scope; 0 for a parameter that was not used."""
    return torch.autograd.grad(
        value,
        list(subject.parameters.values()),
        allow_unused=True,
        materialize_grads=True,
        **options,
    )


def _mean(
    subject: Subject, parts: Iterable[Batch], of: Callable[[Batch], Iterable[Tensor]]
) -> Measured:
    """Average what ``of`` gives for each part, in float32 or better."""
    sums = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for p in subject.parameters.values()
    ]
    num_parts = 0
    for part in parts:
        for total, value in zip(sums, of(part), strict=True):
            total += value
        num_parts += 1
    return dict(zip(subject.parameters, (total / num_parts for total in sums), strict=True))


def _gradient(subject: Subject) -> Measured:
    return _mean(subject, subject.batches, lambda batch: _gradients(subject, batch))


def _squared(subject: Subject, parts: Iterable[Batch]) -> Measured:
    return _mean(subject, parts, lambda b: (g.float().square() for g in _gradients(subject, b)))


def _batch_gradient_squared(subject: Subject) -> Measured:
    return _squared(subject, subject.batches)


def _example_gradient_squared(subject: Subject) -> Measured:
    return _squared(subject, (one for batch in subject.batches for one in _examples(batch)))


def _examples(batch: Batch) -> Iterator[Batch]:
    """Cut a batch into batches of one, along the first dimension of its tensors."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    for number in range(len(next(iter(tensors.values())))):
        yield {**batch, **{key: value[number : number + 1] for key, value in tensors.items()}}


def _hessian_gradient(subject: Subject) -> Measured:
    """Differentiate gradient . (the mean gradient as a constant), batch by batch."""
    mean = _gradient(subject)

    def product(batch: Batch) -> tuple[Tensor, ...]:
        gradients = _gradients(subject, batch, create_graph=True)
        parts = [
            (g * mean[name].to(g.dtype)).sum()
            for name, g in zip(subject.parameters, gradients, strict=True)
        ]
        return _derivatives(torch.stack(parts).sum(), subject)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        return _mean(subject, subject.batches, product)


# ---- synaptic flow -------------------------------------------------------------------------------


def _synaptic_flow(subject: Subject) -> Measured:
    """Differentiate the summed output of a twin whose weights in scope are absolute values.

    In float64, for the flow through many layers leaves float32's range, and scaled to at most 1,
    which changes no rank.
    """
    twin: Any = copy.deepcopy(subject.model).double()
    if hasattr(getattr(twin, "config", None), "_experts_implementation"):
        twin.config._experts_implementation = "eager"  # fused experts take no float64
    parameters = {n: p for n, p in parameters_of(twin).items() if n in subject.parameters}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.abs_()
    flow = replace(subject, model=twin, parameters=parameters, loss=_summed_output)
    measured = _gradient(flow)
    largest = max(float(value.abs().max()) for value in measured.values())
    return {name: value / (largest or 1.0) for name, value in measured.items()}


def _summed_output(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Sum the output for an input of ones.

    Token ids cannot be ones: they stay. Equal positions would leave queries and keys without
    a gradient.
    """
    inputs = {
        key: torch.ones_like(value, dtype=torch.float64)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for key, value in batch.items()
        if key != "labels"
    }
    output = model(**inputs)
    if not isinstance(output, torch.Tensor):
        output = output.logits if hasattr(output, "logits") else output[0]
    total: Tensor = output.sum()
    return total


_OF_ACTIVATIONS: dict[str, Callable[[Subject], Measured]] = {
    "feature_norm": feature_norms,
    "correlation": correlations,
}
_MEASURES: dict[str, Callable[[Subject], Measured]] = {
    "gradient": _gradient,
    "batch_gradient_squared": _batch_gradient_squared,
    "example_gradient_squared": _example_gradient_squared,
    "hessian_gradient": _hessian_gradient,
    "synaptic_flow": _synaptic_flow,
    **_OF_ACTIVATIONS,
}

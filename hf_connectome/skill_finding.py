"""A skill as a connectome: the weights of one trained model that a kind of text needs most.

The model stays as it is. What is found is an ordinary connectome, to be put on the model as a
frozen skill (adapter.py), combined or lesioned (operations.py), and tested (skill_tests.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError, did_you_mean, some
from hf_connectome.hosts import describe, full_tensor
from hf_connectome.operations import with_row
from hf_connectome.scope import IN_OUT, OUT_IN, ScopedParameter, parameters_of, resolve, unwrap
from hf_connectome.selection import keep
from hf_connectome.signed_mask import SignedMask

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = Mapping[str, Any]
    """Keyword arguments of the model, labels among them."""
    Scores = dict[str, Tensor]

FEED_FORWARD = "feed-forward"
"""The scope of activation: what makes and what reads the neurons of feed-forward blocks."""
BLOCKS = (
    ("c_fc", (), "c_proj"),
    ("up_proj", ("gate_proj",), "down_proj"),
    ("fc1", (), "fc2"),
    ("wi", (), "wo"),
    ("wi_1", ("wi_0",), "wo"),
    ("intermediate.dense", (), "output.dense"),
    ("dense_h_to_4h", (), "dense_4h_to_h"),
)
"""Names in feed-forward blocks: the layer whose outputs score the neurons, others that make them,
the one that reads them."""


def find_skill(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    density: float,
    method: str = "fisher",
    scope: str | list[str] | None = None,
    other: Iterable[Batch] | None = None,
) -> Connectome:
    """Find the weights that matter most for the text of the batches.

    Args:
        model: a trained model; with dropout off while it is looked at, and unchanged.
        batches: what shows the skill; all count alike. Fisher squares the gradient of each, so
            batches of one document are the sharpest.
        density: survivors over weights of every parameter in scope, in (0, 1).
        method: ``fisher`` (:func:`fisher_scores`) or ``activation`` (:func:`activation_scores`).
        scope: as in :func:`hf_connectome.scope.resolve`; by default 'body' for fisher and
            'feed-forward' for activation.
        other: text without the skill. Then a weight is scored by how much more it matters here:
            score over its tensor's mean, less the same on the other text.

    Returns:
        A connectome with exactly round(density * n) survivors in every parameter, signs those of
        the model's weights, reset 'keep'.

    Raises:
        UnknownNameError: no such method.
        ScopeError: the scope matches nothing, a parameter would keep no weight, or a score is NaN.
        ConfigError: there is no batch, or the model gives no loss.
    """
    if method not in METHODS:
        raise UnknownNameError(f"unknown method {method!r}. {did_you_mean(method, METHODS)}")
    score_of, default = METHODS[method]
    scope = default if scope is None else scope
    scores = score_of(model, batches, scope)
    if other is not None:
        scores = _contrast(scores, score_of(model, other, scope))
    parameters = parameters_of(model)
    scoped = {name: p for name, p in resolve(model).items() if name in scores}
    entries = {
        name: _entry(p, full_tensor(parameters[name]).cpu(), scores[name].cpu(), density)
        for name, p in scoped.items()
    }
    modules = scope if scope != FEED_FORWARD else [name.rpartition(".")[0] for name in scoped]
    config = ConnectomeConfig(target_modules=modules, density=density, reset="keep")
    skill = Connectome(entries, config=describe(model, config, scoped))
    return with_row(
        skill, {"operation": "skill", "method": method, "is_contrast": other is not None}
    )


def fisher_scores(
    model: nn.Module, batches: Iterable[Batch], scope: str | list[str] = "body"
) -> Scores:
    """Score each weight by the mean squared gradient of the loss times the squared weight.

    Twice the rise of the loss that a second-order expansion foresees when the weight is removed,
    with the diagonal of the empirical Fisher information in place of the Hessian.

    Source: formula as in LeCun, Denker & Solla 1990, "Optimal Brain Damage" (saliency h w^2 / 2)
    and in arXiv:1801.05787 (Fisher information for h); neither text was read for this.
    """
    parameters = parameters_of(model)
    chosen = {name: parameters[name] for name in resolve(model, scope)}
    squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in chosen.items()}
    number = 0
    with _looked_at(model, chosen.values()):
        for batch in batches:
            gradients = torch.autograd.grad(
                _loss(model, batch), list(chosen.values()), allow_unused=True
            )
            for square, gradient in zip(squares.values(), gradients, strict=True):
                if gradient is not None:
                    square += gradient.float().square()
            number += 1
    _check_number(number)
    return {
        name: full_tensor(square / number) * full_tensor(chosen[name]).float().square()
        for name, square in squares.items()
    }


def activation_scores(
    model: nn.Module, batches: Iterable[Batch], scope: str | list[str] = FEED_FORWARD
) -> Scores:
    """Score each neuron by ``|h W[:, k]|``, the mean over valid tokens; its weights alike.

    ``h W[:, k]`` is what the neuron gets from its layer without bias, before any nonlinearity;
    valid are tokens that the attention mask of the batch has. With the scope 'feed-forward' a
    neuron's weights are those that make it (up, gate) and those that read it (down), scored by
    the up projection; with any other, the output units of the Linear or Conv1D layers in scope.
    A density of k / neurons takes k whole neurons of every layer.

    Source: formula as in NAG (asillycat/NAG on GitHub); its paper was not read for this.
    """
    groups = _groups(model, scope)
    modules = dict(unwrap(model).named_modules())
    sums = {scored: torch.zeros(()) for scored in groups}
    counts = dict.fromkeys(groups, 0)
    batch: Batch = {}

    def hook_of(name: str) -> Any:
        def add(module: Any, inputs: Any, output: Tensor) -> None:
            del inputs
            units = output if module.bias is None else output - module.bias
            units = units.detach().float().flatten(0, -2).abs()  # (tokens, units)
            valid = _valid(batch, len(units))
            units = units if valid is None else units[valid.to(units.device)]
            sums[name] = sums[name].to(units.device) + units.sum(0)
            counts[name] += len(units)

        return add

    hooks = [modules[name].register_forward_hook(hook_of(name)) for name in groups]
    try:
        with _looked_at(model, ()), torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    _check_number(min(counts.values()))
    scores = {}
    for scored, members in groups.items():
        units = sums[scored] / counts[scored]
        for parameter, dimension in members:
            shape = [1, 1]
            shape[dimension] = -1
            scores[parameter.name] = units.reshape(shape).expand(parameter.shape)
    return scores


METHODS: Mapping[str, tuple[Callable[[nn.Module, Iterable[Batch], Any], Scores], str]] = {
    "fisher": (fisher_scores, "body"),
    "activation": (activation_scores, FEED_FORWARD),
}
"""Name -> function and its default scope."""


def _entry(parameter: ScopedParameter, weight: Tensor, score: Tensor, density: float) -> SignedMask:
    num_weights = weight.numel()
    num_survivors = round(density * num_weights) if 0.0 < density < 1.0 else 0
    if not 0 < num_survivors < num_weights:
        raise ScopeError(
            f"{parameter.name!r}: density {density} of {num_weights} weights; a skill is a part, "
            "so expected a density in (0, 1) that keeps at least one weight and leaves one out."
        )
    everything = torch.ones(weight.shape, dtype=torch.bool)
    mask = keep(score, everything, num_weights - num_survivors, name=parameter.name)
    return SignedMask.pack(mask, weight, orientation=parameter.orientation)


def _contrast(scores: Scores, others: Scores) -> Scores:
    return {
        name: score / score.mean().clamp(min=1e-30)
        - others[name] / others[name].mean().clamp(min=1e-30)
        for name, score in scores.items()
    }


def _groups(
    model: nn.Module, scope: str | list[str]
) -> dict[str, list[tuple[ScopedParameter, int]]]:
    """Map each scored layer to the weights of its units: parameter and dimension of the units."""
    everything = {
        name.removesuffix(".weight"): parameter
        for name, parameter in resolve(model).items()
        if parameter.orientation in (OUT_IN, IN_OUT)
    }
    if scope != FEED_FORWARD:
        wanted = resolve(model, scope)
        odd = [name for name in wanted if name.removesuffix(".weight") not in everything]
        if odd:
            raise ScopeError(
                f"{some(odd)} has no output units; activation scores those of Linear and Conv1D "
                "layers. Use scope='all-linear', or method='fisher'."
            )
        names = [name.removesuffix(".weight") for name in wanted]
        return {name: [(everything[name], _makes(everything[name]))] for name in names}
    groups = {}
    for scored, makers, reader in BLOCKS:
        for name in everything:
            block = name.removesuffix(f".{scored}")
            if block == name or f"{block}.{reader}" not in everything:
                continue
            made_by = [everything.get(f"{block}.{maker}") for maker in (scored, *makers)]
            read_by = everything[f"{block}.{reader}"]
            groups[name] = [*((p, _makes(p)) for p in made_by if p), (read_by, 1 - _makes(read_by))]
    if not groups:
        raise ScopeError(
            f"{type(unwrap(model)).__name__} has no feed-forward block of Linear or Conv1D layers "
            f"under a known name ({some((b[0] for b in BLOCKS), len(BLOCKS))}). Name layers: "
            "scope='all-linear', or use method='fisher'."
        )
    return groups


def _makes(parameter: ScopedParameter) -> int:
    """Return the dimension of a matrix that its output units are in."""
    return 0 if parameter.orientation == OUT_IN else 1


def _valid(batch: Batch, num_tokens: int) -> Tensor | None:
    """Return which of the flattened tokens are no padding, None where no mask has their number."""
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = batch.get(name)
        if mask is not None and mask.numel() == num_tokens:
            valid: Tensor = mask.flatten() > 0
            return valid
    return None


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ConfigError(
            f"{type(unwrap(model)).__name__} gives no loss for a batch of {some(batch)}. Give "
            "labels with it (data.collate does)."
        )
    return loss


def _check_number(number: int) -> None:
    if number < 1:
        raise ConfigError("there is no batch, or none with a valid token; expected one or more.")


@contextmanager
def _looked_at(model: nn.Module, differentiated: Iterable[nn.Parameter]) -> Iterator[None]:
    """Switch dropout off and gradients on; put both back."""
    chosen = list(differentiated)
    trained = [parameter.requires_grad for parameter in chosen]
    was_training = model.training
    model.eval()
    try:
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, was in zip(chosen, trained, strict=True):
            parameter.requires_grad_(was)
        model.train(was_training)

"""A connectome and a model's parameters: check that they fit, write them in, read them out.

Parameters may be plain tensors or FSDP2 shards. Nothing is changed before everything was checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.architecture import build_host
from hf_connectome.budgets import matched
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import (
    ConfigError,
    HostMismatchError,
    ScopeError,
    UnsupportedError,
    did_you_mean,
    some,
)
from hf_connectome.reset import ResetContext, resets
from hf_connectome.scope import (
    EMBEDDING,
    RAW,
    ScopedParameter,
    fingerprint,
    parameters_of,
    resolve,
    unwrap,
)
from hf_connectome.selection import keep

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.config import ConnectomeConfig


def full_tensor(parameter: Tensor) -> Tensor:
    """Return the whole parameter, gathered if it is an FSDP2 shard (a collective call then)."""
    gather = getattr(parameter, "full_tensor", None)
    return parameter.detach() if gather is None else gather().detach()


def refuse_offloaded(model: nn.Module) -> None:
    """Refuse a model whose weights are elsewhere: a mask would silently miss them.

    Raises:
        UnsupportedError: a parameter is on the meta device, as offloading leaves it.
    """
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise UnsupportedError(
            f"the weights {some(absent)} are on the meta device (offloaded, or never loaded), so "
            "no mask can be put on them. Load the model whole: device_map='cpu', or a device with "
            "room for it."
        )


def like(value: Tensor, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Place a full CPU tensor as ``parameter`` is: its device, shard and, unless given, dtype."""
    value = value.to(device=parameter.device, dtype=parameter.dtype if dtype is None else dtype)
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, mesh, parameter.placements)  # type: ignore[attr-defined]


def reshard(model: nn.Module) -> None:
    """Put FSDP2's shards in place: after an evaluation the root shows whole, temporary weights."""
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def scope_fingerprint(connectome: Connectome) -> str:
    """Return the fingerprint of the host that a connectome asks for (scope.fingerprint)."""
    return fingerprint((n, e.shape, e.orientation) for n, e in connectome.items())


def check_host(connectome: Connectome, model: nn.Module) -> dict[str, nn.Parameter]:
    """Check that a model has every parameter of the connectome, of the same shape and orientation.

    Returns:
        name -> parameter of the model, for the parameters in scope.

    Raises:
        HostMismatchError: names the first parameter that does not fit, both values and a way out.
    """
    reshard(model)
    parameters = parameters_of(model)
    missing = [name for name in connectome if name not in parameters]
    if missing:
        raise HostMismatchError(
            f"{type(unwrap(model)).__name__} has no parameter {some(missing)}, which the "
            f"connectome has. {did_you_mean(missing[0], list(parameters)[:8])} Use a host of the "
            f"recorded architecture ({_architecture(connectome.config)})."
        )
    _check_shapes(
        connectome.config, connectome, {n: tuple(parameters[n].shape) for n in connectome}
    )
    orientations = resolve(model, "all-matrices")
    for name, entry in connectome.items():
        found = orientations[name].orientation if name in orientations else RAW
        if found != entry.orientation:
            raise HostMismatchError(
                f"{name!r} is stored {found} in the host, {entry.orientation} in the connectome: "
                "the shapes are equal but one is the transpose of the other. Use a host of the "
                f"recorded architecture ({_architecture(connectome.config)})."
            )
    return {name: parameters[name] for name in connectome}


def check_depth(connectome: Connectome, model: nn.Module) -> None:
    """Check that a host has no more layers in scope than the architecture that is recorded.

    Part of a connectome may leave layers out, so its own names do not decide. A host may have more
    of what is no further layer, such as another head. Without a recorded architecture: no check.

    Raises:
        HostMismatchError: names the first parameters that would silently stay dense.
    """
    if (config := connectome.config) is None:
        return
    try:
        scope = resolve(model, config.target_modules or "all-matrices", config.exclude_modules)
    except ScopeError:  # the connectome's own names are in the host; nothing else is in scope
        return
    layers = {_of_any_layer(name) for name in connectome}
    more = [n for n in scope if n not in connectome and _of_any_layer(n) in layers]
    recorded = _recorded_matrices(config) if more else {}
    foreign = [name for name in more if name not in recorded] if recorded else []
    if foreign:
        raise HostMismatchError(
            f"{type(unwrap(model)).__name__} has {some(foreign)} in scope, which the recorded "
            f"architecture has not: {len(scope)} parameters in the host's scope, {len(connectome)} "
            f"in the connectome. Use a host of the recorded architecture ({_architecture(config)}) "
            "and sizes, or forget what is recorded: Connectome(dict(connectome))."
        )


def check_recorded(
    config: ConnectomeConfig, model: nn.Module, packed: Mapping[str, tuple[int, ...]]
) -> None:
    """Tell a host of other sizes from a damaged file, once masks have turned out not to fit.

    Args:
        config: the connectome's.
        model: the host that it was read for.
        packed: parameter name -> shape of the packed mask, ``(rows, ceil(columns / 8))``.

    Raises:
        HostMismatchError: the host's sizes are not those that the connectome was made for.
    """
    scope = resolve(model)
    scope = {name: scope[name] for name in sorted(packed) if name in scope}
    shapes = {name: parameter.shape for name, parameter in scope.items()}
    if recorded := _recorded_matrices(config):
        _check_shapes(config, {n: recorded[n] for n in scope if n in recorded}, shapes)
        return
    found = fingerprint((p.name, p.shape, p.orientation) for p in scope.values())
    needed = {n: (s[0], -(-math.prod(s[1:]) // 8)) for n, s in shapes.items()}
    odd = [name for name in needed if needed[name] != packed[name]]
    if config.base_fingerprint not in (None, found) and odd:
        name = odd[0]
        raise HostMismatchError(
            f"{name!r} is {shapes[name]} in the host, so its mask would be {needed[name]} bytes; "
            f"in the connectome it is {packed[name]}. Use the model that the connectome was made "
            "for."
        )


def _recorded_matrices(config: ConnectomeConfig) -> Mapping[str, ScopedParameter]:
    """Return the matrices of the recorded architecture, none where it cannot be built."""
    try:
        return resolve(build_host(config, device="meta"))
    except (ConfigError, ScopeError):
        return {}


def _of_any_layer(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def check_tokenizer(connectome: Connectome, digest: str) -> None:
    """Check that token ids mean the same to the connectome and to the data.

    Args:
        connectome: one whose config records a tokenizer digest, or none (then nothing is known).
        digest: of the tokenizer that made the data (data.tokenizer_digest).

    Raises:
        HostMismatchError: the digests differ.
    """
    recorded = connectome.config.tokenizer_digest if connectome.config is not None else None
    if recorded is not None and recorded != digest:
        raise HostMismatchError(
            f"the tokenizer's digest is {digest[:12]}…, the connectome was evolved with "
            f"{recorded[:12]}…: its embedding rows belong to other tokens. Use the tokenizer in "
            "the connectome's own folder."
        )


def fresh_reset(connectome: Connectome) -> str:
    """Return the recorded reset, or for one that needs a parent's weights what a fresh host can do.

    Random weights are nothing to keep or to rewind to, so both become sign_constant, given signs.
    """
    recorded = connectome.config.reset if connectome.config is not None else "keep"
    if recorded not in ("keep", "rewind"):
        return recorded
    return "sign_constant" if connectome.has_signs else "keep"


@torch.no_grad()
def wire(
    model: nn.Module,
    connectome: Connectome,
    *,
    reset: str | None = None,
    magnitude: float | None = None,
    fresh: Callable[[str], Tensor] | None = None,
    early: Callable[[str], Tensor] | None = None,
) -> None:
    """Put the wiring on a host: survivors get their first values, dead weights become exactly 0.

    Args:
        model: the host; parameters out of scope are left alone, but for values that travel whole.
        connectome: what to put on it.
        reset: policy of reset.py; by default the one that the connectome records, else 'keep'.
        magnitude: constant of sign_constant; by default the recorded one, else 0.02.
        fresh: name -> weights of a fresh host; by default the host's own weights.
        early: name -> weights stored early in training, for reset='rewind'.

    Raises:
        HostMismatchError: the model does not fit; nothing was changed.
        ConfigError: the policy needs what the connectome lacks; nothing was changed.
    """
    config = connectome.config
    policy = resets.get(reset or (config.reset if config is not None else "keep"))()
    refuse_offloaded(model)
    constant = magnitude if magnitude is not None else (config.magnitude if config else 0.02)
    if not 0.0 < constant < float("inf"):
        raise ConfigError(f"magnitude is {constant}; expected a positive, finite number.")
    parameters = check_host(connectome, model)
    check_depth(connectome, model)
    carried = _check_carried(connectome, model)

    def context(name: str) -> ResetContext:
        weight = full_tensor(parameters[name]).cpu()
        return ResetContext(
            name=name,
            magnitude=constant,
            weight=weight,
            fresh=(lambda: weight) if fresh is None else (lambda: fresh(name)),
            early=None if early is None else (lambda: early(name)),
        )

    for name, entry in connectome.items():
        policy.check(entry, context(name))
    for name, entry in connectome.items():
        value = policy.apply(entry, context(name))
        parameters[name].copy_(like(value, parameters[name]))
    for name, value in connectome.values_carried.items():
        carried[name].copy_(like(value, carried[name]))


@torch.no_grad()
def extract(model: nn.Module, config: ConnectomeConfig | None = None) -> Connectome:
    """Read the wiring of a model: its non-zero weights and their signs.

    Args:
        model: a trained model, sparse or dense.
        config: names the scope, and a ``density`` (or ``density_pattern``) to prune to by
            magnitude where the model is denser; by default all matrices, as they are.

    Returns:
        A connectome whose config describes the model.

    Raises:
        ScopeError: the scope matches nothing, or a parameter would keep no weight.
    """
    from hf_connectome.config import ConnectomeConfig

    config = config if config is not None else ConnectomeConfig()
    parameters, entries = parameters_of(model), {}
    scope = resolve(model, config.target_modules or "all-matrices", config.exclude_modules)
    own = matched(scope, config.density_pattern)
    for name, scoped in scope.items():
        weight = full_tensor(parameters[name]).cpu()
        mask = weight != 0
        density = own.get(name, config.density)
        surplus = int(mask.sum()) - round(density * mask.numel())
        if density < 1.0 and surplus > 0:
            mask = keep(weight.abs(), mask, surplus, name=name)
        if not mask.any():
            raise ScopeError(
                f"{name!r} would keep none of its {mask.numel()} weights: "
                f"{int((weight != 0).sum())} are not 0, and the density is {density}. Use a higher "
                "density, or leave it out of scope (exclude_modules)."
            )
        entries[name] = SignedMask.pack(mask, weight, orientation=scoped.orientation)
    return Connectome(entries, config=describe(model, config, scope))


def describe(
    model: nn.Module, config: ConnectomeConfig, scope: Mapping[str, ScopedParameter]
) -> ConnectomeConfig:
    """Return ``config`` with what a fresh host needs: architecture, sizes and fingerprint."""
    model = unwrap(model)
    base_config = getattr(model, "config", None)
    facts: dict[str, Any] = {
        "base_fingerprint": fingerprint((p.name, p.shape, p.orientation) for p in scope.values()),
        "digest": None,  # of an earlier content, if any
    }
    if hasattr(base_config, "to_diff_dict"):
        facts["architecture"] = type(model).__name__
        facts["base_config"] = _portable(base_config)
    return replace(config, **facts)


def _portable(base_config: Any) -> dict[str, Any]:
    """Return a transformers config as JSON types, without local paths or run-time state."""
    import json

    plain: dict[str, Any] = json.loads(base_config.to_json_string(use_diff=True))
    plain["model_type"] = base_config.model_type
    for key in ("_name_or_path", "name_or_path", "dtype", "torch_dtype"):
        plain.pop(key, None)
    return plain


def _check_carried(connectome: Connectome, model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = parameters_of(model)
    for name, value in connectome.values_carried.items():
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != tuple(value.shape):
            raise HostMismatchError(
                f"{name!r} travels whole with shape {tuple(value.shape)}; the host has "
                f"{'no such parameter' if found is None else found}. Use a host of the recorded "
                f"architecture ({_architecture(connectome.config)})."
            )
    return {name: parameters[name] for name in connectome.values_carried}


def _architecture(config: ConnectomeConfig | None) -> str:
    return (config.architecture if config is not None else None) or "not recorded"


def _check_shapes(
    config: ConnectomeConfig | None,
    expected: Mapping[str, SignedMask] | Mapping[str, ScopedParameter],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    odd = [name for name, entry in expected.items() if shapes[name] != entry.shape]
    if odd:  # an embedding of other length says most about why
        name = next((n for n in odd if _other_length(expected[n], shapes[n])), odd[0])
        raise HostMismatchError(_shape_message(config, name, expected[name], shapes[name]))


def _other_length(entry: SignedMask | ScopedParameter, shape: tuple[int, ...]) -> bool:
    return entry.orientation == EMBEDDING and shape[1:] == entry.shape[1:]


def _shape_message(
    config: ConnectomeConfig | None,
    name: str,
    entry: SignedMask | ScopedParameter,
    shape: tuple[int, ...],
) -> str:
    both = f"{name!r} is {shape} in the host, {entry.shape} in the connectome."
    if _other_length(entry, shape):
        return (
            f"{both} The vocabularies differ, or the context lengths: use the tokenizer in the "
            f"connectome's folder and a host with {entry.shape[0]} rows."
        )
    return f"{both} Use a host of the recorded architecture ({_architecture(config)}) and sizes."

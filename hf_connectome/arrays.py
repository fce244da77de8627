"""A connectome and the named arrays of its file; what is read is checked against its host.

Bytes, metadata and digests are storage.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import FormatError, HostMismatchError, some
from hf_connectome.hosts import check_depth, check_recorded
from hf_connectome.scope import ScopedParameter, parameters_of, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from hf_connectome.config import ConnectomeConfig

_PARTS = (".mask", ".sign", ".scale", ".value")


def to_arrays(connectome: Connectome) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the file holds, by the names that it has there; a reader's inverse of it."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, entry in connectome.items():
        arrays[f"{name}.mask"] = entry.mask_bits
        if entry.sign_bits is not None:
            arrays[f"{name}.sign"] = entry.sign_bits
        if entry.scale is not None:
            arrays[f"{name}.scale"] = entry.scale
    for name, value in connectome.values_carried.items():
        arrays[f"{name}.value"] = value.detach().to("cpu", torch.float32).contiguous().numpy()
    return arrays


def from_arrays(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    host: nn.Module,
    config: ConnectomeConfig,
    *,
    file: Path,
) -> Connectome:
    """Check the tensors of a file against a host; ``file`` is what errors call them.

    Without the file's metadata nothing can vouch for the digest.

    Raises:
        FormatError: a tensor is damaged, foreign or missing.
        HostMismatchError: the host has other names, sizes or further layers.
    """
    available = {n: tuple(p.shape) for n, p in parameters_of(host).items()}
    scope = resolve(host, "all-matrices")
    names = {part: {n[: -len(part)] for n in tensors if n.endswith(part)} for part in _PARTS}
    _check_names(tensors, names, available, file)
    entries = {}
    try:
        for name in sorted(names[".mask"]):
            scoped = scope.get(name, ScopedParameter(name, available[name], "raw"))
            entries[name] = _entry(scoped, tensors, file)
    except FormatError:
        check_recorded(config, host, {n: tensors[f"{n}.mask"].shape for n in names[".mask"]})
        raise
    values = {name: _value(name, available[name], tensors, file) for name in names[".value"]}
    connectome = Connectome(entries, values=values, config=config)
    check_depth(connectome, host)
    return connectome


def _check_names(
    tensors: Mapping[str, Any],
    names: Mapping[str, set[str]],
    available: Mapping[str, Any],
    file: Path,
) -> None:
    foreign = [name for name in tensors if not name.endswith(_PARTS)]
    if foreign:
        raise FormatError(
            f"{file} has the tensor {some(sorted(foreign))}; names end in {', '.join(_PARTS)}."
        )
    orphans = (names[".sign"] | names[".scale"]) - names[".mask"]
    if orphans:
        raise FormatError(f"{file} has signs or a scale but no mask for {some(sorted(orphans))}.")
    if not names[".mask"]:
        raise FormatError(f"{file} has no mask at all.")
    unknown = sorted((names[".mask"] | names[".value"]) - available.keys())
    if unknown:
        raise HostMismatchError(
            f"{file} wires {some(unknown)}, which the host does not have. Use a host of the "
            "architecture that the connectome records."
        )


def _entry(scoped: ScopedParameter, tensors: Mapping[str, Any], file: Path) -> SignedMask:
    name = scoped.name
    try:
        return SignedMask(
            shape=scoped.shape,
            mask_bits=tensors[f"{name}.mask"],
            sign_bits=tensors.get(f"{name}.sign"),
            scale=tensors.get(f"{name}.scale"),
            orientation=scoped.orientation,
        )
    except FormatError as error:
        raise FormatError(f"{file}: {name!r}: {error}") from error


def _value(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, Any], file: Path
) -> torch.Tensor:
    value = tensors[f"{name}.value"]
    if value.dtype != np.float32 or value.shape != shape or not np.isfinite(value).all():
        raise FormatError(
            f"{file}: the value of {name!r} is {value.dtype} {value.shape}; expected finite "
            f"float32 {shape}."
        )
    return torch.from_numpy(value)

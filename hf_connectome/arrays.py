"""A connectome and the named arrays of its file; what is read is checked against its host.

Bytes, metadata and digests are storage.py's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.codecs import MASK_FORMS, SIGN_FORMS, declared_size, decode, encode
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import FormatError, HostMismatchError, some
from hf_connectome.hosts import check_depth, check_recorded
from hf_connectome.scope import ScopedParameter, parameters_of, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from hf_connectome.config import ConnectomeConfig

    Array = np.ndarray[Any, Any]
    Parts = Mapping[str, Mapping[str, Array]]
    """Name of a parameter -> suffix -> what the file holds under both."""

# None of them ends in another, so a name is taken apart in one way only.
_SUFFIXES = (*MASK_FORMS, *SIGN_FORMS, ".scale", ".value")


def to_arrays(connectome: Connectome, *, codec: str = "plain") -> dict[str, Array]:
    """Return what the file holds, by the names that it has there; a reader's inverse of it."""
    arrays: dict[str, Array] = {}
    for name, entry in connectome.items():
        arrays |= {f"{name}{form}": plane for form, plane in encode(entry, codec).items()}
        if entry.scale is not None:
            arrays[f"{name}.scale"] = entry.scale
    for name, value in connectome.values_carried.items():
        arrays[f"{name}.value"] = value.detach().to("cpu", torch.float32).contiguous().numpy()
    return arrays


def from_arrays(
    tensors: Mapping[str, Array],
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
    parts = _by_parameter(tensors, file)
    _check_names(parts, available, file)
    masked = sorted(name for name in parts if _has(parts[name], MASK_FORMS))
    entries = {}
    try:
        for name in masked:
            scoped = scope.get(name, ScopedParameter(name, available[name], "raw"))
            entries[name] = _entry(scoped, parts[name], file)
    except FormatError:
        check_recorded(config, host, {n: _packed_shape(parts[n], available[n]) for n in masked})
        raise
    values = {
        name: _value(name, available[name], part[".value"], file)
        for name, part in parts.items()
        if ".value" in part
    }
    connectome = Connectome(entries, values=values, config=config)
    check_depth(connectome, host)
    return connectome


def _by_parameter(tensors: Mapping[str, Array], file: Path) -> Parts:
    parts: defaultdict[str, dict[str, Array]] = defaultdict(dict)
    foreign = []
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            foreign.append(name)
        else:
            parts[name[: -len(suffix)]][suffix] = tensor
    if foreign:
        raise FormatError(
            f"{file} has the tensor {some(sorted(foreign))}; names end in {', '.join(_SUFFIXES)}."
        )
    return parts


def _has(part: Mapping[str, Array], forms: tuple[str, ...]) -> bool:
    return any(form in part for form in forms)


def _check_names(parts: Parts, available: Mapping[str, Any], file: Path) -> None:
    bare = {name for name, part in parts.items() if not _has(part, MASK_FORMS)}
    orphans = [name for name in bare if _has(parts[name], (*SIGN_FORMS, ".scale"))]
    if orphans:
        raise FormatError(f"{file} has signs or a scale but no mask for {some(sorted(orphans))}.")
    if len(bare) == len(parts):
        raise FormatError(f"{file} has no mask at all.")
    unknown = sorted(parts.keys() - available.keys())
    if unknown:
        raise HostMismatchError(
            f"{file} wires {some(unknown)}, which the host does not have. Use a host of the "
            "architecture that the connectome records."
        )


def _entry(scoped: ScopedParameter, part: Mapping[str, Array], file: Path) -> SignedMask:
    try:
        mask, sign = decode(part, scoped.shape)
        return SignedMask(
            shape=scoped.shape,
            mask_bits=mask,
            sign_bits=sign,
            scale=part.get(".scale"),
            orientation=scoped.orientation,
        )
    except FormatError as error:
        raise FormatError(f"{file}: {scoped.name!r}: {error}") from error


def _packed_shape(part: Mapping[str, Array], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the packed mask in the file, as far as its form tells it.

    A frame tells its size; a stream tells nothing, so it counts as one of the host's shape.
    """
    form = next(form for form in MASK_FORMS if form in part)
    if form == MASK_FORMS[0] or not shape:
        return tuple(part[form].shape)
    rows, columns = shape[0], prod(shape[1:])
    sizes = {MASK_FORMS[1]: rows * -(-columns // 8), MASK_FORMS[2]: columns * -(-rows // 8)}
    if form not in sizes or (size := declared_size(part[form])) == sizes[form]:
        return rows, -(-columns // 8)
    return (size,)


def _value(name: str, shape: tuple[int, ...], value: Array, file: Path) -> torch.Tensor:
    if value.dtype != np.float32 or value.shape != shape or not np.isfinite(value).all():
        raise FormatError(
            f"{file}: the value of {name!r} is {value.dtype} {value.shape}; expected finite "
            f"float32 {shape}."
        )
    return torch.from_numpy(value)

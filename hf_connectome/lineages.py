"""All generations of a run in one file: each is stored as what it kept of the one before.

A generation has one bit for each survivor of its parent, whether it was kept, and one for each of
its own, whether its sign changed (docs/FORMAT.md, section 13).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.architecture import build_host
from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.bits import gathered, spread
from hf_connectome.codecs import MASK_FORMS, SIGN_FORMS, opened, shrunk
from hf_connectome.errors import ConfigError, FormatError, HostMismatchError, UnknownNameError
from hf_connectome.hosts import scope_fingerprint
from hf_connectome.runs import generations
from hf_connectome.signed_mask import check_pad_bits
from hf_connectome.storage import (
    check_digest,
    check_metadata,
    config_fields,
    config_of,
    open_file,
    read,
    refused_writes_named,
    serialize,
    write_atomically,
)

if TYPE_CHECKING:
    import os

    from torch import nn

    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.connectome import Connectome, SignedMask

    Array = np.ndarray[Any, Any]
    Bits = np.ndarray[Any, np.dtype[np.uint8]]

LINEAGE_FILE = "lineage.safetensors"
LINEAGE_FORMAT = "connectome-lineage"
_PLANES = _KEPT, _FLIPPED = "kept", "flipped"
_FRAMED, _WHOLE = ".zst", (".scale", ".value")


# ---- writing -------------------------------------------------------------------------------------


def read_run(folder: str | os.PathLike[str]) -> list[Connectome]:
    """Read all generations of a run, oldest first, from its folders ``generation-<g>``.

    Raises:
        ConfigError: there is none.
    """
    found = generations(Path(folder))
    if not found:
        raise ConfigError(f"{folder} has no folder generation-…; name the folder of a run.")
    return [read(path) for path in found]


def write_lineage(connectomes: Sequence[Connectome], file: str | os.PathLike[str]) -> None:
    """Write the generations of one run into one file, which appears whole or not at all.

    Args:
        connectomes: oldest first, each with a config; each has survivors of the one before only.
        file: usually named ``lineage.safetensors``; its folder is made if it is not there.

    Raises:
        ConfigError: one has no config, is missing, or has survivors that its parent lacks; or only
            one of the two has signs.
        HostMismatchError: two are for different hosts.
        StorageError: the file system refused; an earlier file is whole.
    """
    _check_numbers([_config(connectome).generation for connectome in connectomes])
    arrays: dict[str, Array] = {}
    configs: list[dict[str, Any]] = []
    parent: Connectome | None = None
    for connectome in connectomes:
        number = _config(connectome).generation
        named = to_arrays(connectome, codec="zstd")
        if parent is not None:
            named = _relative(named, connectome, parent)
        arrays |= {f"{number}/{name}": array for name, array in named.items()}
        configs.append(config_fields(connectome))
        parent = connectome
    metadata = {
        "format": LINEAGE_FORMAT,
        "format_version": "1",
        "min_reader": "1",
        "base_fingerprint": scope_fingerprint(connectomes[0]),
        "configs": json.dumps(_changes(configs), separators=(",", ":"), sort_keys=True),
    }
    target = Path(file)
    with refused_writes_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, serialize(arrays, metadata))


def _config(connectome: Connectome) -> ConnectomeConfig:
    if connectome.config is None:
        raise ConfigError(
            "a connectome without a config has no generation, so no lineage can hold it. Give it "
            "one: connectome.replace(config=ConnectomeConfig(...))."
        )
    return connectome.config


def _check_numbers(numbers: Sequence[int]) -> None:
    if not numbers:
        raise ConfigError("a lineage needs one generation or more; there is none.")
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise ConfigError(
                f"generation {after} comes after {before}; expected {before + 1}. A lineage holds "
                "each generation as a part of the one before, so none may be missing."
            )


def _relative(
    whole: Mapping[str, Array], connectome: Connectome, parent: Connectome
) -> dict[str, Array]:
    """Return the tensors of a generation beside its parent's; its scales and values stay whole."""
    parent.check_same_parameters(connectome)
    kept, flipped = [], []
    for name, entry in connectome.items():
        before = parent[name]
        _check_part(name, entry, before, _config(connectome).generation)
        kept.append(gathered(entry.mask_bits, before.mask_bits, before.num_survivors))
        if entry.sign_bits is not None:
            inherited = _inherited(before, entry.mask_bits, entry.num_survivors)
            flipped.append(entry.sign_bits ^ inherited)
    tensors = {n: array for n, array in whole.items() if n.endswith(_WHOLE)}
    for name, planes in ((_KEPT, kept), (_FLIPPED, flipped)):
        plane = np.concatenate([np.zeros(0, np.uint8), *planes])
        frame = shrunk(plane)
        tensors[name if frame is plane else name + _FRAMED] = frame
    return tensors


def _check_part(name: str, entry: SignedMask, before: SignedMask, number: int) -> None:
    grown = int(np.bitwise_count(entry.mask_bits & ~before.mask_bits).sum(dtype=np.int64))
    if grown:
        raise ConfigError(
            f"generation {number} has {grown} weights of {name!r} that generation {number - 1} "
            "lacks; a lineage holds nested generations only. Keep the folders of a run that grows "
            "weights."
        )
    if (entry.sign_bits is None) != (before.sign_bits is None):
        raise ConfigError(
            f"only one of the generations {number - 1} and {number} has signs for {name!r}; a "
            "lineage needs them in all or in none."
        )


def _inherited(before: SignedMask, mask: Bits, num_survivors: int) -> Bits:
    """Return the signs that the parent had where ``mask`` is 1."""
    assert before.sign_bits is not None
    return gathered(spread(before.sign_bits, before.mask_bits), mask, num_survivors)


def _changes(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep of each config only what the one before does not say."""
    earlier: list[dict[str, Any]] = [{}, *configs[:-1]]
    return [
        {key: value for key, value in fields.items() if key not in last or last[key] != value}
        for fields, last in zip(configs, earlier, strict=True)
    ]


# ---- reading -------------------------------------------------------------------------------------


def read_lineage(
    file: str | os.PathLike[str], *, host: nn.Module | None = None, last: int | None = None
) -> dict[int, Connectome]:
    """Read the generations of a lineage, oldest first, and check all of each.

    Args:
        file: of :func:`write_lineage`.
        host: the model that the generations are for; by default the recorded architecture.
        last: generation to stop at; by default the newest.

    Raises:
        FormatError: the file is damaged or altered; nothing of it is returned.
        HostMismatchError: it is for another host.
        UnknownNameError: it has no generation ``last``.
    """
    source = Path(file)
    tensors, metadata = open_file(source)
    check_metadata(metadata, source, LINEAGE_FORMAT)
    configs = _configs(metadata, source)
    if last is not None and last not in configs:
        raise UnknownNameError(
            f"{source} has the generations {min(configs)} to {max(configs)}, not {last}."
        )
    parts = _by_generation(tensors, configs, source)
    model = build_host(configs[min(configs)], device="meta") if host is None else host
    found: dict[int, Connectome] = {}
    for number, config in configs.items():
        part = parts[number]
        if found:
            part = _absolute(part, found[number - 1], source)
        connectome = from_arrays(part, model, config, file=source)
        check_digest(connectome, config, source)
        if scope_fingerprint(connectome) != metadata.get("base_fingerprint"):
            raise HostMismatchError(
                f"{source} is for a host whose matrices are stored otherwise. Use a host of the "
                "architecture that it records."
            )
        found[number] = connectome
        if number == last:
            break
    return found


def _configs(metadata: Mapping[str, str], file: Path) -> dict[int, ConnectomeConfig]:
    try:
        changes = json.loads(metadata.get("configs", ""))
        fields: dict[str, Any] = {}
        configs = [config_of(fields := fields | change, file) for change in changes]
        numbers = [config.generation for config in configs]
        if not numbers or any(config.digest is None for config in configs):
            raise ValueError("a generation has no digest, or there is none")
        _check_numbers(numbers)
    except (ConfigError, RecursionError, TypeError, ValueError) as error:
        raise FormatError(f"{file}: the configs are not those of a lineage: {error}.") from error
    return dict(zip(numbers, configs, strict=True))


def _by_generation(
    tensors: Mapping[str, Array], configs: Mapping[int, Any], file: Path
) -> dict[int, dict[str, Array]]:
    parts: dict[int, dict[str, Array]] = {number: {} for number in configs}
    numbers = {str(number): number for number in configs}
    for key, array in tensors.items():
        number, slash, name = key.partition("/")
        if not slash or number not in numbers:
            raise FormatError(
                f"{file} has the tensor {key!r}; names begin with {min(configs)}/ to "
                f"{max(configs)}/."
            )
        is_later = numbers[number] != min(configs)
        if is_later and name.removesuffix(_FRAMED) not in _PLANES and not name.endswith(_WHOLE):
            raise FormatError(
                f"{file} has the tensor {key!r}; of a later generation expected are "
                f"{', '.join((*_PLANES, *_WHOLE))}."
            )
        parts[numbers[number]][name] = array
    return parts


def _absolute(part: Mapping[str, Array], parent: Connectome, file: Path) -> dict[str, Array]:
    """Return the plain tensors of a generation, its sizes from its parent's survivors."""
    whole = dict(part)
    try:
        sizes = {name: before.num_survivors for name, before in parent.items()}
        masks = {
            name: spread(kept, parent[name].mask_bits)
            for name, kept in _planes(whole, _KEPT, sizes)
        }
        sizes = {
            name: int(np.bitwise_count(mask).sum(dtype=np.int64))
            for name, mask in masks.items()
            if parent[name].sign_bits is not None
        }
        for name, flipped in _planes(whole, _FLIPPED, sizes):
            inherited = _inherited(parent[name], masks[name], sizes[name])
            whole[name + SIGN_FORMS[0]] = flipped ^ inherited
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from error
    return whole | {name + MASK_FORMS[0]: mask for name, mask in masks.items()}


def _planes(
    tensors: dict[str, Array], what: str, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Bits]]:
    """Take a tensor out and give each parameter its bits, which begin at a byte."""
    names = [name for name in (what, what + _FRAMED) if name in tensors]
    if len(names) != 1:
        raise FormatError(f"a generation has {len(names)} tensors {what!r}; expected one.")
    plane, size = tensors.pop(names[0]), sum(-(-bits // 8) for bits in sizes.values())
    if names[0] != what:
        plane = opened(plane, (size,), what)
    if plane.dtype != np.uint8 or plane.shape != (size,):
        raise FormatError(
            f"the tensor {what!r} is {plane.dtype} {plane.shape}; the survivors need uint8 "
            f"({size},)."
        )
    first = 0
    for name, bits in sizes.items():
        last = first - (-bits // 8)
        check_pad_bits(plane[last - 1 : last], bits, f"bits {what!r} have")
        yield name, plane[first:last]
        first = last

"""All generations of a run in one file: each is stored as what it kept of the one before.

A generation's mask has one bit for each survivor of its parent, its signs one for each survivor of
its own: whether the sign changed (docs/FORMAT.md, section 13).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.architecture import build_host
from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.bits import gathered, spread
from hf_connectome.codecs import MASK_FORMS, SIGN_FORMS, decode
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, FormatError, HostMismatchError, UnknownNameError
from hf_connectome.hosts import scope_fingerprint
from hf_connectome.runs import generations
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

    Array = np.ndarray[Any, Any]
    Bits = np.ndarray[Any, np.dtype[np.uint8]]

LINEAGE_FILE = "lineage.safetensors"
LINEAGE_FORMAT = "connectome-lineage"
_CODEC = "zstd"


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
        ConfigError: one has no config, is missing, or has survivors that its parent lacks.
        HostMismatchError: two are for different hosts.
        StorageError: the file system refused; an earlier file is whole.
    """
    _check_numbers([_config(connectome).generation for connectome in connectomes])
    arrays, configs, parent = {}, [], None
    for connectome in connectomes:
        number = _config(connectome).generation
        part = connectome if parent is None else _relative(connectome, parent, number)
        named = to_arrays(part, codec=_CODEC) | _scales(connectome)
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


def _relative(connectome: Connectome, parent: Connectome, number: int) -> Connectome:
    """Return a connectome as what it kept of its parent; parameters that had died are left out."""
    parent.check_same_parameters(connectome)
    entries = {}
    for name, entry in connectome.items():
        before = parent[name]
        grown = int(np.bitwise_count(entry.mask_bits & ~before.mask_bits).sum(dtype=np.int64))
        if grown:
            raise ConfigError(
                f"generation {number} has {grown} weights of {name!r} that generation "
                f"{number - 1} lacks; a lineage holds nested generations only. Keep the folders of "
                "a run that grows weights."
            )
        if before.num_survivors:
            entries[name] = _kept(entry, before)
    return connectome.replace(entries)


def _scales(connectome: Connectome) -> dict[str, Array]:
    scales = {f"{name}.scale": entry.scale for name, entry in connectome.items()}
    return {name: scale for name, scale in scales.items() if scale is not None}


def _kept(entry: SignedMask, before: SignedMask) -> SignedMask:
    """Return which survivors are left, as a row of its own, and which of them changed their sign."""
    kept = gathered(entry.mask_bits, before.mask_bits, before.num_survivors)
    flips = entry.sign_bits
    if flips is not None:
        flips = flips ^ _inherited(before, entry.mask_bits, entry.num_survivors)
    return SignedMask(shape=(1, before.num_survivors), mask_bits=kept[None], sign_bits=flips)


def _inherited(before: SignedMask, mask: Bits, num_survivors: int) -> Bits:
    """Return the signs that the parent had where ``mask`` is 1; + if it had none."""
    if before.sign_bits is None:
        return np.zeros(-(-num_survivors // 8), np.uint8)
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
        parts[numbers[number]][name] = array
    return parts


def _absolute(part: Mapping[str, Array], parent: Connectome, file: Path) -> dict[str, Array]:
    """Return the plain tensors of a generation, its sizes from its parent's survivors."""
    whole = dict(part)
    for name, before in parent.items():
        forms = {f: whole.pop(name + f) for f in (*MASK_FORMS, *SIGN_FORMS) if name + f in whole}
        mask = np.zeros_like(before.mask_bits)
        flips: Bits | None = None if before.sign_bits is None else np.zeros(0, np.uint8)
        if forms or before.num_survivors:
            kept = _checked(forms, before.num_survivors, f"{file}: {name!r}")
            mask = spread(kept.mask_bits[0], before.mask_bits)
            flips = kept.sign_bits
            if flips is not None:
                flips = flips ^ _inherited(before, mask, kept.num_survivors)
        whole[name + MASK_FORMS[0]] = mask
        if flips is not None:
            whole[name + SIGN_FORMS[0]] = flips
    return whole


def _checked(forms: Mapping[str, Array], num_survivors: int, where: str) -> SignedMask:
    try:
        if not forms.keys() & set(MASK_FORMS):
            raise FormatError("it has no mask.")
        shape = (1, num_survivors)
        mask, sign = decode(forms, shape)
        return SignedMask(shape=shape, mask_bits=mask, sign_bits=sign)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error

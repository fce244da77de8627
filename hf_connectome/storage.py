"""The file format, version 1 (docs/FORMAT.md): read, write, validate.

Reading is hostile ground: sizes come from the host, never from the file; the digest is checked;
nothing is executed, and a file is accepted whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.architecture import build_host
from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.codecs import check_codec, codec_of
from hf_connectome.errors import (
    ConfigError,
    ConnectomeError,
    FormatError,
    HostMismatchError,
    StorageError,
    some,
)
from hf_connectome.hosts import scope_fingerprint
from hf_connectome.json_files import read_object

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.connectome import Connectome

FORMAT = "connectome"
FORMAT_VERSION = 1
CONTEXT_VERSION = 2
"""Of a file with planes of the codec 'context'; the highest version that this release reads."""
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CONNECTOME_FOLDER = "connectome"
"""Where in a trained sparse checkpoint its connectome is."""
_MAX_CONFIG_BYTES = 16 << 20
_FULL = 64 << 10
"""Free bytes below which a failed write is laid to a full disk, unless it says otherwise."""
_OTHER_CAUSES = (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError)
_TAGS = {"uint8": "U8", "float16": "F16", "float32": "F32"}


# ---- writing -------------------------------------------------------------------------------------


def write(connectome: Connectome, path: str | os.PathLike[str], *, codec: str = "plain") -> None:
    """Write a connectome into a folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Each file appears whole or not at all; files of other names in the folder stay. The config that
    is written has this connectome's digest and fingerprint, whatever the one in memory has.

    Args:
        connectome: with a config.
        path: folder, made if it is not there.
        codec: 'plain', 'zstd' for a smaller file, or 'context' for the smallest; all hold the same
            connectome.

    Raises:
        UnknownNameError: no such codec.
        ConfigError: the connectome has no config, so a reader could not bind it to a host; or the
            codec needs a package that is not installed.
        StorageError: the file system refused; earlier files are whole.
    """
    check_codec(codec)
    if connectome.config is None:
        raise ConfigError(
            "this connectome has no config, so no reader could bind it to a host. Give it one: "
            "connectome.replace(config=ConnectomeConfig(...)), or make it by Connectome.from_model."
        )
    folder = Path(path)
    with refused_writes_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = to_bytes(connectome, codec=codec)
        config = _config_bytes(connectome)
        write_together({folder / WEIGHTS_FILE: data, folder / CONFIG_FILE: config})


def write_config(connectome: Connectome, folder: Path) -> None:
    """Write the config alone, anew, beside a file that stays.

    Raises:
        StorageError: the file system refused; the earlier config is whole.
    """
    with refused_writes_named(folder):
        write_atomically(folder / CONFIG_FILE, _config_bytes(connectome))


def to_bytes(connectome: Connectome, *, codec: str = "plain") -> bytes:
    """Return the safetensors file; equal connectomes give equal bytes.

    With 'zstd' that holds for one release of zstd, whose frames may get smaller with the next. The
    digest is of what they hold, so it stays.

    Raises:
        UnknownNameError: no such codec.
    """
    check_codec(codec)
    arrays = to_arrays(connectome, codec=codec)
    version = CONTEXT_VERSION if codec_of(arrays) == "context" else FORMAT_VERSION
    metadata = {
        "format": FORMAT,
        "format_version": str(version),
        "min_reader": str(version),
        "base_fingerprint": scope_fingerprint(connectome),
        "content_digest": connectome.digest,
        "num_weights": str(connectome.num_weights),
        "num_survivors": str(connectome.num_survivors),
        "density": repr(connectome.density),
    }
    return serialize(arrays, metadata)


def serialize(arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> bytes:
    """Lay out a safetensors file with sorted keys.

    The safetensors library orders the metadata by a hash seeded per process, so its bytes differ
    from run to run; a golden file and a chunk-deduplicating Hub need them equal.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset, chunks = 0, []
    # Wider dtypes first keeps every tensor aligned, as the library does.
    width = {"F32": 0, "F16": 1, "U8": 2}
    tensors = {name: (_TAGS[array.dtype.name], array) for name, array in arrays.items()}
    for name, (dtype, array) in sorted(tensors.items(), key=lambda t: (width[t[1][0]], t[0])):
        chunk = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        offset += len(chunk)
        chunks.append(chunk)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def _config_bytes(connectome: Connectome) -> bytes:
    return (json.dumps(config_fields(connectome), indent=2, sort_keys=True) + "\n").encode()


def config_fields(connectome: Connectome) -> dict[str, Any]:
    """Return the config to store beside a connectome, with its own digest and fingerprint."""
    # Those of what is written: a part or a successor of a connectome keeps the config of the first.
    facts = {"base_fingerprint": scope_fingerprint(connectome), "digest": connectome.digest}
    assert connectome.config is not None
    return connectome.config.to_dict() | facts | {"inference_mode": True}


# ---- reading -------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], *, host: nn.Module | None = None) -> Connectome:
    """Read a connectome from a folder and check all of it.

    Args:
        path: folder with the two files of :func:`write`.
        host: the model that the connectome is for. Without it the architecture that the config
            records is built on the meta device (no memory, no download).

    Raises:
        FormatError: a file is missing, damaged, foreign, of a later version or altered.
        HostMismatchError: the file is sound but belongs to another host.
        ConfigError: no host was given and the config records none.
    """
    folder = Path(path)
    config = read_config(folder)
    model = host if host is not None else build_host(config, device="meta")
    return from_file(folder / WEIGHTS_FILE, model, config)


def read_config(folder: Path) -> ConnectomeConfig:
    """Read and validate ``adapter_config.json``."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FormatError(f"{folder} has no {CONFIG_FILE}; it is not a connectome's folder.")
    fields = read_object(file, most_bytes=_MAX_CONFIG_BYTES, way_out="Download it again.")
    return config_of(fields, file)


def config_of(fields: Mapping[str, Any], file: Path) -> ConnectomeConfig:
    """Make a config of the fields that a file has.

    Raises:
        FormatError: they are of another kind of adapter.
        ConfigError: a field is outside its range.
    """
    from hf_connectome.config import ConnectomeConfig, ConnectomePeftType

    kind = fields.get("peft_type")
    if kind != ConnectomePeftType.CONNECTOME.value:
        raise FormatError(
            f"{file} is of the kind {kind!r}, expected 'CONNECTOME'. Load other adapters by PEFT."
        )
    known = ConnectomeConfig.__dataclass_fields__
    # Fields of later releases are safe to ignore; config_version says when they are not.
    return ConnectomeConfig(**{key: value for key, value in fields.items() if key in known})


def from_file(file: Path, host: nn.Module, config: ConnectomeConfig) -> Connectome:
    """Read a connectome file and check it against its host."""
    tensors, metadata = open_file(file)
    check_metadata(metadata, file)
    connectome = from_arrays(tensors, host, config, file=file)
    _check_content(connectome, metadata, file)
    check_digest(connectome, config, file)
    return connectome


def check_digest(connectome: Connectome, config: ConnectomeConfig, source: Path) -> None:
    """Check the content of a file against the digest in its config, if that has one.

    Raises:
        FormatError: names both.
    """
    if config.digest not in (None, connectome.digest):
        raise FormatError(
            f"{source} holds the connectome {connectome.digest}, its {CONFIG_FILE} describes "
            f"{config.digest}: one of the two was altered or exchanged. Download both again "
            "(force_download=True)."
        )


def open_file(file: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise FormatError(f"{file.parent} has no {file.name}; the connectome is incomplete.")
    try:
        with safe_open(file, framework="np") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            metadata = handle.metadata() or {}
        _refuse_doubled_names(file)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{file} ({file.stat().st_size} bytes) is not a sound safetensors file: {error}. "
            "Download it again."
        ) from error
    return tensors, metadata


def _refuse_doubled_names(file: Path) -> None:
    """Raise ValueError if a name stands twice: safetensors takes the last, a reader may not."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(fields := dict(pairs)) < len(pairs):
            raise ValueError(f"a name stands twice among {some(name for name, _ in pairs)}")
        return fields

    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        json.loads(stream.read(size), object_pairs_hook=unique)


def check_metadata(metadata: Mapping[str, str], file: Path, kind: str = FORMAT) -> None:
    """Refuse a file of another format, or one for later readers."""
    found = metadata.get("format")
    if found != kind:
        raise FormatError(
            f"{file} has the format {found!r}, expected {kind!r}: it holds no {kind}."
        )
    needed = metadata.get("min_reader", "")
    if not needed.isascii() or not needed.isdigit() or len(needed) > 9:
        raise FormatError(f"{file}: min_reader is {needed!r}; expected a whole number.")
    if int(needed) > CONTEXT_VERSION:
        raise FormatError(
            f"{file} needs a reader of format version {needed}; this release reads "
            f"{CONTEXT_VERSION}. Upgrade: pip install -U hf_connectome."
        )


def _check_content(connectome: Connectome, metadata: Mapping[str, str], file: Path) -> None:
    fingerprint = scope_fingerprint(connectome)
    recorded = metadata.get("base_fingerprint")
    if recorded != fingerprint:
        raise HostMismatchError(
            f"{file} belongs to the base {str(recorded)[:12]}…, the host is {fingerprint[:12]}…: "
            "names and sizes agree, so a matrix is stored in the other orientation. Use a host of "
            "the architecture that the connectome records."
        )
    for key, value in (
        ("content_digest", connectome.digest),
        ("num_weights", str(connectome.num_weights)),
        ("num_survivors", str(connectome.num_survivors)),
        ("density", repr(connectome.density)),
    ):
        if metadata.get(key) != value:
            raise FormatError(
                f"{file}: {key} is {metadata.get(key)!r} in the file but {value!r} by its content; "
                "the file was altered or damaged. Download it again."
            )


# ---- the file system -----------------------------------------------------------------------------


@contextlib.contextmanager
def refused_writes_named(target: Path) -> Iterator[None]:
    """Turn a refused write into a StorageError that names the target and the way out.

    The libraries below raise OSError, SafetensorError, RuntimeError or a bare Exception alike.
    """
    try:
        yield
    except ConnectomeError:
        raise
    except Exception as error:
        free = shutil.disk_usage(_existing(target)).free
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        is_full = is_full or "os error 28" in str(error)
        is_full = is_full or (free < _FULL and not isinstance(error, _OTHER_CAUSES))
        if not is_full and not isinstance(error, OSError):
            raise
        way_out = "Check the path and the folder's permissions."
        if is_full:
            way_out = f"{free} bytes are free: make room and start the same command again."
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot write {target}: {reason}. What was there before is whole. {way_out}"
        ) from error


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also after a kill at any moment."""
    write_together({file: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder, each whole or not at all; a refused write changes none of them."""
    staged: dict[Path, Path] = {}
    try:
        for file, data in files.items():
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            staged[file] = Path(temporary)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            staged[file].chmod(0o644)
        for file, temporary_file in staged.items():
            temporary_file.replace(file)
    finally:
        for left in staged.values():
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes ``folder`` only if the block ends without an error.

    An earlier ``folder`` is replaced then; until then it stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (folder.parent / f".{folder.name}.{kind}" for kind in ("new", "old"))
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for left_by_a_kill in (scratch, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    try:
        scratch.mkdir()
        yield scratch
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path

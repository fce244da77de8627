"""A trained checkpoint of transformers -> its model, with nothing unpickled and nothing missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.architecture import build_host
from hf_connectome.errors import ConfigError, FormatError, some
from hf_connectome.json_files import read_object
from hf_connectome.scope import parameters_of

if TYPE_CHECKING:
    from torch import nn

    from hf_connectome.config import ConnectomeConfig

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 << 20


def load_trained(folder: Path) -> nn.Module:
    """Load a checkpoint by transformers' own class of it, from safetensors alone.

    Args:
        folder: ``config.json`` and ``model.safetensors``, in one file or in shards.

    Raises:
        FormatError: files are missing, damaged or not of the recorded architecture.
        ConfigError: the checkpoint is quantised, or its architecture is unknown.
    """
    check_weight_files(folder)
    recorded = recorded_architecture(folder)
    host: Any = build_host(recorded, device="meta")
    try:
        model, info = type(host).from_pretrained(
            folder,
            config=host.config,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # any architecture's loader may raise anything
        raise FormatError(
            f"{folder} cannot be loaded as {recorded.architecture}, which its {_CONFIG} records: "
            f"{error}. Get a sound copy."
        ) from error
    absent = sorted(set(info["missing_keys"]) & set(parameters_of(model)))
    if absent:
        raise FormatError(
            f"{folder} has no weights for {some(absent)}, which {recorded.architecture} has: they "
            "would be random. Get a whole copy, or correct 'architectures' in its config.json."
        )
    loaded: nn.Module = model
    return loaded


def check_weight_files(folder: Path) -> None:
    """Refuse a folder whose weights are missing, incomplete or pickled.

    Raises:
        FormatError: names the file.
    """
    index = folder / _INDEX
    if index.is_file():
        shards = _json(index).get("weight_map")
        names: list[Any] = list(shards.values()) if isinstance(shards, dict) else [None]
        odd = [n for n in names if not isinstance(n, str) or Path(n).name != n]
        if odd:
            raise FormatError(f"{index} names {odd[0]!r}; expected files of the same folder.")
        gone = sorted({n for n in names if not (folder / n).is_file()})
        if gone:
            raise FormatError(f"{folder} has no {some(gone)}, which {_INDEX} names.")
    elif not (folder / _WEIGHTS).is_file():
        raise FormatError(
            f"{folder} has no {_WEIGHTS} (nor {_INDEX}). Pickled weights (.bin) are not read: save "
            "the model anew by save_pretrained, which writes safetensors."
        )


def recorded_architecture(folder: Path) -> ConnectomeConfig:
    """Return the architecture that a checkpoint's config.json records.

    Raises:
        FormatError: there is none, or no class is named.
        ConfigError: the checkpoint is quantised.
    """
    from hf_connectome.config import ConnectomeConfig

    fields = _json(folder / _CONFIG)
    names = fields.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise FormatError(
            f"{folder / _CONFIG} has architectures={names!r}; expected the model's class, such as "
            "['GPT2LMHeadModel']. Save the model anew by save_pretrained."
        )
    if "quantization_config" in fields:
        raise ConfigError(
            f"{folder} is quantised, so its zeros are rounding, not wiring. Use the checkpoint "
            "that it was made from."
        )
    left_out = ("architectures", "auto_map", "dtype", "torch_dtype", "_name_or_path")
    kept = {key: value for key, value in fields.items() if key not in left_out}
    return ConnectomeConfig(architecture=names[0], base_config=kept)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FormatError(f"{file.parent} has no {file.name}; it is no checkpoint's folder.")
    return read_object(file, most_bytes=_MAX_JSON_BYTES, way_out="Get a sound copy.")

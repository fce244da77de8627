"""Other people's checkpoints -> connectomes: trained sparse models, and the published code's files.

Weights are read for where they are zero and for their signs; nothing is trained or pruned here.
Foreign files are hostile: safetensors, or torch's restricted reader of plain values, and no code.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.architecture import build_host
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, FormatError, some
from hf_connectome.hosts import describe, extract
from hf_connectome.scope import clean_name, parameters_of, resolve
from hf_connectome.storage import CONFIG_FILE, CONNECTOME_FOLDER, read
from hf_connectome.trained import load_trained

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

DENSE = 0.99
"""Density from which a checkpoint counts as dense: nobody prunes so little on purpose."""
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_MAX_PICKLE_BYTES = 16 << 20
_MAX_POSITIONS = 1 << 20
_GPT2_END_OF_TEXT = 50256


def open_any(
    path: Path,
    *,
    scope: str | Sequence[str] = "all-matrices",
    exclude: str | Sequence[str] | None = None,
    allow_dense: bool = False,
) -> tuple[Connectome, str]:
    """Read a connectome from whatever holds one, and say what that was.

    Args:
        path: a connectome's folder; a trained checkpoint's folder, whose own connectome
            (``connectome/``) goes before what its zeros say; or a file of the published code.
        scope: as in :func:`from_checkpoint`.
        exclude: likewise.
        allow_dense: likewise.

    Raises:
        FormatError: nothing of the three is there, or it is damaged.
    """
    if path.is_file():
        return from_published(path), "checkpoint of the published code"
    if (path / CONFIG_FILE).is_file():
        return read(path), "connectome"
    if (path / CONNECTOME_FOLDER / CONFIG_FILE).is_file():
        return read(path / CONNECTOME_FOLDER), "connectome of a trained checkpoint"
    if (path / _CONFIG).is_file():
        found = from_checkpoint(path, scope=scope, exclude=exclude, allow_dense=allow_dense)
        return found, "zeros of a trained checkpoint"
    raise FormatError(
        f"{path} holds no connectome ({CONFIG_FILE}), no trained checkpoint ({_CONFIG} and "
        f"{_WEIGHTS}), and is no file of the published code (model_generation_….pt). Check the "
        "path; a repository of the Hub comes here by: hf download owner/name --local-dir …"
    )


# ---- a trained sparse checkpoint of transformers -------------------------------------------------


def from_checkpoint(
    folder: Path,
    *,
    scope: str | Sequence[str] = "all-matrices",
    exclude: str | Sequence[str] | None = None,
    allow_dense: bool = False,
) -> Connectome:
    """Read the wiring of a trained sparse checkpoint: where its weights are not 0, and their sign.

    A survivor that was trained to exactly 0 cannot be told from a dead weight.

    Args:
        folder: ``config.json`` and ``model.safetensors``, in one file or in shards.
        scope: which parameters count (scope.resolve).
        exclude: endings or a regular expression of modules to leave out.
        allow_dense: take a checkpoint in which nearly every weight is there, too.

    Raises:
        FormatError: files are missing, damaged or not of the recorded architecture.
        ConfigError: the checkpoint is dense, or of a kind whose zeros cannot be read.
    """
    from hf_connectome.config import ConnectomeConfig

    model = load_trained(folder)
    odd = [n for n, p in parameters_of(model).items() if not torch.isfinite(p).all()]
    if odd:
        raise FormatError(
            f"{folder}: {some(odd)} has values that are not finite; the training has diverged, or "
            "the file is damaged."
        )
    config = ConnectomeConfig(
        target_modules=scope if isinstance(scope, str) else list(scope),
        exclude_modules=exclude if exclude is None or isinstance(exclude, str) else list(exclude),
        reset="sign_constant",
    )
    connectome = extract(model, config)
    if connectome.density >= DENSE and not allow_dense:
        raise ConfigError(
            f"{folder} is dense: {connectome.num_survivors} of {connectome.num_weights} weights in "
            f"scope ({connectome.density:.2%}) are not 0; expected less than {DENSE:.0%}. Its "
            "connectome would only hold the signs: prune it first "
            "(Connectome.from_model(model, ConnectomeConfig(density=0.25))), or allow it "
            "(--allow-dense)."
        )
    return connectome


# ---- the published code's checkpoints ------------------------------------------------------------


def from_published(file: Path) -> Connectome:
    """Read a ``model_generation_….pt`` of TuKoResearch/GenerationalConnectomes.

    Its mask decides, not its values: weights dropped last are not 0 in the file (docs/FIDELITY.md,
    4 to 6). A file without a mask (the inner loop's) is read for its zeros. The model becomes an
    untied GPT2LMHeadModel, matrices transposed as Conv1D stores them; GPT-2's position table, which
    the published model has not, stays out of scope.

    Raises:
        FormatError: the file is damaged, holds more than plain values, or another model.
        ConfigError: it has neither a mask nor zeros.
    """
    from hf_connectome.config import ConnectomeConfig

    content = _plain_values(file)
    weights = _tensors(content.get("model_state_dict", content.get("weights")), file)
    masks = _tensors(content["mask"], file) if "mask" in content else None
    base_config = _gpt2_config(weights, content.get("cfg"), file)
    number = re.fullmatch(r"model_generation_(\d{1,4})\.pt", file.name)
    config = ConnectomeConfig(
        target_modules="all-matrices",
        exclude_modules=["wpe"],
        reset="sign_constant",
        # Their generation 0 is the first that was pruned.
        generation=int(number[1]) + 1 if number else 0,
        architecture="GPT2LMHeadModel",
        base_config=base_config,
    )
    host = build_host(config, device="meta")
    scope = resolve(host, "all-matrices", ["wpe"])
    entries = {}
    for name, scoped in scope.items():
        turn = scoped.orientation == "in_out"
        shape = scoped.shape[::-1] if turn else scoped.shape
        weight = _matrix(weights, name, shape, file)
        mask = weight != 0 if masks is None else _mask(masks, name, shape, file)
        if turn:
            mask, weight = mask.T, weight.T
        entries[name] = SignedMask.pack(mask, weight, orientation=scoped.orientation)
    foreign = [n for n in weights if n not in entries and weights[n].ndim > 1]
    if foreign:
        raise FormatError(f"{file} has {some(foreign)} too; it is not the published code's model.")
    connectome = Connectome(entries, config=describe(host, config, scope))
    if masks is None and connectome.density >= DENSE:
        raise ConfigError(
            f"{file} has no mask, and {connectome.density:.2%} of its weights are not 0: it is "
            "dense. Use a model_generation_….pt."
        )
    return connectome


def _plain_values(file: Path) -> dict[str, Any]:
    """Unpickle by torch's restricted reader, once the archive's sizes were checked."""
    _check_archive(file)
    # What the published code puts beside the tensors: its arguments, and losses as numpy numbers.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [
        argparse.Namespace,
        np.dtype,
        type(np.dtype(np.float64)),
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a pickle may raise anything
        first_line = str(error).partition("\n")[0]
        raise FormatError(
            f"{file} holds more than plain values, or is damaged: {first_line} "
            "Nothing of it was executed. Save its state dict and mask alone, by torch.save."
        ) from error
    if not isinstance(content, dict):
        raise FormatError(f"{file} holds a {type(content).__name__}; expected a dict.")
    return content


def _check_archive(file: Path) -> None:
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise FormatError(
            f"{file} is no file of torch.save (since 1.6): {error}. Get a sound copy."
        ) from error
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    pickles = [m for m in members if m.filename.endswith(".pkl")]
    if packed or sum(m.file_size for m in members) > size:
        raise FormatError(
            f"{file}: the archive's members are compressed or larger than its {size} bytes, which "
            "torch.save never does; the file was altered."
        )
    if any(m.file_size > _MAX_PICKLE_BYTES for m in pickles):
        raise FormatError(f"{file} has a pickle of more than {_MAX_PICKLE_BYTES} bytes; altered.")


def _tensors(state: object, file: Path) -> dict[str, Tensor]:
    """Return a state dict's tensors by clean names; ``module.`` and ``_orig_mod.`` are dropped."""
    if not isinstance(state, Mapping):
        raise FormatError(
            f"{file} has no state dict (model_state_dict or weights); expected a "
            "model_generation_….pt of the published code."
        )
    return dict(_cleaned(state, file.stat().st_size, file))


def _cleaned(state: Mapping[Any, Any], size: int, file: Path) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise FormatError(f"{file}: {name!r} is a {type(value).__name__}; expected a tensor.")
        # A tensor of stride 0 would be larger than the bytes behind it.
        if value.layout != torch.strided or value.numel() * value.element_size() > size:
            raise FormatError(
                f"{file}: {name!r} claims {tuple(value.shape)}, more than the file's {size} bytes."
            )
        yield clean_name(name.removeprefix("module.")).removeprefix("module."), value


def _gpt2_config(weights: Mapping[str, Tensor], cfg: object, file: Path) -> dict[str, Any]:
    """Derive a GPT-2's sizes from the tensors; only the context length is taken on trust."""
    table = weights.get("transformer.wte.weight")
    if table is None or table.ndim != 2:
        raise FormatError(
            f"{file} has no matrix 'transformer.wte.weight'; it is not the published code's model."
        )
    fields = cfg if isinstance(cfg, Mapping) else {}
    layers = {m[1] for n in weights if (m := re.match(r"transformer\.h\.(\d{1,4})\.", n))}
    vocabulary, width = table.shape
    frequencies = weights.get("transformer.h.0.attn.rotary.inv_freq")
    heads = fields.get("n_head")
    if frequencies is not None and frequencies.numel():
        heads = width // (2 * frequencies.numel())
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise FormatError(f"{file}: {heads!r} heads do not divide a width of {width}.")
    positions = fields.get("block_size", 1024)
    if not isinstance(positions, int) or not 0 < positions <= _MAX_POSITIONS:
        raise FormatError(f"{file}: block_size is {positions!r}; expected 1 to {_MAX_POSITIONS}.")
    end = _GPT2_END_OF_TEXT if vocabulary > _GPT2_END_OF_TEXT else None
    return {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_layer": len(layers),
        "n_head": heads,
        "n_positions": positions,
        "tie_word_embeddings": False,
        "bos_token_id": end,
        "eos_token_id": end,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _matrix(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise FormatError(f"{file} has no {name!r}; it is not the published code's model.")
    if tuple(tensor.shape) != shape:
        raise FormatError(
            f"{file}: {name!r} is {tuple(tensor.shape)}; by the embedding's width it is {shape}."
        )
    if not torch.isfinite(tensor).all():
        raise FormatError(f"{file}: {name!r} has values that are not finite.")
    return tensor


def _mask(masks: Mapping[str, Tensor], name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    mask = _matrix(masks, name, shape, file)
    kept = mask != 0
    if not torch.equal(kept.to(mask.dtype), mask):
        raise FormatError(f"{file}: the mask of {name!r} has values other than 0 and 1.")
    if not kept.any():
        raise FormatError(f"{file}: the mask of {name!r} keeps none of its {kept.numel()} weights.")
    return kept

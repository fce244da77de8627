"""A run directory: whose it is, and what in it is whole. Knows nothing of models."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import ConfigError, RunError
from hf_connectome.storage import (
    CONFIG_FILE,
    CONNECTOME_FOLDER,
    WEIGHTS_FILE,
    refused_writes_named,
    write_atomically,
)

if TYPE_CHECKING:
    from os import PathLike

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"

_HARMLESS = {
    "cache_dir",
    "dataset",  # the corpus itself is recorded, wherever it lies
    "eval_dataset",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "ddp_backend",
    "disable_tqdm",
    "hub_always_push",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "hub_token",
    "local_rank",
    "output_dir",
    "push_to_hub",
    "report_to",
    "run_name",
    "save_total_limit",
}


def claim(folder: Path, settings: Mapping[str, Any], *, record: bool = True) -> bool:
    """Record whose folder this is, or check that it is the same run's.

    Args:
        folder: the run's output directory; made if it is not there.
        settings: everything that decides the result, as JSON types.
        record: False only checks, before the work that finds the settings that are not known yet.

    Returns:
        True if the run was there already.

    Raises:
        RunError: another run's settings are recorded; each difference is listed.
    """
    file = folder / RUN_FILE
    settings = json.loads(json.dumps(settings))
    if not file.is_file():
        if not record:
            return False
        with refused_writes_named(file):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
        return False
    recorded = _recorded(file)
    differences = [
        f"{key}: {recorded.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted(recorded.keys() | settings.keys() if record else settings.keys())
        if recorded.get(key) != settings.get(key) and (record or key in recorded)
    ]
    if differences:
        raise RunError(
            f"{folder} belongs to a run of another configuration: {'; '.join(differences)}. Use "
            "another --output_dir, or the recorded settings to go on with that run."
        )
    return True


def _recorded(file: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(recorded, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} says whose run this is but cannot be read: {error}. Use another --output_dir, "
            "or remove the file to start anew here."
        ) from error
    return recorded


def last_checkpoint(folder: Path, *, connectome: bool = True) -> Path | None:
    """Return the newest checkpoint that was written to its end.

    transformers writes a checkpoint file by file; what a kill leaves half-written must not be
    resumed from. It is left alone: the run will write it anew when it gets there.

    Args:
        folder: the run's output directory.
        connectome: whether a checkpoint of this run has a ``connectome/`` in it.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_complete(checkpoint, connectome=connectome):
            return checkpoint
        logger.warning("%s was not written to its end; an earlier one is used.", checkpoint)
    return None


def resumable(folder: Path, wanted: str | PathLike[str] | bool | None) -> str | None:
    """Return the checkpoint to resume from: the one named, or the newest for True.

    Raises:
        RunError: it is incomplete, or there is none.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        found = last_checkpoint(folder)
        if found is None:
            raise RunError(
                f"{folder} has no checkpoint that was written to its end. Start without "
                "resume_from_checkpoint."
            )
        return str(found)
    if not is_complete(Path(wanted)):
        raise RunError(f"{wanted} is no complete checkpoint; resume from an earlier one.")
    return str(wanted)


def is_complete(checkpoint: Path, *, connectome: bool = True) -> bool:
    """Whether a checkpoint has all that a bit-identical resume needs, none of it cut short."""
    weights = [*checkpoint.glob("model*.safetensors"), *checkpoint.glob("*model_fsdp*")]
    pickled = [checkpoint.glob(f"{kind}*") for kind in ("optimizer", "scheduler", "rng_state")]
    parts = [weights, *map(list, pickled)]
    if connectome:
        parts += [[checkpoint / CONNECTOME_FOLDER / f] for f in (WEIGHTS_FILE, CONFIG_FILE)]
    if not all(parts) or not all(is_whole(file) for files in parts for file in files):
        return False
    try:  # transformers writes this file last
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and bool(state.get("global_step") == step_of(checkpoint))


def is_whole(file: Path) -> bool:
    """Whether a file's own frame is closed: torch's zip, safetensors' sizes; others just exist."""
    if file.suffix == ".pt" or file.suffix == ".pth":
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors" and file.is_file():
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(length))
                ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
            except (ValueError, KeyError, TypeError, MemoryError, OverflowError):
                return False
        return file.stat().st_size == 8 + length + max(ends, default=0)
    return file.exists()


def generations(folder: Path) -> list[Path]:
    """Return the connectomes of a run, oldest first: its folders ``generation-<g>``."""
    found = [f for f in folder.glob("generation-*") if f.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda f: int(f.name.rpartition("-")[2]))


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was taken, -1 if its name has none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that change no result, so that a run may be gone on with otherwise."""
    return {key: value for key, value in settings.items() if key not in _HARMLESS}


def refuse_named_checkpoint(checkpoint: str | None) -> None:
    """Refuse transformers' ``--resume_from_checkpoint``, which the recipes would not heed.

    Raises:
        ConfigError: a checkpoint was named.
    """
    if checkpoint is not None:
        raise ConfigError(
            f"resume_from_checkpoint is {checkpoint!r}, but the same command goes on by itself "
            "from what --output_dir holds. Leave it out."
        )

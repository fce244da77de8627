"""A run directory: whose it is, and what in it is whole. Knows nothing of models."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import RunError
from hf_connectome.storage import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    refused_writes_named,
    write_atomically,
)

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"
CONNECTOME_FOLDER = "connectome"

_HARMLESS = {
    "cache_dir",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "ddp_backend",
    "disable_tqdm",
    "hub_model_id",
    "local_rank",
    "output_dir",
    "push_to_hub",
    "report_to",
    "run_name",
    "save_total_limit",
}


def claim(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Record whose folder this is, or check that it is the same run's.

    Args:
        folder: the run's output directory; made if it is not there.
        settings: everything that decides the result, as JSON types.

    Returns:
        True if the run was there already.

    Raises:
        RunError: another run's settings are recorded; each difference is listed.
    """
    file = folder / RUN_FILE
    settings = json.loads(json.dumps(settings))
    if not file.is_file():
        with refused_writes_named(file):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
        return False
    recorded = _recorded(file)
    differences = [
        f"{key}: {recorded.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted(recorded.keys() | settings.keys())
        if recorded.get(key) != settings.get(key)
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


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end.

    transformers writes a checkpoint file by file; what a kill leaves half-written must not be
    resumed from. It is left alone: the run will write it anew when it gets there.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning("%s was not written to its end; an earlier one is used.", checkpoint)
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has all that a bit-identical resume needs."""
    has_weights = any(checkpoint.glob("model*.safetensors")) or any(checkpoint.glob("*model_fsdp*"))
    needed = [
        checkpoint / "scheduler.pt",
        checkpoint / CONNECTOME_FOLDER / WEIGHTS_FILE,
        checkpoint / CONNECTOME_FOLDER / CONFIG_FILE,
    ]
    if not has_weights or not all(file.is_file() for file in needed):
        return False
    try:  # transformers writes this file last
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and bool(state.get("global_step") == step_of(checkpoint))


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was taken, -1 if its name has none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that change no result, so that a run may be gone on with otherwise."""
    return {key: value for key, value in settings.items() if key not in _HARMLESS}

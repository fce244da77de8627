"""Checkpoints whose tensors are named otherwise on disk than in memory (fused experts).

transformers saves Mixtral's fused experts one by one, and its Trainer resumes from the raw file
without fusing them again: experts and router would silently stay as initialised.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def needs_conversion(checkpoint: Path, model: Any) -> bool:
    """Whether the checkpoint lacks names that the model has in memory, tied ones aside."""
    saved = _saved_names(checkpoint)
    if saved is None or not hasattr(type(model), "from_pretrained"):
        return False
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return bool(set(model.state_dict()) - saved - tied)


@torch.no_grad()
def load_converted(checkpoint: Path, model: PreTrainedModel) -> None:
    """Load the checkpoint into ``model`` through ``from_pretrained``, which can convert it."""
    loaded = type(model).from_pretrained(checkpoint, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())


def _saved_names(checkpoint: Path) -> set[str] | None:
    from safetensors import safe_open

    if (checkpoint / _SINGLE).is_file():
        with safe_open(checkpoint / _SINGLE, framework="pt") as handle:
            return set(handle.keys())
    if (checkpoint / _INDEX).is_file():
        index = json.loads((checkpoint / _INDEX).read_text(encoding="utf-8"))
        return set(index["weight_map"])
    return None

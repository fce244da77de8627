"""What is loaded of a checkpoint, and whether it is of this run.

Tensors may be named otherwise on disk than in memory: transformers saves Mixtral's fused experts
one by one, and its Trainer resumes from the raw file without fusing them again, so that experts and
router would silently stay as initialised.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.errors import RunError
from hf_connectome.runs import step_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedModel

    from hf_connectome.connectome import Connectome

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


def check_same_run(
    checkpoint: Path,
    saved: Connectome,
    current: Connectome,
    settings: Mapping[str, Any],
    *,
    steps_per_generation: int,
) -> None:
    """Refuse to go on from a checkpoint of a run with other settings.

    Args:
        checkpoint: where it lies; its name has the step.
        saved: the connectome in it.
        current: the connectome that this run begins with.
        settings: of the loop, as every row of the lineage repeats them.
        steps_per_generation: of this run.

    Raises:
        RunError: names the setting and both values.
    """
    assert saved.config is not None
    recorded = vars(saved.config) | (dict(saved.lineage[-1]) if saved.lineage else {})
    wanted = vars(current.config) | dict(settings)
    fixed = ("base_fingerprint", "tokenizer_digest", "target_modules", "magnitude", "seed")
    for key in (*fixed, *settings):
        there, here = recorded.get(key, wanted[key]), wanted[key]
        if there != here:
            raise RunError(
                f"{checkpoint} belongs to a run of another configuration: {key} is {there!r} "
                f"there, {here!r} here. Use its settings, or another output_dir."
            )
    expected = (step_of(checkpoint) - 1) // steps_per_generation
    if saved.config.generation != max(expected, 0):
        raise RunError(
            f"{checkpoint} is of generation {saved.config.generation}; at "
            f"{steps_per_generation} steps_per_generation it would be {expected}. "
            "Use the settings of that run."
        )

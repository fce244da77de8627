"""The weights that reset=rewind goes back to: one safetensors file in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hf_connectome.errors import RunError
from hf_connectome.runs import is_whole
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

EARLY_FILE = "early_weights.safetensors"


def keep_early(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Store full CPU tensors by parameter name."""
    from safetensors.torch import save

    file = folder / EARLY_FILE
    with refused_writes_named(file):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({name: w.contiguous() for name, w in weights.items()}))


def early_weights(folder: Path) -> Callable[[str], Tensor]:
    """Return name -> stored weights, one read at a time.

    Raises:
        RunError: nothing is stored, or it was cut short.
    """
    from safetensors import safe_open

    file = folder / EARLY_FILE
    if not is_whole(file):
        raise RunError(f"{file} is missing or damaged; reset=rewind needs it. Start the run anew.")

    def load(name: str) -> Tensor:
        with safe_open(file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor

    return load

"""How large a connectome's file is, beside the weights it stands for and the entropy floor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome

BF16_BITS = 16


def size(connectome: "Connectome", file: Path) -> dict[str, Any]:
    """Return the file's size beside what it stands for: bfloat16 weights, and the i.i.d. floor."""
    from safetensors import safe_open

    from hf_connectome.cards.facts import floor_bits
    from hf_connectome.codecs import codec_of

    num_bytes = file.stat().st_size
    with safe_open(file, framework="np") as handle:
        codec = codec_of(handle.keys())
    return {
        "bytes": num_bytes,
        "codec": codec,
        "bits_per_weight": 8 * num_bytes / connectome.num_weights,
        "times_smaller_than_bf16": BF16_BITS * connectome.num_weights / (8 * num_bytes),
        "times_floor": 8 * num_bytes / floor_bits(connectome),
    }

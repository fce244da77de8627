"""How fast a language model decodes and reads a prompt, and what its weights take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.errors import UnsupportedError
from hf_connectome.export.csr import num_bytes
from hf_connectome.export.layers import SparseLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

Job = tuple["Callable[[], None]", int]
"""What is timed, and how many tokens it goes through."""


def jobs(
    model: nn.Module, *, batches: Sequence[int] = (1, 8), prompt: int = 256, tokens: int = 8
) -> dict[str, Job]:
    """Return what :func:`generate` consists of, as jobs to be timed.

    Args:
        model: a decoder with a cache, in evaluation mode.
        batches: sequences that are decoded side by side, a job each.
        prompt: length of the prompt that one more job reads; decoding starts after 8 tokens.
        tokens: steps of decoding in a job.

    Raises:
        UnsupportedError: the model does not decode text.
    """
    config: Any = getattr(model, "config", None)
    can = getattr(model, "can_generate", lambda: False)()
    if not can or config.is_encoder_decoder:
        raise UnsupportedError(
            f"{type(model).__name__} is no decoder of text, which the speed is measured of. Time "
            "a forward pass of your own, before export and after it."
        )
    found = {f"decode, batch {size}": _decoding(model, size, tokens) for size in batches}
    length = min(prompt, getattr(config, "max_position_embeddings", None) or prompt)
    return {**found, f"prompt of {length}": _reading(model, length)}


def _decoding(model: Any, batch: int, tokens: int) -> Job:
    prompt = _ids(model, batch, 8)
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True).past_key_values
    token = prompt[:, :1]

    @torch.no_grad()
    def decode() -> None:
        for _ in range(tokens):
            model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-tokens)

    return decode, batch * tokens


def _reading(model: Any, length: int) -> Job:
    prompt = _ids(model, 1, length)

    @torch.no_grad()
    def read() -> None:
        model(input_ids=prompt, use_cache=True, logits_to_keep=1)

    return read, length


def _ids(model: Any, batch: int, length: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=draw)
    return ids.to(model.device)


def weight_bytes(model: nn.Module) -> int:
    """Return what a model's parameters and CSR weights take, tied ones once."""
    sparse = {m.sparse for m in model.modules() if isinstance(m, SparseLayer)}
    dense = sum(parameter.nbytes for parameter in model.parameters())
    return dense + sum(num_bytes(weight.matrix) for weight in sparse)

"""The hosts that the benchmarks train: fresh GPT-2s and Llamas of a few sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GPT2_SIZES: dict[str, dict[str, int]] = {
    "gpt2-tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048},
    "gpt2-small": {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8192},
    "gpt2": {},  # 124 million weights
}
LLAMA_SIZES = {
    "llama-tiny": {"layers": 4, "hidden": 128, "heads": 4, "vocabulary": 2048},
    "llama-small": {"layers": 6, "hidden": 384, "heads": 6, "vocabulary": 8192},
}
SIZES = [*GPT2_SIZES, *LLAMA_SIZES]
BLOCK = 128


def fresh(size: str, device: str = "cpu") -> PreTrainedModel:
    """Return the host of a size, the same at every call, without dropout."""
    torch.manual_seed(0)
    model: Any
    if size in GPT2_SIZES:
        config = GPT2Config(
            **GPT2_SIZES[size],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = GPT2LMHeadModel(config)
    else:
        chosen = LLAMA_SIZES[size]
        model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=chosen["layers"],
                hidden_size=chosen["hidden"],
                intermediate_size=chosen["hidden"] * 8 // 3,
                num_attention_heads=chosen["heads"],
                num_key_value_heads=chosen["heads"],
                vocab_size=chosen["vocabulary"],
                max_position_embeddings=BLOCK,
                use_cache=False,
            )
        )
    placed: PreTrainedModel = model.to(device)
    return placed

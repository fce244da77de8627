"""Tiny random models of six architectures, built from configs, and inputs for them."""

from __future__ import annotations

import torch
import transformers as tf

_TEXT = {"input_ids": torch.tensor([[3, 14, 15, 92, 65, 35]])}


def _llama_like(config_class, **extra):
    return config_class(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        **extra,
    )


CONFIGS = {
    "GPT2LMHeadModel": lambda: tf.GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        vocab_size=97,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "LlamaForCausalLM": lambda: _llama_like(tf.LlamaConfig),
    "BertForMaskedLM": lambda: tf.BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=97,
        max_position_embeddings=32,
    ),
    "T5ForConditionalGeneration": lambda: tf.T5Config(
        d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=97
    ),
    "ViTForImageClassification": lambda: tf.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        num_labels=3,
    ),
    "MixtralForCausalLM": lambda: _llama_like(
        tf.MixtralConfig, num_local_experts=3, num_experts_per_tok=2
    ),
}


def tiny(architecture, *, seed=0, **changes):
    """Build the model in evaluation mode; ``changes`` are set on its config."""
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    torch.manual_seed(seed)
    return getattr(tf, architecture)._from_config(config, dtype=torch.float32).eval()


def inputs(architecture):
    """Return a batch of one for ``forward``."""
    if architecture == "ViTForImageClassification":
        return {"pixel_values": torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)}
    if architecture == "T5ForConditionalGeneration":
        return _TEXT | {"decoder_input_ids": torch.tensor([[0, 3, 14]])}
    return _TEXT


def labelled(architecture):
    """Return two batches of two for ``forward`` and a loss."""
    batches = []
    for offset in (0, 4):
        batch = {}
        for key, value in inputs(architecture).items():
            step = 0.1 * offset if value.is_floating_point() else offset
            batch[key] = torch.cat([value + step, value.flip(-1)])
        if "pixel_values" in batch:
            batch["labels"] = torch.tensor([0, 2])
        else:
            batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"])
        batches.append(batch)
    return batches


@torch.no_grad()
def logits(model, architecture):
    """Run the batch."""
    return model(**inputs(architecture)).logits

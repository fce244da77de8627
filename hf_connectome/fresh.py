"""A freshly initialised causal language model from a name; only its config is ever looked up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.architecture import name_causal_loss
from hf_connectome.coercion import Text, coerce
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_POSITIONS = ("n_positions", "max_position_embeddings", "max_sequence_length")


@dataclass
class ModelArguments:
    """Which architecture to evolve a connectome for."""

    model: str = field(
        default="gpt2",
        metadata={
            "help": "A model type of transformers with its default sizes (gpt2 is GPT-2 small, "
            "llama, mixtral…: nothing is downloaded), or a Hub id or folder with a config.json."
        },
    )
    model_overrides: str | None = field(
        default=None,
        metadata={"help": "Config values to change, as 'n_layer=4,n_embd=128,n_head=4'."},
    )


def fresh_model(
    arguments: ModelArguments,
    *,
    tokenizer: PreTrainedTokenizerFast | None,
    block_size: int,
    seed: int,
) -> PreTrainedModel:
    """Build a fresh float32 model that fits the tokenizer and the blocks.

    Args:
        arguments: name and overrides.
        tokenizer: gives vocabulary size and special tokens; None leaves the config's.
        block_size: tokens in a block; must fit into the model's positions.
        seed: of the initialisation; torch's global generator is put back afterwards.

    Raises:
        UnknownNameError: no such model type, or no such field of its config.
        ConfigError: a value of the wrong kind, sizes that do not go together, a block longer than
            the model's context, or an architecture without a causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = _config(arguments.model)
    _override(config, arguments.model_overrides)
    if tokenizer is not None and not _is_overridden("vocab_size", arguments.model_overrides):
        config.vocab_size = len(tokenizer)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if hasattr(config, token):
                setattr(config, token, getattr(tokenizer, token))
    check_context(config, block_size)
    if tokenizer is not None and config.vocab_size < len(tokenizer):
        raise ConfigError(
            f"model_overrides sets vocab_size={config.vocab_size}, but the tokenizer has "
            f"{len(tokenizer)} tokens. Leave vocab_size out, or make it at least as large."
        )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"transformers has no causal language model of the type {config.model_type!r}. Use one "
            "that has, such as gpt2 or llama."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:  # any architecture may raise anything
            raise ConfigError(
                f"no {config.model_type} of these sizes can be built: {error} Change "
                f"model_overrides, which is {arguments.model_overrides!r}."
            ) from error
    name_causal_loss(model)
    return model


def _config(name: str) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    if name in CONFIG_MAPPING and not Path(name).is_dir():
        return CONFIG_MAPPING[name]()
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        kinds = did_you_mean(name, CONFIG_MAPPING).partition("Available")[0]
        raise UnknownNameError(
            f"{name!r} is neither a model type of transformers nor a folder or Hub repository with "
            f"a config.json that can be read. {kinds}({error})"
        ) from error
    return config


def _pairs(overrides: str | None) -> dict[str, str]:
    pairs = {}
    for part in filter(None, (overrides or "").replace(" ", "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"model_overrides has {part!r}; expected key=value, as n_layer=4.")
        pairs[key] = value
    return pairs


def _is_overridden(key: str, overrides: str | None) -> bool:
    return key in _pairs(overrides)


def _override(config: PreTrainedConfig, overrides: str | None) -> None:
    for key, text in _pairs(overrides).items():
        if not hasattr(config, key):
            known = list(config.to_dict())
            raise UnknownNameError(
                f"a {config.model_type} config has no {key!r}. {did_you_mean(key, known)}"
            )
        old = getattr(config, key)
        kind = type(old) if isinstance(old, (bool, int, float, str)) else Any
        value = coerce(f"model_overrides: {key}", Text(text), kind)
        try:
            setattr(config, key, value)
        except Exception as error:  # a config may validate as it likes
            raise ConfigError(f"model_overrides: {key} is {text!r}, but {error}") from error


def check_context(config: PreTrainedConfig, block_size: int) -> None:
    """Refuse blocks that are longer than the positions a model has.

    Raises:
        ConfigError: names the field, both lengths and the way out.
    """
    for key in _POSITIONS:
        positions = getattr(config, key, None)
        if isinstance(positions, int) and positions < block_size:
            raise ConfigError(
                f"blocks of {block_size} tokens do not fit a model with {key}={positions}. Lower "
                f"block_size, or set model_overrides {key}={block_size}."
            )

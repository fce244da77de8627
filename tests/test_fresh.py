from __future__ import annotations

import pytest
import torch
from tiny import same, state_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, PreTrainedTokenizerFast

from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.fresh import ModelArguments, fresh_model

SIZES = {
    "gpt2": "n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=97",
    "llama": "num_hidden_layers=2,hidden_size=32,intermediate_size=48,num_attention_heads=4,"
    "num_key_value_heads=2,vocab_size=97,pad_token_id=0",
    "mixtral": "num_hidden_layers=1,hidden_size=32,intermediate_size=48,num_attention_heads=4,"
    "num_key_value_heads=2,num_local_experts=2,vocab_size=97",
    "opt": "num_hidden_layers=1,hidden_size=32,ffn_dim=48,num_attention_heads=4,vocab_size=97,"
    "word_embed_proj_dim=32",
}


def build(model="gpt2", overrides=None, *, tokenizer=None, block_size=16, seed=0):
    if overrides is None:
        overrides = SIZES[model]
    arguments = ModelArguments(model=model, model_overrides=overrides)
    return fresh_model(arguments, tokenizer=tokenizer, block_size=block_size, seed=seed)


@pytest.fixture(scope="module")
def tokenizer():
    words = {word: number for number, word in enumerate(["<s>", "</s>", "a", "b", "c"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")),
        bos_token="<s>",
        eos_token="</s>",
    )


# ---- names and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", SIZES)
def test_model_type_is_built_without_a_download(model):
    built = build(model)
    assert built.config.model_type == model
    assert built.config.vocab_size == 97
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    ids = torch.tensor([[1, 2, 3]])
    assert built(input_ids=ids, labels=ids).loss.isfinite()


def test_defaults_are_those_of_gpt2_small():
    arguments = ModelArguments()
    assert (arguments.model, arguments.model_overrides) == ("gpt2", None)
    with torch.device("meta"):
        model = fresh_model(arguments, tokenizer=None, block_size=1024, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_folder_with_a_config_is_a_name_too(tmp_path):
    GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32).save_pretrained(
        tmp_path
    )
    model = build(str(tmp_path), "n_layer=2")
    assert (model.config.n_layer, model.config.n_embd) == (2, 16)


def test_folder_called_as_a_model_type_is_taken_for_the_folder(tmp_path, monkeypatch):
    folder = tmp_path / "gpt2"
    GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32).save_pretrained(
        folder
    )
    monkeypatch.chdir(tmp_path)
    assert build("gpt2", "").config.n_embd == 16


def test_config_of_the_folder_may_say_bfloat16_but_the_model_is_float32(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    assert {p.dtype for p in build(str(tmp_path), "").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("overrides", "field", "expected"),
    [
        ("n_layer=3", "n_layer", 3),
        (" n_layer = 3 , ", "n_layer", 3),
        ("layer_norm_epsilon=1e-6", "layer_norm_epsilon", 1e-6),
        ("layer_norm_epsilon=1", "layer_norm_epsilon", 1.0),
        ("n_embd=6.4e1", "n_embd", 64),
        ("n_inner=48", "n_inner", 48),
        ("activation_function=relu", "activation_function", "relu"),
        ("tie_word_embeddings=false", "tie_word_embeddings", False),
        ("attn_pdrop=0.0,resid_pdrop=.5", "resid_pdrop", 0.5),
    ],
)
def test_override_has_the_kind_of_the_value_it_replaces(overrides, field, expected):
    model = build(overrides=f"{SIZES['gpt2']},{overrides}")
    assert getattr(model.config, field) == expected
    assert type(getattr(model.config, field)) is type(expected)


# ---- tokenizer and seed --------------------------------------------------------------------------


def test_vocabulary_and_special_tokens_are_the_tokenizers(tokenizer):
    model = build(overrides="n_layer=1,n_embd=16,n_head=2,n_positions=32", tokenizer=tokenizer)
    assert model.config.vocab_size == len(tokenizer) == 5
    assert model.transformer.wte.weight.shape == (5, 16)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 1)
    assert model.config.pad_token_id is None


def test_vocabulary_stays_when_it_was_overridden(tokenizer):
    model = build(overrides="n_layer=1,n_embd=16,n_head=2,vocab_size=64", tokenizer=tokenizer)
    assert model.config.vocab_size == 64


def test_model_depends_on_the_seed_alone():
    first = state_of(build(seed=3))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert same(state_of(build(seed=3)), first)
    assert not same(state_of(build(seed=4)), first)
    assert torch.equal(torch.get_rng_state(), before)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt-2", r"Did you mean 'gpt2'\?"),
        ("lama", r"Did you mean 'llama'\?"),
        ("no/such-repo", ""),
    ],
)
def test_unknown_model_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UnknownNameError, match=f"'{name}' is neither a model type .*{hint}"):
        build(name, "")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ("n_layr=4", UnknownNameError, r"a gpt2 config has no 'n_layr'. Did you mean 'n_layer'\?"),
        ("n_layer", ConfigError, "model_overrides has 'n_layer'; expected key=value, as n_layer=4"),
        ("n_layer=", ConfigError, "model_overrides has 'n_layer='"),
        ("=4", ConfigError, "model_overrides has '=4'"),
        ("n_layer=four", ConfigError, "n_layer is 'four'; expected int"),
        ("n_layer=4.5", ConfigError, r"n_layer is '4\.5'; expected int"),
        ("n_layer=true", ConfigError, "n_layer is 'true'; expected int"),
        ("n_layer=null", ConfigError, "n_layer is 'null'; expected int"),
        ("n_layer=[4]", ConfigError, r"n_layer is '\[4\]'; expected int"),
        ("n_layer=[", ConfigError, r"n_layer is '\['; expected int"),
        ("attn_pdrop=a lot", ConfigError, "attn_pdrop is 'alot'; expected float"),
        (
            "tie_word_embeddings=5",
            ConfigError,
            "tie_word_embeddings is '5'; expected true or false",
        ),
        ("n_inner=wide", ConfigError, "n_inner is 'wide', but "),
        ("n_embd=33,n_head=4", ConfigError, "no gpt2 of these sizes can be built: .*33.* Change"),
    ],
)
def test_override_is_refused_where_the_mistake_is(overrides, error, message):
    with pytest.raises(error, match=message):
        build(overrides=overrides)


@pytest.mark.parametrize(
    ("model", "key"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")]
)
def test_block_is_refused_when_it_is_longer_than_the_context(model, key):
    sizes = f"{SIZES[model]},{key}=32"
    assert build(model, sizes, block_size=32).config.max_position_embeddings == 32
    with pytest.raises(
        ConfigError,
        match=rf"blocks of 33 tokens do not fit a model with {key}=32.*model_overrides {key}=33",
    ):
        build(model, sizes, block_size=33)


def test_model_without_a_causal_head_is_refused():
    with pytest.raises(ConfigError, match="no causal language model of the type 'vit'"):
        build("vit", "")

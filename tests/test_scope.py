from __future__ import annotations

import itertools
import re

import peft
import pytest
import torch
from tiny import KINDS, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_connectome.errors import ScopeError
from hf_connectome.scope import (
    CONV,
    EMBEDDING,
    IN_OUT,
    OUT_IN,
    RAW,
    SCOPES,
    ScopedParameter,
    clean_name,
    fingerprint,
    output_rows,
    parameters_of,
    resolve,
    unwrap,
)


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in KINDS}


def modules_of(scope):
    return {name.rpartition(".")[0] for name in scope}


# ---- all matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_matrices_are_in_scope_once_and_nothing_else(models, kind):
    model = models[kind]
    scope = resolve(model)
    matrices = {id(p): p for p in model.parameters() if p.ndim >= 2}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert {id(parameters[name]) for name in scope} == matrices.keys()
    assert len(scope) == len(matrices)
    for name, parameter in scope.items():
        assert parameter == ScopedParameter(
            name, tuple(parameters[name].shape), parameter.orientation
        )
        assert not name.endswith("bias") or "relative_attention" in name
        assert "norm" not in name.lower()


@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("gpt2", "transformer.wte.weight", {"lm_head.weight"}),
        (
            "bert",
            "bert.embeddings.word_embeddings.weight",
            {"cls.predictions.decoder.weight"},
        ),
        (
            "t5",
            "shared.weight",
            {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"},
        ),
    ],
)
def test_tied_parameter_counts_once_under_its_first_name(models, kind, first, others):
    model = models[kind]
    assert others <= model.state_dict().keys()
    scope = resolve(model)
    assert scope[first].orientation == EMBEDDING
    assert not others & scope.keys()


@pytest.mark.parametrize(
    ("kind", "name", "shape", "orientation"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (32, 96), IN_OUT),
        ("gpt2", "transformer.h.1.attn.c_proj.weight", (32, 32), IN_OUT),
        ("gpt2", "transformer.wpe.weight", (32, 32), EMBEDDING),
        ("llama", "model.layers.0.mlp.down_proj.weight", (32, 48), OUT_IN),
        ("llama", "lm_head.weight", (97, 32), OUT_IN),
        ("bert", "bert.embeddings.token_type_embeddings.weight", (2, 32), EMBEDDING),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.weight", (32, 32), OUT_IN),
        (
            "t5",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (32, 4),
            EMBEDDING,
        ),
        ("vit", "vit.embeddings.patch_embeddings.projection.weight", (32, 3, 4, 4), CONV),
        ("vit", "vit.embeddings.position_embeddings", (1, 5, 32), RAW),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", (3, 96, 32), RAW),
        ("mixtral", "model.layers.0.mlp.experts.down_proj", (3, 32, 48), RAW),
        ("mixtral", "model.layers.0.mlp.gate.weight", (3, 32), RAW),
    ],
)
def test_shape_and_orientation_are_those_of_the_module_that_holds_it(
    models, kind, name, shape, orientation
):
    assert resolve(models[kind])[name] == ScopedParameter(name, shape, orientation)


def test_integer_and_small_parameters_are_left_out():
    model = nn.Module()
    model.indices = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    model.vector = nn.Parameter(torch.ones(3))
    model.matrix = nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
    assert list(resolve(model)) == ["matrix"]


def test_every_convolution_is_one():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Conv3d(2, 2, 1))
    assert {p.orientation for p in resolve(model).values()} == {CONV}


def test_class_that_is_only_called_conv1d_is_raw():
    look_alike = type("Conv1D", (nn.Module,), {})()
    look_alike.weight = nn.Parameter(torch.ones(3, 4))
    assert resolve(look_alike)["weight"].orientation == RAW
    assert resolve(Conv1D(4, 3))["weight"].orientation == IN_OUT


# ---- other scopes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5"])
def test_all_linear_is_what_peft_targets(kind):
    scope = resolve(tiny_model(kind), "all-linear")
    lora = peft.LoraConfig(target_modules="all-linear", r=2, fan_in_fan_out=kind == "gpt2")
    model = peft.get_peft_model(tiny_model(kind), lora)
    assert modules_of(scope) == set(model.base_model.targeted_module_names)
    assert all(p.orientation in (OUT_IN, IN_OUT) for p in scope.values())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt2", {"transformer.wte.weight", "transformer.wpe.weight"}),
        ("llama", {"model.embed_tokens.weight", "lm_head.weight"}),
        ("mixtral", {"model.embed_tokens.weight", "lm_head.weight"}),
    ],
)
def test_embeddings_and_body_share_out_the_matrices(models, kind, expected):
    model = models[kind]
    embeddings, body = resolve(model, "embeddings"), resolve(model, "body")
    assert embeddings.keys() == expected
    assert not embeddings.keys() & body.keys()
    assert embeddings.keys() | body.keys() == resolve(model).keys()


@pytest.mark.parametrize(
    ("scope", "exclude", "num_parameters"),
    [
        (["c_attn"], None, 2),
        (["c_attn", "mlp.c_proj"], None, 4),
        (["attn"], None, 0),
        (["transformer.wte"], None, 1),
        (r".*\.c_proj", None, 4),
        (r".*\.h\.0\..*", None, 4),
        (r"c_proj", None, 0),
        ("all-matrices", ["wte", "wpe"], 8),
        ("all-matrices", r"transformer\.h\..*", 2),
        ("body", ["c_proj"], 4),
        (r".*attn.*", ["c_attn"], 2),
    ],
)
def test_modules_are_matched_as_peft_does(models, scope, exclude, num_parameters):
    if num_parameters:
        assert len(resolve(models["gpt2"], scope, exclude)) == num_parameters
    else:
        with pytest.raises(ScopeError, match="matches no parameter"):
            resolve(models["gpt2"], scope, exclude)


@pytest.mark.parametrize("pattern", [["c_attn", "c_proj"], r".*\.mlp\.c_fc"])
def test_matching_rules_are_those_of_peft(pattern):
    lora = peft.LoraConfig(target_modules=pattern, r=2, fan_in_fan_out=True)
    model = peft.get_peft_model(tiny_model("gpt2"), lora)
    expected = set(model.base_model.targeted_module_names)
    assert modules_of(resolve(tiny_model("gpt2"), pattern)) == expected


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "exclude", "message"),
    [
        (
            "all-liner",
            None,
            r"the scope 'all-liner' matches no parameter of GPT2LMHeadModel. It has matrices such "
            r"as 'transformer.wte.weight', 'transformer.wpe.weight', "
            r"'transformer.h.0.attn.c_attn.weight' and 7 more. Did you mean 'all-linear'\? "
            r"Available: all-linear, all-matrices, body, embeddings.",
        ),
        (["q_proj"], None, r"the scope \['q_proj'\] matches no parameter"),
        ([], None, r"the scope \[\] matches no parameter"),
        ("all-matrices", ".*", r"GPT2LMHeadModel once '\.\*' is excluded\. It has"),
        (r"(", None, r"'\(' is not a regular expression: "),
        ("body", r"*", r"'\*' is not a regular expression: "),
    ],
)
def test_scope_is_refused_when_nothing_is_left(models, scope, exclude, message):
    with pytest.raises(ScopeError, match=message):
        resolve(models["gpt2"], scope, exclude)


def test_known_scope_is_not_corrected_when_the_model_has_no_such_parameters(models):
    with pytest.raises(ScopeError, match="'embeddings' matches no parameter of ViT") as raised:
        resolve(models["vit"], "embeddings")
    assert str(raised.value).endswith("and 13 more.")


def test_model_without_matrices_is_refused():
    with pytest.raises(ScopeError, match=r"of LayerNorm\..* such as none at all"):
        resolve(nn.LayerNorm(3))


def test_every_named_scope_works(models):
    assert all(resolve(models["gpt2"], scope) for scope in SCOPES)


# ---- wrappers ------------------------------------------------------------------------------------


def compiled_inside(model):
    model.transformer.h[0] = torch.compile(model.transformer.h[0], backend="eager")
    return model


WRAPPERS = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compiled block": compiled_inside,
    "DataParallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("scope", ["all-matrices", "all-linear", "body", "embeddings", ["c_fc"]])
def test_names_survive_wrappers(models, wrapper, scope):
    wrapped = WRAPPERS[wrapper](tiny_model("gpt2"))
    assert resolve(wrapped, scope) == resolve(models["gpt2"], scope)
    assert parameters_of(wrapped).keys() == parameters_of(models["gpt2"]).keys()


def test_unwrapping_gives_the_model_itself(models):
    model = models["gpt2"]
    assert unwrap(model) is model
    assert unwrap(WRAPPERS["both"](model)) is model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h.0.attn.weight", "h.0.attn.weight"),
        ("_orig_mod.h.0._orig_mod.weight", "h.0.weight"),
        ("h._checkpoint_wrapped_module.0.weight", "h.0.weight"),
        ("h._fsdp_wrapped_module.weight", "h.weight"),
        ("q_proj.base_layer.weight", "q_proj.weight"),
        ("my_base_layer.weight", "my_base_layer.weight"),
    ],
)
def test_segments_of_wrappers_are_dropped_from_names(name, expected):
    assert clean_name(name) == expected


def test_scope_is_found_on_the_meta_device(models):
    with torch.device("meta"):
        model = type(models["gpt2"])(models["gpt2"].config)
    assert resolve(model) == resolve(models["gpt2"])


# ---- fingerprint ---------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_specification():
    assert fingerprint([("w", (3, 10), "out_in")]) == (
        "2e77e1fc11039450b273908a578c07a2f55145e165806d611907659218eb02b2"
    )


def test_fingerprint_depends_on_names_shapes_and_orientations_alone():
    rows = [("w", (3, 10), OUT_IN), ("é", (4,), RAW)]
    different = [
        rows,
        rows[:1],
        [("v", (3, 10), OUT_IN), rows[1]],
        [("w", (10, 3), OUT_IN), rows[1]],
        [("w", (3, 10), IN_OUT), rows[1]],
        [("w", (30,), OUT_IN), rows[1]],
    ]
    assert len({fingerprint(row) for row in different}) == len(different)
    assert {fingerprint(order) for order in itertools.permutations(rows)} == {fingerprint(rows)}
    assert fingerprint([("w", [3, 10], OUT_IN), rows[1]]) == fingerprint(rows)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(rows))


def test_fingerprint_does_not_depend_on_the_weights():
    rows = [
        [(p.name, p.shape, p.orientation) for p in resolve(tiny_model("gpt2", seed)).values()]
        for seed in (0, 1)
    ]
    assert fingerprint(rows[0]) == fingerprint(rows[1])


# ---- output rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "orientation", "expected"),
    [
        ((2, 3), OUT_IN, [[0, 0, 0], [1, 1, 1]]),
        ((2, 3), IN_OUT, [[0, 1, 2], [0, 1, 2]]),
        ((2, 3), EMBEDDING, [[0, 1, 2], [0, 1, 2]]),
        ((2, 1, 1, 2), CONV, [[[[0, 0]]], [[[1, 1]]]]),
        ((2, 2, 2), RAW, [[[0, 0], [1, 1]], [[2, 2], [3, 3]]]),  # two experts of two outputs
        ((1, 1, 2), RAW, [[[0, 0]]]),
    ],
)
def test_rows_are_outputs_however_a_parameter_is_stored(shape, orientation, expected):
    assert output_rows(shape, orientation).tolist() == expected

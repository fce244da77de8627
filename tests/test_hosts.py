from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from tiny import KINDS, drawn, same, state_of, tiny_model
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hf_connectome.architecture import build_host
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import (
    ConfigError,
    HostMismatchError,
    ScopeError,
    UnknownNameError,
    UnsupportedError,
)
from hf_connectome.hosts import (
    check_host,
    check_tokenizer,
    describe,
    extract,
    fresh_reset,
    scope_fingerprint,
    wire,
)
from hf_connectome.scope import parameters_of, resolve

WTE = "transformer.wte.weight"
C_FC = "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def recorded():
    """A config that describes the tiny GPT-2."""
    model = tiny_model("gpt2")
    return describe(model, ConnectomeConfig(), resolve(model))


def altered(config, **changes):
    return replace(config, base_config=config.base_config | changes)


# ---- wire and extract ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wired_is_extracted_again(kind):
    host = tiny_model(kind)
    connectome = drawn(host, density=0.3)
    before = state_of(host)
    wire(host, connectome, reset="sign_constant", magnitude=0.5)
    assert extract(host) == connectome
    parameters = parameters_of(host)
    for name, parameter in parameters.items():
        if name in connectome:
            assert torch.equal(parameter, 0.5 * connectome.sign(name).float())
        else:
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_travel_whole_arrive(kind):
    host, other = tiny_model(kind, 0), tiny_model(kind, 1)
    connectome = drawn(host, carry=True)
    wire(other, connectome, reset="tensor_scale")
    parameters = parameters_of(other)
    assert connectome.values_carried
    for name, value in connectome.values_carried.items():
        assert torch.equal(parameters[name], value)
    for name, entry in connectome.items():
        assert torch.equal(parameters[name], entry.sign().float() * entry.magnitude())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_wrapped_host_is_wired_as_the_model_inside(wrap):
    plain, inside = tiny_model("gpt2"), tiny_model("gpt2")
    connectome = drawn(plain)
    wire(plain, connectome, reset="sign_constant")
    wire(wrap(inside), connectome, reset="sign_constant")
    assert same(state_of(plain), state_of(inside))
    assert extract(wrap(inside)) == connectome


def test_host_keeps_its_dtype():
    host = tiny_model("gpt2").to(torch.bfloat16)
    connectome = drawn(host)
    wire(host, connectome, reset="sign_constant")
    weight = parameters_of(host)[C_FC]
    assert weight.dtype == torch.bfloat16
    assert weight.abs().unique().tolist() == [0.0, float(torch.tensor(0.02).bfloat16())]
    assert extract(host) == connectome


@pytest.mark.parametrize(
    ("recorded", "asked", "expected"),
    [
        ({}, {}, None),  # 'keep', the host's own weights
        ({"reset": "sign_constant"}, {}, 0.02),
        ({"reset": "sign_constant", "magnitude": 0.25}, {}, 0.25),
        ({"reset": "sign_constant", "magnitude": 0.25}, {"magnitude": 0.5}, 0.5),
        ({"reset": "keep", "magnitude": 0.25}, {"reset": "sign_constant"}, 0.25),
        ({"reset": "sign_constant"}, {"reset": "keep"}, None),
    ],
)
def test_recorded_reset_holds_unless_another_is_asked_for(recorded, asked, expected):
    host = tiny_model("gpt2")
    before = state_of(host)[C_FC]
    connectome = drawn(host, **recorded)
    wire(host, connectome, **asked)
    sign, mask = connectome.sign(C_FC), connectome.mask(C_FC)
    wanted = before * mask if expected is None else sign.float() * expected
    assert torch.equal(parameters_of(host)[C_FC], wanted)


def test_weights_are_kept_when_there_is_no_config():
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.detach().clone()
    mask = torch.eye(4) > 0
    wire(layer, Connectome({"weight": SignedMask.pack(mask, orientation="out_in")}))
    assert torch.equal(layer.weight, before * mask)


def test_fresh_and_early_weights_are_asked_for_by_name():
    host = tiny_model("gpt2")
    connectome = drawn(host, scope=["c_fc"])
    constant = {name: torch.full(entry.shape, 0.5) for name, entry in connectome.items()}
    wire(host, connectome, reset="fresh_magnitude", fresh=constant.__getitem__)
    assert torch.equal(parameters_of(host)[C_FC], connectome.sign(C_FC) * 0.5)
    wire(host, connectome, reset="rewind", early=constant.__getitem__)
    assert torch.equal(parameters_of(host)[C_FC], connectome.mask(C_FC) * 0.5)


def test_connectome_is_wired_and_extracted_by_its_own_methods():
    host = tiny_model("llama")
    connectome = drawn(host)
    connectome.to(host, reset="sign_constant")
    assert Connectome.from_model(host) == connectome


def test_global_generator_is_left_alone(recorded):
    host = tiny_model("gpt2")
    before = torch.get_rng_state()
    wire(host, drawn(host), reset="sign_constant")
    extract(host)
    build_host(recorded, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


# ---- extract -------------------------------------------------------------------------------------


def test_dense_model_is_extracted_whole():
    host = tiny_model("llama")
    connectome = extract(host)
    assert connectome.density == 1.0
    assert torch.equal(connectome.sign("lm_head.weight") > 0, host.lm_head.weight > 0)


def test_weakest_weights_are_left_out_when_a_density_is_given():
    host = tiny_model("gpt2")
    config = ConnectomeConfig(
        density=0.25, density_pattern={WTE: 0.5}, target_modules=["wte", "c_fc"]
    )
    connectome = extract(host, config)
    assert len(connectome) == 3
    for name, entry in connectome.items():
        weight = parameters_of(host)[name].detach().abs()
        assert entry.num_survivors == round((0.5 if name == WTE else 0.25) * weight.numel())
        assert weight[~entry.mask()].max() <= weight[entry.mask()].min()


def test_nothing_is_pruned_when_the_model_is_sparser_than_asked():
    host = tiny_model("gpt2")
    sparse = drawn(host, density=0.1)
    wire(host, sparse, reset="sign_constant")
    assert extract(host, ConnectomeConfig(density=0.5)) == sparse


@pytest.mark.parametrize(
    ("density", "zeros"), [(1e-4, ()), (1.0, (C_FC,))], ids=["density too low", "all zero"]
)
def test_extraction_is_refused_when_a_parameter_would_keep_no_weight(density, zeros):
    host = tiny_model("gpt2")
    with torch.no_grad():
        for name in zeros:
            parameters_of(host)[name].zero_()
    with pytest.raises(ScopeError, match=f"{C_FC}' would keep none of its 4096 weights"):
        extract(host, ConnectomeConfig(target_modules=["mlp.c_fc"], density=density))


def test_extraction_is_refused_when_the_scope_matches_nothing():
    with pytest.raises(ScopeError, match="matches no parameter of GPT2LMHeadModel"):
        extract(tiny_model("gpt2"), ConnectomeConfig(target_modules=["q_proj"]))


def test_model_is_not_changed_by_extraction():
    host = tiny_model("gpt2")
    before = state_of(host)
    extract(host, ConnectomeConfig(density=0.25))
    assert same(state_of(host), before)


# ---- description ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_described_model_can_be_built_again(kind):
    model = tiny_model(kind)
    connectome = extract(model)
    config = connectome.config
    assert config.architecture == KINDS[kind] == type(model).__name__
    assert json.loads(json.dumps(config.base_config)) == config.base_config
    assert config.base_fingerprint == scope_fingerprint(connectome)
    host = build_host(config, seed=0)
    assert type(host) is type(model)
    assert resolve(host) == resolve(model)
    shapes = {name: p.shape for name, p in parameters_of(model).items()}
    assert {name: p.shape for name, p in parameters_of(host).items()} == shapes


def test_description_has_no_path_and_no_dtype(recorded):
    model = tiny_model("gpt2")
    model.config._name_or_path = "somewhere/private"
    model.config.dtype = torch.bfloat16
    config = describe(model, ConnectomeConfig(), resolve(model))
    assert config.base_config == recorded.base_config
    assert not {"_name_or_path", "name_or_path", "dtype", "torch_dtype"} & config.base_config.keys()


def test_plain_module_is_described_by_its_fingerprint_alone():
    connectome = extract(nn.Linear(3, 10, bias=False))
    assert connectome.config.architecture is None
    assert connectome.config.base_config is None
    assert connectome.config.base_fingerprint == scope_fingerprint(connectome)


# ---- refusals: the host stays as it is -----------------------------------------------------------


def refused(host, connectome, error, message, **options):
    before = state_of(host)
    with pytest.raises(error, match=message) as raised:
        wire(host, connectome, **options)
    assert same(state_of(host), before)
    return str(raised.value)


def test_host_of_other_sizes_is_refused():
    connectome = drawn(tiny_model("gpt2"))
    refused(
        tiny_model("gpt2", n_embd=64),
        connectome,
        HostMismatchError,
        r"c_attn.weight' is \(64, 192\) in the host, \(32, 96\) in the connectome. Use a "
        r"host of the recorded architecture \(GPT2LMHeadModel\) and sizes",
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "t5", "mixtral"])
def test_host_of_another_vocabulary_is_refused_by_that_name(kind):
    refused(
        tiny_model(kind, vocab_size=101),
        drawn(tiny_model(kind)),
        HostMismatchError,
        r"is \(101, 32\) in the host, \(97, 32\) in the connectome. The vocabularies "
        r"differ.* use the tokenizer in the connectome's folder and a host with 97 rows",
    )


def test_host_of_another_context_length_is_refused_by_that_name():
    refused(
        tiny_model("gpt2", n_positions=64),
        drawn(tiny_model("gpt2")),
        HostMismatchError,
        r"'transformer.wpe.weight' is \(64, 32\) in the host.* or the context lengths.*32 rows",
    )


def test_host_without_the_parameters_is_refused():
    connectome = drawn(tiny_model("gpt2"))
    refused(
        tiny_model("llama"),
        connectome,
        HostMismatchError,
        r"LlamaForCausalLM has no parameter 'transformer.h.0.attn.c_attn.weight', .* and 7 more",
    )
    refused(
        tiny_model("gpt2", n_layer=1),
        connectome,
        HostMismatchError,
        r"GPT2LMHeadModel has no parameter 'transformer.h.1.attn.c_attn.weight', ",
    )


class Square(nn.Module):
    """One square matrix, stored one way or the other under the same name."""

    def __init__(self, layer):
        super().__init__()
        self.proj = layer


@pytest.mark.parametrize(
    ("layer", "other", "message"),
    [
        (nn.Linear(8, 8), Conv1D(8, 8), "stored in_out in the host, out_in in the connectome"),
        (Conv1D(8, 8), nn.Linear(8, 8), "stored out_in in the host, in_out in the connectome"),
        (nn.Embedding(8, 8), nn.Linear(8, 8), "stored out_in in the host, embedding in the conn"),
    ],
)
def test_transposed_host_is_refused_when_the_matrix_is_square(layer, other, message):
    connectome = drawn(Square(layer))
    refused(Square(other), connectome, HostMismatchError, f"'proj.weight' is {message}")


def test_host_is_refused_when_the_last_entry_lacks_what_the_policy_needs():
    host = tiny_model("gpt2")
    connectome = drawn(host, carry=True)
    last = connectome.names[-1]
    bare = SignedMask.pack(connectome.mask(last), orientation=connectome[last].orientation)
    mask_only = connectome.replace({**connectome, last: bare})
    refused(host, mask_only, ConfigError, f"{last}' has a mask but no signs", reset="init_std")
    refused(host, mask_only, ConfigError, f"{last}' has a mask", reset="tensor_scale")
    refused(host, connectome, ConfigError, "no stored early weights", reset="rewind")
    without = SignedMask.pack(
        connectome.mask(last), connectome.sign(last), orientation=connectome[last].orientation
    )
    no_scale = connectome.replace({**connectome, last: without})
    refused(host, no_scale, ConfigError, f"{last}' carries no scale", reset="tensor_scale")
    refused(host, connectome, UnknownNameError, "unknown reset 'kep'", reset="kep")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transformer.ln_f.bias": torch.ones(3)}, r"shape \(3,\); the host has \(32,\)"),
        ({"transformer.ln_x.bias": torch.ones(3)}, r"shape \(3,\); the host has no such parameter"),
    ],
)
def test_host_is_refused_when_a_value_does_not_fit(values, message):
    host = tiny_model("gpt2")
    name = next(iter(values))
    connectome = drawn(host).replace(values=values)
    refused(host, connectome, HostMismatchError, f"'{name}' travels whole with {message}")


def test_check_gives_the_parameters_in_scope():
    host = tiny_model("gpt2")
    connectome = drawn(host, scope=["c_fc"])
    found = check_host(connectome, host)
    assert found.keys() == set(connectome)
    assert found[C_FC] is host.transformer.h[0].mlp.c_fc.weight


def test_other_tokenizer_is_refused():
    connectome = drawn(tiny_model("gpt2"), tokenizer_digest="a" * 64)
    check_tokenizer(connectome, "a" * 64)
    with pytest.raises(HostMismatchError, match=r"digest is bbbbbbbbbbbb…, .* with aaaaaaaaaaaa…"):
        check_tokenizer(connectome, "b" * 64)


def test_any_tokenizer_goes_when_none_is_recorded():
    connectome = drawn(tiny_model("gpt2"))
    check_tokenizer(connectome, "b" * 64)
    check_tokenizer(Connectome(connectome), "b" * 64)


# ---- building a host -----------------------------------------------------------------------------


def test_host_depends_on_the_seed_alone(recorded):
    torch.manual_seed(1)
    first = state_of(build_host(recorded, seed=5))
    torch.manual_seed(2)
    assert same(state_of(build_host(recorded, seed=5)), first)
    assert not same(state_of(build_host(recorded, seed=6)), first)


def test_host_follows_the_global_generator_when_no_seed_is_given(recorded):
    torch.manual_seed(1)
    first = state_of(build_host(recorded))
    assert not same(state_of(build_host(recorded)), first)
    torch.manual_seed(1)
    assert same(state_of(build_host(recorded)), first)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_host_is_float32_whatever_is_recorded(recorded, key):
    host = build_host(altered(recorded, **{key: "bfloat16"}), seed=0)
    assert {p.dtype for p in host.parameters()} == {torch.float32}
    assert host.config.dtype == torch.float32


def test_host_has_the_dtype_asked_for(recorded):
    host = build_host(recorded, seed=0, dtype=torch.bfloat16)
    assert {p.dtype for p in host.parameters()} == {torch.bfloat16}


def test_host_takes_no_memory_on_the_meta_device(recorded):
    host = build_host(
        altered(recorded, n_embd=1 << 20, n_head=1, vocab_size=1 << 20), device="meta"
    )
    assert {p.device.type for p in host.parameters()} == {"meta"}
    assert host.transformer.wte.weight.numel() == 1 << 40


def test_host_is_refused_when_nothing_is_recorded():
    with pytest.raises(ConfigError, match=r"records no architecture.*host=model"):
        build_host(ConnectomeConfig())


@pytest.mark.parametrize(
    "architecture",
    ["os.system", "AutoModel", "GPT2Config", "pipeline", "torch", "__name__", "", "NoSuchModel"],
)
def test_architecture_is_refused_when_it_is_no_model_of_transformers(recorded, architecture):
    with pytest.raises(ConfigError, match=f"'{architecture}' is no model class of transformers 5"):
        build_host(replace(recorded, architecture=architecture))


@pytest.mark.parametrize("architecture", ["PreTrainedModel", "LlamaForCausalLM"])
def test_architecture_is_refused_when_it_is_not_the_configs(recorded, architecture):
    with pytest.raises(ConfigError, match=architecture):
        build_host(replace(recorded, architecture=architecture))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": None},
        {"model_type": "no_such_model"},
        {"model_type": "llama"},
        {"model_type": ["gpt2"]},
        {"n_embd": 33},
        {"n_embd": -32},
        {"n_embd": "32"},
        {"n_layer": None},
        {"n_layer": 2.5},
        {"activation_function": "os.system"},
        {"vocab_size": {}},
        {"attribute_map": 5},
        {"to_dict": 5},
    ],
    ids=str,
)
def test_altered_config_is_refused_or_harmless(recorded, changes):
    with suppress(ConfigError):
        assert type(build_host(altered(recorded, **changes), seed=0)) is GPT2LMHeadModel


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_recorded_attention_kernel_is_never_fetched(recorded, key):
    host = build_host(altered(recorded, **{key: "kernels-community/flash-attn2"}), seed=0)
    assert host.config._attn_implementation in ("sdpa", "eager")


def test_fresh_host_names_its_loss(recorded):
    assert build_host(recorded).loss_type == "ForCausalLM"


# ---- depth ---------------------------------------------------------------------------------------


def test_deeper_host_is_refused_and_nothing_changes():
    connectome = drawn(tiny_model("gpt2", n_layer=1))
    host = tiny_model("gpt2", n_layer=2)
    before = state_of(host)
    with pytest.raises(
        HostMismatchError, match=r"has 'transformer\.h\.1\..* and 1 more in scope"
    ) as e:
        wire(host, connectome, reset="keep")
    assert "10 parameters in the host's scope, 6 in the connectome" in str(e.value)
    assert same(state_of(host), before)
    wire(host, Connectome(dict(connectome)), reset="keep")  # the way out that it names
    assert not same(state_of(host), before)


def test_part_of_a_connectome_is_wired_when_it_leaves_a_layer_out():
    host = tiny_model("gpt2")
    whole = drawn(host)
    part = whole.replace({n: e for n, e in whole.items() if ".h.1." not in n})
    wire(host, part, reset="keep")
    assert not (host.transformer.h[1].mlp.c_fc.weight == 0).any()


def test_host_with_another_head_is_taken_though_it_has_more_in_scope():
    connectome = drawn(tiny_model("gpt2"))
    host = tiny_model("gpt2")
    host.score = nn.Linear(32, 2)
    wire(host, connectome, reset="keep")


def test_layers_out_of_scope_do_not_count():
    connectome = drawn(tiny_model("gpt2", n_layer=1), scope=["h.0.mlp.c_fc"])
    wire(tiny_model("gpt2", n_layer=2), connectome, reset="keep")


@pytest.mark.parametrize(
    ("recorded_reset", "signs", "expected"),
    [
        ("keep", True, "sign_constant"),
        ("rewind", True, "sign_constant"),
        ("rewind", False, "keep"),
        ("init_std", True, "init_std"),
    ],
)
def test_fresh_reset_needs_no_weights_of_a_parent(recorded_reset, signs, expected):
    connectome = drawn(tiny_model("gpt2"), reset=recorded_reset)
    if not signs:
        entries = {n: SignedMask.pack(e.mask()) for n, e in connectome.items()}
        connectome = connectome.replace(entries)
    assert fresh_reset(connectome) == expected


@pytest.mark.parametrize("magnitude", [-1.0, 0.0, float("nan"), float("inf")])
def test_magnitude_that_is_no_positive_number_is_refused(magnitude):
    host = tiny_model("gpt2")
    before = state_of(host)
    with pytest.raises(ConfigError, match=r"magnitude is .*; expected a positive, finite number"):
        wire(host, drawn(host), reset="sign_constant", magnitude=magnitude)
    assert same(before, state_of(host))


def test_host_without_weights_is_refused():
    connectome = drawn(tiny_model("gpt2"))
    with torch.device("meta"):
        host = tiny_model("gpt2")
    with pytest.raises(UnsupportedError, match="are on the meta device"):
        wire(host, connectome)

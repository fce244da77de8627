"""The model Connectome-JEPA: its forward pass by hand, its checkpoints, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import ConfigError, ConnectomeError, UnknownNameError
from hf_connectome.graphs import NeuronGraph
from hf_connectome.hosts import extract
from hf_connectome.models import (
    ConnectomeJepaConfig,
    ConnectomeJepaForCausalLM,
    ConnectomeJepaModel,
)

SMALL = {
    "vocab_size": 23, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 4, "num_hops": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def small_graph(num=12, num_inputs=3, num_outputs=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weights = (torch.rand(num, num, generator=draw) < 0.3).float()
    sides = tuple(range(num_inputs)), tuple(range(num - num_outputs, num))
    return NeuronGraph(tuple(f"n{i}" for i in range(num)), weights, *sides)


@torch.no_grad()
def small_model(seed=0, graph=None, *, stirred=True, **settings):
    """Build a model in evaluation mode; stirred, its attention and gates have an effect."""
    torch.manual_seed(seed)
    graph = small_graph() if graph is None else graph
    model = ConnectomeJepaForCausalLM.from_graph(graph, **{**SMALL, **settings}).eval()
    if stirred:
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model():
    return small_model()


# ---- the forward pass ----------------------------------------------------------------------------


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x, position):
    """Rotate pairs (i, i + half) of a head by position x 10000^(-i / half)."""
    half = x.shape[-1] // 2
    angle = position * 10000.0 ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1
    )


def entered_at(neurons, values, num_neurons):
    """Put one column of ``values`` at each of the neurons."""
    state = torch.zeros(len(values), num_neurons)
    for place, neuron in enumerate(neurons):
        state[:, neuron] = values[:, place]
    return state


def hopped(linear, before, graph, direction):
    """Send each neuron's signal over each of its synapses."""
    arriving = linear.bias.repeat(len(before), 1)
    for pre, post in graph.adjacency.nonzero().tolist():
        to, come = (post, pre) if direction == "along" else (pre, post)
        arriving[:, to] += linear.weight[to, come] * before[:, come]
    return functional.gelu(arriving)


def attended(attention, normed, config):
    """Let each position look back, head by head."""
    heads, length = [], len(normed)
    for head in range(config.num_attention_heads):
        rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
        q, k, v = (normed @ getattr(attention, f"{name}_proj").weight[rows].T for name in "qkv")
        q = torch.stack([rms(turned(q[t], t)) for t in range(length)])
        k = torch.stack([rms(turned(k[t], t)) for t in range(length)])
        score = q @ k.T / config.head_dim**0.5
        future = torch.ones_like(score).triu(1).bool()
        heads.append(score.masked_fill(future, -math.inf).softmax(-1) @ v)
    return torch.cat(heads, -1) @ attention.out_proj.weight.T


def by_hand(model, tokens, graph, direction="along"):
    """Compute the logits of one text."""
    base, config = model.model, model.config
    x = rms(base.embed_tokens.weight[tokens])
    entered = x @ base.input_proj.weight.T
    injected = entered_at(graph.inputs, entered, graph.num_neurons)
    state = injected
    for number, hop in enumerate(base.hops, 1):
        state = state + hop.scale * hopped(hop.linear, rms(state), graph, direction)
        if number % 2 == 0:
            if number < config.num_hops:
                state = state + hop.gate * injected
            state = state + attended(hop.attention, rms(state), config)
    out = state[:, list(graph.outputs)] @ base.output_proj.weight.T
    if base.bypass is not None:
        out = out + base.bypass * x
    return 30 * torch.tanh(rms(out) @ base.embed_tokens.weight.T / 30)


@pytest.mark.parametrize(
    "settings",
    [{}, {"direction": "against", "allow_unreached": True}, {"bypass": 0.1}],
    ids=["along", "against", "bypass"],
)
@torch.no_grad()
def test_logits_are_those_computed_by_hand(settings):
    graph = small_graph()
    model = small_model(graph=graph, **settings)
    direction = settings.get("direction", "along")
    for row in TOKENS:
        expected = by_hand(model, row, graph, direction)
        torch.testing.assert_close(model(row[None]).logits[0], expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_signals_run_in_the_declared_direction():
    """With attention silent, a token at a reaches z along a -> b -> z, and not against it."""
    graph = NeuronGraph.from_edges("abz", [("a", "b"), ("b", "z")], inputs="a", outputs="z")
    for direction, arrives in (("along", True), ("against", False)):
        model = small_model(
            graph=graph, direction=direction, num_hops=2, allow_unreached=True, stirred=False
        )
        states = model(TOKENS, output_hidden_states=True).hidden_states[-1]
        assert bool(states[..., 2].any()) is arrives


@torch.no_grad()
def test_what_a_weight_holds_where_there_is_no_synapse_changes_nothing(model):
    before = model(TOKENS).logits
    for hop in model.model.hops:
        hop.linear.weight[~model.model.mask] = 1e6
    assert torch.equal(model(TOKENS).logits, before)


def test_weights_without_synapse_are_zero_and_stay_so_under_training():
    model = small_model(stirred=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    for hop in model.model.hops:
        assert bool((hop.linear.weight[~model.model.mask] == 0).all())
        assert bool((hop.linear.weight[model.model.mask] != 0).all())
    found = extract(model, ConnectomeConfig(target_modules=[r"linear"]))
    assert found.num_survivors == 4 * small_graph().num_edges


@torch.no_grad()
def test_future_tokens_change_nothing(model):
    other = TOKENS.clone()
    other[:, 5:] = 0
    same = model(TOKENS).logits[:, :5], model(other).logits[:, :5]
    torch.testing.assert_close(*same)
    assert not torch.allclose(model(TOKENS).logits[:, 5], model(other).logits[:, 5])


@torch.no_grad()
def test_logits_with_a_cache_are_those_without(model):
    whole = model(TOKENS).logits
    cached = model(TOKENS[:, :3], use_cache=True)
    steps = [cached.logits]
    for t in range(3, 8):
        cached = model(TOKENS[:, t : t + 1], past_key_values=cached.past_key_values)
        steps.append(cached.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(model):
    text, hole = TOKENS[:1], torch.zeros(1, 3, dtype=torch.long)
    whole = model(text).logits
    there = torch.ones_like(text)
    right = model(torch.cat([text, hole], 1), attention_mask=torch.cat([there, hole], 1)).logits
    torch.testing.assert_close(right[:, :8], whole)
    mask = torch.cat([hole, there], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    left = model(torch.cat([hole, text], 1), attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(left[:, 3:], whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_attention_functions_agree(model):
    sdpa = model(TOKENS).logits
    model.set_attn_implementation("eager")
    eager = model(TOKENS, output_attentions=True)
    torch.testing.assert_close(eager.logits, sdpa, atol=1e-6, rtol=1e-5)
    assert [tuple(a.shape) for a in eager.attentions] == [(2, 2, 8, 8)] * 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_continues_each_row_of_a_padded_batch_as_it_would_alone(model, use_cache):
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    alone = [
        model.generate(row[None], **options)[0, len(row) :] for row in (TOKENS[0], TOKENS[1, :5])
    ]
    batch = torch.stack([TOKENS[0], functional.pad(TOKENS[1, :5], (3, 0))])
    mask = torch.stack([torch.ones(8), functional.pad(torch.ones(5), (3, 0))]).long()
    together = model.generate(batch, attention_mask=mask, **options)[:, 8:]
    assert together.tolist() == [row.tolist() for row in alone]


def test_logits_of_the_last_positions_alone(model):
    whole = model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS, logits_to_keep=2).logits, whole[:, -2:])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_gradients_with_checkpointing_are_those_without():
    gradients = []
    for checkpointing in (False, True):
        model = small_model(jepa_weight=0.0, sigreg_weight=0.0).train()
        if checkpointing:
            enable = "activation_checkpointing_enable"  # gradient_… up to transformers 5.22
            getattr(model, enable, model.gradient_checkpointing_enable)()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.slow
def test_compiled_model_gives_the_same_loss_and_gradients():
    model = small_model(sigreg_weight=0.0, jepa_weight=0.0).train()
    model(TOKENS, labels=TOKENS).loss.backward()
    eager = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    compiled(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, gradient in eager.items():
        torch.testing.assert_close(
            dict(model.named_parameters())[name].grad, gradient, atol=1e-6, rtol=1e-4
        )


# ---- first values --------------------------------------------------------------------------------


def in_a_line(num=400, num_pre=64):
    """Every neuron has ``num_pre`` synapses onto it, but for the last: it has one."""
    weights = torch.zeros(num, num)
    for post in range(num):
        weights[[(post + k) % num for k in range(num_pre if post < num - 1 else 1)], post] = 1
    return NeuronGraph(tuple(map(str, range(num))), weights, (0,), (num - 1,))


@torch.no_grad()
def test_deviation_of_a_synapse_depends_on_how_many_there_are():
    model = small_model(graph=in_a_line(), stirred=False, allow_unreached=True)
    ours = torch.stack([hop.linear.weight[:-1] for hop in model.model.hops])
    assert float(ours[ours != 0].std()) == pytest.approx(64**-0.5, rel=0.02)
    last = torch.stack([hop.linear.weight[-1] for hop in model.model.hops])
    assert 0.2 < float(last[last != 0].abs().max()) < 4.0  # deviation 1, four draws
    published = small_model(
        graph=in_a_line(), stirred=False, allow_unreached=True, hop_init="constant"
    )
    theirs = torch.stack([hop.linear.weight for hop in published.model.hops])
    assert float(theirs[theirs != 0].std()) == pytest.approx(0.02, rel=0.02)


@torch.no_grad()
def test_signal_keeps_its_size_over_a_hop_with_degree_aware_values_only():
    size = {}
    for hop_init in ("in_degree", "constant"):
        model = small_model(
            graph=in_a_line(), stirred=False, allow_unreached=True, hop_init=hop_init
        )
        arriving = model.model.hops[0].linear(torch.randn(500, 400), model.model.mask)
        size[hop_init] = float(arriving.std())
    assert size["in_degree"] == pytest.approx(1.0, rel=0.1)
    assert size["constant"] == pytest.approx(0.02 * 8, rel=0.1)


@torch.no_grad()
def test_attention_begins_silent_and_gates_and_scales_where_they_are_set():
    model = small_model(stirred=False, num_hops=6, gate_init=0.3).model
    assert [hop.attention is not None for hop in model.hops] == [False, True] * 3
    assert [hop.gate is not None for hop in model.hops] == [False, True, False, True, False, False]
    assert float(model.hops[1].gate) == pytest.approx(0.3)
    for hop in model.hops:
        assert torch.all(hop.scale == torch.tensor(6**-0.5))
        assert not hop.linear.bias.any()
    assert not model.hops[1].attention.out_proj.weight.any()
    assert all(hop.gate is None for hop in small_model(reinject=False).model.hops)


def test_fresh_models_depend_on_the_seed():
    one, same, other = (small_model(seed, stirred=False) for seed in (0, 0, 1))
    weights = [m.model.hops[0].linear.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---- checkpoints ---------------------------------------------------------------------------------


def equal_states(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_checkpoint_brings_its_wiring_bit_for_bit_and_its_config_is_small(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert len((tmp_path / "config.json").read_text()) < 1500
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is ConnectomeJepaForCausalLM
    assert equal_states(read, model)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert torch.equal(read(TOKENS).logits, model(TOKENS).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is ConnectomeJepaModel
    assert equal_states(base, model.model)
    assert AutoConfig.from_pretrained(tmp_path).num_edges == small_graph().num_edges
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.mask.dtype == torch.bool
    assert torch.equal(half.model.mask, model.model.mask)
    assert half.model.hops[0].linear.weight.dtype == torch.bfloat16


def test_loading_information_comes_with_the_model_when_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path)
    read, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert equal_states(read, model)
    assert not report["missing_keys"]


def altered(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w["model.mask"].fill_(True), "the wiring has 144 synapses"),
        (lambda w: w["model.inputs"].__setitem__(0, 11), "the neurons 11 are inputs and outputs"),
        (lambda w: w["model.outputs"].__setitem__(0, 12), "the output neurons 12 do not exist"),
        (lambda w: w["model.inputs"].__setitem__(0, 1), "the input neurons 1 are listed twice"),
    ],
)
def test_altered_wiring_is_refused(model, tmp_path, change, said):
    model.save_pretrained(tmp_path)
    altered(tmp_path, change)
    with pytest.raises(ConfigError, match=said):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_checkpoint_that_lost_its_wiring_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    altered(tmp_path, lambda weights: weights.pop("model.mask"))
    with pytest.raises(ConfigError):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_config_alone_makes_the_model_of_all_synapses_only():
    config = ConnectomeJepaConfig(num_neurons=9, num_inputs=2, num_outputs=3, **SMALL)
    model = AutoModelForCausalLM.from_config(config)
    assert int(model.model.mask.sum()) == 81
    assert model.model.outputs.tolist() == [6, 7, 8]
    config.num_edges = 30
    with pytest.raises(
        ConfigError, match=r"counts 30 synapses but does not say which. Use from_gr"
    ):
        AutoModelForCausalLM.from_config(config)


def test_model_is_pushed_and_pulled(model, client):
    client.log_in("hf_alice")
    model.push_to_hub("org/worm")
    read = ConnectomeJepaForCausalLM.from_pretrained("org/worm")
    assert equal_states(read, model)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_hops": 1}, "num_hops is 1; expected at least 2, or there is no attention"),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"mask_fraction": 1.0}, "mask_fraction is 1.0 and mask_span 4.0"),
        ({"mask_span": 0.5}, "mask_span 0.5"),
        ({"logit_cap": 0.0}, "logit_cap is 0.0"),
        ({"jepa_weight": -1.0}, "jepa_weight -1.0"),
        ({"hop_init": "indegree"}, "unknown hop_init 'indegree'. Did you mean 'in_degree'"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected at least 1"),
        ({"num_inputs": 200, "num_outputs": 101}, "200 inputs and 101 outputs are more than"),
        ({"num_edges": 90001}, "num_edges is 90001; expected 1 to 90000"),
        ({"tie_word_embeddings": False}, "the logits are tied"),
    ],
)
def test_settings_that_no_model_can_have_are_refused(settings, said):
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        ConnectomeJepaConfig(**settings)


def test_outputs_that_no_input_reaches_are_named():
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    graph = NeuronGraph.from_edges("abcde", edges, inputs="a", outputs="de")
    with pytest.raises(ConfigError, match="reaches the output neurons '3', '4' within 2 hops"):
        small_model(graph=graph, num_hops=2)
    small_model(graph=graph, num_hops=2, allow_unreached=True)
    small_model(graph=graph, num_hops=4)


def test_wiring_of_another_size_is_refused():
    config = ConnectomeJepaConfig(num_neurons=9, num_inputs=2, num_outputs=3, num_edges=4, **SMALL)
    sides = torch.arange(2), torch.arange(6, 9)
    with pytest.raises(ConfigError, match=r"the mask of the synapses is \(9, 8\)"):
        ConnectomeJepaModel(config, (torch.ones(9, 8, dtype=torch.bool), *sides))


def test_config_of_a_stranger_is_refused_with_an_error_of_ours(tmp_path, model):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hops": 0}))
    with pytest.raises(ConnectomeError, match="num_hops is 0"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_model_keeps_the_contract_of_hosts(model):
    from hf_connectome.testing import check_host

    check_host(model, scope="embeddings")
    assert isinstance(model.model.hops[0].linear, nn.Linear)

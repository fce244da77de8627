"""What is measured is what its name says, by brute force; and the model stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import KINDS, drawn, same, state_of, tiny_model
from tiny_hosts import labelled
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from hf_connectome.calibration import MovementSums, measure
from hf_connectome.config import ConnectomeConfig
from hf_connectome.criteria import STATISTICS
from hf_connectome.criteria.base import MOVEMENT
from hf_connectome.errors import ConfigError, RunError, ScopeError, UnknownNameError
from hf_connectome.evolution import dense_connectome
from hf_connectome.scope import parameters_of, resolve

MEASURED = sorted(set(STATISTICS) - {MOVEMENT})
BATCHES = labelled("GPT2LMHeadModel")
WTE = "transformer.wte.weight"
C_FC = "transformer.h.0.mlp.c_fc.weight"


class Wrapped(nn.Module):
    """A layer as a model: ``inputs`` in, its output and a loss out."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs, labels=None):
        return self.layers(inputs)


def squared_error(model, batch):
    return functional.mse_loss(model(batch["inputs"]), batch["labels"])


def dense(model, scope="all-matrices"):
    return dense_connectome(model, resolve(model, scope), ConnectomeConfig())


def measured(model, batches, *needs, loss=squared_error):
    found = measure(model, dense(model), batches, needs, loss=loss)
    return found if len(needs) > 1 else found[needs[0]]


def layer_statistic(layer, inputs, kind):
    """Measure the weight of one layer, the inputs in two batches."""
    batches = [{"inputs": part} for part in inputs.split(len(inputs) - 1)]
    return measured(Wrapped(layer), batches, kind)["layers.0.weight"]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2")


# ---- activations ---------------------------------------------------------------------------------


def test_feature_norm_is_the_norm_of_each_input_feature_over_all_positions():
    inputs = draw(3, 5, 4)
    norms = inputs.reshape(-1, 4).norm(dim=0)
    found = layer_statistic(nn.Linear(4, 6), inputs, "feature_norm")
    torch.testing.assert_close(found, norms.expand(6, 4))
    found = layer_statistic(Conv1D(6, 4), inputs, "feature_norm")
    torch.testing.assert_close(found, norms[:, None].expand(4, 6))


def test_feature_norm_of_an_embedding_is_the_root_of_the_count():
    tokens = torch.tensor([[0, 2, 2], [2, 1, 2]])
    found = layer_statistic(nn.Embedding(4, 3), tokens, "feature_norm")
    assert found.tolist() == [[1.0] * 3, [1.0] * 3, [2.0] * 3, [0.0] * 3]


class Scaled(nn.Embedding):
    """An embedding that scales its rows and shifts its tokens, as those of Gemma and OPT do."""

    def forward(self, tokens):
        return 3.0 * super().forward(tokens + 1)


def test_feature_norm_of_an_embedding_of_its_own_kind_is_that_of_what_it_does():
    found = layer_statistic(Scaled(4, 3), torch.tensor([[0, 2, 2], [2, 1, 2]]), "feature_norm")
    torch.testing.assert_close(found, torch.tensor([0.0, 3.0, 3.0, 6.0])[:, None].expand(4, 3))


def patches(inputs, layer):
    """Give the input of every weight at every position: (positions, out, in / groups, k, k)."""
    unfolded = functional.unfold(inputs, layer.kernel_size, padding=layer.padding)
    parts = unfolded.transpose(1, 2).reshape(-1, layer.groups, 1, *layer.weight.shape[1:])
    outputs = layer.weight.shape[0] // layer.groups
    return parts.expand(-1, -1, outputs, -1, -1, -1).reshape(len(parts), *layer.weight.shape)


@pytest.mark.parametrize("groups", [1, 2])
def test_feature_norm_of_a_convolution_counts_every_patch(groups):
    layer, inputs = nn.Conv2d(4, 6, 3, padding=1, groups=groups), draw(2, 4, 5, 5)
    found = layer_statistic(layer, inputs, "feature_norm")
    torch.testing.assert_close(found, patches(inputs, layer).norm(dim=0))


def test_feature_norms_of_the_uses_of_a_tied_parameter_add_in_squares(gpt2):
    states = []
    hook = gpt2.lm_head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad():
        for batch in BATCHES:
            gpt2(**batch)
    hook.remove()
    tokens = torch.cat([batch["input_ids"].flatten() for batch in BATCHES])
    count = tokens.bincount(minlength=97)[:, None]
    squares = torch.cat([s.reshape(-1, 32) for s in states]).square().sum(0)
    found = measure(gpt2, dense(gpt2), BATCHES, ["feature_norm"])["feature_norm"][WTE]
    torch.testing.assert_close(found, (count + squares).sqrt())


def correlation(left, right):
    """Correlate two lists of samples, by numpy's formula."""
    return float(torch.corrcoef(torch.stack([left.double(), right.double()]))[0, 1].abs())


def test_correlation_is_that_of_input_and_output_unit():
    inputs, layer = draw(3, 5, 4) + torch.tensor([0.0, 10.0, -3.0, 0.0]), nn.Linear(4, 6)
    outputs = layer(inputs).detach().reshape(-1, 6)
    units = inputs.reshape(-1, 4)
    expected = [[correlation(units[:, j], outputs[:, i]) for j in range(4)] for i in range(6)]
    expected = torch.tensor(expected)
    found = layer_statistic(layer, inputs, "correlation")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    transposed = Conv1D(6, 4)
    with torch.no_grad():
        transposed.weight.copy_(layer.weight.t())
    found = layer_statistic(transposed, inputs, "correlation")
    torch.testing.assert_close(found, expected.t(), atol=1e-4, rtol=0)


def test_correlation_of_an_embedding_is_that_of_a_token_being_there():
    layer, tokens = Scaled(5, 3), torch.tensor([[0, 2, 2], [2, 1, 2], [0, 1, 0]])
    outputs = layer(tokens).detach().reshape(-1, 3)
    there = functional.one_hot(tokens.flatten() + 1, 5).double()
    found = layer_statistic(layer, tokens, "correlation")
    for token in (1, 2, 3):
        for unit in range(3):
            expected = correlation(there[:, token], outputs[:, unit])
            assert float(found[token, unit]) == pytest.approx(expected, abs=1e-5)
    assert found[[0, 4]].tolist() == [[0.0] * 3] * 2  # tokens that never occur are constant


def test_correlation_of_a_convolution_is_over_its_patches():
    layer, inputs = nn.Conv2d(2, 4, 3, groups=2), draw(2, 2, 5, 5)
    seen = patches(inputs, layer)
    outputs = layer(inputs).detach().permute(0, 2, 3, 1).reshape(-1, 4)
    found = layer_statistic(layer, inputs, "correlation")
    for place in [(0, 0, 0, 0), (1, 0, 2, 1), (3, 0, 1, 2)]:
        expected = correlation(seen[(slice(None), *place)], outputs[:, place[0]])
        assert float(found[place]) == pytest.approx(expected, abs=1e-4)


def test_correlation_with_a_constant_unit_is_0():
    inputs, layer = draw(3, 5, 4), nn.Linear(4, 2)
    inputs[..., 1] = 30.0
    with torch.no_grad():
        layer.weight[1] = 0
    found = layer_statistic(layer, inputs, "correlation")
    assert found[1].tolist() == [0.0] * 4
    assert float(found[0, 1]) == 0.0
    assert (found[0, [0, 2, 3]] > 0).all()


# ---- gradients -----------------------------------------------------------------------------------


def test_gradient_is_that_of_the_mean_loss(gpt2):
    model = tiny_model("gpt2")
    sum(model(**batch).loss for batch in BATCHES).div(len(BATCHES)).backward()
    found = measure(gpt2, dense(gpt2), BATCHES, ["gradient"])["gradient"]
    for name, parameter in parameters_of(model).items():
        if parameter.ndim > 1:
            torch.testing.assert_close(found[name], parameter.grad)


def gradient_of(model, batch, name):
    return torch.autograd.grad(model(**batch).loss, parameters_of(model)[name])[0]


def test_squared_gradients_are_averaged_over_batches_and_over_examples(gpt2):
    kinds = ["batch_gradient_squared", "example_gradient_squared"]
    found = measure(gpt2, dense(gpt2), BATCHES, kinds)
    ones = [{k: v[i : i + 1] for k, v in batch.items()} for batch in BATCHES for i in range(2)]
    for kind, parts in zip(kinds, (BATCHES, ones), strict=True):
        for name in (WTE, C_FC):
            squares = [gradient_of(gpt2, part, name).square() for part in parts]
            torch.testing.assert_close(found[kind][name], torch.stack(squares).mean(0))


def test_hessian_gradient_is_the_gradient_of_half_the_squared_gradient_norm():
    model = Wrapped(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [
        {"inputs": draw(5, 3, seed=s).double(), "labels": draw(5, 2, seed=s + 9).double()}
        for s in (0, 1)
    ]
    found = measured(model, batches, "hessian_gradient")

    def half_norm():
        gradients = measured(model, batches, "gradient")
        return 0.5 * sum(float(g.double().square().sum()) for g in gradients.values())

    for name, parameter in parameters_of(model).items():
        for place in [(0, 0), (1, 2)] if parameter.ndim == 2 else []:
            with torch.no_grad():
                parameter[place] += 1e-3
                above = half_norm()
                parameter[place] -= 2e-3
                below = half_norm()
                parameter[place] += 1e-3
            slope = (above - below) / 2e-3
            assert float(found[name][place]) == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_synaptic_flow_of_two_layers_is_the_product_of_absolute_sums():
    model = Wrapped(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    first, second = (layer.weight.detach().abs() for layer in (model.layers[0], model.layers[2]))
    found = measured(model, [{"inputs": draw(1, 3), "labels": None}], "synaptic_flow")
    expected = {
        "layers.0.weight": second.sum(0)[:, None].expand(4, 3),
        "layers.2.weight": first.sum(1).expand(2, 4),
    }
    largest = max(float(value.max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / largest)


def test_synaptic_flow_leaves_what_is_out_of_scope_as_it_is():
    model = Wrapped(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.layers[1].running_mean.fill_(-2.0)
    model.layers[2].bias.data.fill_(-5.0)
    before = state_of(model)
    found = measured(model, [{"inputs": draw(2, 3)}], "synaptic_flow")
    assert same(state_of(model), before)
    hidden = model.layers[0].weight.detach().abs().sum(1) + model.layers[0].bias.detach()
    expected = (hidden + 2.0) / math.sqrt(1.0 + 1e-5)
    ratio = found["layers.2.weight"] / expected
    torch.testing.assert_close(ratio, ratio[0, 0].expand(2, 4))


# ---- the model stays as it is --------------------------------------------------------------------


def test_model_and_generator_stay_as_they_are(gpt2):
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    parameters_of(model)[C_FC].requires_grad_(False)
    before, generator = state_of(model), torch.get_rng_state()
    found = measure(model, dense(model), BATCHES, MEASURED)
    assert same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model.transformer.h[0].training
    assert [n for n, p in parameters_of(model).items() if not p.requires_grad] == [C_FC]
    reference = measure(gpt2, dense(gpt2), BATCHES, MEASURED)  # without dropout
    for kind in MEASURED:
        assert all(found[kind][name].equal(reference[kind][name]) for name in dense(model))


def test_statistics_are_float32_of_the_parameters_shape_whatever_the_models_dtype():
    model = tiny_model("llama").to(torch.bfloat16)
    found = measure(model, dense(model), labelled("LlamaForCausalLM"), MEASURED)
    for kind in MEASURED:
        for name, parameter in parameters_of(model).items():
            if parameter.ndim > 1:
                value = found[kind][name]
                assert (value.dtype, value.shape) == (torch.float32, parameter.shape)
                assert torch.isfinite(value).all()


def test_only_what_is_needed_is_measured(gpt2):
    assert measure(gpt2, dense(gpt2), [], []) == {}
    found = measure(gpt2, dense(gpt2, ["c_fc"]), BATCHES, ["feature_norm"])
    assert list(found) == ["feature_norm"]
    assert list(found["feature_norm"]) == [C_FC, C_FC.replace("h.0", "h.1")]


@pytest.mark.parametrize("kind", MEASURED)
def test_order_of_batches_changes_rounding_at_most(gpt2, kind):
    forth = measure(gpt2, dense(gpt2), BATCHES, [kind])[kind]
    back = measure(gpt2, dense(gpt2), BATCHES[::-1], [kind])[kind]
    for name, value in forth.items():
        torch.testing.assert_close(back[name], value, rtol=1e-4, atol=1e-6)


# ---- movement ------------------------------------------------------------------------------------


def test_movement_sums_what_the_optimizer_sees():
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sums, expected = MovementSums(["weight"]), torch.zeros(2, 3)
    sums.attach(model, optimizer)
    for seed in range(3):
        optimizer.zero_grad()
        model(draw(4, 3, seed=seed)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        expected -= model.weight.grad * model.weight.detach()
        optimizer.step()
    assert sums.take()["weight"].equal(expected)
    sums.detach()
    optimizer.step()
    assert sums.take() == {}


def test_movement_goes_on_from_a_checkpoint(tmp_path):
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole, part = MovementSums(["weight"]), MovementSums(["weight"])
    whole.attach(model, optimizer)
    part.attach(model, optimizer)
    for step in range(4):
        if step == 2:
            part.save(tmp_path)
            part.detach()
            part = MovementSums(["weight"])
            part.load(tmp_path)
            part.attach(model, optimizer)
        model(draw(4, 3, seed=step)).square().sum().backward()
        optimizer.step()
    assert part.take()["weight"].equal(whole.take()["weight"])


def test_movement_without_its_file_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"movement\.safetensors is missing or damaged"):
        MovementSums(["weight"]).load(tmp_path)


# ---- refusals ------------------------------------------------------------------------------------


def test_model_whose_dead_weights_live_is_refused(gpt2):
    with pytest.raises(ScopeError, match=r"dead weights of '.*' are not 0.*Put the connectome on"):
        measure(gpt2, drawn(gpt2), BATCHES, ["gradient"])


@pytest.mark.parametrize(
    ("needs", "batches", "error", "message"),
    [
        (["gradient"], [], ConfigError, "'gradient' is measured on batches, and there are none"),
        (["gradeint"], BATCHES, UnknownNameError, "unknown statistic .*Did you mean 'gradient'"),
        ([MOVEMENT], BATCHES, ConfigError, "summed over the steps of a training"),
        (
            ["gradient"],
            [{"input_ids": torch.tensor([[1, 2]])}],
            ConfigError,
            "GPT2LMHeadModel gives no loss for a batch of 'input_ids'. Put labels into",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(gpt2, needs, batches, error, message):
    with pytest.raises(error, match=message):
        measure(gpt2, dense(gpt2), batches, needs)


@pytest.mark.parametrize("kind", ["feature_norm", "correlation"])
def test_parameters_without_an_input_of_their_own_are_refused_by_name(kind):
    model = tiny_model("mixtral")
    with pytest.raises(ScopeError, match=r"'model\.layers\.0\.mlp\.experts.*scope: all-linear"):
        measure(model, dense(model), labelled(KINDS["mixtral"]), [kind])
    found = measure(model, dense(model, "all-linear"), labelled(KINDS["mixtral"]), [kind])
    assert len(found[kind]) == 8


def test_layer_that_no_batch_reaches_is_refused():
    model = Wrapped(nn.Linear(2, 2))
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"no batch reached the layer of 'spare\.weight'"):
        measured(model, [{"inputs": draw(1, 2)}], "feature_norm")

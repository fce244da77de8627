"""Skills: planted ones are recovered, counts are exact, the model stays, six architectures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import KINDS, drawn, same, state_of, tiny_model
from tiny_hosts import inputs
from torch import nn

from hf_connectome import BoundConfig, ConnectomeModel
from hf_connectome.connectome import Connectome
from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError
from hf_connectome.operations import lesion
from hf_connectome.skill_finding import activation_scores, find_skill, fisher_scores


class Planted(nn.Module):
    """Neurons 0 and 1 serve inputs 0 and 1, neurons 2 and 3 inputs 2 and 3, neuron 4 all."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(4, 5)
        self.mlp.fc2 = nn.Linear(5, 1, bias=False)
        with torch.no_grad():
            wiring = torch.tensor([[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 1], [0, 0, 1, 2], [3] * 4])
            self.mlp.fc1.weight.copy_(wiring)
            self.mlp.fc1.bias.fill_(7.0)
            self.mlp.fc2.weight.fill_(1.0)
            self.wanted = self(torch.eye(4), wanted=False)  # (4, 1)

    def forward(self, x, attention_mask=None, wanted=True):
        output = self.mlp.fc2(self.mlp.fc1(x))
        if not wanted:
            return output
        # Off by 1 when whole, so that there is a gradient; further off with what is removed.
        return SimpleNamespace(loss=(output - x @ self.wanted + 1).square().mean())


def inputs_of(*features):
    return [{"x": torch.eye(4)[[feature]][None]} for feature in features]


def text_of(kind):
    batch = inputs(KINDS[kind])
    if kind == "vit":
        return [batch | {"labels": torch.tensor([1])}]
    key = "decoder_input_ids" if kind == "t5" else "input_ids"
    return [batch | {"labels": batch[key]}]


# ---- planted skills ------------------------------------------------------------------------------


def test_fisher_is_the_mean_squared_gradient_times_the_squared_weight():
    model = Planted()
    scores = fisher_scores(model, inputs_of(0, 2), "all-matrices")
    weight = model.mlp.fc1.weight.detach()
    squares = torch.zeros(5, 4)
    squares[:, [0, 2]] = 4.0 / 2  # d loss / d w = 2 x 1 x input, on one of the two inputs
    assert scores["mlp.fc1.weight"].equal(squares * weight.square())
    hidden = torch.stack([7 + weight[:, 0], 7 + weight[:, 2]])
    torch.testing.assert_close(scores["mlp.fc2.weight"][0], (2 * hidden).square().mean(0))


def test_planted_skill_is_found_by_fisher():
    skill = find_skill(Planted(), inputs_of(0, 1), density=6 / 20, scope=["fc1"])
    assert skill.mask("mlp.fc1.weight").nonzero().tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [4, 0], [4, 1],
    ]  # fmt: skip


def test_contrast_takes_out_what_serves_both():
    texts = {"density": 4 / 20, "scope": ["fc1"]}
    # Input 1 is in both texts; its weights are the largest of neuron 1, and must not be taken.
    alone = find_skill(Planted(), inputs_of(0, 1), **texts)
    against = find_skill(Planted(), inputs_of(0, 1), other=inputs_of(1, 1), **texts)
    assert alone.mask("mlp.fc1.weight").nonzero()[:, 1].tolist().count(1) >= 2
    assert set(against.mask("mlp.fc1.weight")[:, 0].nonzero().flatten().tolist()) == {0, 1, 4}


def test_planted_neurons_are_found_by_activation():
    model = Planted()
    scores = activation_scores(model, inputs_of(0, 1))
    # |h W| without the bias of 7, the mean over both tokens.
    assert scores["mlp.fc1.weight"][:, 3].tolist() == [1.0, 1.5, 0.0, 0.0, 3.0]
    assert scores["mlp.fc2.weight"].tolist() == [[1.0, 1.5, 0.0, 0.0, 3.0]]
    skill = find_skill(model, inputs_of(0, 1), method="activation", density=3 / 5)
    assert skill.mask("mlp.fc1.weight").all(1).tolist() == [True, True, False, False, True]
    assert skill.mask("mlp.fc2.weight").tolist() == [[True, True, False, False, True]]


def test_padding_is_left_out_of_activations():
    x = torch.stack([torch.eye(4)[0], torch.eye(4)[3]])[None]  # (1, 2, 4)
    padded = [{"x": x, "attention_mask": torch.tensor([[1, 0]])}]
    model = Planted()
    scores = [activation_scores(model, b)["mlp.fc2.weight"] for b in (padded, inputs_of(0))]
    assert scores[0].equal(scores[1])


# ---- every architecture --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_skill_has_exact_counts_signs_of_the_weights_and_leaves_the_model(kind):
    model = tiny_model(kind)
    before = state_of(model)
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    skill = find_skill(model, text_of(kind), density=0.1)
    assert same(state_of(model), before)
    assert model.training
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    parameters = dict(model.named_parameters())
    for name, entry in skill.items():
        assert entry.num_survivors == round(0.1 * entry.num_weights)
        weight = parameters[name].detach()
        assert entry.sign().equal(torch.where(weight < 0, -1, 1).to(torch.int8) * entry.mask())
    assert skill.lineage[-1]["method"] == "fisher"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mixtral"])
def test_density_of_whole_neurons_takes_whole_neurons(kind):
    model = tiny_model(kind)
    neurons = 128 if kind == "gpt2" else 48
    skill = find_skill(model, text_of(kind), method="activation", density=12 / neurons)
    assert len(skill) == 2 * (3 if kind == "llama" else 2) * (2 if kind == "t5" else 1)
    for entry in skill.values():
        neurons_first = (entry.shape[0] == neurons) ^ (entry.shape[1] == neurons)
        assert neurons_first
        mask = entry.mask() if entry.shape[0] == neurons else entry.mask().T
        assert mask.all(1).sum() == 12 == mask.any(1).sum()
    blocks = {}
    for name, entry in skill.items():
        mask = entry.mask() if entry.shape[0] == neurons else entry.mask().T
        blocks.setdefault(name.rpartition(".mlp.")[0] or name.split(".layer.")[0], []).append(
            mask.all(1).tolist()
        )
    if kind in ("gpt2", "llama", "vit"):
        assert all(len({tuple(m) for m in masks}) == 1 for masks in blocks.values())


def test_fused_experts_have_no_layers_to_listen_to():
    with pytest.raises(ScopeError, match="MixtralForCausalLM has no feed-forward block"):
        find_skill(tiny_model("mixtral"), text_of("mixtral"), method="activation", density=0.1)


@pytest.mark.parametrize("method", ["fisher", "activation"])
def test_skill_is_saved_and_is_a_frozen_skill_and_a_lesion(tmp_path, method):
    model = tiny_model("gpt2")
    skill = find_skill(model, text_of("gpt2"), method=method, density=0.25)
    skill.save_pretrained(tmp_path)
    assert Connectome.from_pretrained(tmp_path, host=model) == skill
    whole = drawn(model, density=1.0, scope=skill.config.target_modules)
    rest = lesion(whole, skill)
    assert rest.num_survivors + skill.num_survivors == whole.num_weights
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = dict(model.named_parameters())[name].detach().clone()
    wrapped = ConnectomeModel(model, BoundConfig.from_pretrained(tmp_path))
    merged = dict(wrapped.merge_and_unload().named_parameters())[name]
    assert merged.equal(weight * skill.mask(name))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 1.0, -0.5, 1e-6, float("nan")])
def test_density_that_is_no_part_is_refused(density):
    with pytest.raises(ScopeError, match=r"a skill is a part"):
        find_skill(Planted(), inputs_of(0), density=density, scope="all-matrices")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "fischer"}, UnknownNameError, "Did you mean 'fisher'"),
        ({"method": "activation", "scope": "embeddings"}, ScopeError, "has no output units"),
        ({"scope": "nowhere"}, ScopeError, "matches no parameter"),
        ({"batches": []}, ConfigError, "there is no batch"),
        ({"batches": [], "method": "activation"}, ConfigError, "there is no batch"),
        ({"batches": [inputs("GPT2LMHeadModel")]}, ConfigError, "gives no loss"),
    ],
)
def test_search_is_refused_when_it_cannot_find_anything(options, error, message):
    settings = {"batches": text_of("gpt2"), "density": 0.1} | options
    with pytest.raises(error, match=message):
        find_skill(tiny_model("gpt2"), settings.pop("batches"), **settings)


def test_diverged_model_is_refused():
    model = Planted()
    model.mlp.fc2.weight.data.fill_(float("nan"))
    with pytest.raises(ScopeError, match="NaN scores"):
        find_skill(model, inputs_of(0), density=0.5, scope="all-matrices")

"""Each criterion does what its paper has it for, on networks small enough to know the answer."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from hf_connectome.calibration import MovementSums, measure
from hf_connectome.config import ConnectomeConfig
from hf_connectome.criteria import CriterionContext, criteria
from hf_connectome.evolution import dense_connectome, next_generation, prune_in_rounds
from hf_connectome.hosts import wire
from hf_connectome.pruning import Pruning
from hf_connectome.schedule import GeometricSchedule
from hf_connectome.scope import OUT_IN, parameters_of, resolve
from hf_connectome.selection import keep, keep_per_row


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """Linear layers with ReLU between; ``inputs`` in, outputs out."""

    def __init__(self, *sizes, activation=nn.ReLU, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, activation())))
        del self.layers[-1]

    def forward(self, inputs, labels=None):
        return self.layers(inputs)


def squared_error(model, batch):
    return functional.mse_loss(model(batch["inputs"]), batch["labels"])


def dense(model):
    return dense_connectome(model, resolve(model), ConnectomeConfig())


def scores(name, model, batches, loss=squared_error):
    """Score every weight of a model, all in one row."""
    criterion = criteria.get(name)()
    connectome = dense(model)
    statistics = measure(model, connectome, batches, criterion.needs, loss=loss)
    found = []
    for parameter, weight in parameters_of(model).items():
        given = {kind: values[parameter] for kind, values in statistics.items()}
        context = CriterionContext(parameter, statistics=given)
        found.append(criterion.score(weight, connectome.mask(parameter), context).flatten())
    return torch.cat(found)


def spearman(left, right):
    ranks = torch.stack([v.argsort().argsort().double() for v in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])


def after_removal(model, value_of):
    """Compute a number again with each weight at 0 in its turn, as changes from the whole."""
    model = copy.deepcopy(model)
    whole, changes = value_of(model), []
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for place in range(len(flat)):
            kept = flat[place].clone()
            flat[place] = 0.0
            changes.append(value_of(model) - whole)
            flat[place] = kept
    return torch.tensor(changes)


@pytest.fixture(scope="module")
def task():
    """A network of small weights, where the first order of a Taylor series is most of it."""
    model = Network(6, 8, 3, activation=nn.Tanh).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    batches = [
        {"inputs": draw(16, 6, seed=s).double(), "labels": draw(16, 3, seed=s + 9).double() + 1}
        for s in range(4)
    ]
    return model, batches


def loss_of(batches):
    return lambda model: float(sum(squared_error(model, b).detach() for b in batches))


# ---- sensitivity ---------------------------------------------------------------------------------


def test_snip_ranks_by_the_change_of_the_loss(task):
    model, batches = task
    change = after_removal(model, loss_of(batches)).abs()
    assert spearman(scores("snip", model, batches), change) > 0.9


def test_taylor_ranks_by_the_squared_change_of_each_batchs_loss(task):
    model, batches = task
    changes = [after_removal(model, loss_of([batch])).square() for batch in batches]
    assert spearman(scores("taylor", model, batches), torch.stack(changes).mean(0)) > 0.9


def test_taylor_and_snip_differ_where_gradients_cancel():
    model = Network(2, 1)
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
    # The first weight's gradients are +2 and -2, the second's 1 and 1.
    inputs = torch.eye(2)

    def loss(model, batch):
        return (model(inputs).flatten() * batch["slopes"]).sum()

    batches = [{"slopes": torch.tensor([2.0, 1.0])}, {"slopes": torch.tensor([-2.0, 1.0])}]
    assert scores("snip", model, batches, loss).tolist() == [0.0, 1.0]
    assert scores("taylor", model, batches, loss).tolist() == [2.0, 1.0]
    one = batches[:1]
    assert scores("taylor", model, one, loss).equal(scores("snip", model, one, loss))


def test_grasp_ranks_by_the_change_of_the_gradient_norm(task):
    model, batches = task

    def half_norm(model):
        found = measure(model, dense(model), batches, ["gradient"], loss=squared_error)
        return 0.5 * sum(float(g.double().square().sum()) for g in found["gradient"].values())

    change = after_removal(model, half_norm)
    assert spearman(scores("grasp", model, batches), -change) > 0.9


def test_fisher_of_a_linear_model_is_the_squared_error_times_the_squared_input():
    model, inputs, labels = Network(3, 1), draw(7, 3), draw(7, 1, seed=1)
    batches = [
        {"inputs": inputs[:4], "labels": labels[:4]},
        {"inputs": inputs[4:], "labels": labels[4:]},
    ]
    error = (model(inputs) - labels).detach()
    expected = (2 * error * inputs).square().mean(0)
    torch.testing.assert_close(scores("fisher", model, batches), expected)


# ---- activations ---------------------------------------------------------------------------------


def test_wanda_drops_in_each_row_what_moves_the_output_least():
    model, inputs = Network(4, 3), draw(20, 4) * torch.tensor([0.1, 1.0, 3.0, 10.0])
    weight = model.layers[0].weight.detach()
    score = scores("wanda", model, [{"inputs": inputs}]).reshape(3, 4)
    everything = torch.ones(3, 4, dtype=torch.bool)
    kept = keep_per_row(score, everything, 6, orientation=OUT_IN)
    for row in range(3):
        moved = (weight[row] * inputs).square().sum(0)  # of the row's output, by each weight
        assert kept[row].equal(keep(moved, everything[row], 2))


def test_scaling_a_feature_and_its_weights_back_changes_nothing_for_wanda():
    inputs, scale = draw(20, 4), torch.tensor([1.0, 8.0, 1.0, 0.25])
    model, scaled = Network(4, 3), Network(4, 3)
    with torch.no_grad():
        scaled.layers[0].weight.div_(scale)
    torch.testing.assert_close(
        scores("wanda", scaled, [{"inputs": inputs * scale}]),
        scores("wanda", model, [{"inputs": inputs}]),
    )


def test_ria_leaves_no_row_dead_at_a_tenth_where_magnitude_and_wanda_do():
    model, batches = Network(200, 200), [{"inputs": draw(300, 200)}]
    with torch.no_grad():
        model.layers[0].weight.copy_(draw(200, 200, seed=1))
        model.layers[0].weight[:40].mul_(0.5)
    everything = torch.ones(200, 200, dtype=torch.bool)
    dead_rows = {}
    for name in ("ria", "wanda", "magnitude"):
        kept = keep(scores(name, model, batches).reshape(200, 200), everything, 36_000)
        dead_rows[name] = int((~kept.any(1)).sum())
    assert dead_rows["ria"] == 0
    assert min(dead_rows["wanda"], dead_rows["magnitude"]) > 20


def test_hebbian_recovers_a_planted_wiring_from_half_of_it():
    """Two blocks driven by two sources; where a weight is missing, activity alone can tell."""
    sources = draw(400, 2)
    inputs = torch.cat([sources[:, :1].expand(-1, 10), sources[:, 1:].expand(-1, 10)], dim=1)
    inputs = inputs + draw(400, 20, seed=1)
    planted = torch.block_diag(torch.ones(8, 10), torch.ones(8, 10)).bool()
    there = planted & (torch.rand(16, 20, generator=torch.Generator().manual_seed(2)) < 0.5)
    model = Network(20, 16)
    with torch.no_grad():
        model.layers[0].weight.copy_(there.float())
    score = scores("hebbian", model, [{"inputs": inputs}]).reshape(16, 20)
    missing, foreign = score[planted & ~there], score[~planted]
    auc = float((missing[:, None] > foreign[None]).float().mean())
    assert auc > 0.95


# ---- paths ---------------------------------------------------------------------------------------


def pruned_in_rounds(name, model, density, rounds):
    schedule = GeometricSchedule(1 - density ** (1 / rounds), rounds)
    pruning = Pruning(schedule, criterion=name, selection="global")
    return prune_in_rounds(model, dense(model), pruning, [{"inputs": torch.ones(1, 32)}])


def test_synflow_keeps_all_layers_connected_where_others_cut_the_network():
    """At 1 %: global magnitude, and synflow in one round instead of a hundred."""
    model = Network(32, 96, 96, 96, 8)
    outputs, least = {}, {}
    for name, rounds in (("synflow", 100), ("synflow", 1), ("magnitude", 1)):
        found = pruned_in_rounds(name, model, 0.01, rounds)
        assert found.density == pytest.approx(0.01, abs=1e-3)
        host = copy.deepcopy(model)
        wire(host, found, reset="keep")
        with torch.no_grad():
            for parameter in host.parameters():
                parameter.abs_()
            outputs[name, rounds] = float(host(torch.ones(1, 32)).sum())
        least[name, rounds] = min(entry.num_survivors for entry in found.values())
    assert outputs["synflow", 100] > 0.0
    assert least["synflow", 100] > 8
    # The floor of the selection: one weight a layer, where all would have gone.
    assert least["synflow", 1] == least["magnitude", 1] == 1
    assert outputs["magnitude", 1] == 0.0


def test_rounds_leave_the_model_alone_and_count_generations(task):
    model, batches = task
    before = [p.detach().clone() for p in model.parameters()]
    pruning = Pruning(GeometricSchedule(0.5, 3), criterion="snip")
    found = prune_in_rounds(model, dense(model), pruning, batches, loss=squared_error)
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    assert found.config.generation == 3
    for entry in found.values():
        assert entry.num_survivors == pruning.schedule.survivors_after(entry.num_weights, 3)


# ---- movement ------------------------------------------------------------------------------------


def trained(model, inputs, labels, steps, lr):
    """Train a linear network and return what its weights moved."""
    optimizer, sums = torch.optim.SGD(model.parameters(), lr=lr), MovementSums(parameters_of(model))
    sums.attach(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        squared_error(model, {"inputs": inputs, "labels": labels}).backward()
        optimizer.step()
    return sums.take()


def test_movement_from_zero_ranks_as_magnitude_does():
    inputs, labels = draw(64, 20), draw(64, 3, seed=1)
    model = Network(20, 3)
    nn.init.zeros_(model.layers[0].weight)
    moved = trained(model, inputs, labels, steps=50, lr=1e-3)["layers.0.weight"]
    weight = model.layers[0].weight.detach()
    assert spearman(moved.flatten(), weight.abs().flatten()) > 0.98


def test_movement_beats_magnitude_after_a_short_fine_tuning_on_another_task():
    """Large weights of the old task are let go of; small ones of the new task are on their way."""
    inputs = draw(256, 20)
    new = torch.cat([torch.zeros(3, 10), draw(3, 10, seed=1)], dim=1)
    labels = inputs @ new.t()
    model = Network(20, 3)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.cat([2 * draw(3, 10, seed=2), torch.zeros(3, 10)], 1))
    statistics = {"movement": trained(model, inputs, labels, steps=10, lr=0.05)}
    losses = {}
    for name in ("movement", "magnitude"):
        pruning = Pruning(GeometricSchedule(0.5, 1), criterion=name)
        config = ConnectomeConfig(generation=1)
        found = next_generation(model, dense(model), pruning, config, statistics)
        host = copy.deepcopy(model)
        wire(host, found, reset="keep")
        losses[name] = float(squared_error(host, {"inputs": inputs, "labels": labels}).detach())
    assert losses["movement"] < 0.75 * losses["magnitude"]

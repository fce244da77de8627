"""Dead weights are exactly 0 after every step, and nothing else of training changes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, same, state_of, tiny_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, AdamW, Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_connectome import Connectome, MaskCallback, MaskEnforcer, SignedMask, enforcement
from hf_connectome.errors import ConfigError, HostMismatchError, UnsupportedError
from hf_connectome.hosts import check_host

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("gpt2", "llama", "bert", "t5", "vit", "mixtral")


def adamw(model: nn.Module) -> list[Optimizer]:
    return [AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)]


def sgd(model: nn.Module) -> list[Optimizer]:
    return [SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)]


def adafactor(model: nn.Module) -> list[Optimizer]:
    return [torch.optim.Adafactor(model.parameters(), lr=1e-2, weight_decay=0.1)]


def adafactor_of_transformers(model: nn.Module) -> list[Optimizer]:
    parameters = model.parameters()
    return [transformers.Adafactor(parameters, lr=1e-2, relative_step=False, weight_decay=0.1)]


def muon(model: nn.Module) -> list[Optimizer]:
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    body = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in embeddings]
    return [torch.optim.Muon(body, lr=1e-2, weight_decay=0.1), AdamW(rest, lr=1e-2)]


OPTIMIZERS = (adamw, sgd, adafactor, adafactor_of_transformers, muon)


def batch(kind: str, seed: int = 0, size: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if kind == "vit":
        pixels = torch.randn(size, 3, 8, 8, generator=draw)
        return {"pixel_values": pixels, "labels": torch.randint(0, 3, (size,), generator=draw)}
    tokens = torch.randint(2, 97, (size, 6), generator=draw)
    decoder = {"decoder_input_ids": tokens} if kind == "t5" else {}
    return {"input_ids": tokens, "labels": tokens, **decoder}


def steps(
    kind: str,
    forward: Callable[..., Any],
    optimizers: list[Optimizer],
    count: int,
    *,
    clip: float | None = None,
) -> Iterator[tuple[float, float]]:
    """Train, and give the loss and the norm of the gradients after every step."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for step in range(count):
        loss = forward(**batch(kind, seed=step)).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, float("inf") if clip is None else clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield loss.item(), norm.item()


def leaks(model: nn.Module, connectome: Connectome) -> list[str]:
    """Name the parameters with a dead weight that is not 0, found without the code under test."""
    parameters = dict(model.named_parameters())
    dead = {name: parameters[name].detach()[~connectome.mask(name)] for name in connectome}
    return [name for name, weights in dead.items() if not torch.equal(weights, weights * 0)]


def zero_dead(model: nn.Module, connectome: Connectome) -> None:
    with torch.no_grad():
        for name, parameter in check_host(connectome, model).items():
            parameter.mul_(connectome.mask(name))


def masked_forward(model: nn.Module, connectome: Connectome) -> Callable[..., Any]:
    """Return the model's forward with W * mask in it: what enforcement in place has to equal."""
    masks = {name: connectome.mask(name).float() for name in connectome}

    def forward(**inputs: Tensor) -> Any:
        weights = {
            name: parameter * masks[name] if name in masks else parameter
            for name, parameter in model.named_parameters()
        }
        return functional_call(model, weights, (), inputs)

    return forward


def num_hooks(model: nn.Module, *optimizers: Optimizer) -> int:
    on_gradients = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    on_steps = sum(
        len(o._optimizer_step_post_hooks) + len(o._optimizer_step_pre_hooks) for o in optimizers
    )
    on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return on_gradients + on_steps + on_modules


# ---- every architecture under every optimizer ----------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_dead_weights_are_zero_after_every_step(
    kind: str, make: Callable[[nn.Module], list[Optimizer]]
) -> None:
    model = tiny_model(kind)
    connectome = drawn(model, density=0.4)
    optimizers = make(model)
    enforcer = MaskEnforcer(model, connectome).attach(*optimizers)
    assert enforcer.num_bound == len(connectome)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in steps(kind, model, optimizers, 4):
        assert leaks(model, connectome) == []
        assert enforcer.num_leaks() == 0
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name])
        if name in connectome:  # every survivor is alive, so no mask was put on a wrong tensor
            assert parameter.detach()[connectome.mask(name)].count_nonzero() > 0


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral"])
def test_training_equals_a_model_with_masks_in_its_forward(
    kind: str, make: Callable[[nn.Module], list[Optimizer]]
) -> None:
    ours, reference = tiny_model(kind), tiny_model(kind)
    connectome = drawn(ours, density=0.4)
    zero_dead(reference, connectome)
    forward = masked_forward(reference, connectome)
    expected = list(steps(kind, forward, make(reference), 5, clip=0.5))
    optimizers = make(ours)
    MaskEnforcer(ours, connectome).attach(*optimizers)
    found = list(steps(kind, ours, optimizers, 5, clip=0.5))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], abs=1e-6)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=1e-5)
    assert max(norm for _, norm in found) > 0.5  # so the clipping did something
    zero_dead(reference, connectome)
    for name, weight in reference.named_parameters():
        assert torch.allclose(dict(ours.named_parameters())[name], weight, atol=1e-6), name


def test_muon_leaks_without_the_projection_and_the_reference_shows_it() -> None:
    model = tiny_model("llama")
    connectome = drawn(model, density=0.4)
    optimizers = muon(model)
    MaskEnforcer(model, connectome).attach()  # gradients only
    list(steps("llama", model, optimizers, 1))
    assert leaks(model, connectome) != []


def test_masking_after_the_clipping_would_be_wrong() -> None:
    norms = {}
    for when in ("before", "after"):
        model = tiny_model("gpt2")
        connectome = drawn(model, density=0.4)
        enforcer = MaskEnforcer(model, connectome)
        if when == "before":
            enforcer.attach()
        model(**batch("gpt2")).loss.backward()
        dense = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        zero_dead_gradients(model, connectome)
        masked = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        norms[when] = (dense.item(), masked.item())
    seen, left = norms["before"]
    assert left == pytest.approx(0.5, rel=1e-4)  # all of the allowed norm is the survivors'
    seen_dense, left_after = norms["after"]
    assert seen_dense > 1.1 * seen
    assert left_after < 0.9 * left


def zero_dead_gradients(model: nn.Module, connectome: Connectome) -> None:
    for name, parameter in model.named_parameters():
        if name in connectome and parameter.grad is not None:
            parameter.grad.mul_(connectome.mask(name))


def test_parameters_out_of_scope_train_as_without_masks() -> None:
    plain, ours = tiny_model("llama"), tiny_model("llama")
    connectome = drawn(ours, density=0.4, scope="body")
    zero_dead(plain, connectome)
    optimizers = adamw(ours)
    MaskEnforcer(ours, connectome).attach(*optimizers)
    list(steps("llama", plain, adamw(plain), 1))
    list(steps("llama", ours, optimizers, 1))
    trained = dict(plain.named_parameters())
    outside = [name for name, _ in ours.named_parameters() if name not in connectome]
    assert "lm_head.weight" in outside
    assert "model.embed_tokens.weight" in outside
    for name in outside:
        assert torch.equal(dict(ours.named_parameters())[name], trained[name]), name


@given(
    seed=st.integers(0, 2**32),
    density=st.floats(0, 1),
    make=st.sampled_from(["adamw", "sgd", "adafactor", "rmsprop", "muon"]),
    lr=st.floats(1e-6, 1.0),
    weight_decay=st.floats(0, 1.0),
    momentum=st.floats(0, 0.99),
)
def test_no_setting_of_an_optimizer_moves_a_dead_weight(
    seed: int, density: float, make: str, lr: float, weight_decay: float, momentum: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    entries = {
        name: SignedMask.pack(torch.rand(p.shape, generator=draw) < density, orientation="out_in")
        for name, p in model.named_parameters()
    }
    connectome, both = Connectome(entries), {"lr": lr, "weight_decay": weight_decay}
    optimizer: Optimizer = {
        "adamw": lambda p: AdamW(p, betas=(momentum, 0.99), **both),
        "sgd": lambda p: SGD(p, momentum=momentum, nesterov=momentum > 0, **both),
        "adafactor": lambda p: torch.optim.Adafactor(p, **both),
        "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=momentum, centered=True, **both),
        "muon": lambda p: torch.optim.Muon(p, momentum=momentum, **both),
    }[make](model.parameters())
    MaskEnforcer(model, connectome).attach(optimizer)
    for _ in range(3):
        model(torch.randn(6, 5, generator=draw)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert leaks(model, connectome) == []
    for name, parameter in model.named_parameters():
        for key, state in optimizer.state[parameter].items():
            assert torch.as_tensor(state).isfinite().all()
            if key in ("exp_avg", "momentum_buffer"):
                assert not state[~connectome.mask(name)].any()


# ---- ways to run a step --------------------------------------------------------------------------


def trained(
    *,
    make: Callable[[nn.Module], list[Optimizer]] = adamw,
    accumulate: int = 1,
    autocast: bool = False,
    wrap: Callable[..., Any] = lambda model: model,
) -> tuple[list[float], nn.Module, Connectome]:
    """Train a small GPT-2 under a connectome for three steps of eight rows."""
    model = tiny_model("gpt2")
    connectome = drawn(model, density=0.4)
    forward, (optimizer,) = wrap(model), make(model)
    MaskEnforcer(forward, connectome).attach(optimizer)
    losses = []
    for step in range(3):
        rows, total = batch("gpt2", seed=step, size=8)["input_ids"], 0.0
        for part in rows.chunk(accumulate):
            mixed = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
            with mixed:
                loss = forward(input_ids=part, labels=part).loss / accumulate
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert leaks(model, connectome) == []
        losses.append(total)
    return losses, model, connectome


def test_accumulated_batches_equal_one_batch() -> None:
    # SGD, because Adam makes whole steps of what rounding leaves of a gradient.
    once, whole, _ = trained(make=sgd)
    parts, accumulated, _ = trained(make=sgd, accumulate=4)
    assert parts == pytest.approx(once, abs=1e-5)
    for left, right in zip(whole.parameters(), accumulated.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant: bool) -> None:
    def wrap(model: Any) -> Any:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        new_name = getattr(model, "activation_checkpointing_enable", None)
        (new_name or model.gradient_checkpointing_enable)({"use_reentrant": use_reentrant})
        model.enable_input_require_grads()
        return model.train()

    assert trained(wrap=wrap)[0] == trained()[0]


def test_bf16_autocast_equals_masks_in_the_forward() -> None:
    losses, _, connectome = trained(autocast=True)
    reference = tiny_model("gpt2")
    zero_dead(reference, connectome)
    forward, (optimizer,) = masked_forward(reference, connectome), adamw(reference)
    for step, expected in enumerate(losses):
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(**batch("gpt2", seed=step, size=8)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_weights_in_bf16_have_masks_in_bf16() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    connectome, optimizers = drawn(model, density=0.4), adamw(model)
    enforcer = MaskEnforcer(model, connectome).attach(*optimizers)
    assert {bound.mask.dtype for bound in enforcer._bound} == {torch.bfloat16}
    for _ in steps("llama", model, optimizers, 3):
        assert leaks(model, connectome) == []


def test_bool_masks_of_accelerators_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = state_of(trained()[1])
    monkeypatch.setattr(
        enforcement, "_working_mask", lambda connectome, name, parameter: connectome.mask(name)
    )
    assert same(state_of(trained()[1]), expected)


def test_compiled_graphs_are_the_dense_ones_and_an_update_compiles_nothing() -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    model = tiny_model("llama", num_hidden_layers=1)
    first, second = drawn(model, density=0.6), drawn(model, density=0.3, seed=1)
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    compiled(**batch("llama")).loss.backward()
    dense, graphs[:] = list(graphs), []
    assert dense
    torch._dynamo.reset()
    compiled, optimizers = torch.compile(model, backend=backend), adamw(model)
    enforcer = MaskEnforcer(compiled, first).attach(*optimizers)
    for _ in steps("llama", compiled, optimizers, 2):
        assert leaks(model, first) == []
    assert graphs == dense
    enforcer.update(second)
    for _ in steps("llama", compiled, optimizers, 2):
        assert leaks(model, second) == []
    assert graphs == dense
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler hides its own by other means than filters
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_equals_eager_training(backend: str) -> None:
    losses = trained(wrap=lambda model: torch.compile(model, backend=backend))[0]
    torch._dynamo.reset()
    assert losses == pytest.approx(trained()[0], abs=1e-4)


# ---- what is touched and what is not -------------------------------------------------------------


def test_state_dict_keeps_its_keys_shapes_and_types() -> None:
    model = tiny_model("mixtral")
    before = {
        name: (t.shape, t.dtype, id(t)) for name, t in model.state_dict(keep_vars=True).items()
    }
    optimizers = adamw(model)
    MaskEnforcer(model, drawn(model)).attach(*optimizers)
    after = {
        name: (t.shape, t.dtype, id(t)) for name, t in model.state_dict(keep_vars=True).items()
    }
    assert after == before


@pytest.mark.parametrize("kind", KINDS)
def test_attach_and_detach_leave_a_wired_host_bit_equal_and_without_hooks(kind: str) -> None:
    model = tiny_model(kind)
    connectome = drawn(model)
    connectome.to(model, reset="keep")
    optimizers = muon(model)
    before, hooks = state_of(model), num_hooks(model, *optimizers)
    enforcer = MaskEnforcer(model, connectome).attach(*optimizers)
    assert num_hooks(model, *optimizers) == hooks + len(connectome) + 2
    enforcer.detach()
    assert num_hooks(model, *optimizers) == hooks
    assert same(state_of(model), before)


def test_detached_weights_are_free() -> None:
    model = tiny_model("llama")
    connectome, optimizers = drawn(model), adamw(model)
    MaskEnforcer(model, connectome).attach(*optimizers).detach()
    list(steps("llama", model, optimizers, 1))
    assert leaks(model, connectome) != []


def test_update_kills_weights_for_good_in_spite_of_old_moments() -> None:
    model = tiny_model("gpt2")
    first, (optimizer,) = drawn(model, density=0.8), adamw(model)
    enforcer = MaskEnforcer(model, first).attach(optimizer)
    list(steps("gpt2", model, [optimizer], 3))
    other = drawn(model, density=0.5, seed=1)
    second = Connectome(
        {
            name: SignedMask.pack(
                entry.mask() & other.mask(name), entry.sign(), orientation=entry.orientation
            )
            for name, entry in first.items()
        }
    )
    enforcer.update(second)
    assert leaks(model, second) == []
    name = next(iter(second))
    moment = optimizer.state[dict(model.named_parameters())[name]]["exp_avg"]
    assert moment[~second.mask(name)].any()  # the danger is there
    hooks = num_hooks(model, optimizer)
    for _ in steps("gpt2", model, [optimizer], 3):
        assert leaks(model, second) == []
    assert num_hooks(model, optimizer) == hooks == len(second) + 1


def test_update_lets_weights_live_again() -> None:
    model = tiny_model("llama")
    first, second = drawn(model, seed=0), drawn(model, seed=1)
    optimizers = adamw(model)
    enforcer = MaskEnforcer(model, first).attach(*optimizers)
    list(steps("llama", model, optimizers, 1))
    enforcer.update(second)
    list(steps("llama", model, optimizers, 1))
    assert leaks(model, second) == []
    assert leaks(model, first) != []


def test_a_step_of_one_optimizer_leaves_the_parameters_of_another_alone() -> None:
    model = tiny_model("llama")
    connectome, optimizers = drawn(model), muon(model)
    enforcer = MaskEnforcer(model, connectome).attach(*optimizers)
    name = "model.embed_tokens.weight"  # AdamW's
    with torch.no_grad():
        dict(model.named_parameters())[name].fill_(1.0)
    optimizers[0].step()
    assert leaks(model, connectome) == [name]
    assert enforcer.num_leaks() == int((~connectome.mask(name)).sum())
    optimizers[1].step()
    assert leaks(model, connectome) == []


# ---- parameters that are shared, frozen, sparse or exchanged -------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_tied_weights_are_masked_once_and_stay_tied(kind: str) -> None:
    model = tiny_model(kind)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is embedding.weight
    connectome, optimizers = drawn(model), adamw(model)
    tied = [name for name, p in model.named_parameters() if p is head.weight]
    assert [name for name in connectome if name in tied] == tied
    MaskEnforcer(model, connectome).attach(*optimizers)
    for _ in steps(kind, model, optimizers, 2):
        assert head.weight is embedding.weight
        assert not head.weight.detach()[~connectome.mask(tied[0])].any()


def test_connectome_of_an_untied_model_does_not_fit_a_tied_one() -> None:
    untied = drawn(tiny_model("gpt2", tie_word_embeddings=False))
    assert "lm_head.weight" in untied
    with pytest.raises(HostMismatchError, match=r"no parameter 'lm_head.weight'"):
        MaskEnforcer(tiny_model("gpt2"), untied)


def test_frozen_parameters_are_zeroed_and_otherwise_stay() -> None:
    model = tiny_model("llama")
    connectome = drawn(model)
    frozen = model.model.layers[0].requires_grad_(False)
    MaskEnforcer(model, connectome).attach(*(optimizers := adamw(model)))
    before = state_of(frozen)
    for _ in steps("llama", model, optimizers, 2):
        assert leaks(model, connectome) == []
    assert same(state_of(frozen), before)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_thawed_parameters_have_masked_gradients() -> None:
    model = tiny_model("llama").requires_grad_(False)
    connectome = drawn(model)
    MaskEnforcer(model, connectome).attach(*adamw(model))
    model.requires_grad_(True)(**batch("llama")).loss.backward()
    for name in connectome:
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None
        assert not gradient[~connectome.mask(name)].any()


class SparseHost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.linear = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(self.embedding(rows))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "make",
    [
        lambda model: [SGD(model.parameters(), lr=0.1)],
        lambda model: [torch.optim.Adagrad(model.parameters(), lr=0.1)],
        lambda model: [
            torch.optim.SparseAdam(model.embedding.parameters(), lr=0.1),
            AdamW(model.linear.parameters(), lr=0.1),
        ],
    ],
    ids=["sgd", "adagrad", "sparse_adam"],
)
def test_sparse_gradients_of_embeddings_leave_dead_weights_zero(
    make: Callable[[nn.Module], list[Optimizer]],
) -> None:
    model = SparseHost()
    connectome = drawn(model, density=0.5)
    optimizers = make(model)
    MaskEnforcer(model, connectome).attach(*optimizers)
    for step in range(3):
        model(torch.tensor([step, 1, 2])).square().sum().backward()
        assert model.embedding.weight.grad.is_sparse
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert leaks(model, connectome) == []


def replace_all(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, nn.Parameter(parameter.detach() + 0.01))
    return model


def make_anew(model: nn.Module) -> None:
    """Give it new storage, as loaders do that build on the meta device."""
    fresh = tiny_model("llama", 1)
    model.to("meta").to_empty(device="cpu").load_state_dict(fresh.state_dict())
    for name, buffer in fresh.named_buffers():  # rotary frequencies are in no state dict
        model.get_buffer(name).copy_(buffer)


EXCHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "setattr": replace_all,
    "assign": lambda model: model.load_state_dict(tiny_model("llama", 1).state_dict(), assign=True),
    "to_empty": make_anew,
}


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
def test_parameters_exchanged_after_binding_are_found(
    exchange: Callable[[nn.Module], Any], attached: bool
) -> None:
    model = tiny_model("llama")
    connectome = drawn(model)
    enforcer = MaskEnforcer(model, connectome)
    if attached:
        enforcer.attach(*adamw(model))
    exchange(model)
    optimizers = adamw(model)
    enforcer.attach(*optimizers)
    assert leaks(model, connectome) == []
    for _ in steps("llama", model, optimizers, 2):
        assert leaks(model, connectome) == []
    assert enforcer.num_leaks() == 0


def test_an_optimizer_left_with_old_parameters_is_refused_at_its_next_step() -> None:
    model = tiny_model("llama")
    (optimizer,) = adamw(model)
    MaskEnforcer(model, drawn(model)).attach(optimizer)
    replace_all(model)
    with pytest.raises(ConfigError, match="holds none of the 16 parameters in scope"):
        optimizer.step()


def test_one_exchanged_parameter_is_masked_too() -> None:
    model = tiny_model("llama")
    connectome, (optimizer,) = drawn(model), adamw(model)
    MaskEnforcer(model, connectome).attach(optimizer)
    model.lm_head.weight = nn.Parameter(torch.ones_like(model.lm_head.weight))
    optimizer.add_param_group({"params": [model.lm_head.weight]})
    for _ in steps("llama", model, [optimizer], 2):
        assert leaks(model, connectome) == []


def test_a_tie_that_was_broken_is_an_error_until_it_is_tied_again() -> None:
    model = tiny_model("gpt2")
    enforcer = MaskEnforcer(model, drawn(model))
    model.load_state_dict(tiny_model("gpt2", 1).state_dict(), assign=True)
    assert model.lm_head.weight is not model.transformer.wte.weight
    with pytest.raises(HostMismatchError, match=r"'transformer.wte.weight' was tied .* 2 separate"):
        enforcer.project()
    model.tie_weights()
    enforcer.project()
    assert leaks(model, enforcer.connectome) == []


@pytest.mark.parametrize("bound", [False, True])
def test_resized_embeddings_do_not_fit(bound: bool) -> None:
    model = tiny_model("gpt2")
    connectome = drawn(model)
    if bound:
        enforcer = MaskEnforcer(model, connectome)
    model.resize_token_embeddings(105, mean_resizing=False)
    with pytest.raises(
        HostMismatchError, match=r"wte.weight' is \(105, 32\) in the host, \(97, 32\)"
    ):
        enforcer.project() if bound else MaskEnforcer(model, connectome)


# ---- refused -------------------------------------------------------------------------------------


def test_optimizer_without_a_parameter_in_scope_is_refused_and_nothing_is_hooked() -> None:
    model, other = tiny_model("llama"), tiny_model("llama")
    enforcer = MaskEnforcer(model, drawn(model))
    good, bad = adamw(model)[0], SGD(other.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"the SGD holds none of the 16 .* Make it from this"):
        enforcer.attach(good, bad)
    assert num_hooks(model, good, bad) == 0


def stand_in(name: str, module: str, *bases: type, **attributes: Any) -> Any:
    """Make an object of a class that another library would define."""
    return type(name, bases, {"__module__": module, **attributes})()


def test_deepspeed_parameters_are_refused() -> None:
    model = tiny_model("llama")
    connectome = drawn(model)
    model.lm_head.weight.ds_id = 0
    with pytest.raises(UnsupportedError, match=r"DeepSpeed ZeRO.*Use DDP"):
        MaskEnforcer(model, connectome)


def test_deepspeed_engine_is_refused() -> None:
    model = tiny_model("llama")
    engine = stand_in("DeepSpeedEngine", "deepspeed.runtime.engine", nn.Module)
    engine.module = model
    with pytest.raises(UnsupportedError, match="DeepSpeed ZeRO"):
        MaskEnforcer(engine, drawn(model))


def test_deepspeed_optimizer_is_refused_bare_and_inside_accelerate() -> None:
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

    model = tiny_model("llama")
    inner = adamw(model)[0]
    # As in DeepSpeed it is no torch optimizer, but has one inside, which steps on flat partitions.
    zero = stand_in(
        "DeepSpeedZeroOptimizer",
        "deepspeed.runtime.zero.stage_1_and_2",
        optimizer=inner,
        param_groups=inner.param_groups,
        state=inner.state,
        defaults=inner.defaults,
    )
    enforcer = MaskEnforcer(model, drawn(model))
    wrapped = DeepSpeedOptimizerWrapper.__new__(DeepSpeedOptimizerWrapper)
    wrapped.optimizer = zero
    for optimizer in (zero, wrapped):
        with pytest.raises(UnsupportedError, match="DeepSpeed ZeRO"):
            enforcer.attach(optimizer)


def test_optimizer_that_updates_in_the_backward_pass_is_refused() -> None:
    model = tiny_model("llama")
    lomo = stand_in("Lomo", "lomo_optim.lomo", param_groups=adamw(model)[0].param_groups)
    with pytest.raises(UnsupportedError, match="Lomo updates weights during the backward pass"):
        MaskEnforcer(model, drawn(model)).attach(lomo)


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use")
def test_fsdp1_is_refused(process_group: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = tiny_model("llama")
    connectome = drawn(model)
    flat = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    with pytest.raises(UnsupportedError, match=r"FSDP1, which flattens .*Use FSDP2"):
        MaskEnforcer(flat, connectome)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full_leaks(model: nn.Module, connectome: Connectome) -> list[str]:
    whole = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    return [name for name in connectome if whole[name][~connectome.mask(name)].any()]


def test_a_model_sharded_after_binding_is_bound_again(process_group: None) -> None:
    model = tiny_model("llama")
    connectome = drawn(model)
    enforcer = MaskEnforcer(model, connectome)
    optimizers = adamw(sharded(model))
    enforcer.attach(*optimizers)
    for _ in steps("llama", model, optimizers, 2):
        assert full_leaks(model, connectome) == []


def test_masks_reach_the_shards_after_an_evaluation_left_whole_weights(process_group: None) -> None:
    model = sharded(tiny_model("llama"))
    first, second = drawn(model, seed=0), drawn(model, seed=1)
    optimizers = adamw(model)
    enforcer = MaskEnforcer(model, first).attach(*optimizers)
    with torch.no_grad():
        model(**batch("llama"))
    assert not hasattr(model.lm_head.weight, "full_tensor")  # whole, and soon thrown away
    enforcer.update(second)
    assert full_leaks(model, second) == []
    with torch.no_grad():
        model(**batch("llama"))
    assert enforcer.num_leaks() == 0
    assert full_leaks(model, second) == []
    for _ in steps("llama", model, optimizers, 1):
        assert full_leaks(model, second) == []


# ---- beside transformers' own Trainer ------------------------------------------------------------


class Watch(TrainerCallback):
    """Looks at every step; put after the callback that it watches."""

    def __init__(self, connectome: Connectome) -> None:
        self.connectome = connectome
        self.found: list[list[str]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self.found.append(leaks(parts["model"], self.connectome))


def stock_trainer(
    folder: Path, callbacks: list[TrainerCallback], model: Any = None, **settings: Any
) -> Trainer:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 97, (64, 6), generator=draw)
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **settings,
        },
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    model = tiny_model("gpt2") if model is None else model
    return Trainer(model, arguments, train_dataset=data, callbacks=callbacks)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_torch_fused"},
        {"optim": "adamw_torch", "bf16": True},
        {"optim": "adafactor"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
    ],
    ids=["adamw_torch_fused", "bf16", "adafactor", "sgd"],
)
def test_stock_trainer_keeps_dead_weights_zero_and_carries_the_connectome(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = tiny_model("gpt2")
    connectome = drawn(model)
    callback, watch = MaskCallback(connectome), Watch(connectome)
    before = state_of(model)
    trainer = stock_trainer(tmp_path, [callback, watch], model, **settings)
    trainer.train()
    assert watch.found == [[]] * 4
    assert not same(state_of(model), before)
    for step in (2, 4):
        assert Connectome.from_pretrained(tmp_path / f"checkpoint-{step}/connectome") == connectome
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert leaks(saved, connectome) == []
    assert num_hooks(model, trainer.optimizer.optimizer) == 0
    assert callback.enforcer is None


def test_stock_trainer_without_the_callback_leaks(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    connectome = drawn(model)
    connectome.to(model)
    stock_trainer(tmp_path, [], model, save_strategy="no").train()
    assert leaks(model, connectome) != []


def test_stock_trainer_resumes_under_the_callback_bit_for_bit(tmp_path: Path) -> None:
    connectome = drawn(tiny_model("gpt2"))
    whole = stock_trainer(tmp_path / "whole", [MaskCallback(connectome)])
    whole.train()
    resumed = stock_trainer(
        tmp_path / "resumed", [MaskCallback(connectome)], tiny_model("gpt2", seed=1)
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(state_of(resumed.model), state_of(whole.model))


def test_a_callback_used_twice_leaves_no_hooks_of_a_run_that_failed(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    connectome = drawn(model)
    callback = MaskCallback(connectome)
    parts = {"model": model, "optimizer": adamw(model)[0]}
    unused = SimpleNamespace()
    callback.on_train_begin(unused, unused, unused, **parts)
    callback.on_train_begin(unused, unused, unused, **parts)
    assert num_hooks(model, parts["optimizer"]) == len(connectome) + 1
    callback.on_train_end(unused, unused, unused)
    callback.on_train_end(unused, unused, unused)
    assert num_hooks(model, parts["optimizer"]) == 0


def test_a_connectome_without_a_config_is_enforced_but_not_saved(tmp_path: Path) -> None:
    connectome = Connectome(dict(drawn(tiny_model("gpt2"))))
    watch = Watch(connectome)
    stock_trainer(tmp_path, [MaskCallback(connectome), watch], max_steps=2).train()
    assert watch.found == [[]] * 2
    assert (tmp_path / "checkpoint-2").is_dir()
    assert not (tmp_path / "checkpoint-2" / "connectome").exists()

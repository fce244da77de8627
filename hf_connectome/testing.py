"""Conformance checks for other people's plug-ins: criteria, wirings and hosts.

Each raises AssertionError with what is wrong, also under ``python -O``, and needs no test runner.
They ask for the contract alone; whether a criterion or a wiring is any good is not their question.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.connectome import Connectome
from hf_connectome.controls.counting import whole_bits
from hf_connectome.criteria import CriterionContext
from hf_connectome.errors import ConfigError, ConnectomeError
from hf_connectome.hosts import describe, extract, wire
from hf_connectome.scope import CONV, EMBEDDING, IN_OUT, OUT_IN, RAW, ScopedParameter, resolve
from hf_connectome.seeding import generator
from hf_connectome.selection import keep
from hf_connectome.wirings import RandomWiring

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_connectome.controls import Control
    from hf_connectome.criteria import Criterion
    from hf_connectome.wirings import Wiring

    Case = tuple[str, Tensor, Tensor]

_SCOPE = {
    name: ScopedParameter(name, shape, orientation)
    for name, shape, orientation in (
        ("block.0.weight", (16, 12), OUT_IN),
        ("block.1.weight", (16, 12), OUT_IN),
        ("conv.weight", (4, 3, 2, 2), CONV),
        ("embed.weight", (20, 6), EMBEDDING),
        ("experts", (3, 8, 4), RAW),
    )
}


# ---- criteria ------------------------------------------------------------------------------------


def check_criterion(criterion: Criterion) -> None:
    """Check that a criterion keeps its contract (:class:`~hf_connectome.criteria.Criterion`).

    Scores have the weight's shape, are floating-point and finite on survivors, are the same
    whenever seed, name and generation are, and can be ranked; weight, mask and torch's global
    generator stay as they are. Weights are float32, bfloat16 and float16, 1-D to 3-D, with dead
    ones among them, all zero, and with one or no survivor.

    Raises:
        AssertionError: says what is wrong, and with which weights.

    Example:
        >>> from hf_connectome.criteria import Magnitude
        >>> check_criterion(Magnitude())
    """
    _check_source(criterion)
    for case, weight, mask in _weights():
        label = f"{type(criterion).__name__}.score with {case}"
        context = CriterionContext(name="layer.weight", seed=7, generation=2)
        before, mask_before = weight.clone(), mask.clone()

        def score(
            weight: Tensor = weight, mask: Tensor = mask, context: CriterionContext = context
        ) -> Tensor:
            return criterion.score(weight, mask, context)

        first, second = _twice(score, label)
        _check_score(first, mask, label)
        _expect(torch.equal(weight, before), f"{label} changed the weight in place.")
        _expect(torch.equal(mask, mask_before), f"{label} changed the mask in place.")
        _expect(
            torch.equal(first[mask], second[mask]),
            f"{label} gave other scores for the same seed, name and generation. Draw from "
            "hf_connectome.seeding.generator(context.seed, context.name, context.generation).",
        )
        num_survivors = int(mask.sum())
        kept = keep(first, mask, num_survivors // 2)
        _expect(
            int(kept.sum()) == num_survivors - num_survivors // 2,
            f"{label}: of {num_survivors} survivors {num_survivors // 2} were to go, "
            f"{int(kept.sum())} are left.",
        )


def _weights() -> Iterator[Case]:
    draw = generator(0, "weights for check_criterion")
    for shape in ((8, 6), (3, 4, 5), (12,)):
        weight = torch.randn(shape, generator=draw)
        mask = torch.rand(shape, generator=draw) < 0.5
        everything = torch.ones(shape, dtype=torch.bool)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield f"a dense {dtype} weight of shape {shape}", weight.to(dtype), everything
            yield f"a sparse {dtype} weight of shape {shape}", (weight * mask).to(dtype), mask
    weight, one = torch.randn(5, 4, generator=draw), torch.zeros(5, 4, dtype=torch.bool)
    yield "no survivor", weight * one, one.clone()
    one[2, 3] = True
    yield "one survivor", weight * one, one
    yield "survivors that are all 0", torch.zeros(5, 4), torch.ones(5, 4, dtype=torch.bool)


def _check_score(score: Any, mask: Tensor, label: str) -> None:
    _expect(isinstance(score, torch.Tensor), f"{label} returned a {type(score).__name__}.")
    _expect(
        score.shape == mask.shape,
        f"{label} has shape {tuple(score.shape)}; expected the weight's, {tuple(mask.shape)}.",
    )
    _expect(score.is_floating_point(), f"{label} is {score.dtype}; expected a floating type.")
    bad = int((~torch.isfinite(score[mask])).sum())
    _expect(bad == 0, f"{label} is not finite on {bad} of {int(mask.sum())} survivors.")


# ---- wirings -------------------------------------------------------------------------------------


def check_wiring(wiring: Wiring) -> None:
    """Check that a wiring keeps its contract (:class:`~hf_connectome.wirings.Wiring`).

    It has all parameters of the scope, as they are stored there, each with exactly
    round(density * n) survivors, from one weight to all; it depends on the seed and on neither the
    order of the scope nor torch's global generator; parameters of equal shape get other masks; a
    density that leaves a parameter without weights is refused. A wiring of certain shapes alone
    (``shapes``) is asked for these, where parameters of equal shape get other signs; other shapes
    and other densities are refused.

    Raises:
        AssertionError: says what is wrong, and at which density.

    Example:
        >>> from hf_connectome.wirings import RandomWiring
        >>> check_wiring(RandomWiring())
    """
    _check_source(wiring)
    only = wiring.shapes()
    if only is not None:
        _check_shapes(wiring, only)
        return
    sizes = {name: torch.Size(p.shape).numel() for name, p in _SCOPE.items()}
    densities: list[float | Mapping[str, float]] = [0.25, 0.5, 1.0]
    densities += [{name: 1 / size for name, size in sizes.items()}]
    for density in densities:
        wanted = {
            name: round((density if isinstance(density, float) else density[name]) * size)
            for name, size in sizes.items()
        }
        _check_drawn(wiring, _SCOPE, density, wanted)
    drawn = wiring.build(_SCOPE, 0.25, 1)
    first, second = "block.0.weight", "block.1.weight"
    _expect(
        not torch.equal(drawn.mask(first), drawn.mask(second)),
        f"{type(wiring).__name__} gave {first!r} and {second!r}, of equal shape, the same mask. "
        "Draw from hf_connectome.seeding.generator(seed, name).",
    )
    for impossible in (0.0, 1e-9, 1.5):
        _expect_refusal(wiring, _SCOPE, impossible)


def _check_shapes(wiring: Wiring, only: Mapping[tuple[int, ...], int]) -> None:
    for shape, num_survivors in only.items():
        names = [f"{kind}.{n}" for kind in (OUT_IN, IN_OUT) for n in (0, 1)]
        scope = {name: ScopedParameter(name, shape, name[:-2]) for name in names}
        density = num_survivors / torch.Size(shape).numel()
        wanted = dict.fromkeys(names, num_survivors)
        for given in (density, dict.fromkeys(names, density)):
            _check_drawn(wiring, scope, given, wanted)
        drawn = wiring.build(scope, density, 1)
        label = f"{type(wiring).__name__} gave {names[0]!r}"
        _expect(
            not torch.equal(drawn.sign(names[0]), drawn.sign(names[1])),
            f"{label} and {names[1]!r}, of equal shape, the same mask and signs. "
            "Draw from hf_connectome.seeding.generator(seed, name).",
        )
        if len(shape) == 2:
            _expect(
                torch.equal(drawn.mask(names[0]), drawn.mask(names[2]).T),
                f"{label}, stored (out, in), a mask that is not the transpose of that of "
                f"{names[2]!r}, stored (in, out).",
            )
        _expect_refusal(wiring, scope, density / 2)
        longer = (shape[0] + 1, *shape[1:])
        if longer not in only:
            odd = {names[0]: ScopedParameter(names[0], longer, OUT_IN)}
            _expect_refusal(wiring, odd, density)


def _check_drawn(
    wiring: Wiring,
    scope: Mapping[str, ScopedParameter],
    density: float | Mapping[str, float],
    wanted: Mapping[str, int],
) -> None:
    label = f"{type(wiring).__name__}.build at density {density}"
    drawn, again = _twice(lambda: wiring.build(scope, density, 1), label)
    _expect(isinstance(drawn, Connectome), f"{label} returned a {type(drawn).__name__}.")
    _expect(
        set(drawn.names) == set(scope),
        f"{label} wires {list(drawn.names)}; the scope has {sorted(scope)}.",
    )
    for name, entry in drawn.items():
        here = ScopedParameter(name, entry.shape, entry.orientation)
        _expect(here == scope[name], f"{label}: it has {here}; the scope has {scope[name]}.")
        _expect(
            entry.num_survivors == wanted[name],
            f"{label}: {name!r} has {entry.num_survivors} survivors, expected {wanted[name]}.",
        )
    _expect(drawn == again, f"{label} gave another connectome for the same seed.")
    backwards = wiring.build(dict(reversed(list(scope.items()))), density, 1)
    _expect(drawn == backwards, f"{label} depends on the order of the scope.")


def _expect_refusal(wiring: Wiring, scope: Mapping[str, ScopedParameter], density: float) -> None:
    try:
        drawn = wiring.build(scope, density, 1)
    except ConnectomeError:
        return
    shape = next(iter(scope.values())).shape
    raise AssertionError(
        f"{type(wiring).__name__}.build accepted density {density} of {shape} and gave {drawn!r}; "
        "expected a ScopeError, for a parameter would have no weight, more than there are, or "
        "others than the wiring has."
    )


# ---- hosts ---------------------------------------------------------------------------------------


def check_control(control: Control) -> None:
    """Check that a control keeps its contract (:class:`~hf_connectome.controls.Control`).

    Its twin has parameters of the original only, as they are stored there; it depends on the seed
    if and only if ``uses_seed``; its bits are between 0 and those of the whole; what ``needs_sign``
    says is what happens without signs.

    Raises:
        AssertionError: says what is wrong.

    Example:
        >>> from hf_connectome.controls import controls
        >>> check_control(controls.get("random")())
    """
    _check_source(control)
    kind = type(control).__name__
    for field in ("rung", "keeps", "destroys"):
        text = getattr(control, field, None)
        _expect(isinstance(text, str) and text != "", f"{kind}.{field} is {text!r}.")
    original = RandomWiring().build(_SCOPE, 0.25, 0)
    twin, again = _twice(lambda: control.twin(original, 1), f"{kind}.twin")
    _expect(isinstance(twin, Connectome), f"{kind}.twin returned a {type(twin).__name__}.")
    _expect(twin == again, f"{kind}.twin gave another connectome for the same seed.")
    differs = control.twin(original, 2) != twin
    _expect(
        differs == control.uses_seed,
        f"{kind}.twin gives {'other' if differs else 'equal'} twins for other seeds; uses_seed is "
        f"{control.uses_seed}.",
    )
    for name, entry in twin.items():
        here = ScopedParameter(name, entry.shape, entry.orientation)
        _expect(
            here == _SCOPE.get(name),
            f"{kind}.twin has {here}; the original has {_SCOPE.get(name)}.",
        )
    bits, most = control.bits(original), whole_bits(original)
    _expect(0 <= bits <= most, f"{kind}.bits gave {bits}; expected 0 to {most}.")
    _expect_signs(control, original)


def _expect_signs(control: Control, original: Connectome) -> None:
    bare = original.replace({n: replace(e, sign_bits=None) for n, e in original.items()})
    refused = False
    try:
        control.twin(bare, 1)
    except ConfigError:
        refused = True
    _expect(
        refused == control.needs_sign,
        f"{type(control).__name__}.twin {'refuses' if refused else 'takes'} a mask-only "
        f"connectome; needs_sign is {control.needs_sign}.",
    )


def check_host(model: nn.Module, *, scope: str = "all-matrices") -> None:
    """Check that a model can be host to a connectome.

    The scope is not empty; what is wired is what is read back; dead weights are exactly 0 after a
    step of AdamW with weight decay; a connectome of it is saved and read again. All of it happens
    on a copy of the model.

    Args:
        model: any module; nothing is run forward.
        scope: as in :func:`hf_connectome.scope.resolve`.

    Raises:
        AssertionError: says what is wrong with which parameter.
        ScopeError: the scope matches nothing.

    Example:
        >>> check_host(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)))
    """
    from hf_connectome.config import ConnectomeConfig

    host = copy.deepcopy(model)
    scoped = resolve(host, scope)
    densities = {
        name: max(1, numel // 2) / numel
        for name, numel in ((n, torch.Size(p.shape).numel()) for n, p in scoped.items())
    }
    config = describe(host, ConnectomeConfig(target_modules=scope, density=0.5), scoped)
    drawn = RandomWiring().build(scoped, densities, 0).replace(config=config)
    wire(host, drawn, reset="sign_constant")
    found = extract(host, ConnectomeConfig(target_modules=scope))
    for name, entry in drawn.items():
        same = torch.equal(entry.sign(), found.sign(name))
        _expect(same, f"{name!r} was wired and is read back with another mask or other signs.")
    _check_step(host, drawn)
    with tempfile.TemporaryDirectory() as folder:
        drawn.save_pretrained(folder)
        read = Connectome.from_pretrained(folder, host=model)
        _expect(read == drawn, f"{drawn!r} was saved, {read!r} is read.")


def _check_step(host: nn.Module, connectome: Connectome) -> None:
    from hf_connectome.enforcement import MaskEnforcer

    trained = [p for p in host.parameters() if p.requires_grad]
    _expect(bool(trained), f"{type(host).__name__} has no parameter that is trained.")
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    enforcer = MaskEnforcer(host, connectome).attach(optimizer)
    before = [p.detach().clone() for p in trained]
    torch.stack([p.float().sin().sum() for p in trained]).sum().backward()
    optimizer.step()
    leaks = enforcer.num_leaks()
    _expect(leaks == 0, f"{leaks} dead weights are not exactly 0 after a step of AdamW.")
    moved = any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    _expect(moved, "a step of AdamW moved no weight at all.")


# ---- for all -------------------------------------------------------------------------------------


def _check_source(plug_in: Criterion | Wiring | Control) -> None:
    for field in ("paper", "citation"):
        text = getattr(plug_in, field, None)
        _expect(
            isinstance(text, str) and text != "",
            f"{type(plug_in).__name__}.{field} is {text!r}; expected its source, in words.",
        )


def _twice(make: Callable[[], Any], label: str) -> tuple[Any, Any]:
    """Make something under two states of torch's global generator, which must not move."""
    made = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            made.append(make())
            _expect(
                torch.equal(torch.get_rng_state(), before),
                f"{label} drew from torch's global generator, which the training uses.",
            )
    return made[0], made[1]


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)

"""Time a training step under a 25 % connectome against the dense step and other ways to mask.

    python benchmarks/training_step.py [--sizes gpt2] [--compile off on] [--json FILE]

A step is forward, backward, clipping and optimizer, in float32. Ways take turns in one process;
'to dense' is the median over rounds of the ratio to the dense step of the same round, and 'dense
again' is the noise. Rows: every size with every number of tokens, with the first of optimizers,
accumulations and compile; then each further one of these alone, with the first number of tokens.
'saved MB' is what autograd keeps for the backward pass beside the parameters.

The other ways: W * mask in the forward pass, the same by torch.nn.utils.parametrize, by
torch.nn.utils.prune, and PEFT's SHiRA, which trains sparse values on a frozen base.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from hosts import BLOCK, SIZES, fresh
from measuring import finish, interleaved, parser_of, ratio
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.utils import parametrize, prune
from transformers.utils import logging as transformers_logging

from hf_connectome import MaskEnforcer
from hf_connectome.hosts import check_host, wire
from hf_connectome.outer_loops.thresholds import HardThresholds
from hf_connectome.scope import resolve
from hf_connectome.wirings import wirings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from hf_connectome import Connectome

DENSITY = 0.25
REPEATS = 2
WAYS = (
    "dense",
    "dense again",
    "ours",
    "ours, other mask dtype",
    "outer loop iht",
    "W * mask",
    "parametrize",
    "prune",
    "SHiRA",
)
DEFAULT_WAYS = [way for way in WAYS if "other" not in way]


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    size: str
    tokens: int
    optimizer: str
    accumulation: int
    compile: bool
    device: str


class Masked(nn.Module):
    """W * mask, for torch.nn.utils.parametrize."""

    def __init__(self, mask: Tensor) -> None:
        """Hold the mask."""
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight."""
        return weight * self.mask


def homes(model: nn.Module, connectome: Connectome) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Give every module and attribute that holds a parameter in scope, with its float mask."""
    masks = {
        id(p): connectome.mask(name).to(p) for name, p in check_host(connectome, model).items()
    }
    found = [
        (module, leaf, masks[id(p)])
        for module in model.modules()
        for leaf, p in module.named_parameters(recurse=False)
        if id(p) in masks
    ]
    yield from found


def optimizers_of(name: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon on the matrices of the body with AdamW on the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return [torch.optim.AdamW(trained, lr=1e-4, fused=True)]
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    apart = {id(p) for p in [*embeddings, model.get_output_embeddings().weight]}
    body = [p for p in trained if p.ndim == 2 and id(p) not in apart]
    rest = [p for p in trained if p.ndim != 2 or id(p) in apart]
    return [torch.optim.Muon(body, lr=1e-4), torch.optim.AdamW(rest, lr=1e-4, fused=True)]


def shira(model: nn.Module) -> nn.Module:
    """Put SHiRA on all linear layers, as many values as a quarter of a square one."""
    from peft import ShiraConfig, get_peft_model

    hidden = model.config.hidden_size
    config = ShiraConfig(r=round(DENSITY * hidden / 2), target_modules="all-linear", random_seed=0)
    return get_peft_model(model, config)


def reparametrize(way: str, model: nn.Module, connectome: Connectome) -> None:
    """Let a masked copy take the place of each parameter in scope."""
    for module, leaf, mask in homes(model, connectome):
        if way == "prune":
            prune.custom_from_mask(module, leaf, mask)
        else:
            parametrize.register_parametrization(module, leaf, Masked(mask))


def made(
    way: str, setting: Setting
) -> tuple[nn.Module, Callable[..., Any], list[torch.optim.Optimizer]]:
    """Return the model, its forward pass and the optimizers of one way to train.

    Raises:
        Exception: the way cannot have this host or optimizer; the benchmark notes why.
    """
    model: Any = fresh(setting.size, setting.device)
    if way == "SHiRA":
        if setting.optimizer != "adamw":
            raise ValueError("it trains no matrices")
        model = shira(model)
        return model, model, optimizers_of(setting.optimizer, model)
    optimizers = optimizers_of(setting.optimizer, model)
    if way.startswith("dense"):
        return model, model, optimizers
    connectome = wirings.get("random")().build(resolve(model), DENSITY, seed=0)
    wire(model, connectome, reset="sign_constant")
    if way.startswith("ours"):
        enforcer = MaskEnforcer(model, connectome).attach(*optimizers)
        for bound in enforcer._bound if "other" in way else ():
            bound.mask = bound.mask.to(torch.bool if setting.device == "cpu" else torch.float32)
    elif way == "outer loop iht":
        parameters = dict(named(model, connectome))
        thresholds = HardThresholds(parameters).attach(optimizers[0])
        thresholds.n_drop = {n: round((1 - DENSITY) * p.numel()) for n, p in parameters.items()}
    elif way == "W * mask":
        masks = {name: connectome.mask(name).to(p) for name, p in named(model, connectome)}

        def forward(**inputs: Tensor) -> Any:
            weights = {name: p * masks[name] for name, p in named(model, connectome)}
            return functional_call(model, weights, (), inputs)

        return model, forward, optimizers
    else:
        reparametrize(way, model, connectome)
    return model, model, optimizers


def named(model: nn.Module, connectome: Connectome) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters in scope by name."""
    return [(name, p) for name, p in model.named_parameters() if name in connectome]


def step_of(way: str, setting: Setting) -> tuple[Callable[[], None], float]:
    """Return one training step, run once, and the megabytes that it saves for backward."""
    model, forward, optimizers = made(way, setting)
    if setting.compile:
        forward = torch.compile(forward)
    trained = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    rows = max(setting.tokens // BLOCK, 1)
    ids = torch.randint(0, 2048, (rows, BLOCK), device=setting.device)

    def step() -> None:
        for _ in range(setting.accumulation):
            (forward(input_ids=ids, labels=ids).loss / setting.accumulation).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step()
    known = {p.data_ptr() for p in model.parameters()}
    return step, saved_bytes(lambda: forward(input_ids=ids, labels=ids), known) / 1e6


def tried_step(way: str, setting: Setting) -> tuple[Callable[[], None], float] | str:
    """Return what :func:`step_of` does, or why this way cannot."""
    try:
        step, saved = step_of(way, setting)
    except Exception as error:  # noqa: BLE001 (whatever a peer raises, the others go on)
        return f"{type(error).__name__}: {error}".split("\n")[0][:60]

    def job() -> None:
        for _ in range(REPEATS):
            step()

    return job, saved


def saved_bytes(forward: Callable[[], Any], known: set[int]) -> int:
    """Return the bytes that autograd saves, each storage once, without those at ``known``."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        is_sparse = tensor.layout == torch.sparse_coo
        for part in (tensor._indices(), tensor._values()) if is_sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()  # so that no storage is used twice
    del kept
    return sum(sizes.values())


def compare(setting: Setting, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row a way; one that refuses says so."""
    tried = {way: tried_step(way, setting) for way in ways}
    steps = {way: found[0] for way, found in tried.items() if not isinstance(found, str)}
    times = interleaved(steps, rounds, setting.device)
    rows = []
    for way in ways:
        row = {
            "host": setting.size,
            "tokens": setting.tokens * setting.accumulation,
            "optimizer": setting.optimizer,
            "accumulation": setting.accumulation,
            "compile": "on" if setting.compile else "off",
            "way": way,
        }
        found = tried[way]
        if isinstance(found, str):
            row |= {"s a step": "-", "to dense": found, "saved MB": "-"}
        else:
            row |= {
                "s a step": statistics.median(times[way]) / REPEATS,
                "to dense": f"{ratio(times, way, 'dense'):.3f}",
                "saved MB": f"{found[1]:.1f}",
            }
        rows.append(row)
    return rows


def settings_of(options: argparse.Namespace) -> Iterator[Setting]:
    """Give the settings: all sizes and tokens, then each further choice by itself."""
    for size in options.sizes:
        first = Setting(
            size,
            options.tokens[0],
            options.optimizers[0],
            options.accumulations[0],
            options.compile[0] == "on",
            options.device,
        )
        yield first
        yield from (replace(first, tokens=tokens) for tokens in options.tokens[1:])
        yield from (replace(first, optimizer=name) for name in options.optimizers[1:])
        yield from (replace(first, accumulation=n) for n in options.accumulations[1:])
        yield from (replace(first, compile=word == "on") for word in options.compile[1:])


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="+", default=["gpt2-tiny", "llama-tiny"], choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048], help="a micro-batch")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--accumulations", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--compile", nargs="+", default=["off"], choices=["off", "on"])
    parser.add_argument("--ways", nargs="+", default=DEFAULT_WAYS, choices=WAYS)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    if "on" in options.compile and options.device == "cpu" and shutil.which("c++") is None:
        parser.error("--compile on needs a C++ compiler, and there is no c++ here.")
    ways = ["dense", *(way for way in options.ways if way != "dense")]
    rows = []
    for setting in settings_of(options):
        rows += compare(setting, ways, options.rounds)
        torch.compiler.reset()
    finish(options, rows)


if __name__ == "__main__":
    main()

"""Measure AdamW with state for survivors alone beside torch's AdamW, and what DDP exchanges.

    python benchmarks/optimizer_memory.py [--sizes gpt2-small gpt2] [--json FILE]

Optimizers step in turns on the same weights and gradients under the same masks, each with its
enforcement; 'to dense' is the median over rounds of the ratio to torch's AdamW of the same kernel
in the same round. 'state' is the bytes of moments, step counts and places of survivors as a share
of the dense ones', 'exchanged' the bytes that a rank gives to all-reduce in a step as a share of
plain DDP's.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import torch
from hosts import SIZES, fresh
from measuring import finish, interleaved, parser_of, peak_memory, ratio
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from hf_connectome import MaskEnforcer
from hf_connectome.hosts import wire
from hf_connectome.optimizers import SurvivorAdamW, SurvivorAllReduce
from hf_connectome.scope import resolve
from hf_connectome.wirings import wirings

if TYPE_CHECKING:
    from hf_connectome import Connectome

KERNELS = {
    "one by one": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


def exchanged_bytes(model: nn.Module, connectome: Connectome) -> int:
    """Return what one step of DDP, with one rank, gives to all-reduce; it leaves gradients."""
    wrapped = DistributedDataParallel(model)
    exchange = SurvivorAllReduce(MaskEnforcer(wrapped, connectome).attach())
    exchange.register(wrapped)
    ids = torch.arange(16, device=next(model.parameters()).device).view(1, 16)
    wrapped(input_ids=ids, labels=ids).loss.backward()
    return exchange.num_bytes


def compare(size: str, density: float, rounds: int, device: str) -> list[dict[str, Any]]:
    """Return a row a kernel and kind of state."""
    model = fresh(size, device)
    connectome = wirings.get("random")().build(resolve(model), density, seed=0)
    wire(model, connectome, reset="sign_constant")
    exchanged = exchanged_bytes(model, connectome) / sum(p.nbytes for p in model.parameters())
    optimizers: dict[str, AdamW] = {}
    for kernel, options in KERNELS.items():
        optimizers[f"dense, {kernel}"] = AdamW(model.parameters(), lr=1e-4, **options)
        optimizers[f"survivors, {kernel}"] = SurvivorAdamW(model.parameters(), lr=1e-4, **options)
    for optimizer in optimizers.values():
        MaskEnforcer(model, connectome).attach(optimizer)
    times = interleaved({name: o.step for name, o in optimizers.items()}, rounds, device)
    dense_bytes = state_bytes(optimizers["dense, foreach"])
    rows = []
    for name, optimizer in optimizers.items():
        kind, kernel = name.split(", ")
        rows.append(
            {
                "host": size,
                "density": connectome.density,
                "kernel": kernel,
                "state of": kind,
                "state MB": state_bytes(optimizer) / 1e6,
                "state": f"{state_bytes(optimizer) / dense_bytes:.4f}",
                "s a step": statistics.median(times[name]),
                "to dense": f"{ratio(times, name, f'dense, {kernel}'):.3f}",
                "exchanged": "1.0000" if kind == "dense" else f"{exchanged:.4f}",
            }
        )
    return rows


def state_bytes(optimizer: AdamW) -> int:
    """Return the bytes of an optimizer's state, everything included."""
    if isinstance(optimizer, SurvivorAdamW):
        return optimizer.num_state_bytes
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values())


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--sizes", nargs="+", default=["gpt2-small"], choices=SIZES)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.26, 0.05])
    options = parser.parse_args()
    backend = "gloo" if options.device == "cpu" else "nccl"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    rows = []
    for size in options.sizes:
        for density in options.densities:
            rows += compare(size, density, options.rounds, options.device)
    distributed.destroy_process_group()
    finish(options, rows, peak_memory=peak_memory(options.device))


if __name__ == "__main__":
    main()

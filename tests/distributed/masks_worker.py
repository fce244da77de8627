"""Train tiny hosts under masks on all processes, replicated (DDP) and sharded (FSDP2): OUTPUT."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from ranks import on_every_rank
from ranks import run as run_worker
from safetensors.torch import save_file
from tiny import drawn, tiny_model
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from hf_connectome import Connectome, MaskEnforcer
from hf_connectome.hosts import full_tensor

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 3
ROWS = 8


@dataclass(frozen=True)
class Run:
    """One way to train."""

    kind: str
    optimizer: str
    wrap: str = "single"
    evaluate: bool = False  # before every step; leaves FSDP2's root unsharded


RUNS = {
    "ddp": Run("gpt2", "sgd", "ddp"),
    "ddp_adamw": Run("gpt2", "adamw", "ddp"),
    "ddp_muon": Run("llama", "muon", "ddp"),
    "ddp_bucket_view": Run("gpt2", "sgd", "ddp_bucket_view"),
    "ddp_no_sync": Run("gpt2", "sgd", "ddp_no_sync"),
    "ddp_experts": Run("mixtral", "sgd", "ddp"),
    "fsdp2": Run("gpt2", "sgd", "fsdp2"),  # tied; 97 rows of embeddings on two ranks
    "fsdp2_adamw": Run("gpt2", "adamw", "fsdp2"),
    "fsdp2_evaluated": Run("llama", "sgd", "fsdp2", evaluate=True),
    "fsdp2_empty_shard": Run("vit", "sgd", "fsdp2"),  # position embeddings have one row
    "fsdp2_experts": Run("mixtral", "sgd", "fsdp2"),  # three experts on two ranks
}


def optimizers(name: str, model: nn.Module) -> list[Optimizer]:
    if name == "adamw":
        return [AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)]
    if name == "sgd":
        return [SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)]
    body = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is q for q in body)]
    return [torch.optim.Muon(body, lr=1e-3, weight_decay=0.1), SGD(rest, lr=0.1)]


def wrapped(model: Any, wrap: str) -> Any:
    if wrap == "single":
        return model
    if wrap.startswith("ddp"):
        return DistributedDataParallel(model, gradient_as_bucket_view=wrap == "ddp_bucket_view")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in next(m for m in model.modules() if isinstance(m, nn.ModuleList)):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(kind: str, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return this rank's part of a step's rows."""
    draw = torch.Generator().manual_seed(step)
    if kind == "vit":
        rows = {
            "pixel_values": torch.randn(ROWS, 3, 8, 8, generator=draw),
            "labels": torch.randint(0, 3, (ROWS,), generator=draw),
        }
    else:
        tokens = torch.randint(2, 97, (ROWS, 6), generator=draw)
        rows = {"input_ids": tokens, "labels": tokens}
    return {name: value.chunk(world_size)[rank] for name, value in rows.items()}


def backward(forward: Any, run: Run, rows: dict[str, Tensor]) -> float:
    """Accumulate the gradients of the mean loss."""
    parts = 2 if run.wrap == "ddp_no_sync" else 1
    total = 0.0
    for part in range(parts):
        last = part == parts - 1
        with contextlib.nullcontext() if last else forward.no_sync():
            loss = forward(**{n: v.chunk(parts)[part] for n, v in rows.items()}).loss / parts
            loss.backward()
        total += loss.item()
    return total


def num_dead(tensors: dict[str, Tensor], connectome: Connectome) -> int:
    """Count values that are not 0 where the mask says dead, over all ranks."""
    return sum(
        int(full_tensor(tensors[name])[~connectome.mask(name)].count_nonzero())
        for name in connectome
    )


def train(run: Run, rank: int = 0, world_size: int = 1) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what was seen at every step, and the final weights, whole."""
    model = tiny_model(run.kind)
    connectome = drawn(model, density=0.4)
    forward = wrapped(model, run.wrap)
    stepping = optimizers(run.optimizer, model)
    enforcer = MaskEnforcer(forward, connectome).attach(*stepping)
    seen: dict[str, Any] = {"losses": [], "leaks": [], "gradients": [], "norms": []}
    for step in range(STEPS):
        rows = batch(run.kind, step, rank, world_size)
        if run.evaluate:
            with torch.no_grad():
                forward(**rows)
            enforcer.project()
        seen["losses"].append(backward(forward, run, rows))
        parameters = dict(model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        seen["gradients"].append(num_dead(gradients, connectome))
        seen["norms"].append(float(full_tensor(nn.utils.clip_grad_norm_(parameters.values(), 0.5))))
        for optimizer in stepping:
            optimizer.step()
            optimizer.zero_grad()
        seen["leaks"].append(num_dead(parameters, connectome) + enforcer.num_leaks())
    seen["unbound"] = len(connectome) - enforcer.num_bound
    seen["rows"] = {n: len(getattr(p, "_local_tensor", p)) for n, p in parameters.items()}
    return seen, {name: full_tensor(p).clone() for name, p in parameters.items()}


def digest(weights: dict[str, Tensor]) -> str:
    parts = (weights[name].numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main(output: Path) -> dict[str, Any]:
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    results: dict[str, Any] = {"world_size": world_size}
    for name, run in RUNS.items():
        seen, weights = train(run, rank, world_size)
        results[name] = on_every_rank({**seen, "digest": digest(weights)})
        if rank == 0:
            save_file(weights, output / f"{name}.safetensors")
    return results


if __name__ == "__main__":
    run_worker(main)

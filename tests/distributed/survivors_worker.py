"""Train tiny hosts on all processes with gradients of survivors alone, and whole ones: OUTPUT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generations_worker import outcome, trainer
from masks_worker import Run as Training
from masks_worker import backward, batch, digest, num_dead, optimizers
from ranks import on_every_rank
from ranks import run as run_worker
from tiny import drawn, tiny_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hf_connectome import MaskEnforcer
from hf_connectome.optimizers import SurvivorAdamW, SurvivorAllReduce

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 4
CHANGE_AT = 2


@dataclass(frozen=True)
class Run:
    """One way to exchange gradients; ``bucket_mb`` small makes several buckets."""

    optimizer: str = "sgd"
    density: float = 0.26
    bucket_mb: float = 25
    as_view: bool = False
    no_sync: bool = False


RUNS = {
    "plain": Run(),
    "dense": Run(density=1.0),
    "buckets": Run(bucket_mb=0.01),
    "views": Run(as_view=True, bucket_mb=0.01),
    "no_sync": Run(no_sync=True),
    "survivor_adamw": Run("survivor_adamw", density=0.05),
}


def train(run: Run, *, survivors_only: bool) -> dict[str, Any]:
    """Return the weights' digest and what travelled; the masks change on the way."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    model = tiny_model("gpt2")
    connectome = drawn(model, density=run.density)
    forward = DistributedDataParallel(
        model, gradient_as_bucket_view=run.as_view, bucket_cap_mb=run.bucket_mb
    )
    if run.optimizer == "survivor_adamw":
        stepping = [SurvivorAdamW(model.parameters(), lr=1e-2)]
    else:
        stepping = optimizers(run.optimizer, model)
    enforcer = MaskEnforcer(forward, connectome).attach(*stepping)
    exchange = SurvivorAllReduce(enforcer)
    if survivors_only:
        exchange.register(forward)
    kind = Training("gpt2", run.optimizer, "ddp_no_sync" if run.no_sync else "ddp")
    dead = 0
    for step in range(STEPS):
        if step == CHANGE_AT:
            enforcer.update(drawn(model, density=run.density, seed=1))
        backward(forward, kind, batch("gpt2", step, rank, world_size))
        parameters = dict(model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items()}
        dead += num_dead(gradients, enforcer.connectome)
        for optimizer in stepping:
            optimizer.step()
            optimizer.zero_grad()
    return {
        # A dead weight may be -0 where its gradient travelled, so zeros lose their sign.
        "digest": digest({name: p.detach() + 0.0 for name, p in parameters.items()}),
        "dead": dead + enforcer.num_leaks(),
        "num_bytes": exchange.num_bytes,
        "whole_bytes": STEPS * sum(p.nbytes for p in model.parameters()),
        "packed_bytes": STEPS
        * sum(
            4 * (connectome[name].num_survivors if name in connectome else p.numel())
            for name, p in parameters.items()
        ),
    }


def main(output: Path) -> dict[str, Any]:
    distributed.init_process_group("gloo")
    results: dict[str, Any] = {}
    for name, run in RUNS.items():
        results[name] = {
            "whole": on_every_rank(train(run, survivors_only=False)),
            "survivors": on_every_rank(train(run, survivors_only=True)),
        }
    for name, lean in {"dense": False, "lean": True}.items():
        state = "survivors" if lean else "dense"
        options = {"optimizer_state": state, "survivor_all_reduce": lean}
        run = trainer(output / name, optim="adamw_torch", **options)
        run.train()
        results[f"evolved_{name}"] = on_every_rank(outcome(run))
    return results


if __name__ == "__main__":
    run_worker(main)

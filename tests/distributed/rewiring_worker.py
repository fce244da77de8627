"""Train under links that move on all processes, and evolve so: OUTPUT."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from masks_worker import digest
from ranks import on_every_rank
from ranks import run as run_worker
from tiny import drawn, tiny_model
from transformers import Trainer, TrainingArguments

from hf_connectome.hosts import wire
from hf_connectome.rewiring_callbacks import RewiringCallback

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ("rigl:interval=2", "mest:interval=2", "chts:interval=2", "granet:interval=2,density=0.1")
STEPS = 6
BATCH = 8
ACCUMULATION = 2


def train(spec: str, folder: Path, num_processes: int) -> dict[str, Any]:
    """Train a tiny Llama (no dropout) on the same batches, however many processes share them."""
    model = tiny_model("llama")
    first = drawn(model)
    wire(model, first, reset="sign_constant")
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 97, (STEPS * BATCH * ACCUMULATION, 6), generator=draw)
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // num_processes,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        save_strategy="no",
        use_cpu=True,
        ddp_backend="gloo" if num_processes > 1 else None,
        disable_tqdm=True,
        report_to="none",
    )
    callback = RewiringCallback(first, spec)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )
    trainer.train()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {
        "world_size": trainer.accelerator.num_processes,
        "connectome": callback.connectome.digest,
        "masks": {n: callback.connectome[n].mask_bits.tobytes().hex() for n in callback.connectome},
        "weights": digest(weights),
        "moved": [r for r in trainer.state.log_history if "births" in r],
        "changed": callback.connectome != first,
    }


def main(output: Path) -> dict[str, Any]:
    results: dict[str, list[Any]] = {}
    for spec in METHODS:
        found = train(spec, output / "runs", int(os.environ["WORLD_SIZE"]))
        results[spec] = on_every_rank(found)
    return results


if __name__ == "__main__":
    run_worker(main)

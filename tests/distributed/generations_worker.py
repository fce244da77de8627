"""Evolve a tiny model on all processes: whole, interrupted and resumed, and led astray: OUTPUT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from masks_worker import digest
from ranks import on_every_rank
from ranks import run as run_worker
from tiny import tiny_model
from transformers import TrainerCallback

from hf_connectome import GenerationalArguments, GenerationalTrainer
from hf_connectome.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path


class StopAt(TrainerCallback):
    """Ends training early, as an interrupt does after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        control.should_training_stop = state.global_step == self.step


class LeadAstray(TrainerCallback):
    """Changes the weights of one rank before a boundary, as a broken machine would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if state.global_step == 3 and args.process_index == 1:
            with torch.no_grad():
                for parameter in parts["model"].parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))


def settings(
    folder: Path, criterion: str = "magnitude", **options: Any
) -> tuple[GenerationalArguments, list[dict[str, torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 97, (128, 6), generator=draw)
    arguments = GenerationalArguments(
        str(folder),
        generations=2,
        criterion=criterion,
        calibration_batches=2,
        steps_per_generation=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        save_steps=5,
        logging_steps=1,
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    return arguments, [{"input_ids": row, "labels": row} for row in rows]


def trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    seed: int = 0,
    criterion: str = "magnitude",
    **options: Any,
) -> GenerationalTrainer:
    arguments, rows = settings(folder, criterion, **options)
    return GenerationalTrainer(
        tiny_model("gpt2", seed), arguments, train_dataset=rows, callbacks=list(callbacks)
    )


def outcome(run: GenerationalTrainer) -> dict[str, Any]:
    weights = {name: p.detach() for name, p in run.model.named_parameters()}
    alive = {name: run.connectome.mask(name) for name in run.connectome}
    return {
        "world_size": run.accelerator.num_processes,
        "distributed": str(run.accelerator.distributed_type),
        "generation": run.generation,
        "step": run.state.global_step,
        "connectome": run.connectome.digest,
        "weights": digest(weights),
        "leaks": sum(int(weights[n][~mask].count_nonzero()) for n, mask in alive.items()),
        "num_survivors": run.connectome.num_survivors,
        "losses": [r["loss"] for r in run.state.log_history if "loss" in r],
        "lineage": list(run.connectome.lineage),
    }


def main(output: Path) -> dict[str, Any]:
    results: dict[str, list[Any]] = {}
    whole = trainer(output / "whole")
    whole.train()
    results["whole"] = on_every_rank(outcome(whole))

    interrupted = trainer(output / "resumed", StopAt(5))
    interrupted.train()
    results["interrupted"] = on_every_rank(outcome(interrupted))
    resumed = trainer(output / "resumed", seed=1)  # other weights, so that nothing is left of them
    resumed.train(resume_from_checkpoint=True)
    results["resumed"] = on_every_rank(outcome(resumed))
    boundary = trainer(output / "boundary", seed=1)
    boundary.train(resume_from_checkpoint=str(output / "whole" / "checkpoint-4"))
    results["boundary"] = on_every_rank(outcome(boundary))

    for criterion in ("movement", "taylor"):
        measured = trainer(output / criterion, criterion=criterion)
        measured.train()
        results[criterion] = on_every_rank(outcome(measured))

    try:
        trainer(output / "astray", LeadAstray()).train()
        results["astray"] = on_every_rank("no error")
    except RunError as error:
        results["astray"] = on_every_rank(str(error))
    return results


if __name__ == "__main__":
    run_worker(main)

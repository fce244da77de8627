"""Run iht and search on all processes: whole, interrupted and resumed, and led astray: OUTPUT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generations_worker import LeadAstray, StopAt, outcome, settings
from ranks import on_every_rank
from ranks import run as run_worker
from tiny import tiny_model

from hf_connectome.errors import RunError
from hf_connectome.outer_loops import OuterLoopArguments, outer_loop

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerCallback

    from hf_connectome.trainer import GenerationalTrainer

LOOPS = {
    "iht": OuterLoopArguments(outer_loop="iht"),
    "search": OuterLoopArguments(
        outer_loop="search", search_steps=2, search_parents=1, search_eval_blocks=16
    ),
}


def trainer(
    folder: Path, loop: str, *callbacks: TrainerCallback, seed: int = 0
) -> GenerationalTrainer:
    arguments, rows = settings(folder)
    return outer_loop(LOOPS[loop])(
        tiny_model("gpt2", seed), arguments, train_dataset=rows, callbacks=list(callbacks)
    )


def main(output: Path) -> dict[str, Any]:
    results = {}
    for loop in LOOPS:
        whole = trainer(output / loop, loop)
        whole.train()
        results[loop] = on_every_rank(outcome(whole))
    trainer(output / "resumed", "iht", StopAt(5)).train()
    resumed = trainer(output / "resumed", "iht", seed=1)  # other weights: nothing is left of them
    resumed.train(resume_from_checkpoint=True)
    results["resumed"] = on_every_rank(outcome(resumed))
    try:
        trainer(output / "astray", "iht", LeadAstray()).train()
        results["astray"] = on_every_rank("no error")
    except RunError as error:
        results["astray"] = on_every_rank(str(error))
    return results


if __name__ == "__main__":
    run_worker(main)

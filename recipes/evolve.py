# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Evolve a connectome: train, prune, reset, for every generation; or by another outer loop.

Runs anywhere, on the built-in corpus:

    accelerate launch recipes/evolve.py --config cpu

and at the paper's scale:

    accelerate launch recipes/evolve.py --config paper_gpt2 --dataset HuggingFaceFW/fineweb

--outer_loop iht keeps the largest weights after every step, --outer_loop search varies wirings and
chooses among them (docs/OUTER_LOOPS.md).

The same command again goes on where it stopped. What it writes into --output_dir: one loadable
connectome a generation (generation-0 … generation-6), checkpoints, metrics.jsonl and curves.png.
With --push_to_hub owner/name each generation is also a commit and a tag of that Hub repository.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.figures import evolution_curves
from hf_connectome.arguments import GenerationalArguments
from hf_connectome.data import DataArguments, collate, load_corpus, tokenizer_digest
from hf_connectome.errors import ConfigError, ConnectomeError, HubError, RunError
from hf_connectome.fresh import ModelArguments, fresh_model
from hf_connectome.hub import url as hub_url
from hf_connectome.outer_loops import OuterLoopArguments, outer_loop
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.provenance import hub_id
from hf_connectome.runs import claim, deciding, last_checkpoint, refuse_named_checkpoint, step_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_connectome.data import Corpus
    from hf_connectome.trainer import GenerationalTrainer

CONFIGS = Path(__file__).parent / "configs"


def build_trainer(
    model_arguments: ModelArguments,
    data: DataArguments,
    training: GenerationalArguments,
    loop: OuterLoopArguments,
    command: Sequence[str],
) -> tuple[GenerationalTrainer, Corpus]:
    """Load the corpus, build the fresh model, and put both under a trainer."""
    with training.main_process_first(desc="tokenising"):
        corpus = load_corpus(data)
    model = fresh_model(
        model_arguments, tokenizer=corpus.tokenizer, block_size=data.block_size, seed=training.seed
    )
    try:
        trainer = outer_loop(loop)(
            model,
            training,
            tokenizer_name=hub_id(data.tokenizer),
            tokenizer_digest=tokenizer_digest(corpus.tokenizer) if corpus.tokenizer else None,
            facts={
                "argv": command,
                "dataset": data.dataset,
                "corpus": corpus.describe().replace("\n", "; "),
                "corpus_digest": corpus.identity().rpartition(" ")[2],
                "num_train_tokens": corpus.num_train_tokens,
                "block_size": data.block_size,
                "tokens_per_step": training.train_batch_size
                * training.gradient_accumulation_steps
                * training.world_size
                * data.block_size,
            },
            train_dataset=corpus.train,
            eval_dataset=corpus.evaluation,
            data_collator=collate,
            processing_class=corpus.tokenizer,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if isinstance(error, ConnectomeError):
            raise
        raise ConfigError(f"transformers' Trainer refuses the settings: {error}") from error
    return trainer, corpus


def lineage_table(trainer: GenerationalTrainer) -> str:
    """Return the generations as lines of text."""
    lines = ["generation   density    survivors   held-out loss"]
    for row in trainer.connectome.lineage:
        loss = f"{row['eval_loss']:.3f}" if "eval_loss" in row else "not measured"
        lines.append(
            f"{row['generation']:>10}   {row['density']:>7.1%} {row['num_survivors']:>12,}"
            f"   {loss:>13}"
        )
    last = trainer.connectome
    lines.append(
        f"{trainer.generation:>10}   {last.density:>7.1%} {last.num_survivors:>12,}   "
        f"{'to inherit':>13}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the outer loop from the command line."""
    with friendly_errors("evolve.py"):
        model_arguments, data, training, loop = parse(
            (ModelArguments, DataArguments, GenerationalArguments, OuterLoopArguments),
            argv,
            prog="evolve.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
        )
        if training.output_dir in (None, "trainer_output"):
            training.output_dir = (
                f"runs/{Path(data.dataset).name}-{Path(model_arguments.model).name}"
            )
        refuse_named_checkpoint(training.resume_from_checkpoint)
        folder = Path(training.output_dir)
        transformers_logging.disable_progress_bar()
        settings = deciding(explicit_settings((model_arguments, data, training, loop)))
        claim(folder, settings, record=False)
        command = [__file__, *(sys.argv[1:] if argv is None else argv)]
        trainer, corpus = build_trainer(model_arguments, data, training, loop, command)
        claim(folder, settings | {"corpus": corpus.identity()})
        speaks = trainer.is_world_process_zero()
        checkpoint = last_checkpoint(folder)
        if speaks:
            print(corpus.describe())
            print(f"model: {trainer.model.num_parameters():,} parameters, {trainer.connectome}")
            if checkpoint is not None:
                done = f"step {step_of(checkpoint)} of {training.max_steps}"
                print(f"going on from {checkpoint}: {done}")
        left_here = train(trainer, checkpoint)
        if trainer.generation < training.generations:
            raise RunError(
                f"training stopped at step {trainer.state.global_step} of {training.max_steps}, in "
                f"generation {trainer.generation} of {training.generations}: the data gave no more "
                "batches. Lower per_device_train_batch_size, or give more text."
            )
        if speaks:
            print(lineage_table(trainer))
            draw(trainer, folder)
            saved = sorted(f.name for f in folder.glob("generation-*"))
            print(f"saved {', '.join(saved)} in {folder}")
            print(f"next: accelerate launch recipes/inherit.py --connectome {folder}")
        if left_here is not None:
            raise left_here


def train(trainer: GenerationalTrainer, checkpoint: Path | None) -> HubError | None:
    """Run or go on; return why generations of a finished run are not on the Hub, if they are not.

    What was evolved is shown first: a lost connection is no reason to hide it.
    """
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except HubError as error:
        if trainer.generation < trainer.args.generations:
            raise
        return error
    if trainer.args.push_to_hub and trainer.is_world_process_zero():
        print(f"pushed every generation: {hub_url(str(trainer.hub_model_id))}")
    return None


def draw(trainer: GenerationalTrainer, folder: Path) -> None:
    """Draw curves.png, or say why there is none."""
    try:
        evolution_curves(trainer.state.log_history, folder / "curves.png")
    except (ConfigError, OSError) as error:
        print(f"no curves.png: {error}")


if __name__ == "__main__":
    main()

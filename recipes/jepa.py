# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome"]
# ///
r"""Train a Connectome-JEPA: a language model whose tokens travel through a graph of neurons.

Runs anywhere, on the built-in corpus and the worm's 300 neurons:

    accelerate launch recipes/jepa.py --config jepa

on a graph of your own, or on a twin of the worm's with the same degrees:

    accelerate launch recipes/jepa.py --config jepa --wiring file --wiring_file edges.csv \
      --neurons_file neurons.csv
    accelerate launch recipes/jepa.py --config jepa --twin degrees --output_dir runs/jepa-degrees

The same command again goes on where it stopped. What it writes into --output_dir: model (loadable
by AutoModelForCausalLM once hf_connectome.models was imported), checkpoints, metrics.jsonl with
every term of the loss, and results.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_connectome.callbacks import MetricsFile, StepProgress, hide_display
from hf_connectome.data import DataArguments, collate, load_corpus
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.metrics.formulas import bits_per_byte
from hf_connectome.models.connectome_jepa.arguments import JepaArguments, build_graph, build_model
from hf_connectome.models.connectome_jepa.training import TermsTrainer, artefact_bytes, num_alive
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.runs import claim, deciding, last_checkpoint, refuse_named_checkpoint, step_of
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_connectome.data import Corpus
    from hf_connectome.graphs import NeuronGraph

CONFIGS = Path(__file__).parent / "configs"


def build_trainer(
    arguments: JepaArguments,
    graph: NeuronGraph,
    corpus: Corpus,
    training: TrainingArguments,
    block_size: int,
) -> TermsTrainer:
    """Put a fresh model and the corpus under a trainer with a bar and a file of metrics."""
    if corpus.tokenizer is None:
        raise ConfigError("the corpus is tokens without a tokenizer; name one with --tokenizer.")
    model = build_model(
        arguments,
        graph,
        vocab_size=len(corpus.tokenizer),
        tokenizer=corpus.tokenizer,
        block_size=block_size,
        seed=training.seed,
    )
    trainer = TermsTrainer(
        model,
        training,
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
        processing_class=corpus.tokenizer,
    )
    if hide_display(trainer):
        label = arguments.twin or arguments.wiring
        tokens = tokens_per_step(training, block_size)
        trainer.add_callback(StepProgress(training.max_steps, lambda _: label, tokens))
    trainer.add_callback(MetricsFile())
    return trainer


def tokens_per_step(training: TrainingArguments, block_size: int) -> int:
    """Return the tokens of one optimizer step, over all processes."""
    blocks = training.train_batch_size * training.gradient_accumulation_steps
    return int(blocks * training.world_size * block_size)


def results(trainer: TermsTrainer, corpus: Corpus, graph: NeuronGraph) -> dict[str, Any]:
    """Measure the trained model; every process takes part."""
    loss = trainer.evaluate()["eval_loss"]
    assert corpus.num_eval_bytes is not None
    model: Any = trainer.model
    return {
        "step": trainer.state.global_step,
        "eval_loss": loss,
        "bits_per_byte": bits_per_byte([loss * corpus.num_eval_tokens], [corpus.num_eval_bytes]),
        "neurons": graph.num_neurons,
        "edges": graph.num_edges,
        "parameters": num_alive(model),
        "artefact_bytes": artefact_bytes(model),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    with friendly_errors("jepa.py"):
        arguments, data, training = parse(
            (JepaArguments, DataArguments, TrainingArguments),
            argv,
            prog="jepa.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
        )
        if training.max_steps < 1:
            raise ConfigError(f"max_steps is {training.max_steps}; expected at least 1.")
        if training.output_dir in (None, "trainer_output"):
            training.output_dir = f"runs/jepa-{arguments.twin or arguments.wiring}"
        refuse_named_checkpoint(training.resume_from_checkpoint)
        folder = Path(training.output_dir)
        transformers_logging.disable_progress_bar()
        settings = deciding(explicit_settings((arguments, data, training)))
        claim(folder, settings, record=False)
        graph = build_graph(arguments)
        with training.main_process_first(desc="tokenising"):
            corpus = load_corpus(data)
        trainer = build_trainer(arguments, graph, corpus, training, data.block_size)
        claim(folder, settings | {"corpus": corpus.identity()})
        checkpoint = last_checkpoint(folder, connectome=False)
        if trainer.is_world_process_zero():
            print(corpus.describe())
            print(
                f"graph: {graph.num_neurons} neurons ({len(graph.inputs)} in, "
                f"{len(graph.outputs)} out), {graph.num_edges:,} edges, {arguments.direction} them"
            )
            if checkpoint is not None:
                print(f"going on from {checkpoint}: step {step_of(checkpoint)}")
        train(trainer, checkpoint, tokens_per_step(training, data.block_size))
        report(trainer, results(trainer, corpus, graph), folder)


def train(trainer: TermsTrainer, checkpoint: Path | None, tokens: int) -> None:
    """Run or go on, and say how fast."""
    if checkpoint is not None and step_of(checkpoint) >= trainer.args.max_steps:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state.global_step = step_of(checkpoint)
        return
    before = 0 if checkpoint is None else step_of(checkpoint)
    done = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    rate = (done.global_step - before) * tokens / done.metrics["train_runtime"]
    if trainer.is_world_process_zero():
        print(f"{rate:,.0f} tokens a second")


def report(trainer: TermsTrainer, measured: dict[str, Any], folder: Path) -> None:
    """Save the model, and write and print what was measured."""
    trainer.save_model(str(folder / "model"))
    if not trainer.is_world_process_zero():
        return
    file = folder / "results.json"
    with refused_writes_named(file):
        write_atomically(file, (json.dumps(measured, indent=1) + "\n").encode())
    for name, value in measured.items():
        print(f"{name:<14} {value:,}" if isinstance(value, int) else f"{name:<14} {value:.4f}")
    print(f"saved {folder / 'model'}")


if __name__ == "__main__":
    main()

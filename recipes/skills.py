# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Find the skills of a small model as connectomes, test them, and teach it without forgetting.

Runs anywhere, offline, in about three minutes on two cores; --seeds 4 for a claim:

    python recipes/skills.py

The texts are three parts of the running Python's own sources: code (without comments and
docstrings), prose (those comments and docstrings) and tables (the character maps of encodings).
For every seed a small GPT-2 learns all three. Then the skill of each is found by Fisher information
and by activation, and lesioned beside as many links by lot and of largest magnitude. Then a fresh
one learns the three one after the other, once with links of their own for each, once by plain
fine-tuning with as many links. What it writes into --output_dir: seed-*.json, the skills of every
seed as connectomes, results.json, table.md and skills.png. The same command again computes only the
seeds that are missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.interval_panels import interval_panels
from hf_connectome.callbacks import MaskCallback, StepProgress
from hf_connectome.continual import TaskSequence
from hf_connectome.data import collate, document_key, pack, tokenizer_digest, train_bpe
from hf_connectome.data.documents import hold_out
from hf_connectome.data.source_parts import read_parts
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import mean_estimate, paired_difference
from hf_connectome.fresh import ModelArguments, fresh_model
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.runs import claim, deciding
from hf_connectome.skill_finding import METHODS, find_skill
from hf_connectome.skill_tests import (
    SkillReport,
    largest_links,
    losses,
    markdown_tables,
    rises,
    run_skill_tests,
)
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

    from hf_connectome.connectome import Connectome
    from hf_connectome.continual import Train

    Blocks = list[dict[str, Any]]

HELD_OUT = 0.1
"""Fraction of the documents that nothing learns from."""
BATCH = 16
NUM_TEST_BATCHES = 12
TEST_BATCH = 8
EXTENDING = ("seeds", "first_seed")
OWN, SHARED = "links of its own", "plain fine-tuning"


@dataclass
class SkillArguments:
    """Skills and tasks of a small GPT-2 on parts of the running Python's sources."""

    output_dir: str = field(default="runs/skills", metadata={"help": "Where results go."})
    seeds: int = field(default=1, metadata={"help": "Models; a claim needs four."})
    first_seed: int = field(default=0, metadata={"help": "First of the seeds."})
    steps: int = field(default=400, metadata={"help": "Steps that learn all texts together."})
    task_steps: int = field(
        default=120, metadata={"help": "Steps a task; a third more once its links are chosen."}
    )
    density: float = field(default=0.05, metadata={"help": "Links of a skill over weights."})
    task_density: float = field(default=0.25, metadata={"help": "Links of a task over weights."})
    blocks: int = field(
        default=96, metadata={"help": "Blocks that show a skill, as many that show the others."}
    )
    lots: int = field(default=4, metadata={"help": "Lesions by lot that are averaged."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Of AdamW, with a cosine."})
    block_size: int = field(default=64, metadata={"help": "Tokens in a block."})
    vocab_size: int = field(default=1024, metadata={"help": "Tokens of the BPE."})
    max_bytes: int = field(default=500_000, metadata={"help": "Text that is read of each part."})
    model_overrides: str = field(
        default="n_layer=2,n_embd=64,n_head=4,n_positions=64",
        metadata={"help": "Sizes of the GPT-2."},
    )

    @property
    def retrain_steps(self) -> int:
        """Steps a task once its links are chosen."""
        return max(1, self.task_steps // 3)

    def __post_init__(self) -> None:
        """Refuse empty runs."""
        for name in ("seeds", "steps", "task_steps", "lots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.blocks < 2:
            raise ConfigError(
                f"blocks is {self.blocks}; expected at least 2, one for each other text."
            )


# ---- texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Blocks of one part, to learn from and held out."""

    train: Blocks
    batches: list[dict[str, torch.Tensor]]


def prepare(arguments: SkillArguments) -> tuple[dict[str, Text], PreTrainedTokenizerFast]:
    """Read the parts, train the tokenizer on what may be learned from, and cut blocks."""
    parts = read_parts(arguments.max_bytes)
    sides = {}
    for name, texts_of in parts.items():
        held = hold_out(np.array([document_key(text)[0] for text in texts_of]), HELD_OUT, name)
        sides[name] = [
            [t for t, out in zip(texts_of, held, strict=True) if out == side]
            for side in (False, True)
        ]
    learned = [text for train, _ in sides.values() for text in train]
    tokenizer = train_bpe(learned, arguments.vocab_size)

    def blocks(texts: list[str], name: str) -> Blocks:
        cut = np.concatenate(list(pack(texts, tokenizer, arguments.block_size, name=name)))
        return [{"input_ids": row} for row in cut.astype(np.int64)]

    texts = {}
    for name, (train, held_out) in sides.items():
        tested = blocks(held_out, f"held-out {name}")
        needed = NUM_TEST_BATCHES * TEST_BATCH
        if len(tested) < needed:
            raise ConfigError(
                f"held-out {name} has {len(tested)} blocks, the tests need {needed}. Raise "
                "--max_bytes or lower --block_size."
            )
        # Far apart in the held-out text, so that batches are of different documents.
        spread = np.linspace(0, len(tested) - 1, needed).astype(int).reshape(NUM_TEST_BATCHES, -1)
        batches = [collate([tested[place] for place in places]) for places in spread]
        texts[name] = Text(blocks(train, name), batches)
    least = min(len(text.train) for text in texts.values())
    return {n: Text(t.train[:least], t.batches) for n, t in texts.items()}, tokenizer


# ---- training ------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    blocks: Blocks,
    steps: int,
    seed: int,
    arguments: SkillArguments,
    *callbacks: TrainerCallback,
    label: str,
) -> None:
    """Train in place by a stock Trainer."""
    settings = TrainingArguments(
        output_dir=str(Path(arguments.output_dir) / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        weight_decay=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        seed=seed,
    )
    trainer = Trainer(
        model, settings, train_dataset=blocks, data_collator=collate, callbacks=list(callbacks)
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(StepProgress(steps, lambda _: label, BATCH * arguments.block_size))
    trainer.train()
    model.to("cpu")


def trainer_of(text: Text, steps: int, seed: int, arguments: SkillArguments, label: str) -> Train:
    """Return what TaskSequence calls to train."""
    return lambda model, callback: train(
        model, text.train, steps, seed, arguments, callback, label=label
    )


def learn_in_turn(
    model: PreTrainedModel, texts: Mapping[str, Text], seed: int, arguments: SkillArguments
) -> tuple[dict[str, list[float]], TaskSequence]:
    """Give every task links of its own; return each one's loss, right after it and at the end."""
    sequence, right_after = TaskSequence(model), {}
    for name, text in texts.items():
        sequence.learn(
            name,
            trainer_of(text, arguments.task_steps, seed, arguments, f"{OWN}: {name}"),
            density=arguments.task_density,
            retrain=trainer_of(
                text, arguments.retrain_steps, seed, arguments, f"{OWN}: {name}, chosen"
            ),
        )
        right_after[name] = mean_loss(model, text)
    return {
        task.name: [
            right_after[task.name],
            mean_loss(sequence.model_of(task.connectome), texts[task.name]),
        ]
        for task in sequence.tasks
    }, sequence


def learn_over(
    model: PreTrainedModel,
    texts: Mapping[str, Text],
    links: Connectome,
    seed: int,
    arguments: SkillArguments,
) -> dict[str, list[float]]:
    """Fine-tune one task after the other, on as many links of every tensor as ``links`` has."""
    right_after: dict[str, float] = {}
    mask: list[TrainerCallback] = []
    for name, text in texts.items():
        label = f"{SHARED}: {name}"
        train(model, text.train, arguments.task_steps, seed, arguments, *mask, label=label)
        if not mask:
            mask = [MaskCallback(largest_links(model, links))]
        train(model, text.train, arguments.retrain_steps, seed, arguments, *mask, label=label)
        right_after[name] = mean_loss(model, text)
    return {name: [right_after[name], mean_loss(model, text)] for name, text in texts.items()}


def mean_loss(model: nn.Module, text: Text) -> float:
    """Return the mean held-out loss in nats per token."""
    found = losses(model, text.batches)
    return sum(found) / len(found)


# ---- one seed ------------------------------------------------------------------------------------


def run_seed(
    seed: int,
    texts: Mapping[str, Text],
    tokenizer: PreTrainedTokenizerFast,
    arguments: SkillArguments,
) -> dict[str, Any]:
    """Train the models of one seed and measure them."""
    sizes = ModelArguments("gpt2", arguments.model_overrides)

    def fresh() -> PreTrainedModel:
        return fresh_model(sizes, tokenizer=tokenizer, block_size=arguments.block_size, seed=seed)

    print(f"seed {seed}: learning {', '.join(texts)} together")
    model = fresh()
    everything = [block for text in texts.values() for block in text.train]
    train(model, everything, arguments.steps, seed, arguments, label="all together")
    reports = {}
    for method in METHODS:
        print(f"seed {seed}: skills by {method}")
        skills = {name: skill_of(name, model, texts, method, arguments) for name in texts}
        for name, skill in skills.items():
            skill.save_pretrained(Path(arguments.output_dir) / f"seed-{seed}" / f"{method}-{name}")
        batches = {name: text.batches for name, text in texts.items()}
        report = run_skill_tests(model, skills, batches, num_lots=arguments.lots, seed=seed)
        reports[method] = report.as_json()
    print(f"seed {seed}: one task after the other")
    own, sequence = learn_in_turn(fresh(), texts, seed, arguments)
    links = sequence.tasks[-1].connectome
    births = [{"task": t.name, "births": t.num_births, "free": t.num_free} for t in sequence.tasks]
    shared = learn_over(fresh(), texts, links, seed, arguments)
    return {"skills": reports, "tasks": {OWN: own, SHARED: shared}, "links": births}


def skill_of(
    name: str, model: nn.Module, texts: Mapping[str, Text], method: str, arguments: SkillArguments
) -> Connectome:
    """Find the skill of one text against the others."""

    def shown(text: Text, number: int) -> list[dict[str, torch.Tensor]]:
        places = np.linspace(0, len(text.train) - 1, number).astype(int)
        return [collate([text.train[place]]) for place in places]

    others = [text for other, text in texts.items() if other != name]
    return find_skill(
        model,
        shown(texts[name], arguments.blocks),
        density=arguments.density,
        method=method,
        other=[batch for text in others for batch in shown(text, arguments.blocks // len(others))],
    )


# ---- all seeds -----------------------------------------------------------------------------------


def report(runs: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Print the tables and write them, the figure and all figures as JSON."""
    found = {
        method: [SkillReport.from_json(run["skills"][method]) for run in runs] for method in METHODS
    }
    over = f"{len(runs)} seeds" if len(runs) > 1 else "batches of one seed: a hint, no claim"
    lines = [f"95 % intervals are over {over}."]
    for method, reports in found.items():
        lines += ["", f"Rise of the loss by lesions of skills found by {method}:", ""]
        lines.append(markdown_tables(reports))
    forgetting = {
        arm: {
            task: mean_estimate(
                [run["tasks"][arm][task][1] - run["tasks"][arm][task][0] for run in runs]
            )
            for task in runs[0]["tasks"][arm]
        }
        for arm in (OWN, SHARED)
    }
    lines += ["", task_table(runs)]
    text = "\n".join(lines)
    print(text)
    for name, content in (("table.md", text), ("results.json", json.dumps(list(runs), indent=1))):
        with refused_writes_named(output / name):
            write_atomically(output / name, (content + "\n").encode())
    panels = {
        f"lesions of skills by {method}": {
            skill if kind == "skill" else f"{skill}, {kind}": row
            for (skill, kind), row in rises(reports).items()
        }
        for method, reports in found.items()
    }
    try:
        interval_panels(
            {**panels, "tasks in turn: forgotten at the end": forgetting},
            output / "skills.png",
            label="rise of the held-out loss (nats per token)",
        )
    except ConfigError as error:
        print(f"no skills.png: {error}")
    print(f"saved in {output}")


def task_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return losses right after each task and at the end, of both arms, and what was forgotten."""
    rows = ["| task | links born | free | arm | loss right after | at the end | forgotten |"]
    rows.append("|---" * 7 + "|")
    for links in runs[0]["links"]:
        for arm in (OWN, SHARED):
            after, end = ([run["tasks"][arm][links["task"]][i] for run in runs] for i in (0, 1))
            lost = paired_difference(end, after)
            shown = f"{lost.mean:+.3f}"
            if lost.low is not None and lost.high is not None:
                shown += f" ({lost.low:+.3f} to {lost.high:+.3f})"
            counts = f"{links['births']:,} | {links['free']:,}" if arm == OWN else "- | -"
            means = " | ".join(f"{sum(x) / len(x):.3f}" for x in (after, end))
            rows.append(f"| {links['task']} | {counts} | {arm} | {means} | {shown} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example from the command line."""
    with friendly_errors("skills.py"):
        (arguments,) = parse((SkillArguments,), argv, prog="skills.py", description=__doc__ or "")
        output = Path(arguments.output_dir)
        transformers_logging.disable_progress_bar()
        settings = deciding(explicit_settings((arguments,)))
        settings = {key: value for key, value in settings.items() if key not in EXTENDING}
        claim(output, settings, record=False)
        texts, tokenizer = prepare(arguments)
        # Another Python has other sources, which give another tokenizer.
        claim(output, settings | {"tokenizer": tokenizer_digest(tokenizer)})
        for name, text in texts.items():
            print(f"{name}: {len(text.train):,} blocks of {arguments.block_size} tokens")
        runs = []
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            file = output / f"seed-{seed}.json"
            if not file.is_file():
                run = run_seed(seed, texts, tokenizer, arguments)
                with refused_writes_named(file):
                    write_atomically(file, json.dumps(run, indent=1).encode())
            runs.append(json.loads(file.read_text(encoding="utf-8")))
        report(runs, output)


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Compare outer loops at equal training tokens and equal final density, by what a child learns.

    python recipes/studies/outer_loops.py --output_dir runs/outer_loops

Every seed evolves one connectome by each loop (generational, one-shot magnitude, iht, search) from
the same fresh model on the same text; a child of each then learns from text that no parent saw, in
the same order, beside a random and a dense child. The same command again does only what is
missing; --shard 0/2 takes every second seed, so that two processes share the work. What it writes:
a folder a run, children/*.json, and results.json, table.md and curves.png of what is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.figures import inheritance_curves
from hf_connectome.arguments import GenerationalArguments
from hf_connectome.data import DataArguments, collate, load_corpus, tokenizer_digest
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import ArmResult, by_arm
from hf_connectome.evaluation.paired import PairedDifference, paired_difference
from hf_connectome.fresh import ModelArguments, fresh_model
from hf_connectome.inheritance import InheritanceArguments, train_arm
from hf_connectome.outer_loops import OuterLoopArguments, outer_loop
from hf_connectome.parsing import friendly_errors, parse
from hf_connectome.runs import claim, last_checkpoint
from hf_connectome.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_connectome.connectome import Connectome
    from hf_connectome.data import Corpus

GENERATIONS, DENSITY, CHILD_STEPS = 6, 0.8**6, 150
MODEL = ModelArguments(
    model="gpt2",
    model_overrides="n_layer=2,n_embd=64,n_head=2,n_positions=64,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0",
)
LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "generational": ({}, {}),
    "one-shot": ({}, {"generations": 1, "prune_fraction": 1 - DENSITY}),
    "iht": ({"outer_loop": "iht"}, {}),
    "search": ({"outer_loop": "search", "search_steps": 8, "search_parents": 2}, {}),
}
"""Name -> settings of the loop and of its training."""
CONTROLS = ("random", "dense")


@dataclass
class StudyArguments:
    """Where the study is made, on what text and with which seeds."""

    output_dir: str = field(
        default="runs/outer_loops", metadata={"help": "Where runs and results go."}
    )
    dataset: str = field(
        default="python-stdlib", metadata={"help": "Corpus, as recipes/evolve.py takes it."}
    )
    steps: int = field(
        default=240,
        metadata={"help": f"Steps of every outer loop; a multiple of {GENERATIONS}."},
    )
    seeds: int = field(default=4, metadata={"help": "Connectomes of each loop, paired by seed."})
    shard: str = field(
        default="0/1", metadata={"help": "Which seeds: i/n takes i, i + n, i + 2 n…"}
    )

    def __post_init__(self) -> None:
        """Refuse steps that the generations cannot share."""
        if self.steps < 1 or self.steps % GENERATIONS:
            raise ConfigError(
                f"steps is {self.steps}; expected a multiple of {GENERATIONS}, such as 240."
            )

    @property
    def own_seeds(self) -> range:
        """The seeds of this process."""
        first, slash, count = self.shard.partition("/")
        if not (slash and first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            raise ConfigError(f"shard is {self.shard!r}; expected i/n with i below n, such as 0/2.")
        return range(int(first), self.seeds, int(count))


def corpora(dataset: str) -> tuple[Corpus, Corpus]:
    """Return the parents' text and the children's, cut by one tokenizer."""
    common: dict[str, Any] = {
        "dataset": dataset,
        "tokenizer": "bpe:1024",
        "block_size": 64,
        "max_eval_tokens": 8192,
    }
    parents = load_corpus(DataArguments(part="0:0.8", **common))
    return parents, load_corpus(DataArguments(part="0.8:1", **common), parents.tokenizer)


def training_settings(seed: int, learning_rate: float, steps: int) -> dict[str, Any]:
    """Return what parents and children share."""
    return {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "seed": seed,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 50,
    }


def evolve(loop: str, seed: int, corpus: Corpus, folder: Path, total: int) -> Connectome:
    """Evolve a connectome in ``total`` steps, or go on with it."""
    assert corpus.tokenizer is not None
    of_loop, of_training = LOOPS[loop]
    steps = total // of_training.get("generations", GENERATIONS)
    scheduled = total if loop == "iht" else steps
    arguments = GenerationalArguments(
        str(folder),
        steps_per_generation=steps,
        save_steps=total,
        save_total_limit=1,
        **training_settings(seed, 3e-3, scheduled) | of_training,
    )
    trainer = outer_loop(OuterLoopArguments(**of_loop))(
        fresh_model(MODEL, tokenizer=corpus.tokenizer, block_size=64, seed=seed),
        arguments,
        tokenizer_digest=tokenizer_digest(corpus.tokenizer),
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=True if last_checkpoint(folder) else None)
    return trainer.connectome


def child(arm: str, seed: int, connectome: Connectome, corpus: Corpus, scratch: Path) -> ArmResult:
    """Train one child; its arm is named after the loop that its connectome comes from."""
    settings = training_settings(seed, 1.5e-3, CHILD_STEPS)
    result = train_arm(
        arm if arm in CONTROLS else "connectome",
        seed,
        connectome=connectome,
        corpus=corpus,
        arguments=InheritanceArguments(connectome=str(scratch), steps=CHILD_STEPS),
        training=TrainingArguments(str(scratch), eval_steps=30, **settings),
    )
    return replace(result, arm=arm)


def run_seed(seed: int, texts: tuple[Corpus, Corpus], output: Path, steps: int) -> None:
    """Do what is missing of one seed; controls are of the generational connectome."""
    for arm in (*LOOPS, *CONTROLS):
        file = output / "children" / f"{arm}-seed{seed}.json"
        if file.is_file():
            continue
        loop = arm if arm in LOOPS else "generational"
        connectome = evolve(loop, seed, texts[0], output / f"{loop}-seed{seed}", steps)
        result = child(arm, seed, connectome, texts[1], output / "scratch")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(result)).encode())
        print(f"seed {seed}  {arm:<13} {result.losses[-1]:.3f}", flush=True)


def stored(output: Path) -> list[ArmResult]:
    """Return every child that is there, arms in their order, seeds in theirs."""
    files = (output / "children").glob("*.json")
    results = [ArmResult(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    places = {arm: place for place, arm in enumerate((*LOOPS, *CONTROLS))}
    return sorted(results, key=lambda r: (places[r.arm], r.seed))


def difference(ours: Sequence[ArmResult], theirs: Sequence[ArmResult]) -> PairedDifference | None:
    """Compare final losses over the seeds that both have; None where there is none."""
    other = {run.seed: run.losses[-1] for run in theirs}
    pairs = [(run.losses[-1], other[run.seed]) for run in ours if run.seed in other]
    return paired_difference(*map(list, zip(*pairs, strict=True))) if pairs else None


def _cell(found: PairedDifference | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:+.3f} (one seed)"
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def report(results: Sequence[ArmResult], output: Path) -> str:
    """Write results.json, table.md and curves.png; return the table."""
    arms = by_arm(results)
    lines = [
        "| child of | final loss | before step 1 | minus generational (95 % interval) "
        "| minus dense (95 % interval) | survivors | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    document: dict[str, Any] = {"runs": [asdict(run) for run in results], "differences": {}}
    for arm, runs in arms.items():
        final, first = (fmean(run.losses[place] for run in runs) for place in (-1, 0))
        to = {
            name: None if arm == name else difference(runs, arms.get(name, []))
            for name in ("generational", "dense")
        }
        document["differences"][arm] = {n: d and asdict(d) for n, d in to.items()}
        share = runs[0].num_survivors / runs[0].num_weights
        lines.append(
            f"| {arm} | {final:.3f} | {first:.3f} | {_cell(to['generational'])} "
            f"| {_cell(to['dense'])} | {runs[0].num_survivors:,} ({share:.1%}) | {len(runs)} |"
        )
    table = "\n".join(lines) + "\n"
    write_atomically(output / "table.md", table.encode())
    write_atomically(output / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    inheritance_curves({arm: [run.curve for run in runs] for arm, runs in arms.items()},
                       output / "curves.png")  # fmt: skip
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    with friendly_errors("outer_loops.py"):
        (study,) = parse((StudyArguments,), argv, prog="outer_loops.py", description=__doc__ or "")
        seeds, output = study.own_seeds, Path(study.output_dir)
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()
        texts = corpora(study.dataset)
        identities = {"parents": texts[0].identity(), "children": texts[1].identity()}
        claim(output, identities | {"steps": study.steps})
        for seed in seeds:
            run_seed(seed, texts, output, study.steps)
        print(report(stored(output), output))


if __name__ == "__main__":
    main()

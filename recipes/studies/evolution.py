# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Which setting of the outer loop finds the connectome that a child learns best from?

For every variant and seed: evolve a connectome, then train one fresh child under it on text that
evolution never saw. All variants of a seed have the same fresh model, data order and budget, and
all children the same first values but for the connectome. By default the variants are the criteria:

    python recipes/studies/evolution.py --output_dir runs/criteria --shard 0/2 &
    python recipes/studies/evolution.py --output_dir runs/criteria --shard 1/2

Any other setting can be one, alone or with others:

    python recipes/studies/evolution.py --output_dir runs/resets \
      --variants reset=sign_constant reset=tensor_scale reset=init_std+carry_values=true

All else is in recipes/configs/evolution_study.yaml; options override it. The same command again
does only what is missing. What it writes into --output_dir: runs/*.json (one a variant and seed),
and from all of them, whenever one is done, results.json, table.md and differences.png.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.drawing import BLUE, FAINT, GREY, written_figure
from hf_connectome.arguments import GenerationalArguments
from hf_connectome.criteria import criteria
from hf_connectome.data import DataArguments, collate, load_corpus, tokenizer_digest
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.paired import PairedDifference, paired_difference
from hf_connectome.fresh import ModelArguments, fresh_model
from hf_connectome.inheritance import InheritanceArguments, train_arm
from hf_connectome.inheritance.results import run_name
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.reset import resets
from hf_connectome.runs import claim, deciding
from hf_connectome.storage import refused_writes_named, write_atomically
from hf_connectome.trainer import GenerationalTrainer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hf_connectome.data import Corpus

CONFIGS = Path(__file__).parents[1] / "configs"
FIRST = "magnitude"
"""The paper's criterion, with which the others are compared by default."""
VARIED = (
    *("criterion", "selection", "pruning_schedule", "budget", "min_survivors", "structure"),
    *("reset", "magnitude", "carry_values", "rewiring"),
)
"""Settings of which variants are made; each leaves the number of survivors and steps alone."""
SELECTION = {"wanda": "per-row"}
"""What a paper asks for; the others rank per tensor."""


@dataclass
class StudyArguments:
    """What is compared."""

    variants: list[str] = field(
        default_factory=lambda: [FIRST, *(name for name in criteria if name != FIRST)],
        metadata={
            "help": "Criteria, or settings as reset=tensor_scale+budget=erk; the others are "
            "compared with the first one."
        },
    )
    seeds: int = field(default=4, metadata={"help": "Connectomes and children per variant."})
    child_reset: str = field(
        default="sign_constant",
        metadata={"help": "First values of every child, whatever its connectome records."},
    )
    child_steps: int = field(default=150, metadata={"help": "Optimizer steps of a child."})
    child_part: str = field(
        default="0.8:1", metadata={"help": "Part of the training documents for the children."}
    )
    shard: str = field(
        default="0/1",
        metadata={"help": "Do the i-th of n shares of the runs, as 'i/n', a process each."},
    )

    def __post_init__(self) -> None:
        """Refuse unknown settings and shares that there are not."""
        for variant in self.variants:
            settings_of_variant(variant)
        if not self.variants:
            raise ConfigError("variants is empty; expected criteria, or settings as reset=keep.")
        resets.get(self.child_reset)
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; expected at least 1.")
        parts = self.shard.split("/")
        if (
            len(parts) != 2
            or not all(p.isdecimal() for p in parts)
            or int(parts[0]) >= int(parts[1])
        ):
            raise ConfigError(f"shard is {self.shard!r}; expected 'i/n' with i < n, such as 0/2.")

    def runs(self) -> list[tuple[str, int]]:
        """Return this share of the runs; seeds are the outer loop, so that pairs come early."""
        share, num_shares = map(int, self.shard.split("/"))
        pairs = [(name, seed) for seed in range(self.seeds) for name in self.variants]
        return pairs[share::num_shares]


def settings_of_variant(text: str) -> dict[str, Any]:
    """Return the settings of ``criterion`` or of ``setting=value+...``.

    Raises:
        ConfigError: it is neither, or no setting that a variant can be made of.
        UnknownNameError: no such criterion, selection or reset.
    """
    if "=" not in text:
        criteria.get(text)
        return {"criterion": text, "selection": SELECTION.get(text, "per-tensor")}
    settings: dict[str, Any] = {}
    for part in text.split("+"):
        name, _, value = part.partition("=")
        if name not in VARIED:
            raise ConfigError(f"variant {text!r}: {name!r} cannot vary. Use {', '.join(VARIED)}.")
        settings[name] = yaml.safe_load(value)
    for name, known in (("criterion", criteria), ("reset", resets)):
        if name in settings:
            known.get(settings[name])
    return settings


@dataclass(frozen=True)
class Run:
    """What one variant and seed gave. Seconds are of this process on one thread."""

    variant: str
    seed: int
    num_survivors: int
    digest: str
    loss: float
    """Held-out loss of the child at its end."""
    start_loss: float
    step_seconds: float
    boundary_seconds: float
    """Mean of the generations' ends: measuring, scoring, ranking, writing."""
    seconds: float


class TimedTrainer(GenerationalTrainer):
    """Notes how long the ends of generations take."""

    boundary_seconds = 0.0

    def advance_to(self, step: int) -> None:
        """Cross the boundaries, if there are any, and add their seconds."""
        began = time.process_time()
        super().advance_to(step)
        self.boundary_seconds += time.process_time() - began


def do_run(
    variant: str,
    seed: int,
    *,
    model: ModelArguments,
    corpus: Corpus,
    child_corpus: Corpus,
    training: GenerationalArguments,
    child: InheritanceArguments,
) -> Run:
    """Evolve one connectome and train its child."""
    began = time.process_time()
    settings = copy.deepcopy(training)  # its __post_init__ is not meant to run twice
    settings.seed = settings.data_seed = seed
    for name, value in settings_of_variant(variant).items():
        setattr(settings, name, value)
    settings.pruning.check_settings()
    assert corpus.tokenizer is not None
    block_size = len(corpus.train[0]["input_ids"])
    with tempfile.TemporaryDirectory() as folder:
        settings.output_dir = folder
        trainer = TimedTrainer(
            fresh_model(model, tokenizer=corpus.tokenizer, block_size=block_size, seed=seed),
            settings,
            tokenizer_digest=tokenizer_digest(corpus.tokenizer),
            train_dataset=corpus.train,
            data_collator=collate,
        )
        trainer.train()
        evolved = time.process_time() - began
    grown = train_arm(
        "connectome",
        seed,
        connectome=trainer.connectome,
        corpus=child_corpus,
        arguments=child,
        training=settings,
    )
    return Run(
        variant=variant,
        seed=seed,
        num_survivors=trainer.connectome.num_survivors,
        digest=trainer.connectome.digest,
        loss=grown.losses[-1],
        start_loss=grown.losses[0],
        step_seconds=(evolved - trainer.boundary_seconds) / settings.max_steps,
        boundary_seconds=trainer.boundary_seconds / settings.generations,
        seconds=time.process_time() - began,
    )


# ---- results -------------------------------------------------------------------------------------


def stored(folder: Path) -> list[Run]:
    """Return the runs that are done, whichever process did them."""
    files = sorted((folder / "runs").glob("*.json"))
    return [Run(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


@dataclass(frozen=True)
class Row:
    """One variant over its seeds."""

    variant: str
    losses: dict[int, float]
    """Seed -> held-out loss of the child."""
    difference: PairedDifference | None
    """To the reference, over the seeds that both have."""
    boundary_steps: float
    """Cost of the end of a generation, in training steps."""


def summarise(runs: Iterable[Run], reference: str) -> list[Row]:
    """Compare each variant with the reference, best first."""
    by_variant: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_variant.setdefault(run.variant, []).append(run)
    theirs = {run.seed: run.loss for run in by_variant.get(reference, [])}
    rows = []
    for variant, found in by_variant.items():
        losses = {run.seed: run.loss for run in found}
        pairs = [seed for seed in losses if seed in theirs and variant != reference]
        difference = None
        if pairs:
            difference = paired_difference([losses[s] for s in pairs], [theirs[s] for s in pairs])
        costs = [run.boundary_seconds / run.step_seconds for run in found]
        cost = sum(costs) / len(costs)
        rows.append(Row(variant, losses, difference, cost))
    return sorted(rows, key=lambda row: sum(row.losses.values()) / len(row.losses))


def markdown_table(rows: Sequence[Row], reference: str) -> str:
    """Return one line a variant."""
    lines = [
        f"| variant | child's held-out loss | minus {reference} (95 % interval) | "
        "p | seeds | end of a generation, in training steps |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean, found = sum(row.losses.values()) / len(row.losses), row.difference
        interval, p_value = "-", "-"
        if found is not None:
            p_value = f"{found.p_value:.3f}"
            interval = f"{found.mean:+.3f}"
            if found.low is not None:
                interval += f" ({found.low:+.3f} to {found.high:+.3f})"
        lines.append(
            f"| {row.variant} | {mean:.3f} | {interval} | {p_value} | "
            f"{len(row.losses)} | {row.boundary_steps:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], reference: str, file: Path) -> None:
    """Draw each variant's difference to the reference: seeds, mean and interval."""
    compared = [row for row in rows if row.difference is not None][::-1]
    theirs = next((row.losses for row in rows if row.variant == reference), {})
    with written_figure(file, (9.0, 1.5 + 0.45 * len(compared))) as figure:
        axes = figure.subplots()
        axes.axvline(0.0, color=GREY, linewidth=1)
        for place, row in enumerate(compared):
            found = row.difference
            assert found is not None
            seeds = [loss - theirs[s] for s, loss in row.losses.items() if s in theirs]
            axes.plot(seeds, [place] * len(seeds), "o", color=FAINT, label="one seed")
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=BLUE, linewidth=2)
            axes.plot(found.mean, place, "o", color=BLUE, label="mean, 95 % interval")
        axes.set_yticks(range(len(compared)), [row.variant for row in compared])
        axes.set_xlabel(f"child's held-out loss minus that of {reference} (nats per token)")
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), loc="best")


def report(folder: Path, reference: str) -> str:
    """Write results.json, table.md and differences.png from all runs so far; return the table."""
    runs = stored(folder)
    rows = summarise(runs, reference)
    table = markdown_table(rows, reference)
    summary = [asdict(row) for row in rows]
    text = json.dumps({"summary": summary, "runs": [asdict(run) for run in runs]}, indent=1)
    for name, content in (("results.json", text), ("table.md", table)):
        with refused_writes_named(folder / name):
            write_atomically(folder / name, (content + "\n").encode())
    try:
        draw(rows, reference, folder / "differences.png")
    except (ConfigError, OSError) as error:
        print(f"no differences.png: {error}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Do this share of the runs that are missing."""
    with friendly_errors("evolution.py"):
        study, model, data, training = parse(
            (StudyArguments, ModelArguments, DataArguments, GenerationalArguments),
            argv,
            prog="evolution.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
            default_config="evolution_study",
        )
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        folder = Path(training.output_dir or "runs/evolution")
        claim(folder, settings_of(study, model, data, training))
        corpus = load_corpus(data)
        child_corpus = load_corpus(replace(data, part=study.child_part), corpus.tokenizer)
        print(f"{corpus.describe()}\nchildren: {child_corpus.describe()}", flush=True)
        child = InheritanceArguments(
            connectome="", steps=study.child_steps, child_reset=study.child_reset
        )
        runs, reference = study.runs(), study.variants[0]
        for number, (variant, seed) in enumerate(runs, 1):
            file = folder / "runs" / f"{run_name(variant, seed)}.json"
            if file.is_file():
                continue
            run = do_run(
                variant,
                seed,
                model=model,
                corpus=corpus,
                child_corpus=child_corpus,
                training=training,
                child=child,
            )
            with refused_writes_named(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(asdict(run), indent=1).encode())
            left = run.seconds * (len(runs) - number)
            print(
                f"{number} of {len(runs)}  {variant:<9} seed {seed}  loss {run.loss:.3f}  "
                f"{run.seconds:.0f} s, about {left:.0f} s left",
                flush=True,
            )
            report(folder, reference)
        print(report(folder, reference))


def settings_of(study: StudyArguments, *others: Any) -> Mapping[str, object]:
    """Return what decides a run's result; more variants or seeds may be added to a study."""
    settings = deciding(explicit_settings((study, *others)))
    return {k: v for k, v in settings.items() if k not in ("variants", "seeds", "shard")}


if __name__ == "__main__":
    main()

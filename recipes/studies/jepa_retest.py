# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Test again what the published Connectome-JEPA says of its wiring, with controls and intervals.

    python recipes/studies/jepa_retest.py --config jepa_retest

It wired the worm against its synapses, compared it with one random graph, and blamed its depth on
vanishing gradients. Here the arms are paired by seed: the worm along and against its synapses, and
its twins (random, degrees, hubs-capped, roles: docs/CONTROLS.md), each seed with a twin of its own;
gates, heads, hops with two first values, the terms of the loss; and a transformer of the same
number of parameters. All arms have one learning rate. Topologies are compared without the terms
JEPA and SIGReg, which are arms of their own.

The same command again trains only what is missing. To share the work: --shard 1/2 here, --shard 2/2
there, on one --output_dir. What it writes there, after every run: arms/*.json, results.json,
table.md and retest.png.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.drawing import BLUE, GREY, written_figure
from hf_connectome.callbacks import StepProgress, hide_display
from hf_connectome.data import DataArguments, collate, load_corpus
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.evaluation.metrics.formulas import bits_per_byte
from hf_connectome.evaluation.paired import PairedDifference, mean_estimate, paired_difference
from hf_connectome.models.connectome_jepa.arguments import JepaArguments, build_graph, build_model
from hf_connectome.models.connectome_jepa.training import TermsTrainer, num_alive
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.runs import claim, deciding
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_connectome.data import Corpus

CONFIGS = Path(__file__).parents[1] / "configs"
REFERENCE, DENSE = "along", "transformer"
EXTENDING = ("arms", "hint_seeds", "seeds", "shard")
"""Settings that add runs and change none that is there."""
LAYERS = 2
"""Of the transformer."""

WITHOUT_TERMS = {"jepa_weight": 0.0, "sigreg_weight": 0.0}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "against": {"direction": "against"},
    "random": {"twin": "random"},
    "degrees": {"twin": "degrees"},
    "hubs-capped": {"twin": "hubs-capped"},
    "roles": {"twin": "roles"},
    DENSE: {},
}
HINTS: dict[str, dict[str, Any]] = {
    "no-gates": {"reinject": False},
    "1-head": {"heads": 1},
    "jepa": {"jepa_weight": 0.5},
    "sigreg": {"sigreg_weight": 1e-4},
    "jepa-sigreg": {"jepa_weight": 0.5, "sigreg_weight": 1e-4},
    "2-hops": {"hops": 2},
    "2-hops-old": {"hops": 2, "hop_init": "constant"},
    "6-hops-old": {"hop_init": "constant"},
    "16-hops": {"hops": 16},
    "16-hops-old": {"hops": 16, "hop_init": "constant"},
}
ARMS = TOPOLOGIES | HINTS


@dataclass
class RetestArguments:
    """Which arms are trained, with how many seeds, and which part of that here."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS),
        metadata={"help": f"Arms to train, of {', '.join(ARMS)}."},
    )
    seeds: int = field(default=4, metadata={"help": "Runs of an arm that is a topology."})
    hint_seeds: int = field(default=2, metadata={"help": "Runs of any other arm: a hint."})
    shard: str = field(
        default="1/1", metadata={"help": "Part of the runs to train here, as 1/2 and 2/2."}
    )
    wiring: str = field(
        default="celegans", metadata={"help": "Graph: celegans, file or larva, as in jepa.py."}
    )
    wiring_file: str | None = field(
        default=None, metadata={"help": "Of file: edges or matrix. Of larva: the synapses."}
    )
    neurons_file: str | None = field(
        default=None, metadata={"help": "Of file: table of neurons. Of larva: the annotations."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of embeddings and read-out."})
    head_dim: int = field(default=32, metadata={"help": "Width of a head."})

    def __post_init__(self) -> None:
        """Refuse arms that do not exist, and a shard that is none."""
        for arm in self.arms:
            if arm not in ARMS:
                raise UnknownNameError(f"unknown arm {arm!r}. {did_you_mean(arm, ARMS)}")
        if min(self.seeds, self.hint_seeds) < 1:
            raise ConfigError(
                f"seeds is {self.seeds} and hint_seeds {self.hint_seeds}; expected at least 1."
            )
        parts = [int(part) for part in self.shard.split("/") if part.isdecimal()]
        if len(parts) != 2 or not 1 <= parts[0] <= parts[1]:
            raise ConfigError(f"shard is {self.shard!r}; expected as '1/2' and '2/2'.")

    def jobs(self) -> list[tuple[str, int]]:
        """Return (arm, seed) of this shard; seeds are the outer loop, so that pairs are whole."""
        most = max(self.seeds, self.hint_seeds)
        every = [
            (arm, seed)
            for seed in range(most)
            for arm in self.arms
            if seed < (self.seeds if arm in TOPOLOGIES else self.hint_seeds)
        ]
        number, total = map(int, self.shard.split("/"))
        return every[number - 1 :: total]


@dataclass(frozen=True)
class Result:
    """One run: held-out loss by step, and what it took."""

    arm: str
    seed: int
    steps: list[int]
    losses: list[float]
    bits_per_byte: float
    parameters: int
    seconds: float


# ---- one run -------------------------------------------------------------------------------------


def fresh(
    arm: str, seed: int, study: RetestArguments, corpus: Corpus, block_size: int
) -> tuple[PreTrainedModel, int]:
    """Build the model of an arm, and count its parameters, those of no synapse left out."""
    settings = {
        "wiring": study.wiring,
        "wiring_file": study.wiring_file,
        "neurons_file": study.neurons_file,
        "wiring_seed": seed,
        "hidden_size": study.hidden_size,
        "head_dim": study.head_dim,
        "allow_unreached": True,
    }
    arguments = JepaArguments(**settings | WITHOUT_TERMS | ARMS[arm])
    assert corpus.tokenizer is not None
    model = build_model(
        arguments,
        build_graph(arguments),
        vocab_size=len(corpus.tokenizer),
        tokenizer=corpus.tokenizer,
        block_size=block_size,
        seed=seed,
    )
    if arm != DENSE:
        return model, num_alive(model)
    dense = transformer(num_alive(model), len(corpus.tokenizer), study.hidden_size, seed)
    return dense, dense.num_parameters()


def transformer(num_parameters: int, vocab_size: int, hidden_size: int, seed: int) -> Any:
    """Build a Llama of two layers whose MLPs are as wide as ``num_parameters`` allows."""
    norms = (2 * LAYERS + 1) * hidden_size
    rest = num_parameters - norms - vocab_size * hidden_size - LAYERS * 4 * hidden_size**2
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=max(1, round(rest / (LAYERS * 3 * hidden_size))),
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def run(
    arm: str, seed: int, study: RetestArguments, corpus: Corpus, training: TrainingArguments
) -> Result:
    """Train an arm with a seed, which also decides the order of the data."""
    block_size = len(corpus.evaluation[0]["input_ids"])
    model, num_parameters = fresh(arm, seed, study, corpus, block_size)
    arguments = copy.deepcopy(training)  # its __post_init__ is not meant to run twice
    arguments.seed = arguments.data_seed = seed
    trainer = TermsTrainer(
        model,
        arguments,
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
    )
    hide_display(trainer)
    tokens = block_size * training.train_batch_size * training.gradient_accumulation_steps
    label = f"seed {seed}  {arm:<12}"
    trainer.add_callback(StepProgress(training.max_steps, lambda _: label, tokens))
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    measured = {
        int(r["step"]): float(r["eval_loss"]) for r in trainer.state.log_history if "eval_loss" in r
    }
    if training.max_steps not in measured:
        measured[training.max_steps] = trainer.evaluate()["eval_loss"]
    nats = measured[training.max_steps] * corpus.num_eval_tokens
    assert corpus.num_eval_bytes is not None
    return Result(
        arm=arm,
        seed=seed,
        steps=list(measured),
        losses=list(measured.values()),
        bits_per_byte=bits_per_byte([nats], [corpus.num_eval_bytes]),
        parameters=num_parameters,
        seconds=seconds,
    )


# ---- all runs ------------------------------------------------------------------------------------


def file_of(folder: Path, arm: str, seed: int) -> Path:
    """Return where the result of a run lies."""
    return folder / "arms" / f"{arm}-seed{seed}.json"


def stored(folder: Path, arm: str, seed: int) -> Result | None:
    """Return a result that is there and whole, or None."""
    try:
        found = Result(**json.loads(file_of(folder, arm, seed).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if (found.arm, found.seed) == (arm, seed) else None


def results_in(folder: Path) -> dict[str, dict[int, Result]]:
    """Return all results by arm and seed, whichever command trained them."""
    most = len(list((folder / "arms").glob("*.json")))
    found = {arm: {s: stored(folder, arm, s) for s in range(most)} for arm in ARMS}
    return {
        arm: whole
        for arm, runs in found.items()
        if (whole := {seed: run for seed, run in runs.items() if run is not None})
    }


def write(file: Path, content: str) -> None:
    """Write a file whole, or say why not."""
    with refused_writes_named(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.encode())


# ---- the report ----------------------------------------------------------------------------------


def difference(
    runs: Mapping[int, Result], reference: Mapping[int, Result]
) -> PairedDifference | None:
    """Compare the last losses of two arms over the seeds that both have."""
    seeds = sorted(runs.keys() & reference.keys())
    if not seeds:
        return None
    return paired_difference(
        [runs[seed].losses[-1] for seed in seeds], [reference[seed].losses[-1] for seed in seeds]
    )


def table(results: Mapping[str, Mapping[int, Result]]) -> str:
    """Return the arms as a table in Markdown."""
    lines = [
        f"| arm | seeds | held-out loss | bits a byte | minus {REFERENCE} (95 % interval) "
        "| parameters | seconds a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, runs in results.items():
        against = difference(runs, results.get(REFERENCE, {})) if arm != REFERENCE else None
        cells = [
            f"{arm} (hint)" if arm in HINTS else arm,
            str(len(runs)),
            f"{mean_estimate([r.losses[-1] for r in runs.values()]).value:.4f}",
            f"{mean_estimate([r.bits_per_byte for r in runs.values()]).value:.4f}",
            "-" if against is None else interval(against),
            f"{max(r.parameters for r in runs.values()):,}",
            f"{mean_estimate([r.seconds for r in runs.values()]).value:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(found: PairedDifference) -> str:
    """Write a difference with its interval, if it has one."""
    ends = "" if found.low is None else f" ({found.low:+.4f} to {found.high:+.4f})"
    return f"{found.mean:+.4f}{ends}"


def draw(results: Mapping[str, Mapping[int, Result]], file: Path) -> None:
    """Draw each arm's difference to the reference with its interval; hints in grey."""
    found = {
        arm: against
        for arm, runs in results.items()
        if arm != REFERENCE and (against := difference(runs, results.get(REFERENCE, {})))
    }
    if not found:
        return
    with written_figure(file, (9.0, 1.5 + 0.35 * len(found))) as figure:
        axes = figure.subplots()
        for place, (arm, against) in enumerate(found.items()):
            colour = GREY if arm in HINTS else BLUE
            axes.plot([against.mean], [place], "o", color=colour)
            if against.low is not None and against.high is not None and arm not in HINTS:
                axes.plot([against.low, against.high], [place, place], color=colour)
        axes.axvline(0.0, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(found)), [*found])
        axes.invert_yaxis()
        axes.set_xlabel(f"held-out loss minus {REFERENCE} (nats per token); left is better")


def report(folder: Path) -> str:
    """Write everything that the results in a folder say; return the table."""
    results = results_in(folder)
    runs = [asdict(run) for of_arm in results.values() for run in of_arm.values()]
    write(folder / "results.json", json.dumps({"runs": runs}, indent=1) + "\n")
    shown = table(results)
    write(folder / "table.md", shown + "\n")
    try:
        draw(results, folder / "retest.png")
    except (ConfigError, OSError) as error:
        print(f"no retest.png: {error}")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or what is left of it, from the command line."""
    with friendly_errors("jepa_retest.py"):
        study, data, training = parse(
            (RetestArguments, DataArguments, TrainingArguments),
            argv,
            prog="jepa_retest.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
        )
        if training.max_steps < 1:
            raise ConfigError(f"max_steps is {training.max_steps}; expected at least 1.")
        if training.output_dir in (None, "trainer_output"):
            training.output_dir = "runs/jepa-retest"
        folder = Path(training.output_dir)
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()
        corpus = load_corpus(data)
        settings = deciding(explicit_settings((study, data, training)))
        settings = {key: value for key, value in settings.items() if key not in EXTENDING}
        claim(folder, settings | {"corpus": corpus.identity()})
        print(corpus.describe())
        jobs = study.jobs()
        for number, (arm, seed) in enumerate(jobs, 1):
            if stored(folder, arm, seed) is None:
                print(f"run {number} of {len(jobs)}: {arm}, seed {seed}")
                done = run(arm, seed, study, corpus, training)
                write(file_of(folder, arm, seed), json.dumps(asdict(done)) + "\n")
                report(folder)
        print(report(folder))
        print(f"saved results.json, table.md and retest.png in {folder}")


if __name__ == "__main__":
    main()

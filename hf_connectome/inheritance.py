"""The inner loop: arms that differ only in what a fresh host inherits, trained side by side.

All arms of a seed start from the same fresh host and see the same data in the same order. What is
measured here is compared in evaluation/paired.py.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_connectome.architecture import build_host
from hf_connectome.callbacks import MaskCallback, StepProgress
from hf_connectome.controls import random_twin
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError, RunError, UnknownNameError, did_you_mean
from hf_connectome.evaluation.arms import ArmResult
from hf_connectome.fresh import check_context
from hf_connectome.hosts import fresh_reset, wire
from hf_connectome.reset import resets
from hf_connectome.runs import CONNECTOME_FOLDER
from hf_connectome.storage import CONFIG_FILE, refused_writes_named, write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hf_connectome.connectome import Connectome
    from hf_connectome.data import Corpus

RESULTS_FOLDER = "arms"
EXTENDING = ("arms", "seeds", "first_seed")
"""Settings that add runs to a comparison and change none that is there."""

ARMS: dict[str, Callable[[Connectome, int], Connectome | None]] = {
    "connectome": lambda connectome, _: connectome,
    "random": random_twin,
    "dense": lambda *_: None,
}
"""Name -> what a host of that arm is put under, given connectome and seed; None: nothing."""


@dataclass
class InheritanceArguments:
    """What a fresh model inherits, and what it is compared with."""

    connectome: str = field(
        metadata={
            "help": "Folder of a connectome, of a checkpoint with one, or of an evolve run (its "
            "last generation is used)."
        }
    )
    arms: list[str] = field(
        default_factory=lambda: ["connectome", "random", "dense"],
        metadata={"help": "Arms to train: connectome, random (same density per parameter), dense."},
    )
    seeds: int = field(default=4, metadata={"help": "Runs per arm, paired by seed."})
    first_seed: int = field(
        default=0, metadata={"help": "First of the seeds, to share the work among processes."}
    )
    steps: int = field(default=400, metadata={"help": "Optimizer steps of every arm."})
    child_reset: str | None = field(
        default=None,
        metadata={
            "help": "First values of the survivors; by default what the connectome records, where "
            "keep and rewind mean sign_constant."
        },
    )

    def __post_init__(self) -> None:
        """Refuse unknown arms and resets, and empty runs."""
        for arm in self.arms:
            if arm not in ARMS:
                raise UnknownNameError(f"unknown arm {arm!r}. {did_you_mean(arm, ARMS)}")
        if len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"arms names one twice: {', '.join(self.arms)}.")
        if self.seeds < 1 or self.steps < 1 or self.first_seed < 0:
            raise ConfigError(
                f"seeds is {self.seeds}, steps {self.steps} and first_seed {self.first_seed}; "
                "expected at least 1, 1 and 0."
            )
        if self.child_reset is not None:
            resets.get(self.child_reset)
        if self.child_reset == "rewind":
            raise ConfigError(
                "child_reset is 'rewind', which needs weights stored early in training; a "
                "connectome carries none. Use 'sign_constant', or leave it out."
            )


def find_connectome(path: str | Path) -> Path:
    """Return the folder that holds the connectome: ``path``, one in it, or the last generation.

    Raises:
        RunError: there is no connectome there.
    """
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        return folder
    if (folder / CONNECTOME_FOLDER / CONFIG_FILE).is_file():
        return folder / CONNECTOME_FOLDER
    generations = [f for f in folder.glob("generation-*") if f.name.rpartition("-")[2].isdigit()]
    if generations:
        return max(generations, key=lambda f: int(f.name.rpartition("-")[2]))
    is_hub_id = not folder.is_absolute() and len(folder.parts) == 2 and not folder.exists()
    hub = f" Fetch a Hub id first: hf download {folder} --local-dir {folder.name}."
    raise RunError(
        f"{folder} holds no connectome: neither {CONFIG_FILE}, nor {CONNECTOME_FOLDER}/ or "
        "generation-<g> folders. Give the folder of a connectome, or the output_dir of "
        f"recipes/evolve.py.{hub if is_hub_id else ''}"
    )


def default_output(path: str | Path) -> Path:
    """Return where results go by default: beside a generation or checkpoint, not into it.

    A generation is uploaded whole, a checkpoint is removed in its turn.
    """
    folder = Path(path)
    whole = folder.absolute()
    inside = whole.parent.name if whole.name == CONNECTOME_FOLDER else whole.name
    if not inside.startswith(("generation-", "checkpoint-")):
        return folder / "inherit"
    owner = whole.parent if whole.name == CONNECTOME_FOLDER else whole
    beside = owner.parent / f"inherit-{inside}"
    return beside if folder.is_absolute() else Path(os.path.relpath(beside))


def reset_of(connectome: Connectome, arguments: InheritanceArguments) -> str:
    """Return the reset of the arms: the one asked for, else what the connectome records.

    A recorded 'keep' or 'rewind' needs a parent's weights, which fresh hosts do not have.
    """
    return arguments.child_reset or fresh_reset(connectome)


def check_arms(connectome: Connectome, arguments: InheritanceArguments, block_size: int) -> None:
    """Build and wire the host of every arm once, so that nothing fails after hours of another arm.

    Raises:
        ConfigError: no such host can be built, its context is shorter than a block, or the reset
            needs what the connectome lacks.
    """
    assert connectome.config is not None
    for arm in arguments.arms:
        host = build_host(connectome.config, seed=arguments.first_seed)
        check_context(host.config, block_size)  # type: ignore[arg-type]
        wiring = ARMS[arm](connectome, arguments.first_seed)
        if wiring is not None:
            wire(host, wiring, reset=reset_of(connectome, arguments))


def check_vocabulary(connectome: Connectome, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the recorded architecture has an embedding for every token.

    Raises:
        ConfigError: the tokenizer has more tokens.
    """
    assert connectome.config is not None
    host: Any = build_host(connectome.config, device="meta")
    num_rows = host.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, the model of the connectome {num_rows}. "
            f"Name the tokenizer that it was evolved with, --tokenizer …, or 'bpe:{num_rows}' if "
            "it never had one."
        )


def inherited_bytes(connectome: Connectome, reset: str) -> int:
    """Count the bytes of the plain format that a child under ``reset`` makes use of.

    Masks always; signs unless the policy keeps the host's own; scales only for 'tensor_scale'.
    """
    total = sum(value.numel() * 4 for value in connectome.values_carried.values())
    for entry in connectome.values():
        total += entry.mask_bits.nbytes
        if entry.sign_bits is not None and reset != "keep":
            total += entry.sign_bits.nbytes
        if entry.scale is not None and reset == "tensor_scale":
            total += entry.scale.nbytes
    return total


def train_arm(
    arm: str,
    seed: int,
    *,
    connectome: Connectome,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
) -> ArmResult:
    """Build the fresh host of a seed, put the arm's wiring on it, train, and measure.

    Args:
        arm: a name of :data:`ARMS`.
        seed: of the host's initialisation, the data order and the random twin.
        connectome: what the arms are made from.
        corpus: training and held-out blocks, the same for all.
        arguments: steps and reset.
        training: optimizer settings, the same for all arms.
    """
    assert connectome.config is not None
    reset = reset_of(connectome, arguments)
    host = build_host(connectome.config, seed=seed)
    wiring = ARMS[arm](connectome, seed)
    callbacks: list[Any] = [_progress(arm, seed, wiring, corpus, arguments, training)]
    if wiring is not None:
        wire(host, wiring, reset=reset)
        callbacks.append(MaskCallback(wiring))
    trainer = Trainer(
        host,
        _arm_arguments(training, seed, arguments.steps),
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
        callbacks=callbacks,
    )
    for shown in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(shown)
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    history = trainer.state.log_history
    measured = {int(r["step"]): r["eval_loss"] for r in history if "eval_loss" in r}
    return ArmResult(
        arm=arm,
        seed=seed,
        steps=list(measured),
        losses=list(measured.values()),
        num_survivors=connectome.num_weights if wiring is None else wiring.num_survivors,
        num_weights=connectome.num_weights,
        bytes_inherited=inherited_bytes(connectome, reset) if arm == "connectome" else 0,
        seconds=seconds,
    )


def train_arms(
    connectome: Connectome,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
    output: Path,
) -> list[ArmResult]:
    """Train every arm with every seed; each result is written when it is there and never redone.

    Seeds are the outer loop, so that an interrupted run has whole pairs.
    """
    results = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for arm in arguments.arms:
            file = output / RESULTS_FOLDER / f"{arm}-seed{seed}.json"
            done = _stored(file, arm, seed)
            if done is None:
                done = train_arm(
                    arm,
                    seed,
                    connectome=connectome,
                    corpus=corpus,
                    arguments=arguments,
                    training=training,
                )
                if training.should_save:
                    with refused_writes_named(file):
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_atomically(file, json.dumps(asdict(done)).encode())
            results.append(done)
    return results


def _stored(file: Path, arm: str, seed: int) -> ArmResult | None:
    """Return the result in ``file``; None where there is none that is whole and of this arm."""
    try:
        result = ArmResult(**json.loads(file.read_text(encoding="utf-8")))
        is_whole = len(result.steps) == len(result.losses) > 0
    except (OSError, ValueError, TypeError):
        return None
    return result if is_whole and (result.arm, result.seed) == (arm, seed) else None


def _arm_arguments(training: TrainingArguments, seed: int, steps: int) -> TrainingArguments:
    """Return the arm's own copy; a copy, because __post_init__ is not meant to run twice."""
    arguments = copy.deepcopy(training)
    arguments.seed = arguments.data_seed = seed
    arguments.max_steps = steps
    arguments.eval_on_start = True
    arguments.save_strategy = type(arguments.save_strategy)("no")
    arguments.eval_strategy = type(arguments.eval_strategy)("steps")
    if arguments.eval_steps is None or arguments.eval_steps >= steps:
        arguments.eval_steps = max(1, steps // 20)
    return arguments


def _progress(
    arm: str,
    seed: int,
    wiring: Connectome | None,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
) -> StepProgress:
    density = 1.0 if wiring is None else wiring.density
    block = len(corpus.evaluation[0]["input_ids"])
    tokens = block * training.train_batch_size * training.gradient_accumulation_steps
    label = f"seed {seed}  {arm:<10}  density {density:6.1%}"
    return StepProgress(arguments.steps, lambda _: label, tokens * training.world_size)

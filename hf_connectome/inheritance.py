"""The inner loop: arms that differ only in what a fresh host inherits, trained side by side.

All arms of a seed start from the same fresh host and see the same data in the same order. What is
measured here is compared in evaluation/paired.py.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hf_connectome.architecture import build_host
from hf_connectome.arms import Estate, Inherited, arm_names, get_arm, source_of
from hf_connectome.callbacks import MaskCallback, StepProgress
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import ArmResult
from hf_connectome.fresh import check_context
from hf_connectome.hosts import fresh_reset
from hf_connectome.optimizers import STATE_HELP, check_optimizer_state, optimizer_of
from hf_connectome.reset import resets
from hf_connectome.storage import (
    CONNECTOME_FOLDER,
    atomic_folder,
    refused_writes_named,
    write,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from hf_connectome.connectome import Connectome
    from hf_connectome.data import Corpus

RESULTS_FOLDER, CHILDREN_FOLDER = "arms", "children"
EXTENDING = ("arms", "connectome_revision", "first_seed", "parent", "save_children", "seeds")
"""Settings that add runs to a comparison and change none that is there."""


@dataclass
class InheritanceArguments:
    """What a fresh model inherits, and what it is compared with."""

    connectome: str = field(
        metadata={
            "help": "Hub id (owner/name), or folder of a connectome, of a checkpoint with one, or "
            "of an evolve run (its last generation is used)."
        }
    )
    connectome_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag (generation-3) or commit, where connectome is a Hub id."},
    )
    arms: list[str] = field(
        default_factory=lambda: ["connectome", "random", "dense"],
        metadata={
            "help": f"Arms to train, of {', '.join(arm_names())}; with a reset of its own: "
            "connectome:variance_preserving; from another connectome: connectome@generation-3. "
            "docs/CONTROLS.md says what each keeps."
        },
    )
    parent: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint whose weights the connectome was pruned from (its run's last one), "
            "for the arms that carry weights."
        },
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
    optimizer_state: str = field(default="dense", metadata={"help": STATE_HELP})
    save_children: bool = field(
        default=False,
        metadata={
            "help": "Save trained children in children/, for evaluate.py; one that is missing is "
            "trained again, equally."
        },
    )

    def __post_init__(self) -> None:
        """Refuse unknown arms and resets, and empty runs."""
        for spec in self.arms:
            arm, reset = get_arm(spec)
            _refuse_rewind("arms", reset)
            if arm.needs_parent and self.parent is None:
                raise ConfigError(
                    f"the arm {spec!r} carries weights of the parent. Name the checkpoint that the "
                    "connectome was pruned from: --parent …/checkpoint-<step>."
                )
        if not self.arms:
            raise ConfigError("arms is empty; expected one or more, such as connectome and dense.")
        if len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"arms names one twice: {', '.join(self.arms)}.")
        if self.seeds < 1 or self.steps < 1 or self.first_seed < 0:
            raise ConfigError(
                f"seeds is {self.seeds}, steps {self.steps} and first_seed {self.first_seed}; "
                "expected at least 1, 1 and 0."
            )
        if self.child_reset is not None:
            resets.get(self.child_reset)
        _refuse_rewind("child_reset", self.child_reset)
        check_optimizer_state(self.optimizer_state)


def _refuse_rewind(name: str, reset: str | None) -> None:
    if reset == "rewind":
        raise ConfigError(
            f"{name} asks for 'rewind', which needs weights stored early in training; a "
            "connectome carries none. Use 'sign_constant', or leave it out."
        )


def reset_of(connectome: Connectome, arguments: InheritanceArguments) -> str:
    """Return the reset of the arms: the one asked for, else what the connectome records.

    A recorded 'keep' or 'rewind' needs a parent's weights, which fresh hosts do not have.
    """
    return arguments.child_reset or fresh_reset(connectome)


def check_arms(
    connectome: Connectome,
    arguments: InheritanceArguments,
    block_size: int,
    parent: Mapping[str, Tensor] | None = None,
    others: Mapping[str, Connectome] | None = None,
) -> None:
    """Build and wire the host of every arm once, so that nothing fails after hours of another arm.

    Args:
        connectome: what the arms are made from.
        arguments: arms and reset.
        block_size: tokens in a block.
        parent: weights of the parent, for the arms that carry some.
        others: connectomes of the arms that name another one, by that name.

    Raises:
        ConfigError: no such host can be built, its context is shorter than a block, or the reset
            needs what the connectome lacks.
        HostMismatchError: another connectome does not fit the host of the main one.
    """
    for arm in arguments.arms:
        mine = _own(arm, connectome, others)
        # What learns from text first is wired as the connectome itself; the text is read later.
        tried = "connectome" if get_arm(arm)[0].needs_text else arm
        host, _ = _start(tried, arguments.first_seed, mine, arguments, parent)
        check_context(host.config, block_size)  # type: ignore[arg-type]


def _own(spec: str, connectome: Connectome, others: Mapping[str, Connectome] | None) -> Connectome:
    """Return what an arm is made from, on the host of the main connectome."""
    source = source_of(spec)
    if source is None:
        return connectome
    other, main = (others or {})[source], connectome.config
    assert main is not None
    assert other.config is not None
    config = dataclasses.replace(
        other.config, architecture=main.architecture, base_config=main.base_config
    )
    return other.replace(config=config)


def _start(
    spec: str,
    seed: int,
    connectome: Connectome,
    arguments: InheritanceArguments,
    parent: Mapping[str, Tensor] | None,
    blocks: Any = None,
) -> tuple[nn.Module, Inherited]:
    """Build the fresh host of a seed and let it inherit."""
    assert connectome.config is not None
    arm, reset = get_arm(spec)
    estate = Estate(connectome, seed, reset or reset_of(connectome, arguments), parent, blocks)
    arm.check(estate, spec)
    host = build_host(connectome.config, seed=seed)
    return host, arm.put(host, estate)


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


def train_arm(
    arm: str,
    seed: int,
    *,
    connectome: Connectome,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
    parent: Mapping[str, Tensor] | None = None,
    others: Mapping[str, Connectome] | None = None,
    keep: Path | None = None,
) -> ArmResult:
    """Build the fresh host of a seed, let it inherit, train, and measure.

    Args:
        arm: what :func:`hf_connectome.arms.get_arm` takes.
        seed: of the host's initialisation, the data order and the random twin.
        connectome: what the arms are made from.
        corpus: training and held-out blocks, the same for all.
        arguments: steps and reset.
        training: optimizer settings, the same for all arms.
        parent: weights of the parent, for the arms that carry some.
        others: connectomes of the arms that name another one, by that name.
        keep: where to save the trained child; None: nowhere.
    """
    mine = _own(arm, connectome, others)
    host, inherited = _start(arm, seed, mine, arguments, parent, corpus.train)
    wiring = inherited.mask
    num_dead = 0 if wiring is None else wiring.num_weights - wiring.num_survivors
    density = 1.0 - num_dead / connectome.num_weights
    progress = _progress(arm, seed, density, corpus, arguments, training)
    trainer = Trainer(
        host,
        _arm_arguments(training, seed, arguments.steps),
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
        callbacks=[progress] if wiring is None else [progress, MaskCallback(wiring)],
        optimizer_cls_and_kwargs=optimizer_of(training, arguments.optimizer_state, wiring),
    )
    for shown in (ProgressCallback, PrinterCallback):
        trainer.pop_callback(shown)
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    if keep is not None and training.should_save:
        _save_child(host, wiring, corpus.tokenizer, keep)
    log = trainer.state.log_history
    measured = {int(r["step"]): r["eval_loss"] for r in log if "eval_loss" in r}
    return ArmResult(
        arm=arm,
        seed=seed,
        steps=list(measured),
        losses=list(measured.values()),
        num_survivors=connectome.num_weights - num_dead,
        num_weights=connectome.num_weights,
        bits_inherited=inherited.bits,
        seconds=seconds,
        tokens_per_step=progress.tokens_per_step,
    )


def train_arms(
    connectome: Connectome,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
    output: Path,
    parent: Mapping[str, Tensor] | None = None,
    others: Mapping[str, Connectome] | None = None,
) -> list[ArmResult]:
    """Train every arm with every seed; each result is written when it is there and never redone.

    Seeds are the outer loop, so that an interrupted run has whole pairs.
    """
    results = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for arm in arguments.arms:
            file = output / RESULTS_FOLDER / _file_name(arm, seed)
            keep = output / CHILDREN_FOLDER / file.stem if arguments.save_children else None
            done = _stored(file)
            if done is None or (keep is not None and not keep.is_dir()):
                done = train_arm(
                    arm,
                    seed,
                    connectome=connectome,
                    corpus=corpus,
                    arguments=arguments,
                    training=training,
                    parent=parent,
                    others=others,
                    keep=keep,
                )
                if training.should_save:
                    with refused_writes_named(file):
                        file.parent.mkdir(parents=True, exist_ok=True)
                        write_atomically(file, json.dumps(asdict(done)).encode())
            results.append(done)
    return results


def _save_child(host: Any, wiring: Connectome | None, tokenizer: Any, folder: Path) -> None:
    """Save a trained child whole or not at all: an ordinary checkpoint, its wiring inside."""
    with refused_writes_named(folder), atomic_folder(folder) as scratch:
        host.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if wiring is not None:
            write(wiring, scratch / CONNECTOME_FOLDER)


def stored_results(output: Path, first: Sequence[str] = ()) -> list[ArmResult]:
    """Return all results of a comparison, whichever command trained them.

    Args:
        output: folder of the comparison.
        first: arms that come first, in this order.
    """
    found = map(_stored, (output / RESULTS_FOLDER).glob("*-seed*.json"))
    results = [result for result in found if result is not None]
    place = {arm: number for number, arm in enumerate(first)}
    return sorted(results, key=lambda r: (place.get(r.arm, len(place)), r.arm, r.seed))


def start_of(
    connectome: Connectome, arguments: InheritanceArguments, training: TrainingArguments
) -> dict[str, Any]:
    """Return what decides a result and is in no digest: first values, host, processes."""
    config = connectome.config
    assert config is not None
    return {
        "child_reset": reset_of(connectome, arguments),
        "magnitude": config.magnitude,
        "host": [config.architecture, config.base_config],
        "world_size": training.world_size,
    }


def _file_name(arm: str, seed: int) -> str:
    """Name the file of a result; an arm may hold colons, and the path of another connectome."""
    return f"{arm.replace(':', '=').replace('/', '+')}-seed{seed}.json"


def _stored(file: Path) -> ArmResult | None:
    """Return the result in ``file``; None where there is none that is whole and of that name."""
    try:
        result = ArmResult(**json.loads(file.read_text(encoding="utf-8")))
        is_whole = len(result.steps) == len(result.losses) > 0
        is_its_own = file.name == _file_name(result.arm, result.seed)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return result if is_whole and is_its_own else None


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
    density: float,
    corpus: Corpus,
    arguments: InheritanceArguments,
    training: TrainingArguments,
) -> StepProgress:
    block = len(corpus.evaluation[0]["input_ids"])
    tokens = block * training.train_batch_size * training.gradient_accumulation_steps
    label = f"seed {seed}  {arm:<12}  density {density:6.1%}"
    return StepProgress(arguments.steps, lambda _: label, tokens * training.world_size)

"""Arms trained side by side, on the same data in the same order."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments

from hf_connectome.architecture import build_host
from hf_connectome.arms import Estate, Inherited, get_arm, source_of
from hf_connectome.callbacks import MaskCallback, MetricsFile, StepProgress, hide_display
from hf_connectome.data import collate
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import ArmResult
from hf_connectome.fresh import check_context
from hf_connectome.inheritance.arguments import InheritanceArguments, reset_of
from hf_connectome.inheritance.results import RESULTS_FOLDER, run_name, store_result, stored_result
from hf_connectome.optimizers import optimizer_of
from hf_connectome.rewiring_callbacks import RewiringCallback
from hf_connectome.storage import (
    CONNECTOME_FOLDER,
    atomic_folder,
    refused_writes_named,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from hf_connectome.connectome import Connectome
    from hf_connectome.data import Corpus

CHILDREN_FOLDER, REWIRED_FOLDER = "children", "rewired"


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
    masks = []
    for arm in arguments.arms:
        mine = _own(arm, connectome, others)
        # What learns from text first is wired as the connectome itself; the text is read later.
        tried = "connectome" if get_arm(arm)[0].needs_text else arm
        host, inherited = _start(tried, arguments.first_seed, mine, arguments, parent)
        check_context(host.config, block_size)  # type: ignore[arg-type]
        masks.append(inherited.mask)
    if arguments.rewiring is not None and not any(masks):
        raise ConfigError(
            f"rewiring is {arguments.rewiring!r}, but every arm ({', '.join(arguments.arms)}) is "
            "dense, so there are no links to move. Add an arm under a mask, such as connectome."
        )


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
    density = 1.0 - _num_dead(wiring) / connectome.num_weights
    progress = _progress(arm, seed, density, corpus, arguments, training)
    settings = _arm_arguments(training, seed, arguments.steps)
    masks = _under_mask(wiring, arm, arguments.rewiring, settings)
    optimizer = optimizer_of(training, arguments.optimizer_state, wiring)
    trainer = _quiet_trainer(host, settings, corpus, [progress, *masks], optimizer)
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    wiring = _moved(masks, settings)
    if keep is not None and training.should_save:
        _save_child(host, wiring, corpus.tokenizer, keep)
    log = trainer.state.log_history
    measured = {int(r["step"]): r["eval_loss"] for r in log if "eval_loss" in r}
    return ArmResult(
        arm=arm,
        seed=seed,
        steps=list(measured),
        losses=list(measured.values()),
        num_survivors=connectome.num_weights - _num_dead(wiring),
        num_weights=connectome.num_weights,
        bits_inherited=inherited.bits,
        seconds=seconds,
        tokens_per_step=progress.tokens_per_step,
    )


def _quiet_trainer(
    host: Any, settings: TrainingArguments, corpus: Corpus, callbacks: list[Any], optimizer: Any
) -> Trainer:
    """Return a Trainer that shows nothing but what the callbacks show."""
    trainer = Trainer(
        host,
        settings,
        train_dataset=corpus.train,
        eval_dataset=corpus.evaluation,
        data_collator=collate,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer,
    )
    hide_display(trainer)
    return trainer


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
            file = output / RESULTS_FOLDER / f"{run_name(arm, seed)}.json"
            keep = output / CHILDREN_FOLDER / file.stem if arguments.save_children else None
            done = stored_result(file)
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
                    store_result(done, file)
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


def _num_dead(wiring: Connectome | None) -> int:
    return 0 if wiring is None else wiring.num_weights - wiring.num_survivors


def _under_mask(
    wiring: Connectome | None, arm: str, rewiring: str | None, settings: TrainingArguments
) -> list[MaskCallback | MetricsFile]:
    """Return what holds the mask, if there is one; links that move get a folder of their own."""
    if wiring is None:
        return []
    if rewiring is None:
        return [MaskCallback(wiring)]
    folder = Path(settings.output_dir or ".") / REWIRED_FOLDER / run_name(arm, settings.seed)
    settings.output_dir = str(folder)
    return [RewiringCallback(wiring, rewiring, seed=settings.seed), MetricsFile()]


def _moved(
    masks: Sequence[MaskCallback | MetricsFile], settings: TrainingArguments
) -> Connectome | None:
    """Return the wiring that a run ended with; keep it where its links have moved."""
    for mask in masks:
        if isinstance(mask, MaskCallback):
            if isinstance(mask, RewiringCallback) and settings.should_save:
                write(mask.connectome, Path(settings.output_dir or "."))
            return mask.connectome
    return None


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

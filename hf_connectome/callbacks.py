"""What runs beside a transformers Trainer: mask enforcement, a progress display, a metrics file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_connectome.enforcement import MaskEnforcer
from hf_connectome.storage import (
    CONNECTOME_FOLDER,
    refused_writes_named,
    write,
    write_atomically,
)

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hf_connectome.connectome import Connectome

METRICS_FILE = "metrics.jsonl"
_BAR = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def hide_display(trainer: Trainer) -> bool:
    """Take away what a Trainer shows by itself; return whether that was a bar."""
    bar = trainer.pop_callback(ProgressCallback)
    trainer.pop_callback(PrinterCallback)
    return bar is not None


class MaskCallback(TrainerCallback):
    """Trains a host under a connectome with any Trainer, stock or not.

    Dead weights stay exactly 0; every checkpoint carries the connectome in ``connectome/``, unless
    it has no config, without which no reader could bind it to a host.

    Example:
        ``Trainer(model, args, train_dataset=blocks, callbacks=[MaskCallback(connectome)])``
    """

    def __init__(self, connectome: Connectome) -> None:
        """Hold the connectome until training begins and the optimizer is there."""
        self.connectome = connectome
        self.enforcer: MaskEnforcer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Bind to the prepared model and its optimizer."""
        if self.enforcer is not None:
            self.enforcer.detach()
        self.enforcer = self.guard(parts["model"]).attach(parts["optimizer"])

    def guard(self, model: Any) -> MaskEnforcer:
        """Return what keeps the weights in place."""
        return MaskEnforcer(model, self.connectome)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Put the connectome beside the weights."""
        if args.should_save and self.connectome.config is not None:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            write(self.connectome, folder / CONNECTOME_FOLDER)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Remove the hooks."""
        if self.enforcer is not None:
            self.enforcer.detach()
            self.enforcer = None


class MetricsFile(TrainerCallback):
    """Keeps ``metrics.jsonl``: one JSON object a logged record, always those of the run so far.

    The file is written anew from the trainer's own history, so a resumed run leaves no record of
    steps that were undone.
    """

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Rewrite the file."""
        if state.is_world_process_zero and args.output_dir:
            file = Path(args.output_dir) / METRICS_FILE
            with refused_writes_named(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                # transformers' closing summary counts from the last resume, not from the start.
                records = (r for r in state.log_history if "train_runtime" not in r)
                lines = (json.dumps(record, sort_keys=True) for record in records)
                write_atomically(file, ("\n".join(lines) + "\n").encode())


class StepProgress(TrainerCallback):
    """One bar a stretch of training: loss, tokens a second, time left for all stretches."""

    def __init__(
        self, steps_per_bar: int, describe: Callable[[int], str], tokens_per_step: int | None
    ) -> None:
        """Take what the bar cannot see by itself.

        Args:
            steps_per_bar: optimizer steps of one stretch (a generation, an arm).
            describe: number of the stretch -> text before its bar.
            tokens_per_step: for the rate; None shows none.
        """
        self.steps_per_bar = steps_per_bar
        self.describe = describe
        self.tokens_per_step = tokens_per_step
        self._bar: tqdm[Any] | None = None
        self._stretch = 0
        self._losses: dict[str, str] = {}
        self._started = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Start the clock at the step that this process starts from."""
        self._started = (time.monotonic(), state.global_step)
        self._losses = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Advance the bar of the current stretch."""
        if args.disable_tqdm or not state.is_local_process_zero:
            return
        stretch, step = divmod(state.global_step - 1, self.steps_per_bar)
        if stretch != self._stretch:
            self._close()
        if self._bar is None:
            self._stretch = stretch
            self._bar = tqdm(
                total=self.steps_per_bar,
                initial=step,
                desc=self.describe(stretch),
                unit="step",
                dynamic_ncols=True,
                mininterval=0.5,
                bar_format=_BAR,
            )
        self._bar.update(1)
        self._bar.set_postfix(self._postfix(state), refresh=False)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Remember the newest losses and show them."""
        for key, short in (("loss", "loss"), ("eval_loss", "held-out")):
            if key in parts.get("logs", {}):
                self._losses[short] = f"{float(parts['logs'][key]):.3f}"
        if self._bar is not None:
            self._bar.set_postfix(self._postfix(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Close the last bar."""
        self._close()

    def _postfix(self, state: TrainerState) -> dict[str, str]:
        seconds, first = time.monotonic() - self._started[0], self._started[1]
        rate = (state.global_step - first) / max(seconds, 1e-9)
        shown = dict(self._losses)
        if self.tokens_per_step is not None:
            shown["tok/s"] = f"{rate * self.tokens_per_step:,.0f}"
        left = (state.max_steps - state.global_step) / max(rate, 1e-9)
        shown["left"] = tqdm.format_interval(int(left))
        return shown

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Generations(Protocol):
    """What a trainer of generations offers to :class:`GenerationBoundaries`."""

    args: Any
    eval_dataset: Any

    def begin(self) -> None:
        """Bind masks to the prepared model and optimizer."""

    def advance_to(self, step: int) -> None:
        """Cross every boundary at or before ``step``."""

    def keep_early_weights(self, step: int) -> None:
        """Store the weights if this is the step to go back to."""

    def finish(self) -> None:
        """Remove the hooks."""


class GenerationBoundaries(TrainerCallback):
    """Tells a trainer of generations where it is; has boundaries evaluated, logged and saved."""

    def __init__(self, trainer: Generations) -> None:
        """Hold the trainer."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Bind the masks."""
        self._trainer.begin()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Prune lazily, so that what was saved at the boundary are the trained weights."""
        self._trainer.advance_to(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Ask for evaluation and a checkpoint at a boundary."""
        self._trainer.keep_early_weights(state.global_step)
        if state.global_step % self._trainer.args.steps_per_generation == 0:
            control.should_evaluate = self._trainer.eval_dataset is not None
            control.should_save = True
        # The window of a logged mean loss starts where a resume would start it.
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Log wherever a checkpoint is taken; see ``on_step_end``."""
        control.should_log = control.should_log or control.should_save

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Prune for the last time."""
        self._trainer.advance_to(state.global_step)
        self._trainer.finish()

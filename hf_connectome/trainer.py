"""GenerationalTrainer: the outer loop as one ``Trainer.train()`` over all generations.

Pruning is lazy: it happens before the first step of the next generation, so that evaluation and
checkpoints at a boundary see the trained weights, and a resume from there prunes again, equally.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from hf_connectome.calibration import Calibrator
from hf_connectome.callbacks import GenerationBoundaries, MetricsFile, StepProgress, hide_display
from hf_connectome.checkpoints import check_same_run, load_converted, needs_conversion
from hf_connectome.config import ConnectomeConfig
from hf_connectome.early import early_weights, keep_early
from hf_connectome.enforcement import MaskEnforcer, compare_ranks, refuse_flat_shards
from hf_connectome.errors import ConfigError, FormatError
from hf_connectome.evolution import dense_connectome, next_generation, reset_host
from hf_connectome.hosts import describe, full_tensor
from hf_connectome.optimizers import SurvivorAllReduce, optimizer_of
from hf_connectome.rewiring import get_rewiring
from hf_connectome.rewiring_callbacks import GenerationRewiring
from hf_connectome.runs import STATE_FILE, resumable, step_of
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.sharing import SharingTrainer
from hf_connectome.storage import (
    CONNECTOME_FOLDER,
    atomic_folder,
    read,
    refused_writes_named,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from hf_connectome.arguments import GenerationalArguments
    from hf_connectome.connectome import Connectome


class GenerationalTrainer(SharingTrainer):
    """Evolves a connectome: trains, prunes, resets, for every generation, in one ``train()``.

    Every generation is saved as ``output_dir/generation-<g>``; a resume from any checkpoint gives
    bit-identical results.

    Example:
        ``GenerationalTrainer(model, GenerationalArguments("out"), train_dataset=blocks).train()``
    """

    args: GenerationalArguments
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        args: GenerationalArguments,
        *,
        tokenizer_name: str | None = None,
        tokenizer_digest: str | None = None,
        facts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Build a Trainer over a plain model.

        Args:
            model: the host, freshly initialised; not a PeftModel.
            args: settings of the outer loop.
            tokenizer_name: Hub id of the tokenizer, if it has one; recorded.
            tokenizer_digest: what the token ids mean (data.tokenizer_digest); recorded.
            facts: of the corpus and the command, for the card (fields of provenance.Provenance).
            **options: what transformers' Trainer takes (train_dataset, eval_dataset, callbacks…).

        Raises:
            ConfigError: a PeftModel was given.
            ScopeError: the scope matches nothing, or a parameter would end with no survivor.
        """
        if hasattr(model, "peft_config"):
            raise ConfigError(
                "the model is a PeftModel, whose checkpoints would hold the adapter only. Give its "
                "base: model.get_base_model()."
            )
        refuse_flat_shards(model)
        self._scope = resolve(model, args.scope)
        self._pruning = args.pruning
        self.check_counts()
        config = ConnectomeConfig(
            target_modules=args.scope,
            reset=args.reset,
            magnitude=args.magnitude,
            seed=args.seed,
            tokenizer=tokenizer_name,
            tokenizer_digest=tokenizer_digest,
        )
        config = describe(model, config, self._scope)
        self.connectome: Connectome = dense_connectome(model, self._scope, config)
        self._enforcer: MaskEnforcer | None = None
        self.facts = facts or {}
        optimizer = optimizer_of(args, args.optimizer_state, self.connectome)
        options = {"optimizer_cls_and_kwargs": optimizer} | options
        super().__init__(model, args, **options)
        self._calibrator = Calibrator(self._pruning.needs, self, self.connectome)
        self._install_callbacks()

    @property
    def generation(self) -> int:
        """The generation being trained: how often survivors were pruned so far."""
        assert self.connectome.config is not None
        return self.connectome.config.generation

    @property
    def enforcer(self) -> MaskEnforcer:
        """What holds the masks while training goes on."""
        assert self._enforcer is not None
        return self._enforcer

    @property
    def output_folder(self) -> Path:
        """Where checkpoints and generations go."""
        return Path(self.args.output_dir or ".")

    def generation_folder(self, generation: int) -> Path:
        """Return the folder of one generation's connectome."""
        return self.output_folder / f"generation-{generation}"

    @property
    def density(self) -> float:
        """Survivors over weights in scope, now."""
        return self.connectome.density

    def check_counts(self) -> None:
        """Refuse, before any training, a run that would leave a parameter without survivors."""
        self._pruning.check(self._scope)

    # ---- training ----------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run all generations, or go on with them.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest that was written
                to its end in ``output_dir``.
            trial: as in transformers' Trainer.
            ignore_keys_for_eval: as in transformers' Trainer.

        Raises:
            RunError: the checkpoint is incomplete, or there is none.
        """
        checkpoint = resumable(self.output_folder, resume_from_checkpoint)
        if checkpoint is not None and step_of(Path(checkpoint)) >= self.args.max_steps:
            return self._finish_from(Path(checkpoint))
        output: TrainOutput = super().train(checkpoint, trial, ignore_keys_for_eval)
        return output

    @property
    def steps_per_schedule(self) -> int:
        """Steps after which the learning-rate schedule begins anew: those of a generation."""
        return self.args.steps_per_generation

    def create_scheduler(
        self, num_training_steps: int, optimizer: Any = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of one stretch of steps and restart it after each."""
        steps = self.steps_per_schedule
        fresh = self.lr_scheduler is None
        scheduler = super().create_scheduler(min(num_training_steps, steps), optimizer)
        if fresh:
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ConfigError(
                    f"a {type(scheduler).__name__} cannot be restarted every generation. Use a "
                    "schedule that is a function of the step (LambdaLR)."
                )
            scheduler.lr_lambdas = [_restarting(f, steps) for f in scheduler.lr_lambdas]
        return scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the generation and its density beside every record."""
        record = {**logs, "generation": self.generation, "density": self.density}
        super().log(record, start_time)

    def begin(self) -> None:
        """Bind the masks to the prepared model and its optimizer."""
        self.finish()
        self.bind()
        self.start_clock()
        if self.generation == 0 and self.state.global_step == 0:
            self._save_generation()
            self.keep_early_weights(0)
        self.check_repository()
        self.push_generations()

    def bind(self) -> None:
        """Put the connectome on the prepared model, and hold it there."""
        assert self.optimizer is not None
        self._enforcer = MaskEnforcer(self.model_wrapped, self.connectome).attach(self.optimizer)
        if self.args.survivor_all_reduce and self.args.world_size > 1:
            SurvivorAllReduce(self._enforcer).register(self.model_wrapped)
        self._calibrator.begin(self.model_wrapped, self.optimizer)

    def advance_to(self, step: int) -> None:
        """Cross every generation boundary at or before ``step``."""
        wanted = min(step // self.args.steps_per_generation, self.args.generations)
        while self.generation < wanted:
            self._advance()

    def finish(self) -> None:
        """Remove the hooks."""
        if self._enforcer is not None:
            self._enforcer.detach()
            self._enforcer = None
        self._calibrator.finish()

    def _finish_from(self, checkpoint: Path) -> TrainOutput:
        """Do what is left of a run whose training is over: the last pruning."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        self._enforcer = MaskEnforcer(self.model_wrapped, self.connectome)
        self.advance_to(self.state.global_step)
        self.finish()
        self._finish_current_push()
        return TrainOutput(self.state.global_step, float("nan"), {})

    def _advance(self) -> None:
        """Go from one generation to the next, and save it."""
        config = _successor(self.connectome, self._lineage_row())
        self.connectome = self.next_connectome(config)
        compare_ranks(self.connectome, f"generation {self.generation}")
        self._save_generation()
        self.push_generations()

    def next_connectome(self, config: ConnectomeConfig) -> Connectome:
        """Prune, reset, clear the optimizer's state; return the new generation."""
        parent, host = self.connectome, self.model_wrapped
        statistics = self._calibrator.statistics(host, parent, self.generation)
        found = next_generation(host, parent, self._pruning, config, statistics)
        reset_host(
            self.model_wrapped,
            found,
            reset=self.args.reset,
            magnitude=self.args.magnitude,
            seed=self.args.seed,
            early=early_weights(self.output_folder) if self.args.reset == "rewind" else None,
        )
        # A new optimizer would lose the hooks and FSDP2's mapping; without its state it is as new.
        if self.optimizer is not None:
            self.optimizer.state.clear()
        self.enforcer.update(found)
        return found

    def _lineage_row(self) -> dict[str, Any]:
        """Describe the generation that was just trained."""
        step = (self.generation + 1) * self.args.steps_per_generation
        losses = [r for r in self.state.log_history if r.get("step") == step]
        row: dict[str, Any] = {
            "generation": self.generation,
            "density": self.connectome.density,
            "num_survivors": self.connectome.num_survivors,
            "digest": self.connectome.digest,
            "steps": step,
            **self.loop_settings(),
        }
        for key in ("loss", "eval_loss"):
            if found := [r[key] for r in losses if key in r]:
                row[key] = found[-1]
        return row

    def loop_settings(self) -> dict[str, Any]:
        """Return the settings that every row of the lineage repeats, and a resume compares."""
        record = self.args.pruning_record()
        return record | {"reset": self.args.reset, "rewiring": self.args.rewiring}

    # ---- files -------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save an ordinary checkpoint, zeros in place, with the connectome in ``connectome/``."""
        folder = Path(output_dir or self.output_folder)
        with refused_writes_named(folder):
            super().save_model(str(folder), _internal_call)
            self._calibrator.save(folder, write=self.args.should_save and _internal_call)
        if self.args.should_save:
            write(self.connectome, folder / CONNECTOME_FOLDER)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with refused_writes_named(self.output_folder):
            super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied parameter is saved once; that its alias is missing from the file is no news.
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        if load_result.unexpected_keys or set(load_result.missing_keys) - tied:
            super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if needs_conversion(checkpoint, self.model):
            load_converted(checkpoint, self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = read(checkpoint / CONNECTOME_FOLDER, host=self.model)
        check_same_run(
            checkpoint,
            saved,
            self.connectome,
            self.loop_settings(),
            steps_per_generation=self.args.steps_per_generation,
        )
        self.connectome = saved
        self._calibrator.load(checkpoint)

    def _save_generation(self) -> None:
        if not self.args.should_save:
            return
        folder = self.generation_folder(self.generation)
        if not self._is_saved(folder):
            with refused_writes_named(folder), atomic_folder(folder) as scratch:
                write(self.connectome, scratch)
                self.write_provenance(scratch)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(str(scratch))

    def _is_saved(self, folder: Path) -> bool:
        try:
            return read(folder, host=self.model) == self.connectome
        except FormatError:  # not there, or damaged: it is written anew
            return False

    def keep_early_weights(self, step: int) -> None:
        """Store the weights in scope if reset=rewind goes back to this step."""
        if self.args.reset != "rewind" or step != self.args.rewind_steps:
            return
        parameters = parameters_of(self.model_wrapped)
        early = {name: full_tensor(parameters[name]).cpu() for name in self.connectome}
        if self.args.should_save:
            keep_early(early, self.output_folder)

    # ---- set-up ------------------------------------------------------------------------------

    def _tokens_per_step(self) -> int | None:
        try:
            length = len(self.train_dataset[0]["input_ids"])  # type: ignore[index]
        except (TypeError, KeyError, IndexError, NotImplementedError):
            return None
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return int(length * batch * self.args.world_size)

    def _label(self, generation: int) -> str:
        return f"generation {generation}  density {self.density:6.1%}"

    def _install_callbacks(self) -> None:
        if hide_display(self):
            self.add_callback(
                StepProgress(self.args.steps_per_generation, self._label, self._tokens_per_step())
            )
        self.add_callback(MetricsFile())
        self.add_callback(GenerationBoundaries(self))
        if self.args.rewiring is not None:
            self.add_callback(GenerationRewiring(self, get_rewiring(self.args.rewiring)))


def _restarting(schedule: Any, steps: int) -> Any:
    return lambda step: schedule(step % steps)


def _successor(parent: Connectome, row: dict[str, Any]) -> ConnectomeConfig:
    assert parent.config is not None
    return replace(
        parent.config,
        generation=parent.config.generation + 1,
        lineage=[*parent.config.lineage, json.loads(json.dumps(row))],
    )

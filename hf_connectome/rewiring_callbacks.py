"""Links that move while a transformers Trainer trains: with any Trainer, and within generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback

from hf_connectome.callbacks import Generations, MaskCallback
from hf_connectome.errors import ConfigError, FormatError, RunError, ScopeError, UnsupportedError
from hf_connectome.hosts import check_host, full_tensor
from hf_connectome.rewiring import Rewirer, Rewiring, get_rewiring
from hf_connectome.storage import CONNECTOME_FOLDER, read

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hf_connectome.connectome import Connectome
    from hf_connectome.enforcement import MaskEnforcer


class RewiringCallback(MaskCallback):
    """Trains a host under a connectome whose links move, with any Trainer.

    As MaskCallback; ``connectome`` is the one of the moment, and every checkpoint carries it, so
    that a resume from there is bit-identical. Births and deaths are records of the trainer's
    history.

    Example:
        ``Trainer(model, args, train_dataset=blocks, callbacks=[RewiringCallback(c, "rigl")])``
    """

    def __init__(self, connectome: Connectome, method: Rewiring | str, *, seed: int = 0) -> None:
        """Hold what training begins with.

        Args:
            connectome: the first wiring, also where a run is resumed.
            method: a method, or its text, such as ``rigl:interval=50``.
            seed: of what a method draws; the same on all ranks.
        """
        super().__init__(connectome)
        self.first = connectome
        self.method = get_rewiring(method) if isinstance(method, str) else method
        self.seed = seed
        self.rewirer: Rewirer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Bind to the prepared model and its optimizer; find the wiring of a resumed run."""
        _refuse_scaled_gradients(self.method, args)
        if args.save_strategy != "no" and self.first.config is None:
            raise ConfigError(
                "the connectome has no config, so no checkpoint could carry it, and links that "
                "moved would be lost. Give it one, connectome.replace(config=ConnectomeConfig()), "
                "or use save_strategy='no'."
            )
        self.connectome = self.first
        if state.global_step:
            self.connectome = _wiring_at(args, state, parts["model"])
        super().on_train_begin(args, state, control, **parts)
        assert self.enforcer is not None
        self.rewirer = Rewirer(
            self.method,
            self.enforcer,
            first=self.first,
            seed=self.seed,
            num_steps=state.max_steps,
        )
        if not self.rewirer.scope:
            raise ScopeError(
                f"every matrix in the scope {self.method.scope!r} is dense, so no link has a place "
                "to move to. Use a sparse connectome, or a method that thins, such as gmp."
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Look at the gradients of a step after which links move."""
        assert self.rewirer is not None
        self.rewirer.watch(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Move links if it is time."""
        assert self.rewirer is not None
        record = self.rewirer.update(state.global_step)
        if record is not None:
            self.connectome = self.rewirer.enforcer.connectome
            _keep_record(state, record)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Put the connectome of the moment beside the weights, with their signs."""
        assert self.rewirer is not None
        self.connectome = self.rewirer.signed()
        super().on_save(args, state, control, **parts)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Read the signs for the last time; remove the hooks."""
        assert self.rewirer is not None
        self.connectome = self.rewirer.signed()
        super().on_train_end(args, state, control, **parts)
        self.rewirer = None


class RewiredGenerations(Generations, Protocol):
    """What such a trainer offers to :class:`GenerationRewiring`."""

    model: Any
    connectome: Connectome

    @property
    def enforcer(self) -> MaskEnforcer:
        """What holds the masks."""

    @property
    def generation(self) -> int:
        """The generation being trained."""

    def generation_folder(self, generation: int) -> Path:
        """Return the folder of the wiring that a generation began with."""


class GenerationRewiring(TrainerCallback):
    """Moves links within each generation; stands after GenerationBoundaries."""

    def __init__(self, trainer: RewiredGenerations, method: Rewiring) -> None:
        """Hold the trainer."""
        self._trainer = trainer
        self._method = method
        self._rewirer: Rewirer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Start anew: masks were bound anew."""
        _refuse_scaled_gradients(self._method, args)
        self._rewirer = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Find what the generation began with; look at gradients that will be needed."""
        num_steps = self._trainer.args.steps_per_generation
        offset = state.global_step // num_steps * num_steps
        if self._rewirer is None or self._rewirer.offset != offset:
            first = self._trainer.connectome
            if state.global_step != offset:  # resumed: its links have moved since
                folder = self._trainer.generation_folder(self._trainer.generation)
                first = read(folder, host=self._trainer.model)
            self._rewirer = Rewirer(
                self._method,
                self._trainer.enforcer,
                first=first,
                seed=args.seed,
                num_steps=num_steps,
                offset=offset,
            )
        self._rewirer.watch(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Move links if it is time."""
        assert self._rewirer is not None
        record = self._rewirer.update(state.global_step)
        if record is not None:
            self._trainer.connectome = self._rewirer.enforcer.connectome
            beside = {
                "generation": self._trainer.generation,
                "density": self._trainer.connectome.density,
            }
            _keep_record(state, record, **beside)


def _refuse_scaled_gradients(method: Rewiring, args: TrainingArguments) -> None:
    if method.needs_gradient and args.fp16:
        raise UnsupportedError(
            f"{type(method).__name__} looks at gradients, which fp16 scales by a changing factor. "
            "Use bf16, or a method that needs no gradient, such as set or chts."
        )


def _wiring_at(args: TrainingArguments, state: TrainerState, model: Any) -> Connectome:
    """Return the connectome of the checkpoint that a run goes on from."""
    folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / CONNECTOME_FOLDER
    try:
        found = read(folder, host=model)
    except FormatError as error:
        raise RunError(
            f"{folder} should hold the wiring at step {state.global_step}: {error}. Links have "
            "moved since the start, so a run goes on only from a checkpoint of its own output_dir."
        ) from error
    for name, parameter in check_host(found, model).items():
        weight = full_tensor(parameter).cpu()
        if weight[~found.mask(name)].any():
            raise RunError(
                f"{name!r} has weights outside the wiring in {folder}: the checkpoint that was "
                "loaded is another. Resume from a checkpoint in output_dir."
            )
    return found


def _keep_record(state: TrainerState, record: dict[str, float], **beside: Any) -> None:
    """Put a record into the trainer's history, which every checkpoint and metrics.jsonl have."""
    place = {"epoch": state.epoch, "step": state.global_step}
    state.log_history.append({**record, **beside, **place})

"""GenerationalArguments: the settings of the outer loop, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_connectome.criteria import criteria
from hf_connectome.errors import ConfigError, UnsupportedError, did_you_mean
from hf_connectome.optimizers import STATE_HELP, check_optimizer_state
from hf_connectome.pruning import SELECTIONS, Pruning
from hf_connectome.reset import resets
from hf_connectome.rewiring import get_rewiring, rewirings
from hf_connectome.schedule import Schedule, make_schedule, schedules
from hf_connectome.structures import FORMS

_STRATEGIES = ("every_save", "end")
_UNSUPPORTED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def unthinned() -> list[str]:
    """Return the rewirings that leave the density alone, which is the generations' business."""
    return [name for name in rewirings if not rewirings.get(name).thins]


@dataclass
class GenerationalArguments(TrainingArguments):
    """How a connectome is evolved; all of transformers' TrainingArguments beside it."""

    generations: int = field(
        default=6, metadata={"help": "Rounds of training and pruning. The paper: 6."}
    )
    steps_per_generation: int = field(
        default=1000,
        metadata={"help": "Optimizer steps in each generation. The published code: 7001."},
    )
    prune_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Part of the current survivors dropped in one generation. The paper: 0.2."
        },
    )
    pruning_schedule: str = field(
        default="geometric",
        metadata={
            "help": f"Density by generation: {', '.join(schedules)}. The paper's is geometric; the "
            "others need a final_density."
        },
    )
    final_density: float | None = field(
        default=None,
        metadata={"help": "Density after the last generation, in place of a prune_fraction."},
    )
    scope: str = field(
        default="all-matrices",
        metadata={
            "help": "What may lose weights: all-matrices, all-linear, body, embeddings, or a "
            "regular expression of module names. The published code prunes every matrix."
        },
    )
    criterion: str = field(
        default="magnitude",
        metadata={"help": f"What makes a weight worth keeping: {', '.join(criteria)}."},
    )
    selection: str = field(
        default="per-tensor",
        metadata={
            "help": "Rank weights within each parameter (per-tensor, the paper's), within each of "
            "its outputs (per-row, Wanda's) or global."
        },
    )
    calibration_batches: int = field(
        default=8,
        metadata={
            "help": "Training batches, of per_device_train_batch_size, on which a criterion that "
            "needs more than weights is measured at the end of each generation."
        },
    )
    budget: str = field(
        default="uniform",
        metadata={
            "help": "How parameters share the survivors: uniform (one density, the paper's) or erk "
            "(small and narrow ones get more)."
        },
    )
    min_survivors: int = field(
        default=1, metadata={"help": "Each parameter keeps at least so many weights."}
    )
    final_density_pattern: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Final densities of single parameters, by name or by a regular expression of "
            'the end of names, as {"wte": 0.5, "mlp.*": 0.1}.'
        },
    )
    structure: str | None = field(
        default=None, metadata={"help": f"Which weights live and die together: {FORMS}."}
    )
    reset: str = field(
        default="sign_constant",
        metadata={
            "help": "First values of the survivors in the next generation: sign_constant (the "
            "paper's), init_std, variance_preserving, tensor_scale, fresh_magnitude, rewind, keep."
        },
    )
    rewiring: str | None = field(
        default=None,
        metadata={
            "help": f"Let links move within each generation, by one of {', '.join(unthinned())}, "
            "with settings: rigl:interval=50,fraction=0.2 (docs/REWIRING.md). By default none do."
        },
    )
    magnitude: float = field(
        default=0.02, metadata={"help": "The constant of sign_constant. The paper: 0.02."}
    )
    rewind_steps: int = field(
        default=0,
        metadata={"help": "Step of generation 0 whose weights reset=rewind goes back to."},
    )
    carry_scales: bool = field(
        default=True,
        metadata={
            "help": "Store one scale a parameter (mean |w| of the survivors) in each connectome."
        },
    )
    push_to_hub: bool | str = field(  # type: ignore[assignment]
        default=False,
        metadata={
            "help": "Push every generation, a commit and a tag each, to this repository "
            "(owner/name) or to --hub_model_id. A run that stopped goes on with the same one."
        },
    )
    carry_values: bool = field(
        default=False, metadata={"help": "Store norms and biases whole in each connectome."}
    )
    optimizer_state: str = field(default="dense", metadata={"help": STATE_HELP})
    survivor_all_reduce: bool = field(
        default=False,
        metadata={"help": "Under DDP, let ranks exchange the gradients of survivors alone."},
    )

    def __post_init__(self) -> None:
        """Refuse settings that cannot work before anything is loaded."""
        self._check_numbers()
        self._name_repository()
        schedule = self.schedule
        if self.steps_per_generation < 1:
            raise ConfigError(
                f"steps_per_generation is {self.steps_per_generation}; expected at least 1."
            )
        total = schedule.num_generations * self.steps_per_generation
        if self.max_steps not in (-1, total):
            raise ConfigError(
                f"max_steps is {self.max_steps}, but {self.generations} generations of "
                f"{self.steps_per_generation} steps are {total}. Leave max_steps out."
            )
        self.max_steps = total
        if self.selection not in SELECTIONS:
            raise ConfigError(
                f"unknown selection {self.selection!r}. {did_you_mean(self.selection, SELECTIONS)}"
            )
        resets.get(self.reset)
        self.pruning.check_settings()
        if not 0 <= self.rewind_steps < self.steps_per_generation:
            raise ConfigError(
                f"rewind_steps is {self.rewind_steps}; expected a step of generation 0, "
                f"0 to {self.steps_per_generation - 1}."
            )
        self._check_rewiring()
        self._refuse_incompatible()
        super().__post_init__()  # type: ignore[no-untyped-call]
        fsdp = self.fsdp_config if isinstance(self.fsdp_config, dict) else {}
        if self.fsdp and int(fsdp.get("version", 2)) == 1:
            raise UnsupportedError(
                "fsdp_config asks for FSDP version 1, which flattens the weights so that masks "
                "cannot be enforced. Use version 2."
            )
        check_optimizer_state(self.optimizer_state, self)
        if self.fsdp and self.survivor_all_reduce:
            raise UnsupportedError(
                "survivor_all_reduce replaces DDP's exchange of gradients; FSDP has one of its "
                "own. Leave one of the two out."
            )

    @property
    def schedule(self) -> Schedule:
        """The schedule that these settings describe."""
        return make_schedule(
            self.pruning_schedule,
            num_generations=self.generations,
            prune_fraction=self.prune_fraction,
            final_density=self.final_density,
        )

    @property
    def pruning(self) -> Pruning:
        """What every generation drops by these settings."""
        return Pruning(
            schedule=self.schedule,
            criterion=self.criterion,
            selection=self.selection,
            seed=self.seed,
            carry_scales=self.carry_scales or self.reset == "tensor_scale",
            carry_values=self.carry_values,
            budget=self.budget,
            min_survivors=self.min_survivors,
            density_pattern=self.final_density_pattern or {},
            structure=self.structure,
        )

    def pruning_record(self) -> dict[str, Any]:
        """Return the settings that decide which weights a generation drops, for its lineage."""
        names = ["criterion", "selection", "pruning_schedule", "final_density", "budget"]
        names += ["min_survivors", "final_density_pattern", "structure"]
        if self.final_density is None:
            names.insert(0, "prune_fraction")
        return {name: getattr(self, name) for name in names}

    def _check_numbers(self) -> None:
        for name, kind in (
            ("generations", int),
            ("steps_per_generation", int),
            ("rewind_steps", int),
            ("min_survivors", int),
            ("calibration_batches", int),
            ("prune_fraction", (int, float)),
            ("magnitude", (int, float)),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                expected = "a whole number" if kind is int else "a number"
                raise ConfigError(f"{name} is {value!r}; expected {expected}.")
        usual = type(self).__dataclass_fields__["prune_fraction"].default
        if self.final_density is not None and self.prune_fraction != usual:
            raise ConfigError(
                f"prune_fraction is {self.prune_fraction} and final_density {self.final_density}; "
                f"each decides the other in {self.generations} generations. Give one of them."
            )
        for name in ("per_device_train_batch_size", "calibration_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 0.0 < self.magnitude < float("inf"):
            raise ConfigError(f"magnitude is {self.magnitude}; expected a positive number.")

    def _check_rewiring(self) -> None:
        if self.rewiring is None:
            return
        method = get_rewiring(self.rewiring)
        if method.thins:
            raise ConfigError(
                f"rewiring {self.rewiring!r} lowers the density, which here falls from generation "
                f"to generation by prune_fraction. Use one of {', '.join(unthinned())}."
            )
        method.last_update(self.steps_per_generation)

    def _name_repository(self) -> None:
        """Take ``push_to_hub=owner/name`` for both of transformers' settings."""
        if isinstance(self.push_to_hub, str):
            if self.hub_model_id not in (None, self.push_to_hub):
                raise ConfigError(
                    f"push_to_hub is {self.push_to_hub!r} but hub_model_id {self.hub_model_id!r}. "
                    "Name the repository once."
                )
            self.hub_model_id, self.push_to_hub = self.push_to_hub, True
        if str(getattr(self.hub_strategy, "value", self.hub_strategy)) not in _STRATEGIES:
            raise ConfigError(
                f"hub_strategy is {self.hub_strategy!r}; what is pushed are generations, "
                "'every_save' as they come or at the 'end'. Checkpoints stay on this machine."
            )

    def _refuse_incompatible(self) -> None:
        if self.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end would put weights of one generation under the mask of "
                "another. Leave it out; save_total_limit says how many checkpoints stay."
            )
        if self.save_only_model:
            raise ConfigError(
                "save_only_model leaves out what a resume needs. Leave it out; save_total_limit "
                "bounds the space that checkpoints take."
            )
        if self.auto_find_batch_size:
            raise ConfigError(
                "auto_find_batch_size restarts training with the generation already advanced. Set "
                "per_device_train_batch_size, and gradient_accumulation_steps for a large batch."
            )
        if self.deepspeed:
            raise UnsupportedError(
                "DeepSpeed ZeRO steps on flat partitions of the weights (ZeRO-3 leaves the "
                "parameters empty), so masks would silently do nothing. Use DDP or FSDP2."
            )
        name = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if name in _UNSUPPORTED_SCHEDULES:
            raise ConfigError(
                f"lr_scheduler_type {name!r} follows the loss and cannot be restarted every "
                "generation. Use one that is a function of the step, such as cosine or linear."
            )
        optimizer = str(getattr(self.optim, "value", self.optim))
        if "lomo" in optimizer or "layerwise" in optimizer:
            raise UnsupportedError(
                f"optim {optimizer!r} updates weights during the backward pass, before they can be "
                "projected. Use adamw_torch, adafactor, sgd or another with an ordinary step."
            )

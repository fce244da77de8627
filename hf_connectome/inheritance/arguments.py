"""What an inner loop is asked for: arms, seeds, first values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_connectome.arms import arm_names, get_arm
from hf_connectome.errors import ConfigError
from hf_connectome.hosts import fresh_reset
from hf_connectome.optimizers import STATE_HELP, check_optimizer_state
from hf_connectome.reset import resets
from hf_connectome.rewiring import get_rewiring, rewirings

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome

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
    rewiring: str | None = field(
        default=None,
        metadata={
            "help": "Let links move while an arm under a connectome trains, by one of "
            f"{', '.join(rewirings)}, with settings: rigl:interval=50,fraction=0.2 "
            "(docs/REWIRING.md). By default none do."
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
        if self.rewiring is not None:
            get_rewiring(self.rewiring).last_update(self.steps)
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

"""What the outer loops beside the generational one share: counts, settings, what they leave.

A generation is a stretch of ``steps_per_generation`` steps here too; the wiring at its end is the
next ``generation-<g>``, and its row of the lineage says what was measured under that wiring.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from hf_connectome.trainer import GenerationalTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_connectome.arguments import GenerationalArguments
    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.connectome import Connectome
    from hf_connectome.outer_loops.arguments import OuterLoopArguments


class OuterLoopTrainer(GenerationalTrainer, ABC):
    """A trainer that writes what GenerationalTrainer writes, but finds the wiring otherwise."""

    final_counts: dict[str, int]
    """Parameter name -> survivors in the end."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: GenerationalArguments,
        *,
        loop: OuterLoopArguments,
        **options: Any,
    ) -> None:
        """Build a Trainer over a plain model.

        Args:
            model: the host, freshly initialised; not a PeftModel.
            args: steps, scope, reset and all else that does not depend on the loop.
            loop: settings of this loop.
            **options: what GenerationalTrainer takes.

        Raises:
            ConfigError: a setting that the loop would not heed.
            ScopeError: the scope matches nothing, or a parameter would end with no survivor.
        """
        loop.check(args)
        self.loop, self.args = loop, args
        super().__init__(model, args, **options)

    def check_counts(self) -> None:
        """Count the survivors that each parameter has in the end; refuse none."""
        self.final_counts = self.loop.final_counts(self._scope, self.args)

    def loop_settings(self) -> dict[str, Any]:
        """Return the settings that every row of the lineage repeats, and a resume compares."""
        shares = ("budget", "min_survivors", "final_density", "final_density_pattern", "reset")
        return self.loop.recorded() | {name: getattr(self.args, name) for name in shares}

    @abstractmethod
    def found(self) -> Connectome:
        """Return the wiring that the loop has come to, with the config of ``connectome``."""

    def next_connectome(self, config: ConnectomeConfig) -> Connectome:
        """Begin the next stretch with the wiring at the end of this one."""
        return self.connectome.replace(config=config)

    def _advance(self) -> None:
        self.connectome = self.found()
        super()._advance()

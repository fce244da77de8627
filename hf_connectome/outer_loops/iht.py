"""ThresholdTrainer: iterative hard thresholding as an outer loop.

One training from dense to sparse: after every optimizer step the largest weights of each parameter
live and the others are 0, but keep their gradients, so that a link may come back. The number that
lives comes down over the steps; in the last part of the training the wiring is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_connectome.evolution import recorded
from hf_connectome.outer_loops.base import OuterLoopTrainer
from hf_connectome.outer_loops.thresholds import HardThresholds
from hf_connectome.scope import parameters_of

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


@dataclass(frozen=True)
class Annealing:
    """How many weights of a parameter are dropped after which step.

    Source:
        Cubic: Zhu & Gupta 2017, "To prune, or not to prune"; the formula, their text was not read.

    Example:
        >>> linear = Annealing(num_steps=4, power=1)
        >>> [linear.n_drop(100, 20, step) for step in (0, 1, 2, 3, 4, 5)]
        [0, 20, 40, 60, 80, 80]
    """

    num_steps: int
    """Steps after which the final count is reached."""
    power: int
    """1 for linear, 3 for cubic."""

    def n_drop(self, num_weights: int, num_survivors: int, step: int) -> int:
        """Return how many of ``num_weights`` are 0 after ``step`` steps."""
        left = max(0.0, 1.0 - step / self.num_steps) ** self.power
        return num_weights - num_survivors - round(left * (num_weights - num_survivors))


class ThresholdTrainer(OuterLoopTrainer):
    """Finds a connectome by iterative hard thresholding, in one ``train()``.

    Writes what GenerationalTrainer writes; ``generation-<g>`` is the wiring after that many
    stretches of ``steps_per_generation`` steps, the last one the result. A resume from any
    checkpoint gives bit-identical results.

    Source:
        Blumensath & Davies 2009, "Iterative hard thresholding for compressed sensing": a gradient
        step, then the k largest. Gao et al. 2025, "Weight-sparse transformers have interpretable
        circuits": the top k of every matrix after each AdamW step, embeddings included, annealed.
        Neither text was read. The fixed last part is ours: what is passed on should have been
        trained as it is.
    """

    _thresholds: HardThresholds | None = None

    @property
    def annealing(self) -> Annealing:
        """The schedule of the counts."""
        num_steps = max(1, round(self.loop.iht_anneal_fraction * self.args.max_steps))
        return Annealing(num_steps, power=3 if self.loop.iht_anneal == "cubic" else 1)

    @property
    def fixed_from(self) -> int:
        """Step from which on the wiring is fixed."""
        return self.args.max_steps - round(self.loop.iht_fixed_fraction * self.args.max_steps)

    @property
    def steps_per_schedule(self) -> int:
        """Steps of the learning-rate schedule: all of them."""
        return self.args.max_steps

    @property
    def density(self) -> float:
        """Survivors over weights in scope, now."""
        if self._thresholds is None:
            return self.connectome.density
        return 1.0 - sum(self._thresholds.n_drop.values()) / self.connectome.num_weights

    def bind(self) -> None:
        """Keep the largest weights from now on, or the wiring that is fixed already."""
        assert self.optimizer is not None
        step = self.state.global_step
        if step >= self.fixed_from:
            super().bind()
            return
        parameters = parameters_of(self.model_wrapped)
        held = HardThresholds({name: parameters[name] for name in self.connectome})
        held.n_drop = self._counts_after(step)
        self._thresholds = held.attach(self.optimizer)

    def advance_to(self, step: int) -> None:
        """Cross what lies at or before ``step``, and set the counts of the step that comes."""
        super().advance_to(step)
        if self._thresholds is None:
            return
        if step < self.fixed_from:
            self._thresholds.n_drop = self._counts_after(step + 1)
            return
        self.connectome = self.found()
        self.finish()
        super().bind()

    def finish(self) -> None:
        """Remove the hooks."""
        super().finish()
        if self._thresholds is not None:
            self._thresholds.detach()
            self._thresholds = None

    def found(self) -> Connectome:
        """Return the wiring of the weights as they are, exactly counted."""
        mask_of = self.connectome.mask
        if self._thresholds is not None:
            self._thresholds.project()  # a step that a loss scaler skipped has not done it
            mask_of = self._thresholds.mask
        config = self.connectome.config
        assert config is not None
        return recorded(self.model_wrapped, self.connectome, mask_of, self._pruning, config)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save an ordinary checkpoint, zeros in place, with the wiring that it has now."""
        self.connectome = self.found()
        super().save_model(output_dir, _internal_call)

    def _counts_after(self, step: int) -> dict[str, int]:
        annealing = self.annealing
        return {
            name: annealing.n_drop(entry.num_weights, self.final_counts[name], step)
            for name, entry in self.connectome.items()
        }

    def loop_settings(self) -> dict[str, Any]:
        """Return the settings that every row of the lineage repeats, and a resume compares."""
        return {**super().loop_settings(), "criterion": "magnitude", "selection": "per-tensor"}

"""What the criterion of a run needs, from the run's own data, equal on all ranks and resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hf_connectome.calibration.measuring import check_needs, measure
from hf_connectome.calibration.movement import MovementSums
from hf_connectome.criteria.base import MOVEMENT
from hf_connectome.errors import ConfigError, some
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from hf_connectome.connectome import Connectome
    from hf_connectome.criteria import Statistics


class Training(Protocol):
    """What a transformers Trainer offers to :class:`Calibrator`."""

    args: Any
    train_dataset: Any
    data_collator: Any

    def compute_loss(self, model: Any, inputs: Any, /) -> Any:
        """Return the loss of a batch."""

    def _prepare_inputs(self, inputs: Any, /) -> Any:
        """Return the batch on the model's device."""

    def _get_collator_with_removed_columns(self, data_collator: Any, /) -> Any:
        """Return the collator, blind to columns that are not the model's."""


class Calibrator:
    """Measures at the end of each generation what the criterion needs; nothing if it needs nothing.

    The batches are drawn from the training set by index, without replacement, and are a function of
    seed and generation alone: a resumed run and every rank draw the same.
    """

    def __init__(self, needs: Sequence[str], training: Training, connectome: Connectome) -> None:
        """Refuse, before the first step, what cannot be had.

        Args:
            needs: of the criterion.
            training: gives data, collator and loss.
            connectome: names the parameters.

        Raises:
            ConfigError: batches are needed, and the training set is streamed.
            ScopeError: a parameter has no such statistic.
        """
        check_needs(needs, connectome)
        self._training = training
        self._needs = tuple(kind for kind in needs if kind != MOVEMENT)
        self._movement = MovementSums(connectome) if MOVEMENT in needs else None
        dataset = training.train_dataset
        if self._needs and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ConfigError(
                f"the criterion needs {some(self._needs)}, measured on training examples that are "
                f"drawn by index, and {type(dataset).__name__} has no index. Use streaming=false, "
                "or a criterion that needs no batches: magnitude, movement, random."
            )

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Follow the training from now on."""
        if self._movement is not None:
            self._movement.attach(model, optimizer)

    def finish(self) -> None:
        """Remove the hook."""
        if self._movement is not None:
            self._movement.detach()

    def statistics(self, model: nn.Module, connectome: Connectome, generation: int) -> Statistics:
        """Return what the criterion needs of the generation that ends now."""
        found: dict[str, Mapping[str, torch.Tensor]] = {}
        if self._needs:
            batches = self._draw(generation)
            loss = self._training.compute_loss
            found |= measure(model, connectome, batches, self._needs, loss=loss)
        if self._movement is not None:
            found[MOVEMENT] = self._movement.take()
        return found

    def save(self, folder: Path, *, write: bool) -> None:
        """Put what a resume needs into a checkpoint; called on every rank."""
        if self._movement is not None:
            self._movement.save(folder, write=write)

    def load(self, folder: Path) -> None:
        """Take it from there."""
        if self._movement is not None:
            self._movement.load(folder)

    def _draw(self, generation: int) -> list[Any]:
        training, arguments = self._training, self._training.args
        size = arguments.per_device_train_batch_size
        draw = generator(arguments.seed, "calibration", generation)
        order = torch.randperm(len(training.train_dataset), generator=draw)
        chosen = order[: arguments.calibration_batches * size].split(size)
        collate = training._get_collator_with_removed_columns(training.data_collator)
        with torch.random.fork_rng(devices=[]):  # a collator may draw, as one that masks does
            torch.manual_seed(draw.initial_seed())
            return [
                training._prepare_inputs(
                    collate([training.train_dataset[i] for i in part.tolist()])
                )
                for part in chosen
            ]

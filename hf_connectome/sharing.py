"""A Trainer whose pushes are generations, where transformers' own would be checkpoints.

It also writes down what the model card says of the training.

What a push consists of is publishing.py's. Checkpoints stay on this machine: they hold pickles,
which nobody should have to load from the Hub.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import Trainer

from hf_connectome.provenance import collect, hardware
from hf_connectome.publisher import GenerationPublisher
from hf_connectome.runs import generations


class SharingTrainer(Trainer):
    """Trainer with ``push_to_hub`` for the folders ``generation-<g>`` of its output directory."""

    _publisher: GenerationPublisher | None = None
    _started: float | None = None
    facts: Mapping[str, Any] = MappingProxyType({})
    """What is known of the corpus and the command, by the fields of Provenance."""

    def start_clock(self) -> None:
        """Count training time from now; of a run that was resumed it is not known."""
        self._started = None if self.state.global_step else time.monotonic()

    def write_provenance(self, folder: Path) -> None:
        """Write what the model card says of training beside a generation."""
        arguments = self.args
        precision = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
        seconds = None if self._started is None else round(time.monotonic() - self._started, 1)
        collect(
            optimizer=str(getattr(arguments.optim, "value", arguments.optim)),
            learning_rate=arguments.learning_rate,
            lr_schedule=str(
                getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
            ),
            seed=arguments.seed,
            precision=precision,
            num_processes=arguments.world_size,
            hardware=hardware(str(arguments.device)),
            train_seconds=seconds,
            **self.facts,
        ).write(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; called before training, so that a refusal costs nothing.

        Raises:
            HubError: the Hub refused.
        """
        if not self.is_world_process_zero():
            return
        self._publisher = GenerationPublisher(
            self.args.hub_model_id or Path(self.args.output_dir or ".").absolute().name,
            private=self.args.hub_private_repo if private is None else private,
            token=self.args.hub_token if token is None else token,
            branch=self.args.hub_revision,
        )
        self.hub_model_id = self._publisher.repo_id  # type: ignore[assignment]

    def push_to_hub(  # type: ignore[override]
        self, *_: Any, token: str | None = None, **__: Any
    ) -> None:
        """Push every generation that is saved and not there yet, and wait for it.

        Args:
            token: of the repository, if it was not given in the arguments.

        Raises:
            HubError: the Hub refused or the connection was lost; what is saved here is whole.
        """
        if self._publisher is None:
            self.init_hf_repo(token)
        self.check_repository()
        self._finish_current_push()

    def check_repository(self) -> None:
        """Refuse a repository that has generations of another run.

        Raises:
            HubError: it has, or it cannot be asked.
        """
        if self._publisher is not None:
            self._publisher.check(self._saved())

    def push_generations(self) -> None:
        """Begin to push what is saved and not there yet, if generations go as they come."""
        if self._publisher is not None and self.args.hub_strategy != "end":
            for folder in self._saved():
                self._publisher.publish(folder)

    def _saved(self) -> list[Path]:
        return generations(Path(self.args.output_dir or "."))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: see the module."""

    def _finish_current_push(self) -> None:
        if self._publisher is not None:
            for folder in self._saved():
                self._publisher.publish(folder)
            self._publisher.finish()

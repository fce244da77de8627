"""SearchTrainer: evolutionary search as an outer loop.

A candidate is a wiring. It is put on the one fresh host, trained a few steps on the same data as
every other, and is worth its loss on training blocks that are kept apart for this: the held-out
text has no part in the choice.
"""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from hf_connectome.callbacks import MaskCallback, hide_display
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, HostMismatchError, RunError, some
from hf_connectome.hosts import check_tokenizer, wire
from hf_connectome.outer_loops.base import OuterLoopTrainer
from hf_connectome.outer_loops.population import Population, mutated
from hf_connectome.seeding import generator
from hf_connectome.sources import find_connectome
from hf_connectome.storage import refused_writes_named, write_atomically
from hf_connectome.wirings import wirings

if TYPE_CHECKING:
    from hf_connectome.arguments import GenerationalArguments

EVALUATIONS_FILE = "evaluations.jsonl"


class SearchTrainer(OuterLoopTrainer):
    """Finds a connectome by evolutionary search; ``train()`` runs it, or goes on with it.

    ``generation-<g>`` is the best wiring after that many generations of candidates. Every
    evaluation is written to ``evaluations.jsonl`` when it is there, and is never made again.
    """

    _population: Population
    _evaluations: list[dict[str, Any]]

    def __init__(self, *model_and_args: Any, **options: Any) -> None:
        """Build it as any :class:`OuterLoopTrainer`, and read what the search starts from.

        Raises:
            ConfigError: the data cannot be divided, or the start has no signs.
            HostMismatchError: the start does not fit the host.
        """
        super().__init__(*model_and_args, **options)
        self._start = self._read_start()
        self._divide_data()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Run the search, or go on with what ``output_dir`` holds of it.

        Args:
            resume_from_checkpoint: left out: a search has no checkpoints.
            trial: not used.
            ignore_keys_for_eval: not used.

        Raises:
            ConfigError: a checkpoint was named.
            RunError: what is recorded is of another search, or a loss is not finite.
        """
        del trial, ignore_keys_for_eval
        if resume_from_checkpoint:
            raise ConfigError(
                f"resume_from_checkpoint is {resume_from_checkpoint!r}, but a search has no "
                "checkpoints and goes on from its evaluations by itself. Leave it out."
            )
        num_children = self.loop.num_children(self.args)
        self._population = Population(
            self._first,
            num_parents=self.loop.search_parents,
            num_children=num_children,
            turnover=self.loop.search_turnover,
            keep_signs=self.loop.search_signs == "keep",
            seed=self.args.seed,
        )
        self._evaluations = self._recorded_evaluations()
        self.connectome = self._own(self._population.propose())
        self.begin()
        for _ in range(self.args.generations):
            self._run_generation(num_children)
        self._finish_current_push()
        return TrainOutput(self.state.global_step, self._population.best.loss, {})

    def bind(self) -> None:
        """Do nothing: every candidate is put on a host of its own."""

    def start_clock(self) -> None:
        """Count the time of a search that starts; of one that goes on it is not known."""
        super().start_clock()
        if self._evaluations:
            self._started = None

    def found(self) -> Connectome:
        """Return the best wiring so far."""
        return self._own(self._population.best.connectome)

    def _own(self, connectome: Connectome) -> Connectome:
        return connectome.replace(config=self.connectome.config)

    # ---- candidates --------------------------------------------------------------------------

    def _read_start(self) -> Connectome | None:
        """Return the connectome to vary, None where wirings are drawn."""
        name = self.loop.search_start
        if name in wirings:
            return None
        if self.args.final_density is not None:
            raise ConfigError(
                f"final_density is {self.args.final_density}, but the search starts from the "
                f"connectome {name!r} and keeps its counts. Leave final_density out."
            )
        start = Connectome.from_pretrained(find_connectome(name), host=self.model)
        if odd := sorted(start.keys() ^ self._scope.keys()):
            raise HostMismatchError(
                f"{some(odd)} is in scope of only one of search_start {name!r} and this run. Use "
                "the scope that the connectome was made with."
            )
        if not start.has_signs:
            raise ConfigError(
                f"search_start {name!r} is mask-only, and a search varies places and signs. Start "
                "from a connectome with signs, or from a wiring: random."
            )
        config = self.connectome.config
        if config is not None and config.tokenizer_digest is not None:
            check_tokenizer(start, config.tokenizer_digest)
        entries = {
            name: SignedMask.pack(entry.mask(), entry.sign(), orientation=entry.orientation)
            for name, entry in start.items()
        }
        return Connectome(entries)

    def _first(self, number: int) -> Connectome:
        """Return a candidate of the first generation: drawn, or the start and variants of it."""
        if self._start is None:
            draw = generator(self.args.seed, "search_start", number)
            seed = int(torch.randint(2**31, (), generator=draw))
            densities = {
                name: count / torch.Size(self._scope[name].shape).numel()
                for name, count in self.final_counts.items()
            }
            return wirings.get(self.loop.search_start)().build(self._scope, densities, seed)
        if number == 0:
            return self._start
        return mutated(
            self._start,
            self.loop.search_turnover,
            keep_signs=self.loop.search_signs == "keep",
            seed=self.args.seed,
            number=number,
        )

    def _divide_data(self) -> None:
        """Keep the last training blocks apart, to compare candidates on."""
        data: Any = self.train_dataset
        num_apart = self.loop.search_eval_blocks
        if not hasattr(data, "__len__"):
            raise ConfigError(
                "the training data is streamed, and a search trains every candidate on the same "
                "blocks. Leave streaming out; max_train_tokens bounds what is read."
            )
        if len(data) - num_apart < self.args.train_batch_size:
            raise ConfigError(
                f"there are {len(data)} training blocks, of which search_eval_blocks keeps "
                f"{num_apart} apart; expected at least one batch of {self.args.train_batch_size} "
                "beside them. Lower search_eval_blocks, or give more text."
            )
        self._learned = Subset(data, range(len(data) - num_apart))
        self._compared = Subset(data, range(len(data) - num_apart, len(data)))

    # ---- evaluation --------------------------------------------------------------------------

    def _run_generation(self, num_children: int) -> None:
        with tqdm(
            total=num_children,
            desc=self._label(self.generation),
            unit="candidate",
            dynamic_ncols=True,
            disable=self.args.disable_tqdm or not self.is_local_process_zero(),
        ) as bar:
            for _ in range(num_children):
                self._evaluate_next()
                bar.set_postfix({"best": f"{self._population.best.loss:.3f}"}, refresh=False)
                bar.update()
        self.state.global_step = (self.generation + 1) * self.args.steps_per_generation
        self.log({"eval_loss": self._population.best.loss})
        self._advance()

    def _evaluate_next(self) -> None:
        """Evaluate the next candidate, unless that is recorded."""
        candidate, number = self._population.propose(), self._population.num_evaluated
        if number == len(self._evaluations):
            loss = self._loss_of(candidate, number)
            self._evaluations.append({"digest": candidate.digest, "loss": loss})
            self._write_evaluations()
        recorded = self._evaluations[number]
        if recorded["digest"] != candidate.digest:
            raise RunError(
                f"evaluation {number} in {self.output_folder / EVALUATIONS_FILE} is of another "
                f"wiring: digest {recorded['digest'][:12]}… there, {candidate.digest[:12]}… here. "
                "Use the settings and the release of that run, or another output_dir."
            )
        self._population.tell(candidate, recorded["loss"])
        self.state.global_step += self.loop.search_steps
        self.log({"candidate_loss": recorded["loss"]})

    def _loss_of(self, candidate: Connectome, number: int) -> float:
        """Train the host under a candidate; return its loss on the blocks kept apart."""
        host = copy.deepcopy(self.model)
        wire(host, candidate, reset=self.args.reset, magnitude=self.args.magnitude)
        trainer = Trainer(
            host,
            self._candidate_arguments(),
            train_dataset=self._learned,
            eval_dataset=self._compared,
            data_collator=self.data_collator,
            callbacks=[MaskCallback(candidate)],
        )
        hide_display(trainer)
        trainer.train()
        loss = float(trainer.evaluate()["eval_loss"])
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of candidate {number} is {loss}: its training diverged. Lower "
                "learning_rate."
            )
        return loss

    def _candidate_arguments(self) -> GenerationalArguments:
        """Return the settings of a candidate's training; warm-up has the share that it has here."""
        arguments = copy.deepcopy(self.args)  # __post_init__ is not meant to run twice
        whole, steps = self.args.steps_per_generation, self.loop.search_steps
        arguments.warmup_steps = round(self.args.get_warmup_steps(whole) * steps / whole)
        arguments.max_steps = steps
        for name in ("save_strategy", "eval_strategy", "logging_strategy"):
            setattr(arguments, name, type(getattr(arguments, name))("no"))
        arguments.disable_tqdm, arguments.report_to = True, []
        arguments.push_to_hub = arguments.eval_on_start = False
        return arguments

    def _recorded_evaluations(self) -> list[dict[str, Any]]:
        file = self.output_folder / EVALUATIONS_FILE
        if not file.is_file():
            return []
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            return [{"digest": str(r["digest"]), "loss": float(r["loss"])} for r in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{file} cannot be read: {error!r}. Use another output_dir, or remove it to start "
                "anew."
            ) from error

    def _write_evaluations(self) -> None:
        if self.args.should_save:
            file = self.output_folder / EVALUATIONS_FILE
            lines = "".join(json.dumps(row) + "\n" for row in self._evaluations)
            with refused_writes_named(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, lines.encode())

"""All evaluations of several models: checked before anything is loaded, each result kept once done.

What a model is comes from subjects.py, what a number means from the module that computes it; tables
are report.py's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import ConfigError, ConnectomeError, DataError, some
from hf_connectome.evaluation.brain import neural_predictivity
from hf_connectome.evaluation.likelihood import HeldOutText, held_out_text, text_likelihood
from hf_connectome.evaluation.lm import evaluate_lm, require_lm_eval, scores, task_manager_of
from hf_connectome.evaluation.lm_sources import check_tasks, task_files
from hf_connectome.evaluation.reading import AlignmentWarning, reading_times, word_counts
from hf_connectome.evaluation.report import UNTRAINED
from hf_connectome.evaluation.states import untrained_twin
from hf_connectome.evaluation.subjects import shortest_names
from hf_connectome.evaluation.tables import (
    TUCKUTE_CEILINGS,
    SentenceTable,
    natural_stories,
    sentence_table,
    tuckute_2024,
)
from hf_connectome.runs import claim
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from hf_connectome.evaluation.arguments import EvaluationArguments
    from hf_connectome.evaluation.subjects import Subject
    from hf_connectome.evaluation.tables import ReadingTable

RESULTS_FOLDER = "models"
_RESULT_FILE = "result.json"
_UNTRAINED_SEED = 0


@dataclass(frozen=True)
class Job:
    """One piece of work: one model on one task."""

    subject: Subject
    task: str
    item: str
    """Name of the text or of lm-eval's task; the task's name otherwise."""
    settings: dict[str, Any]
    """All that decides the result."""
    measure: Callable[[PreTrainedModel], dict[str, Any]]

    def folder(self, output: Path) -> Path:
        """Return where its result is kept."""
        item = "" if self.item == self.task else "-" + re.sub(r"[^\w.-]+", "-", self.item)
        return output / RESULTS_FOLDER / self.subject.folder_name / f"{self.task}{item}"


@dataclass(frozen=True)
class Outcome:
    """One result, as it is kept."""

    label: str
    task: str
    item: str
    result: dict[str, Any]
    seconds: float
    is_new: bool
    """Whether it was computed now, and not found."""


@dataclass(frozen=True)
class Materials:
    """What the models read: loaded once, and checked before any of them."""

    arguments: EvaluationArguments

    @cached_property
    def texts(self) -> list[HeldOutText]:
        """The held-out texts, if one of the tasks reads them."""
        a = self.arguments
        fractions = [None] * len(a.eval_dataset) + [a.eval_fraction] * len(a.dataset)
        found = [
            held_out_text(name, fraction=fraction, max_bytes=a.max_bytes)
            for name, fraction in zip(a.texts, fractions, strict=True)
        ]
        names = shortest_names(a.texts)
        return [replace(text, name=name) for text, name in zip(found, names, strict=True)]

    @cached_property
    def lm_tasks(self) -> list[str]:
        """The names of lm-eval's tasks, each of which is known and has rows."""
        a = self.arguments
        require_lm_eval()
        if a.data_dir is not None and not Path(a.data_dir).is_dir():
            raise DataError(
                f"data_dir {a.data_dir!r} is no folder. Name the one with the rows of "
                f"{some(a.lm_tasks)}, or leave it out to read them from the Hub."
            )
        names = check_tasks(a.lm_tasks)
        with task_files(names, a.data_dir, a.num_fewshot) as folders:
            if a.data_dir is None:
                task_manager_of(names, folders, None, {})
        return names

    @cached_property
    def stories(self) -> ReadingTable:
        """Words and reading times."""
        assert self.arguments.natural_stories is not None
        return natural_stories(self.arguments.natural_stories)

    @cached_property
    def frequency(self) -> HeldOutText:
        """The text that words are counted in."""
        named = self.arguments.frequency
        return self.texts[0] if named is None else held_out_text(named)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each word is in ``frequency``."""
        return word_counts(self.frequency.documents)

    @cached_property
    def sentences(self) -> SentenceTable:
        """Sentences and responses; the regions of Tuckute et al. 2024 with their ceilings."""
        assert self.arguments.brain_table is not None
        table = sentence_table(self.arguments.brain_table)
        if set(TUCKUTE_CEILINGS) <= set(table.regions):
            return tuckute_2024(self.arguments.brain_table)
        return table

    def check(self) -> None:
        """Read all that the tasks need.

        Raises:
            DataError: a text, table or folder is missing or damaged.
            ConfigError: lm-eval is not installed.
            UnknownNameError: lm-eval has no such task.
        """
        tasks = self.arguments.tasks
        needed = {"loss": ["texts"], "lm": ["lm_tasks"], "reading": ["stories", "counts"]}
        for task in tasks:
            for name in needed.get(task, ["sentences"]):
                getattr(self, name)


def plan(subjects: Sequence[Subject], materials: Materials) -> list[Job]:
    """List all that is to do, models in the outer loop.

    Raises:
        ConfigError: a task that a model cannot do.
    """
    wanted, context = materials.arguments.tasks, materials.arguments.context
    causal_only = [task for task in wanted if task != "brain"]
    for subject in subjects:
        if causal_only and not subject.is_causal:
            raise ConfigError(
                f"{subject.label!r} is a {subject.architecture}, which is no causal language "
                f"model; {some(causal_only)} need one, only 'brain' takes encoders. Leave it out."
            )
        if context is not None and subject.max_context is not None:
            _check_context(subject, context)
    makers = {"loss": _loss, "lm": _lm, "reading": _reading, "brain": _brain}
    return [job for s in subjects for task in wanted for job in makers[task](s, materials)]


def _check_context(subject: Subject, context: int) -> None:
    assert subject.max_context is not None
    if context > subject.max_context:
        raise ConfigError(
            f"context is {context} tokens, but {subject.label!r} has {subject.max_context} "
            f"positions. Use --context {subject.max_context}, or leave it out to use all of each "
            "model's."
        )


def run(
    jobs: Sequence[Job], output: Path, device: str, report: Callable[[str], None]
) -> Iterator[Outcome]:
    """Do what is not done yet; each result is written when it is there and never redone.

    Args:
        jobs: of :func:`plan`.
        output: folder of the results.
        device: where models are put.
        report: is given a line of progress before and after each piece of work.

    Yields:
        Every result, old or new, in the order of ``jobs``.

    Raises:
        RunError: a result there was found with other settings.
        DataError: rows of a task could not be downloaded.
    """
    for job in jobs:  # all of them, before the first is done
        claim(job.folder(output), job.settings, record=False)
    model: Any = None
    loaded: Subject | None = None
    for number, job in enumerate(jobs, start=1):
        what = f"[{number}/{len(jobs)}] {job.subject.label}  {job.task}"
        what += "" if job.item == job.task else f" {job.item}"
        done = _stored(job.folder(output) / _RESULT_FILE)
        if done is None and loaded is not job.subject:
            model = None  # makes room for the next
            model, loaded = job.subject.load(device), job.subject
        is_new = done is None
        if done is None:
            report(f"{what} …")
            began = time.monotonic()
            result = job.measure(model)
            done = {"result": result, "seconds": time.monotonic() - began}
            _store(job, output, done)
        report(f"{what}  {done['seconds']:.1f} s" if is_new else f"{what}  was there")
        yield Outcome(job.subject.label, job.task, job.item, **done, is_new=is_new)


def refuse_processes() -> None:
    """Refuse to run in several processes, which would all do the same work.

    Raises:
        ConfigError: torchrun or accelerate started more than one.
    """
    num = int(os.environ.get("WORLD_SIZE", "1"))
    if num > 1:
        raise ConfigError(
            f"evaluations run in one process, but {num} were started. Run python "
            "recipes/evaluate.py, several times with different --models to share the work."
        )


# ---- the tasks -----------------------------------------------------------------------------------


def _loss(subject: Subject, materials: Materials) -> Iterator[Job]:
    a = materials.arguments
    options: dict[str, Any] = {"context": a.context, "batch_size": a.batch_size}
    for text in materials.texts:

        def measure(model: Any, text: HeldOutText = text) -> dict[str, Any]:
            found = text_likelihood(model, subject.tokenizer, text.documents, **options)
            return found.as_json()

        settings = subject.identity() | {"context": a.context, "text": text.digest}
        yield Job(subject, "loss", text.name, settings, measure)


def _lm(subject: Subject, materials: Materials) -> Iterator[Job]:
    a = materials.arguments
    options: dict[str, Any] = {"limit": a.limit, "num_fewshot": a.num_fewshot}
    settings = subject.identity() | options | {"rows": "data_dir" if a.data_dir else "Hub"}
    for name in materials.lm_tasks:

        def measure(model: Any, name: str = name) -> dict[str, Any]:
            reads: dict[str, Any] = {"data_dir": a.data_dir, "batch_size": a.batch_size}
            try:
                found = evaluate_lm(model, subject.tokenizer, [name], **options, **reads)
            except OSError as error:  # what datasets raises without a network
                if isinstance(error, ConnectomeError):
                    raise
                raise DataError(
                    f"the rows of {name!r} could not be read: {error}. Give a folder that has "
                    "them, --data_dir, or come back when the Hub can be reached."
                ) from error
            return found | {"scores": [vars(score) for score in scores(found)]}

        yield Job(subject, "lm", name, settings, measure)


def _reading(subject: Subject, materials: Materials) -> Iterator[Job]:
    a, table = materials.arguments, materials.stories
    read: dict[str, Any] = {"context": a.context, "batch_size": a.batch_size}

    def measured(model: Any) -> dict[str, Any]:
        counts = materials.counts
        return reading_times(model, subject.tokenizer, table, frequency=counts, **read).as_json()

    def measure(model: Any) -> dict[str, Any]:
        found = measured(model)
        with warnings.catch_warnings():  # of misplaced times, which the model's own result gives
            warnings.simplefilter("ignore", AlignmentWarning)
            return found | {UNTRAINED: measured(untrained_twin(model, _UNTRAINED_SEED))}

    settings = subject.identity() | {
        "context": a.context,
        "frequency": materials.frequency.digest,
        "stories": _digest([table.words, table.items, table.filed_times.tolist()]),
    }
    yield Job(subject, "reading", "reading", settings, measure)


def _brain(subject: Subject, materials: Materials) -> Iterator[Job]:
    a, table = materials.arguments, materials.sentences

    def measure(model: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"num_shuffles": a.num_shuffles, "batch_size": a.batch_size}
        options |= {"untrained_seeds": (_UNTRAINED_SEED,)}
        return neural_predictivity(model, subject.tokenizer, table, **options).as_json()

    settings = subject.identity() | {
        "num_shuffles": a.num_shuffles,
        "sentences": _digest([table.sentences, table.regions, table.responses.tolist()]),
    }
    yield Job(subject, "brain", "brain", settings, measure)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _store(job: Job, output: Path, done: dict[str, Any]) -> None:
    folder = job.folder(output)
    claim(folder, job.settings)
    file = folder / _RESULT_FILE
    with refused_writes_named(file):
        write_atomically(file, (json.dumps(done, indent=1) + "\n").encode())


def _stored(file: Path) -> dict[str, Any] | None:
    """Return a result that was kept, None where there is none that is whole."""
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
        return {"result": dict(done["result"]), "seconds": float(done["seconds"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None

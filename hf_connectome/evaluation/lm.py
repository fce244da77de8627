"""What a language model scores on lm-eval's tasks, as plain data, and as rows for a card.

The command line is ``python -m hf_connectome.evaluation lm``; where rows of tasks come from is
lm_sources.py's, how a model is asked lm_model.py's.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import logging
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import ConfigError, UnknownNameError
from hf_connectome.evaluation.lm_model import check_vocabulary, windowed_lm
from hf_connectome.evaluation.lm_sources import check_tasks, index_of, stock_paths, task_files

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BOOTSTRAP_DRAWS = 1000
"""Of lm-eval's standard error of a perplexity; that of a mean has a formula."""
_PACKAGES = ("hf_connectome", "lm_eval", "transformers", "torch", "datasets")


def evaluate_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] | str,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model in memory; the numbers are those of lm-eval's command line.

    The model's mode, the tokenizer and the state of all random generators are left as they were.
    A model with few positions loses the left end of long contexts, which warns once and is counted
    in ``context``.

    Args:
        model: a causal or sequence-to-sequence model of transformers, or a PeftModel of one.
        tokenizer: what its embedding rows belong to.
        tasks: names of lm-eval's tasks, groups or tags, or of this package's:
            ``hellaswag_per_token``, ``mmlu_cloze`` (or one subject, ``mmlu_cloze_anatomy``).
        limit: first rows of each task only; the scores are then not those of the task.
        batch_size: requests at a time.
        num_fewshot: examples before each question, where the task does not fix it.
        data_dir: folder of JSON lines to read the rows from, as in
            :func:`hf_connectome.evaluation.lm_sources.task_files`; by default the Hub.
        device: where to move the model; by default it stays.

    Returns:
        JSON types: ``tasks``: name -> ``dataset``, ``config``, ``split``, ``version``,
        ``num_fewshot``, ``num_samples`` (evaluated), ``num_rows`` (there are), ``metrics``: name ->
        ``value``, ``stderr`` (None where there is none), ``higher_is_better``; ``context``:
        ``max_length``, ``requests``, ``shortened``, ``windowed``; ``limit``; ``versions``.

    Raises:
        UnknownNameError: no such task.
        DataError: the rows of a task are not in ``data_dir``.
        HostMismatchError: the tokenizer has more tokens than the model has rows.
        ConfigError: no task, or ``limit`` is not positive.
    """
    names = check_tasks(tasks)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}; expected 1 or more rows a task, or None for all.")
    require_lm_eval()
    check_vocabulary(model, tokenizer)
    was_training = model.training
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    try:
        with task_files(names, data_dir, num_fewshot) as folders, _quiet(), _seeds_kept():
            lm = windowed_lm()(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
            found = _run(lm, names, folders, data_dir, limit=limit, num_fewshot=num_fewshot)
    finally:
        model.train(was_training)
    return {"tasks": found, "context": _context(lm), "limit": limit, "versions": _versions()}


def _context(lm: Any) -> dict[str, int]:
    return {
        "max_length": lm.max_length,
        "requests": lm.num_requests,
        "shortened": lm.num_shortened,
        "windowed": lm.num_windowed,
    }


def _run(
    lm: Any,
    names: Sequence[str],
    folders: Sequence[Path],
    data_dir: str | Path | None,
    **options: Any,
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    with tempfile.TemporaryDirectory(prefix="connectome-tokenizer-") as tokenizer:
        lm.tokenizer.save_pretrained(tokenizer)
        manager = task_manager_of(names, folders, data_dir, {"tokenizer": tokenizer})
        wanted = manager.match_tasks(names) if data_dir is not None else list(names)
        results = simple_evaluate(
            lm,
            tasks=wanted,
            task_manager=manager,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            log_samples=False,
            random_seed=None,  # None leaves the generators of a training that goes on alone
            numpy_random_seed=None,
            torch_random_seed=None,
            **options,
        )
    return {name: _task(name, results) for name in results["results"]}


def task_manager_of(
    names: Sequence[str],
    folders: Sequence[Path],
    data_dir: str | Path | None,
    metadata: dict[str, Any],
) -> Any:
    """Index only what is needed, where that is known: all of lm-eval's tasks take half a minute."""
    from lm_eval.tasks import TaskManager

    paths = [str(folder) for folder in folders]
    if data_dir is None:
        few = index_of(folders[0])
        if all(name in few for name in names):
            paths = [*map(str, stock_paths()), *paths]
        else:
            manager = TaskManager(include_path=paths, metadata=metadata)
            unknown = [name for name in names if name not in manager.task_index]
            if unknown:
                raise UnknownNameError(
                    f"lm-eval {importlib.metadata.version('lm_eval')} has no task {unknown[0]!r}. "
                    "List its tasks: python -m hf_connectome.evaluation lm ls tasks."
                )
            return manager
    return TaskManager(include_path=paths, include_defaults=False, metadata=metadata)


def _task(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lm-eval's results of one task or group into plain data."""
    members = results.get("group_subtasks", {}).get(name) or [name]
    leaves = _leaves(members, results)
    configs = [results["configs"][leaf] for leaf in leaves]
    sources = [_source(config) for config in configs]
    samples = [results["n-samples"][leaf] for leaf in leaves]
    direction = results["higher_is_better"].get(name) or {}
    metrics = {}
    for key, value in results["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            label = metric if filter_name == "none" else f"{metric},{filter_name}"
            stderr = results["results"][name].get(f"{metric}_stderr,{filter_name}")
            metrics[label] = {
                "value": _number(value),
                "stderr": _number(stderr),
                "higher_is_better": direction.get(metric),
            }
    return {
        "dataset": _one(s["dataset"] for s in sources),
        "config": _one(s["config"] for s in sources),
        "split": _one(c.get("test_split") or c.get("validation_split") for c in configs),
        "version": results["versions"].get(name),
        "num_fewshot": _one(c.get("num_fewshot") for c in configs),
        "num_samples": sum(s["effective"] for s in samples),
        "num_rows": sum(s["original"] for s in samples),
        "metrics": metrics,
    }


def _leaves(members: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for member in members:
        inner = results.get("group_subtasks", {}).get(member)
        found += _leaves(inner, results) if inner else [member]
    return found


def _source(config: Mapping[str, Any]) -> dict[str, Any]:
    stock = {"dataset": config.get("dataset_path"), "config": config.get("dataset_name")}
    recorded: dict[str, Any] = (config.get("metadata") or {}).get("source") or stock
    return recorded


def _one(values: Iterator[Any] | Sequence[Any]) -> Any:
    """Return the value that all have, else None."""
    found = list(values)
    return found[0] if found and all(value == found[0] for value in found) else None


def _number(value: Any) -> float | None:
    """Return a finite number, else None: lm-eval says 'N/A' and NaN where there is none."""
    if isinstance(value, str) or value is None or not math.isfinite(value):
        return None
    return float(value)


def _versions() -> dict[str, str]:
    import hf_connectome

    versions = {name: importlib.metadata.version(name) for name in _PACKAGES[1:]}
    return {"hf_connectome": hf_connectome.__version__} | versions


def require_lm_eval() -> None:
    """Refuse where lm-eval is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "lm-eval is not installed, and these tasks are its own. Install it: "
            "pip install 'hf_connectome[eval]'."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's remarks on models in memory out of the log, and its prints off stdout."""
    logger, variable = logging.getLogger("lm_eval"), "DISABLE_MULTIPROC"
    level, before = logger.level, os.environ.get(variable)
    logger.setLevel(logging.ERROR)
    os.environ[variable] = "1"  # its bootstrap would start a process a core
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


@contextlib.contextmanager
def _seeds_kept() -> Iterator[None]:
    """Put the generators back that lm-eval and datasets draw from."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@dataclass(frozen=True)
class LmScore:
    """One number of one task, for a card or for ``.eval_results``."""

    dataset: str | None
    """Hub id, such as ``Rowan/hellaswag``; None for a group over several datasets."""
    config: str | None
    """Of the dataset."""
    split: str | None
    task: str
    """Name in lm-eval."""
    task_version: str | None
    metric: str
    value: float
    stderr: float | None
    num_samples: int
    num_rows: int
    """Rows of the split; more than ``num_samples`` where a limit was set."""
    num_fewshot: int | None
    higher_is_better: bool | None
    harness: str
    """Name and version of what computed it."""

    @property
    def is_complete(self) -> bool:
        """Whether every row was evaluated."""
        return self.num_samples == self.num_rows


def scores(report: Mapping[str, Any]) -> list[LmScore]:
    """List the numbers of :func:`evaluate_lm`, one row a task and metric; undefined ones left out.

    Example:
        >>> metrics = {"acc": {"value": 0.25, "stderr": 0.1, "higher_is_better": True}}
        >>> task = {"dataset": "Rowan/hellaswag", "config": None, "split": "validation",
        ...         "version": 1.0, "num_fewshot": 0, "num_samples": 20, "num_rows": 10042,
        ...         "metrics": metrics}
        >>> [row] = scores({"tasks": {"hellaswag": task}, "versions": {"lm_eval": "0.4.13"}})
        >>> row.task, row.metric, row.value, row.is_complete
        ('hellaswag', 'acc', 0.25, False)
    """
    harness = f"lm-eval {report['versions']['lm_eval']}"
    return [
        LmScore(
            dataset=task["dataset"],
            config=task["config"],
            split=task["split"],
            task=name,
            task_version=None if task["version"] is None else str(task["version"]),
            metric=metric,
            value=found["value"],
            stderr=found["stderr"],
            num_samples=task["num_samples"],
            num_rows=task["num_rows"],
            num_fewshot=task["num_fewshot"],
            higher_is_better=found["higher_is_better"],
            harness=harness,
        )
        for name, task in report["tasks"].items()
        for metric, found in task["metrics"].items()
        if found["value"] is not None
    ]

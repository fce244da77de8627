"""Which tasks there are, and where their rows come from: the Hub, or a folder of JSON lines.

A task read from a folder is lm-eval's own file with the data source exchanged; how it is scored and
prompted stays lm-eval's. Nothing is evaluated here.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from hf_connectome.errors import ConfigError, DataError, UnknownNameError, did_you_mean, some

OWN_TASKS = Path(__file__).with_name("lm_tasks")
STOCK_FOLDERS = (
    "arc",
    "blimp",
    "hellaswag",
    "lambada",
    "mmlu/continuation",
    "mmlu/default",
    "piqa",
    "winogrande",
)
"""Folders of lm-eval whose tasks can be read from JSON lines; to index them all takes half a
minute."""

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_MMLU_CLOZE = "mmlu_cloze"


@contextmanager
def task_files(
    tasks: Sequence[str], data_dir: str | Path | None = None, num_fewshot: int | None = None
) -> Iterator[list[Path]]:
    """Write what lm-eval's ``include_path`` needs for ``tasks``; gone when the block ends.

    Args:
        tasks: names of tasks, groups or tags; with ``data_dir`` also patterns (``mmlu_*``), which
            mean the tasks whose rows are there.
        data_dir: a folder with ``<dataset>/<config>/<split>.jsonl`` (``mmlu/anatomy/test.jsonl``),
            where a dataset of one config needs no second folder (``hellaswag/validation.jsonl``)
            and a config of one split no third (``blimp/adjunct_island.jsonl``); None: the Hub.
        num_fewshot: examples before each question, which need rows too.

    Yields:
        Folders of task files: all of this package's tasks, or with ``data_dir`` exactly ``tasks``.

    Raises:
        UnknownNameError: no such task.
        DataError: the rows of a task are not in ``data_dir``.
    """
    with tempfile.TemporaryDirectory(prefix="connectome-tasks-") as temporary:
        own = Path(temporary, "own")
        _write_own(own)
        if data_dir is None:
            yield [own]
            return
        local = Path(temporary, "local")
        _LocalTasks(Path(data_dir), index_of(own), num_fewshot).write(tasks, local)
        yield [local]


def stock_paths() -> list[Path]:
    """Return lm-eval's folders of ``STOCK_FOLDERS``."""
    from lm_eval import tasks

    root = Path(tasks.__path__[0])
    return [path for path in (root / folder for folder in STOCK_FOLDERS) if path.is_dir()]


def index_of(own: Path) -> Mapping[str, Any]:
    """Index the tasks of ``STOCK_FOLDERS`` and of this package by name."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[*stock_paths(), own], include_defaults=False)
    index: Mapping[str, Any] = manager.task_index
    return index


def expand(name: str, index: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """List the tasks that a task, group or tag consists of, and the groups on the way.

    Raises:
        UnknownNameError: no such name.
    """
    if name not in index:
        raise UnknownNameError(
            f"no task {name!r} of lm-eval can be read from a folder. {_near(name, index)} For the "
            "other tasks leave data_dir out: their rows then come from the Hub."
        )
    entry = index[name]
    if entry.cfg is None:  # a tag
        return sorted(entry.tags), []
    if "group" not in entry.cfg:
        return [name], []
    tasks, groups = _members(entry.cfg["task"], index)
    return tasks, [name, *groups]


def _members(items: Sequence[Any], index: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    tasks: list[str] = []
    groups: list[str] = []
    for item in items:
        inner: Any = item.get("task") or item["group"] if isinstance(item, Mapping) else item
        found = expand(inner, index) if isinstance(inner, str) else _members(inner, index)
        tasks += found[0]
        groups += found[1]
    return tasks, groups


def _near(name: str, index: Mapping[str, Any]) -> str:
    hint, _, _ = did_you_mean(name, index).partition("Available")
    return hint.strip() or f"There are {some(sorted(index))}."


def _write_own(folder: Path) -> None:
    """Write this package's tasks: a file each, for MMLU one a subject and their group."""
    folder.mkdir()
    for path in sorted(OWN_TASKS.glob("*.yaml")):
        _dump(folder / path.name, {"include": str(path)})
    subjects = _mmlu_subjects()
    for subject in subjects:
        task = f"{_MMLU_CLOZE}_{subject}"
        content = {"include": str(OWN_TASKS / "_mmlu_cloze"), "task": task}
        _dump(folder / f"{task}.yaml", content | {"dataset_name": subject})
    metrics = [{"metric": m, "weight_by_size": True} for m in ("acc", "acc_norm")]
    group = {
        "group": _MMLU_CLOZE,
        "task": [f"{_MMLU_CLOZE}_{subject}" for subject in subjects],
        "aggregate_metric_list": metrics,
        "metadata": {"version": 1.0},
    }
    _dump(folder / f"_{_MMLU_CLOZE}.yaml", group)


def _mmlu_subjects() -> list[str]:
    found = [p for folder in stock_paths() if folder.name == "default" for p in folder.iterdir()]
    return sorted(p.stem.removeprefix("mmlu_") for p in found if p.name.startswith("mmlu_"))


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


@dataclass
class _LocalTasks:
    """Tasks that read their rows from ``data_dir``."""

    data_dir: Path
    index: Mapping[str, Any]
    num_fewshot: int | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Task without rows -> the file that was looked for."""

    def __post_init__(self) -> None:
        if not self.data_dir.is_dir():
            raise DataError(
                f"data_dir {str(self.data_dir)!r} is no folder; expected one with JSON lines such "
                "as hellaswag/validation.jsonl. Leave data_dir out to read from the Hub."
            )

    def write(self, names: Sequence[str], folder: Path) -> None:
        """Write ``names`` and all that they consist of into ``folder``, or refuse all of them."""
        folder.mkdir()
        for name in names:
            tasks, groups = self._matching(name) if "*" in name else expand(name, self.index)
            written = [task for task in tasks if self._write_task(task, folder)]
            if self.missing:
                raise DataError(self._message(name, tasks, written))
            for group in groups:
                _dump(folder / f"{group}.yaml", {"include": str(self.index[group].yaml_path)})

    def _matching(self, pattern: str) -> tuple[list[str], list[str]]:
        found = [
            name
            for name, entry in self.index.items()
            if fnmatchcase(name, pattern)
            and entry.cfg is not None
            and "group" not in entry.cfg
            and self._files(name)[0]
        ]
        if not found:
            raise DataError(
                f"no task like {pattern!r} has rows in {str(self.data_dir)!r}. Put them there as "
                "<dataset>/<config>/<split>.jsonl, or leave data_dir out to read from the Hub."
            )
        return sorted(found), []

    def _write_task(self, name: str, folder: Path) -> bool:
        config = self.index[name].cfg
        files, split = self._files(name)
        if not files:
            self.missing[name] = str(self._candidates(name)[0] / f"{split}.jsonl")
            return False
        stock = config.get("test_split") or config.get("validation_split")
        if split != stock:
            warnings.warn(
                f"{name} is evaluated on {split!r}, because {str(self.data_dir)!r} has no "
                f"{stock!r}, on which lm-eval evaluates it. Add {stock}.jsonl.",
                stacklevel=2,
            )
        self._check_fewshot(name, config, files)
        source = {"dataset": config["dataset_path"], "config": config.get("dataset_name")}
        metadata = dict(config.get("metadata") or {}) | {"source": source}
        content: dict[str, Any] = {"include": str(self.index[name].yaml_path), "task": name}
        content |= {"dataset_path": "json", "dataset_name": None, "metadata": metadata}
        content["dataset_kwargs"] = {  # the copy that datasets makes goes with the task's file
            "data_files": {split: str(path.absolute()) for split, path in files.items()},
            "cache_dir": str(folder.parent / "datasets"),
        }
        content |= {key: config.get(key) if config.get(key) in files else None for key in _SPLITS}
        _dump(folder / f"{name}.yaml", content)
        return True

    def _check_fewshot(
        self, name: str, config: Mapping[str, Any], files: Mapping[str, Any]
    ) -> None:
        source = config.get("fewshot_split") or config.get("training_split")
        fixed = config.get("num_fewshot") == 0
        if self.num_fewshot and not fixed and source is not None and source not in files:
            raise DataError(
                f"{name} takes its {self.num_fewshot} examples from {source!r}, but "
                f"{str(self.data_dir)!r} has {some(files)} only. Add {source}.jsonl, or use "
                "num_fewshot=0."
            )

    def _candidates(self, name: str) -> list[Path]:
        config = self.index[name].cfg
        dataset = self.data_dir / str(config["dataset_path"]).rpartition("/")[2].lower()
        inner = config.get("dataset_name")
        return [dataset / inner, dataset, self.data_dir / name] if inner else [dataset]

    def _files(self, name: str) -> tuple[dict[str, Path], str]:
        """Return the file of each split that the task can use, and the split to evaluate."""
        config = self.index[name].cfg
        order = [s for s in (config.get("test_split"), config.get("validation_split")) if s]
        for folder in self._candidates(name):
            single = folder.with_name(folder.name + ".jsonl")
            found = {path.stem: path for path in folder.glob("*.jsonl")}
            found = found or ({order[0]: single} if single.is_file() else {})
            for split in order:
                if split in found:
                    wanted = {config.get(key) for key in _SPLITS}
                    return {s: path for s, path in found.items() if s in wanted}, split
        return {}, order[0]

    def _message(self, name: str, tasks: Sequence[str], written: Sequence[str]) -> str:
        looked_for = next(iter(self.missing.values()))
        if len(tasks) == 1:
            return (
                f"the rows of {name} are not in {str(self.data_dir)!r}; expected {looked_for}. Put "
                "them there, or leave data_dir out to read from the Hub."
            )
        there = f"name those that have: {some(written)}" if written else "leave data_dir out"
        return (
            f"{len(self.missing)} of the {len(tasks)} tasks of {name!r} have no rows in "
            f"{str(self.data_dir)!r} (such as {looked_for}), and the rest is not {name!r}. Add "
            f"them, or {there}."
        )


def check_tasks(tasks: Sequence[str] | str) -> list[str]:
    """Return ``tasks`` as a list of names without repeats.

    Raises:
        ConfigError: there is none.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    names = [part.strip() for name in names for part in name.split(",") if part.strip()]
    if not names:
        raise ConfigError("tasks names no task; expected one or more, such as ['hellaswag'].")
    return list(dict.fromkeys(names))

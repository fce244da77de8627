"""What inherit.py measured, as the card and the Hub take it.

The table is evaluation.arms' own. Results of any other connectome are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hf_connectome.arms import source_of
from hf_connectome.errors import FormatError
from hf_connectome.evaluation.arms import ArmResult, by_arm
from hf_connectome.json_files import read_object
from hf_connectome.provenance import hub_id
from hf_connectome.runs import RUN_FILE

if TYPE_CHECKING:
    import os

RESULTS_FILE = "results.json"
ARM = "connectome"
TASK = "held-out-loss"
_MAX_BYTES = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9][\w .,:+=@-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Results:
    """Arms that learned side by side, and what is known of how."""

    runs: tuple[ArmResult, ...]
    digest: str | None = None
    """Of the connectome that the arms inherited."""
    corpus: str | None = None
    """What they learned from and were measured on, in words."""
    learning_rate: float | None = None
    dataset: str | None = None
    """Hub id of the held-out text, where it is a dataset of the Hub."""


def read_results(path: str | os.PathLike[str], *, dataset: str | None = None) -> Results:
    """Read the results of inherit.py.

    Args:
        path: its output folder, or the ``results.json`` in it.
        dataset: Hub id of the held-out text; what cannot be one is left out.

    Raises:
        FormatError: there is no such file, or it is not what inherit.py writes.
    """
    file = Path(path)
    file = file / RESULTS_FILE if file.is_dir() else file
    content = _load(file)
    runs = content.get("runs")
    if not isinstance(runs, list) or not runs:
        raise FormatError(f"{file} has no list of runs; expected what inherit.py writes.")
    settings = _load(file.parent / RUN_FILE) if (file.parent / RUN_FILE).is_file() else {}
    rate = settings.get("learning_rate")
    return Results(
        runs=tuple(_run(run, file) for run in runs if not _names_a_path(run)),
        digest=_text(settings.get("connectome")),
        corpus=_text(settings.get("corpus")),
        learning_rate=rate if isinstance(rate, float) and math.isfinite(rate) else None,
        dataset=hub_id(dataset),
    )


def eval_results(results: Results, *, source: str | None = None) -> dict[str, str]:
    """Return path -> YAML of the scores that the Hub shows beside a dataset's other scores.

    Only of text that is a dataset of the Hub: an entry is bound to a dataset's id, and one for a
    corpus of this machine would appear under a stranger's dataset or be refused. Such results
    stand in the card's table only.

    Args:
        results: with ``dataset``.
        source: URL of the repository with the table.
    """
    arms = by_arm(results.runs)
    if results.dataset is None or ARM not in arms:
        return {}
    runs = arms[ARM]
    entry = EvalResultEntry(
        dataset_id=results.dataset,
        task_id=TASK,
        value=fmean(run.losses[-1] for run in runs),
        source_url=source,
        source_name="Model card" if source else None,
        notes=(
            f"nats per token, lower is better; mean of {len(runs)} fresh models that learned from "
            f"the connectome for {runs[0].steps[-1]} steps"
        ),
    )
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return {f".eval_results/{results.dataset.replace('/', '--')}.yaml": text}


# ---- reading -------------------------------------------------------------------------------------


def _load(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FormatError(f"{file} is not there. Run recipes/inherit.py, or name its output_dir.")
    return read_object(file, most_bytes=_MAX_BYTES, way_out="Run recipes/inherit.py again.")


def _names_a_path(run: Any) -> bool:
    """Whether the arm is made from a connectome in some folder, which is no reader's business."""
    source = source_of(str(run.get("arm"))) if isinstance(run, dict) else None
    return source is not None and "/" in source


def _run(run: Any, file: Path) -> ArmResult:
    """Check one run field by field: a table must not show what was never measured."""
    if not isinstance(run, dict):
        raise FormatError(f"{file} has a {type(run).__name__} among its runs; expected an object.")
    arm = run.get("arm")
    if not isinstance(arm, str) or not _NAME.fullmatch(arm):
        raise FormatError(f"{file} has an arm named {str(arm)[:80]!r}; expected a short name.")
    counts = ("seed", "num_survivors", "num_weights")
    measured = ("bits_inherited", "seconds")
    numbers = {name: _finite(run.get(name), name, file) for name in (*counts, *measured)}
    steps = [int(_finite(step, "steps", file)) for step in _list(run, "steps", file)]
    losses = [_finite(loss, "losses", file) for loss in _list(run, "losses", file)]
    increasing = all(before < after for before, after in pairwise(steps))
    if len(steps) != len(losses) or not increasing or steps[-1] <= 0 or numbers["num_weights"] < 1:
        raise FormatError(
            f"{file}: the arm {arm!r} has {len(steps)} steps, {len(losses)} losses and "
            f"{numbers['num_weights']} weights; expected one loss a step, steps that increase, and "
            "a weight or more."
        )
    tokens = run.get("tokens_per_step")
    if tokens is not None and _finite(tokens, "tokens_per_step", file) < 1:
        raise FormatError(f"{file}: tokens_per_step is {tokens}; expected 1 or more.")
    whole = {name: int(numbers[name]) for name in counts}
    return ArmResult(
        arm=arm,
        steps=steps,
        losses=[float(loss) for loss in losses],
        bits_inherited=float(numbers["bits_inherited"]),
        seconds=float(numbers["seconds"]),
        tokens_per_step=None if tokens is None else int(tokens),
        **whole,
    )


def _list(run: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    value = run.get(name)
    if not isinstance(value, list) or not value:
        raise FormatError(f"{file}: {name} is {str(value)[:80]!r}; expected a list of numbers.")
    return value


def _finite(value: Any, name: str, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise FormatError(f"{file}: {name} is {str(value)[:80]!r}; expected a finite number.")
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

"""The files of a comparison: one a run, written when it is there and never redone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from hf_connectome.evaluation.arms import ArmResult
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RESULTS_FOLDER = "arms"


def run_name(arm: str, seed: int) -> str:
    """Name the files of a run; an arm may hold colons, and the path of another connectome."""
    return f"{arm.replace(':', '=').replace('/', '+')}-seed{seed}"


def store_result(result: ArmResult, file: Path) -> None:
    """Write a result whole or not at all."""
    with refused_writes_named(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(result)).encode())


def stored_result(file: Path) -> ArmResult | None:
    """Return the result in ``file``; None where there is none that is whole and of that name."""
    try:
        result = ArmResult(**json.loads(file.read_text(encoding="utf-8")))
        is_whole = len(result.steps) == len(result.losses) > 0
        is_its_own = file.stem == run_name(result.arm, result.seed)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return result if is_whole and is_its_own else None


def stored_results(output: Path, first: Sequence[str] = ()) -> list[ArmResult]:
    """Return all results of a comparison, whichever command trained them.

    Args:
        output: folder of the comparison.
        first: arms that come first, in this order.
    """
    results = []
    for file in (output / RESULTS_FOLDER).glob("*-seed*.json"):
        found = stored_result(file)
        if found is not None:
            results.append(found)
    place = {arm: number for number, arm in enumerate(first)}
    return sorted(results, key=lambda r: (place.get(r.arm, len(place)), r.arm, r.seed))

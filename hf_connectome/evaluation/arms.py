"""The table of the inner loop: what every arm reached, at what price, compared seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hf_connectome.evaluation.paired import PairedDifference, paired_difference, steps_to_target

BASELINE = "dense"


@dataclass(frozen=True)
class ArmResult:
    """One arm trained with one seed."""

    arm: str
    seed: int
    steps: list[int]
    """Optimizer steps at which the held-out loss was measured; 0 first."""
    losses: list[float]
    """Held-out loss, nats per token, at each of ``steps``."""
    num_survivors: int
    num_weights: int
    bits_inherited: float
    """Information that the host took over from the parent (arms/)."""
    seconds: float

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, held-out loss) pairs."""
        return list(zip(self.steps, self.losses, strict=True))


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds, beside the dense arm of the same seeds."""

    arm: str
    num_seeds: int
    final_loss: float
    """Mean over seeds of the last held-out loss, nats per token."""
    initial_loss: float
    """Mean over seeds of the held-out loss before the first step."""
    steps_to_dense: list[float | None]
    """Per seed, the step at which the arm reaches the dense arm's final loss; None: never."""
    num_steps: int
    num_survivors: int
    num_weights: int
    bits_inherited: float
    seconds: float
    """Mean seconds of training, evaluation included."""
    difference: PairedDifference | None
    """Final loss minus the dense arm's, paired by seed; None for the dense arm itself."""

    @property
    def fraction_of_steps(self) -> float | None:
        """Mean fraction of the steps after which the dense arm's final loss is reached."""
        reached = [step for step in self.steps_to_dense if step is not None]
        if not reached or len(reached) < len(self.steps_to_dense):
            return None
        return fmean(reached) / self.num_steps


def by_arm(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Group results by arm, in order of appearance, seeds in order."""
    grouped: dict[str, list[ArmResult]] = {}
    for result in results:
        grouped.setdefault(result.arm, []).append(result)
    return {arm: sorted(runs, key=lambda r: r.seed) for arm, runs in grouped.items()}


def summarise(results: Sequence[ArmResult]) -> list[ArmSummary]:
    """Summarise every arm; compare with the dense arm over the seeds that both have."""
    grouped = by_arm(results)
    baseline = {run.seed: run for run in grouped.get(BASELINE, [])}
    return [_summary(arm, runs, baseline) for arm, runs in grouped.items()]


def _summary(arm: str, runs: Sequence[ArmResult], baseline: Mapping[int, ArmResult]) -> ArmSummary:
    pairs = [(run, baseline[run.seed]) for run in runs if run.seed in baseline]
    difference = None
    if pairs and arm != BASELINE:
        difference = paired_difference(
            [run.losses[-1] for run, _ in pairs], [dense.losses[-1] for _, dense in pairs]
        )
    return ArmSummary(
        arm=arm,
        num_seeds=len(runs),
        final_loss=fmean(run.losses[-1] for run in runs),
        initial_loss=fmean(run.losses[0] for run in runs),
        steps_to_dense=[
            steps_to_target(run.steps, run.losses, dense.losses[-1]) for run, dense in pairs
        ],
        num_steps=runs[0].steps[-1],
        num_survivors=runs[0].num_survivors,
        num_weights=runs[0].num_weights,
        bits_inherited=runs[0].bits_inherited,
        seconds=fmean(run.seconds for run in runs),
        difference=difference,
    )


def markdown_table(summaries: Sequence[ArmSummary]) -> str:
    """Return the table in Markdown, columns padded so that it also reads in a terminal."""
    head = [
        "arm",
        "held-out loss",
        "before step 1",
        "minus dense (95 % interval)",
        "steps to dense's loss",
        "survivors",
        "bits inherited",
        "seconds",
    ]
    rows = [head, *(_cells(summary) for summary in summaries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(summary: ArmSummary) -> list[str]:
    density = summary.num_survivors / summary.num_weights
    return [
        summary.arm,
        f"{summary.final_loss:.3f}",
        f"{summary.initial_loss:.3f}",
        _difference_cell(summary.difference),
        _steps_cell(summary),
        f"{summary.num_survivors:,} ({density:.1%})",
        f"{summary.bits_inherited:,.0f}",
        f"{summary.seconds:.0f}",
    ]


def _difference_cell(difference: PairedDifference | None) -> str:
    if difference is None:
        return "-"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f} (1 seed)"
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _steps_cell(summary: ArmSummary) -> str:
    if summary.arm == BASELINE or not summary.steps_to_dense:
        return "-"
    reached = [step for step in summary.steps_to_dense if step is not None]
    if not reached:
        return "never"
    if len(reached) < len(summary.steps_to_dense):
        return f"{len(reached)} of {len(summary.steps_to_dense)} seeds"
    return f"{fmean(reached):.0f} of {summary.num_steps} ({summary.fraction_of_steps:.0%})"


def as_json(results: Sequence[ArmResult]) -> dict[str, Any]:
    """Return results and summaries as plain JSON types."""
    return {
        "summary": [
            asdict(s) | {"fraction_of_steps": s.fraction_of_steps} for s in summarise(results)
        ],
        "runs": [asdict(r) for r in results],
    }

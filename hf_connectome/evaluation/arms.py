"""The table of the inner loop: what every arm reached, at what price, compared seed by seed.

Differences are tested against the dense arm, and against the connectome, so that each control is
tested against what it is a control of. Not for how the numbers look: analysis/ draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, cast

from hf_connectome.evaluation.description import DescriptionLength, description_length
from hf_connectome.evaluation.paired import (
    Estimate,
    PairedDifference,
    least_p_value,
    mean_estimate,
    paired_difference,
    ratio_of_means,
    steps_to_target,
)

BASELINE = "dense"
REFERENCE = "connectome"
_BASIC_ARMS = {BASELINE, REFERENCE, "random"}

METHOD = {
    "interval": "95 % Student t interval of the mean over seeds, paired by seed; each arm's own, "
    "not corrected for the number of arms",
    "p_value": "exact two-sided sign-flip test over the paired seeds; n seeds cannot give less "
    "than 2 / 2^n",
    "share_of_gain": "(dense - arm) / (dense - connectome), ratio of the means over paired seeds, "
    "interval by Fieller's theorem",
    "steps_to_dense": "step at which the held-out loss first comes down to the final loss of the "
    "dense arm of the same seed, linear between evaluations",
    "description": "prequential: bits saved on training tokens against the dense arm of the same "
    "seed, minus bits inherited; the loss on a training token that was not met before is taken "
    "from the held-out curve, trapezoids between evaluations",
}
"""How each number of the JSON comes about; chosen before any run was looked at."""


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
    tokens_per_step: int | None = None
    """Training tokens of an optimizer step, over all processes; older results do not say."""

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, held-out loss) pairs."""
        return list(zip(self.steps, self.losses, strict=True))


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds, beside the dense arm and the connectome of the same seeds."""

    arm: str
    num_seeds: int
    final_loss: float
    """Mean over seeds of the last held-out loss, nats per token."""
    initial_loss: float
    """Mean over seeds of the held-out loss before the first step."""
    final: Estimate
    """``final_loss`` with its interval."""
    initial: Estimate
    """``initial_loss`` with its interval."""
    steps_to_dense: list[float | None]
    """Per seed, the step at which the arm reaches the dense arm's final loss; None: never."""
    mean_steps_to_dense: Estimate | None
    """Their mean with its interval; None unless every seed gets there."""
    num_steps: int
    num_survivors: int
    num_weights: int
    bits_inherited: float
    seconds: float
    """Mean seconds of training, evaluation included."""
    difference: PairedDifference | None
    """Final loss minus the dense arm's, paired by seed; None for the dense arm itself."""
    to_connectome: PairedDifference | None
    """Final loss minus the connectome's, paired by seed; None for the connectome itself."""
    share_of_gain: Estimate | None
    """(dense - arm) / (dense - connectome) over the seeds that all three have; None for these two,
    and where the connectome gains nothing."""
    description: DescriptionLength | None
    """None for an arm that inherits nothing, and where tokens per step are not known."""

    @property
    def fraction_of_steps(self) -> float | None:
        """Mean fraction of the steps after which the dense arm's final loss is reached."""
        mean = self.mean_steps_to_dense
        return None if mean is None else mean.value / self.num_steps


def by_arm(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """Group results by arm, in order of appearance, seeds in order."""
    grouped: dict[str, list[ArmResult]] = {}
    for result in results:
        grouped.setdefault(result.arm, []).append(result)
    return {arm: sorted(runs, key=lambda r: r.seed) for arm, runs in grouped.items()}


def has_ladder(arms: Mapping[str, object]) -> bool:
    """Whether there are arms beside the three that every comparison has."""
    return not arms.keys() <= _BASIC_ARMS


def summarise(results: Sequence[ArmResult]) -> list[ArmSummary]:
    """Summarise every arm; compare it with each other one over the seeds that both have."""
    grouped = by_arm(results)
    dense, whole = (
        {run.seed: run for run in grouped.get(name, [])} for name in (BASELINE, REFERENCE)
    )
    return [_summary(arm, runs, dense, whole) for arm, runs in grouped.items()]


def _summary(
    arm: str,
    runs: Sequence[ArmResult],
    dense: Mapping[int, ArmResult],
    whole: Mapping[int, ArmResult],
) -> ArmSummary:
    final = mean_estimate([run.losses[-1] for run in runs])
    initial = mean_estimate([run.losses[0] for run in runs])
    steps_to_dense = [
        steps_to_target(run.steps, run.losses, dense[run.seed].losses[-1])
        for run in runs
        if run.seed in dense
    ]
    reached = [step for step in steps_to_dense if step is not None]
    arrived = bool(reached) and len(reached) == len(steps_to_dense)
    return ArmSummary(
        arm=arm,
        num_seeds=len(runs),
        final_loss=final.value,
        initial_loss=initial.value,
        final=final,
        initial=initial,
        steps_to_dense=steps_to_dense,
        mean_steps_to_dense=mean_estimate(reached) if arrived else None,
        num_steps=runs[0].steps[-1],
        num_survivors=runs[0].num_survivors,
        num_weights=runs[0].num_weights,
        bits_inherited=runs[0].bits_inherited,
        seconds=fmean(run.seconds for run in runs),
        difference=_difference(runs, dense) if arm != BASELINE else None,
        to_connectome=_difference(runs, whole) if arm != REFERENCE else None,
        share_of_gain=_share_of_gain(runs, dense, whole),
        description=_description(runs, dense),
    )


def _difference(
    runs: Sequence[ArmResult], others: Mapping[int, ArmResult]
) -> PairedDifference | None:
    pairs = [(run.losses[-1], others[run.seed].losses[-1]) for run in runs if run.seed in others]
    if not pairs:
        return None
    return paired_difference([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def _share_of_gain(
    runs: Sequence[ArmResult], dense: Mapping[int, ArmResult], whole: Mapping[int, ArmResult]
) -> Estimate | None:
    common = [run for run in runs if run.seed in dense and run.seed in whole]
    if not common or runs[0].arm in (BASELINE, REFERENCE):
        return None
    without = [dense[run.seed].losses[-1] for run in common]
    return ratio_of_means(
        [loss - run.losses[-1] for loss, run in zip(without, common, strict=True)],
        [loss - whole[run.seed].losses[-1] for loss, run in zip(without, common, strict=True)],
    )


def _description(
    runs: Sequence[ArmResult], dense: Mapping[int, ArmResult]
) -> DescriptionLength | None:
    """Weigh the arm, if it inherits anything, over seeds that were measured at the same steps."""
    first = runs[0]
    pairs = [
        (dense[run.seed].losses, run.losses)
        for run in runs
        if run.seed in dense and run.steps == first.steps == dense[run.seed].steps
    ]
    tokens = {run.tokens_per_step for run in runs} - {None}
    if not pairs or len(tokens) != 1 or first.bits_inherited <= 0:
        return None
    return description_length(first.steps, pairs, cast("int", tokens.pop()), first.bits_inherited)


def as_json(results: Sequence[ArmResult]) -> dict[str, Any]:
    """Return results, summaries and how these came about as plain JSON types."""
    return {
        "method": METHOD,
        "summary": [
            asdict(s) | {"fraction_of_steps": s.fraction_of_steps} for s in summarise(results)
        ],
        "runs": [asdict(r) for r in results],
    }


# ---- the table -----------------------------------------------------------------------------------


def markdown_table(summaries: Sequence[ArmSummary]) -> str:
    """Return the table in Markdown, columns padded so that it also reads in a terminal.

    What is the same for all arms is left out (``table_notes`` says it); what compares with the
    connectome is there as soon as there are arms beside the usual three.
    """
    columns = [(head, [cell(s) for s in summaries]) for head, cell in _columns(summaries)]
    shown = [
        [head, *cells]
        for head, cells in columns
        if head not in _LEFT_OUT_IF_THE_SAME or len({*cells} - {"-"}) > 1
    ]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in shown]
    lines = ["| " + " | ".join(row) + " |" for row in zip(*padded, strict=True)]
    rule = "|" + "|".join("-" * (len(column[0]) + 2) for column in padded) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


_LEFT_OUT_IF_THE_SAME = ("seeds", "p to dense", "p to connectome")


def _columns(
    summaries: Sequence[ArmSummary],
) -> list[tuple[str, Callable[[ArmSummary], str]]]:
    ladder: list[tuple[str, Callable[[ArmSummary], str]]] = [
        ("minus connectome", lambda s: _difference_cell(s.to_connectome)),
        ("p to connectome", lambda s: _p_cell(s.to_connectome)),
        ("share of the gain", lambda s: _share_cell(s.share_of_gain)),
    ]
    paid: list[tuple[str, Callable[[ArmSummary], str]]] = [
        ("tokens until it is paid for", lambda s: _paid_cell(s.description))
    ]
    return [
        ("arm", lambda s: s.arm),
        ("seeds", lambda s: str(s.num_seeds)),
        ("held-out loss", lambda s: f"{s.final_loss:.3f}"),
        ("before step 1", lambda s: f"{s.initial_loss:.3f}"),
        ("minus dense (95 % interval)", lambda s: _difference_cell(s.difference)),
        ("p to dense", lambda s: _p_cell(s.difference)),
        *(ladder if has_ladder({s.arm: s for s in summaries}) else []),
        ("steps to dense's loss", _steps_cell),
        *(paid if any(s.description for s in summaries) else []),
        ("survivors", lambda s: f"{s.num_survivors:,} ({s.num_survivors / s.num_weights:.1%})"),
        ("bits inherited", lambda s: f"{s.bits_inherited:,.0f}"),
        ("seconds", lambda s: f"{s.seconds:.0f}"),
    ]


def _difference_cell(difference: PairedDifference | None) -> str:
    if difference is None:
        return "-"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f} (1 seed)"
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _p_cell(difference: PairedDifference | None) -> str:
    return "-" if difference is None else f"{difference.p_value:.3g}"


def _share_cell(share: Estimate | None) -> str:
    if share is None:
        return "-"
    if share.low is None or share.high is None:
        return f"{share.value:.0%}"
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _steps_cell(summary: ArmSummary) -> str:
    if summary.arm == BASELINE or not summary.steps_to_dense:
        return "-"
    mean = summary.mean_steps_to_dense
    if mean is None:
        num_reached = sum(step is not None for step in summary.steps_to_dense)
        return f"{num_reached} of {len(summary.steps_to_dense)} seeds" if num_reached else "never"
    interval = _interval(mean)
    ends = f", {interval}" if interval else ""
    return f"{mean.value:.0f} of {summary.num_steps} ({summary.fraction_of_steps:.0%}{ends})"


def _interval(estimate: Estimate) -> str:
    """Write the ends of an interval of counts, of which none is below 0."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{max(0.0, estimate.low):,.0f} to {estimate.high:,.0f}"


def _paid_cell(description: DescriptionLength | None) -> str:
    if description is None:
        return "-"
    even = description.break_even
    if even is None:
        num = sum(tokens is not None for tokens in description.tokens_to_break_even)
        some = f"{num} of {len(description.tokens_to_break_even)} seeds " if num else "not "
        paid = f"{description.share_paid:.0%}" if description.share_paid > 0 else "nothing"
        return f"{some}within {description.num_tokens:,.0f} ({paid} paid)"
    interval = _interval(even)
    return f"{even.value:,.0f}" + (f" ({interval})" if interval else "")


def table_notes(summaries: Sequence[ArmSummary]) -> str:
    """Return what the table rests on, as a Markdown list: pairs, tests, and what they cannot show.

    The smallest p-value that the seeds allow stands here whatever the table shows.
    """
    pairs = [d for s in summaries for d in (s.difference, s.to_connectome) if d is not None]
    if not pairs:
        return "- No two arms have a seed in common, so nothing is compared."
    seeds = sorted({pair.num_pairs for pair in pairs})
    least = ", ".join(f"{least_p_value(n):.3g} with {n}" for n in seeds)
    p_values = sorted({pair.p_value for pair in pairs})
    found = f"; here {p_values[0]:.3g} for every difference" if len(p_values) == 1 else ""
    return "\n".join(
        [
            f"- Differences are paired by seed, over the {_or(seeds)} seeds that both arms have. "
            "Intervals: 95 %, Student's t, each arm's own: about one in twenty misses the truth.",
            f"- p: exact sign-flip test, two-sided. Smallest possible p by seeds: {least}{found}.",
            *_further_notes(summaries),
        ]
    )


def _further_notes(summaries: Sequence[ArmSummary]) -> list[str]:
    lines = []
    if any(s.share_of_gain for s in summaries):
        lines.append(
            "- Share of the gain: (dense - arm) / (dense - connectome), ratio of means, interval "
            "by Fieller's theorem; none where the connectome's own gain is not certain."
        )
    if any(s.description for s in summaries):
        lines.append(
            "- Paid for: when the code of the training text, as each batch is predicted before it "
            "is learned, has become shorter than the dense arm's by the bits inherited. The loss "
            "on new training text is read off the held-out curve, linear between evaluations; "
            "text that is met twice, or is unlike the held-out text, would void this."
        )
    return lines


def _or(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))

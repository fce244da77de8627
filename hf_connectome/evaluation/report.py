"""Outcomes of the suite -> rows of one table: what was measured, its interval, which way is better.

Nothing is measured and nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_connectome.evaluation.brain import LANGUAGE_UNITS, TRAINED
from hf_connectome.evaluation.paired import t_quantile

if TYPE_CHECKING:
    from hf_connectome.evaluation.subjects import Subject
    from hf_connectome.evaluation.suite import Outcome

_NORMAL_95 = 1.96
_MOST_LOG = 100.0
"""Keeps the interval of a perplexity that is unknown finite."""
_LARGE = 1000
CHANCE, UNIFORM, UNTRAINED = "chance", "uniform guess", "untrained 0"
"""Last words of the names of controls."""
_READING = (("r", "pearson_r", ""), ("ΔLL", "delta_log_likelihood", "nats per word"))
_DIGITS = {"bits per byte": 3, "nats per token": 3, "nats per word": 4}


@dataclass(frozen=True)
class Measure:
    """One number of one model."""

    label: str
    """Of the model."""
    task: str
    name: str
    """What was measured, on what; the same for all models."""
    unit: str
    value: float
    low: float | None
    """Lower end of the 95 % interval, None where there is none."""
    high: float | None
    higher_is_better: bool | None
    control_of: str | None = None
    """Name of the measure that this one is to be compared with."""


def measures(outcomes: Iterable[Outcome]) -> list[Measure]:
    """List the numbers that stand in the table; the rest is in the results themselves."""
    makers = {"loss": _text, "lm": _lm, "reading": _reading, "brain": _brain}
    return [m for outcome in outcomes for m in makers[outcome.task](outcome)]


def markdown_table(subjects: Sequence[Subject], outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown, a column a model, and below it what has to be known."""
    found = measures(outcomes)
    cells = {(m.name, m.unit, m.label): _cell(m) for m in found}
    arrows = {None: "", True: " ↑", False: " ↓"}
    rows = [["", *(s.label for s in subjects)], *_facts(subjects)]
    for name, unit in dict.fromkeys((m.name, m.unit) for m in found):
        better = next(m.higher_is_better for m in found if (m.name, m.unit) == (name, unit))
        head = f"{name}, {unit}{arrows[better]}" if unit else f"{name}{arrows[better]}"
        if unit == "nats per token" and len({s.tokenizer_digest for s in subjects}) > 1:
            head += " (tokenizers differ: compare bits per byte)"
        rows.append([head, *(cells.get((name, unit, s.label), "-") for s in subjects)])
    remarks = [f"- {remark}" for remark in notes(subjects, outcomes)]
    return "\n".join([*padded_lines(rows), "", *remarks])


def padded_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown, the first row its head, padded to read in a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def notes(subjects: Sequence[Subject], outcomes: Sequence[Outcome]) -> list[str]:
    """Say what has to be known to read the table, as far as it concerns these results."""
    tasks = {outcome.task for outcome in outcomes}
    remarks = ["In brackets: 95 % interval, where there is one; arrows: which way is better."]
    if "loss" in tasks:
        remarks.append(
            "Bits per byte and nats per token: every token of the text after up to the model's "
            "context, interval over documents. Not a training's eval_loss, which is over blocks. "
            "'uniform guess' gives all tokens of the tokenizer the same probability."
        )
        if len({s.tokenizer_digest for s in subjects}) > 1:
            remarks.append(
                "The models have different tokenizers, so their tokens are different pieces of "
                "text: nats per token cannot be compared between them, bits per byte can."
            )
    if "lm" in tasks:
        remarks += _lm_notes(outcomes)
    if "reading" in tasks:
        remarks.append(
            "Reading: the file of Natural Stories has each time one word early; 'lag 1' puts it "
            "right, 'as-filed' is what published figures have. ΔLL: what surprisal adds to length "
            "and frequency, interval over stories that were left out of the fit. 'untrained' is "
            "the same architecture with fresh weights: its surprisals count the tokens of a word, "
            "and what is not above it is the tokenizer's."
        )
    if "brain" in tasks:
        remarks.append(
            "Brain: Pearson's r of ridge predictions in folds left out, mean over regions, "
            "interval over folds as if all regions erred together. 'untrained' is the same "
            "architecture with fresh weights, 'chance' the 97.5 % quantile with sentences "
            "shuffled: what is not above both is not learned."
        )
    return remarks


def as_json(subjects: Sequence[Subject], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return models, table, scores for the Hub and whole results as plain JSON types."""
    return {
        "models": [subject.facts() for subject in subjects],
        "table": [asdict(measure) for measure in measures(outcomes)],
        "notes": notes(subjects, outcomes),
        "scores": {
            subject.label: [
                score
                for outcome in outcomes
                if outcome.task == "lm" and outcome.label == subject.label
                for score in outcome.result["scores"]
            ]
            for subject in subjects
        },
        "results": [
            {key: value for key, value in asdict(outcome).items() if key != "is_new"}
            for outcome in outcomes
        ],
    }


def lm_interval(
    metric: str, value: float, stderr: float | None, num_samples: int
) -> tuple[float, float] | tuple[None, None]:
    """Give the 95 % interval of a score of lm-eval; (None, None) where it has none.

    Of a share of right answers Wilson's, which stays in [0, 1] and is no point at 0 of 20; of a
    number above 0, such as a perplexity, on the log scale.

    Args:
        metric: its name in lm-eval.
        value: the score.
        stderr: what lm-eval gives, None where it gives none.
        num_samples: rows that were evaluated.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference",
    JASA 22.

    Example:
        >>> low, high = lm_interval("acc", 0.0, 0.0, 20)
        >>> round(low, 3), round(high, 3)
        (0.0, 0.161)
    """
    if stderr is None or num_samples < 1:
        return None, None
    if metric.startswith(("acc", "exact_match")) and 0 <= value <= 1:
        share = _NORMAL_95**2 / num_samples
        middle = (value + share / 2) / (1 + share)
        half = math.sqrt(value * (1 - value) * share + share**2 / 4) / (1 + share)
        return max(0.0, middle - half), min(1.0, middle + half)
    if value > 0:
        factor = math.exp(min(_NORMAL_95 * stderr / value, _MOST_LOG))
        return value / factor, value * factor
    return value - _NORMAL_95 * stderr, value + _NORMAL_95 * stderr


def brain_layers(
    result: Mapping[str, Any], model: str = TRAINED, key: str = "pearson_r"
) -> dict[str, float]:
    """Average a score of one model over regions, per set of features, in their order.

    Args:
        result: of ``BrainResult.as_json``.
        model: 'trained', or 'untrained N'.
        key: name of the score.
    """
    found: dict[str, list[float]] = {}
    for score in result["scores"]:
        if score["model"] == model and score[key] is not None:
            found.setdefault(score["features"], []).append(score[key])
    return {features: fmean(values) for features, values in found.items()}


# ---- the tasks -----------------------------------------------------------------------------------


def _text(outcome: Outcome) -> list[Measure]:
    r, start = outcome.result, (outcome.label, "loss")
    name, uniform = outcome.item, r["uniform_bits_per_byte"]
    unit, guess = "bits per byte", f"{outcome.item}, {UNIFORM}"
    return [
        Measure(*start, name, unit, r["bits_per_byte"], r["low"], r["high"], False),
        Measure(*start, guess, unit, uniform, None, None, None, name),
        Measure(*start, name, "nats per token", r["loss"], None, None, False),
    ]


def _lm(outcome: Outcome) -> list[Measure]:
    tasks = outcome.result["tasks"]
    shown = {outcome.item: tasks[outcome.item]} if outcome.item in tasks else tasks
    rows = []
    for name, task in shown.items():
        for metric, found in task["metrics"].items():
            value = found["value"]
            if value is None:
                continue
            low, high = lm_interval(metric, value, found["stderr"], task["num_samples"])
            start = (outcome.label, "lm", f"{name} {metric}", "", value)
            rows.append(Measure(*start, low, high, found["higher_is_better"]))
    return rows


def _reading(outcome: Outcome) -> list[Measure]:
    rows = []
    control = {a["name"]: a for a in outcome.result[UNTRAINED]["alignments"]}
    for found in outcome.result["alignments"]:
        for short, key, unit in _READING:
            start, name = (outcome.label, "reading"), f"reading {short}, {found['name']}"
            other = control[found["name"]]
            for shown, of, a in ((name, None, found), (f"{name}, {UNTRAINED}", name, other)):
                low, high = (a["low"], a["high"]) if unit else (None, None)
                rows.append(Measure(*start, shown, unit, a[key], low, high, True, of))
    return rows


def _brain(outcome: Outcome) -> list[Measure]:
    result = outcome.result
    models = list(dict.fromkeys(score["model"] for score in result["scores"]))
    widen = t_quantile(0.975, result["num_folds"] - 1)
    rows = []
    for features, is_units in ((LANGUAGE_UNITS, True), ("mean over layers", False)):
        start, name = (outcome.label, "brain"), f"brain r, {features}"
        for model in models:
            r = _mean(brain_layers(result, model), is_units=is_units)
            error = _mean(brain_layers(result, model, "standard_error"), is_units=is_units)
            if r is None or error is None:
                continue
            low, high = r - widen * error, r + widen * error
            shown, of = (name, None) if model == TRAINED else (f"{name}, {model}", name)
            rows.append(Measure(*start, shown, "", r, low, high, True, of))
        chance = _mean(brain_layers(result, TRAINED, "shuffled_high"), is_units=is_units)
        if chance is not None:
            shown = f"{name}, {CHANCE}"
            rows.append(Measure(*start, shown, "", chance, None, None, None, name))
    return rows


def _mean(by_features: Mapping[str, float], *, is_units: bool) -> float | None:
    """Average over the layers, or take the language units."""
    values = [v for name, v in by_features.items() if (name == LANGUAGE_UNITS) == is_units]
    return fmean(values) if values else None


def _lm_notes(outcomes: Sequence[Outcome]) -> list[str]:
    remarks = [
        "acc_norm of lm-eval divides by the characters of a choice; hellaswag_per_token divides by "
        "tokens, as the paper does."
    ]
    limited: dict[str, str] = {}
    cut: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.task != "lm":
            continue
        for name, task in outcome.result["tasks"].items():
            if task["num_samples"] < task["num_rows"] and name == outcome.item:
                limited[name] = f"{name}: {task['num_samples']:,} of {task['num_rows']:,} rows"
        seen = outcome.result["context"]
        num = seen["shortened"] + seen["windowed"]
        if num:
            model = f"{outcome.label} ({seen['max_length']} tokens)"
            cut.setdefault(model, []).append(f"{outcome.item} {num:,} of {seen['requests']:,}")
    if limited:
        remarks.append(f"Not the whole task ({'; '.join(limited.values())}).")
    if cut:
        listed = "; ".join(f"{model} {', '.join(tasks)}" for model, tasks in cut.items())
        remarks.append(f"Contexts were cut: {listed}. Compare models of one context length.")
    return remarks


# ---- cells ---------------------------------------------------------------------------------------


def _facts(subjects: Sequence[Subject]) -> list[list[str]]:
    def density(subject: Subject) -> str:
        return "-" if subject.density is None else f"{subject.density:.1%}"

    return [
        ["kind", *(s.kind for s in subjects)],
        ["parameters", *(f"{s.num_parameters:,}" for s in subjects)],
        ["density in scope", *(density(s) for s in subjects)],
        ["tokens known", *(f"{len(s.tokenizer):,}" for s in subjects)],
    ]


def _cell(measure: Measure) -> str:
    digits = _DIGITS.get(measure.unit, 3)

    def written(value: float) -> str:
        return f"{value:.2e}" if abs(value) >= _LARGE else f"{value:.{digits}f}"

    if measure.low is None or measure.high is None:
        return written(measure.value)
    return f"{written(measure.value)} ({written(measure.low)} to {written(measure.high)})"

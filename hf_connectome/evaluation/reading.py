"""How well a model's surprisals explain how long people read each word.

Measures are given for every alignment of words and times that the table names, because published
tables have been off by one word. Not for single readers: times are means over people.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import DataError
from hf_connectome.evaluation.paired import t_interval
from hf_connectome.evaluation.surprisal import word_surprisals

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from hf_connectome.evaluation.columns import Array
    from hf_connectome.evaluation.tables import ReadingTable

PROFILE_LAGS = (-2, -1, 0, 1, 2)
_NUM_PREVIOUS = 2
_EARLY_FRACTION = 0.5
_EARLY_SIGMAS = 3.0


class AlignmentWarning(UserWarning):
    """Words seem to slow the words before them, which no reader can do: times are misplaced."""


@dataclass(frozen=True)
class AlignmentResult:
    """All measures under one alignment of words and times.

    Attributes:
        name: 'as-filed' for a lag of 0, else 'lag N'.
        lag: The time of word z is the one filed at z - lag.
        chosen: Whether it is the table's own.
        num_words: Words with a time and a surprisal.
        pearson_r: Correlation of the surprisal of a word with its time.
        fraction_of_ceiling: ``pearson_r`` over the noise ceiling, None if that is unknown.
        num_regression_words: Words that also have two words before them.
        delta_log_likelihood: Nats per word that surprisal adds in stories left out of the fit, mean
            over stories.
        standard_error: Of that mean, over stories.
        low: Lower end of its 95 % interval.
        high: Upper end.
        by_item: Per story left out, nats per word.
        r_squared_baseline: Of length and frequency, fitted on all stories.
        r_squared_full: With surprisal, fitted on all stories.
        lag_profile: Per property of a word, its correlation with the time of the word k later.
    """

    name: str
    lag: int
    chosen: bool
    num_words: int
    pearson_r: float
    fraction_of_ceiling: float | None
    num_regression_words: int
    delta_log_likelihood: float
    standard_error: float
    low: float
    high: float
    by_item: dict[str, float]
    r_squared_baseline: float
    r_squared_full: float
    lag_profile: dict[str, dict[int, float]]


@dataclass(frozen=True)
class ReadingResult:
    """What a model's surprisals say about reading times.

    Attributes:
        alignments: One per lag of the table, the table as filed first.
        num_items: Stories.
        mean_surprisal_nats: Per word.
        mean_surprisal_bits: Per word.
        noise_ceiling: Correlation that the true mean times would reach, None if unknown.
        noise_ceiling_from: How the reliability behind it was found.
        num_frequency_words: Running words that frequencies were counted in.
    """

    alignments: list[AlignmentResult]
    num_items: int
    mean_surprisal_nats: float
    mean_surprisal_bits: float
    noise_ceiling: float | None
    noise_ceiling_from: str
    num_frequency_words: int

    @property
    def chosen(self) -> AlignmentResult:
        """The measures under the table's own alignment."""
        return next(a for a in self.alignments if a.chosen)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        result = asdict(self)
        for alignment in result["alignments"]:
            profile = alignment["lag_profile"]
            alignment["lag_profile"] = {
                name: {f"{k:+d}" if k else "0": r for k, r in values.items()}
                for name, values in profile.items()
            }
        return result


def reading_times(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    table: ReadingTable,
    *,
    frequency: Mapping[str, int] | Iterable[str],
    context: int | None = None,
    min_context: int | None = None,
    batch_size: int = 8,
) -> ReadingResult:
    """Measure how well a model's surprisals explain reading times.

    Args:
        model: A causal language model.
        tokenizer: The one that it was trained with.
        table: Words, texts and times.
        frequency: Counts of words, or texts to count them in; see ``word_counts``.
        context: Tokens that the model sees at most; None takes all that it has positions for.
        min_context: Tokens before a token at least, where the text has them; None is half of that.
        batch_size: Windows in one forward pass.

    Raises:
        DataError: The table or a text does not allow the measure; what and where.
        ConfigError: The model is not causal, or has no such context.
    """
    surprisals = word_surprisals(
        model,
        tokenizer,
        list(table.words_of().values()),
        list(table.texts.values()),
        context=context,
        min_context=min_context,
        batch_size=batch_size,
    )
    return reading_measures(table, np.concatenate(surprisals), frequency=frequency)


def reading_measures(
    table: ReadingTable,
    surprisals: Array,
    *,
    frequency: Mapping[str, int] | Iterable[str],
) -> ReadingResult:
    """Measure how well given surprisals explain reading times.

    The raw correlation is over single words. The log-likelihood is that of a linear model with
    normal errors on raw milliseconds: length and -log frequency of the word and the two words
    before, then also the surprisals of the three; both fitted by least squares on all stories but
    one, their error variance too, and scored on that one.

    Args:
        table: Words and times.
        surprisals: ``(words,)`` nats in the table's order; NaN where there is none.
        frequency: Counts of words, or texts to count them in.

    Raises:
        DataError: Fewer than two stories, too few words in a fit, or a column without variance.

    Source: the published evaluation of Kotar & Tuckute 2025 gives one raw correlation over all
    words of 10 stories; Goodkind & Bicknell 2018, "Predictive power of word surprisal for reading
    times is a linear function of language model quality", the difference in
    log-likelihood. Ours: leaving out whole stories, since words of a story are not independent.
    """
    if len(surprisals) != len(table.words):
        raise DataError(
            f"{len(surprisals)} surprisals come with {len(table.words)} words; expected one each, "
            "in the table's order."
        )
    counts = frequency if isinstance(frequency, Mapping) else word_counts(frequency)
    properties = {
        "length": word_lengths(table),
        "-log frequency": negative_log_frequencies(table.words, counts),
        "surprisal": np.asarray(surprisals, dtype=np.float64),
    }
    ceiling = None if table.reliability is None else math.sqrt(table.reliability)
    known = properties["surprisal"][np.isfinite(properties["surprisal"])]
    if len(known) == 0:
        raise DataError("no word has a finite surprisal; expected at least one a story.")
    nats = float(known.mean())
    return ReadingResult(
        alignments=[_measured(table, lag, properties, ceiling) for lag in table.lags],
        num_items=len(table.texts),
        mean_surprisal_nats=nats,
        mean_surprisal_bits=nats / math.log(2),
        noise_ceiling=ceiling,
        noise_ceiling_from=table.reliability_from,
        num_frequency_words=sum(counts.values()),
    )


def lag_profile(
    table: ReadingTable,
    properties: Mapping[str, Array],
    *,
    lag: int | None = None,
    warn: bool = True,
) -> dict[str, dict[int, float]]:
    """Correlate properties of words with the times of the words around them.

    A property slows its own word and the next ones; a correlation with the word before (-1) can
    only come from misplaced times.

    Args:
        table: Words and times.
        properties: Per name, ``(words,)`` values that should slow readers, such as length.
        lag: Alignment to look at; None is the table's own.
        warn: Whether to warn about misplaced times.

    Returns:
        Per property, the correlation with the time of the word k positions later, k from -2 to 2.

    Raises:
        DataError: A property without variance, or too few words with a time.

    Warns:
        AlignmentWarning: The correlation at -1 is above half of the one at 0 and above three
            standard errors; once, with the alignment to try.
    """
    shift = table.lag if lag is None else lag
    profile = {
        name: {k: _pearson(values, table.times(shift - k), name) for k in PROFILE_LAGS}
        for name, values in properties.items()
    }
    for name, found in profile.items() if warn else ():
        if _leads(found, -1, len(table.words)):
            step = 2 if _leads(found, -2, len(table.words), than=-1) else 1
            warnings.warn(
                f"the {name} of a word correlates {found[-1]:.3f} with the time of the word before "
                f"it and {found[0]:.3f} with its own, but no reader can see the next word: times "
                f"are misplaced. Try alignment={shift + step}; it is {shift} now.",
                AlignmentWarning,
                stacklevel=2,
            )
            break
    return profile


def word_lengths(table: ReadingTable) -> Array:
    """Characters of every word, punctuation included: they are on the screen."""
    return np.array([float(len(word)) for word in table.words])


def word_counts(texts: Iterable[str]) -> dict[str, int]:
    """Count the words of texts: split at space, lower case, punctuation around them removed.

    Example:
        >>> word_counts(["The cat,", "the dog."])
        {'the': 2, 'cat': 1, 'dog': 1}
    """
    counted: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        counted.update(_bare(word) for word in text.split())
    return dict(counted)


def negative_log_frequencies(words: Iterable[str], counts: Mapping[str, int]) -> Array:
    """Give -log((count + 1) / (total + types + 1)) of every word: add-one, unknown words included.

    Args:
        words: As shown; compared in lower case, punctuation around them removed.
        counts: Count of each word, 0 or more.

    Returns:
        ``(words,)`` nats.

    Raises:
        DataError: No count, or one below 0.
    """
    bare: Counter[str] = Counter()
    for word, count in counts.items():
        if count < 0:
            raise DataError(f"the count of {word!r} is {count}; expected 0 or more.")
        bare[_bare(word)] += count
    total = sum(bare.values())
    if total == 0:
        raise DataError(
            "frequency counts no word; expected a mapping of word to count, or texts to count in."
        )
    return np.array([-math.log((bare[_bare(w)] + 1) / (total + len(bare) + 1)) for w in words])


def _bare(word: str) -> str:
    inside = [index for index, character in enumerate(word) if character.isalnum()]
    return (word[inside[0] : inside[-1] + 1] if inside else word).lower()


def _leads(profile: Mapping[int, float], k: int, num_words: int, *, than: int = 0) -> bool:
    least = max(_EARLY_FRACTION * profile[than], _EARLY_SIGMAS / math.sqrt(num_words))
    return profile[k] > least


def _pearson(values: Array, times: Array, name: str) -> float:
    both = np.isfinite(values) & np.isfinite(times)
    if both.sum() < 3:
        raise DataError(
            f"{both.sum()} words have both a {name} and a time; expected at least 3. Check the "
            "table's positions: a time is looked up by item and position."
        )
    left, right = values[both], times[both]
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        what = name if np.ptp(left) == 0 else "time"
        raise DataError(
            f"the {what} of all {both.sum()} words is {(left if what == name else right)[0]:g}; a "
            "correlation needs values that differ."
        )
    return float(np.corrcoef(left, right)[0, 1])


def _measured(
    table: ReadingTable, lag: int, properties: Mapping[str, Array], ceiling: float | None
) -> AlignmentResult:
    times = table.times(lag)
    surprisals = properties["surprisal"]
    r = _pearson(surprisals, times, "surprisal")
    full = [
        table.shifted(values, back)
        for values in properties.values()
        for back in range(_NUM_PREVIOUS + 1)
    ]
    design = np.stack([np.ones(len(times)), *full], axis=1)
    usable = np.isfinite(design).all(1) & np.isfinite(times)
    design, response = design[usable], times[usable]
    items = np.array(table.items)[usable]
    baseline = design[:, : -(_NUM_PREVIOUS + 1)]
    by_item = _by_item(baseline, design, response, items)
    gains = list(by_item.values())
    interval = t_interval(gains)
    assert interval is not None
    return AlignmentResult(
        name="as-filed" if lag == 0 else f"lag {lag}",
        lag=lag,
        chosen=lag == table.lag,
        num_words=int((np.isfinite(surprisals) & np.isfinite(times)).sum()),
        pearson_r=r,
        fraction_of_ceiling=None if ceiling is None else r / ceiling,
        num_regression_words=len(response),
        delta_log_likelihood=fmean(gains),
        standard_error=stdev(gains) / math.sqrt(len(gains)),
        low=interval[0],
        high=interval[1],
        by_item=by_item,
        r_squared_baseline=_r_squared(baseline, response),
        r_squared_full=_r_squared(design, response),
        lag_profile=lag_profile(table, properties, lag=lag, warn=lag == table.lag),
    )


def _by_item(baseline: Array, design: Array, response: Array, items: Any) -> dict[str, float]:
    """Per item left out of the fit, nats per word that ``design`` gives over ``baseline``."""
    names = list(dict.fromkeys(items.tolist()))
    if len(names) < 2:
        raise DataError(
            f"{len(names)} item(s) have words with a time and two words before them; leaving one "
            "out takes at least 2. Name the column of texts by item=, or split the text."
        )
    gains = {}
    for name in names:
        out = items == name
        if (~out).sum() <= design.shape[1] + 1:
            raise DataError(
                f"without item {name!r}, {(~out).sum()} words are left for a fit of "
                f"{design.shape[1]} coefficients; expected at least {design.shape[1] + 2}."
            )
        both = [_log_likelihood(x, response, out) for x in (design, baseline)]
        gains[name] = float(np.mean(both[0] - both[1]))
    return gains


def _log_likelihood(design: Array, response: Array, out: Any) -> Array:
    """Per word of the part ``out``, log of its normal density under a fit to the rest."""
    weights = np.linalg.lstsq(design[~out], response[~out], rcond=None)[0]
    variance = float(np.mean((response[~out] - design[~out] @ weights) ** 2))
    error: Array = response[out] - design[out] @ weights
    return -0.5 * (math.log(2 * math.pi * variance) + error**2 / variance)


def _r_squared(design: Array, response: Array) -> float:
    weights = np.linalg.lstsq(design, response, rcond=None)[0]
    left = float(np.sum((response - design @ weights) ** 2))
    return 1 - left / float(np.sum((response - response.mean()) ** 2))

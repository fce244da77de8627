"""Tables of human responses to text, checked cell by cell: reading times and brain responses.

A table comes from a .csv or .tsv file, from a mapping of column name to values, or from a data
frame. Nothing is downloaded, and nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_connectome.errors import ConfigError, DataError, did_you_mean, some
from hf_connectome.evaluation.columns import (
    Array,
    is_numeric,
    number_cell,
    numbered,
    positive_column,
    read_columns,
    text_cell,
    time_cell,
    whole_cell,
)
from hf_connectome.evaluation.readers import NUM_SPLITS, Readings, averaged, reliability_of_means
from hf_connectome.evaluation.surprisal import locate

_ALIGNMENTS = {"as-filed": 0, "corrected": 1}

# Andrea-de-Varda/multilingual-models-brain, NC-allroi-data.csv: n=5 participants, 1,000 sentences.
TUCKUTE_CEILINGS = {
    "lang_LH_AntTemp": 0.458,
    "lang_LH_IFG": 0.452,
    "lang_LH_IFGorb": 0.452,
    "lang_LH_MFG": 0.515,
    "lang_LH_PostTemp": 0.579,
    "lang_LH_netw": 0.559,
}


@dataclass(frozen=True)
class ReadingTable:
    """Words in the order of their texts, and how long people took to read each.

    Attributes:
        words: As they were shown, punctuation included.
        items: Per word, the text (story) that it belongs to.
        positions: ``(words,)`` places within the text, increasing; a gap is allowed.
        filed_times: ``(words,)`` milliseconds as the table has them, NaN where there is none.
        lag: The time of the word at position z is the one filed at position ``z - lag``.
        texts: Per item, the text that its words stand in.
        reliability: Of the mean time of a word, at most 1, None if the table cannot tell.
        reliability_from: How ``reliability`` was found.
        also: Further lags that every result is given for.
    """

    words: list[str]
    items: list[str]
    positions: npt.NDArray[np.int64]
    filed_times: Array
    lag: int
    texts: dict[str, str]
    reliability: float | None = None
    reliability_from: str = "unknown"
    also: tuple[int, ...] = field(default=())

    @property
    def lags(self) -> list[int]:
        """The chosen lag, the table as filed (0) and ``also``."""
        return sorted({0, self.lag, *self.also})

    def times(self, lag: int | None = None) -> Array:
        """Give every word its time under ``lag`` (default: the table's own).

        Returns:
            ``(words,)`` milliseconds, NaN for a word whose time lies outside its text.
        """
        return self.shifted(self.filed_times, self.lag if lag is None else lag)

    def shifted(self, values: Array, lag: int) -> Array:
        """Give every word the value of the word ``lag`` positions earlier, NaN if there is none."""
        keys = list(zip(self.items, self.positions.tolist(), strict=True))
        known = dict(zip(keys, values.tolist(), strict=True))
        return np.array([known.get((item, z - lag), math.nan) for item, z in keys])

    def words_of(self) -> dict[str, list[str]]:
        """Per item, its words in order."""
        found: dict[str, list[str]] = {item: [] for item in self.texts}
        for item, word in zip(self.items, self.words, strict=True):
            found[item].append(word)
        return found


@dataclass(frozen=True)
class SentenceTable:
    """Sentences, and the response of every region to each.

    Attributes:
        sentences: One per row.
        regions: Names of the columns of ``responses``.
        responses: ``(sentences, regions)``, finite.
        groups: Per sentence, what must not be split between folds (a passage), None if nothing.
        ceilings: Per region, the correlation that a perfect model would reach, None if unknown.
    """

    sentences: list[str]
    regions: list[str]
    responses: Array
    groups: list[str] | None = None
    ceilings: dict[str, float] | None = None


def as_lag(alignment: str | int) -> int:
    """Turn 'as-filed' (0), 'corrected' (1) or a number of positions into a lag.

    Raises:
        ConfigError: Another word, or something that is not a whole number.
    """
    if isinstance(alignment, str) and alignment in _ALIGNMENTS:
        return _ALIGNMENTS[alignment]
    if isinstance(alignment, int) and not isinstance(alignment, bool):
        return alignment
    raise ConfigError(
        f"alignment is {alignment!r}; expected 'as-filed', 'corrected', or by how many positions "
        "the times lag behind their words, as 1 when the time of word z is filed at z - 1."
    )


def reading_table(
    source: Path | str | Mapping[str, Sequence[Any]] | Any,
    *,
    alignment: str | int,
    word: str = "word",
    item: str = "item",
    position: str = "position",
    reading_time: str = "reading_time",
    num_readers: str | None = None,
    deviation: str | None = None,
    subject: str | None = None,
    texts: Mapping[str, str] | None = None,
    allow_missing: bool = False,
) -> ReadingTable:
    """Load a table of reading times.

    Args:
        source: A .csv or .tsv file with a header, a mapping of column to values, or a data frame.
        alignment: 'as-filed', 'corrected' (the time of word z is filed at z - 1), or a lag. There
            is no default: published tables have been off by one word.
        word: Column of words; words of one text are joined by one space unless ``texts`` is given.
        item: Column of texts.
        position: Column of places within the text, whole numbers.
        reading_time: Column of milliseconds, above 0.
        num_readers: Column of how many people a mean is over, for the noise ceiling.
        deviation: Column of the standard deviation over people, likewise.
        subject: Column of people, where a row is one reading; times are averaged over people.
        texts: Per item, the text with its exact spaces, in which the words stand in order.
        allow_missing: Keep a word without a time in its text, and out of every measure.

    Raises:
        DataError: A column, a row or a text that does not hold what it should; it is named.
        ConfigError: An alignment that is none, or settings that exclude each other.
    """
    lag = as_lag(alignment)
    if (num_readers is None) != (deviation is None) or (subject and num_readers):
        raise ConfigError(
            f"num_readers is {num_readers!r}, deviation is {deviation!r} and subject is "
            f"{subject!r}; expected both of the first two, subject alone, or none of the three."
        )
    names = [word, item, position, reading_time]
    columns = read_columns(source, names + [n for n in (num_readers, deviation, subject) if n])
    words = [text_cell(value, word, row) for row, value in numbered(columns[word])]
    items = [str(value) for value in columns[item]]
    places = [whole_cell(value, position, row) for row, value in numbered(columns[position])]
    times = [
        time_cell(value, reading_time, row, allow_missing=allow_missing)
        for row, value in numbered(columns[reading_time])
    ]
    table = Readings(words, items, places, np.array(times))
    reliability, origin = None, "unknown"
    if subject:
        table, reliability = averaged(table, [str(s) for s in columns[subject]])
        origin = f"split halves of readers, mean of {NUM_SPLITS} splits, Spearman-Brown"
    elif num_readers and deviation:
        known = np.isfinite(table.times)
        over = [positive_column(columns[name], name, known) for name in (deviation, num_readers)]
        reliability = reliability_of_means(table.times, *over)
        origin = "standard deviation and number of readers"
    return _ordered(table, lag, texts, reliability, origin)


def natural_stories(folder: Path | str, *, alignment: str | int = "corrected") -> ReadingTable:
    """Load the Natural Stories corpus: 10 stories read word by word.

    Args:
        folder: Holds the corpus's ``processed_wordinfo.tsv``.
        alignment: 'corrected' gives word z the time filed at z - 1; 'as-filed' is the table as it
            was published. Results are given for both, whichever is chosen.

    Raises:
        DataError: The file is missing or damaged.

    Source: Futrell et al. 2021, "The Natural Stories corpus", Language Resources and Evaluation 55;
    the repository's README of 2025-05-12: "the SPR data in the original release was misaligned by
    one position". This file was last changed before that. Ours: the lag of 1, because length and
    surprisal of a word then explain the most of its time, and none of the time of the word before.
    """
    path = Path(folder) / "processed_wordinfo.tsv"
    table = reading_table(
        path,
        alignment=alignment,
        position="zone",
        reading_time="meanItemRT",
        num_readers="nItem",
        deviation="sdItemRT",
    )
    return replace(table, also=tuple(_ALIGNMENTS.values()))


def sentence_table(
    source: Path | str | Mapping[str, Sequence[Any]] | Any,
    *,
    sentence: str = "sentence",
    regions: Sequence[str] | None = None,
    group: str | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> SentenceTable:
    """Load a table of responses to sentences.

    Args:
        source: A .csv or .tsv file with a header, a mapping of column to values, or a data frame.
        sentence: Column of sentences.
        regions: Columns of responses; None takes every other column that holds numbers only.
        group: Column of what must not be split between folds, such as the passage.
        ceilings: Per region, the correlation that a perfect model would reach, in (0, 1].

    Raises:
        DataError: A column or a row that does not hold what it should; it is named.
    """
    columns = read_columns(source, [sentence, *(regions or []), *([group] if group else [])])
    sentences = [text_cell(value, sentence, row) for row, value in numbered(columns[sentence])]
    groups = [str(value) for value in columns[group]] if group else None
    others = [name for name in columns if name not in (sentence, group)]
    names = list(regions) if regions else [n for n in others if is_numeric(columns[n])]
    if not names:
        raise DataError(
            f"no column besides {sentence!r} holds only numbers; there are {some(columns)}. Name "
            "the columns of responses by regions=[...] to see which cell is not a number."
        )
    responses = np.array([[number_cell(v, n, r) for r, v in numbered(columns[n])] for n in names]).T
    for index, name in enumerate(names):
        if np.ptp(responses[:, index]) == 0:
            raise DataError(
                f"every response of {name!r} is {responses[0, index]:g}; a correlation needs "
                "responses that differ. Leave the region out of regions=[...]."
            )
    _check_repeats(sentences, groups, sentence)
    return SentenceTable(sentences, names, responses, groups, _checked_ceilings(ceilings, names))


def tuckute_2024(path: Path | str) -> SentenceTable:
    """Load the responses of six left-hemisphere language regions to 1,000 six-word sentences.

    Args:
        path: A file with the columns ``sentence`` and ``lang_LH_AntTemp`` ... ``lang_LH_netw``.

    Raises:
        DataError: The file is missing or damaged.

    Source: Tuckute et al. 2024, "Driving and suppressing the human language network using large
    language models", Nature Human Behaviour 8.
    """
    return sentence_table(path, regions=list(TUCKUTE_CEILINGS), ceilings=TUCKUTE_CEILINGS)


def _ordered(
    table: Readings,
    lag: int,
    texts: Mapping[str, str] | None,
    reliability: float | None,
    origin: str,
) -> ReadingTable:
    """Sort by item, in order of appearance, and position; join the words with their texts."""
    texts = None if texts is None else {str(item): text for item, text in texts.items()}
    first: dict[tuple[str, int], int] = {}
    for index, key in enumerate(table.keys()):
        other = first.setdefault(key, index)
        if other != index:
            raise DataError(
                f"rows {other + 1} and {index + 1} are both position {key[1]} of item {key[0]!r} "
                f"({table.words[other]!r} and {table.words[index]!r}); expected one row a position."
                " If a row is one person's reading, name the column of people by subject=."
            )
    rank = {item: number for number, item in enumerate(dict.fromkeys(table.items))}
    order = sorted(range(len(table.words)), key=lambda i: (rank[table.items[i]], table.places[i]))
    known = table.times[np.isfinite(table.times)]
    if len(known) == 0 or np.ptp(known) == 0:
        what = "no word has one" if len(known) == 0 else f"all {len(known)} are {known[0]:g} ms"
        raise DataError(f"reading times must differ for a correlation, but {what}.")
    words = [table.words[i] for i in order]
    items = [table.items[i] for i in order]
    joined: dict[str, list[str]] = {}
    for name, word in zip(items, words, strict=True):
        joined.setdefault(name, []).append(word)
    if texts is not None:
        _check_joins(joined, texts)
    stood_in = texts or {name: " ".join(shown) for name, shown in joined.items()}
    return ReadingTable(
        words=words,
        items=items,
        positions=np.array([table.places[i] for i in order], dtype=np.int64),
        filed_times=table.times[order],
        lag=lag,
        texts={name: stood_in[name] for name in joined},
        reliability=reliability,
        reliability_from=origin,
    )


def _check_joins(joined: Mapping[str, list[str]], texts: Mapping[str, str]) -> None:
    for item, words in joined.items():
        if item not in texts:
            raise DataError(f"texts has no {item!r}. {did_you_mean(item, texts)}")
        try:
            locate(words, texts[item])
        except DataError as error:
            raise DataError(f"item {item!r}: {error}") from error


def _check_repeats(sentences: list[str], groups: list[str] | None, column: str) -> None:
    first: dict[str, int] = {}
    for index, sentence in enumerate(sentences):
        other = first.setdefault(sentence, index)
        if other != index and (groups is None or groups[other] != groups[index]):
            raise DataError(
                f"rows {other + 1} and {index + 1} of {column!r} are both {sentence!r}; a fold "
                "could be tested on what it was fitted to. Average their responses, or give both "
                "the same group=."
            )


def _checked_ceilings(
    ceilings: Mapping[str, float] | None, regions: list[str]
) -> dict[str, float] | None:
    if ceilings is None:
        return None
    for region in regions:
        ceiling = ceilings.get(region)
        if ceiling is None or not 0 < ceiling <= 1:
            raise DataError(
                f"the ceiling of {region!r} is {ceiling!r}; expected a correlation above 0 and at "
                "most 1. Give one for every region, or ceilings=None."
            )
    return {region: float(ceilings[region]) for region in regions}

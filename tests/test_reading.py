from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model

from hf_connectome.data import train_bpe
from hf_connectome.errors import ConfigError, DataError
from hf_connectome.evaluation.reading import (
    AlignmentWarning,
    lag_profile,
    negative_log_frequencies,
    reading_measures,
    reading_times,
    word_counts,
    word_lengths,
)
from hf_connectome.evaluation.surprisal import word_surprisals
from hf_connectome.evaluation.tables import as_lag, natural_stories, reading_table

DATA = Path(
    os.environ.get("HF_CONNECTOME_DATA", Path(__file__).parents[1].with_name("shared") / "data")
)
REAL = DATA / "human" / "naturalstories"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs HF_CONNECTOME_DATA")


def rows(*records, names=("word", "item", "position", "reading_time")):
    return {name: [record[i] for record in records] for i, name in enumerate(names)}


TWO_STORIES = rows(
    ("To", "a", 1, 300.0),
    ("be,", "a", 2, 310.0),
    ("or", "a", 3, 320.0),
    ("not", "b", 1, 330.0),
    ("to", "b", 2, 340.0),
)


def readers(num_items=4, num_words=300, seed=0, *, length=8.0, surprisal=0.0, misplaced=0):
    """Give a table in which length and surprisal slow a word and, less, the next; its surprisals.

    Times are filed ``misplaced`` positions too early.
    """
    generator = np.random.default_rng(seed)
    words, items, places, times, surprisals = [], [], [], [], []
    for item in range(num_items):
        sizes = generator.integers(1, 12, num_words)
        bits = generator.gamma(2.0, 2.0, num_words)
        slow = length * sizes + surprisal * bits
        slow[1:] += 0.5 * slow[:-1].copy()
        time = 300 + slow + generator.normal(0, 20, num_words)
        filed = np.concatenate([time[misplaced:], generator.normal(330, 20, misplaced)])
        letters = generator.integers(97, 123, (num_words, 12))
        words += [bytes(row[:n].tolist()).decode() for row, n in zip(letters, sizes, strict=True)]
        items += [f"story {item}"] * num_words
        places += range(1, num_words + 1)
        times += filed.tolist()
        surprisals += bits.tolist()
    columns = {"word": words, "item": items, "position": places, "reading_time": times}
    return columns, np.array(surprisals)


def test_times_move_within_their_item_when_the_table_lags():
    table = reading_table(TWO_STORIES, alignment=1)
    np.testing.assert_array_equal(table.times(), [math.nan, 300, 310, math.nan, 330])
    np.testing.assert_array_equal(table.times(0), [300, 310, 320, 330, 340])
    np.testing.assert_array_equal(table.times(-1), [310, 320, math.nan, 340, math.nan])
    assert table.lags == [0, 1]
    assert table.texts == {"a": "To be, or", "b": "not to"}
    assert table.words_of() == {"a": ["To", "be,", "or"], "b": ["not", "to"]}


def test_rows_are_put_in_order_of_position_and_a_gap_stays_a_gap():
    table = reading_table(
        rows(("c", "x", 4, 9.0), ("d", "y", 1, 7.0), ("a", "x", 1, 5.0), ("b", "x", 2, 6.0)),
        alignment="as-filed",
    )
    assert table.words == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(table.times(1), [math.nan, 5, math.nan, math.nan])


def test_columns_go_by_other_names_in_a_file(tmp_path):
    file = tmp_path / "times.CSV"
    file.write_text('\ufeffform,doc,at,ms\n"Well, ",1,1,200\n\nno,1,2,210\n\n', encoding="utf-8")
    names = {"word": "form", "item": "doc", "position": "at", "reading_time": "ms"}
    table = reading_table(file, alignment="as-filed", **names)
    assert table.words == ["Well,", "no"]
    assert table.filed_times.tolist() == [200, 210]


def test_data_frames_and_datasets_are_tables():
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    expected = reading_table(TWO_STORIES, alignment=1)
    for source in (pandas.DataFrame(TWO_STORIES), datasets.Dataset.from_dict(TWO_STORIES)):
        table = reading_table(source, alignment=1)
        assert table.words == expected.words
        np.testing.assert_array_equal(table.times(), expected.times())


def changed(column, row, value):
    values = {name: list(cells) for name, cells in TWO_STORIES.items()}
    values[column][row - 1] = value
    return values


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"word": ["a"]}, "no column 'item'"),
        (TWO_STORIES | {"item": ["a"]}, "column 'item' has 1 rows, 'word' has 5"),
        ({name: [] for name in TWO_STORIES}, "no row below its header"),
        (changed("reading_time", 2, "NaN"), "row 2: 'reading_time' is 'NaN'.*allow_missing=True"),
        (changed("reading_time", 2, ""), "row 2: 'reading_time' is ''"),
        (changed("reading_time", 3, 0.0), "row 3: 'reading_time' is 0 ms; expected more than 0"),
        (changed("reading_time", 3, "-5"), "row 3: 'reading_time' is -5 ms"),
        (changed("reading_time", 1, math.inf), "row 1: 'reading_time' is inf"),
        (changed("reading_time", 1, "fast"), "row 1: 'reading_time' is 'fast'"),
        (changed("position", 1, 1.5), "row 1: 'position' is 1.5; expected a whole number"),
        (changed("position", 3, 2), r"rows 2 and 3 are both position 2 of item 'a' \('be,' and"),
        (changed("word", 4, " "), "row 4: 'word' is ' '; expected text"),
        (changed("word", 4, None), "row 4: 'word' is None"),
        (TWO_STORIES | {"reading_time": [300.0] * 5}, "all 5 are 300 ms"),
    ],
)
def test_error_names_column_and_row_when_a_table_is_bad(source, message):
    with pytest.raises(DataError, match=message):
        reading_table(source, alignment="as-filed")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", "ends in '.xlsx'; expected .csv or .tsv"),
        ("t.csv", b"", "could not be read as a table"),
        ("t.csv", b"\xff\xfe\x00", "could not be read as a table"),
        ("t.csv", b'word\n"a', "could not be read as a table"),
        ("t.csv", b"word,item\na\n", "row 1 of t.csv has 1 cells, the header 2"),
        ("t.csv", b"word,item,position,reading_time\n\n", "no row below its header"),
        ("t.csv", b"word,item,word\na,b,c\n", "t.csv has two columns 'word'"),
    ],
)
def test_error_when_a_file_is_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        reading_table(tmp_path / name, alignment="as-filed")


def test_error_when_there_is_no_table_at_all():
    with pytest.raises(DataError, match="the table is int; expected the path"):
        reading_table(7, alignment="as-filed")


def test_error_when_the_file_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"processed_wordinfo\.tsv could not be read"):
        natural_stories(tmp_path)


def test_word_without_a_time_stays_in_its_text_when_that_is_allowed():
    source = changed("reading_time", 2, "NA")
    table = reading_table(source, alignment="as-filed", allow_missing=True)
    assert table.texts["a"] == "To be, or"
    assert np.isnan(table.times()).tolist() == [False, True, False, False, False]


def test_words_stand_in_the_texts_that_are_given():
    texts = {"a": "To  be,\nor ", "b": " not to"}
    table = reading_table(TWO_STORIES, alignment="as-filed", texts=texts)
    assert table.texts == texts
    with pytest.raises(DataError, match="item 'b': word 2 is 'to', but the text goes on"):
        reading_table(TWO_STORIES, alignment="as-filed", texts=texts | {"b": "not at"})
    with pytest.raises(DataError, match="texts has no 'b'"):
        reading_table(TWO_STORIES, alignment="as-filed", texts={"a": texts["a"]})


@pytest.mark.parametrize(
    ("alignment", "lag"), [("as-filed", 0), ("corrected", 1), (0, 0), (-2, -2), (3, 3)]
)
def test_alignment_is_a_lag(alignment, lag):
    assert as_lag(alignment) == lag


@pytest.mark.parametrize("alignment", ["right", 1.0, True, None])
def test_error_when_the_alignment_is_none(alignment):
    with pytest.raises(ConfigError, match="expected 'as-filed', 'corrected', or"):
        reading_table(TWO_STORIES, alignment=alignment)


def test_alignment_has_no_default():
    with pytest.raises(TypeError, match="alignment"):
        reading_table(TWO_STORIES)


def test_reliability_is_the_variance_that_is_no_noise():
    source = TWO_STORIES | {"n": [10, 10, 20, 20, 20], "sd": [20.0, 20.0, 20.0, 10.0, 30.0]}
    table = reading_table(source, alignment="as-filed", num_readers="n", deviation="sd")
    noise = (40 + 40 + 20 + 5 + 45) / 5
    assert table.reliability == pytest.approx(1 - noise / 250)
    noisy = source | {"sd": [200.0] * 5}
    table = reading_table(noisy, alignment="as-filed", num_readers="n", deviation="sd")
    assert table.reliability is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_readers": "n"}, "num_readers is 'n', deviation is None"),
        ({"num_readers": "n", "deviation": "sd", "subject": "s"}, "subject is 's'"),
    ],
)
def test_error_when_settings_of_reliability_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        reading_table(TWO_STORIES, alignment="as-filed", **settings)


def test_error_when_nobody_read_a_word():
    source = TWO_STORIES | {"n": [10, 0, 20, 20, 20], "sd": [20.0] * 5}
    with pytest.raises(DataError, match="row 2: 'n' is 0; expected more than 0"):
        reading_table(source, alignment="as-filed", num_readers="n", deviation="sd")


def one_row_a_reader(num_readers=40, num_words=400, noise=60.0):
    generator = np.random.default_rng(1)
    true = generator.normal(350, 20, num_words)
    records = [
        ("w", "a", place, max(1.0, true[place] + generator.normal(0, noise)), f"s{reader}")
        for reader in range(num_readers)
        for place in range(num_words)
    ]
    names = ("word", "item", "position", "reading_time", "who")
    return rows(*records, names=names), true


def test_times_are_means_and_reliability_is_that_of_halves_when_rows_are_readers():
    source, _ = one_row_a_reader()
    table = reading_table(source, alignment="as-filed", subject="who")
    assert len(table.words) == 400
    first = [t for t, p in zip(source["reading_time"], source["position"], strict=True) if p == 0]
    assert table.filed_times[0] == pytest.approx(np.mean(first))
    assert table.reliability == pytest.approx(400 / (400 + 3600 / 40), abs=0.03)  # true / all
    assert "split halves" in table.reliability_from


def test_error_when_a_reader_reads_a_word_twice_or_another_word():
    source, _ = one_row_a_reader(2, 3)
    source["position"][1] = 0
    with pytest.raises(DataError, match=r"rows 1 and 2 are both the reading .* by subject 's0'"):
        reading_table(source, alignment="as-filed", subject="who")
    source, _ = one_row_a_reader(2, 3)
    source["word"][4] = "v"
    with pytest.raises(DataError, match="row 5: position 1 of item 'a' is 'v', and 'w'"):
        reading_table(source, alignment="as-filed", subject="who")


def test_frequencies_are_add_one():
    counts = word_counts(["The cat, the -- 'dog'.", "THE end"])
    assert counts == {"the": 3, "cat": 1, "--": 1, "dog": 1, "end": 1}
    found = negative_log_frequencies(["(the", "Cow?", "--"], counts)
    assert found == pytest.approx([-math.log(4 / 13), -math.log(1 / 13), -math.log(2 / 13)])
    joined = negative_log_frequencies(["the"], {"The": 1, "the": 2})
    assert joined == pytest.approx([-math.log(4 / 5)])


@pytest.mark.parametrize(
    ("counts", "message"), [({}, "counts no word"), ({"a": -1}, "count of 'a' is -1")]
)
def test_error_when_there_are_no_counts(counts, message):
    with pytest.raises(DataError, match=message):
        negative_log_frequencies(["a"], counts)


@pytest.mark.parametrize("misplaced", [1, 2])
def test_warning_names_the_alignment_when_words_slow_the_words_before(misplaced):
    columns, _ = readers(misplaced=misplaced)
    table = reading_table(columns, alignment="as-filed")
    with pytest.warns(AlignmentWarning, match=f"Try alignment={misplaced}; it is 0 now") as seen:
        lag_profile(table, {"length": word_lengths(table), "again": word_lengths(table)})
    assert len(seen) == 1


def test_profile_is_silent_and_spills_over_when_times_are_in_place():
    columns, _ = readers(misplaced=1)
    table = reading_table(columns, alignment="corrected")
    found = lag_profile(table, {"length": word_lengths(table)})["length"]
    assert list(found) == [-2, -1, 0, 1, 2]
    assert found[0] > 0.6
    assert 0.2 < found[1] < found[0]
    assert abs(found[-1]) < 0.1
    assert abs(found[-2]) < 0.1
    assert lag_profile(table, {"x": word_lengths(table)}, lag=0, warn=False)["x"][-1] == found[0]


def test_profile_is_that_of_a_shifted_list():
    table = reading_table(TWO_STORIES, alignment="as-filed")
    values = np.array([1.0, 4.0, 2.0, 7.0, 3.0])
    found = lag_profile(replace(table, items=["a"] * 5, positions=np.arange(5)), {"x": values})
    times = np.array([300.0, 310, 320, 330, 340])
    assert found["x"][1] == pytest.approx(np.corrcoef(values[:-1], times[1:])[0, 1])
    assert found["x"][-2] == pytest.approx(np.corrcoef(values[2:], times[:-2])[0, 1])


def test_log_likelihood_is_that_of_other_libraries():
    linear_model = pytest.importorskip("sklearn.linear_model")
    stats = pytest.importorskip("scipy.stats")
    columns, surprisals = readers(3, 60, surprisal=4.0)
    table = reading_table(columns, alignment="as-filed")
    counts = word_counts(columns["word"])
    found = reading_measures(table, surprisals, frequency=counts).chosen
    predictors = [word_lengths(table), negative_log_frequencies(table.words, counts), surprisals]
    back = [np.concatenate([[math.nan] * k, p])[: len(p)] for p in predictors for k in range(3)]
    design = np.stack(back, axis=1)
    inside = np.array(columns["position"]) > 2  # the first two words have no two before them
    times = np.array(columns["reading_time"])
    for item in table.texts:
        out = inside & (np.array(columns["item"]) == item)
        kept = inside & ~out
        scores = []
        for width in (9, 6):
            fit = linear_model.LinearRegression().fit(design[kept, :width], times[kept])
            spread = np.std(times[kept] - fit.predict(design[kept, :width]))
            predicted = fit.predict(design[out, :width])
            scores.append(stats.norm.logpdf(times[out], predicted, spread).mean())
        assert found.by_item[item] == pytest.approx(scores[0] - scores[1], abs=1e-9)
    gains = list(found.by_item.values())
    assert found.delta_log_likelihood == pytest.approx(np.mean(gains))
    assert found.standard_error == pytest.approx(stats.sem(gains))
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    )
    fit = linear_model.LinearRegression().fit(design[inside], times[inside])
    assert found.r_squared_full == pytest.approx(fit.score(design[inside], times[inside]))
    assert found.num_regression_words == 3 * 58
    assert found.num_words == 180
    assert found.pearson_r == pytest.approx(np.corrcoef(surprisals, times)[0, 1])


def test_surprisal_adds_where_it_slows_and_nothing_where_it_does_not():
    columns, surprisals = readers(surprisal=6.0)
    table = reading_table(columns, alignment="as-filed")
    found = reading_measures(table, surprisals, frequency=columns["word"]).chosen
    assert found.low > 0.05
    assert found.r_squared_full > found.r_squared_baseline + 0.05
    columns, surprisals = readers(surprisal=0.0)
    table = reading_table(columns, alignment="as-filed")
    found = reading_measures(table, surprisals, frequency=columns["word"]).chosen
    assert abs(found.delta_log_likelihood) < 0.01
    assert abs(found.pearson_r) < 0.1


def test_result_has_every_alignment_and_is_plain_json():
    columns, surprisals = readers(surprisal=6.0, misplaced=1)
    surprisals[0] = math.nan
    table = replace(reading_table(columns, alignment="corrected"), reliability=0.64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the alignment that was not chosen is no warning
        result = reading_measures(table, surprisals, frequency=columns["word"])
    filed, corrected = result.alignments
    assert (filed.name, filed.chosen, corrected.name, corrected.chosen) == (
        *("as-filed", False),
        *("lag 1", True),
    )
    assert filed.num_words == 1199
    assert corrected.num_words == 1196  # the first word of a story has no time
    assert corrected.r_squared_full > filed.r_squared_full + 0.2
    assert corrected.fraction_of_ceiling == pytest.approx(corrected.pearson_r / 0.8)
    assert result.noise_ceiling == pytest.approx(0.8)
    assert result.mean_surprisal_bits == pytest.approx(np.nanmean(surprisals) / math.log(2))
    plain = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert plain == result.as_json()
    assert list(plain["alignments"][0]["lag_profile"]["length"]) == ["-2", "-1", "0", "+1", "+2"]


@pytest.mark.parametrize(
    ("table", "surprisals", "message"),
    [
        (readers(1, 40), None, "leaving one out takes at least 2"),
        (readers(2, 10), None, "8 words are left for a fit of 10 coefficients"),
        (readers(2, 40), np.ones(80), "the surprisal of all 80 words is 1"),
        (readers(2, 40), np.ones(79), "79 surprisals come with 80 words"),
        (readers(2, 40), np.full(80, math.nan), "no word has a finite surprisal"),
        (readers(2, 40), np.array([1.0, 2.0, *[math.nan] * 78]), "2 words have both a surprisal"),
    ],
)
def test_error_when_there_is_too_little_to_measure(table, surprisals, message):
    columns, own = table
    with pytest.raises(DataError, match=message):
        reading_measures(
            reading_table(columns, alignment="as-filed"),
            own if surprisals is None else surprisals,
            frequency=columns["word"],
        )


def test_reading_times_uses_the_surprisals_of_the_model():
    columns, _ = readers(3, 40)
    table = reading_table(columns, alignment="as-filed")
    tokenizer = train_bpe(columns["word"], 300)
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    result = reading_times(model, tokenizer, table, frequency=columns["word"])
    values = word_surprisals(model, tokenizer, list(table.words_of().values()))
    assert result == reading_measures(table, np.concatenate(values), frequency=columns["word"])
    assert result.num_items == 3


def test_natural_stories_are_given_for_both_alignments(tmp_path):
    columns, surprisals = readers(misplaced=1)
    head = "word\tzone\titem\tnItem\tmeanItemRT\tsdItemRT\n"
    cells = zip(
        columns["word"], columns["position"], columns["item"], columns["reading_time"], strict=True
    )
    lines = [f"{word}\t{z}\t{item}\t80\t{ms}\t60\n" for word, z, item, ms in cells]
    (tmp_path / "processed_wordinfo.tsv").write_text(head + "".join(lines))
    table = natural_stories(tmp_path)
    assert (table.lag, table.lags) == (1, [0, 1])
    assert 0.9 < table.reliability < 1
    filed = natural_stories(str(tmp_path), alignment="as-filed")
    assert (filed.lag, filed.lags) == (0, [0, 1])
    with pytest.warns(AlignmentWarning, match="Try alignment=1"):
        other = reading_measures(filed, surprisals, frequency=columns["word"])
    result = reading_measures(table, surprisals, frequency=columns["word"])
    strip = [replace(a, chosen=True) for a in result.alignments]
    assert strip == [replace(a, chosen=True) for a in other.alignments]


@needs_real
def test_length_explains_more_when_the_real_stories_are_corrected():
    table = natural_stories(REAL)
    assert (len(table.words), len(table.texts)) == (10256, 10)
    assert table.reliability == pytest.approx(0.83, abs=0.005)
    lengths = {"length": word_lengths(table)}
    corrected = lag_profile(table, lengths)["length"]
    assert corrected[-1] == pytest.approx(0.034, abs=0.002)
    assert corrected[0] == pytest.approx(0.252, abs=0.002)
    with pytest.warns(AlignmentWarning, match="Try alignment=1"):
        filed = lag_profile(table, lengths, lag=0)["length"]
    assert filed[-1] == corrected[0]
    assert filed[0] == pytest.approx(0.321, abs=0.002)

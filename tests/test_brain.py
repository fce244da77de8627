from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import drawn, same, state_of, tiny_model

from hf_connectome.data import train_bpe
from hf_connectome.errors import ConfigError, DataError, HostMismatchError
from hf_connectome.evaluation.brain import LANGUAGE_UNITS, neural_predictivity
from hf_connectome.evaluation.ridge import (
    ALPHAS,
    correlations,
    cross_validated,
    folds,
    ridge_predictions,
)
from hf_connectome.evaluation.states import (
    language_units,
    last_token_states,
    nonwords,
    untrained_twin,
)
from hf_connectome.evaluation.tables import SentenceTable, sentence_table, tuckute_2024

DATA = Path(
    os.environ.get("HF_CONNECTOME_DATA", Path(__file__).parents[1].with_name("shared") / "data")
)
REAL = DATA / "human" / "tuckute2024" / "bold_response_LH.csv"

SUBJECTS = ("the cat", "a dog", "my old aunt", "one small bird", "that naïve man", "every child")
VERBS = ("sees", "likes", "never finds", "carried", "has lost", "wants", "sold", "drew")
OBJECTS = ("the red ball", "a house", "some 漢字", "our way home", "nothing")
SENTENCES = [f"{s} {v} {o}." for s in SUBJECTS for v in VERBS for o in OBJECTS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(SENTENCES, 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    return model


def planted(rows=400, width=12, columns=3, noise=1.0, seed=0):
    """Give features and responses whose best possible correlation is ``1 / sqrt(1 + noise^2)``."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, width))
    weights = generator.normal(size=(width, columns)) / math.sqrt(width)
    signal = features @ weights
    signal /= signal.std(0)
    return features, signal + noise * generator.normal(size=signal.shape)


def test_ridge_of_two_points_is_that_by_hand():
    # x = -1, 1 and y = -2, 2 about their means: w = 4 / (2 + alpha) = 1 at alpha 2.
    predicted, alpha = ridge_predictions(
        np.array([[4.0], [6.0]]), np.array([[8.0], [12.0]]), np.array([[5.0], [7.0]]), [2.0]
    )
    assert predicted.tolist() == [[10.0], [pytest.approx(12.0)]]
    assert alpha.tolist() == [2.0]


@pytest.mark.parametrize(("rows", "width"), [(60, 8), (40, 90), (30, 29)])
def test_ridge_is_that_of_scikit_learn(rows, width):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, responses = planted(rows + 20, width, 4, noise=2.0)
    responses[:, 3] = np.random.default_rng(5).normal(size=rows + 20)
    fitted = linear_model.RidgeCV(alphas=ALPHAS, alpha_per_target=True)
    fitted.fit(features[:rows], responses[:rows])
    predicted, alpha = ridge_predictions(features[:rows], responses[:rows], features[rows:])
    assert alpha.tolist() == pytest.approx(fitted.alpha_.tolist())
    np.testing.assert_allclose(predicted, fitted.predict(features[rows:]), atol=1e-8)
    assert len(set(alpha.tolist())) > 1  # one each, not one for all
    single = linear_model.Ridge(alpha=3.0).fit(features[:rows], responses[:rows])
    predicted, _ = ridge_predictions(features[:rows], responses[:rows], features[rows:], [3.0])
    np.testing.assert_allclose(predicted, single.predict(features[rows:]), atol=1e-8)


def test_alpha_is_the_one_with_the_least_error_when_rows_are_left_out_one_by_one():
    features, responses = planted(25, 10, 2, noise=1.5)
    alphas = [0.1, 1.0, 10.0, 100.0]
    errors = np.zeros((len(alphas), 2))
    for index, alpha in enumerate(alphas):
        for row in range(25):
            kept = np.arange(25) != row
            guess, _ = ridge_predictions(
                features[kept], responses[kept], features[row : row + 1], [alpha]
            )
            errors[index] += (guess[0] - responses[row]) ** 2
    _, chosen = ridge_predictions(features, responses, features, alphas)
    assert chosen.tolist() == [alphas[i] for i in errors.argmin(0)]


def test_fit_that_remembers_every_row_is_never_chosen():
    features, responses = planted(20, 60, 1, noise=1.0)
    _, chosen = ridge_predictions(features, responses, features, [1e-30, 1e-20, 10.0])
    assert chosen.tolist() == [10.0]


def test_features_without_variance_predict_the_mean():
    _, responses = planted(20, 2, 2)
    predicted, _ = ridge_predictions(np.ones((20, 3)), responses, np.ones((4, 3)))
    np.testing.assert_allclose(predicted, np.tile(responses.mean(0), (4, 1)))
    assert correlations(predicted, responses[:4]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("alphas", [[], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
def test_error_when_alphas_do_not_increase(alphas):
    with pytest.raises(ConfigError, match="expected numbers above 0 that increase"):
        ridge_predictions(*planted(9, 2, 1), np.ones((1, 2)), alphas)


@pytest.mark.parametrize(("num", "num_folds", "seed"), [(23, 5, 0), (10, 5, 3), (7, 3, 11)])
def test_folds_are_those_of_scikit_learn(num, num_folds, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    splits = selection.KFold(num_folds, shuffle=True, random_state=seed).split(np.ones(num))
    expected = [test.tolist() for _, test in splits]
    assert [part.tolist() for part in folds(num, num_folds, seed)] == expected


def test_groups_stay_together_and_folds_stay_even():
    groups = [f"g{i % 13}" for i in range(100)]
    parts = folds(100, 5, 0, groups)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    owners = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, owners)) == 13
    assert {len(part) for part in parts} <= set(range(14, 25))
    assert folds(100, 5, 1, groups)[0].tolist() != parts[0].tolist()
    uneven = folds(12, 2, 0, ["big"] * 6 + list("abcdef"))
    assert sorted(map(len, uneven)) == [6, 6]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4, 5, 0), DataError, "4 rows are fewer than 5 folds"),
        ((9, 3, 0, ["a"] * 5 + ["b"] * 4), DataError, "2 groups are fewer than 3 folds"),
        ((9, 5, 0), DataError, "tested on 1 row of 9"),
        ((9, 1, 0), ConfigError, "num_folds is 1"),
        ((9, 3, -1), ConfigError, "seed -1"),
    ],
)
def test_error_when_rows_cannot_be_dealt(arguments, error, message):
    with pytest.raises(error, match=message):
        folds(*arguments)


def test_planted_signal_is_recovered_and_shuffled_rows_are_chance():
    features, responses = planted(1000, 12, 3, noise=1.0)
    parts = folds(1000, 5, 0)
    found, _ = cross_validated(features, responses, parts)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found.mean(0), 1 / math.sqrt(2), atol=0.05)
    order = np.random.default_rng(9).permutation(1000)
    null, _ = cross_validated(features, responses[order], parts)
    assert np.abs(null.mean(0)).max() < 3 / math.sqrt(1000)


def test_columns_do_not_influence_each_other():
    features, responses = planted()
    parts = folds(400, 4, 0)
    together, alphas = cross_validated(features, responses, parts)
    for column in range(3):
        alone, alpha = cross_validated(features, responses[:, [column]], parts)
        np.testing.assert_allclose(alone[:, 0], together[:, column], atol=1e-12)
        np.testing.assert_array_equal(alpha[:, 0], alphas[:, column])


def test_state_is_that_of_the_sentence_alone(model, tokenizer):
    some = [SENTENCES[0], "a", SENTENCES[97], SENTENCES[44]]
    found = last_token_states(model, tokenizer, some, batch_size=3)
    assert list(found) == [0, 1, 2]
    for row, sentence in enumerate(some):
        ids = torch.tensor([tokenizer(sentence)["input_ids"]])
        with torch.inference_mode():
            hidden = model.eval()(ids, output_hidden_states=True).hidden_states
        for layer, states in found.items():
            np.testing.assert_allclose(states[row], hidden[layer][0, -1].numpy(), atol=1e-4)


def test_encoder_states_do_not_see_the_padding():
    tokenizer = train_bpe(["b a"], 257)
    model = tiny_model("bert", vocab_size=300)
    alone = last_token_states(model, tokenizer, ["b"], layers=[-1])[2]
    padded = last_token_states(model, tokenizer, ["b", "a b a a"], layers=[-1])[2]
    np.testing.assert_allclose(padded[:1], alone, atol=1e-5)


def test_long_sentence_keeps_its_end(model, tokenizer):
    ids = tokenizer(SENTENCES[5])["input_ids"]
    end = tokenizer.decode(ids[-4:])
    assert tokenizer(end)["input_ids"] == ids[-4:]
    long = last_token_states(model, tokenizer, [SENTENCES[5]], context=4)
    short = last_token_states(model, tokenizer, [end])
    np.testing.assert_allclose(long[2], short[2], atol=1e-5)
    many = last_token_states(model, tokenizer, [SENTENCES[5] * 20])  # more than 64 tokens
    assert many[2].shape == (1, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [3]}, r"layer 3 is not one of the model's 3; expected 0 \(embeddings\) to 2"),
        ({"layers": [-4]}, "layer -4"),
        (
            {"context": 65},
            "context 65; expected at least 1, and a context of at most the model's 64",
        ),
        ({"context": 0}, "context 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_error_when_there_is_no_such_layer_or_context(model, tokenizer, settings, message):
    with pytest.raises(ConfigError, match=message):
        last_token_states(model, tokenizer, ["a"], **settings)


def test_error_when_the_model_cannot_read_the_sentences(model, tokenizer):
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration is an encoder-decoder"):
        last_token_states(tiny_model("t5"), tokenizer, ["a"])
    with pytest.raises(HostMismatchError, match="the model has 97 embeddings"):
        last_token_states(tiny_model("gpt2"), tokenizer, ["the cat"])
    with pytest.raises(DataError, match="text 1 has no token"):
        last_token_states(model, tokenizer, ["a", ""])
    broken = tiny_model("gpt2", vocab_size=len(tokenizer))
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_proj.bias[0] = math.nan
    with pytest.raises(DataError, match="layer 2 has a state that is not finite after 'the cat'"):
        last_token_states(broken, tokenizer, ["the cat"])


def test_language_units_are_the_planted_ones():
    generator = np.random.default_rng(0)
    left, right = (
        {k: generator.normal(size=(50, 20)).astype(np.float32) for k in (1, 2)} for _ in range(2)
    )
    left[2][:, 7] += 5  # larger, either sign: what counts is the magnitude
    left[1][:, 3] -= 3
    right[1][:, 4] += 9  # prefers non-words
    assert language_units(left, right, fraction=0.05) == [(2, 7), (1, 3)]
    assert language_units(left, right, fraction=1e-9) == [(2, 7)]
    assert language_units(left, right, fraction=1.0)[-1] == (1, 4)


def test_language_units_have_the_largest_t_of_welch():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(3)
    left = {1: generator.normal(size=(30, 40)).astype(np.float32)}
    right = {1: 1.5 * generator.normal(size=(12, 40)).astype(np.float32)}
    t = stats.ttest_ind(np.abs(left[1]), np.abs(right[1]), equal_var=False).statistic
    expected = [(1, int(i)) for i in np.argsort(-t)]
    assert language_units(left, right, fraction=1.0) == expected


@pytest.mark.parametrize(
    ("rows", "fraction", "error", "message"),
    [
        (5, 0.0, ConfigError, "fraction is 0.0"),
        (5, 1.1, ConfigError, "fraction is 1.1"),
        (1, 0.5, DataError, "1 sentences and 1 strings"),
    ],
)
def test_error_when_there_is_no_contrast(rows, fraction, error, message):
    states = {1: np.ones((rows, 4), dtype=np.float32)}
    with pytest.raises(error, match=message):
        language_units(states, states, fraction=fraction)


def test_nonwords_have_the_letters_and_lengths_of_their_sentence():
    made = nonwords(SENTENCES)
    known = {w for s in SENTENCES for w in s.strip(".").split() if len(w) > 1}
    spoiled = 0
    for sentence, string in zip(SENTENCES, made, strict=True):
        assert sorted(string) == sorted(sentence)
        assert [len(w) for w in string.split()] == [len(w) for w in sentence.split()]
        assert string.endswith(".")
        spoiled += not known.isdisjoint(string.strip(".").split())
    assert spoiled == 0
    assert nonwords(SENTENCES) == made
    assert nonwords(SENTENCES[::-1]) == made[::-1]
    assert nonwords(SENTENCES, seed=1) != made
    assert nonwords(["A-B 3!"])[0] in ("A-B 3!", "B-A 3!")


def test_twin_is_fresh_and_the_model_stays(model):
    before, generator = state_of(model), torch.get_rng_state()
    twin = untrained_twin(model, 0)
    assert type(twin) is type(model)
    assert same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert same(state_of(twin), state_of(untrained_twin(model, 0)))
    assert not same(state_of(twin), state_of(untrained_twin(model, 1)))
    assert twin.transformer.wte.weight.std() < 0.03 < model.transformer.wte.weight.std()
    assert untrained_twin(tiny_model("gpt2").bfloat16(), 0).dtype == torch.bfloat16


def responding(model, tokenizer, noise=1.0, **changes):
    """Give a table whose regions respond to the last layer of a model, but for the last region."""
    states = last_token_states(model, tokenizer, SENTENCES)[2].astype(np.float64)
    generator = np.random.default_rng(1)
    signal = states @ generator.normal(size=(states.shape[1], 2))
    signal = (signal - signal.mean(0)) / signal.std(0)
    deaf = generator.normal(size=(len(SENTENCES), 1))
    responses = np.concatenate([signal + noise * generator.normal(size=signal.shape), deaf], axis=1)
    table = {"sentence": SENTENCES, "id": [f"B.{i}" for i in range(len(SENTENCES))]}
    table |= {f"r{i}": responses[:, i] for i in range(3)}
    return sentence_table(table, **changes)


def test_regions_are_predicted_where_they_respond_and_only_there(model, tokenizer):
    table = responding(model, tokenizer, ceilings={"r0": 0.7, "r1": 0.7, "r2": 0.5})
    assert table.regions == ["r0", "r1", "r2"]
    result = neural_predictivity(model, tokenizer, table, layers=[0, -1], untrained_seeds=[3])
    hears, deaf = result.score("r0", "layer 2"), result.score("r2", "layer 2")
    assert hears.pearson_r == pytest.approx(1 / math.sqrt(2), abs=0.12)
    assert hears.fraction_of_ceiling == pytest.approx(hears.pearson_r / 0.7)
    assert hears.pearson_r > result.score("r0", "layer 2", "untrained 3").pearson_r
    assert hears.pearson_r > result.score("r0", "layer 0").pearson_r
    assert hears.shuffled_high < 0.25 < hears.pearson_r
    assert deaf.shuffled_low - 0.1 < deaf.pearson_r < deaf.shuffled_high + 0.1
    for score in result.scores:
        assert score.shuffled_low < 0.05 < 0.05 + score.shuffled_high + 0.1
        assert abs(score.shuffled_mean) < 0.1
        assert len(score.alphas) == 5
    models = {(s.model, s.features) for s in result.scores}
    features = ("layer 0", "layer 2", LANGUAGE_UNITS)
    assert models == {(m, f) for m in ("trained", "untrained 3") for f in features}
    assert len(result.language_units) == result.score("r0", LANGUAGE_UNITS).num_features == 1
    assert json.loads(json.dumps(result.as_json(), allow_nan=False)) == result.as_json()


def test_scores_are_means_over_folds_of_the_ridge(model, tokenizer):
    table = responding(model, tokenizer)
    result = neural_predictivity(
        model, tokenizer, table, num_shuffles=0, untrained_seeds=[], unit_fraction=None, seed=4
    )
    assert len(result.scores) == 9
    states = last_token_states(model, tokenizer, SENTENCES)[1].astype(np.float64)
    found, alphas = cross_validated(states, table.responses, folds(len(SENTENCES), 5, 4))
    score = result.score("r1", "layer 1")
    assert score.pearson_r == pytest.approx(found[:, 1].mean())
    assert score.standard_error == pytest.approx(found[:, 1].std(ddof=1) / math.sqrt(5))
    assert score.alphas == alphas[:, 1].tolist()
    assert (score.shuffled_mean, score.shuffled_low, score.fraction_of_ceiling) == (None,) * 3
    with pytest.raises(ConfigError, match="no score of 'layer 9' of the 'trained' model for 'r1'"):
        result.score("r1", "layer 9")


def test_units_are_localized_with_the_texts_that_are_given(model, tokenizer):
    table = responding(model, tokenizer)
    options = {"num_shuffles": 0, "untrained_seeds": [], "layers": [1], "unit_fraction": 0.1}
    own = neural_predictivity(model, tokenizer, table, **options)
    made = (SENTENCES, nonwords(SENTENCES))
    assert neural_predictivity(model, tokenizer, table, localizer=made, **options) == own
    other = (SENTENCES[:40], ["x x x", "y y", "zz q"])
    given = neural_predictivity(model, tokenizer, table, localizer=other, **options)
    sets = [last_token_states(model, tokenizer, t, layers=[1, 2]) for t in other]
    assert given.language_units == language_units(*sets, fraction=0.1)
    assert given.language_units != own.language_units
    assert given.score("r0", LANGUAGE_UNITS).num_features == 6


def test_connectome_on_the_model_is_read_and_its_twin_has_none(tokenizer, tmp_path):
    from hf_connectome import ConnectomeModel

    model = tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=64)
    plain = last_token_states(model, tokenizer, SENTENCES[:5])[2]
    drawn(model, density=0.3).save_pretrained(tmp_path)
    wired = ConnectomeModel.from_pretrained(model, tmp_path)
    table = SentenceTable(SENTENCES, ["r"], np.random.default_rng(0).normal(size=(240, 1)))
    found = last_token_states(wired, tokenizer, SENTENCES[:5])[2]
    assert not np.allclose(found, plain, atol=1e-3)
    twin = untrained_twin(wired, 0)
    assert type(twin).__name__ == "GPT2LMHeadModel"
    assert (twin.transformer.h[0].attn.c_attn.weight == 0).sum() == 0
    result = neural_predictivity(wired, tokenizer, table, num_shuffles=0, unit_fraction=None)
    assert len(result.scores) == 6


def test_passages_stay_together(model, tokenizer):
    table = responding(model, tokenizer)
    groups = [sentence.split()[0] for sentence in SENTENCES]
    grouped = SentenceTable(table.sentences, table.regions, table.responses, groups)
    options = {"num_shuffles": 0, "untrained_seeds": [], "layers": [2], "unit_fraction": None}
    found = neural_predictivity(model, tokenizer, grouped, **options)
    assert found.grouped
    assert found.scores != neural_predictivity(model, tokenizer, table, **options).scores
    with pytest.raises(DataError, match="6 groups are fewer than 7 folds"):
        neural_predictivity(model, tokenizer, grouped, num_folds=7, **options)


def test_error_when_there_are_fewer_sentences_than_folds(model, tokenizer):
    table = SentenceTable(SENTENCES[:4], ["r"], np.arange(4.0)[:, None])
    with pytest.raises(DataError, match="4 rows are fewer than 5 folds"):
        neural_predictivity(model, tokenizer, table)
    with pytest.raises(ConfigError, match="num_shuffles is -1"):
        neural_predictivity(model, tokenizer, table, num_shuffles=-1)


GOOD = {"sentence": ["a b", "c d", "e f"], "r": [1.0, 2.0, 4.0]}


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ({"text": ["a"]}, {}, "no column 'sentence'"),
        (GOOD | {"r": [1.0, "NA", 2.0]}, {"regions": ["r"]}, "row 2: 'r' is 'NA'"),
        (GOOD | {"r": [1.0, math.nan, 2.0]}, {"regions": ["r"]}, "row 2: 'r' is nan"),
        (GOOD | {"r": [1.0, "NA", 2.0]}, {}, "no column besides 'sentence' holds only numbers"),
        (GOOD | {"r": [1.0, 1.0, 1.0]}, {}, "every response of 'r' is 1"),
        (GOOD | {"sentence": ["a b", "", "e f"]}, {}, "row 2: 'sentence' is ''"),
        (GOOD | {"sentence": ["a b", "c", "a b"]}, {}, "rows 1 and 3 of 'sentence' are both 'a b'"),
        ({"sentence": [], "r": []}, {}, "no row below its header"),
        (GOOD, {"regions": ["s"]}, "no column 's'. Did you mean|no column 's'"),
        (GOOD, {"ceilings": {"q": 0.5}}, "the ceiling of 'r' is None"),
        (GOOD, {"ceilings": {"r": 1.5}}, "the ceiling of 'r' is 1.5"),
    ],
)
def test_error_names_column_and_row_when_a_table_is_bad(source, settings, message):
    with pytest.raises(DataError, match=message):
        sentence_table(source, **settings)


def test_sentence_may_repeat_within_its_group():
    source = {"sentence": ["a", "a", "b"], "r": ["1", "2", "3"], "passage": [1, 1, 2]}
    table = sentence_table(source, group="passage")
    assert table.groups == ["1", "1", "2"]
    assert table.regions == ["r"]
    assert table.responses.tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.skipif(not REAL.is_file(), reason="needs HF_CONNECTOME_DATA")
def test_length_alone_predicts_real_regions_above_chance():
    table = tuckute_2024(REAL)
    assert table.responses.shape == (1000, 6)
    assert table.ceilings["lang_LH_netw"] == 0.559
    letters = np.array([[len(s), len(set(s.lower()))] for s in table.sentences], dtype=np.float64)
    found, _ = cross_validated(letters, table.responses, folds(1000, 5, 0))
    assert found.mean(0)[-1] > 0.1

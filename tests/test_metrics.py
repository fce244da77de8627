"""Metrics by hand, and as modules of evaluate: batches, combinations, two processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from workers.gather_worker import gather

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, DataError, UnknownNameError
from hf_connectome.evaluation.metrics import NAMES, formulas, load
from hf_connectome.evaluation.ridge import ALPHAS

NAN = float("nan")


# The formulas


def test_bits_per_byte_by_hand() -> None:
    assert formulas.bits_per_byte([math.log(2) * 3, math.log(2)], [2, 6]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("nats", "num_bytes", "message"),
    [
        ([], [], "nats is empty"),
        ([1.0], [1, 2], "nats has 1 rows, num_bytes 2"),
        ([1.0, NAN], [1, 2], r"nats has nan in row 1 \(1 in all\)"),
        ([1.0, -2.0], [1, 2], "nats has -2 in row 1; expected 0 or more"),
        ([1.0], [0], "adds up to 0"),
        ([1.0, None], [1, 2], "nats has nan in row 1"),
        (["a"], [1], "nats has something that is not a number"),
        ([[1.0]], [1], "nats has 2 dimensions; expected 1"),
    ],
)
def test_bits_per_byte_says_what_is_wrong(nats, num_bytes, message) -> None:
    with pytest.raises(DataError, match=message):
        formulas.bits_per_byte(nats, num_bytes)


def test_partial_correlation_by_hand() -> None:
    x, y, z = [2.0, 4.0, 15.0, 20.0, 9.0], [1.0, 2.0, 3.0, 4.0, 7.0], [0.0, 0.0, 1.0, 1.0, 2.0]
    xy, xz, yz = (formulas.pearson(a, b) for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert formulas.partial_pearson(x, y, [[v] for v in z]) == pytest.approx(expected)
    assert expected != pytest.approx(xy)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [1, 2], "2 rows cannot be correlated"),
        ([1, 2, 3], [5, 5, 5], "the second column is 5 in all 3 rows"),
        ([1, 2, math.inf], [1, 2, 3], "the first column has inf in row 2"),
    ],
)
def test_correlation_says_what_is_wrong(x, y, message) -> None:
    with pytest.raises(DataError, match=message):
        formulas.pearson(x, y)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([[1.0], [2.0], [3.0], [5.0]], "nothing is left of the first column"),
        ([[1.0], [2.0, 3.0], [3.0], [5.0]], "rows of 1 and of 2 numbers"),
        ([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [5.0, 0.0]], "4 rows .* beside 2 controls"),
        ([[1.0], [2.0], [3.0]], "the first column has 4 rows, controls 3"),
        ([[], [], [], []], "rows without a number"),
    ],
)
def test_controls_say_what_is_wrong(controls, message) -> None:
    with pytest.raises(DataError, match=message):
        formulas.partial_pearson([2.0, 4.0, 6.0, 10.0], [1.0, 5.0, 2.0, 4.0], controls)


def brain_data(num_rows=40, num_features=6, seed=0):
    draw = np.random.default_rng(seed)
    states = draw.normal(size=(num_rows, num_features))
    responses = states @ draw.normal(size=(num_features, 2)) + draw.normal(size=(num_rows, 2))
    return states, responses


@pytest.mark.parametrize("num_features", [6, 60])
def test_predictivity_equals_that_of_scikit_learn(num_features) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    states, responses = brain_data(num_features=num_features)
    expected = np.zeros((5, 2))
    for i, (train, test) in enumerate(KFold(5, shuffle=True, random_state=0).split(states)):
        ridge = RidgeCV(alphas=ALPHAS, alpha_per_target=True)
        predicted = ridge.fit(states[train], responses[train]).predict(states[test])
        for j in range(2):
            expected[i, j] = np.corrcoef(predicted[:, j], responses[test, j])[0, 1]
    found = formulas.ridge_predictivity(states, responses)
    assert found == pytest.approx(expected.mean(axis=0).tolist(), rel=1e-6)


def test_predictivity_is_one_for_a_linear_map_and_small_for_noise() -> None:
    states, _ = brain_data()
    assert formulas.ridge_predictivity(states, states[:, :1]) == [pytest.approx(1.0)]
    noise = np.random.default_rng(9).normal(size=(40, 1))
    assert abs(formulas.ridge_predictivity(states, noise)[0]) < 0.5


def test_predictivity_is_zero_for_states_that_say_nothing() -> None:
    _, responses = brain_data()
    assert formulas.ridge_predictivity(np.ones((40, 3)), responses) == [0.0, 0.0]


def test_predictivity_says_what_is_wrong() -> None:
    states, responses = brain_data()
    with pytest.raises(DataError, match="40 rows are fewer than 50 folds"):
        formulas.ridge_predictivity(states, responses, num_folds=50)
    with pytest.raises(ConfigError, match="numbers above 0 that increase"):
        formulas.ridge_predictivity(states, responses, alphas=[0.0])
    with pytest.raises(DataError, match="states has 40 rows, responses 39"):
        formulas.ridge_predictivity(states, responses[1:])
    with pytest.raises(DataError, match="target 0 of the responses is 1 in all 40 rows"):
        formulas.ridge_predictivity(states, np.ones((40, 1)))
    states[3, 2] = NAN
    with pytest.raises(DataError, match="states has nan in row 3"):
        formulas.ridge_predictivity(states, responses)


# As modules of evaluate


@pytest.fixture
def metric(tmp_path):
    pytest.importorskip("evaluate")
    return lambda name, **options: load(name, cache_dir=str(tmp_path / "cache"), **options)


def test_unknown_metric_says_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'bits_per_byte'"):
        load("bits_per_bite")


@pytest.mark.parametrize("name", NAMES)
def test_module_describes_itself(metric, name) -> None:
    module = metric(name)
    assert module.name == name
    assert module.description
    assert "2504.21047" in module.citation
    assert "predictions" in module.compute.__doc__


def test_batches_count_like_one(metric) -> None:
    module = metric("bits_per_byte")
    module.add(prediction=math.log(2), reference=1)
    module.add_batch(predictions=[math.log(2) * 2, 0.0], references=[2, 3])
    assert module.compute() == {"bits_per_byte": pytest.approx(0.5), "num_bytes": 6.0}


def test_class_is_found_by_its_name(metric) -> None:
    from hf_connectome.evaluation import metrics

    assert isinstance(metric("neural_predictivity"), metrics.NeuralPredictivity)
    with pytest.raises(AttributeError, match="has no attribute 'Accuracy'"):
        _ = metrics.Accuracy


def test_reading_times_with_and_without_controls(metric) -> None:
    surprisal, times = [2.0, 4.0, 15.0, 20.0, 9.0], [1.0, 2.0, 3.0, 4.0, 7.0]
    controls = [[0.0], [0.0], [1.0], [1.0], [2.0]]
    plain = metric("reading_time_correlation").compute(predictions=surprisal, references=times)
    module = metric("reading_time_correlation")
    module.add_batch(predictions=surprisal[:2], references=times[:2], controls=controls[:2])
    module.add_batch(predictions=surprisal[2:], references=times[2:], controls=controls[2:])
    both = module.compute()
    assert plain == {
        "pearson": pytest.approx(formulas.pearson(surprisal, times)),
        "partial_pearson": None,
        "num_words": 5,
    }
    assert both["pearson"] == plain["pearson"]
    assert both["partial_pearson"] == formulas.partial_pearson(surprisal, times, controls)


def test_predictivity_passes_its_options_on(metric) -> None:
    states, responses = brain_data()
    found = metric("neural_predictivity").compute(
        predictions=states.tolist(), references=responses.tolist(), num_folds=4, seed=1
    )
    by_target = formulas.ridge_predictivity(states, responses, num_folds=4, seed=1)
    assert found["pearson_by_target"] == by_target
    assert found["pearson"] == pytest.approx(sum(by_target) / 2)


def test_metrics_combine(metric) -> None:
    evaluate = pytest.importorskip("evaluate")
    both = evaluate.combine([metric("bits_per_byte"), metric("reading_time_correlation")])
    both.add_batch(predictions=[1.0, 2.0, 4.0], references=[3, 4, 5], controls=[[], [], []])
    found = both.compute()
    assert found["bits_per_byte"] == pytest.approx(7 / math.log(2) / 12)
    assert found["pearson"] == formulas.pearson([1.0, 2.0, 4.0], [3, 4, 5])


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("bits_per_byte", [], [], "nats is empty"),
        ("bits_per_byte", [NAN], [1], "nats has nan in row 0"),
        ("bits_per_byte", [1.0], [1, 2], r"predictions \(1\) and references \(2\)"),
        ("reading_time_correlation", [1.0, 2.0], [1.0, 2.0], "2 rows cannot be correlated"),
        ("neural_predictivity", [], [], "states is empty"),
        ("connectome_overlap", [], [], "there is no pair"),
    ],
)
def test_module_says_what_is_wrong(metric, name, predictions, references, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric(name).compute(predictions=predictions, references=references)


def test_overlap_by_hand(metric, tmp_path) -> None:
    weights = {
        "one": torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, -1.0]]),
        "other": torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]]),
    }
    paths = {name: save(weight, tmp_path / name) for name, weight in weights.items()}
    found = metric("connectome_overlap").compute(
        predictions=[paths["one"]], references=[paths["other"]]
    )
    assert found == {
        "jaccard": 3 / 5,  # three shared, five in all
        "chance_jaccard": pytest.approx(2 / 6),  # 4 * 4 / 8 shared
        "sign_agreement": pytest.approx(2 / 3),
        "chance_sign_agreement": pytest.approx(0.5),
        "num_shared": 3,
        "num_pairs": 1,
    }


def save(weight, path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.hosts import describe
    from hf_connectome.scope import resolve

    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=2, n_positions=2)
    host = GPT2LMHeadModel(config)
    scope = ConnectomeConfig(target_modules=["wpe"])
    described = describe(host, scope, resolve(host, ["wpe"]))
    entry = SignedMask.pack(weight != 0, weight, orientation="embedding")
    Connectome({"transformer.wpe.weight": entry}, config=described).save_pretrained(path)
    return str(path)


def test_two_processes_gather_on_the_first(tmp_path) -> None:
    pytest.importorskip("evaluate")
    worker = Path(__file__).parent / "workers" / "gather_worker.py"
    with subprocess.Popen(
        [sys.executable, str(worker), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as second:
        bits, times = gather(0, str(tmp_path))
        output, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    assert json.loads(output) == [None, None]
    assert bits["bits_per_byte"] == pytest.approx(7 / math.log(2) / 6)
    x, y, z = [1.0, 2.0, 4.0, 3.0], [2.0, 1.0, 4.0, 5.0], [[1.0], [0.0], [0.0], [2.0]]
    assert times["pearson"] == formulas.pearson(x, y)
    assert times["partial_pearson"] == pytest.approx(formulas.partial_pearson(x, y, z))

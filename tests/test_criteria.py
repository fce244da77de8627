from __future__ import annotations

import pytest
import torch

from hf_connectome.criteria import (
    Criterion,
    CriterionContext,
    Magnitude,
    Random,
    criteria,
    register,
)
from hf_connectome.errors import ConfigError
from hf_connectome.testing import check_criterion


@pytest.mark.parametrize("name", list(criteria))
def test_criterion_keeps_the_contract(name):
    check_criterion(criteria.get(name)())


def test_package_has_its_criteria():
    assert set(criteria) == {
        *("fisher", "grasp", "hebbian", "magnitude", "movement", "random"),
        *("ria", "snip", "synflow", "taylor", "wanda"),
    }
    assert register.__self__ is criteria


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_magnitude_is_the_absolute_value(dtype):
    weight = torch.tensor([[0.5, -0.25, 0.0], [-2.0, 1.0, -0.0]], dtype=dtype, requires_grad=True)
    score = Magnitude().score(weight, weight != 0, CriterionContext(name="w"))
    assert score.tolist() == [[0.5, 0.25, 0.0], [2.0, 1.0, 0.0]]
    assert score.dtype == dtype
    assert not score.requires_grad


WEIGHT = torch.tensor([[2.0, -1.0, 0.0], [-4.0, 3.0, 5.0]])
GIVEN = torch.tensor([[4.0, 9.0, 1.0], [0.25, 0.0, 16.0]])
SIGNED = torch.tensor([[1.0, -2.0, 3.0], [-0.5, 2.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "statistic", "expected"),
    [
        ("movement", SIGNED, [[1.0, -2.0, 3.0], [-0.5, 2.0, 0.0]]),
        ("wanda", GIVEN, [[8.0, 9.0, 0.0], [1.0, 0.0, 80.0]]),
        ("snip", SIGNED, [[2.0, 2.0, 0.0], [2.0, 6.0, 0.0]]),
        ("taylor", GIVEN, [[4.0, 3.0, 0.0], [2.0, 0.0, 20.0]]),
        ("grasp", SIGNED, [[2.0, 2.0, 0.0], [2.0, 6.0, 0.0]]),
        ("synflow", SIGNED, [[2.0, 2.0, 0.0], [2.0, 6.0, 0.0]]),
        ("hebbian", GIVEN, [[4.0, 9.0, 1.0], [0.25, 0.0, 16.0]]),
        ("fisher", GIVEN, [[4.0, 9.0, 1.0], [0.25, 0.0, 16.0]]),
        # Rows sum to 3 and 12, columns to 6, 4 and 5; the input enters by its root.
        (
            "ria",
            GIVEN,
            [
                [(2 / 3 + 2 / 6) * 2, (1 / 3 + 1 / 4) * 3, 0.0],
                [(4 / 12 + 4 / 6) * 0.5, 0.0, (5 / 12 + 5 / 5) * 4],
            ],
        ),
    ],
)
def test_score_is_the_formula_of_weight_and_statistic(name, statistic, expected):
    criterion = criteria.get(name)()
    weight = WEIGHT.clone().requires_grad_()
    context = CriterionContext("w", statistics={criterion.needs[0]: statistic})
    score = criterion.score(weight, WEIGHT != 0, context)
    torch.testing.assert_close(score, torch.tensor(expected))
    assert not score.requires_grad


def test_grasp_keeps_the_sign_that_snip_drops():
    weight = torch.tensor([1.0, -1.0])
    statistics = {"gradient": torch.ones(2), "hessian_gradient": torch.ones(2)}
    context = CriterionContext("w", statistics=statistics)
    assert criteria.get("grasp")().score(weight, weight != 0, context).tolist() == [1.0, -1.0]
    assert criteria.get("snip")().score(weight, weight != 0, context).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", [n for n in criteria if criteria.get(n).needs])
def test_criterion_without_what_it_needs_is_refused_with_the_way_out(name):
    criterion = criteria.get(name)()
    with pytest.raises(ConfigError) as refused:
        criterion.score(torch.ones(2), torch.ones(2) > 0, CriterionContext("h.0"))
    message = str(refused.value)
    assert message.startswith(f"the criterion needs {criterion.needs[0]!r} of 'h.0', and nobody")
    assert "GenerationalTrainer does; elsewhere pass statistics=hf_connectome.cal" in message


def random_score(**changes):
    context = CriterionContext(**{"name": "w", "seed": 3, "generation": 1} | changes)
    return Random().score(torch.zeros(40, 50), torch.ones(40, 50) > 0, context)


def test_random_is_uniform_whatever_the_weights():
    score = random_score()
    assert score.dtype == torch.float32
    assert 0 <= float(score.min()) < float(score.max()) < 1
    assert float(score.mean()) == pytest.approx(0.5, abs=0.02)
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    context = CriterionContext(name="w", seed=3, generation=1)
    assert Random().score(weight, weight > 0, context).equal(score)


@pytest.mark.parametrize("change", [{"name": "v"}, {"seed": 4}, {"generation": 2}])
def test_random_draws_afresh_for_every_parameter_seed_and_generation(change):
    assert not random_score(**change).equal(random_score())


# ---- the conformance check finds what is wrong ---------------------------------------------------


class Mine(Criterion):
    paper, citation = "Ours", "none"

    def score(self, weight, mask, context):
        return weight.abs()


def broken(body, **fields):
    return type("Broken", (Mine,), {"score": body, **fields})()


def test_sound_criterion_of_somebody_else_passes():
    check_criterion(Mine())


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (broken(Mine.score, paper=""), "Broken.paper is ''; expected its source"),
        (broken(Mine.score, citation=None), "Broken.citation is None"),
        (broken(Mine.score, needs=("gradeint",)), "Broken needs 'gradeint'; expected one or more"),
        (broken(lambda s, w, m, c: w.abs().tolist()), "returned a list"),
        (broken(lambda s, w, m, c: w.abs().flatten()), r"has shape \(48,\); expected the weight's"),
        (broken(lambda s, w, m, c: w != 0), "is torch.bool; expected a floating type"),
        (
            broken(lambda s, w, m, c: w.abs() / w.abs().sum()),
            "that are all 0 is not",
        ),
        (broken(lambda s, w, m, c: w.float().pow(-1)), "is not finite on"),
        (broken(lambda s, w, m, c: w.abs_()), "changed the weight in place"),
        (broken(lambda s, w, m, c: w.abs() + m.fill_(True)), "changed the mask in place"),
        (broken(lambda s, w, m, c: torch.rand(w.shape)), "drew from torch's global generator"),
        (
            broken(
                lambda s, w, m, c: torch.rand(
                    w.shape, generator=torch.Generator().manual_seed(torch.initial_seed())
                )
            ),
            "other scores for the same seed, name and generation",
        ),
    ],
)
def test_criterion_is_refused_when_it_breaks_the_contract(criterion, message):
    with pytest.raises(AssertionError, match=message):
        check_criterion(criterion)

"""The tests of skills: figures of a planted one, exact lesions, tables with all that was found."""

from __future__ import annotations

import json

import pytest
import torch
from test_skill_finding import Planted, inputs_of
from tiny import KINDS, drawn, same, state_of, tiny_model

from hf_connectome.errors import ConfigError, HostMismatchError, UnknownNameError
from hf_connectome.skill_finding import find_skill
from hf_connectome.skill_tests import (
    SkillReport,
    lesioned,
    losses,
    markdown_tables,
    rises,
    run_skill_tests,
)


def look_inside(model, part, before):
    with lesioned(model, part):
        for name, parameter in model.named_parameters():
            gone = part.mask(name) if name in part else torch.tensor(False)
            assert parameter.equal(before[name].masked_fill(gone, 0.0))
        raise KeyError


@pytest.mark.parametrize("kind", KINDS)
def test_lesion_zeroes_exactly_its_part_and_is_undone_bit_for_bit(kind):
    model = tiny_model(kind)
    part, before = drawn(model, density=0.3), state_of(model)
    with pytest.raises(KeyError):
        look_inside(model, part, before)
    assert same(state_of(model), before)


def test_lesion_of_another_model_is_refused_and_changes_nothing():
    model = tiny_model("gpt2")
    before = state_of(model)
    with pytest.raises(HostMismatchError), lesioned(model, drawn(tiny_model("gpt2", n_layer=3))):
        pass
    assert same(state_of(model), before)


@pytest.fixture(scope="module")
def planted():
    model = Planted()
    texts = {"left": inputs_of(0, 1, 0), "right": inputs_of(2, 3, 2)}
    options = {"density": 4 / 20, "scope": ["fc1"]}
    skills = {
        "left": find_skill(model, texts["left"], other=texts["right"], **options),
        "right": find_skill(model, texts["right"], other=texts["left"], **options),
    }
    return model, skills, texts


def test_planted_skills_hurt_their_own_text_alone(planted):
    model, skills, texts = planted
    report = run_skill_tests(model, skills, texts, num_lots=3)
    found = rises([report])
    for skill, other in (("left", "right"), ("right", "left")):
        assert found[skill, "skill"][skill].value > 1.0
        assert found[skill, "skill"][other].value == 0.0
        assert report.num_removed[skill] == 4
    pair = report.pairs[0]
    assert (pair.first, pair.second) == ("left", "right")
    assert (pair.shared.num_shared, pair.shared.expected) == (0, 4 * 4 / 20)


def test_effects_are_those_of_the_losses_by_batch():
    model = tiny_model("gpt2")
    ids = torch.randint(0, 97, (4, 6), generator=torch.Generator().manual_seed(0))
    texts = {"a": [{"input_ids": i[None], "labels": i[None]} for i in ids]}
    skill = drawn(model, density=0.2, scope="body")
    report = run_skill_tests(model, {"a": skill}, texts, num_lots=2, seed=5)
    whole = losses(model, texts["a"])
    with lesioned(model, skill):
        without = losses(model, texts["a"])
    own = next(effect for effect in report.effects if effect.lesion == "skill")
    differences = [a - b for a, b in zip(without, whole, strict=True)]
    assert own.rise.mean == pytest.approx(sum(differences) / 4)
    assert own.rise.low < own.rise.mean < own.rise.high
    lot = next(effect for effect in report.effects if effect.lesion == "by lot")
    assert lot.beyond_lot.mean == 0.0
    assert own.beyond_lot.mean == pytest.approx(own.rise.mean - lot.rise.mean)
    assert [effect.lesion for effect in report.effects] == ["skill", "by lot", "largest"]
    again = run_skill_tests(model, {"a": skill}, texts, num_lots=2, seed=5)
    assert again == report


def test_report_survives_json_and_its_tables_have_every_figure(planted):
    model, skills, texts = planted
    report = run_skill_tests(model, skills, texts, num_lots=2)
    assert SkillReport.from_json(json.loads(json.dumps(report.as_json()))) == report
    text = markdown_tables([report])
    lines = text.splitlines()
    assert lines[0] == "| lesion of | links | on left | on right |"
    assert len(lines) == 2 + 6 + 1 + 2 + 1
    assert lines[2].startswith("| **left** | 4 | ")
    assert lines[-1].startswith("| left, right | 0 | 1 | ")
    several = rises([report, report])
    assert several["left", "skill"]["left"].num_seeds == 2
    one = rises([report], beyond_lot=True)["left", "by lot"]["left"]
    assert one.value == 0.0


def test_model_is_bit_equal_after_the_tests(planted):
    model, skills, texts = planted
    before = state_of(model)
    model.train()
    run_skill_tests(model, skills, texts, num_lots=1)
    assert same(state_of(model), before)
    assert model.training


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"skills": {}}, ConfigError, "0 skills and 4 lots"),
        ({"num_lots": 0}, ConfigError, "2 skills and 0 lots"),
        ({"texts": {"left": inputs_of(0)}}, UnknownNameError, "no text for the skill 'right'"),
        ({"texts": {"left": inputs_of(0), "right": []}}, ConfigError, "'right' has no batch"),
    ],
)
def test_tests_are_refused_when_something_is_missing(planted, change, error, message):
    model, skills, texts = planted
    settings = {"skills": skills, "texts": texts} | change
    with pytest.raises(error, match=message):
        run_skill_tests(model, **settings)

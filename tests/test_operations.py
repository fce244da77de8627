"""Set operations and lesions: laws of sets, exact conflicts, what is recorded and refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_connectome import connectomes, flags, one
from tiny import drawn, tiny_model

from hf_connectome.cards.sections import opening
from hf_connectome.connectome import Connectome
from hf_connectome.errors import ConfigError, HostMismatchError, ScopeError, UnknownNameError
from hf_connectome.operations import (
    OPERATIONS,
    Lines,
    difference,
    intersection,
    lesion,
    symmetric_difference,
    union,
    vote,
)

THREE = connectomes(count=3, conflicts=True)


def masks(connectome):
    return [connectome.mask(name) for name in connectome]


def brute_force(members, keeps, rule):
    """Decide weight by weight: the sign by name, and the numbers of conflicts and of drops."""
    signs, conflicts, dropped = {}, {}, {}
    for name in members[0]:
        columns = zip(*(m.sign(name).flatten().tolist() for m in members), strict=True)
        signs[name] = []
        for votes in columns:
            alive = [v for v in votes if v]
            kept, torn = keeps(votes), len(set(alive)) == 2
            sign = 0
            if kept and torn:
                conflicts[name] = conflicts.get(name, 0) + 1
                total = sum(alive)
                majority = (total > 0) - (total < 0)
                sign = {"drop": 0, "first": alive[0], "majority": majority}[rule]
                if not sign:
                    dropped[name] = dropped.get(name, 0) + 1
            elif kept:
                sign = alive[0]
            signs[name].append(sign)
    return signs, conflicts, dropped


CASES = {
    "union": (union, any, {}),
    "intersection": (intersection, all, {}),
    "symmetric": (symmetric_difference, lambda v: sum(map(abs, v)) % 2 == 1, {}),
    "vote": (vote, lambda v: sum(map(abs, v)) >= 2, {"least": 2}),
}


@pytest.mark.parametrize("rule", ["drop", "first", "majority"])
@pytest.mark.parametrize("case", CASES)
@given(members=THREE)
def test_result_and_conflicts_are_those_of_brute_force(case, rule, members):
    operation, keeps, options = CASES[case]
    made = operation(*members, conflicts=rule, **options)
    signs, conflicts, dropped = brute_force(members, keeps, rule)
    for name in signs:
        assert made.connectome.sign(name).flatten().tolist() == signs[name]
        assert made.connectome.mask(name).flatten().tolist() == [s != 0 for s in signs[name]]
    assert made.conflicts == conflicts
    assert made.dropped == dropped
    assert made.num_conflicts == sum(conflicts.values())
    assert made.num_dropped == sum(dropped.values())


@given(THREE)
def test_error_is_raised_exactly_where_there_is_a_conflict(members):
    torn = union(*members, conflicts="first").conflicts
    if not torn:
        assert union(*members).num_conflicts == 0
        return
    with pytest.raises(ConfigError, match=f"'{min(torn)}': {torn[min(torn)]} shared weights"):
        union(*members)


@given(connectomes(count=3))
def test_vote_of_one_is_the_union_and_of_all_the_intersection(members):
    assert vote(*members, least=1).connectome == union(*members).connectome
    assert vote(*members, least=3).connectome == intersection(*members).connectome


@given(connectomes(count=3))
def test_order_of_members_changes_nothing(members):
    for operation, options in ((union, {}), (intersection, {}), (vote, {"least": 2})):
        made = {operation(*m, **options).connectome for m in itertools.permutations(members)}
        assert len(made) == 1


@given(THREE)
def test_order_changes_nothing_where_the_majority_decides(members):
    made = {
        union(*m, conflicts="majority").connectome.digest for m in itertools.permutations(members)
    }
    assert len(made) == 1


@given(connectomes())
def test_laws_of_sets_hold(pair):
    a, b = pair
    both, either = intersection(a, b).connectome, union(a, b).connectome
    apart = symmetric_difference(a, b).connectome
    assert all(((x & ~y) == 0).all() for x, y in zip(masks(a), masks(either), strict=True))
    assert intersection(difference(a, b).connectome, b).connectome.num_survivors == 0
    assert apart == difference(either, both).connectome
    assert either.num_survivors == apart.num_survivors + both.num_survivors
    # De Morgan, by counts: what is in neither is the complement of the union.
    neither = sum(int((~x & ~y).sum()) for x, y in zip(masks(a), masks(b), strict=True))
    assert neither == a.num_weights - either.num_survivors
    assert intersection(a, either).connectome == a == union(a, both).connectome


@given(THREE)
def test_difference_takes_away_all_others_whatever_their_signs(members):
    first, *others = members
    made = difference(first, *others)
    assert made.conflicts == made.dropped == {}
    for name in first:
        gone = others[0].mask(name) | others[1].mask(name)
        assert made.connectome.sign(name).equal(first.sign(name) * ~gone)


# ---- scales, values, signs -----------------------------------------------------------------------


def carrying(scale, value, sign=(1, -1, 1)):
    entry = one([1, 1, 0], sign, scale=torch.tensor([scale]))
    return Connectome({"w": entry}, values={"norm": torch.tensor([value])})


def test_scale_and_value_stay_where_all_members_have_the_same():
    made = union(carrying(0.5, 1.0), carrying(0.5, 1.0)).connectome
    assert made == carrying(0.5, 1.0)


@pytest.mark.parametrize("operation", [union, intersection])
def test_scale_and_value_are_left_out_where_members_differ(operation):
    made = operation(carrying(0.5, 1.0), carrying(0.25, 2.0)).connectome
    assert made["w"].scale is None
    assert made.values_carried == {}
    bare = Connectome({"w": one([1, 1, 0], (1, -1, 1))})
    for pair in ((carrying(0.5, 1.0), bare), (bare, carrying(0.5, 1.0))):
        assert operation(*pair).connectome == bare


def test_difference_and_lesion_keep_scale_and_values_of_the_first():
    first, other = carrying(0.5, 1.0), Connectome({"w": one([1, 0, 0])})
    for made in (difference(first, other).connectome, lesion(first, other)):
        assert made.sign("w").tolist() == [0, -1, 0]
        assert made["w"].scale == first["w"].scale
        assert made.values_carried["norm"].tolist() == [1.0]


def test_result_has_signs_where_all_members_have():
    a = Connectome({"v": one([1], [-1]), "w": one([1], [1])})
    b = Connectome({"v": one([1]), "w": one([1], [1])})
    made = union(a, b).connectome
    assert made["v"].sign_bits is None
    assert made.sign("w").tolist() == [1]
    assert difference(a, b).connectome.has_signs


# ---- what is recorded ----------------------------------------------------------------------------


def test_lineage_says_what_it_was_made_from():
    model = tiny_model("gpt2")
    a, b = (drawn(model, seed=seed, lineage=[{"generation": 0}]) for seed in (0, 1))
    a = a.replace(config=replace(a.config, digest=a.digest, origin="org/a@1"))
    made = vote(a, b, least=1, conflicts="drop")
    whole = made.connectome
    assert whole.config.architecture == "GPT2LMHeadModel"
    assert whole.config.digest is whole.config.origin is None
    assert whole.lineage == (
        {"generation": 0},
        {
            "operation": "vote",
            "least": 1,
            "of": [a.digest, b.digest],
            "conflicts": "drop",
            "num_conflicts": made.num_conflicts,
            "num_survivors": whole.num_survivors,
            "density": whole.density,
        },
    )
    part = Connectome({"transformer.wte.weight": b["transformer.wte.weight"]})
    row = lesion(a, part).lineage[-1]
    assert (row["operation"], row["of"], row["part"]) == ("lesion", [a.digest], part.digest)
    assert row["num_removed"] == a.num_survivors - row["num_survivors"] > 0


def test_result_is_saved_and_read_again_and_its_card_names_the_operation(tmp_path):
    model = tiny_model("gpt2")
    made = union(drawn(model), drawn(model, seed=1), conflicts="drop").connectome
    made.save_pretrained(tmp_path)
    read = Connectome.from_pretrained(tmp_path)
    assert read == made
    assert read.lineage == made.lineage
    assert "Its lineage ends with the operation `union`." in opening(made)
    assert "generations of training" not in opening(made)


# ---- lesions -------------------------------------------------------------------------------------

SHAPE = (3, 2, 2)


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**12 - 1), st.sets(st.integers(0, 2)), st.data())
def test_lesion_removes_exactly_what_it_is_told(number, removed, rows, data):
    columns = data.draw(st.sets(st.integers(0, 3)))
    mask, gone = flags(number, SHAPE), flags(removed, SHAPE)
    sign = torch.where(flags(number ^ removed, SHAPE), -1, 1)
    whole = Connectome({"v": one([1, 0], [-1, 1]), "w": one(mask.tolist(), sign.tolist())})
    lines = torch.zeros(3, 4, dtype=torch.bool)
    for row, column in itertools.product(range(3), range(4)):
        lines[row, column] = row in rows or column in columns
    expected = {
        "entries": ({"w": gone}, gone),
        "connectome": (Connectome({"w": one(gone.tolist())}), gone),
        "lines": ({"w": Lines(sorted(rows), sorted(columns))}, lines.reshape(SHAPE)),
    }
    for part, taken in expected.values():
        left = lesion(whole, part)
        assert left.sign("w").equal((sign * (mask & ~taken)).to(torch.int8))
        assert left["v"] is whole["v"]
        assert lesion(left, part) == left


def test_lesion_of_everything_leaves_nothing():
    whole = Connectome({"w": one([1, 1], [1, -1])})
    assert lesion(whole, whole).num_survivors == 0


def part_of(shape, **options):
    return Connectome({"w": one(torch.ones(shape).tolist(), **options)})


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"v": Lines([0])}, UnknownNameError, "has no 'v' to lesion. Available: w"),
        ({"w": Lines([2])}, ScopeError, "'w' has 2 rows, 0 to 1; there is no 2"),
        ({"w": Lines((), [0, -1])}, ScopeError, "'w' has 3 columns, 0 to 2; there is no -1"),
        ({"w": torch.ones(3, 2) > 0}, HostMismatchError, r"torch.bool \(3, 2\); expected"),
        ({"w": torch.ones(2, 3)}, HostMismatchError, r"torch.float32 \(2, 3\); expected"),
        (part_of((3, 2)), HostMismatchError, r"'w' is \(2, 3\) in one connectome, \(3, 2\)"),
        (part_of((2, 3), orientation="in_out"), HostMismatchError, "one is the transpose"),
    ],
)
def test_lesion_is_refused_when_there_is_no_such_link(part, error, message):
    with pytest.raises(error, match=message):
        lesion(part_of((2, 3)), part)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0, 3, -1])
def test_vote_is_refused_when_so_many_cannot_be(least):
    a = Connectome({"w": one([1])})
    with pytest.raises(ConfigError, match=f"least is {least} of 2 members"):
        vote(a, a, least=least)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_is_refused_with_one_member(operation):
    options = {"least": 1} if operation == "vote" else {}
    with pytest.raises(ConfigError, match=f"{operation} of 1 connectomes; expected two"):
        OPERATIONS[operation](Connectome({"w": one([1])}), **options)


def test_unknown_rule_is_refused_with_the_nearest():
    a = Connectome({"w": one([1])})
    with pytest.raises(UnknownNameError, match=r"'majorty'\. Did you mean 'majority'"):
        union(a, a, conflicts="majorty")


def test_connectomes_of_two_tokenizers_are_refused():
    model = tiny_model("gpt2")
    a, b, c = (drawn(model, tokenizer_digest=digest) for digest in ("a" * 64, "b" * 64, None))
    with pytest.raises(HostMismatchError, match="tokenizer aaaaaaaaaaaa…, another with bbbb"):
        union(a, b)
    assert union(a, c).connectome == a


def test_third_member_of_another_base_is_refused():
    a = Connectome({"w": one([1])})
    with pytest.raises(HostMismatchError, match="only one of the two connectomes has 'v', 'w'"):
        union(a, a, Connectome({"v": one([1])}))

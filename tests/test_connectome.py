from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, FormatError, HostMismatchError

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
BITS = np.array([[0b101]], dtype=np.uint8)


def flags(number, shape):
    """Spread the bits of a number over a tensor; drawing a number is faster than an array."""
    count = math.prod(shape)
    bits = np.frombuffer(number.to_bytes(-(-count // 8), "little"), np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=count).astype(bool).reshape(shape))


@st.composite
def dense(draw, shapes=SHAPES):
    """Draw a mask, and signs of -1, 0 and +1 on all weights."""
    shape = draw(shapes)
    most = 2 ** math.prod(shape) - 1
    mask, negative, zero = (flags(draw(st.integers(0, most)), shape) for _ in range(3))
    return mask, (1 - 2 * negative.to(torch.int8)) * ~zero


@st.composite
def connectomes(draw, *, count=2, shapes=((3, 5), (2, 2, 3)), conflicts=False):
    """Draw connectomes over the same parameters, whose signs agree unless ``conflicts``."""
    made = [{} for _ in range(count)]
    for number, shape in enumerate(shapes):
        _, shared = draw(dense(st.just(shape)))
        for entries in made:
            mask, own = draw(dense(st.just(shape)))
            entries[f"layer.{number}.weight"] = SignedMask.pack(mask, own if conflicts else shared)
    return [Connectome(entries) for entries in made]


def one(mask, sign=None, **options):
    mask = torch.tensor(mask, dtype=torch.bool)
    return SignedMask.pack(mask, None if sign is None else torch.tensor(sign), **options)


# ---- packing -------------------------------------------------------------------------------------


@given(dense())
def test_mask_and_signs_come_back_whatever_the_shape(pair):
    mask, sign = pair
    entry = SignedMask.pack(mask, sign)
    positive = torch.where(sign < 0, -1, 1).to(torch.int8)
    assert entry.mask().dtype == torch.bool
    assert entry.mask().equal(mask)
    assert entry.sign().dtype == torch.int8
    assert entry.sign().equal(positive * mask)
    assert entry.shape == tuple(mask.shape)
    assert (entry.rows, entry.columns) == (mask.shape[0], math.prod(mask.shape[1:]))
    assert (entry.num_weights, entry.num_survivors) == (mask.numel(), int(mask.sum()))
    assert entry.density == int(mask.sum()) / mask.numel()
    assert entry.mask_bits.shape == (entry.rows, math.ceil(entry.columns / 8))
    assert entry.sign_bits.shape == (math.ceil(entry.num_survivors / 8),)


@given(dense())
def test_packing_what_was_unpacked_gives_the_same_bits(pair):
    entry = SignedMask.pack(*pair)
    again = SignedMask.pack(entry.mask(), entry.sign())
    assert again.mask_bits.tobytes() == entry.mask_bits.tobytes()
    assert again.sign_bits.tobytes() == entry.sign_bits.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sign_of_zero_is_positive(dtype):
    weight = torch.tensor([0.0, -0.0, -1e-7, 3.0], dtype=dtype)
    entry = SignedMask.pack(torch.tensor([True, True, True, True]), weight)
    assert entry.sign().tolist() == [1, 1, -1, 1]


def test_sign_of_dead_weights_is_zero():
    assert one([[1, 0], [0, 1]], [[-1, -1], [-1, 1]]).sign().tolist() == [[-1, 0], [0, 1]]


def test_strided_tensors_are_packed_as_they_read():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).t()[::2]
    entry = SignedMask.pack(weight > 0.3, weight)
    assert entry.mask().equal(weight > 0.3)


def test_bits_are_those_of_the_format():
    entry = one([[1, 0, 0, 1, 0, 0, 0, 0, 1, 0]], [[1, 0, 0, -1, 0, 0, 0, 0, 1, 0]])
    assert entry.mask_bits.tobytes().hex() == "0901"
    assert entry.sign_bits.tobytes().hex() == "02"


@pytest.mark.parametrize(
    ("mask", "sign", "expected"),
    [
        ([1, 1, 0, 1], [-1, 1, -1, -1], 2 / 3),
        ([1, 0, 0, 0], [1, -1, -1, -1], 0.0),
        ([0, 0, 0, 0], [-1, -1, -1, -1], 0.0),
        ([1, 1, 1, 1], None, 0.0),
    ],
)
def test_negative_fraction_counts_survivors_only(mask, sign, expected):
    assert one(mask, sign).negative_fraction == expected


def test_magnitude_broadcasts_over_rows():
    entry = one(np.ones((2, 3, 4)), scale=torch.tensor([0.5, 0.25]))
    assert entry.magnitude().dtype == torch.float32
    assert (torch.ones(2, 3, 4) * entry.magnitude())[:, 1, 2].tolist() == [0.5, 0.25]
    assert one([1, 0], scale=torch.tensor([0.5])).magnitude().tolist() == [0.5]
    assert one([1, 0]).magnitude() is None


def test_signs_are_refused_when_there_are_none():
    with pytest.raises(ConfigError, match=r"mask-only and has no signs; use reset='keep'"):
        one([1, 0]).sign()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_bits": np.zeros((2, 1), np.uint8)}, r"mask is uint8 \(2, 1\).*uint8 \(1, 1\)"),
        ({"mask_bits": np.zeros((1, 2), np.uint8)}, r"mask is uint8 \(1, 2\).*uint8 \(1, 1\)"),
        ({"mask_bits": np.zeros(1, np.uint8)}, r"mask is uint8 \(1,\)"),
        ({"mask_bits": np.zeros((1, 1), np.bool_)}, r"mask is bool \(1, 1\)"),
        ({"mask_bits": np.array([[0b1000]], np.uint8)}, "mask has pad bits that are not 0"),
        (
            {"sign_bits": np.zeros(0, np.uint8)},
            r"signs are uint8 \(0,\); 2 survivors need",
        ),
        ({"sign_bits": np.zeros(2, np.uint8)}, r"signs are uint8 \(2,\)"),
        ({"sign_bits": np.zeros((1, 1), np.uint8)}, r"signs are uint8 \(1, 1\)"),
        ({"sign_bits": np.zeros(1, np.int8)}, r"signs are int8 \(1,\)"),
        ({"sign_bits": np.array([0b100], np.uint8)}, "signs have pad bits that are not 0"),
        ({"scale": np.zeros(1, np.float32)}, r"scale is float32 \(1,\); expected float16 \(1,\)"),
        ({"scale": np.zeros(3, np.float16)}, r"scale is float16 \(3,\)"),
        ({"scale": np.array([-1], np.float16)}, "scale has negative or non-finite values"),
        ({"scale": np.array([np.nan], np.float16)}, "scale has negative or non-finite values"),
        ({"scale": np.array([np.inf], np.float16)}, "scale has negative or non-finite values"),
        ({"shape": ()}, r"shape \(\) has nothing to wire"),
        ({"shape": (0, 3)}, r"shape \(0, 3\) has nothing to wire"),
    ],
)
def test_entry_is_refused_when_its_parts_do_not_fit(change, message):
    good = {"shape": (1, 3), "mask_bits": BITS, "sign_bits": np.zeros(1, np.uint8)}
    SignedMask(**good)
    with pytest.raises(FormatError, match=message):
        SignedMask(**good | change)


@pytest.mark.parametrize(
    ("mask", "sign", "message"),
    [
        (torch.ones(2, 3), None, "a mask must be bool, not float32"),
        (torch.ones(2, 3, dtype=torch.uint8), None, "a mask must be bool, not uint8"),
        (torch.ones(2, 3) > 0, torch.ones(3, 2), r"mask is \(2, 3\) but its signs are \(3, 2\)"),
        (torch.tensor(True), None, r"shape \(\) has nothing to wire"),
        (torch.ones(3, 0) > 0, None, r"shape \(3, 0\) has nothing to wire"),
    ],
)
def test_packing_is_refused_when_the_tensors_do_not_fit(mask, sign, message):
    with pytest.raises(FormatError, match=message):
        SignedMask.pack(mask, sign)


def test_scale_is_refused_when_float16_cannot_hold_it():
    with pytest.raises(FormatError, match="negative or non-finite"):
        one([1, 0], scale=torch.tensor([1e6]))


# ---- immutability --------------------------------------------------------------------------------


def test_entry_cannot_be_changed():
    entry = one([1, 0], [1, 1], scale=torch.tensor([0.5]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.shape = (1,)
    for array in (entry.mask_bits, entry.sign_bits, entry.scale):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_entry_stays_when_the_tensors_it_gave_or_was_given_are_changed():
    mask, sign = torch.tensor([True, False]), torch.tensor([-1, 1])
    scale = torch.tensor([0.5], dtype=torch.float16)
    bits = np.zeros((4, 1), np.uint8)
    entry, raw = SignedMask.pack(mask, sign, scale=scale), SignedMask((2, 3), bits[:2])
    for tensor in (mask, sign, scale, entry.mask(), entry.sign(), entry.magnitude()):
        tensor.fill_(1)
    bits[:] = 0b111
    assert entry.mask().tolist() == [True, False]
    assert entry.sign().tolist() == [-1, 0]
    assert entry.magnitude().tolist() == [0.5]
    assert raw.num_survivors == raw.mask().sum() == 0


def test_connectome_stays_when_what_it_was_given_is_changed():
    entries, value = {"b": one([1, 0])}, torch.tensor([1.0, 2.0])
    values = {"norm": value}
    connectome = Connectome(entries, values=values)
    entries["c"] = one([1])
    values["other"] = torch.ones(1)
    value.fill_(9)
    assert connectome.names == ("b",)
    assert connectome.values_carried.keys() == {"norm"}
    assert connectome.values_carried["norm"].tolist() == [1.0, 2.0]
    with pytest.raises(TypeError):
        connectome["c"] = one([1])
    with pytest.raises(TypeError):
        connectome.values_carried["other"] = torch.ones(1)


# ---- the whole -----------------------------------------------------------------------------------


def test_counts_and_densities_are_those_of_all_parameters():
    connectome = Connectome(
        {"b": one([[1, 0], [1, 1]], [[1, 1], [-1, 1]]), "a": one([1, 0, 0, 0], [1, 1, 1, 1])}
    )
    assert connectome.names == ("a", "b")
    assert (len(connectome), list(connectome)) == (2, ["a", "b"])
    assert (connectome.num_weights, connectome.num_survivors, connectome.density) == (8, 4, 0.5)
    assert connectome.densities() == {"a": 0.25, "b": 0.75}
    assert connectome.mask("a").tolist() == [True, False, False, False]
    assert connectome.sign("b").tolist() == [[1, 0], [-1, 1]]
    assert connectome.has_signs
    assert connectome.lineage == ()
    assert repr(connectome).startswith("Connectome(2 parameters, 4 of 8 weights, density 0.5000, ")


def test_signs_are_missing_when_one_entry_has_none():
    assert not Connectome({"a": one([1], [1]), "b": one([1])}).has_signs


def bits_of(flags):
    """Pack bits the slow way, without numpy's packing."""
    flags = list(flags)
    return bytes(
        sum(int(flag) << place for place, flag in enumerate(flags[start : start + 8]))
        for start in range(0, len(flags), 8)
    )


def digest_by_the_specification(connectome):
    """Follow docs/FORMAT.md, section 6, word for word."""
    text = b""
    for name in sorted(connectome.names):
        mask = connectome.mask(name)
        text += name.encode() + b"\0" + ",".join(str(n) for n in mask.shape).encode() + b"\0"
        text += b"".join(bits_of(row) for row in mask.reshape(mask.shape[0], -1).tolist()) + b"\0"
        if connectome[name].sign_bits is not None:
            text += bits_of((connectome.sign(name)[mask] < 0).tolist())
        if connectome[name].scale is not None:
            text += b"\0scale\0" + connectome[name].scale.astype("<f2").tobytes()
    for name, value in sorted(connectome.values_carried.items()):
        shape = ",".join(str(n) for n in value.shape).encode()
        text += name.encode() + b"\0value\0F32\0" + shape + b"\0"
        text += value.float().numpy().astype("<f4").tobytes()
    return hashlib.sha256(text).hexdigest()


@given(
    st.lists(st.tuples(dense(), st.sampled_from(["signs", "mask", "scale", "rows"])), max_size=4),
    st.lists(st.floats(-1e3, 1e3, width=32), max_size=3),
)
def test_digest_is_that_of_the_specification(parts, value):
    entries = {}
    for number, ((mask, sign), kind) in enumerate(parts):
        rows = {"scale": 1, "rows": mask.shape[0]}.get(kind)
        entries[f"w.{(number * 7) % 11}é"] = SignedMask.pack(
            mask,
            None if kind == "mask" else sign,
            scale=None if rows is None else torch.linspace(0, 1, rows),
        )
    connectome = Connectome(entries, values={"norm": torch.tensor(value)} if value else None)
    assert connectome.digest == digest_by_the_specification(connectome)


def test_digest_tells_apart_all_that_a_connectome_is():
    def build(name="w", shape=(2, 4), mask=0b0011, sign=0b01, scale=None, value=None):
        columns = shape[1]
        rows = [[mask >> c & 1 for c in range(columns)]] * shape[0]
        signs = [[1 - 2 * (sign >> c & 1) for c in range(columns)]] * shape[0] if sign else None
        entry = one(rows, signs, scale=scale)
        return Connectome({name: entry}, values=value)

    different = [
        build(),
        build(name="v"),
        build(shape=(4, 2)),
        build(mask=0b0101),
        build(sign=0b10),
        build(sign=None),
        build(scale=torch.tensor([0.5])),
        build(scale=torch.tensor([0.25])),
        build(scale=torch.tensor([0.5, 0.5])),
        build(value={"b": torch.ones(2)}),
        build(value={"b": torch.ones(2, 1)}),
        build(value={"c": torch.ones(2)}),
    ]
    assert len({connectome.digest for connectome in different}) == len(different)
    assert len(set(different)) == len(different)
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_connectomes_are_equal_when_their_content_is(tmp_path):
    first = Connectome({"a": one([1, 0], [1, 1]), "b": one([1])})
    second = Connectome({"b": one([1]), "a": one([1, 0], [1, -1])})
    assert first == second
    assert hash(first) == hash(second)
    assert {first: "x"}[second] == "x"
    assert first != Connectome({"a": one([1, 0], [-1, 1]), "b": one([1])})
    assert first != {"a": first["a"], "b": first["b"]}


def test_replacing_a_part_leaves_the_others():
    first = Connectome({"a": one([1, 0])}, values={"b": torch.ones(1)})
    assert first.replace() == first
    assert first.replace(values={}).values_carried == {}
    assert first.replace({"a": one([0, 1])}).values_carried.keys() == {"b"}


def test_name_is_refused_when_it_is_in_scope_and_carried_whole():
    with pytest.raises(FormatError, match="'a' is both in scope and carried whole"):
        Connectome({"a": one([1])}, values={"a": torch.ones(1)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_value_is_refused_when_no_reader_would_take_it(bad):
    with pytest.raises(FormatError, match=r"'norm' .*finite"):
        Connectome({"a": one([1])}, values={"norm": torch.tensor([1.0, bad])})


# ---- set operations ------------------------------------------------------------------------------


@given(connectomes())
def test_intersection_and_union_count_as_sets_do(pair):
    a, b = pair
    both, either = a & b, a | b
    assert both.num_survivors + either.num_survivors == a.num_survivors + b.num_survivors
    for name in a:
        assert both.mask(name).equal(a.mask(name) & b.mask(name))
        assert either.mask(name).equal(a.mask(name) | b.mask(name))
        assert both.sign(name).equal(a.sign(name) * b.mask(name))
        assert either.sign(name).equal(torch.where(a.mask(name), a.sign(name), b.sign(name)))


@given(connectomes(conflicts=True))
def test_difference_shares_nothing_with_what_was_taken_away(pair):
    a, b = pair
    rest = a - b
    for name in a:
        assert not (rest.mask(name) & b.mask(name)).any()
        assert rest.sign(name).equal(a.sign(name) * ~b.mask(name))


@given(connectomes())
def test_a_set_is_its_shared_and_its_own_part(pair):
    a, b = pair
    assert (a & b) | (a - b) == a
    assert a & a == a | a == a
    assert (a - a).num_survivors == 0


def test_opposite_signs_are_refused_with_a_way_out():
    a = Connectome({"w": one([1, 1, 1, 0], [1, -1, 1, 1])})
    b = Connectome({"w": one([1, 1, 0, 1], [-1, 1, 1, 1])})
    message = r"'w': 2 shared weights have opposite signs.*\(a - b\) \| \(b - a\)"
    for combine in (a.__and__, a.__or__):
        with pytest.raises(ConfigError, match=message):
            combine(b)
    assert ((a - b) | (b - a)).sign("w").tolist() == [0, 0, 1, 1]


def test_result_is_mask_only_when_one_side_is():
    a, b = Connectome({"w": one([1, 1], [-1, 1])}), Connectome({"w": one([1, 0])})
    assert not (a & b).has_signs
    assert not (a | b).has_signs
    assert (a - b).has_signs


@pytest.mark.parametrize("operation", ["__and__", "__or__", "__sub__", "overlap"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"v": one([[1, 0]], [[1, 1]])}, "only one of the two connectomes has 'v', 'w'"),
        ({"w": one([[1], [0]], [[1], [1]])}, r"'w' is \(1, 2\) in one connectome, \(2, 1\)"),
        ({"w": one([[1, 0]], [[1, 1]], orientation="in_out")}, "'w' is stored raw .*, in_out in"),
    ],
)
def test_operation_is_refused_when_the_parameters_differ(operation, other, message):
    a = Connectome({"w": one([[1, 0]], [[1, 1]])})
    with pytest.raises(HostMismatchError, match=message):
        getattr(a, operation)(Connectome(other))


# ---- overlap -------------------------------------------------------------------------------------


@given(connectomes(conflicts=True))
def test_overlap_is_that_of_brute_force(pair):
    a, b = pair
    mine = {(n, *i): v for n in a for i, v in np.ndenumerate(a.sign(n).numpy()) if v}
    theirs = {(n, *i): v for n in b for i, v in np.ndenumerate(b.sign(n).numpy()) if v}
    shared, union = mine.keys() & theirs.keys(), mine.keys() | theirs.keys()
    overlap = a.overlap(b)
    assert overlap.num_shared == len(shared)
    assert overlap.jaccard == (len(shared) / len(union) if union else 1.0)
    assert 0.0 <= overlap.chance_jaccard <= 1.0
    if shared:
        assert overlap.sign_agreement == sum(mine[k] == theirs[k] for k in shared) / len(shared)
        assert 0.0 <= overlap.chance_sign_agreement <= 1.0
    else:
        assert overlap.sign_agreement is None
        assert overlap.chance_sign_agreement is None


def test_overlap_has_no_signs_when_one_side_is_mask_only():
    a, b = Connectome({"w": one([1, 1], [-1, 1])}), Connectome({"w": one([1, 0])})
    overlap = a.overlap(b)
    assert (overlap.jaccard, overlap.num_shared) == (0.5, 1)
    assert overlap.sign_agreement is overlap.chance_sign_agreement is None


def test_overlap_with_itself_is_complete():
    a = Connectome({"w": one([1, 0, 1, 0], [1, 1, -1, 1])})
    overlap = a.overlap(a)
    assert (overlap.jaccard, overlap.sign_agreement) == (1.0, 1.0)
    assert overlap.chance_jaccard == 1 / 3


def test_random_connectomes_overlap_as_chance_says():
    draw = torch.Generator().manual_seed(5)

    def random(densities, negative):
        entries = {}
        for name, density in densities.items():
            mask = torch.rand(80, 80, generator=draw) < density
            entries[name] = SignedMask.pack(mask, torch.rand(80, 80, generator=draw) - negative)
        return Connectome(entries)

    found = [
        random({"a": 0.2, "b": 0.7}, 0.3).overlap(random({"a": 0.5, "b": 0.6}, 0.6))
        for _ in range(10)
    ]
    means = {
        field: sum(getattr(overlap, field) for overlap in found) / len(found)
        for field in ("jaccard", "chance_jaccard", "sign_agreement", "chance_sign_agreement")
    }
    assert means["jaccard"] == pytest.approx(means["chance_jaccard"], abs=0.004)
    assert means["sign_agreement"] == pytest.approx(means["chance_sign_agreement"], abs=0.006)
    assert means["chance_sign_agreement"] == pytest.approx(0.3 * 0.6 + 0.7 * 0.4, abs=0.004)

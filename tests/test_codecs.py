from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from fuzz.mutants import FILES, HOST, HUGE, MAGIC, SKIPPABLE, SOUND, frame
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, tiny_model

from hf_connectome import bits
from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.codecs import MASK_FORMS, SIGN_FORMS, decode, encode
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import FormatError, HostMismatchError, UnknownNameError
from hf_connectome.storage import WEIGHTS_FILE, from_file, read, to_bytes, write

CODECS = tuple(FILES)
"""Those that need no package of an extra; test_context.py has the third."""

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def packed(dense):
    return np.packbits(dense, axis=1, bitorder="little")


def random_planes(shape, density, seed):
    """Return mask and signs, dense: what the packed work is compared with."""
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < 0.5


def entry_of(mask, negative):
    return SignedMask(
        shape=mask.shape,
        mask_bits=packed(mask),
        sign_bits=np.packbits(negative[mask], bitorder="little"),
    )


def framed(plane):
    return np.frombuffer(zstandard.ZstdCompressor().compress(plane.tobytes()), np.uint8)


def in_form(entry, mask_form, sign_form):
    """Write an entry in the forms asked for, by dense arrays."""
    mask = entry.mask().numpy().reshape(entry.rows, -1)
    negative = entry.sign().numpy().reshape(entry.rows, -1) < 0
    planes = {
        ".mask": packed(mask),
        ".mask.col": packed(mask.T),
        ".sign": np.packbits(negative[mask], bitorder="little"),
        ".sign.col": np.packbits(negative.T[mask.T], bitorder="little"),
    }
    found = {}
    for form in (mask_form, sign_form):
        plane = planes[form.removesuffix(".zst")]
        found[form] = framed(plane) if form.endswith(".zst") else plane
    return found


# ---- bits ----------------------------------------------------------------------------------------


@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_transposed_bits_are_those_of_the_transposed_matrix(shape, density, seed):
    mask, _ = random_planes(shape, density, seed)
    assert np.array_equal(bits.transposed(packed(mask), shape[1]), packed(mask.T))


@given(SHAPES, st.floats(0, 1), st.integers(0, 99), st.sampled_from([8, 64, 1 << 17]))
def test_signs_are_spread_and_gathered_as_by_dense_arrays(shape, density, seed, chunk):
    mask, negative = random_planes(shape, density, seed)
    stream = np.packbits(negative[mask], bitorder="little")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "_CHUNK", chunk)  # so that words cross from chunk to chunk
        plane = bits.spread(stream, packed(mask))
        assert np.array_equal(plane, packed(mask & negative))
        assert np.array_equal(bits.gathered(plane, packed(mask), int(mask.sum())), stream)


# ---- round trip ----------------------------------------------------------------------------------


@given(SHAPES, st.sampled_from([0, 0.1, 0.5, 1]), st.integers(0, 99))
def test_every_form_decodes_to_the_plain_planes(shape, density, seed):
    entry = entry_of(*random_planes(shape, density, seed))
    for mask_form in MASK_FORMS[:3]:
        for sign_form in SIGN_FORMS[: 3 if entry.num_survivors else 1]:
            mask, sign = decode(in_form(entry, mask_form, sign_form), shape)
            assert np.array_equal(mask, entry.mask_bits)
            assert np.array_equal(sign, entry.sign_bits)


@pytest.mark.parametrize("codec", CODECS)
@given(SHAPES, st.sampled_from([0, 0.1, 0.5, 1]), st.booleans())
def test_what_is_encoded_is_decoded(codec, shape, density, signs):
    entry = entry_of(*random_planes(shape, density, 0))
    if not signs:
        entry = SignedMask(shape=shape, mask_bits=entry.mask_bits)
    mask, sign = decode(encode(entry, codec), shape)
    assert np.array_equal(mask, entry.mask_bits)
    assert sign is None if entry.sign_bits is None else np.array_equal(sign, entry.sign_bits)


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("noise.weight", {".mask", ".sign"}),
        ("rows.weight", {".mask.zst", ".sign.zst"}),
        ("columns.weight", {".mask.col.zst", ".sign.col.zst"}),
        ("bare.weight", {".mask.col.zst"}),
    ],
)
def test_each_plane_takes_its_smallest_form(name, forms):
    found = encode(SOUND[name], "zstd")
    assert found.keys() == forms
    if SOUND[name].sign_bits is None:
        return
    for kind in (MASK_FORMS, SIGN_FORMS):
        (chosen,) = found.keys() & set(kind)
        pairs = [(form, ".sign") if kind is MASK_FORMS else (".mask", form) for form in kind[:3]]
        every = {form: in_form(SOUND[name], *pair) for form, pair in zip(kind, pairs, strict=False)}
        assert found[chosen].size == min(planes[form].size for form, planes in every.items())


def test_dimensions_beyond_the_second_count_as_columns():
    weight = torch.where(torch.arange(2 * 30 * 40).reshape(2, 30, 40) % 3 == 0, 1.0, 0.0)
    entry = SignedMask.pack(weight != 0, weight)
    assert ".mask.zst" in encode(entry, "zstd") or ".mask.col.zst" in encode(entry, "zstd")
    mask, sign = decode(encode(entry, "zstd"), (2, 30, 40))
    assert np.array_equal(mask, entry.mask_bits)
    assert np.array_equal(sign, entry.sign_bits)


def test_both_codecs_hold_one_connectome(tmp_path):
    for codec in CODECS:
        write(SOUND, tmp_path / codec, codec=codec)
    plain, zstd = (read(tmp_path / codec, host=HOST) for codec in CODECS)
    assert plain == zstd == SOUND
    assert plain.config == zstd.config
    assert to_bytes(zstd) == to_bytes(plain) == FILES["plain"]
    sizes = {codec: (tmp_path / codec / WEIGHTS_FILE).stat().st_size for codec in CODECS}
    assert sizes["zstd"] < 0.7 * sizes["plain"]


def test_plain_is_what_is_written_when_nothing_is_said(tmp_path):
    write(SOUND, tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == to_bytes(SOUND) == FILES["plain"]
    assert to_arrays(SOUND).keys() == to_arrays(SOUND, codec="plain").keys()


def test_equal_connectomes_give_equal_zstd_bytes():
    again = Connectome({n: SOUND[n] for n in reversed(SOUND.names)}, values=SOUND.values_carried)
    assert to_bytes(again, codec="zstd") == FILES["zstd"]


def test_recorded_architecture_is_the_host_of_a_zstd_file(tmp_path):
    connectome = drawn(tiny_model("gpt2"), carry=True)
    write(connectome, tmp_path, codec="zstd")
    assert read(tmp_path) == connectome


def test_unknown_codec_is_refused_with_the_nearest(tmp_path):
    for use in (
        lambda: write(SOUND, tmp_path / "new", codec="zst"),
        lambda: to_bytes(SOUND, codec="zst"),
        lambda: to_arrays(SOUND, codec="zst"),
    ):
        with pytest.raises(UnknownNameError, match=r"codec 'zst'. Did you mean 'zstd'\? .* plain"):
            use()
    assert not (tmp_path / "new").exists()


def test_reader_of_the_format_page_reads_every_form(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), scope)
    base = {name: (entry.shape, entry.orientation) for name, entry in SOUND.items()}
    file = tmp_path / WEIGHTS_FILE
    for codec in CODECS:
        file.write_bytes(FILES[codec])
        found = scope["read"](file, base)
        assert found.keys() == set(SOUND)
        for name, entry in SOUND.items():
            expected = entry.mask().to(torch.int8) if entry.sign_bits is None else entry.sign()
            assert np.array_equal(found[name], expected.numpy())
    for place in range(len(FILES["zstd"]) - 700, len(FILES["zstd"]), 7):
        damaged = bytearray(FILES["zstd"])
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises((AssertionError, zstandard.ZstdError)):
            scope["read"](file, base)


# ---- hostile frames ------------------------------------------------------------------------------

PLANE = bytes([0x0F] * 5)  # five rows of eight columns, four survivors each
SIGNS = bytes([1, 2, 3])


def mask_frame(data):
    return decode({".mask.zst": np.frombuffer(data, np.uint8)}, (5, 8))


def test_hand_written_frames_are_sound_but_for_what_each_test_alters():
    mask, sign = mask_frame(frame(PLANE, size=5))
    assert mask.tobytes() == PLANE
    assert sign is None
    assert mask_frame(frame(PLANE, size=5, window=23))[0].tobytes() == PLANE


FRAMES = {
    "empty": (b"", "begins with nothing; expected 28b52ffd"),
    "no frame": (PLANE, "begins with 0f0f0f0f; expected 28b52ffd"),
    "skippable": (SKIPPABLE, "begins with 502a4d18"),
    "skippable first": (SKIPPABLE + frame(PLANE, size=5), "begins with 502a4d18"),
    "skippable last": (frame(PLANE, size=5) + SKIPPABLE, "12 bytes of unused data"),
    "twice": (frame(PLANE, size=5) * 2, "bytes of unused data"),
    "two halves": (frame(PLANE[:2], size=2) + frame(PLANE[2:], size=3), "declares 2; .* needs 5"),
    "trailing": (frame(PLANE, size=5) + b"\0", "1 bytes of unused data"),
    "magic only": (MAGIC, "is not a sound one of zstd: not enough data"),
    "no size": (frame(PLANE), "declares no size; the host needs 5 bytes"),
    "huge": (frame(PLANE, size=HUGE), "declares 1125899906842624; the host needs 5"),
    "huge and full": (frame(b"", size=1 << 29, run=4096), "declares 536870912; the host needs 5"),
    "shorter": (frame(PLANE[:4], size=4), "declares 4; the host needs 5"),
    "size 0": (frame(b"", size=0), "declares 0; the host needs 5"),
    "more than declared": (frame(PLANE + b"\0", size=5), "is not a sound one of zstd"),
    "far more": (frame(PLANE, size=5, run=4096), "is not a sound one of zstd"),
    "far more, streamed": (frame(b"", size=5, run=4096, window=20), "is not a sound one of zstd"),
    "less than declared": (frame(PLANE[:4], size=5), "is not a sound one of zstd"),
    "no end": (frame(PLANE, size=5, last=False), "is not a sound one of zstd"),
    "window": (frame(PLANE, size=5, window=24), "a window of 16777216 bytes; at most 8388608"),
    "window huge": (frame(PLANE, size=5, window=31), "a window of 2147483648 bytes"),
    "window beyond all": (frame(PLANE, size=5, window=41), "is not a sound one of zstd"),
    "dictionary": (frame(PLANE, size=5, dictionary=77), "needs the dictionary 77; none is"),
    "checksum": (frame(PLANE, size=5, checksum=b"0000"), "is not a sound one of zstd"),
    "reserved": (frame(PLANE, size=5, reserved=1), "is not a sound one of zstd"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_hostile_frame_is_refused_without_a_large_allocation(kind):
    data, message = FRAMES[kind]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=f"the frame of the mask .*{message}"):
            mask_frame(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18


def test_frame_that_cannot_hold_what_a_vast_host_needs_is_refused_unopened():
    data = np.frombuffer(frame(PLANE, size=1 << 37, run=9), np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"declares 137438953472 bytes; its \d+ cannot hold"):
            decode({".mask.zst": data}, (1 << 20, 1 << 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18


def test_densest_frame_is_opened():
    zeros = SignedMask(shape=(4096, 65536), mask_bits=np.zeros((4096, 8192), np.uint8))
    planes = encode(zeros, "zstd")
    assert sum(plane.size for plane in planes.values()) < zeros.mask_bits.size // 10_000
    assert np.array_equal(decode(planes, zeros.shape)[0], zeros.mask_bits)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (framed(np.frombuffer(PLANE, np.uint8)).reshape(-1, 1), "uint8"),
        (framed(np.frombuffer(PLANE, np.uint8)).view(np.int8), "int8"),
        (np.zeros((), np.uint8), r"uint8 \(\)"),
    ],
)
def test_frame_of_another_type_or_shape_is_refused(array, found):
    with pytest.raises(FormatError, match=rf"frame of the mask is {found}.*expected uint8 \(bytes"):
        decode({".mask.zst": array}, (5, 8))


def test_pad_bits_of_a_scan_by_columns_are_refused():
    across = np.frombuffer(bytes([0x1F] * 4 + [0] * 4), np.uint8)
    assert decode({".mask.col.zst": framed(across)}, (5, 8))[0].tobytes() == PLANE
    altered = across.copy()
    altered[7] = 1 << 5
    with pytest.raises(FormatError, match="the mask has pad bits that are not 0"):
        decode({".mask.col.zst": framed(altered)}, (5, 8))
    mask = np.frombuffer(PLANE, np.uint8).reshape(5, 1)
    ones = np.full(3, 255, np.uint8)
    with pytest.raises(FormatError, match="the signs have pad bits that are not 0"):
        decode({".mask": mask, ".sign.col.zst": framed(ones)}, (5, 8))
    _, sign = decode({".mask": mask, ".sign.zst": framed(ones)}, (5, 8))
    with pytest.raises(FormatError, match="the signs have pad bits that are not 0"):
        SignedMask(shape=(5, 8), mask_bits=mask, sign_bits=sign)


def test_frame_of_signs_has_the_size_that_the_mask_gives():
    mask = np.frombuffer(PLANE, np.uint8).reshape(5, 1)
    for form in SIGN_FORMS[1:3]:
        data = np.frombuffer(frame(SIGNS + b"\0", size=4), np.uint8)
        with pytest.raises(FormatError, match=r"frame of the signs declares 4; the host needs 3"):
            decode({".mask": mask, form: data}, (5, 8))


def test_empty_plane_is_never_a_frame():
    mask = np.zeros((5, 1), np.uint8)
    data = np.frombuffer(frame(b"", size=0) + b"anything", np.uint8)
    with pytest.raises(FormatError, match="declares 0; the host needs 0 bytes, which are stored"):
        decode({".mask": mask, ".sign.zst": data}, (5, 8))
    empty = SignedMask(shape=(5, 8), mask_bits=mask, sign_bits=np.zeros(0, np.uint8))
    assert encode(empty, "zstd")[".sign"].shape == (0,)


def test_frames_are_named_by_parameter_when_they_are_refused(tmp_path):
    arrays = to_arrays(SOUND, codec="zstd")
    arrays["rows.weight.mask.zst"] = arrays["rows.weight.mask.zst"][:-1]
    with pytest.raises(FormatError, match=r"there: 'rows.weight': the frame of the mask is not a"):
        from_arrays(arrays, HOST, ConnectomeConfig(), file=Path("there"))


def test_plane_of_the_other_scan_is_refused_by_its_digest(tmp_path):
    square = SignedMask.pack(torch.arange(64 * 64).reshape(64, 64) % 11 == 0)
    host = torch.nn.Sequential(torch.nn.Linear(64, 64))
    connectome = Connectome({"0.weight": square}, config=ConnectomeConfig())
    raw = to_bytes(connectome.replace({"0.weight": _oriented(square)}), codec="zstd")
    (form,) = (f for f in MASK_FORMS[1:3] if f'"0.weight{f}"'.encode() in raw)
    other = MASK_FORMS[3 - MASK_FORMS.index(form)]
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(json.loads(raw[8 : 8 + size])).replace(form, other).encode()
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(FormatError, match="content_digest is "):
        from_file(file, host, ConnectomeConfig())


def _oriented(entry):
    return SignedMask(shape=entry.shape, mask_bits=entry.mask_bits, orientation="out_in")


def test_host_of_other_sizes_is_told_from_a_damaged_zstd_file(tmp_path):
    connectome = drawn(tiny_model("gpt2"))
    write(connectome, tmp_path, codec="zstd")
    with pytest.raises(HostMismatchError, match=r"\(97, 32\) in the connectome.*vocabularies"):
        read(tmp_path, host=tiny_model("gpt2", vocab_size=50))
    bare = connectome.replace(config=ConnectomeConfig())
    write(bare, tmp_path, codec="zstd")
    with pytest.raises(HostMismatchError, match="Use the model that the connectome was made for"):
        read(tmp_path, host=tiny_model("gpt2", vocab_size=50))

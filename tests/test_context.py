from __future__ import annotations

import builtins
import random
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzz import mutants
from fuzz.mutants import FILES, HOST, KINDS, SOUND
from hypothesis import given
from hypothesis import strategies as st
from test_codecs import SHAPES, entry_of, random_planes

from hf_connectome import codecs, context
from hf_connectome.codecs import codec_of, decode, encode
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import ConfigError, ConnectomeError, FormatError
from hf_connectome.storage import WEIGHTS_FILE, from_file, read, to_bytes, write

pytest.importorskip("constriction")

CONTEXT_FILE = to_bytes(SOUND, codec="context")
NUM_FILES = 280


def everywhere(shape):
    return np.broadcast_to(np.True_, shape)


def lines_of_their_own(shape, seed=0):
    """Return bits whose rows and columns have densities of their own."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(0, 1.5, shape[0]), rng.normal(0, 1.5, shape[1])
    return rng.random(shape) < 1 / (1 + np.exp(1 - rows[:, None] - columns))


def entropy(density):
    return -density * np.log2(density) - (1 - density) * np.log2(1 - density)


# ---- the stream ----------------------------------------------------------------------------------


@given(SHAPES, st.sampled_from([0, 0.03, 0.5, 1]), st.sampled_from([0.2, 1]), st.integers(0, 99))
def test_what_is_coded_is_decoded(shape, density, share, seed):
    ones, _ = random_planes(shape, density, seed)
    places, _ = random_planes(shape, share, seed + 1)
    stream = context.encode(ones & places, places)
    found = context.decode(stream, places, np.count_nonzero(places))
    assert np.array_equal(found, ones & places)


def test_bytes_of_a_stream_stay_the_same():
    ones = np.arange(60).reshape(6, 10) % 7 < 2
    assert (
        context.encode(ones, everywhere(ones.shape)).tobytes().hex()
        == "0f0f8dca3258d8b69f0143160000"
    )


def test_lines_of_their_own_take_less_than_the_independent_floor():
    ones = lines_of_their_own((400, 300))
    bits = 8 * context.encode(ones, everywhere(ones.shape)).size
    assert bits < 0.85 * ones.size * entropy(ones.mean())


def test_independent_bits_take_the_floor_and_one_part_in_a_hundred():
    ones, _ = random_planes((400, 300), 0.25, 0)
    bits = 8 * context.encode(ones, everywhere(ones.shape)).size
    assert 0.999 < bits / (ones.size * entropy(ones.mean())) < 1.01


@pytest.mark.parametrize(("lines", "strength"), [("alike", 15), ("apart", 1)])
def test_strength_is_high_where_lines_are_alike(lines, strength):
    ones = np.zeros((64, 256), bool)
    if lines == "apart":
        ones[::2] = True
    else:
        ones[:, ::2] = True
    assert context.encode(ones, everywhere(ones.shape))[0] in range(strength - 1, 16)
    assert context.encode(ones.T, everywhere(ones.T.shape))[1] in range(strength - 1, 16)


@given(SHAPES, st.integers(0, 99))
def test_decoder_of_the_format_page_reads_the_stream(shape, seed):
    page = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    scope = {"np": np}
    exec(re.search(r"```python\n(def context_bits.*?)```", page, re.DOTALL).group(1), scope)
    ones, places = lines_of_their_own(shape, seed), random_planes(shape, 0.7, seed)[0]
    stream = context.encode(ones & places, places)
    assert np.array_equal(scope["context_bits"](stream.tobytes(), places), ones & places)


# ---- the file ------------------------------------------------------------------------------------


def test_context_file_holds_the_same_connectome_and_asks_for_a_later_reader(tmp_path):
    write(SOUND, tmp_path, codec="context")
    assert read(tmp_path, host=HOST) == SOUND
    tensors, metadata = mutants.taken_apart(CONTEXT_FILE)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == CONTEXT_FILE
    assert metadata["min_reader"] == metadata["format_version"] == "2"
    assert mutants.taken_apart(FILES["zstd"])[1]["min_reader"] == "1"
    assert codec_of(tensors) == "context"
    assert {name.partition("weight")[2] for name in tensors} >= {".mask.ctx", ".sign.ctx"}
    assert len(CONTEXT_FILE) < len(FILES["zstd"])


def test_plane_takes_the_stream_only_where_it_is_smaller():
    ones = SignedMask(shape=(64, 64), mask_bits=np.full((64, 8), 255, np.uint8))
    assert encode(ones, "context").keys() == {".mask.ctx"}
    noise = entry_of(*random_planes((64, 64), 0.5, 0))
    assert encode(noise, "context").keys() == {".mask", ".sign"}


def test_plane_that_no_stream_may_hold_takes_another_form():
    shape = (1600, 1000)  # more than 6 bytes may hold
    zeros = SignedMask(shape=shape, mask_bits=np.zeros((1600, 125), np.uint8))
    assert context.encode(np.zeros(shape, bool), everywhere(shape)) is None
    planes = encode(zeros, "context")
    assert planes.keys() <= {".mask.zst", ".mask.col.zst"}
    assert not decode(planes, shape)[0].any()


def test_mask_without_survivors_and_mask_without_signs_are_coded():
    for sign in (None, np.zeros(0, np.uint8)):
        entry = SignedMask(shape=(40, 40), mask_bits=np.zeros((40, 5), np.uint8), sign_bits=sign)
        mask, found = decode(encode(entry, "context"), (40, 40))
        assert not mask.any()
        assert (found is None) == (sign is None)


# ---- without the package -------------------------------------------------------------------------


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name == "constriction":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **options)

    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(CONTEXT_FILE)
    monkeypatch.setattr(builtins, "__import__", missing)
    for use in (
        lambda: write(SOUND, tmp_path / "new", codec="context"),
        lambda: from_file(file, HOST, ConnectomeConfig()),
        lambda: codecs.check_codec("context"),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'hf_connectome\[context\]'"):
            use()
    assert not (tmp_path / "new").exists()
    file.write_bytes(FILES["zstd"])
    assert from_file(file, HOST, ConnectomeConfig()) == SOUND


# ---- hostile streams -----------------------------------------------------------------------------

PLANE = lines_of_their_own((40, 60))
STREAM = context.encode(PLANE, everywhere(PLANE.shape)).tobytes()

HOSTILE = {
    "empty": (b"", "the stream has 0 bytes; expected 2 and words of 4"),
    "no words": (STREAM[:2], "the stream has 2 bytes"),
    "odd": (STREAM[:-1], r"the stream has \d+ bytes; expected 2 and words of 4"),
    "cut": (STREAM[:-4], "does not end where its bits do"),
    "cut in front": (STREAM[:2] + STREAM[6:], "does not end where its bits do"),
    "longer": (STREAM[:2] + bytes(4) + STREAM[2:], "does not end where its bits do"),
    "zeros behind": (STREAM + bytes(4), "ends in a word of zeros"),
    "twice": (STREAM + STREAM[2:], "does not end where its bits do"),
    "strength": (bytes([16, 0]) + STREAM[2:], "the strengths 16 and 0; expected 0 to 15"),
    "other strength": (bytes([15, 15]) + STREAM[2:], "does not end where its bits do"),
    "flipped": (STREAM[:9] + bytes([STREAM[9] ^ 1]) + STREAM[10:], "does not end where"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_stream_is_refused(kind):
    data, message = HOSTILE[kind]
    with pytest.raises(FormatError, match=f"of the mask: .*{message}.*Download it again"):
        decode({".mask.ctx": np.frombuffer(data, np.uint8)}, PLANE.shape)


def test_stream_that_cannot_hold_what_a_vast_host_needs_takes_no_memory():
    stream = {".mask.ctx": np.frombuffer(STREAM, np.uint8)}
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"cannot hold more than \d+ bits; the host asks for"):
            decode(stream, (1 << 20, 1 << 20))
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), np.uint8), np.zeros(6, np.int8), np.zeros((), np.uint8)]
)
def test_stream_of_another_type_or_shape_is_refused(array):
    with pytest.raises(FormatError, match=r"stream of the mask is .*; expected uint8 \(bytes,\)"):
        decode({".mask.ctx": array}, PLANE.shape)


def test_every_damaged_context_file_is_refused_or_means_the_same(tmp_path):
    file, outcomes = tmp_path / WEIGHTS_FILE, Counter()
    kinds = [kind for kind in KINDS if kind != "edit_frames"]
    for number in range(NUM_FILES):
        kind = kinds[number % len(kinds)]
        file.write_bytes(KINDS[kind](random.Random(number), CONTEXT_FILE))
        try:
            found = from_file(file, HOST, ConnectomeConfig())
        except ConnectomeError as error:
            outcomes[type(error).__name__] += 1
        else:
            assert found == SOUND, f"file {number} ({kind}) was taken for another connectome"
            outcomes["equal"] += 1
    assert outcomes["FormatError"] > 0.7 * NUM_FILES


def test_host_of_other_sizes_is_told_from_a_damaged_file(tmp_path):
    write(SOUND, tmp_path, codec="context")
    half = Connectome({"rows.weight": SOUND["rows.weight"]}, config=ConnectomeConfig())
    (tmp_path / "half").mkdir()
    write(half, tmp_path / "half", codec="context")
    assert read(tmp_path / "half", host=HOST) == half

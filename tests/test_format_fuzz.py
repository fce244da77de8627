"""Thousands of damaged files and configs: a refusal by name or an equal connectome, nothing else.

A failure names the number of its file; ``mutant(number)`` of tests/fuzz/mutants.py makes it again.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
import tracemalloc
import warnings
from collections import Counter

import pytest
from fuzz import mutants, targets
from fuzz.mutants import FILES, HOST, KINDS, SOUND, mutant
from tiny import drawn, tiny_model

from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import ConnectomeError
from hf_connectome.storage import CONFIG_FILE, WEIGHTS_FILE, from_file, read, to_bytes, write

NUM_FILES = 2000
NUM_CONFIGS = 160
MOST_BYTES = 2 << 20
"""More than any file here and what libraries take for themselves; far less than a bomb."""
MOST_SECONDS = 5.0


def outcome(load, sound):
    """Return the name of the refusal, or 'equal'; all else is raised or fails."""
    tracemalloc.reset_peak()
    before, began = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        found = load()
    except ConnectomeError as error:
        found = type(error).__name__
    else:
        assert found == sound, "a file was taken for another connectome"
        found = "equal"
    taken = tracemalloc.get_traced_memory()[1] - before
    assert taken < MOST_BYTES, f"{taken} bytes were taken"
    assert time.process_time() - began < MOST_SECONDS
    return found


@contextlib.contextmanager
def named(number, kind):
    """Say of a failure which input it was, so that it can be made again."""
    try:
        yield
    except BaseException as error:
        raise AssertionError(f"number {number}, {kind}: {error!r}") from error


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_the_sound_files_have_every_form_of_a_plane():
    forms = {name.partition("weight")[2] for name in mutants.taken_apart(FILES["zstd"])[0]}
    assert forms >= {".mask", ".mask.zst", ".mask.col.zst", ".sign", ".sign.zst", ".sign.col.zst"}


def test_every_damaged_file_is_refused_or_means_the_same(tmp_path, traced):
    file, outcomes = tmp_path / WEIGHTS_FILE, Counter()
    for number in range(NUM_FILES):
        kind, raw = mutant(number)
        file.write_bytes(raw)
        with named(number, kind):
            found = outcome(lambda: from_file(file, HOST, ConnectomeConfig()), SOUND)
        outcomes[kind, found] += 1
    assert outcomes.total() == NUM_FILES == 2000
    for kind in KINDS:
        assert outcomes[kind, "FormatError"] > NUM_FILES / len(KINDS) / 2
    # Some frames and headers are other ones of the same content: the reader is not merely strict.
    assert outcomes["edit_frames", "equal"] > 0
    assert outcomes["edit_header", "equal"] > 0
    assert outcomes["rename_frames", "equal"] > 0


def test_damaged_files_are_the_same_each_time():
    assert [mutant(n) for n in range(40)] == [mutant(n) for n in range(40)]


def test_coverage_guided_run_starts_from_sound_input():
    assert all(targets.run(start) for start in targets.starts())
    assert not targets.run(bytes([0]) + b"no file at all")


# ---- configs -------------------------------------------------------------------------------------


# Wide, so that sizes overflow; and deep, which would take time for ever.
SIZES = ("n_embd", "n_inner", "n_positions", "vocab_size", "n_head", "n_layer")


def altered_config(rng, fields):
    """Return the text of a config with something odd in it."""
    what = rng.randrange(6)
    if what == 0:
        return mutants.flipped(rng, json.dumps(fields).encode())
    if what == 1:
        depth = rng.choice([100, 900, 5000])
        return json.dumps(fields)[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    if what == 2:
        number = rng.choice(["1e999", "-0", "9" * 400, "9" * 5000, "NaN", "-Infinity", "1E-400"])
        key = rng.choice(list(fields))
        return json.dumps(fields | {key: "?"}).replace('"?"', number).encode()
    inner = dict(fields["base_config"])
    if what == 3:
        inner[rng.choice([*inner, *SIZES])] = rng.choice(mutants.ODD)
    elif what == 4:
        inner[rng.choice(SIZES)] = rng.choice([10**9, 10**12, -5, 0, 2**31, 2**63])
    else:
        fields = fields | {rng.choice(list(fields)): rng.choice(mutants.ODD)}
        return json.dumps(fields).encode()
    return json.dumps(fields | {"base_config": inner}).encode()


def test_every_altered_config_is_refused_or_means_the_same(tmp_path, traced):
    connectome = drawn(tiny_model("gpt2"))
    write(connectome, tmp_path, codec="zstd")
    fields, outcomes = json.loads((tmp_path / CONFIG_FILE).read_text()), Counter()
    for number in range(NUM_CONFIGS):
        text = altered_config(random.Random(number), fields)
        (tmp_path / CONFIG_FILE).write_bytes(text)
        with named(number, text[:200]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers speaks of odd sizes before it refuses
            outcomes[outcome(lambda: read(tmp_path), connectome)] += 1
    assert outcomes.total() == NUM_CONFIGS == 160
    assert outcomes["ConfigError"] > 20
    assert outcomes["FormatError"] > 20
    assert outcomes["equal"] > 5


def test_the_zstd_file_is_no_other_connectome(tmp_path):
    assert to_bytes(SOUND, codec="zstd") == FILES["zstd"] != FILES["plain"]
    write(SOUND, tmp_path, codec="zstd")
    assert read(tmp_path, host=HOST).digest == SOUND.digest

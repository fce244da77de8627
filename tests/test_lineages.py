from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuzz import mutants
from tiny import drawn, tiny_model

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import (
    ConfigError,
    ConnectomeError,
    FormatError,
    HostMismatchError,
    UnknownNameError,
)
from hf_connectome.lineages import read_lineage, read_run, write_lineage
from hf_connectome.storage import to_bytes, write

NUM_FILES = 150


def child(parent, number, *, flips=0.05, kept=0.8):
    """Drop survivors and change signs at random; the scales and values differ too."""
    rng = torch.Generator().manual_seed(number)
    entries = {}
    for name, entry in parent.items():
        mask = entry.mask() & (torch.rand(entry.shape, generator=rng) < kept)
        sign = None
        if entry.sign_bits is not None:
            turned = torch.rand(entry.shape, generator=rng) < flips
            sign = torch.where(turned, -entry.sign(), entry.sign())
        scale = None if entry.scale is None else torch.from_numpy(entry.scale / 2)
        entries[name] = SignedMask.pack(mask, sign, scale=scale, orientation=entry.orientation)
    values = {name: value + number for name, value in parent.values_carried.items()}
    config = replace(parent.config, generation=number, lineage=[{"generation": number - 1}])
    return Connectome(entries, values=values, config=config)


def evolved(num=4, *, first=0, **options):
    found = [drawn(tiny_model("gpt2"), density=1.0, generation=first, carry=True)]
    for number in range(first + 1, first + num):
        found.append(child(found[-1], number, **options))
    return found


RUN = evolved()


@pytest.fixture
def file(tmp_path):
    write_lineage(RUN, tmp_path / "lineage.safetensors")
    return tmp_path / "lineage.safetensors"


# ---- round trip ----------------------------------------------------------------------------------


def test_every_generation_is_what_was_written(file):
    found = read_lineage(file)
    assert list(found) == [0, 1, 2, 3]
    for number, connectome in enumerate(RUN):
        assert found[number].digest == connectome.digest
        assert to_bytes(found[number]) == to_bytes(connectome)
        assert found[number].config.lineage == connectome.config.lineage
        assert found[number].config.digest == connectome.digest


def test_one_generation_needs_none_that_came_later(file):
    assert list(read_lineage(file, last=1)) == [0, 1]
    assert Connectome.from_lineage(file, 2) == RUN[2]
    with pytest.raises(UnknownNameError, match="has the generations 0 to 3, not 4"):
        Connectome.from_lineage(file, 4)


def test_lineage_takes_less_than_its_generations_apart(tmp_path):
    run = [drawn(tiny_model("gpt2", vocab_size=4096), density=1.0)]
    for number in range(1, 7):
        run.append(child(run[-1], number, flips=0.02))
    write_lineage(run, tmp_path / "x")
    apart = sum(len(to_bytes(one, codec="zstd")) for one in run)
    assert (tmp_path / "x").stat().st_size < 0.6 * apart


def test_run_is_read_from_its_folders(tmp_path):
    for one in evolved(3, first=2):
        write(one, tmp_path / f"generation-{one.config.generation}")
    write_lineage(read_run(tmp_path), tmp_path / "sub" / "x.safetensors")
    assert list(read_lineage(tmp_path / "sub" / "x.safetensors")) == [2, 3, 4]
    with pytest.raises(ConfigError, match="has no folder generation-…"):
        read_run(tmp_path / "sub")


@pytest.mark.parametrize("options", [{"kept": 0.0}, {"kept": 1.0, "flips": 0.0}, {"flips": 1.0}])
def test_extremes_are_stored(tmp_path, options):
    run = evolved(3, **options)
    write_lineage(run, tmp_path / "x")
    assert list(read_lineage(tmp_path / "x").values()) == run


def test_masks_without_signs_are_stored(tmp_path):
    bare = {n: SignedMask(shape=e.shape, mask_bits=e.mask_bits) for n, e in RUN[0].items()}
    bare = {n: replace(e, orientation=RUN[0][n].orientation) for n, e in bare.items()}
    run = [RUN[0].replace(bare)]
    run += [child(run[0], 1)]
    write_lineage(run, tmp_path / "x")
    assert list(read_lineage(tmp_path / "x").values()) == run
    with pytest.raises(ConfigError, match="only one of the generations 0 and 1 has signs for"):
        write_lineage([RUN[0], run[1]], tmp_path / "y")


# ---- refusals ------------------------------------------------------------------------------------


def test_what_is_no_lineage_is_refused(tmp_path):
    grown = RUN[1].replace(RUN[0], config=RUN[3].config)
    other = drawn(tiny_model("gpt2", vocab_size=50), generation=1)
    for run, error, message in (
        ([], ConfigError, "needs one generation or more"),
        ([RUN[0], RUN[2]], ConfigError, "generation 2 comes after 0; expected 1"),
        ([RUN[1], RUN[0]], ConfigError, "generation 0 comes after 1; expected 2"),
        ([*RUN[:3], grown], ConfigError, r"generation 3 has \d+ weights of .* that generation 2"),
        ([RUN[0], other], HostMismatchError, r"is \(97, 32\) in one connectome, \(50, 32\) in"),
        ([Connectome(RUN[0])], ConfigError, "without a config"),
    ):
        with pytest.raises(error, match=message):
            write_lineage(run, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def altered(file, change):
    tensors, metadata = mutants.taken_apart(file.read_bytes())
    change(tensors, metadata)
    file.write_bytes(mutants.put_together(tensors, metadata))


def with_configs(text):
    return lambda _, metadata: metadata.update(configs=text)


def put(name, data):
    return lambda tensors, _: tensors.update({name: mutants.Tensor("U8", [len(data)], data)})


def far_apart(_, metadata):
    metadata["configs"] = metadata["configs"].replace('"generation":3', '"generation":10000000000')


def without_kept(tensors, _):
    for name in {"2/kept", "2/kept.zst"} & tensors.keys():
        del tensors[name]


def kept_twice(tensors, _):
    for name in ("2/kept", "2/kept.zst"):
        tensors.setdefault(name, mutants.Tensor("U8", [1], b"0"))


def flipped_short(tensors, _):
    tensors.pop("1/flipped.zst", None)
    tensors["1/flipped"] = mutants.Tensor("U8", [1], b"0")


ALTERED = {
    "format": (lambda _, metadata: metadata.update(format="connectome"), "expected 'connectome-l"),
    "reader": (lambda _, metadata: metadata.update(min_reader="3"), "of format version 3"),
    "no configs": (lambda _, metadata: metadata.pop("configs"), "the configs are not those of a"),
    "odd configs": (with_configs("[1]"), "the configs are not those"),
    "empty configs": (with_configs("[]"), "the configs are not those"),
    "no list": (with_configs("7"), "the configs are not those"),
    "deep configs": (with_configs("[" * 99999), "the configs are not those"),
    "far apart": (far_apart, "generation 10000000000 comes after 2"),
    "another generation": (put("9/kept", b"0"), "names begin with 0/ to 3/"),
    "no generation": (put("kept", b"0"), "names begin with 0/ to 3/"),
    "no plane": (without_kept, "has 0 tensors 'kept'; expected one"),
    "twice": (kept_twice, "has 2 tensors 'kept'; expected one"),
    "short": (flipped_short, r"'flipped' is uint8 \(1,\); the survivors need uint8"),
    "whole plane": (put("1/transformer.wte.weight.mask", b"0"), "has the tensor '1/.*.mask'"),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_altered_lineage_is_refused(file, kind):
    change, message = ALTERED[kind]
    altered(file, change)
    with pytest.raises(FormatError, match=message):
        read_lineage(file)


def test_exchanged_generations_are_refused_by_their_digests(file):
    def exchange(_, metadata):
        configs = json.loads(metadata["configs"])
        configs[1]["digest"], configs[2]["digest"] = configs[2]["digest"], configs[1]["digest"]
        metadata["configs"] = json.dumps(configs)

    altered(file, exchange)
    with pytest.raises(FormatError, match="one of the two was altered or exchanged"):
        read_lineage(file)


def test_every_damaged_lineage_is_refused_or_means_the_same(file):
    sound = file.read_bytes()
    kinds = ("flip_bytes", "flip_header", "flip_data", "cut_and_paste", "edit_header")
    refused = 0
    host = tiny_model("gpt2")
    for number in range(NUM_FILES):
        damaged = mutants.KINDS[kinds[number % len(kinds)]](random.Random(number), sound)
        file.write_bytes(damaged)
        try:
            found = read_lineage(file, host=host)
        except ConnectomeError:
            refused += 1
        else:
            assert [one.digest for one in found.values()] == [one.digest for one in RUN]
    assert refused > 0.8 * NUM_FILES


def test_bits_beyond_the_last_survivor_are_refused(file):
    def alter(tensors, _):
        size = sum(-(-entry.num_survivors // 8) for entry in RUN[0].values())
        tensors.pop("1/kept.zst", None)
        tensors["1/kept"] = mutants.Tensor("U8", [size], np.full(size, 255, np.uint8).tobytes())

    odd = any(entry.num_survivors % 8 for entry in RUN[0].values())
    altered(file, alter)
    with pytest.raises(FormatError, match="pad bits" if odd else "flipped"):
        read_lineage(file)

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import drawn, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_connectome.arrays import from_arrays, to_arrays
from hf_connectome.config import CONFIG_VERSION, ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.errors import (
    ConfigError,
    ConnectomeError,
    FormatError,
    HostMismatchError,
    StorageError,
)
from hf_connectome.storage import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    atomic_folder,
    from_file,
    read,
    read_config,
    refused_writes_named,
    to_bytes,
    write,
    write_atomically,
    write_together,
)

MiB = 1 << 20


class Host(nn.Module):
    """Small enough that a file for it can be read at a glance."""

    def __init__(self, b=None):
        super().__init__()
        self.a = nn.Linear(10, 3)
        self.b = Conv1D(9, 2) if b is None else b
        self.c = nn.Embedding(4, 3)


HOST = Host()


def entry(rows, **options):
    """Read an entry off rows of '+', '-' and '.'; 'x' is a survivor without a sign."""
    weight = torch.tensor([["-.+".find(w) - 1.0 for w in row] for row in rows])
    alive = torch.tensor([[w != "." for w in row] for row in rows])
    return SignedMask.pack(alive, None if "x" in "".join(rows) else weight, **options)


def golden():
    """Build one of everything: signs, a scale, scales by row, mask only, a value."""
    return Connectome(
        {
            "a.weight": entry(
                ["+..-....+.", "..-.+..-..", ".+....-..-"],
                scale=torch.tensor([0.5]),
                orientation="out_in",
            ),
            "b.weight": entry(["x.......x", ".xxx....."], orientation="in_out"),
            "c.weight": entry(
                ["...", "+-+", "-..", ".++"],
                scale=torch.tensor([0.0, 0.25, 0.02, 1.0]),
                orientation="embedding",
            ),
        },
        values={"a.bias": torch.tensor([1.0, -0.5, 0.0])},
        config=ConnectomeConfig(),
    )


# ---- golden bytes --------------------------------------------------------------------------------

GOLDEN_SHA256 = "e21c327032ccd939396bd0a3cdad0e3239efd91fb483e7bc22eb0af3a4c1fd51"
GOLDEN = """
WAMAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJiYXNlX2ZpbmdlcnByaW50IjoiNmE1NGIzMjAzNDBmMWIyMWI3ZmNhMDQ2OWVj
ZmExNjhlMmQ0MThiMzVlYzI5ZWM1ODM1OTA3MTUzMmU1ZGI5YiIsImNvbnRlbnRfZGlnZXN0IjoiZTdkMDc5NDY2OTNkZjNi
MWU5NDk0MmJmMzMyMGVkMjQ2MWFkNTM3MTUwYzUyNjFhYWE0YzRjMjIyZWNiZTBkYyIsImRlbnNpdHkiOiIwLjMzMzMzMzMz
MzMzMzMzMzMiLCJmb3JtYXQiOiJjb25uZWN0b21lIiwiZm9ybWF0X3ZlcnNpb24iOiIxIiwibWluX3JlYWRlciI6IjEiLCJu
dW1fc3Vydml2b3JzIjoiMjAiLCJudW1fd2VpZ2h0cyI6IjYwIn0sImEuYmlhcy52YWx1ZSI6eyJkdHlwZSI6IkYzMiIsInNo
YXBlIjpbM10sImRhdGFfb2Zmc2V0cyI6WzAsMTJdfSwiYS53ZWlnaHQuc2NhbGUiOnsiZHR5cGUiOiJGMTYiLCJzaGFwZSI6
WzFdLCJkYXRhX29mZnNldHMiOlsxMiwxNF19LCJjLndlaWdodC5zY2FsZSI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpbNF0s
ImRhdGFfb2Zmc2V0cyI6WzE0LDIyXX0sImEud2VpZ2h0Lm1hc2siOnsiZHR5cGUiOiJVOCIsInNoYXBlIjpbMywyXSwiZGF0
YV9vZmZzZXRzIjpbMjIsMjhdfSwiYS53ZWlnaHQuc2lnbiI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOlsyXSwiZGF0YV9vZmZz
ZXRzIjpbMjgsMzBdfSwiYi53ZWlnaHQubWFzayI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOlsyLDJdLCJkYXRhX29mZnNldHMi
OlszMCwzNF19LCJjLndlaWdodC5tYXNrIjp7ImR0eXBlIjoiVTgiLCJzaGFwZSI6WzQsMV0sImRhdGFfb2Zmc2V0cyI6WzM0
LDM4XX0sImMud2VpZ2h0LnNpZ24iOnsiZHR5cGUiOiJVOCIsInNoYXBlIjpbMV0sImRhdGFfb2Zmc2V0cyI6WzM4LDM5XX19
AACAPwAAAL8AAAAAADgAAAA0HyUAPAkBlABCAqoBAQEOAAAHAQYK
"""


def test_file_is_the_golden_one_byte_for_byte():
    # A change here means that files of earlier releases would not be reproduced.
    assert to_bytes(golden()) == base64.b64decode(GOLDEN)
    assert hashlib.sha256(to_bytes(golden())).hexdigest() == GOLDEN_SHA256


def test_golden_file_is_read(tmp_path):
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(base64.b64decode(GOLDEN))
    assert from_file(file, HOST, ConnectomeConfig()) == golden()


ELSEWHERE = """
import hashlib, torch
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.storage import to_bytes
entry = SignedMask.pack(torch.eye(9) > 0, torch.ones(9, 9), scale=torch.tensor([0.5]))
values = {name: torch.ones(2) for name in "yzx"}
print(hashlib.sha256(to_bytes(Connectome(dict.fromkeys("dbac", entry), values=values))).hexdigest())
"""


def test_equal_connectomes_give_equal_bytes_in_every_process(capsys):
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    exec(ELSEWHERE)
    assert ran.stdout == capsys.readouterr().out


def test_bytes_depend_on_no_order_and_on_no_config():
    first = golden()
    names = list(reversed(first.names))
    second = Connectome(
        {name: first[name] for name in names},
        values=first.values_carried,
        config=ConnectomeConfig(seed=7, reset="init_std"),
    )
    assert to_bytes(second) == to_bytes(first)


def test_official_library_reads_the_file():
    tensors = safetensors.deserialize(to_bytes(golden()))
    found = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in tensors}
    assert found.keys() == {
        "a.bias.value",
        "a.weight.mask",
        "a.weight.scale",
        "a.weight.sign",
        "b.weight.mask",
        "c.weight.mask",
        "c.weight.scale",
        "c.weight.sign",
    }
    # The worked example of docs/FORMAT.md.
    assert found["a.weight.mask"] == ("U8", [3, 2], bytes.fromhex("090194004202"))
    assert found["a.weight.sign"] == ("U8", [2], bytes.fromhex("aa01"))
    assert found["a.weight.scale"] == ("F16", [1], bytes.fromhex("0038"))
    assert found["b.weight.mask"] == ("U8", [2, 2], bytes.fromhex("01010e00"))
    assert found["c.weight.mask"] == ("U8", [4, 1], bytes.fromhex("00070106"))
    assert found["c.weight.sign"] == ("U8", [1], bytes([0b001010]))
    assert found["a.bias.value"] == ("F32", [3], np.array([1, -0.5, 0], "<f4").tobytes())


def test_every_tensor_is_aligned_to_its_type():
    width = {"F32": 4, "F16": 2, "U8": 1}
    header, _ = taken_apart(to_bytes(golden()))
    for name, tensor in header.items():
        if name != "__metadata__":
            assert tensor["data_offsets"][0] % width[tensor["dtype"]] == 0
    assert len(json_part(to_bytes(golden()))) % 8 == 0


def test_size_is_that_of_the_specification():
    model = tiny_model("gpt2")
    connectome = drawn(model, density=0.25)
    arrays = to_arrays(connectome)
    expected = sum(
        e.rows * -(-e.columns // 8) + -(-e.num_survivors // 8) for e in connectome.values()
    )
    assert sum(a.nbytes for a in arrays.values()) == expected
    raw = to_bytes(connectome)
    assert len(raw) == 8 + len(json_part(raw)) + expected


# ---- round trip ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("connectome")


@given(density=st.floats(0.01, 1.0), seed=st.integers(0, 99), carry=st.booleans(), data=st.data())
def test_what_is_saved_is_loaded(gpt2, shared_folder, density, seed, carry, data):
    connectome = drawn(gpt2, density=density, seed=seed, carry=carry, reset="sign_constant")
    bare = data.draw(st.sets(st.sampled_from(connectome.names)))
    connectome = connectome.replace(
        {
            name: SignedMask.pack(e.mask(), orientation=e.orientation) if name in bare else e
            for name, e in connectome.items()
        }
    )
    write(connectome, shared_folder)
    loaded = read(shared_folder, host=gpt2)
    assert loaded == connectome
    assert loaded.digest == connectome.digest
    assert {n: e.orientation for n, e in loaded.items()} == {
        n: e.orientation for n, e in connectome.items()
    }
    assert to_bytes(loaded) == to_bytes(connectome)
    assert loaded.config.density == density
    assert loaded.config.reset == "sign_constant"


def test_recorded_architecture_is_the_host_when_none_is_given(gpt2, tmp_path):
    connectome = drawn(gpt2, carry=True)
    connectome.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    assert Connectome.from_pretrained(tmp_path) == connectome
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_values_can_be_used_as_any_tensor(tmp_path):
    write(golden(), tmp_path)
    value = read(tmp_path, host=HOST).values_carried["a.bias"]
    assert (value + 1).tolist() == [2.0, 0.5, 1.0]


def test_part_of_a_connectome_is_saved_with_its_own_fingerprint(gpt2, tmp_path):
    whole = drawn(gpt2)
    part = Connectome({n: whole[n] for n in list(whole)[:2]}, config=whole.config)
    write(part, tmp_path)
    loaded = read(tmp_path, host=gpt2)
    assert loaded == part
    assert loaded.config.base_fingerprint != whole.config.base_fingerprint


def test_folder_is_made_and_files_of_others_stay(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    write(golden(), folder)
    write(golden(), str(tmp_path / "c" / "d"))
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / "README.md").read_text() == "mine"
    for file in (tmp_path / "c" / "d").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_config_is_plain_sorted_json(tmp_path):
    write(golden(), tmp_path)
    text = (tmp_path / CONFIG_FILE).read_text()
    fields = json.loads(text)
    assert text == json.dumps(fields, indent=2, sort_keys=True) + "\n"
    assert fields["peft_type"] == "CONNECTOME"
    assert fields["config_version"] == 1
    assert fields["inference_mode"] is True


def test_config_has_the_digest_of_what_is_written_whatever_it_had_before(gpt2, tmp_path):
    first, second = drawn(gpt2, seed=1), drawn(gpt2, seed=2)
    write(first, tmp_path)
    stale = read(tmp_path, host=gpt2).config
    assert stale.digest == first.digest
    write(second.replace(config=stale), tmp_path)
    assert read(tmp_path, host=gpt2).config.digest == second.digest != first.digest


def test_file_is_refused_beside_the_config_of_another(gpt2, tmp_path):
    first, second = drawn(gpt2, seed=1), drawn(gpt2, seed=2)
    write(first, tmp_path)
    config = (tmp_path / CONFIG_FILE).read_bytes()
    write(second, tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(config)
    with pytest.raises(FormatError, match=f"{second.digest}, .* describes {first.digest}: one of"):
        read(tmp_path, host=gpt2)


def test_file_is_read_when_the_config_has_no_digest(tmp_path):
    write(golden(), tmp_path)
    fields = json.loads((tmp_path / CONFIG_FILE).read_text())
    del fields["digest"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(fields))
    assert read(tmp_path, host=HOST) == golden()


def test_saving_is_refused_when_there_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.*connectome.replace\(config="):
        write(Connectome(golden()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- hostile files -------------------------------------------------------------------------------


def json_part(raw):
    return raw[8 : 8 + int.from_bytes(raw[:8], "little")]


def taken_apart(raw):
    text = json_part(raw)
    return json.loads(text), raw[8 + len(text) :]


def framed(text, data=b""):
    """Put a length before a header, whatever is in it."""
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + data


def forged(change):
    """Take the golden file apart, let ``change`` alter tensors and metadata, put it together."""
    header, data = taken_apart(to_bytes(golden()))
    metadata = header.pop("__metadata__")
    tensors = {
        name: [t["dtype"], t["shape"], bytearray(data[slice(*t["data_offsets"])])]
        for name, t in header.items()
    }
    change(tensors, metadata)
    new, blob = {"__metadata__": metadata}, b""
    for name, (dtype, shape, raw) in tensors.items():
        span = [len(blob), len(blob) + len(raw)]
        new[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        blob += raw
    return framed(json.dumps(new), blob)


@pytest.fixture
def load(tmp_path):
    def load_bytes(raw, host=HOST):
        file = tmp_path / WEIGHTS_FILE
        file.write_bytes(raw)
        return from_file(file, host, ConnectomeConfig())

    return load_bytes


def put(name, dtype, shape, raw):
    return lambda tensors, _: tensors.update({name: [dtype, shape, bytearray(raw)]})


def drop(name):
    return lambda tensors, _: tensors.pop(name)


def flip(name, byte, bit):
    def change(tensors, _):
        tensors[name][2][byte] ^= 1 << bit

    return change


def meta(key, value):
    return lambda _, metadata: metadata.update({key: value})


def no_meta(key):
    return lambda _, metadata: metadata.pop(key)


def both(*changes):
    def change(tensors, metadata):
        for part in changes:
            part(tensors, metadata)

    return change


def test_forging_nothing_gives_a_good_file(load):
    assert load(forged(lambda tensors, metadata: None)) == golden()
    assert load(forged(meta("created_by", "somebody else"))) == golden()


def scale_of(number):
    return put("a.weight.scale", "F16", [1], np.array([number], "<f2").tobytes())


def value_of(number):
    return put("a.bias.value", "F32", [3], np.array([1, 2, number], "<f4").tobytes())


FORGERIES = {
    # -- metadata
    "no metadata": (lambda t, m: m.clear(), FormatError, "format None, expected 'connectome'"),
    "foreign format": (meta("format", "pt"), FormatError, "format 'pt', expected 'connectome'"),
    "later reader": (meta("min_reader", "3"), FormatError, "of format version 3; .* reads 2"),
    "much later": (meta("min_reader", "9" * 400), FormatError, "min_reader is '99"),
    "no reader": (no_meta("min_reader"), FormatError, "min_reader is ''"),
    "negative reader": (meta("min_reader", "-1"), FormatError, "min_reader is '-1'"),
    "fullwidth reader": (meta("min_reader", "\uff11"), FormatError, "min_reader is '\uff11'"),
    "other base": (
        meta("base_fingerprint", "ab" * 32),
        HostMismatchError,
        "abababababab…, the host",
    ),
    "no base": (no_meta("base_fingerprint"), HostMismatchError, "belongs to the base None…"),
    "other digest": (meta("content_digest", "0"), FormatError, "content_digest is '0' .* but '"),
    "no digest": (no_meta("content_digest"), FormatError, "content_digest is None .* but '"),
    "other count": (meta("num_survivors", "21"), FormatError, "num_survivors is '21' .* but '20'"),
    "spelt count": (meta("num_survivors", "020"), FormatError, "num_survivors is '020' .* '20'"),
    "no count": (no_meta("num_survivors"), FormatError, "num_survivors is None"),
    "other weights": (meta("num_weights", "61"), FormatError, "num_weights is '61' .* but '60'"),
    "no weights": (no_meta("num_weights"), FormatError, "num_weights is None"),
    "other density": (meta("density", "0.3"), FormatError, "density is '0.3' .* but '0.33333"),
    "no density": (no_meta("density"), FormatError, "density is None"),
    # -- names
    "no suffix": (put("a.weight", "U8", [1], b"0"), FormatError, "'a.weight'; names end in"),
    "other suffix": (put("a.weight.mask.gap", "U8", [1], b"0"), FormatError, "'a.weight.mask.gap'"),
    "two masks": (
        put("a.weight.mask.zst", "U8", [1], b"0"),
        FormatError,
        r"'a.weight': it has both \.mask and \.mask\.zst",
    ),
    "two signs": (
        put("a.weight.sign.col.zst", "U8", [1], b"0"),
        FormatError,
        r"'a.weight': it has both \.sign and \.sign\.col\.zst",
    ),
    "frame without mask": (
        both(drop("a.weight.mask"), put("a.weight.sign.zst", "U8", [1], b"0")),
        FormatError,
        "but no mask for 'a.weight'",
    ),
    "path": (put("../../x.mask", "U8", [1, 1], b"0"), HostMismatchError, r"wires '\.\./\.\./x'"),
    "empty name": (put(".mask", "U8", [1, 1], b"0"), HostMismatchError, "wires ''"),
    "foreign value": (put("x.value", "F32", [1], b"0000"), HostMismatchError, "wires 'x'"),
    "sign without mask": (drop("a.weight.mask"), FormatError, "but no mask for 'a.weight'"),
    "scale without mask": (
        put("b.bias.scale", "F16", [1], b"00"),
        FormatError,
        "signs or a scale but no mask for 'b.bias'",
    ),
    "nothing": (lambda t, m: t.clear(), FormatError, "has no mask at all"),
    "mask and value": (
        put("b.weight.value", "F32", [2, 9], bytes(72)),
        FormatError,
        "'b.weight' is both in scope and carried whole",
    ),
    # -- masks
    "mask too long": (
        put("a.weight.mask", "U8", [3, 3], bytes(9)),
        FormatError,
        r"'a.weight': the mask is uint8 \(3, 3\); .* \(3, 10\) needs uint8 \(3, 2\)",
    ),
    "mask flat": (put("a.weight.mask", "U8", [6], bytes(6)), FormatError, r"'a.weight': .* \(6,\)"),
    "mask unpacked": (
        put("a.weight.mask", "BOOL", [3, 10], bytes(30)),
        FormatError,
        r"'a.weight': the mask is bool \(3, 10\)",
    ),
    "mask of bool": (put("a.weight.mask", "BOOL", [3, 2], bytes(6)), FormatError, "mask is bool"),
    "mask of I8": (put("a.weight.mask", "I8", [3, 2], bytes(6)), FormatError, "mask is int8"),
    "mask of BF16": (put("a.weight.mask", "BF16", [3, 1], bytes(6)), FormatError, "bfloat16"),
    "mask of F8": (put("a.weight.mask", "F8_E4M3", [3, 2], bytes(6)), FormatError, "not a sound"),
    "mask empty": (put("a.weight.mask", "U8", [3, 0], b""), FormatError, r"uint8 \(3, 0\)"),
    "mask vast": (put("a.weight.mask", "U8", [2**60, 0], b""), FormatError, r"\(11529215"),
    "mask padded": (flip("a.weight.mask", 1, 2), FormatError, "'a.weight': .* mask has pad bits"),
    "mask bit": (flip("c.weight.mask", 0, 0), FormatError, "content_digest is '.*' .* but '"),
    "mask bits": (
        both(flip("a.weight.mask", 0, 0), flip("a.weight.mask", 0, 1)),
        FormatError,
        "content_digest is ",
    ),
    "mask bit, mask only": (flip("b.weight.mask", 0, 1), FormatError, "content_digest is "),
    # -- signs
    "sign too long": (
        put("a.weight.sign", "U8", [3], bytes(3)),
        FormatError,
        r"'a.weight': the signs are uint8 \(3,\); 9 survivors need uint8 \(2,\)",
    ),
    "sign too short": (put("a.weight.sign", "U8", [1], b"0"), FormatError, r"signs .* \(1,\)"),
    "sign square": (put("a.weight.sign", "U8", [1, 2], b"00"), FormatError, r"uint8 \(1, 2\)"),
    "sign of I8": (put("a.weight.sign", "I8", [2], b"00"), FormatError, "'a.weight': .* int8"),
    "sign padded": (flip("a.weight.sign", 1, 1), FormatError, "'a.weight': .* signs have pad"),
    "sign bit": (flip("a.weight.sign", 0, 0), FormatError, "content_digest is "),
    "sign left out": (drop("a.weight.sign"), FormatError, "content_digest is "),
    "sign invented": (put("b.weight.sign", "U8", [1], b"\0"), FormatError, "content_digest is "),
    # -- scales
    "scale NaN": (scale_of(np.nan), FormatError, "'a.weight': .* non-finite"),
    "scale infinite": (scale_of(np.inf), FormatError, "'a.weight': .* non-finite"),
    "scale negative": (scale_of(-1), FormatError, "'a.weight': .* negative"),
    "scale of F32": (put("a.weight.scale", "F32", [1], bytes(4)), FormatError, "scale is float32"),
    "scale too long": (put("a.weight.scale", "F16", [2], bytes(4)), FormatError, r"float16 \(2,\)"),
    "scale altered": (flip("a.weight.scale", 0, 0), FormatError, "content_digest is "),
    "scale left out": (drop("a.weight.scale"), FormatError, "content_digest is "),
    # -- values
    "value longer": (
        put("a.bias.value", "F32", [4], bytes(16)),
        FormatError,
        r"the value of 'a.bias' is float32 \(4,\); expected finite float32 \(3,\)",
    ),
    "value square": (put("a.bias.value", "F32", [1, 3], bytes(12)), FormatError, r"\(1, 3\)"),
    "value of F16": (put("a.bias.value", "F16", [3], bytes(6)), FormatError, "is float16"),
    "value NaN": (value_of(np.nan), FormatError, "'a.bias' .* expected finite"),
    "value infinite": (value_of(-np.inf), FormatError, "'a.bias' .* expected finite"),
    "value altered": (flip("a.bias.value", 3, 0), FormatError, "content_digest is "),
    "value left out": (drop("a.bias.value"), FormatError, "content_digest is "),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_file_is_refused_by_name(load, forgery):
    change, error, message = FORGERIES[forgery]
    with pytest.raises(error, match=message):
        load(forged(change))


def lone(data=b"00", *, name="a.weight.mask", dtype="U8", shape=(2,), span=(0, 2)):
    tensor = {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}
    return framed(json.dumps({name: tensor}), data)


ENTRY = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
BROKEN = {
    "empty": b"",
    "text": b"no connectome at all, but long enough to have a header",
    "pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93",
    "no JSON": framed("{" * 64),
    "deep JSON": framed("[" * 100_000 + "]" * 100_000),
    "no UTF-8": framed(b'{"\xff\xfe":1}'),
    "array": framed("[]"),
    "number": framed("1"),
    "vast header": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "large header": (10**12).to_bytes(8, "little") + b"{}",
    "header beyond the end": (100).to_bytes(8, "little") + b"{}",
    "overlap": framed(f'{{"a.weight.mask":{ENTRY},"b.weight.mask":{ENTRY}}}', b"00"),
    "gap": lone(b"0000", span=(2, 4)),
    "backwards": lone(span=(2, 0)),
    "beyond the end": lone(shape=(9,), span=(0, 9)),
    "other size": lone(shape=(3,)),
    "vast shape": lone(shape=(2**32, 2**32)),
    "vast, then empty": lone(b"", shape=(2**60, 2**60, 0), span=(0, 0)),
    "negative shape": lone(shape=(-2,)),
    "unknown dtype": lone(dtype="X"),
    "metadata of numbers": framed(f'{{"__metadata__":{{"format":1}},"a":{ENTRY}}}', b"00"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_unsound_file_is_refused_without_a_large_allocation(load, kind):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=f"{WEIGHTS_FILE}.*is not a sound safetensors file"):
            load(BROKEN[kind])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MiB


def test_file_is_refused_wherever_it_is_cut_off(load):
    raw = to_bytes(golden())
    start = 8 + len(json_part(raw))
    cuts = {0, 1, 7, 8, 9, start - 1, start, start + 1, len(raw) - 1}
    cuts |= {start + t["data_offsets"][0] for n, t in taken_apart(raw)[0].items() if n[0] != "_"}
    for cut in sorted(cuts | set(range(0, start, 13))):
        with pytest.raises(FormatError, match=rf"\({cut} bytes\) is not a sound safetensors file"):
            load(raw[:cut])


@pytest.mark.parametrize("extra", [b"\0", b" " * 8, b"x" * 10_000])
def test_file_is_refused_when_bytes_are_left_over(load, extra):
    raw = to_bytes(golden())
    with pytest.raises(FormatError, match="is not a sound safetensors file"):
        load(raw + extra)


@pytest.mark.parametrize("key", ["a.weight.mask", "__metadata__", "density"])
def test_file_is_refused_when_a_name_stands_twice(load, key):
    text, data = json_part(to_bytes(golden())).decode(), taken_apart(to_bytes(golden()))[1]
    # The same again, so that nothing but the doubled name is wrong.
    value = json.JSONDecoder().raw_decode(text, text.index(f'"{key}":') + len(key) + 3)[0]
    doubled = f'"{key}":{json.dumps(value)},'
    place = text.index(f'"{key}":')
    with pytest.raises(FormatError, match="is not a sound safetensors file"):
        load(framed(text[:place] + doubled + text[place:], data))


def test_any_flipped_bit_is_refused_or_means_nothing(tmp_path):
    raw, expected = to_bytes(golden()), golden()
    file, harmless = tmp_path / WEIGHTS_FILE, []
    for bit in range(0, 8 * len(raw), 17):  # 425 flips, in turn at every place in a byte
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            loaded = from_file(file, HOST, ConnectomeConfig())
        except ConnectomeError:
            continue
        assert loaded == expected
        harmless.append(bit // 8)
    # What is left is the text of format_version, which readers do not decide by.
    place = raw.index(b"format_version")
    assert all(place <= byte < place + len(b'format_version":"1') for byte in harmless)


def test_other_orientation_is_refused(load):
    with pytest.raises(HostMismatchError, match="a matrix is stored in the other orientation"):
        load(to_bytes(golden()), Host(nn.Linear(9, 2)))


def test_host_of_other_sizes_is_refused(load):
    with pytest.raises(FormatError, match=r"'b.weight': the mask is uint8 \(2, 2\); .*\(2, 17\)"):
        load(to_bytes(golden()), Host(Conv1D(17, 2)))


def test_host_of_another_vocabulary_is_refused_by_its_shapes(tmp_path):
    write(drawn(tiny_model("gpt2")), tmp_path)
    with pytest.raises(
        HostMismatchError, match=r"'transformer\.wte\.weight' is \(50, 32\) in the "
    ):
        read(tmp_path, host=tiny_model("gpt2", vocab_size=50))
    with pytest.raises(HostMismatchError, match=r"\(97, 32\) in the connectome.*vocabularies"):
        read(tmp_path, host=tiny_model("gpt2", vocab_size=50))


def test_host_of_other_sizes_is_refused_when_only_a_fingerprint_is_recorded(tmp_path):
    write(golden().replace(config=ConnectomeConfig()), tmp_path)
    with pytest.raises(
        HostMismatchError, match=r"'b.weight' is \(2, 17\).*\(2, 3\) bytes.*\(2, 2\)"
    ):
        read(tmp_path, host=Host(Conv1D(17, 2)))


def test_damaged_file_is_no_mismatch_when_the_host_is_the_recorded_one(tmp_path):
    model = tiny_model("gpt2")
    connectome = drawn(model)
    write(connectome, tmp_path)
    arrays = to_arrays(connectome)
    arrays["transformer.wte.weight.mask"] = arrays["transformer.wte.weight.mask"][1:]
    with pytest.raises(FormatError, match=r"'transformer.wte.weight': the mask is uint8 \(96, 4\)"):
        from_arrays(arrays, model, connectome.config, file=tmp_path)


def test_deeper_host_is_refused_but_part_of_a_connectome_is_read(tmp_path):
    write(drawn(tiny_model("gpt2", n_layer=1)), tmp_path / "shallow")
    with pytest.raises(HostMismatchError, match="which the recorded architecture has not"):
        read(tmp_path / "shallow", host=tiny_model("gpt2"))
    whole = drawn(tiny_model("gpt2"))
    part = whole.replace({n: e for n, e in whole.items() if ".h.1." not in n})
    write(part, tmp_path / "part")
    assert read(tmp_path / "part", host=tiny_model("gpt2")) == part


def test_host_without_the_parameters_is_refused(load):
    with pytest.raises(HostMismatchError, match=r"wires 'a\.bias', .* and 1 more"):
        load(to_bytes(golden()), nn.Linear(10, 3))


def test_scalar_parameter_is_refused(load):
    host = Host()
    host.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(FormatError, match=r"'temperature': .*shape \(\)"):
        load(forged(put("temperature.mask", "U8", [1, 1], b"\1")), host)


# ---- hostile configs -----------------------------------------------------------------------------


@pytest.fixture
def config_of(tmp_path):
    def read_bytes(raw):
        (tmp_path / CONFIG_FILE).write_bytes(raw)
        return read_config(tmp_path)

    return read_bytes


def config_text(**changes):
    return json.dumps(ConnectomeConfig().to_dict() | changes).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"peft_type": "CONNECTOME", "seed": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "holds a list; expected a JSON object"),
        (b'"CONNECTOME"', "holds a str; expected a JSON object"),
        (b"{}", "of the kind None, expected 'CONNECTOME'"),
        (b'{"peft_type": "LORA"}', "of the kind 'LORA', .*. Load other adapters by PEFT"),
        (b'{"peft_type": ["CONNECTOME"]}', r"of the kind \['CONNECTOME'\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_config_is_refused_when_it_is_none(config_of, raw, message):
    with pytest.raises(FormatError, match=message):
        config_of(raw)


def test_config_is_refused_unread_when_it_is_too_large(tmp_path):
    with (tmp_path / CONFIG_FILE).open("wb") as stream:
        stream.truncate(16 * MiB + 1)
    with pytest.raises(FormatError, match="has 16777217 bytes; expected at most 16777216"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_version": CONFIG_VERSION + 1}, "config_version is 2; this release reads up to 1"),
        ({"config_version": "1"}, r"config_version is '1' \(str\)"),
        ({"config_version": None}, r"config_version is None \(NoneType\)"),
        ({"density": 0.0}, r"density is 0.0; expected a number in \(0, 1\]"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": float("nan")}, "density is nan"),
        ({"density": True}, r"density is True \(bool\)"),
        ({"magnitude": float("inf")}, "magnitude is inf; expected a positive number"),
        ({"magnitude": -0.02}, "magnitude is -0.02"),
        ({"magnitude": 10**400}, "magnitude is 1000.*; expected a positive number"),
        ({"digest": 5}, r"digest is 5 \(int\)"),
        ({"digest": "ab"}, "digest is 'ab'; expected 64 hexadecimal digits"),
        ({"digest": "G" * 64}, "digest is 'GG.*; expected 64 hexadecimal digits"),
        ({"generation": -1}, "generation is -1; expected 0 or more"),
        ({"lineage": {}}, r"lineage is {} \(dict\)"),
        ({"lineage": [1]}, "lineage has 1; expected a list of dict"),
        ({"reset": "sign"}, r"unknown reset 'sign'.*sign_constant"),
        ({"reset": ["keep"]}, r"reset is \['keep'\] \(list\)"),
        ({"wiring": "randm"}, r"unknown wiring 'randm'. Did you mean 'random'\?"),
        ({"wiring": 5}, r"wiring is 5 \(int\)"),
        ({"target_modules": 5}, r"target_modules is 5 \(int\)"),
        ({"target_modules": ["a", 5]}, "target_modules has 5; expected a list of str"),
        ({"exclude_modules": [None]}, "exclude_modules has None; expected a list of"),
        ({"density_pattern": {"a": "x"}}, "density_pattern has 'x' for 'a'; expected a num"),
        ({"density_pattern": {"a": 2.0}}, r"density_pattern has 2\.0 for 'a'"),
        ({"base_config": []}, r"base_config is \[\] \(list\)"),
        ({"architecture": 5}, r"architecture is 5 \(int\)"),
        ({"task_type": "COOKING"}, "task_type is refused .* 'COOKING'"),
    ],
    ids=str,
)
def test_config_is_refused_by_field(config_of, changes, message):
    with pytest.raises(ConnectomeError, match=message):
        config_of(config_text(**changes))


@pytest.mark.parametrize("field", sorted(ConnectomeConfig.__dataclass_fields__))
def test_config_of_wrong_types_is_refused_or_harmless(config_of, field):
    odd = [None, True, -1, 10**30, 0.5, float("nan"), "", "x" * 1000, [], [[]], {}, {"a": []}]
    for value in odd:
        with contextlib.suppress(ConnectomeError):
            config_of(config_text(**{field: value}))


def test_unknown_fields_are_ignored(config_of):
    config = config_of(config_text(of_a_later_release={"x": 1}, seed=5))
    assert config.seed == 5
    assert not hasattr(config, "of_a_later_release")


def test_folder_is_refused_when_a_file_is_missing(tmp_path):
    with pytest.raises(FormatError, match=f"has no {CONFIG_FILE}; it is not a connectome's folder"):
        read(tmp_path / "nowhere", host=HOST)
    write(golden(), tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FormatError, match=f"has no {WEIGHTS_FILE}; the connectome is incomplete"):
        read(tmp_path, host=HOST)


def test_host_is_asked_for_when_the_config_records_none(tmp_path):
    write(golden(), tmp_path)
    with pytest.raises(ConfigError, match=r"records no architecture.*host=model"):
        read(tmp_path)


# ---- the file system -----------------------------------------------------------------------------


@contextlib.contextmanager
def files_no_larger_than(size):
    """Let writes beyond ``size`` bytes fail, as on a full disk; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 4096])
def test_earlier_files_are_whole_when_a_write_fails(gpt2, tmp_path, size):
    first, second = drawn(gpt2, density=0.25), drawn(gpt2, density=0.5)
    write(first, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with (
        files_no_larger_than(size),
        pytest.raises(StorageError, match=rf"cannot write {tmp_path}: File too large\. What was"),
    ):
        write(second, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert read(tmp_path, host=gpt2) == first


def test_no_file_is_changed_when_the_second_write_fails(tmp_path):
    whole, large = tmp_path / "a", tmp_path / "b"
    whole.write_bytes(b"before")
    with files_no_larger_than(4096), pytest.raises(OSError, match="File too large"):
        write_together({whole: b"after", large: bytes(8192)})
    assert whole.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [whole]


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_write_is_refused_when_the_folder_is_a_file(tmp_path, inside):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot write .*file.*Check the path and"):
        write(golden(), tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "mine"


def test_storage_error_tells_what_is_free_when_the_disk_is_full(tmp_path):
    target = tmp_path / "not" / "there"
    with (
        pytest.raises(StorageError, match=r"cannot write .*there: No space.* \d+ bytes are free"),
        refused_writes_named(target),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_only_failed_writes_are_renamed(tmp_path):
    with pytest.raises(ValueError, match="other"), refused_writes_named(tmp_path):
        raise ValueError("other")
    with pytest.raises(StorageError, match="inner"), refused_writes_named(tmp_path):
        raise StorageError("inner")


def test_file_is_replaced_whole(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, b"first, and longer")
    write_atomically(file, b"second")
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_folder_appears_only_when_the_block_ends_well(tmp_path):
    folder = tmp_path / "deep" / "folder"
    for text in ("first", "second"):
        with atomic_folder(folder) as scratch:
            (scratch / "file").write_text(text)
            assert not folder.exists() or (folder / "file").read_text() == "first"
        assert (folder / "file").read_text() == text
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_folder_stays_when_the_block_is_interrupted(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("second")
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as scratch:  # noqa: PT012
        (scratch / "file").write_text("third")
        raise KeyboardInterrupt
    assert (folder / "file").read_text() == "second"
    assert list(folder.parent.iterdir()) == [folder]

"""A second reader, written from docs/FORMAT.md alone, in some 30 lines.

It knows nothing of the package. It takes masks and signs of either codec; scales and values that
travel whole are not for it.
"""

import hashlib
import inspect
import json
import math

import numpy as np
import pytest
import zstandard
from tiny import KINDS, drawn, tiny_model

from hf_connectome.storage import WEIGHTS_FILE, write


def read(path, shapes):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    meta = header.pop("__metadata__")
    parts = {key: raw[start:][slice(*entry["data_offsets"])] for key, entry in header.items()}

    def plane(name, by_rows, by_columns):
        for form, (lines, bits) in (("", by_rows), (".zst", by_rows), (".col.zst", by_columns)):
            if (data := parts.get(name + form)) is not None:
                width = -(-bits // 8)
                data = zstandard.decompress(data, lines * width) if form else data
                packed = np.frombuffer(data, np.uint8).reshape(lines, width)
                unpacked = np.unpackbits(packed, axis=1, count=bits, bitorder="little")
                return unpacked.astype(np.int8), form == ".col.zst"
        return None, False

    found, digest = {}, hashlib.sha256()
    for name in sorted({key.partition(".mask")[0] for key in header if ".mask" in key}):
        size = (shapes[name][0], math.prod(shapes[name][1:]))
        mask, turned = plane(f"{name}.mask", size, size[::-1])
        signs = np.ascontiguousarray(mask.T if turned else mask)
        minus, turned = plane(f"{name}.sign", *[(1, int(mask.sum()))] * 2)
        if minus is not None:
            view = signs.T if turned else signs
            view[view == 1] = 1 - 2 * minus[0]
        bits = np.packbits(signs != 0, axis=1, bitorder="little").tobytes() + b"\0"
        bits += np.packbits(signs[signs != 0] < 0, bitorder="little").tobytes() * (
            minus is not None
        )
        digest.update(f"{name}\0{','.join(map(str, shapes[name]))}\0".encode() + bits)
        found[name] = signs.reshape(shapes[name])
    assert digest.hexdigest() == meta["content_digest"], "altered or damaged"
    return found


@pytest.mark.parametrize("codec", ["plain", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_reader_finds_the_same_wiring(tmp_path, kind, codec):
    connectome = drawn(tiny_model(kind), density=0.1)
    write(connectome, tmp_path, codec=codec)
    found = read(tmp_path / WEIGHTS_FILE, {n: e.shape for n, e in connectome.items()})
    assert found.keys() == connectome.keys()
    for name in connectome:
        assert np.array_equal(found[name], connectome.sign(name).numpy())


def test_second_reader_sees_an_altered_bit(tmp_path):
    connectome = drawn(tiny_model("gpt2"))
    write(connectome, tmp_path)
    raw = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    raw[-1] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(raw)
    with pytest.raises(AssertionError, match="altered or damaged"):
        read(tmp_path / WEIGHTS_FILE, {n: e.shape for n, e in connectome.items()})


def test_second_reader_is_short():
    body = [line for line in inspect.getsource(read).splitlines() if line.strip()]
    assert len(body) <= 35

"""Damaged and hostile connectome files, each made from its number alone.

``mutant(n)`` is the same on every machine, so a failing one is told by its number.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import torch
import zstandard
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.storage import to_bytes


class Host(nn.Module):
    """A matrix for every form that a plane can have in the file."""

    def __init__(self):
        super().__init__()
        self.noise = nn.Linear(37, 24)
        self.rows = nn.Linear(160, 33)
        self.columns = Conv1D(120, 90)
        self.bare = nn.Embedding(61, 40)


HOST = Host()


def sound() -> Connectome:
    """Return a connectome of which zstd stores the planes in all of their forms."""
    random_numbers = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=random_numbers)

    by_row = torch.where(draw(33, 1) < 0.5, 1.0, -1.0) * (draw(33, 160) + 0.1)
    by_column = torch.where(draw(1, 120) < 0.5, 1.0, -1.0) * (draw(90, 120) + 0.1)
    entries = {
        "noise.weight": SignedMask.pack(
            draw(24, 37) < 0.3,
            draw(24, 37) - 0.5,
            scale=draw(24),
            orientation="out_in",
        ),
        "rows.weight": SignedMask.pack(
            draw(33, 160) < draw(33, 1).round() * 0.9 + 0.05, by_row, orientation="out_in"
        ),
        "columns.weight": SignedMask.pack(
            draw(90, 120) < draw(1, 120).round() * 0.9 + 0.05, by_column, orientation="in_out"
        ),
        "bare.weight": SignedMask.pack(draw(61, 1).expand(61, 40) < 0.5, orientation="embedding"),
    }
    values = {"noise.bias": draw(24) - 0.5}
    return Connectome(entries, values=values, config=ConnectomeConfig())


SOUND = sound()
FILES = {codec: to_bytes(SOUND, codec=codec) for codec in ("plain", "zstd")}


# ---- taking a file apart -------------------------------------------------------------------------


@dataclass
class Tensor:
    """A tensor of a file, with a dtype and shape that need not be true."""

    dtype: str
    shape: list
    data: bytes


def taken_apart(raw):
    """Return (tensors by name, metadata)."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    metadata = header.pop("__metadata__")
    first = {name: start + t["data_offsets"][0] for name, t in header.items()}
    last = {name: start + t["data_offsets"][1] for name, t in header.items()}
    return {
        name: Tensor(t["dtype"], t["shape"], raw[first[name] : last[name]])
        for name, t in header.items()
    }, metadata


def framed(header, data):
    """Put the header's length before it; a header that is no bytes becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def put_together(tensors, metadata):
    """Write a file whose offsets are sound, whatever its tensors are."""
    header, data = {"__metadata__": metadata}, b""
    for name, t in tensors.items():
        span = [len(data), len(data) + len(t.data)]
        header[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": span}
        data += t.data
    return framed(header, data)


# ---- frames --------------------------------------------------------------------------------------

MAGIC = b"\x28\xb5\x2f\xfd"


def frame(
    content, *, size=None, window=None, dictionary=0, checksum=b"", run=0, reserved=0, last=True
):
    """Write a zstd frame by hand (RFC 8878).

    Args:
        content: of raw blocks.
        size: what the frame declares; None: nothing.
        window: exponent of the window, from 10 on; None: as large as the content.
        dictionary: id, if not 0.
        checksum: the four bytes at the end, true or not.
        run: how many blocks of 128 KiB zeros follow the content.
        reserved: the bit that has to be 0.
        last: whether the last block says that it is.
    """
    single = window is None and size is not None
    descriptor = (3 if size is not None else 0) << 6 | single << 5 | reserved << 3
    descriptor |= bool(checksum) << 2 | (3 if dictionary else 0)
    head = MAGIC + bytes([descriptor])
    head += b"" if single else bytes([((window or 20) - 10) << 3])
    head += dictionary.to_bytes(4, "little") if dictionary else b""
    head += b"" if size is None else size.to_bytes(8, "little")
    blocks = [(0, content[i : i + 65536]) for i in range(0, len(content), 65536)] or [(0, b"")]
    blocks += [(1, b"\0")] * run
    body = b""
    for number, (kind, data) in enumerate(blocks):
        count = 1 << 17 if kind == 1 else len(data)
        final = last and number == len(blocks) - 1
        body += (final | kind << 1 | count << 3).to_bytes(3, "little") + data
    return head + body + checksum


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
HUGE = 1 << 50


def altered_frame(rng, good):
    """Return a frame that stands for ``good``, nearly all of them hostile."""
    content = zstandard.ZstdDecompressor().decompress(good)
    n = len(content)
    makers = {
        "size huge": lambda: frame(content, size=HUGE),
        "size huge, window small": lambda: frame(content, size=HUGE, window=17),
        "size wrong": lambda: frame(content, size=max(0, n + rng.choice([-1, 1, 8, n]))),
        "size absent": lambda: frame(content),
        "window huge": lambda: frame(content, size=n, window=41),
        "window large": lambda: frame(content, size=n, window=rng.randrange(24, 42)),
        "content longer": lambda: frame(content + b"\0", size=n),
        "content much longer": lambda: frame(content, size=n, run=4096),
        "content huge": lambda: frame(b"", size=1 << 29, run=4096),
        "content huge, size true": lambda: frame(b"", size=n, run=4096, window=20),
        "content shorter": lambda: frame(content[:-1], size=n),
        "no last block": lambda: frame(content, size=n, last=False),
        "dictionary": lambda: frame(content, size=n, dictionary=rng.randrange(1, 1 << 32)),
        "checksum": lambda: frame(content, size=n, checksum=rng.randbytes(4)),
        "reserved bit": lambda: frame(content, size=n, reserved=1),
        "trailing": lambda: good + rng.randbytes(rng.randrange(1, 9)),
        "trailing zeros": lambda: good + bytes(rng.randrange(1, 9)),
        "twice": lambda: good + good,
        "two halves": lambda: (
            frame(content[: n // 2], size=n // 2) + frame(content[n // 2 :], size=n - n // 2)
        ),
        "skippable first": lambda: SKIPPABLE + good,
        "skippable last": lambda: good + SKIPPABLE,
        "skippable only": lambda: SKIPPABLE,
        "empty": lambda: b"",
        "empty frame": lambda: frame(b"", size=0),
        "empty frame, then more": lambda: frame(b"", size=0) + good,
        "cut": lambda: good[: rng.randrange(len(good))],
        "flipped": lambda: flipped(rng, good, 1),
        "noise": lambda: MAGIC + rng.randbytes(len(good)),
        "magic only": lambda: MAGIC,
        "no frame": lambda: content,
        # Sound, so the file has to be taken for what it is.
        "other level": lambda: zstandard.ZstdCompressor(level=rng.randrange(1, 12)).compress(
            content
        ),
        "with checksum": lambda: zstandard.ZstdCompressor(write_checksum=True).compress(content),
        "by hand": lambda: frame(content, size=n),
    }
    return makers[rng.choice(list(makers))]()


# ---- mutations -----------------------------------------------------------------------------------


def flipped(rng, raw, most=8):
    """Change up to ``most`` bytes."""
    damaged = bytearray(raw)
    for _ in range(rng.randrange(1, most + 1)):
        place = rng.randrange(len(damaged))
        damaged[place] = rng.choice([damaged[place] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(damaged)


def flip_bytes(rng, raw):
    return flipped(rng, raw)


def flip_header(rng, raw):
    start = 8 + int.from_bytes(raw[:8], "little")
    return flipped(rng, raw[:start]) + raw[start:]


def flip_data(rng, raw):
    start = 8 + int.from_bytes(raw[:8], "little")
    return raw[:start] + flipped(rng, raw[start:])


def cut_and_paste(rng, raw):
    first, last = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    return rng.choice(
        [
            raw[:first],
            raw[first:],
            raw[:first] + raw[last:],
            raw[:last] + raw[first:],
            raw[:first] + rng.randbytes(last - first) + raw[last:],
            raw + raw[first:last],
        ]
    )


NUMBERS = (-1, 0, 1, 2, 3, 7, 8, 255, 2**31, 2**32, 2**53 + 1, 2**63, 2**64 - 1, 10**30, 0.5, 1e308)
ODD = (None, True, "", "x", [], [[]], {}, [0], {"a": []}, float("nan"), *NUMBERS)
DTYPES = ("U8", "I8", "BOOL", "F16", "BF16", "F32", "F64", "U64", "F8_E4M3", "F4", "u8", "", "X")
SUFFIXES = (".mask", ".sign", ".mask.zst", ".sign.zst", ".mask.col.zst", ".sign.col.zst", ".scale")
SUFFIXES += (".value", ".zst", ".col.zst", ".gap.zst", ".mask.zst.zst", "", ".mask.col")
NAMES = ("noise.weight", "rows.weight", "columns.weight", "bare.weight", "noise.bias", "", "../x")
NAMES += ("rows.weight.mask", "\0", "\ud800", "Ω" * 99, "__metadata__", "x" * 9999)


def edit_header(rng, raw):
    """Alter one thing in the header; the data stay."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    name = rng.choice([key for key in header if key != "__metadata__"])
    field = rng.choice(["dtype", "shape", "data_offsets"])
    what = rng.randrange(8)
    if what == 0:
        header[name]["dtype"] = rng.choice(DTYPES)
    elif what == 1:
        header[name]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
    elif what == 2:
        header[name]["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
    elif what == 3:
        header[name][field] = rng.choice(ODD)
    elif what == 4:
        header[rng.choice(NAMES) + rng.choice(SUFFIXES)] = header.pop(name)
    elif what == 5:
        other = rng.choice([key for key in header if key != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    elif what == 6:
        header[name] = rng.choice(ODD)
    else:
        key = rng.choice(list(header["__metadata__"]))
        odd = rng.choice([*map(str, ODD), "9" * 5000, "٣", "1 ", *ODD])
        header["__metadata__"][key] = odd
    return framed(header, raw[start:])


def edit_planes(rng, raw):
    """Alter tensors; the header fits what they are then."""
    tensors, metadata = taken_apart(raw)
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice(list(tensors))
        t = tensors[name]
        what = rng.randrange(7)
        if what == 0 and t.data:
            t.data = flipped(rng, t.data, 3)
        elif what == 1:
            data = rng.choice([t.data[:-1], t.data + b"\0", t.data * 2, b"", rng.randbytes(9)])
            tensors[name] = Tensor("U8", [len(data)], data)
        elif what == 2:
            tensors.pop(name)
            if not tensors:
                break
        elif what == 3:
            tensors[rng.choice(NAMES[:-1]) + rng.choice(SUFFIXES)] = t
        elif what == 4:
            t.shape = rng.choice([[len(t.data)], [1, *t.shape], t.shape[::-1], [*t.shape, 1]])
        elif what == 5:
            other = tensors[rng.choice(list(tensors))]
            t.data, other.data = other.data, t.data
            t.shape, other.shape = other.shape, t.shape
        else:
            t.data = rng.choice([bytes(len(t.data)), b"\xff" * len(t.data)])
    return put_together(tensors, metadata)


def edit_frames(rng, raw):
    """Put a hostile frame, or another sound one, in the place of a plane."""
    del raw
    tensors, metadata = taken_apart(FILES["zstd"])
    name = rng.choice([key for key in tensors if key.endswith(".zst")])
    data = altered_frame(rng, tensors[name].data)
    tensors[name] = Tensor("U8", [len(data)], data)
    return put_together(tensors, metadata)


def rename_frames(rng, raw):
    """Give a plane the name of another form, as it is or beside itself, or recode it so."""
    tensors, metadata = taken_apart(raw)
    name = rng.choice([key for key in tensors if ".mask" in key or ".sign" in key])
    for kind in (".mask", ".sign"):
        if kind in name:
            parameter, part = name[: name.index(kind)], kind
    other = parameter + part + rng.choice(["", ".zst", ".col.zst"])
    t = tensors[name]
    if rng.random() < 0.5:
        del tensors[name]
    if rng.random() < 0.5 and not name.endswith(".zst"):
        data = zstandard.ZstdCompressor().compress(t.data)
        t = Tensor("U8", [len(data)], data)
    tensors[other] = t
    return put_together(tensors, metadata)


KINDS = {
    kind.__name__: kind
    for kind in (
        flip_bytes,
        flip_header,
        flip_data,
        cut_and_paste,
        edit_header,
        edit_planes,
        edit_frames,
        rename_frames,
    )
}


def mutant(number):
    """Return (kind, bytes) of a damaged file."""
    rng = random.Random(number)
    kind = list(KINDS)[number % len(KINDS)]
    return kind, KINDS[kind](rng, FILES["zstd" if rng.random() < 0.6 else "plain"])

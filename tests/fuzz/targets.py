"""What the coverage-guided run feeds with bytes; a file that breaks it is a bug.

The first byte chooses the target. Each one ends in an error of the package's own or in a connectome
of the recorded digest; nothing else may be raised.
"""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from fuzz import mutants

from hf_connectome import context
from hf_connectome.codecs import MASK_FORMS, SIGN_FORMS, decode
from hf_connectome.config import ConnectomeConfig
from hf_connectome.errors import ConnectomeError
from hf_connectome.signed_mask import SignedMask
from hf_connectome.storage import CONFIG_FILE, from_file, read_config

TENSORS, METADATA = mutants.taken_apart(mutants.FILES["zstd"])
NAMES = sorted(TENSORS)
FORMS = list(itertools.product(MASK_FORMS, SIGN_FORMS))
CODED = find_spec("constriction") is not None
"""Whether streams of the codec context can be read here."""


@cache
def folder() -> Path:
    """Return a folder for the run, in memory where there is such a place: a disk is too slow."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def whole_file(data: bytes) -> None:
    """Read the bytes as a file."""
    file = folder() / "file"
    file.write_bytes(data)
    found = from_file(file, mutants.HOST, ConnectomeConfig())
    # Given time, the fuzzer guesses the digest of another connectome from the comparison.
    assert found == mutants.SOUND or mutants.SOUND.digest.encode() not in data


def one_tensor(data: bytes) -> None:
    """Put the bytes in the place of one tensor of a sound file."""
    name = NAMES[data[0] % len(NAMES)]
    old = TENSORS[name]
    same = len(data) - 1 == len(old.data) or old.dtype != "U8"
    shape = old.shape if same else [len(data) - 1]
    new = TENSORS | {name: mutants.Tensor(old.dtype, shape, data[1:])}
    whole_file(mutants.put_together(new, METADATA))


def two_planes(data: bytes) -> None:
    """Decode the bytes as mask and signs, where no digest vouches for them."""
    mask, sign = FORMS[data[0] % len(FORMS)]
    rows, columns, cut = data[1] % 40 + 1, data[2] % 40 + 1, 4 + data[3]
    planes = {mask: data[4:cut], sign: data[cut:]}
    arrays = {form: np.frombuffer(plane, np.uint8) for form, plane in planes.items()}
    width = -(-columns // 8)
    if mask == MASK_FORMS[0] and arrays[mask].size == rows * width:
        arrays[mask] = arrays[mask].reshape(rows, width)
    mask_bits, sign_bits = decode(arrays, (rows, columns))
    entry = SignedMask(shape=(rows, columns), mask_bits=mask_bits, sign_bits=sign_bits)
    again = SignedMask.pack(entry.mask(), entry.sign())
    assert again.mask_bits.tobytes() == mask_bits.tobytes()
    assert again.sign_bits.tobytes() == sign_bits.tobytes()


def config(data: bytes) -> None:
    """Read the bytes as a config."""
    (folder() / CONFIG_FILE).write_bytes(data)
    read_config(folder())


TARGETS = (whole_file, one_tensor, two_planes, config)


def run(data: bytes) -> bool:
    """Run the target that the first byte names; return whether it took the rest for sound."""
    if len(data) < 8:  # below that a target cannot even read its settings
        return False
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except ConnectomeError:
        return False
    return True


def starts() -> list[bytes]:
    """Return sound input for each target."""
    files = [bytes([0]) + raw for raw in mutants.FILES.values()]
    frames = [bytes([1, i]) + TENSORS[name].data for i, name in enumerate(NAMES)]
    planes, streams = [], [b"", b""]
    if CODED:
        mask = np.broadcast_to(np.arange(8) < 4, (5, 8))
        streams = [context.encode(mask, mask | True), context.encode(mask & (mask > 1), mask)]
        streams = [stream.tobytes() for stream in streams]
    for number, form in enumerate(FORMS):
        if not CODED and any(suffix.endswith(".ctx") for suffix in form):
            continue
        # Five rows of four survivors among eight columns.
        across = form[0].endswith(".col.zst")
        pair = [b"\x1f" * 4 + bytes(4) if across else b"\x0f" * 5, b"\x01\x02\x03"]
        for i, suffix in enumerate(form):
            if suffix.endswith(".zst"):
                pair[i] = mutants.frame(pair[i], size=len(pair[i]))
            elif suffix.endswith(".ctx"):
                pair[i] = streams[i]
        planes.append(bytes([2, number, 4, 7, len(pair[0])]) + b"".join(pair))
    return [
        *files,
        *frames,
        *planes,
        bytes([3]) + json.dumps(ConnectomeConfig().to_dict()).encode(),
    ]

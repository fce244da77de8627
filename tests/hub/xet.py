"""The Xet store: how huggingface_hub uploads large files unless HF_HUB_DISABLE_XET=1.

hf_xet takes ``local://folder`` for the address of its store and then keeps chunks, blocks and
shards there, by the same code as on the network. The protocol of the network store is not modelled.
"""

from __future__ import annotations

import struct
import tempfile
import time
from pathlib import Path

_ENTRY = 48
_END = b"\xff" * 32
_HAS_SHA256, _HAS_PROOF = 1 << 30, 1 << 31


def stored_files(store: Path) -> dict[str, tuple[str, int]]:
    """Return SHA-256 -> (Xet hash, size) of every file that a client put into the store."""
    found: dict[str, tuple[str, int]] = {}
    for shard in store.rglob("shards/*.mdb"):
        raw, at = shard.read_bytes(), _ENTRY  # the header is as long as an entry
        while raw[at : at + 32] != _END:
            xet_hash = _hex(raw[at : at + 32])
            flags, num_segments = struct.unpack_from("<II", raw, at + 32)
            segments = range(at + _ENTRY, at + _ENTRY * (1 + num_segments), _ENTRY)
            size = sum(struct.unpack_from("<I", raw, segment + 36)[0] for segment in segments)
            at += _ENTRY * (1 + num_segments * (2 if flags & _HAS_PROOF else 1))
            if flags & _HAS_SHA256:
                found[_hex(raw[at : at + 32])] = xet_hash, size
                at += _ENTRY
    return found


def read_file(store: Path, xet_hash: str, size: int) -> bytes:
    """Read a file from the store, as the Hub does for clients without Xet."""
    import hf_xet

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "file")
        session = hf_xet.XetSession()
        with session.new_file_download_group(
            endpoint=address(store), token="any", token_expiry_unix_secs=int(time.time()) + 3600
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))
        return target.read_bytes()


def address(store: Path) -> str:
    return f"local://{store}"


def _hex(raw: bytes) -> str:
    """Xet writes a hash as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))

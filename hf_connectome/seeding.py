"""One generator per parameter, so that equal shapes never get equal draws."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, name: str, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded by ``hash(seed, name, purpose)``.

    The hash is SHA-256, not Python's (which changes from process to process). Draws therefore
    depend on no parameter order, device or rank.
    """
    text = "\0".join(map(str, (seed, name, *purpose)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

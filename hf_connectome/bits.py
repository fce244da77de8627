"""Packed bits, least significant first: transposed, spread over the ones of a mask, gathered there.

Rows start at a byte. Nothing here knows what the bits mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]

_CHUNK = 1 << 17
"""Bytes of a mask that are worked on at a time, so that the steps stay in the cache."""


def transposed(bits: Bits, columns: int) -> Bits:
    """Return ``(columns, ceil(rows / 8))``: bit r of its row c is bit c of row r of ``bits``.

    Eight bytes, one of each of eight rows, are an 8 x 8 matrix of bits that three swaps transpose.
    """
    rows, width = bits.shape
    padded = np.zeros((-(-rows // 8) * 8, width), np.uint8)
    padded[:rows] = bits
    blocks = np.ascontiguousarray(padded.reshape(-1, 8, width).transpose(0, 2, 1))
    words = blocks.view("<u8")[..., 0].astype(np.uint64)
    for shift, pattern in (
        (7, 0x00AA00AA00AA00AA),
        (14, 0x0000CCCC0000CCCC),
        (28, 0x00000000F0F0F0F0),
    ):
        swap = (words ^ (words >> np.uint64(shift))) & np.uint64(pattern)
        words ^= swap ^ (swap << np.uint64(shift))
    blocks = words.astype("<u8")[..., None].view(np.uint8)
    return np.ascontiguousarray(blocks.transpose(1, 2, 0)).reshape(width * 8, -1)[:columns]


def spread(stream: Bits, mask: Bits) -> Bits:
    """Put the bits of a stream on the ones of a mask, in order; the rest is 0."""
    # 16 bits from each byte on: wherever a byte of the mask begins to read, it finds its 8.
    padded = np.concatenate([stream, np.zeros(2, np.uint8)]).astype(np.uint16)
    ahead = padded[:-1] | padded[1:] << 8
    spread = np.empty(mask.size, np.uint8)
    for part, chunk, _, starts in _chunks(mask):
        bits = (ahead[starts >> 3] >> (starts & 7).astype(np.uint16)) & 0xFF
        spread[part : part + chunk.size] = _table_of_spread()[_pair(chunk, bits)]
    return spread.reshape(mask.shape)


def gathered(plane: Bits, mask: Bits, num_ones: int) -> Bits:
    """Return the bits of a plane where a mask is 1, in order, as a stream."""
    words = np.zeros(num_ones // 64 + 2, np.uint64)
    flat = plane.reshape(-1)
    for part, chunk, counts, starts in _chunks(mask):
        values = _table_of_gather()[_pair(chunk, flat[part : part + chunk.size])]
        begin = starts[::8].astype(np.uint64)
        joined, sizes = (np.pad(x.astype(np.uint64), (0, -x.size % 8)) for x in (values, counts))
        for _ in range(3):  # bytes join to words of up to 64 bits
            joined = joined[::2] | joined[1::2] << sizes[::2]
            sizes = sizes[::2] + sizes[1::2]
        word, shift = (begin >> np.uint64(6)).astype(np.intp), begin & np.uint64(63)
        # No two have a bit in common, so that sums are unions.
        np.add.at(words, word, joined << shift)
        np.add.at(words, word + 1, joined >> np.uint64(1) >> np.uint64(63) - shift)
    return words.astype("<u8").view(np.uint8)[: -(-num_ones // 8)]


def _chunks(mask: Bits) -> Iterator[tuple[int, Bits, Bits, NDArray[np.int64]]]:
    """Give (first byte, bytes of the mask, ones in each, ones before each)."""
    flat, before = np.ascontiguousarray(mask).reshape(-1), 0
    for first in range(0, flat.size, _CHUNK):
        chunk = flat[first : first + _CHUNK]
        counts = np.bitwise_count(chunk)
        ends = before + np.cumsum(counts, dtype=np.int64)
        before = int(ends[-1])
        yield first, chunk, counts, ends - counts


def _pair(mask: Bits, bits: NDArray[Any]) -> NDArray[np.uint16]:
    pair: NDArray[np.uint16] = mask.astype(np.uint16) << 8 | bits
    return pair


@cache
def _table_of_spread() -> Bits:
    """For (mask, bits) as two bytes of an index: the bits put on the ones of the mask."""
    return _table(lambda bit, rank, bits: (bits >> rank & 1) << bit)


@cache
def _table_of_gather() -> Bits:
    """For (mask, bits) as two bytes of an index: the bits where the mask is 1, side by side."""
    return _table(lambda bit, rank, bits: (bits >> bit & 1) << rank)


def _table(moved: Any) -> Bits:
    mask, bits = np.divmod(np.arange(1 << 16), 256)
    table, rank = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    for bit in range(8):
        one = mask >> bit & 1
        table |= one * moved(bit, rank, bits)
        rank += one
    return table.astype(np.uint8)

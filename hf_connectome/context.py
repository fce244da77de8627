"""A plane of bits, coded by how dense its rows and columns have been so far; files are codecs.py's.

Whole numbers throughout, so that every machine finds the same chances (docs/FORMAT.md, section 3).
The arithmetic coder is constriction's, of the extra ``context``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]
    Plane = NDArray[np.bool_]
    Chances = NDArray[np.int64]
    Tile = tuple[slice, slice]

MOST_FROM_A_BYTE = 1 << 18
"""The likeliest bit has a chance of 32767 in 32768, so a byte holds at most 181,705 of them."""
_HEAD = 2
"""Bytes before the words of the coder: the strengths of rows and of columns."""
_MOST_STRENGTH = 15
_UNIT_BITS, _CHANCE_BITS = 16, 15
_UNIT, _CHANCE_UNIT = 1 << _UNIT_BITS, 1 << _CHANCE_BITS
_FIRST_SPAN, _GROWTH, _LAST_SPAN = 4, 4, 512
"""A tile has 4 rows at first, a quarter of what is above it later, 512 at most; columns likewise"""
_END = 1
"""State of the coder before the last bit; a stream that was cut or altered ends in another."""


def check_installed() -> None:
    """Refuse the codec where its coder is missing.

    Raises:
        ConfigError: with the extra that has it.
    """
    _constriction()


def encode(ones: Plane, places: Plane) -> Bits | None:
    """Return the stream of the bits at ``places``, None if they are too many for its size.

    Args:
        ones: ``(R, C)`` bool.
        places: ``(R, C)`` bool: what the reader knows to be coded; the rest of ``ones`` is 0.
    """
    stream = _constriction().stream
    strengths = _strength(ones, places, axis=1), _strength(ones, places, axis=0)
    tiles: list[tuple[Plane, NDArray[np.uint16]]] = []

    def note(tile: Tile, chances: Chances) -> Plane:
        found = ones[tile][places[tile]]
        tiles.append((found, chances.astype(np.uint16)))
        return found

    _walk(places, strengths, note)
    coder, model = (
        stream.stack.AnsCoder(np.array([_END], np.uint32)),
        stream.model.Bernoulli(perfect=False),
    )
    for found, chances in reversed(tiles):  # the last to be read goes in first
        coder.encode_reverse(found.astype(np.int32), model, chances / _CHANCE_UNIT)
    words = coder.get_compressed().astype("<u4").view(np.uint8)
    packed: Bits = np.concatenate([np.array(strengths, np.uint8), words])
    return packed if np.count_nonzero(places) <= MOST_FROM_A_BYTE * packed.size else None


def decode(packed: Bits, places: Plane, num_bits: int) -> Plane:
    """Return the ``(R, C)`` bits that a stream holds at the ``num_bits`` places; the rest is 0.

    Raises:
        ConfigError: the coder is not installed.
        FormatError: the stream is cut, altered, or cannot hold so many bits.
    """
    stream, (strengths, words) = _constriction().stream, _taken_apart(packed)
    if num_bits > MOST_FROM_A_BYTE * packed.size:
        raise FormatError(
            f"the stream has {packed.size} bytes, which cannot hold more than "
            f"{MOST_FROM_A_BYTE * packed.size} bits; the host asks for {num_bits}."
        )
    coder, model = stream.stack.AnsCoder(words), stream.model.Bernoulli(perfect=False)
    ones = np.zeros(places.shape, np.bool_)

    def read(tile: Tile, chances: Chances) -> Plane:
        found: Plane = coder.decode(model, chances / _CHANCE_UNIT).astype(np.bool_)
        ones[tile][places[tile]] = found
        return found

    _walk(places, strengths, read)
    if coder.get_compressed().tolist() != [_END]:
        raise FormatError("the stream does not end where its bits do; it was cut or altered.")
    return ones


def _taken_apart(packed: Bits) -> tuple[tuple[int, int], NDArray[np.uint32]]:
    if packed.size <= _HEAD or (packed.size - _HEAD) % 4:
        raise FormatError(f"the stream has {packed.size} bytes; expected 2 and words of 4.")
    rows, columns = (int(byte) for byte in packed[:_HEAD])
    if max(rows, columns) > _MOST_STRENGTH:
        raise FormatError(
            f"the stream has the strengths {rows} and {columns}; expected 0 to {_MOST_STRENGTH}."
        )
    words = packed[_HEAD:].view("<u4").astype(np.uint32)
    if not words[-1]:
        raise FormatError("the stream ends in a word of zeros, which no coder writes.")
    return (rows, columns), words


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ConfigError(
            "the codec 'context' needs the package constriction, which is not installed. "
            "Run: pip install 'hf_connectome[context]'"
        ) from error
    return constriction


# ---- the model -----------------------------------------------------------------------------------


def _walk(
    places: Plane, strengths: tuple[int, int], exchange: Callable[[Tile, Chances], Plane]
) -> None:
    """Go through the tiles: hand out the chances of each, and learn from the bits that come back.

    Tiles come column span by column span, each from the top; the bits of one in row-major order.
    """
    num_rows, num_columns = places.shape
    row_ones, row_seen = np.zeros((2, num_rows), np.int64)
    all_ones = all_seen = 0
    for columns in _spans(num_columns):
        column_ones, column_seen = np.zeros((2, columns.stop - columns.start), np.int64)
        for rows in _spans(num_rows):
            here = places[rows, columns]
            mean = (2 * all_ones + 1) * _UNIT // (2 * all_seen + 2)
            mean = min(max(mean, 1), _UNIT - 1)
            down = _estimate(row_ones[rows], row_seen[rows], mean, strengths[0])
            across = _estimate(column_ones, column_seen, mean, strengths[1])
            found = np.zeros(here.shape, np.bool_)
            found[here] = exchange((rows, columns), _chances(down, across, mean)[here])
            row_ones[rows] += found.sum(axis=1)
            row_seen[rows] += here.sum(axis=1)
            column_ones += found.sum(axis=0)
            column_seen += here.sum(axis=0)
            all_ones += int(np.count_nonzero(found))
            all_seen += int(np.count_nonzero(here))


def _spans(size: int) -> Iterator[slice]:
    start = 0
    while start < size:
        stop = min(size, start + min(_LAST_SPAN, max(_FIRST_SPAN, start // _GROWTH)))
        yield slice(start, stop)
        start = stop


def _estimate(ones: Chances, seen: Chances, mean: int, strength: int) -> Chances:
    """Return the share of ones, as if 2 ** strength more bits had been seen at the mean."""
    weight = 1 << strength
    share: Chances = (ones * _UNIT + weight * mean) // (seen + weight)
    return np.clip(share, 1, _UNIT - 1)


def _chances(down: Chances, across: Chances, mean: int) -> Chances:
    """Return the chance of a 1: the odds of the row times those of the column by the mean's."""
    one = np.multiply.outer(down * (_UNIT - mean), across)
    zero = np.multiply.outer((_UNIT - down) * mean, _UNIT - across)
    chances: Chances = (one << _CHANCE_BITS) // (one + zero)
    return np.clip(chances, 1, _CHANCE_UNIT - 1)


def _strength(ones: Plane, places: Plane, *, axis: int) -> int:
    """Return how far to trust the mean over a line, by how much more than by chance lines differ.

    Lines of beta-distributed density have a variance of (1 + (n - 1) / (m + 1)) times the binomial
    one; 2 ** strength is about m. Ours: fitted in whole numbers, so that all machines write alike.
    """
    num_ones = [int(n) for n in (ones & places).sum(axis=axis)]
    num_seen = [int(n) for n in places.sum(axis=axis)]
    total, seen = sum(num_ones), sum(num_seen)
    spread = total * (seen - total)
    pairs = spread * sum(n * (n - 1) for n in num_seen)
    squares = sum((k * seen - n * total) ** 2 for k, n in zip(num_ones, num_seen, strict=True))
    excess = squares - spread * seen
    if excess <= 0:
        return _MOST_STRENGTH
    return min(_MOST_STRENGTH, (max(0, pairs - excess) // excess).bit_length())

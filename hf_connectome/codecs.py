"""How the two planes of an entry stand in the file: plain, or as the smallest zstd frame.

A tensor's name says its codec and scan (``.mask``, ``.mask.zst``, ``.mask.col.zst``). Frames of
strangers are looked at before they are opened. Names of parameters are arrays.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from hf_connectome.errors import FormatError, UnknownNameError, did_you_mean
from hf_connectome.signed_mask import SignedMask, check_dimensions, check_pad_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]

CODECS = ("plain", "zstd")
MASK_FORMS = (".mask", ".mask.zst", ".mask.col.zst")
SIGN_FORMS = (".sign", ".sign.zst", ".sign.col.zst")
"""Plain; a frame of the same bytes; a frame of the column scan."""

_LEVEL = 3
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW = 8 << 20
"""What every zstd decoder supports (RFC 8878, section 3.1.1.1.2)."""
_MOST_FROM_A_BYTE = 1 << 15
"""A block gives at most 128 KiB and takes at least 4 bytes (RFC 8878, section 3.1.1.2)."""
_CHUNK = 1 << 17
"""Bytes of a mask that are worked on at a time, so that the steps stay in the cache."""


def check_codec(codec: str) -> None:
    """Refuse a codec that does not exist.

    Raises:
        UnknownNameError: with the codecs that there are.
    """
    if codec not in CODECS:
        raise UnknownNameError(f"unknown codec {codec!r}. {did_you_mean(str(codec), CODECS)}")


# ---- writing -------------------------------------------------------------------------------------


def encode(entry: SignedMask, codec: str) -> dict[str, Bits]:
    """Return the planes of an entry by the suffixes that they have in the file.

    With ``zstd`` each plane takes its smallest form, the plainer one on a tie; a plane that does
    not get smaller stays plain.
    """
    check_codec(codec)
    if codec == "plain":
        plain = {MASK_FORMS[0]: entry.mask_bits}
        return plain if entry.sign_bits is None else plain | {SIGN_FORMS[0]: entry.sign_bits}
    compressor = zstandard.ZstdCompressor(level=_LEVEL)  # one thread: its bytes do not vary

    def smallest(forms: tuple[str, ...], row: Bits, column: Bits) -> tuple[str, Bits]:
        frames = [
            np.frombuffer(compressor.compress(plane.data), np.uint8) for plane in (row, column)
        ]
        return min(zip(forms, (row, *frames), strict=True), key=lambda form: form[1].size)

    across = transposed(entry.mask_bits, entry.columns)
    planes = dict([smallest(MASK_FORMS, entry.mask_bits, across)])
    if entry.sign_bits is not None:
        negative = transposed(_spread(entry.sign_bits, entry.mask_bits), entry.columns)
        column = _gathered(negative, across, entry.num_survivors)
        planes |= dict([smallest(SIGN_FORMS, entry.sign_bits, column)])
    return planes


# ---- reading -------------------------------------------------------------------------------------


def decode(
    tensors: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return mask and sign bits (None: mask only) from the tensors of one parameter.

    What is plain is passed on unlooked at: SignedMask checks the planes that come out.

    Args:
        tensors: by suffix; others than masks and signs are passed over.
        shape: of the parameter in the host. No size is taken from the file.

    Raises:
        FormatError: a plane stands there twice, or its frame is not what the shape asks for.
    """
    check_dimensions(shape)
    rows, columns = shape[0], prod(shape[1:])
    form = _only(tensors, MASK_FORMS)
    assert form is not None, "arrays.py asks only for parameters that have a mask"
    mask = tensors[form]
    if form == MASK_FORMS[1]:
        mask = _opened(mask, (rows, -(-columns // 8)), "mask")
    elif form == MASK_FORMS[2]:
        across = _opened(mask, (columns, -(-rows // 8)), "mask")
        check_pad_bits(across[:, -1], rows, "mask has")
        mask = transposed(across, rows)
    form = _only(tensors, SIGN_FORMS)
    if form is None or form == SIGN_FORMS[0]:
        return mask, None if form is None else tensors[form]
    # The number of survivors decides the size of the signs, so the mask is checked before them.
    num_survivors = SignedMask(shape=shape, mask_bits=mask).num_survivors
    sign = _opened(tensors[form], (-(-num_survivors // 8),), "signs")
    if form == SIGN_FORMS[2]:
        check_pad_bits(sign[-1:], num_survivors, "signs have")
        negative = transposed(_spread(sign, transposed(mask, columns)), rows)
        sign = _gathered(negative, mask, num_survivors)
    return mask, sign


def declared_size(frame: NDArray[Any]) -> int:
    """Return the bytes that a frame says it opens to; 0 for what is no frame of a known size."""
    try:
        size = zstandard.get_frame_parameters(frame.tobytes()).content_size
    except (zstandard.ZstdError, ValueError):
        return 0
    return 0 if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) else int(size)


def _only(tensors: Mapping[str, Any], forms: tuple[str, ...]) -> str | None:
    found = [form for form in forms if form in tensors]
    if len(found) > 1:
        raise FormatError(f"it has both {found[0]} and {found[1]}; expected one of them.")
    return found[0] if found else None


def _opened(frame: NDArray[Any], shape: tuple[int, ...], what: str) -> Bits:
    """Decompress a frame whose size the host has told; all is checked before memory is taken."""
    if frame.dtype != np.uint8 or frame.ndim != 1:
        raise FormatError(
            f"the frame of the {what} is {frame.dtype} {frame.shape}; expected uint8 (bytes,)."
        )
    data, size = frame.tobytes(), prod(shape)
    try:
        _check_frame(data, size, what)
        plane = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        reason = str(error) or f"there is no memory for its {size} bytes"
        raise FormatError(
            f"the frame of the {what} is not a sound one of zstd: {reason}. Download it again."
        ) from error
    if len(plane) != size:
        raise FormatError(f"the frame of the {what} gives {len(plane)} bytes; expected {size}.")
    return np.frombuffer(plane, np.uint8).reshape(shape)


def _check_frame(data: bytes, size: int, what: str) -> None:
    if data[:4] != _FRAME_MAGIC:
        raise FormatError(
            f"the frame of the {what} begins with {data[:4].hex() or 'nothing'}; expected "
            f"{_FRAME_MAGIC.hex()}, one zstd frame and nothing else."
        )
    frame = zstandard.get_frame_parameters(data)
    # python-zstandard takes the size that a frame declares, whatever limit it was given.
    if frame.content_size != size or not size:
        unknown = frame.content_size == zstandard.CONTENTSIZE_UNKNOWN
        raise FormatError(
            f"the frame of the {what} declares {'no size' if unknown else frame.content_size}; the "
            f"host needs {size} bytes{'' if size else ', which are stored plain'}."
        )
    if size > _MOST_FROM_A_BYTE * len(data):
        raise FormatError(
            f"the frame of the {what} declares {size} bytes; its {len(data)} cannot hold more than "
            f"{_MOST_FROM_A_BYTE * len(data)}."
        )
    if frame.window_size > max(size, _MAX_WINDOW):
        raise FormatError(
            f"the frame of the {what} asks for a window of {frame.window_size} bytes; at most "
            f"{max(size, _MAX_WINDOW)}."
        )
    if frame.dict_id:
        raise FormatError(f"the frame of the {what} needs the dictionary {frame.dict_id}; none is.")


# ---- bits ----------------------------------------------------------------------------------------


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


def _spread(stream: Bits, mask: Bits) -> Bits:
    """Put the bits of a stream on the ones of a mask, in order; the rest is 0."""
    # 16 bits from each byte on: wherever a byte of the mask begins to read, it finds its 8.
    padded = np.concatenate([stream, np.zeros(2, np.uint8)]).astype(np.uint16)
    ahead = padded[:-1] | padded[1:] << 8
    spread = np.empty(mask.size, np.uint8)
    for part, chunk, _, starts in _chunks(mask):
        bits = (ahead[starts >> 3] >> (starts & 7).astype(np.uint16)) & 0xFF
        spread[part : part + chunk.size] = _table_of_spread()[_pair(chunk, bits)]
    return spread.reshape(mask.shape)


def _gathered(plane: Bits, mask: Bits, num_ones: int) -> Bits:
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

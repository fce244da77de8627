"""How the two planes of an entry stand in the file: plain, as a zstd frame, or coded by context.

A tensor's name says its form (``.mask``, ``.mask.zst``, ``.mask.col.zst``, ``.mask.ctx``). Frames
of strangers are looked at before they are opened. Names of parameters are arrays.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from hf_connectome import context
from hf_connectome.bits import gathered, spread, transposed
from hf_connectome.errors import FormatError, UnknownNameError, did_you_mean
from hf_connectome.signed_mask import SignedMask, check_dimensions, check_pad_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint8]

CODECS = ("plain", "zstd", "context")
MASK_FORMS = (".mask", ".mask.zst", ".mask.col.zst", ".mask.ctx")
SIGN_FORMS = (".sign", ".sign.zst", ".sign.col.zst", ".sign.ctx")
"""Plain; a frame of the same bytes; a frame of the column scan; a stream of context.py."""

_LEVEL = 3
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW = 8 << 20
"""What every zstd decoder supports (RFC 8878, section 3.1.1.1.2)."""
_MOST_FROM_A_BYTE = 1 << 15
"""A block gives at most 128 KiB and takes at least 4 bytes (RFC 8878, section 3.1.1.2)."""


def check_codec(codec: str) -> None:
    """Refuse a codec that does not exist or cannot be had here.

    Raises:
        UnknownNameError: with the codecs that there are.
        ConfigError: 'context' without the package that it needs.
    """
    if codec not in CODECS:
        raise UnknownNameError(f"unknown codec {codec!r}. {did_you_mean(str(codec), CODECS)}")
    if codec == "context":
        context.check_installed()


def codec_of(names: Iterable[str]) -> str:
    """Return the codec that a file's tensors were written by, told by their names."""
    ends = {name.rpartition(".")[2] for name in names}
    return "context" if "ctx" in ends else "zstd" if "zst" in ends else "plain"


# ---- writing -------------------------------------------------------------------------------------


def encode(entry: SignedMask, codec: str) -> dict[str, Bits]:
    """Return the planes of an entry by the suffixes that they have in the file.

    With ``zstd`` each plane takes its smallest form, the plainer one on a tie; a plane that does
    not get smaller stays plain. With ``context`` the stream of context.py is one form more.
    """
    check_codec(codec)
    if codec == "plain":
        plain = {MASK_FORMS[0]: entry.mask_bits}
        return plain if entry.sign_bits is None else plain | {SIGN_FORMS[0]: entry.sign_bits}
    across = transposed(entry.mask_bits, entry.columns)
    mask_stream, sign_stream = _streams(entry) if codec == "context" else (None, None)
    planes = _smallest(MASK_FORMS, entry.mask_bits, across, mask_stream)
    if entry.sign_bits is not None:
        negative = transposed(spread(entry.sign_bits, entry.mask_bits), entry.columns)
        column = gathered(negative, across, entry.num_survivors)
        planes |= _smallest(SIGN_FORMS, entry.sign_bits, column, sign_stream)
    return planes


def _smallest(
    forms: tuple[str, ...], row: Bits, column: Bits, stream: Bits | None
) -> dict[str, Bits]:
    planes = zip(forms, (row, _framed(row), _framed(column), stream), strict=True)
    there = {form: plane for form, plane in planes if plane is not None}
    chosen = min(there, key=lambda form: there[form].size)
    return {chosen: there[chosen]}


def shrunk(plane: Bits) -> Bits:
    """Return the frame of a plane if that is smaller, else the plane itself."""
    return min(plane, _framed(plane), key=np.size)


def _framed(plane: Bits) -> Bits:
    # One thread, so that its bytes do not vary.
    return np.frombuffer(zstandard.ZstdCompressor(level=_LEVEL).compress(plane.data), np.uint8)


def _streams(entry: SignedMask) -> tuple[Bits | None, Bits | None]:
    """Return the streams of mask and signs; None where there can be none."""
    mask = _dense(entry.mask_bits, entry.columns)
    stream = context.encode(mask, _everywhere(mask.shape))
    if entry.sign_bits is None or not entry.num_survivors:
        return stream, None
    negative = _dense(spread(entry.sign_bits, entry.mask_bits), entry.columns)
    return stream, context.encode(negative, mask)


def _everywhere(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.broadcast_to(np.True_, shape)


def _dense(bits: Bits, columns: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, axis=1, count=columns, bitorder="little").view(np.bool_)


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
    mask = _mask(form, tensors[form], rows, columns)
    form = _only(tensors, SIGN_FORMS)
    if form is None or form == SIGN_FORMS[0]:
        return mask, None if form is None else tensors[form]
    # The number of survivors decides the size of the signs, so the mask is checked before them.
    num_survivors = SignedMask(shape=shape, mask_bits=mask).num_survivors
    return mask, _sign(form, tensors[form], mask, columns, num_survivors)


def _mask(form: str, plane: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    if form == MASK_FORMS[0]:
        return plane
    if form == MASK_FORMS[1]:
        return opened(plane, (rows, -(-columns // 8)), "mask")
    if form == MASK_FORMS[2]:
        across = opened(plane, (columns, -(-rows // 8)), "mask")
        check_pad_bits(across[:, -1], rows, "mask has")
        return transposed(across, rows)
    dense = _decoded(plane, _everywhere((rows, columns)), rows * columns, "mask")
    return np.packbits(dense, axis=1, bitorder="little")


def _sign(form: str, plane: NDArray[Any], mask: Bits, columns: int, num_survivors: int) -> Bits:
    if form == SIGN_FORMS[3]:
        survivors = _dense(mask, columns)
        negative = _decoded(plane, survivors, num_survivors, "signs")
        return np.packbits(negative[survivors], bitorder="little")
    sign = opened(plane, (-(-num_survivors // 8),), "signs")
    if form == SIGN_FORMS[1]:
        return sign
    check_pad_bits(sign[-1:], num_survivors, "signs have")
    across = spread(sign, transposed(mask, columns))
    return gathered(transposed(across, mask.shape[0]), mask, num_survivors)


def _decoded(
    stream: NDArray[Any], places: NDArray[np.bool_], num_bits: int, what: str
) -> NDArray[np.bool_]:
    """Decode a stream of context.py at the places that the host and the mask tell."""
    _check_bytes(stream, f"stream of the {what}")
    try:
        return context.decode(stream, places, num_bits)
    except (FormatError, MemoryError) as error:
        reason = str(error) or "there is no memory for its bits."
        raise FormatError(f"of the {what}: {reason} Download it again.") from error


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


def opened(frame: NDArray[Any], shape: tuple[int, ...], what: str) -> Bits:
    """Decompress a frame whose size the host has told; all is checked before memory is taken."""
    _check_bytes(frame, f"frame of the {what}")
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


def _check_bytes(array: NDArray[Any], what: str) -> None:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise FormatError(f"the {what} is {array.dtype} {array.shape}; expected uint8 (bytes,).")


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

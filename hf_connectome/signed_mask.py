"""Mask and signs of one parameter, as packed bits: the truth that everything else is made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Bits = NDArray[np.uint8]


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable or not array.flags.owndata:
        array = np.array(array, order="C")  # a copy: others may write to the memory of this one
        array.flags.writeable = False
    return array


def _num_ones(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as a contiguous numpy array on the CPU."""
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def check_dimensions(shape: tuple[int, ...]) -> None:
    """Refuse the shape of a parameter that has no rows or no weights."""
    if prod(shape) < 1 or not shape:
        raise FormatError(
            f"a parameter of shape {shape} has nothing to wire; expected at least one dimension "
            "and one weight. Leave it out of scope."
        )


def check_pad_bits(last: Bits, num_bits: int, what: str) -> None:
    """Refuse ones beyond the last of ``num_bits`` bits; ``last`` holds the byte(s) they end in."""
    if num_bits % 8 and np.any(last >> num_bits % 8):
        raise FormatError(f"the {what} pad bits that are not 0; the file was altered.")


@dataclass(frozen=True, eq=False)
class SignedMask:
    """The survivors of one parameter and their signs, as packed bits.

    Rows are the first dimension, columns the product of the rest; bits are least significant
    first. The packed form is the truth; dense tensors are made when asked for.
    """

    shape: tuple[int, ...]
    mask_bits: Bits
    """``(R, ceil(C / 8))`` uint8, pad bits 0."""
    sign_bits: Bits | None = None
    """``(ceil(survivors / 8),)`` uint8, 1 = negative, row-major order; None: mask only."""
    scale: NDArray[np.float16] | None = None
    """``(1,)`` or ``(R,)`` float16: one magnitude a tensor or a row, in units of the weights."""
    orientation: str = "raw"
    """How the host stores the matrix (see scope.py), so that a mask is never applied transposed."""

    def __post_init__(self) -> None:
        check_dimensions(self.shape)
        rows, columns = self.rows, self.columns
        if self.mask_bits.dtype != np.uint8 or self.mask_bits.shape != (rows, -(-columns // 8)):
            raise FormatError(
                f"the mask is {self.mask_bits.dtype} {self.mask_bits.shape}; a parameter of shape "
                f"{self.shape} needs uint8 {(rows, -(-columns // 8))}."
            )
        check_pad_bits(self.mask_bits[:, -1], columns, "mask has")
        object.__setattr__(self, "mask_bits", _frozen(self.mask_bits))
        if self.sign_bits is not None:
            self._check_signs(self.sign_bits)
            object.__setattr__(self, "sign_bits", _frozen(self.sign_bits))
        if self.scale is not None:
            self._check_scale(self.scale)
            object.__setattr__(self, "scale", _frozen(self.scale))

    def _check_signs(self, bits: Bits) -> None:
        expected = -(-self.num_survivors // 8)
        if bits.dtype != np.uint8 or bits.shape != (expected,):
            raise FormatError(
                f"the signs are {bits.dtype} {bits.shape}; {self.num_survivors} survivors need "
                f"uint8 ({expected},)."
            )
        check_pad_bits(bits[-1:], self.num_survivors, "signs have")

    def _check_scale(self, scale: NDArray[np.float16]) -> None:
        if scale.dtype != np.float16 or scale.shape not in ((1,), (self.rows,)):
            raise FormatError(
                f"the scale is {scale.dtype} {scale.shape}; expected float16 (1,) or "
                f"({self.rows},)."
            )
        if not np.all(np.isfinite(scale)) or np.any(scale < 0):
            raise FormatError("the scale has negative or non-finite values.")

    @classmethod
    def pack(
        cls,
        mask: Tensor,
        sign: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        orientation: str = "raw",
    ) -> SignedMask:
        """Pack a dense mask and the signs of its survivors.

        Args:
            mask: bool, shape of the parameter, at least one dimension.
            sign: any real dtype, same shape; negative values on survivors become -1, all others
                +1 (sign(0) = +1, so that no survivor is lost). None makes a mask-only entry.
            scale: ``(1,)`` or ``(R,)``, rounded to float16.
            orientation: see scope.py.
        """
        dense = as_array(mask)
        if dense.dtype != np.bool_:
            raise FormatError(f"a mask must be bool, not {dense.dtype}.")
        shape = tuple(dense.shape)
        check_dimensions(shape)
        rows = dense.reshape(shape[0], -1)
        sign_bits = None
        if sign is not None:
            if sign.shape != mask.shape:
                raise FormatError(f"the mask is {shape} but its signs are {tuple(sign.shape)}.")
            sign_bits = np.packbits(as_array(sign < 0)[dense], bitorder="little")
        return cls(
            shape=shape,
            mask_bits=np.packbits(rows, axis=1, bitorder="little"),
            sign_bits=sign_bits,
            scale=None if scale is None else as_array(scale.to(torch.float16)),
            orientation=orientation,
        )

    @property
    def rows(self) -> int:
        """Size of the first dimension."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Product of all dimensions but the first."""
        return prod(self.shape[1:])

    @property
    def num_weights(self) -> int:
        """Weights of the parameter, survivors or not."""
        return self.rows * self.columns

    @cached_property
    def num_survivors(self) -> int:
        """Weights that the mask keeps."""
        return _num_ones(self.mask_bits)

    @property
    def density(self) -> float:
        """Survivors over weights, in [0, 1]."""
        return self.num_survivors / self.num_weights

    @property
    def negative_fraction(self) -> float:
        """Survivors of negative sign over survivors; 0 without signs or survivors."""
        if self.sign_bits is None or not self.num_survivors:
            return 0.0
        return _num_ones(self.sign_bits) / self.num_survivors

    def _dense_mask(self) -> NDArray[np.bool_]:
        bits = np.unpackbits(self.mask_bits, axis=1, count=self.columns, bitorder="little")
        return bits.view(np.bool_).reshape(self.shape)

    def mask(self) -> Tensor:
        """Return the bool tensor of the parameter's shape, True = survivor."""
        return torch.from_numpy(self._dense_mask())

    def sign(self) -> Tensor:
        """Return the int8 tensor of the parameter's shape: -1 or +1 on survivors, 0 elsewhere.

        Raises:
            ConfigError: the entry is mask-only.
        """
        if self.sign_bits is None:
            raise ConfigError("this connectome is mask-only and has no signs; use reset='keep'.")
        mask = self._dense_mask()
        negative = np.unpackbits(self.sign_bits, count=self.num_survivors, bitorder="little")
        sign = np.zeros(self.shape, dtype=np.int8)
        sign[mask] = 1 - 2 * negative.view(np.int8)
        return torch.from_numpy(sign)

    def magnitude(self) -> Tensor | None:
        """Return the scale as float32 that broadcasts over the parameter, or None."""
        if self.scale is None:
            return None
        scale = torch.from_numpy(self.scale.astype(np.float32))
        return scale.reshape(-1, *([1] * (len(self.shape) - 1)))

    def feed(self, digest: Any) -> None:
        """Feed what identifies the entry to a hashlib object (docs/FORMAT.md, digest)."""
        digest.update(",".join(map(str, self.shape)).encode() + b"\0")
        digest.update(self.mask_bits)
        digest.update(b"\0")
        if self.sign_bits is not None:
            digest.update(self.sign_bits)
        if self.scale is not None:
            digest.update(b"\0scale\0" + self.scale.astype("<f2").tobytes())

"""What a connectome is: for every parameter in scope, which weights exist and their sign.

Plain immutable data with exact counts and one digest. Nothing here knows models, files or training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.errors import ConfigError, FormatError, HostMismatchError, some

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor

    from hf_connectome.config import ConnectomeConfig

    Bits = NDArray[np.uint8]

_POPCOUNT = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable or not array.flags.owndata:
        array = np.array(array, order="C")  # a copy: others may write to the memory of this one
        array.flags.writeable = False
    return array


def _num_ones(bits: Bits) -> int:
    return int(_POPCOUNT[bits].sum(dtype=np.int64))


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def _check_dimensions(shape: tuple[int, ...]) -> None:
    if prod(shape) < 1 or not shape:
        raise FormatError(
            f"a parameter of shape {shape} has nothing to wire; expected at least one dimension "
            "and one weight. Leave it out of scope."
        )


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
        _check_dimensions(self.shape)
        rows, columns = self.rows, self.columns
        if self.mask_bits.dtype != np.uint8 or self.mask_bits.shape != (rows, -(-columns // 8)):
            raise FormatError(
                f"the mask is {self.mask_bits.dtype} {self.mask_bits.shape}; a parameter of shape "
                f"{self.shape} needs uint8 {(rows, -(-columns // 8))}."
            )
        if columns % 8 and np.any(self.mask_bits[:, -1] >> (columns % 8)):
            raise FormatError("the mask has pad bits that are not 0; the file was altered.")
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
        if self.num_survivors % 8 and bits[-1] >> (self.num_survivors % 8):
            raise FormatError("the signs have pad bits that are not 0; the file was altered.")

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
        dense = _array(mask)
        if dense.dtype != np.bool_:
            raise FormatError(f"a mask must be bool, not {dense.dtype}.")
        shape = tuple(dense.shape)
        _check_dimensions(shape)
        rows = dense.reshape(shape[0], -1)
        sign_bits = None
        if sign is not None:
            if sign.shape != mask.shape:
                raise FormatError(f"the mask is {shape} but its signs are {tuple(sign.shape)}.")
            sign_bits = np.packbits(_array(sign < 0)[dense], bitorder="little")
        return cls(
            shape=shape,
            mask_bits=np.packbits(rows, axis=1, bitorder="little"),
            sign_bits=sign_bits,
            scale=None if scale is None else _array(scale.to(torch.float16)),
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


@dataclass(frozen=True)
class Overlap:
    """How alike two connectomes are, each figure beside what chance would give.

    Chance keeps each tensor's own densities and share of negative signs and draws the rest
    independently.
    """

    jaccard: float
    chance_jaccard: float
    sign_agreement: float | None
    chance_sign_agreement: float | None
    num_shared: int


class Connectome(Mapping[str, SignedMask]):
    """Mask and sign for all parameters in scope; immutable, equal when the content is.

    Names are those of the base model's state dict (a tied parameter once), in sorted order.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.5, -0.25], [0.0, 0.125]])
        >>> c = Connectome({"w": SignedMask.pack(weight != 0, weight)})
        >>> c.num_survivors, c.density
        (3, 0.75)
        >>> c.sign("w").tolist()
        [[1, -1], [0, 1]]
    """

    def __init__(
        self,
        entries: Mapping[str, SignedMask],
        *,
        values: Mapping[str, Tensor] | None = None,
        config: ConnectomeConfig | None = None,
    ) -> None:
        """Hold ``entries`` by parameter name.

        Args:
            entries: parameter name -> packed mask and signs.
            values: small parameters out of scope (norms, biases) that travel whole.
            config: how the connectome came about and which architecture it fits.
        """
        self._entries = {name: entries[name] for name in sorted(entries)}
        values = values or {}
        self._values = {name: values[name].detach().clone() for name in sorted(values)}
        both = self._entries.keys() & self._values.keys()
        if both:
            raise FormatError(f"{some(sorted(both))} is both in scope and carried whole.")
        infinite = [name for name, value in self._values.items() if not torch.isfinite(value).all()]
        if infinite:
            raise FormatError(
                f"the value of {some(infinite)} is not finite, so no reader would accept it; the "
                "weights have diverged."
            )
        self.config = config

    def __getitem__(self, name: str) -> SignedMask:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Connectome) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"Connectome({len(self)} parameters, {self.num_survivors:,} of {self.num_weights:,} "
            f"weights, density {self.density:.4f}, digest {self.digest[:12]})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters in scope, sorted."""
        return tuple(self._entries)

    @property
    def values_carried(self) -> Mapping[str, Tensor]:
        """Parameters out of scope that travel whole, by name."""
        return MappingProxyType(self._values)

    def mask(self, name: str) -> Tensor:
        """Return the bool mask of one parameter, True = survivor."""
        return self[name].mask()

    def sign(self, name: str) -> Tensor:
        """Return the int8 signs of one parameter: -1 or +1 on survivors, else 0."""
        return self[name].sign()

    @cached_property
    def num_weights(self) -> int:
        """Weights in scope."""
        return sum(entry.num_weights for entry in self._entries.values())

    @cached_property
    def num_survivors(self) -> int:
        """Weights that exist."""
        return sum(entry.num_survivors for entry in self._entries.values())

    @property
    def density(self) -> float:
        """Survivors over weights in scope, in [0, 1]."""
        return self.num_survivors / self.num_weights if self.num_weights else 1.0

    def densities(self) -> dict[str, float]:
        """Return the density of every parameter by name."""
        return {name: entry.density for name, entry in self._entries.items()}

    @property
    def has_signs(self) -> bool:
        """Whether every entry carries signs."""
        return all(entry.sign_bits is not None for entry in self._entries.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names, shapes, raw mask and sign bytes; independent of compression."""
        digest = hashlib.sha256()
        for name, entry in self._entries.items():
            digest.update(name.encode() + b"\0")
            entry.feed(digest)
        for name, value in self._values.items():
            raw = _array(value.to(torch.float32))
            shape = ",".join(map(str, raw.shape))
            digest.update(name.encode() + b"\0value\0F32\0" + shape.encode() + b"\0")
            digest.update(raw.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def lineage(self) -> tuple[Mapping[str, Any], ...]:
        """One row a generation, oldest first; empty for a wiring that was not evolved."""
        return tuple(self.config.lineage) if self.config is not None else ()

    def replace(
        self,
        entries: Mapping[str, SignedMask] | None = None,
        *,
        values: Mapping[str, Tensor] | None = None,
        config: ConnectomeConfig | None = None,
    ) -> Connectome:
        """Return a connectome with some of its three parts exchanged."""
        return Connectome(
            self._entries if entries is None else entries,
            values=self._values if values is None else values,
            config=self.config if config is None else config,
        )

    def __and__(self, other: Connectome) -> Connectome:
        """Keep the weights that both keep; opposite signs are an error."""
        return self._combine(other, lambda mine, theirs: mine & theirs)

    def __or__(self, other: Connectome) -> Connectome:
        """Keep the weights that either keeps; opposite signs are an error."""
        return self._combine(other, lambda mine, theirs: mine | theirs)

    def __sub__(self, other: Connectome) -> Connectome:
        """Keep the weights that only this one keeps."""
        self._check_same_parameters(other)
        entries = {}
        for name, entry in self.items():
            mask = entry.mask() & ~other.mask(name)
            sign = None if entry.sign_bits is None else entry.sign()
            entries[name] = SignedMask.pack(mask, sign, orientation=entry.orientation)
        return Connectome(entries, config=self.config)

    def overlap(self, other: Connectome) -> Overlap:
        """Measure how alike the two wirings are, against chance."""
        self._check_same_parameters(other)
        shared = union = agree = 0
        chance_shared = chance_agree = 0.0
        for name, mine in self.items():
            both = mine.mask() & other.mask(name)
            num_both, theirs = int(both.sum()), other[name]
            expected = mine.num_survivors * theirs.num_survivors / mine.num_weights
            shared += num_both
            union += mine.num_survivors + theirs.num_survivors - num_both
            chance_shared += expected
            if mine.sign_bits is not None and theirs.sign_bits is not None:
                agree += int((mine.sign()[both] == theirs.sign()[both]).sum())
                p, q = mine.negative_fraction, theirs.negative_fraction
                chance_agree += num_both * (p * q + (1 - p) * (1 - q))
        signs = self.has_signs and other.has_signs and shared > 0
        total = self.num_survivors + other.num_survivors
        return Overlap(
            jaccard=shared / union if union else 1.0,
            chance_jaccard=chance_shared / (total - chance_shared) if union else 1.0,
            sign_agreement=agree / shared if signs else None,
            chance_sign_agreement=chance_agree / shared if signs else None,
            num_shared=shared,
        )

    def _combine(self, other: Connectome, rule: Any) -> Connectome:
        self._check_same_parameters(other)
        entries = {}
        for name, entry in self.items():
            mask, sign = rule(entry.mask(), other.mask(name)), None
            if self.has_signs and other.has_signs:
                mine, theirs = entry.sign(), other.sign(name)
                conflicts = int((mine * theirs == -1).sum())
                if conflicts:
                    raise ConfigError(
                        f"{name!r}: {conflicts} shared weights have opposite signs; expected equal "
                        "signs. Leave the shared weights out, (a - b) | (b - a), or keep one."
                    )
                sign = torch.where(mine != 0, mine, theirs)
            entries[name] = SignedMask.pack(mask, sign, orientation=entry.orientation)
        return Connectome(entries, config=self.config)

    def _check_same_parameters(self, other: Connectome) -> None:
        odd = self.keys() ^ other.keys()
        if odd:
            raise HostMismatchError(f"only one of the two connectomes has {some(sorted(odd))}.")
        for name, entry in self.items():
            if entry.shape != other[name].shape:
                raise HostMismatchError(
                    f"{name!r} is {entry.shape} in one connectome, {other[name].shape} in the "
                    "other."
                )
            if entry.orientation != other[name].orientation:
                raise HostMismatchError(
                    f"{name!r} is stored {entry.orientation} in one connectome, "
                    f"{other[name].orientation} in the other: one is the transpose of the other."
                )

    # The four entry points below only lead to the modules that do the work.

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], **options: Any) -> Connectome:
        """Read a connectome from a folder; see :func:`hf_connectome.storage.read`."""
        from hf_connectome.storage import read

        return read(path, **options)

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write the connectome to a folder; see :func:`hf_connectome.storage.write`."""
        from hf_connectome.storage import write

        write(self, path)

    @classmethod
    def from_model(
        cls, model: torch.nn.Module, config: ConnectomeConfig | None = None
    ) -> Connectome:
        """Read the wiring of a model; see :func:`hf_connectome.hosts.extract`."""
        from hf_connectome.hosts import extract

        return extract(model, config)

    def to(self, model: torch.nn.Module, *, reset: str | None = None) -> None:
        """Put the wiring on a host; see :func:`hf_connectome.hosts.wire`."""
        from hf_connectome.hosts import wire

        wire(model, self, reset=reset)

"""What a connectome is: for every parameter in scope, which weights exist and their sign.

Plain immutable data with exact counts and one digest. Nothing here knows models, files or training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.errors import FormatError, some
from hf_connectome.signed_mask import SignedMask, as_array

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.hub import Pushed
    from hf_connectome.overlap import Overlap

__all__ = ["Connectome", "SignedMask"]


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
            raw = as_array(value.to(torch.float32))
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

    # The entry points below only lead to the modules that do the work.

    def __and__(self, other: Connectome) -> Connectome:
        """Keep the weights that both keep; see :func:`hf_connectome.operations.intersection`."""
        from hf_connectome.operations import intersection

        return intersection(self, other).connectome

    def __or__(self, other: Connectome) -> Connectome:
        """Keep the weights that either keeps; see :func:`hf_connectome.operations.union`."""
        from hf_connectome.operations import union

        return union(self, other).connectome

    def __sub__(self, other: Connectome) -> Connectome:
        """Keep what only this one keeps; see :func:`hf_connectome.operations.difference`."""
        from hf_connectome.operations import difference

        return difference(self, other).connectome

    def overlap(self, other: Connectome) -> Overlap:
        """Measure how alike the two are; see :func:`hf_connectome.overlap.overlap`."""
        from hf_connectome.overlap import overlap

        return overlap(self, other)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, host: torch.nn.Module | None = None, **download: Any
    ) -> Connectome:
        """Read a connectome from a folder or the Hub.

        Args:
            path: folder or Hub id.
            host: as in :func:`hf_connectome.storage.read`.
            download: ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
                ``force_download``, as in :func:`hf_connectome.hub.fetch`.
        """
        from hf_connectome.hub import fetch, with_origin
        from hf_connectome.storage import read

        folder = fetch(path, **download)
        return with_origin(read(folder, host=host), path, folder)

    def save_pretrained(self, path: str | PathLike[str], *, codec: str = "plain") -> None:
        """Write the connectome to a folder; see :func:`hf_connectome.storage.write`."""
        from hf_connectome.storage import write

        write(self, path, codec=codec)

    @classmethod
    def from_lineage(
        cls, file: str | PathLike[str], generation: int, *, host: torch.nn.Module | None = None
    ) -> Connectome:
        """Read one generation of a lineage; see :func:`hf_connectome.lineages.read_lineage`."""
        from hf_connectome.lineages import read_lineage

        return read_lineage(file, host=host, last=generation)[generation]

    def push_to_hub(self, repo_id: str, **options: Any) -> Pushed:
        """Push it as one commit; see :func:`hf_connectome.publishing.publish_connectome`."""
        from hf_connectome.publishing import publish_connectome

        return publish_connectome(self, repo_id, **options)

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

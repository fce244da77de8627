"""What there is to say about a connectome, as plain JSON types."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome


def identity(connectome: "Connectome") -> dict[str, Any]:
    """Return what a connectome is and what it fits."""
    from hf_connectome.hosts import scope_fingerprint

    config = connectome.config
    facts: dict[str, Any] = {
        "architecture": None if config is None else config.architecture,
        "num_parameters": len(connectome),
        "num_weights": connectome.num_weights,
        "num_survivors": connectome.num_survivors,
        "density": connectome.density,
        "has_signs": connectome.has_signs,
        "digest": connectome.digest,
        "base_fingerprint": scope_fingerprint(connectome),
    }
    if config is not None:
        names = ("generation", "reset", "magnitude", "wiring", "seed", "tokenizer")
        facts |= {name: getattr(config, name) for name in (*names, "tokenizer_digest")}
    return facts


def parameters(connectome: "Connectome") -> list[dict[str, Any]]:
    """Return one row a parameter."""
    return [
        {
            "name": name,
            "shape": list(entry.shape),
            "orientation": entry.orientation,
            "num_weights": entry.num_weights,
            "num_survivors": entry.num_survivors,
            "density": entry.density,
        }
        for name, entry in connectome.items()
    ]


def modules(connectome: "Connectome") -> list[dict[str, Any]]:
    """Return one row a kind of module, with its density in every layer that has it, in order."""
    from hf_connectome.analysis.densities import densities_by_kind

    return [
        {
            "module": kind.kind,
            "num_layers": len(kind.counts),
            "num_weights": kind.num_weights,
            "num_survivors": kind.num_survivors,
            "densities": [kind.densities[layer] for layer in sorted(kind.counts, key=_first_none)],
        }
        for kind in densities_by_kind(connectome)
    ]


def degrees(connectome: "Connectome") -> dict[str, Any]:
    """Return the degrees of every parameter by name (analysis.degrees)."""
    from hf_connectome.analysis.degrees import degrees

    return {name: asdict(found) for name, found in degrees(connectome).items()}


def layers(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by layer, layers in their order; what is in no layer stands for itself."""
    groups: dict[str, list[str]] = {}
    # The numbers decide, not the digits: layer 10 comes after layer 9.
    for name in sorted(names, key=_natural):
        layer = re.match(r"(.*?\.\d+)\.", name)
        groups.setdefault(layer[1] if layer else name.removesuffix(".weight"), []).append(name)
    return groups


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def _first_none(layer: int | None) -> int:
    return -1 if layer is None else layer

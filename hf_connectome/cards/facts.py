"""What a card says of a connectome, each fact from the data: rows for tables, no prose.

A fact that is not recorded is left out, or stated as such where a reader would look for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.densities import KindDensity, densities_by_kind
from hf_connectome.cards.markup import number, one_line, percent, quoted, table
from hf_connectome.errors import ConfigError
from hf_connectome.provenance import can_be_hub_id, hub_id
from hf_connectome.scope import EMBEDDING
from hf_connectome.storage import FORMAT_VERSION

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome
    from hf_connectome.provenance import Provenance

HUB = "https://huggingface.co"
_MOST_ROWS = 64
_SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "experts": ("num_local_experts", "num_experts"),
    "context": ("n_positions", "max_position_embeddings"),
    "vocabulary": ("vocab_size",),
}
_SETTINGS = {
    "prune_fraction": "prune_fraction",
    "criterion": "criterion",
    "selection": "selection",
    "reset": "reset after pruning",
}
_RUN = {
    "dataset": "training data",
    "corpus": "text",
    "corpus_digest": "digest of the text",
    "num_train_tokens": "training tokens",
    "tokens_per_step": "tokens a step",
    "block_size": "tokens a block",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "lr_schedule": "schedule of a generation",
    "precision": "precision",
    "num_processes": "processes",
    "hardware": "hardware",
    "train_seconds": "hours of training",
    "created": "day",
}


def fact_table(
    connectome: Connectome,
    *,
    file_bytes: Mapping[str, int] | None,
    tokenizer_repo: str | None = None,
) -> str:
    """Return what the connectome is, as a table.

    Args:
        connectome: with or without a config.
        file_bytes: codec -> bytes of its file; None leaves out all that is said of size.
        tokenizer_repo: Hub id of the tokenizer; by default the recorded one.
    """
    rows = [
        *_content(connectome),
        *(_sizes(connectome, file_bytes) if file_bytes is not None else ()),
        *_architecture(connectome),
        *_tokenizer(connectome, tokenizer_repo),
        *_settings(connectome),
        *_origin(connectome),
    ]
    return table(["fact", "value"], rows)


def inherited_bits(connectome: Connectome) -> dict[str, int]:
    """Count the bits of each part without padding: mask, sign, scale, value."""
    entries = list(connectome.values())
    return {
        "mask": connectome.num_weights,
        "sign": sum(e.num_survivors for e in entries if e.sign_bits is not None),
        "scale": sum(16 * e.scale.size for e in entries if e.scale is not None),
        "value": sum(32 * value.numel() for value in connectome.values_carried.values()),
    }


def floor_bits(connectome: Connectome) -> float:
    """Return the least bits for these densities, if weights survived independently of each other.

    Per parameter H(d) bits a weight for the mask and one a sign (docs/FORMAT.md, section 10);
    scales and values count as they are.
    """
    bits = inherited_bits(connectome)
    masks = math.fsum(entry.num_weights * _entropy(entry.density) for entry in connectome.values())
    return masks + bits["sign"] + bits["scale"] + bits["value"]


def lineage_table(connectome: Connectome, links: Mapping[int, str]) -> str:
    """Return one row a generation, the connectome itself last; only the newest if there are many.

    Args:
        connectome: with a lineage.
        links: generation -> URL.
    """
    head = ["generation", "density", "survivors", "held-out loss before pruning", "digest"]
    rows = [_generation(row, links) for row in connectome.lineage[-_MOST_ROWS:]]
    assert connectome.config is not None
    own = {
        "generation": connectome.config.generation,
        "density": connectome.density,
        "num_survivors": connectome.num_survivors,
        "digest": connectome.digest,
    }
    row = _generation(own, links)
    rows.append([*row[:3], "this connectome", row[4]])
    left = len(connectome.lineage) - _MOST_ROWS
    text = table(head, rows)
    return text if left <= 0 else f"{text}\n\nThe first {left} generations are not listed."


def density_table(connectome: Connectome) -> str:
    """Return density by kind of module, over the layers that have it."""
    kinds = densities_by_kind(connectome)
    head = ["module", "layers", "weights", "survivors", "density", "lowest", "highest"]
    text = table(head, [_kind(kind) for kind in kinds[:_MOST_ROWS]])
    left = len(kinds) - _MOST_ROWS
    return text if left <= 0 else f"{text}\n\n{left} further modules are not listed."


def run_table(provenance: Provenance | None) -> str | None:
    """Return what is known of the run that evolved the connectome; None if nothing is."""
    rows = [
        [label, _run_fact(name, value)]
        for name, label in _RUN.items()
        if provenance is not None and (value := getattr(provenance, name)) is not None
    ]
    return table(["fact", "value"], rows) if rows else None


def versions_line(versions: Mapping[str, str] | None) -> str | None:
    """Return package versions as one line; None if there are none."""
    pairs = sorted((versions or {}).items())[:20]
    return ", ".join(quoted(f"{one_line(n, 40)} {one_line(v, 40)}") for n, v in pairs) or None


def architecture_of(connectome: Connectome) -> str | None:
    """Return the recorded model class if it is a Python name, which is all that a card repeats."""
    name = connectome.config.architecture if connectome.config is not None else None
    return name if name is not None and re.fullmatch(r"[A-Za-z]\w{0,79}", name, re.A) else None


def model_type_of(connectome: Connectome) -> str | None:
    """Return the recorded model type, such as ``gpt2``, if it can be a tag of the Hub."""
    config = connectome.config
    found = (config.base_config or {}).get("model_type") if config is not None else None
    sound = isinstance(found, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", found)
    return found if sound else None


def has_embeddings(connectome: Connectome) -> bool:
    """Whether rows of the connectome belong to token ids or positions."""
    return any(entry.orientation == EMBEDDING for entry in connectome.values())


# ---- rows ----------------------------------------------------------------------------------------


def _content(connectome: Connectome) -> Iterator[list[str]]:
    num = connectome.num_survivors
    yield ["survivors", f"{num:,} of {connectome.num_weights:,} weights in scope"]
    yield ["density", f"{connectome.density:.6g}"]
    yield ["parameters in scope", f"{len(connectome):,}"]
    signed = [entry for entry in connectome.values() if entry.sign_bits is not None]
    if len(signed) == len(connectome):
        negative = math.fsum(e.negative_fraction * e.num_survivors for e in signed)
        share = f", {percent(negative / num)} negative" if num else ""
        yield ["signs", f"one a survivor{share}"]
    else:
        without = len(connectome) - len(signed)
        yield ["signs", "none: mask only" if not signed else f"none for {without} parameters"]
    scaled = sum(entry.scale is not None for entry in connectome.values())
    if scaled:
        yield ["magnitudes carried", f"for {scaled} parameters, float16"]
    if connectome.values_carried:
        numbers = sum(value.numel() for value in connectome.values_carried.values())
        kept = f"{len(connectome.values_carried)} parameters out of scope, {numbers:,} numbers"
        yield ["values carried whole", kept]
    yield ["digest", quoted(connectome.digest)]
    yield ["format version", str(FORMAT_VERSION)]


def _sizes(connectome: Connectome, file_bytes: Mapping[str, int]) -> Iterator[list[str]]:
    bits = {part: num for part, num in inherited_bits(connectome).items() if num}
    whole = connectome.num_weights + sum(v.numel() for v in connectome.values_carried.values())
    total, floor = sum(bits.values()), floor_bits(connectome)
    parts = ", ".join(f"{part} {num:,}" for part, num in bits.items())
    each = f"{total / connectome.num_weights:.3f} a weight in scope"
    yield ["bits inherited", f"{total:,} ({parts}), {each}"]
    if floor:
        smaller = f"{16 * whole / floor:.2f} times smaller than bf16"
        assumption = "if weights survived independently of each other"
        yield ["entropy floor", f"{math.ceil(floor):,} bits, {smaller}, {assumption}"]
    for codec, size in sorted(file_bytes.items()):
        if size < 1:
            raise ConfigError(f"the file of codec {codec!r} has {size} bytes; expected 1 or more.")
        over = f", {8 * size / floor:.3f} times the floor" if floor else ""
        smaller = f"{2 * whole / size:.2f} times smaller than bf16"
        yield [f"file, codec {quoted(codec)}", f"{size:,} bytes, {smaller}{over}"]


def _architecture(connectome: Connectome) -> Iterator[list[str]]:
    config = connectome.config
    if config is None or config.architecture is None:
        yield ["architecture", "not recorded"]
        return
    base = config.base_config or {}
    found = {
        label: next((base[key] for key in keys if _is_count(base.get(key))), None)
        for label, keys in _SIZES.items()
    }
    sizes = ", ".join(f"{label} {n:,}" for label, n in found.items() if n is not None)
    yield ["architecture", quoted(config.architecture) + (f": {sizes}" if sizes else "")]
    if config.base_fingerprint is not None:
        yield ["fingerprint of the base", quoted(config.base_fingerprint)]


def _tokenizer(connectome: Connectome, tokenizer_repo: str | None) -> Iterator[list[str]]:
    config = connectome.config
    recorded = config.tokenizer if config is not None else None
    repo = hub_id(tokenizer_repo or recorded)
    if repo is not None:
        yield ["tokenizer", f"[{repo}]({HUB}/{repo})"]
    if config is not None and config.tokenizer_digest is not None:
        yield ["digest of the tokenizer", quoted(config.tokenizer_digest)]
    elif repo is None and has_embeddings(connectome):
        yield ["tokenizer", "not recorded"]


def _settings(connectome: Connectome) -> Iterator[list[str]]:
    config = connectome.config
    if config is None:
        return
    yield ["generation", number(config.generation)]
    for name, label in _SETTINGS.items():
        values = _distinct(row[name] for row in connectome.lineage if name in row)
        if values:
            yield [label, values]
    yield ["reset of a child", f"`{config.reset}`"]
    yield ["magnitude", number(config.magnitude, "g")]
    if connectome.lineage:
        yield ["seed", number(config.seed)]
    scope = config.target_modules
    if scope is not None:
        yield ["scope", quoted(scope if isinstance(scope, str) else ", ".join(scope))]


def _origin(connectome: Connectome) -> Iterator[list[str]]:
    origin = (connectome.config.origin or "") if connectome.config is not None else ""
    repo, _, commit = origin.partition("@")
    if can_be_hub_id(repo) and repo:
        at = f" at {quoted(commit[:40])}" if commit else ""
        yield ["fetched from", f"[{repo}]({HUB}/{repo}){at}"]


def _distinct(values: Iterable[Any]) -> str:
    """List the values that differ, at most three; a setting is usually one for all generations."""
    texts = dict.fromkeys(
        number(v, "g") if isinstance(v, int | float) else quoted(v, 60) for v in values
    )
    listed = list(texts)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _generation(row: Mapping[str, Any], links: Mapping[int, str]) -> list[str]:
    generation, digest = row.get("generation"), row.get("digest")
    shown = number(generation, "")
    if isinstance(generation, int) and generation in links:
        shown = f"[{shown}]({links[generation]})"
    return [
        shown,
        number(row.get("density"), ".4f"),
        number(row.get("num_survivors")),
        number(row.get("eval_loss"), ".3f", missing="not measured"),
        quoted(digest[:12]) if isinstance(digest, str) else "not recorded",
    ]


def _kind(kind: KindDensity) -> list[str]:
    densities = list(kind.densities.values())
    layers = "-" if None in kind.counts else str(len(kind.counts))
    weights, kept = kind.num_weights, kind.num_survivors
    figures = [f"{d:.4f}" for d in (kept / weights, min(densities), max(densities))]
    return [quoted(kind.kind), layers, f"{weights:,}", f"{kept:,}", *figures]


def _run_fact(name: str, value: Any) -> str:
    if name == "dataset":
        repo = hub_id(value)
        return f"[{repo}]({HUB}/datasets/{repo})" if repo else "a text that is not on the Hub"
    if name == "train_seconds":
        return f"{number(value / 3600, '.3g')} ({number(round(value, 1))} seconds)"
    if isinstance(value, int | float):
        return number(value)
    return quoted(value, 300)


def _entropy(density: float) -> float:
    """H(d) in bits."""
    return -sum(p * math.log2(p) for p in (density, 1 - density) if p > 0)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12

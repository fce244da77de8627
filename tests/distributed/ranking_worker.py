"""Prune hosts that are sharded by rows on all processes, and the same hosts whole: OUTPUT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from masks_worker import wrapped
from ranks import on_every_rank
from ranks import run as run_worker
from tiny import tiny_model
from torch import distributed, nn

from hf_connectome import Connectome, ConnectomeConfig, shards
from hf_connectome.errors import ScopeError
from hf_connectome.evolution import dense_connectome, next_generation
from hf_connectome.hosts import describe
from hf_connectome.pruning import Pruning
from hf_connectome.schedule import GeometricSchedule
from hf_connectome.scope import resolve

if TYPE_CHECKING:
    from pathlib import Path

# 97 rows, a parameter of one row, three experts; with values that tie and without.
HOSTS = {
    f"{kind} {name}": (kind, levels)
    for kind in ("gpt2", "vit", "mixtral")
    for name, levels in (("ties", 20), ("trained", None))
}
SETTINGS: dict[str, dict[str, Any]] = {
    "per_tensor": {},
    "global": {"selection": "global"},
    "floor": {"selection": "global", "min_survivors": 6, "prune_fraction": 0.7},
}


def model_of(kind: str, levels: int | None) -> nn.Module:
    """Return a tiny host; of few levels, most of its weights tie."""
    model = tiny_model(kind)
    with torch.no_grad():
        for parameter in model.parameters() if levels else ():
            parameter.copy_((parameter * levels).round() / levels)
    return model


def generations(model: nn.Module, settings: dict[str, Any], start: Connectome) -> list[str]:
    """Prune twice, without training between; return the digests."""
    settings = dict(settings)
    schedule = GeometricSchedule(settings.pop("prune_fraction", 0.2), 2)
    pruning = Pruning(schedule, **settings)
    digests, connectome = [], start
    for generation in (1, 2):
        config = ConnectomeConfig(generation=generation)
        connectome = next_generation(model, connectome, pruning, config)
        digests.append(connectome.digest)
    return digests


def compare(kind: str, levels: int | None) -> dict[str, Any]:
    whole = model_of(kind, levels)
    scope = resolve(whole)
    start = dense_connectome(whole, scope, describe(whole, ConnectomeConfig(), scope))
    expected = {name: generations(whole, each, start) for name, each in SETTINGS.items()}
    sharded = wrapped(model_of(kind, levels), "fsdp2")
    gathered: list[str] = []
    with patch.object(shards, "full_tensor", lambda _: gathered.append("a weight")):
        found = {name: generations(sharded, each, start) for name, each in SETTINGS.items()}
    return {"expected": expected, "found": found, "gathered": gathered}


def diverged() -> str:
    """Return what every rank says of a NaN in the rows of the last."""
    whole = tiny_model("gpt2")
    scope = resolve(whole)
    start = dense_connectome(whole, scope, describe(whole, ConnectomeConfig(), scope))
    with torch.no_grad():
        whole.transformer.h[0].mlp.c_fc.weight[-1, 0] = float("nan")
    try:
        generations(wrapped(whole, "fsdp2"), {}, start)
    except ScopeError as error:
        return str(error)
    return "no error"


def main(output: Path) -> list[Any]:
    del output
    distributed.init_process_group("gloo")
    results = {name: compare(*host) for name, host in HOSTS.items()}
    return on_every_rank({"runs": results, "diverged": diverged()})


if __name__ == "__main__":
    run_worker(main)

"""Rank the weights of a model exactly: time in read passes, and memory beyond what is there.

    python benchmarks/selection.py [--model gpt2-xl] [--dtype bfloat16] [--tensors 50] [--json FILE]

A read pass is numpy's maximum over every float32 weight of the model, once. Each way goes from
weights and masks to new masks and drops 20 % of what is alive: ours per tensor and globally, both
on |w| that is there and with |w| computed, and the published code's, torch.topk over the flattened
|w| of a layer, which ranks no tie. With --device cuda, ours copies the scores to the host, as it
does in a run. Memory: the peak of a child process beyond what it held before the ranking (Linux),
in units of the largest tensor in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import finish, interleaved, parser_of, peak_memory, ratio, resident_memory

from hf_connectome.selection import keep, keep_globally
from hf_connectome.signed_mask import SignedMask

MODELS = {"tiny": (4, 128, 2048), "gpt2": (12, 768, 50257), "gpt2-xl": (48, 1600, 50257)}
"""Layers, width and vocabulary."""
FRACTION = 0.2
DENSITY = 0.8

Tensors = Mapping[str, torch.Tensor]


def shapes_of(model: str) -> dict[str, tuple[int, int]]:
    """Return the shapes of the matrices of a GPT-2."""
    layers, width, vocabulary = MODELS[model]
    shapes = {"wte": (vocabulary, width), "wpe": (1024, width)}
    for layer in range(layers):
        for name, rows, columns in (("attn", 1, 3), ("proj", 1, 1), ("fc", 1, 4), ("out", 4, 1)):
            shapes[f"{layer:02}.{name}"] = (rows * width, columns * width)
    return shapes


def weights_of(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Draw weights of the shapes of a model."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(shape, dtype=getattr(torch, options.dtype))
        .normal_(0.0, 0.02, generator=draw)
        .to(options.device)
        for name, shape in list(shapes_of(options.model).items())[: options.tensors]
    }


def published(weights: Tensors, masks: Tensors) -> None:
    """Do as the published code does: keep the largest of each layer by torch.topk."""
    for name, weight in weights.items():
        scores = (weight.abs() * masks[name]).reshape(-1)
        count = round((1 - FRACTION) * int(masks[name].sum()))
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[torch.topk(scores, count).indices] = True


def per_tensor(score_of: Callable[[str], torch.Tensor], packed: Mapping[str, SignedMask]) -> None:
    """Rank each parameter by itself; one mask is in memory at a time, as in a run."""
    for name, entry in packed.items():
        keep(score_of(name), entry.mask(), int(FRACTION * entry.num_survivors), name=name)


def ours(weights: Tensors, masks: Tensors) -> dict[str, Callable[[], object]]:
    """Return the ways that hf_connectome ranks."""
    scores = {name: weight.abs() for name, weight in weights.items()}
    n_drop = {name: int(FRACTION * int(mask.sum())) for name, mask in masks.items()}

    def each(score_of: Callable[[str], torch.Tensor]) -> None:
        for name, mask in masks.items():
            keep(score_of(name), mask, n_drop[name], name=name)

    def together(score_of: Callable[[str], torch.Tensor]) -> None:
        list(keep_globally(score_of, masks, sum(n_drop.values())).values())

    return {
        "per tensor": lambda: each(scores.__getitem__),
        "per tensor, with abs": lambda: each(lambda name: weights[name].abs()),
        "global": lambda: together(scores.__getitem__),
        "global, with abs": lambda: together(lambda name: weights[name].abs()),
    }


def times(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all ways in turn."""
    weights = weights_of(options)
    draw = torch.Generator().manual_seed(1)
    masks = {
        name: (torch.rand(weight.shape, generator=draw) < DENSITY).to(options.device)
        for name, weight in weights.items()
    }
    arrays = [weight.float().cpu().numpy() for weight in weights.values()]
    jobs: dict[str, Callable[[], object]] = {
        "read pass": lambda: [array.max() for array in arrays],
        **ours(weights, masks),
        "published code": lambda: published(weights, masks),
    }
    measured = interleaved(jobs, options.rounds, options.device)
    return [
        {
            "way": name,
            "passes": ratio(measured, name, "read pass"),
            "seconds": sorted(seconds)[len(seconds) // 2],
        }
        for name, seconds in measured.items()
    ]


def memory(options: argparse.Namespace, way: str) -> float:
    """Return what one ranking adds to a child's memory, in largest tensors."""
    more = ["--model", options.model, "--dtype", options.dtype]
    if options.tensors is not None:
        more += ["--tensors", str(options.tensors)]
    child = [sys.executable, __file__, "--child", way, *more]
    return float(subprocess.run(child, check=True, capture_output=True, text=True).stdout)


def child(options: argparse.Namespace) -> None:
    """Rank once and print by how much that raised this process's peak."""
    weights = weights_of(options)
    packed = {
        name: SignedMask.pack(torch.ones(weight.shape, dtype=torch.bool))
        for name, weight in weights.items()
    }
    before = resident_memory()
    if options.child == "global":
        masks = Unpacked(packed)
        total = sum(weight.numel() for weight in weights.values())
        kept = keep_globally(lambda name: weights[name].abs(), masks, int(FRACTION * total))
        for name in kept:
            kept[name]
    elif options.child == "per tensor":
        per_tensor(lambda name: weights[name].abs(), packed)
    print((peak_memory() - before) / (4 * max(w.numel() for w in weights.values())))


class Unpacked(dict[str, SignedMask]):
    """Masks that are unpacked when asked for, as a run's are."""

    def __getitem__(self, name: str) -> Any:
        """Return the bool mask."""
        return super().__getitem__(name).mask()


def main() -> None:
    """Print both tables."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", default="gpt2", choices=list(MODELS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tensors", type=int, help="only the first so many (a smaller proxy)")
    parser.add_argument("--memory-only", action="store_true", help="leave the times out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        child(options)
        return
    rows = [] if options.memory_only else times(options)
    peaks = [
        {"way": way, "largest tensors": memory(options, way)} for way in ("per tensor", "global")
    ]
    finish(options, [*rows, *peaks] if options.memory_only else rows, memory=peaks)
    if rows:
        for peak in peaks:
            print(f"memory, {peak['way']}: {peak['largest tensors']:.2f} largest tensors")


if __name__ == "__main__":
    main()

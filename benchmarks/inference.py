"""Decoding and reading of exported models beside the dense one, in tokens a second.

    python benchmarks/inference.py [--sizes small medium] [--densities 0.26 0.1 0.05]
        [--dtypes float32 bfloat16] [--prompt 128] [--rounds 3] [--json FILE]
    python benchmarks/inference.py --device cuda        (2:4, bfloat16; needs an NVIDIA GPU)

Models are GPT-2's with random survivors of all matrices, zeros in place. The small one is 128 wide
and stays in the cache; the medium and large ones have GPT-2's own widths (1024 and 1280), 4 layers
and 16,384 tokens, and do not. Decoding goes on after 8 tokens, with the cache of keys and values.
Columns with x are medians over interleaved rounds of dense time / exported time
(above 1 the export is faster), and of the bytes that the weights take.
"""

from __future__ import annotations

import copy
import statistics
from typing import TYPE_CHECKING, Any

import torch
from measuring import finish, interleaved, parser_of, peak_memory, ratio
from transformers import GPT2Config, GPT2LMHeadModel

from hf_connectome.export import export
from hf_connectome.export.speed import jobs, weight_bytes
from hf_connectome.hosts import wire
from hf_connectome.scope import resolve
from hf_connectome.wirings import RandomWiring

if TYPE_CHECKING:
    import argparse

    from torch import nn

SIZES: dict[str, dict[str, int]] = {
    "small": {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 2048},
    "medium": {"n_embd": 1024, "n_layer": 4, "n_head": 16, "vocab_size": 16384},
    "large": {"n_embd": 1280, "n_layer": 4, "n_head": 20, "vocab_size": 16384},
}


def dense_model(size: str, dtype: str, device: str) -> nn.Module:
    """Return a fresh model; how fast its zeros are multiplied does not depend on where they are."""
    torch.manual_seed(0)
    config = GPT2Config(**SIZES[size], bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).to(device=device, dtype=getattr(torch, dtype)).eval()


def exported(dense: nn.Module, density: float, to: str) -> nn.Module:
    """Return an export of the model under a random connectome."""
    model = copy.deepcopy(dense)
    wiring = RandomWiring(structure="2:4" if to == "semi-structured" else "")
    connectome = wiring.build(resolve(model), density, seed=0)
    wire(model, connectome, reset="keep")
    return export(model, connectome, to=to)


def measure(options: argparse.Namespace, size: str, dtype: str) -> dict[str, Any]:
    """Return one row a density, and the seconds of every round."""
    to = "csr" if options.device == "cpu" else "semi-structured"
    models = {"dense": dense_model(size, dtype, options.device)}
    for density in options.densities:
        models[str(density)] = exported(models["dense"], density, to)
    work = {n: jobs(model, prompt=options.prompt, tokens=4) for n, model in models.items()}
    seconds = {
        job: interleaved({n: w[job][0] for n, w in work.items()}, options.rounds, options.device)
        for job in work["dense"]
    }
    rows = []
    for density in map(str, options.densities):
        row: dict[str, Any] = {"size": size, "dtype": dtype, "density": density}
        for job, times in seconds.items():
            row[f"{job}: dense/s"] = work["dense"][job][1] / statistics.median(times["dense"])
            row[f"{job}: x"] = ratio(times, "dense", density)
        if to == "csr":
            row["memory: x"] = weight_bytes(models["dense"]) / weight_bytes(models[density])
        rows.append(row)
    return {"rows": rows, "seconds": seconds}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "medium"])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.26, 0.1, 0.05])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.device != "cpu":
        options.densities, options.dtypes = [0.5], ["bfloat16"]
    torch.set_num_threads(1)
    found = [measure(options, s, dtype) for s in options.sizes for dtype in options.dtypes]
    rows = [row for one in found for row in one["rows"]]
    seconds = [one["seconds"] for one in found]
    finish(options, rows, seconds=seconds, peak_bytes=peak_memory(options.device))


if __name__ == "__main__":
    main()

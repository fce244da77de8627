"""Time a training step under a 25 % connectome against the dense step, side by side.

Beside it the step of outer_loop iht, which keeps the largest 25 % of every matrix anew.

    python benchmarks/training_step.py [--device cuda] [--json]

Rounds of dense, dense again (the noise), masked and iht steps alternate in one process; the figure
is the median over rounds of process CPU time (CUDA: wall time after a synchronise) per step, as a
ratio to dense.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_connectome import MaskEnforcer
from hf_connectome.hosts import wire
from hf_connectome.outer_loops.thresholds import HardThresholds
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.wirings import wirings

SIZES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8192},
    "gpt2": {},
}


def stepper(size: str, tokens: int, device: str, held: str = "") -> Callable[[], None]:
    """Return a function that runs one training step of a fresh model; held: masked, iht or not."""
    torch.manual_seed(0)
    config = GPT2Config(**SIZES[size], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scope = resolve(model)
    if held == "masked":
        connectome = wirings.get("random")().build(scope, 0.25, seed=0)
        wire(model, connectome, reset="sign_constant")
        MaskEnforcer(model, connectome).attach(optimizer)
    if held == "iht":
        parameters = {n: p for n, p in parameters_of(model).items() if n in scope}
        thresholds = HardThresholds(parameters).attach(optimizer)
        thresholds.n_drop = {n: round(0.75 * p.numel()) for n, p in parameters.items()}
    ids = torch.randint(0, config.vocab_size, (max(tokens // 128, 1), 128), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], count: int, device: str) -> float:
    """Return seconds a step."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    began = clock()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / count


def compare(size: str, tokens: int, device: str, rounds: int) -> dict[str, float]:
    """Return the median ratios to the dense step."""
    steps = {
        "dense": stepper(size, tokens, device),
        "dense_again": stepper(size, tokens, device),
        "masked": stepper(size, tokens, device, "masked"),
        "iht": stepper(size, tokens, device, "iht"),
    }
    count = max(1, round(0.3 / max(measure(steps["dense"], 2, device), 1e-3)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(measure(step, count, device))
    pairs = {
        name: [ours / dense for ours, dense in zip(times[name], times["dense"], strict=True)]
        for name in ("dense_again", "masked", "iht")
    }
    return {
        "dense_seconds": statistics.median(times["dense"]),
        **{name: statistics.median(ratios) for name, ratios in pairs.items()},
    }


def main() -> None:
    """Print a row a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=list(SIZES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        {"size": size, "tokens": tokens, **compare(size, tokens, options.device, options.rounds)}
        for size in options.sizes
        for tokens in options.tokens
    ]
    about = f"torch {torch.__version__}, {options.device}, {platform.machine()}, "
    about += f"{torch.get_num_threads()} threads"
    if options.json:
        print(json.dumps({"about": about, "rows": rows}, indent=1))
        return
    print(about)
    print("size    tokens   dense s/step   dense again   masked      iht    (ratios to dense)")
    for row in rows:
        print(
            f"{row['size']:<7} {row['tokens']:>6} {row['dense_seconds']:>14.4f}"
            f" {row['dense_again']:>13.3f} {row['masked']:>8.3f} {row['iht']:>8.3f}"
        )


if __name__ == "__main__":
    main()

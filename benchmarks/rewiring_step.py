"""Time one update of each rewiring method against a training step, side by side.

    python benchmarks/rewiring_step.py [--size small] [--json]

A step is forward, backward and AdamW under masks; the update is what a method adds at its interval.
Figures are medians over rounds of process CPU time: seconds, the ratio to a step, and the overhead
of a training that updates every 100 steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_connectome import MaskEnforcer
from hf_connectome.hosts import wire
from hf_connectome.rewiring import Rewirer, rewirings
from hf_connectome.scope import resolve
from hf_connectome.wirings import wirings

SIZES = {
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048},
    "small": {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8192},
    "gpt2": {},
}
INTERVAL = 100


def measure(name: str, size: str, tokens: int, density: float, rounds: int) -> dict[str, object]:
    """Return the medians of one method."""
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**SIZES[size], **dropout, **special)
    model = GPT2LMHeadModel(config)
    connectome = wirings.get("random")().build(resolve(model), density, seed=0)
    wire(model, connectome, reset="sign_constant")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    enforcer = MaskEnforcer(model, connectome).attach(optimizer)
    settings = {"density": density / 2} if rewirings.get(name).thins else {}
    method = rewirings.get(name)(interval=1, until=1.0, **settings)
    rewirer = Rewirer(method, enforcer, first=connectome, seed=0, num_steps=2 * rounds + 4)
    ids = torch.randint(0, config.vocab_size, (max(tokens // 128, 1), 128))
    steps, updates = [], []
    for number in range(1, rounds + 2):
        began = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain = time.process_time() - began
        began = time.process_time()
        rewirer.watch(number)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rewirer.update(number)
        enforcer.observer = None
        if number > 1:  # the first round warms up
            steps.append(plain)
            updates.append(time.process_time() - began - plain)
    step, update = statistics.median(steps), statistics.median(updates)
    return {
        "method": name,
        "step_seconds": step,
        "update_seconds": update,
        "update_to_step": update / step,
        "overhead": update / step / INTERVAL,
    }


def main() -> None:
    """Print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        measure(name, options.size, options.tokens, options.density, options.rounds)
        for name in rewirings
    ]
    about = f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"
    about += f", {options.size}, {options.tokens} tokens a step, density {options.density}"
    if options.json:
        print(json.dumps({"about": about, "rows": rows}, indent=1))
        return
    print(about)
    print(f"method   step s   update s   update / step   at every {INTERVAL} steps")
    for row in rows:
        print(
            f"{row['method']:<7} {row['step_seconds']:>7.4f} {row['update_seconds']:>10.4f} "
            f"{row['update_to_step']:>15.2f} {row['overhead']:>+20.2%}"
        )


if __name__ == "__main__":
    main()

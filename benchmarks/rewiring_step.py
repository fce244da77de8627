"""Time one update of each rewiring method against a training step, side by side.

    python benchmarks/rewiring_step.py [--size gpt2-small] [--json FILE]

A step is forward, backward and AdamW under masks; the update is what a method adds at its interval.
Figures are medians over rounds of process CPU time: seconds, the ratio to a step, and the overhead
of a training that updates every 100 steps.
"""

from __future__ import annotations

import statistics

import torch
from hosts import BLOCK, SIZES, fresh
from measuring import finish, parser_of, timed

from hf_connectome import MaskEnforcer
from hf_connectome.hosts import wire
from hf_connectome.rewiring import Rewirer, rewirings
from hf_connectome.scope import resolve
from hf_connectome.wirings import wirings

INTERVAL = 100


def measure(name: str, size: str, tokens: int, density: float, rounds: int) -> dict[str, object]:
    """Return the medians of one method."""
    model = fresh(size)
    connectome = wirings.get("random")().build(resolve(model), density, seed=0)
    wire(model, connectome, reset="sign_constant")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    enforcer = MaskEnforcer(model, connectome).attach(optimizer)
    settings = {"density": density / 2} if rewirings.get(name).thins else {}
    method = rewirings.get(name)(interval=1, until=1.0, **settings)
    rewirer = Rewirer(method, enforcer, first=connectome, seed=0, num_steps=2 * rounds + 4)
    ids = torch.randint(0, 2048, (max(tokens // BLOCK, 1), BLOCK))
    steps, updates = [], []

    def step_once() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def step_and_update() -> None:
        rewirer.watch(number)
        step_once()
        rewirer.update(number)

    for number in range(1, rounds + 2):
        plain, moved = timed(step_once), timed(step_and_update)
        enforcer.observer = None
        if number > 1:  # the first round warms up
            steps.append(plain)
            updates.append(moved - plain)
    step, update = statistics.median(steps), statistics.median(updates)
    return {
        "method": name,
        "step s": step,
        "update s": update,
        "update / step": update / step,
        f"at every {INTERVAL} steps": f"{update / step / INTERVAL:+.2%}",
    }


def main() -> None:
    """Print a row a method."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--size", default="gpt2-tiny", choices=SIZES)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--density", type=float, default=0.25)
    options = parser.parse_args()
    rows = [
        measure(name, options.size, options.tokens, options.density, options.rounds)
        for name in rewirings
    ]
    finish(options, rows)


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]", "scikit-learn"]
# ///
"""Compare wirings that stay with wirings whose links move, at equal density, on two small tasks.

    python recipes/studies/rewiring.py tune lm --output runs/rewiring-lm
    python recipes/studies/rewiring.py compare lm --output runs/rewiring-lm --shard 1/2
    python recipes/studies/rewiring.py report lm --output runs/rewiring-lm

lm: a GPT-2 of two layers on text; every matrix but the embeddings is sparse. mlp: three hidden
layers on scikit-learn's digits, every matrix sparse. "tune" finds the learning rate of dense
networks, of randomly wired ones and of GraNet, which begins denser and thins out, on seeds of their
own; "compare" trains every method on the same seeds and batches, at the best rate of its kind;
"report" writes results.json, table.md and figure.png. Every
run is a file under runs/, written when it is there and never redone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rewiring_tasks import STEPS, TASKS, Task
from torch import nn

from hf_connectome import MaskEnforcer
from hf_connectome.analysis.drawing import BLACK, BLUE, GREY, written_figure
from hf_connectome.errors import ConfigError, RunError
from hf_connectome.evaluation.paired import mean_estimate, paired_difference
from hf_connectome.hosts import wire
from hf_connectome.parsing import friendly_errors
from hf_connectome.rewiring import Rewirer, get_rewiring, rewirings
from hf_connectome.rewiring.chains import find_chains, share_of_neurons_in_use
from hf_connectome.runs import claim
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.seeding import generator
from hf_connectome.storage import write_atomically
from hf_connectome.wirings import wirings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hf_connectome.connectome import Connectome
    from hf_connectome.scope import ScopedParameter

STATIC = ("random", "erk", "brf")
MOVING = ("set", "rigl", "mest", "granet", "cht", "chts", "chtss")
METHODS = ("dense", *STATIC, *MOVING)
FIRST_DENSITY = 0.5
"""Where methods that thin begin, as in the CHT papers."""
FIRST_TUNING_SEED = 1000
THINNING = "granet"
"""Whose learning rate the methods have that thin out."""
UPDATES = 24
"""Updates in the part of the training in which links move, where the steps allow it."""


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    density: float
    rate: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its result."""
        return f"{self.method}-{self.density:g}-{self.rate:g}-seed{self.seed}.json"


# ---- one run -------------------------------------------------------------------------------------


def first_wiring(
    run: Run, model: nn.Module, scope: Mapping[str, ScopedParameter]
) -> Connectome | None:
    """Return what a run starts from; the thinning methods start denser."""
    if run.method == "dense":
        return None
    thins = run.method in rewirings and rewirings.get(run.method).thins
    density = max(FIRST_DENSITY, run.density) if thins else run.density
    name = run.method if run.method in STATIC else "random"
    drawn = wirings.get(name)().build(scope, density, run.seed)
    wire(model, drawn, reset="keep")
    with torch.no_grad():  # a sparse layer's outputs vary as those of the dense one
        for key, parameter in parameters_of(model).items():
            if key in drawn:
                parameter.mul_(drawn[key].density ** -0.5)
    return drawn


def method_of(run: Run, num_steps: int) -> str:
    """Return the method's text; only the interval is ours, all else its default."""
    interval = max(1, int(0.75 * num_steps) // UPDATES)
    density = f",density={run.density}" if rewirings.get(run.method).thins else ""
    return f"{run.method}:interval={interval}{density}"


def batches(task: Task, seed: int, num_steps: int) -> Iterator[Tensor]:
    """Give the batches of a seed, the same for every method."""
    draw = generator(seed, "batches")
    for _ in range(num_steps):
        yield task.train[torch.randint(len(task.train), (task.batch,), generator=draw)]


def train(task: Task, run: Run, num_steps: int) -> dict[str, Any]:
    """Train one network and measure it."""
    torch.manual_seed(run.seed)
    model = task.model()
    scope = resolve(model, "body")
    first = first_wiring(run, model, scope)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.0)
    warmup = num_steps // 10
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / num_steps)),
    )
    enforcer = None if first is None else MaskEnforcer(model, first).attach(optimizer)
    rewirer = None
    if enforcer is not None and first is not None and run.method in MOVING:
        method = get_rewiring(method_of(run, num_steps))
        rewirer = Rewirer(method, enforcer, first=first, seed=run.seed, num_steps=num_steps)
    began, records = time.monotonic(), []
    for step, batch in enumerate(batches(task, run.seed, num_steps), start=1):
        if rewirer is not None:
            rewirer.watch(step)
        task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if rewirer is not None and (record := rewirer.update(step)) is not None:
            records.append({"step": step, **record})
    seconds = time.monotonic() - began
    wiring = None if enforcer is None else enforcer.connectome
    return asdict(run) | {
        "seconds": seconds,
        **measured(task, model, wiring, scope),
        "updates": records,
    }


@torch.no_grad()
def measured(
    task: Task,
    model: nn.Module,
    wiring: Connectome | None,
    scope: Mapping[str, ScopedParameter],
) -> dict[str, Any]:
    """Return held-out loss and accuracy, links left, and the share of hidden neurons in use."""
    model.eval()
    parts = task.held_out.split(64)
    losses = [float(task.loss(model, part)) * len(part) for part in parts]
    num_weights = sum(math.prod(p.shape) for p in scope.values())
    found: dict[str, Any] = {
        "loss": sum(losses) / len(task.held_out),
        "links": num_weights if wiring is None else wiring.num_survivors,
        "num_weights": num_weights,
        "neurons": 1.0,
    }
    if task.accuracy is not None:
        found["accuracy"] = task.accuracy(model, task.held_out)
    if wiring is not None:
        masks = {name: wiring.mask(name) for name in wiring}
        found["neurons"] = share_of_neurons_in_use(masks, find_chains(model, scope), scope)
    return found


# ---- many runs -----------------------------------------------------------------------------------


def tuning_runs(task: Task, num_seeds: int) -> list[Run]:
    """Return the grid: dense, and randomly wired at each density."""
    kinds = [("dense", 1.0), *itertools.product(("random", THINNING), task.densities)]
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + num_seeds)
    return [Run(*kind, rate, seed) for seed in seeds for kind in kinds for rate in task.rates]


def kind_of(method: str) -> str:
    """Return the method whose tuned learning rate a method has."""
    thins = method in rewirings and rewirings.get(method).thins
    return method if method == "dense" else THINNING if thins else "random"


def best_rates(task: Task, output: Path, num_seeds: int) -> dict[tuple[str, float], float]:
    """Return (tuned method, density) -> learning rate of least mean held-out loss.

    Raises:
        RunError: a run of the grid is missing.
    """
    losses: dict[tuple[str, float], dict[float, list[float]]] = {}
    for run in tuning_runs(task, num_seeds):
        result = stored(output, run)
        if result is None:
            raise RunError(
                f"{output} lacks the tuning run {run.file}. Finish 'tune' first, with the same "
                "--tuning_seeds."
            )
        by_rate = losses.setdefault((run.method, run.density), {})
        by_rate.setdefault(run.rate, []).append(result["loss"])

    return {
        kind: min(by_rate, key=lambda rate: sum(by_rate[rate])) for kind, by_rate in losses.items()
    }


def comparing_runs(
    task: Task, rates: Mapping[tuple[str, float], float], methods: Sequence[str], num_seeds: int
) -> list[Run]:
    """Return every method at every density, seed by seed, so that what is there is paired."""
    known = [m for m in methods if m == "dense" or m in wirings or m in rewirings]
    for name in sorted(set(methods) - set(known)):
        print(f"{name}: no such wiring in this version; it is left out")
    return [
        Run(method, density, rates[kind_of(method), density], seed)
        for seed in range(num_seeds)
        for method in known
        for density in ((1.0,) if method == "dense" else task.densities)
    ]


def stored(output: Path, run: Run) -> dict[str, Any] | None:
    """Return a run's result, None if it is not there."""
    file = output / "runs" / run.file
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def do(task: Task, runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Train what is missing of this shard, one line a run."""
    part, num_parts = options.shard
    mine = runs[part - 1 :: num_parts]
    for number, run in enumerate(mine, start=1):
        result = stored(options.output, run)
        if result is None:
            result = train(task, run, options.steps)
            (options.output / "runs").mkdir(exist_ok=True)
            write_atomically(options.output / "runs" / run.file, json.dumps(result).encode())
        print(
            f"{number:>3}/{len(mine)}  {run.method:<7} density {run.density:<5g} rate "
            f"{run.rate:<6g} seed {run.seed:<5} loss {result['loss']:.4f}  neurons "
            f"{result['neurons']:.0%}  {result['seconds']:.1f} s",
            flush=True,
        )


# ---- report --------------------------------------------------------------------------------------


def report(
    task: Task, runs: Sequence[Run], rates: Mapping[tuple[str, float], float], output: Path
) -> None:
    """Write results.json, table.md and figure.png from the runs that are there."""
    found: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for run in runs:
        if (result := stored(output, run)) is not None:
            found.setdefault((run.method, run.density), {})[run.seed] = result
    rows = [row_of(key, results, found) for key, results in found.items()]
    lines = [
        "| method | density | rate | held-out loss | minus random (95 % interval) | accuracy "
        "| neurons in use | seeds | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = f"{row['accuracy']:.1%}" if "accuracy" in row else "-"
        rate = rates[kind_of(row["method"]), row["density"]]
        lines.append(
            f"| {row['method']} | {row['density']:g} | {rate:g} | "
            f"{row['loss']:.4f} | {difference_cell(row['minus_random'])} | {accuracy} | "
            f"{row['neurons']:.0%} | {row['seeds']} | {row['seconds']:.0f} |"
        )
    print("\n".join(lines))
    write_atomically(output / "table.md", ("\n".join(lines) + "\n").encode())
    named = {f"{kind} {density:g}": rate for (kind, density), rate in rates.items()}
    text = json.dumps({"rates": named, "rows": rows}, indent=1) + "\n"
    write_atomically(output / "results.json", text.encode())
    draw(rows, task.densities, output / "figure.png")


def row_of(
    key: tuple[str, float],
    results: Mapping[int, Mapping[str, Any]],
    found: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return the means of one method, and its difference to the random wiring of the same seeds."""
    method, density = key
    keys = [
        k for k in ("loss", "accuracy", "neurons", "seconds", "links") if k in results[min(results)]
    ]
    row: dict[str, Any] = {"method": method, "density": density, "seeds": len(results)}
    row |= {k: mean_estimate([r[k] for r in results.values()]).value for k in keys}
    random = found.get(("random", density), {})
    shared = sorted(results.keys() & random.keys())
    row["minus_random"] = None
    if shared and method != "random":
        ours, theirs = ([runs[seed]["loss"] for seed in shared] for runs in (results, random))
        row["minus_random"] = asdict(paired_difference(ours, theirs))
    return row


def difference_cell(difference: Mapping[str, float | None] | None) -> str:
    """Return a difference as text."""
    if difference is None:
        return "-"
    if difference["low"] is None:
        return f"{difference['mean']:+.4f}"
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def draw(rows: Sequence[Mapping[str, Any]], densities: Sequence[float], path: Path) -> None:
    """Draw a panel a density: each method's difference to the random wiring, with its interval."""
    try:
        with written_figure(path, (7.0 * len(densities), 5.0)) as figure:
            for number, density in enumerate(densities, start=1):
                axes = figure.add_subplot(1, len(densities), number)
                shown = [r for r in rows if r["density"] == density and r["minus_random"]]
                for place, row in enumerate(shown):
                    gap = row["minus_random"]
                    colour = BLUE if row["method"] in MOVING else BLACK
                    axes.plot(gap["mean"], place, "o", color=colour)
                    if gap["low"] is not None:
                        axes.plot([gap["low"], gap["high"]], [place, place], color=colour)
                axes.axvline(0.0, color=GREY, linewidth=1)
                axes.set_yticks(range(len(shown)), [row["method"] for row in shown])
                axes.set_xlabel("held-out loss minus that of a random wiring (nats)")
                axes.set_title(f"density {density:g}")
    except ConfigError as error:
        print(f"no {path.name}: {error}")


# ---- command line --------------------------------------------------------------------------------


def shard(text: str) -> tuple[int, int]:
    """Read ``2/4``."""
    part, _, num_parts = text.partition("/")
    found = int(part), int(num_parts)
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text} is no part of a whole, such as 2/4")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(
        prog="rewiring.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("tune", "compare", "report"))
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: 400 for lm, 600 for mlp")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--tuning_seeds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD")
    parser.add_argument("--dataset", default="python-stdlib", help="for lm")
    parser.add_argument("--eval_dataset", help="for lm")
    parser.add_argument("--width", type=int, default=1000, help="hidden neurons a layer, for mlp")
    parser.add_argument("--shard", type=shard, default=(1, 1), help="part of the runs, as 1/2")
    options = parser.parse_args(argv)
    options.steps = options.steps or STEPS[options.task]
    with friendly_errors("rewiring.py"):
        settings = {k: getattr(options, k) for k in ("task", "steps", "dataset", "width")}
        claim(options.output, settings)
        task = TASKS[options.task](options)
        if options.stage == "tune":
            do(task, tuning_runs(task, options.tuning_seeds), options)
            return
        rates = best_rates(task, options.output, options.tuning_seeds)
        runs = comparing_runs(task, rates, options.methods, options.seeds)
        if options.stage == "compare":
            do(task, runs, options)
        report(task, runs, rates, options.output)


if __name__ == "__main__":
    main()

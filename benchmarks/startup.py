"""Start-up: imports and --help in processes of their own, and a fresh model under a connectome.

    python benchmarks/startup.py [--model-overrides n_layer=2] [--rounds 5] [--json FILE]

Wall time and CPU time of a whole process, beside a process that only imports torch; then, in this
process and in CPU time, ConnectomeModel.from_pretrained of a 25 % connectome of GPT-2 small beside
the dense model built from the same config. Jobs take turns; the figures are medians over rounds of
the ratio within a round. With --device cuda only the versions in the record change.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import finish, interleaved, parser_of, ratio
from transformers import AutoModelForCausalLM

from hf_connectome import ConnectomeConfig, ConnectomeModel
from hf_connectome.fresh import ModelArguments, fresh_model
from hf_connectome.hosts import describe
from hf_connectome.scope import resolve
from hf_connectome.storage import write
from hf_connectome.wirings import wirings

PROCESSES = {
    "import torch": ["-c", "import torch"],
    "import hf_connectome": ["-c", "import hf_connectome"],
    "from hf_connectome import Connectome": ["-c", "from hf_connectome import Connectome"],
    "hf-connectome --help": ["-m", "hf_connectome.cli", "--help"],
}


def run(arguments: list[str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def processes(rounds: int) -> list[dict[str, Any]]:
    """Start every process once a round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROCESSES}
    for number in range(rounds + 1):
        for name, arguments in PROCESSES.items():
            seconds = run(arguments)
            if number:  # the first round fills the page cache
                times[name].append(seconds)
    reference = "import torch"
    return [
        {
            "what": name,
            "wall seconds": statistics.median(wall for wall, _ in found),
            "CPU seconds": statistics.median(cpu for _, cpu in found),
            f"CPU / {reference}": statistics.median(
                cpu / other for (_, cpu), (_, other) in zip(found, times[reference], strict=True)
            ),
        }
        for name, found in times.items()
    ]


def loading(overrides: str | None, rounds: int, folder: str) -> dict[str, Any]:
    """Time a fresh model under a connectome against the dense model."""
    model = fresh_model(ModelArguments("gpt2", overrides), tokenizer=None, block_size=1, seed=0)
    scope = resolve(model)
    drawn = wirings.get("random")().build(scope, 0.25, seed=0)
    config = describe(model, ConnectomeConfig(density=0.25, reset="sign_constant"), scope)
    write(drawn.replace(config=config), folder)
    jobs: dict[str, Callable[[], object]] = {
        "dense": lambda: AutoModelForCausalLM.from_config(model.config, dtype=torch.float32),
        "fresh": lambda: ConnectomeModel.from_pretrained(folder, seed=0),
    }
    times = interleaved(jobs, rounds)
    return {
        "dense CPU seconds": statistics.median(times["dense"]),
        "from_pretrained CPU seconds": statistics.median(times["fresh"]),
        "from_pretrained / dense": ratio(times, "fresh", "dense"),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
    }


def main() -> None:
    """Print what starts, and below it what loads."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model-overrides", metavar="KEY=VALUE", help="a smaller GPT-2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loaded = loading(options.model_overrides, options.rounds, folder)
    finish(options, processes(options.rounds), loading=loaded)
    for key, value in loaded.items():
        print(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value:,}")


if __name__ == "__main__":
    main()

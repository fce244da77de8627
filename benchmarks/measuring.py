"""What the benchmarks share: interleaved rounds, their medians and ratios, a record of the machine.

Jobs take turns, so that what else the machine does falls on all of them alike. The clock is CPU
time of this process, all its threads (CUDA: wall time between two synchronisations).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy")


def parser_of(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark.

    Args:
        description: the docstring of the benchmark.
        rounds: how often each job is timed by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the full record")
    return parser


def timed(job: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    job()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def interleaved(
    jobs: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time every job once a round, after a round that is not counted.

    Args:
        jobs: name -> what is timed.
        rounds: how often each is timed.
        device: cpu or cuda.

    Returns:
        Name -> seconds a round.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            seconds = timed(job, device)
            if number:
                times[name].append(seconds)
    return times


def ratio(times: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Return the median over rounds of one job's time by the reference's of the same round."""
    pairs = zip(times[name], times[reference], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def peak_memory(device: str = "cpu") -> int:
    """Return the most bytes so far: resident in this process (Linux), or on the device."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def resident_memory() -> int:
    """Return the bytes that are resident in this process now (Linux)."""
    return _status("VmRSS")


def _status(key: str) -> int:
    # ru_maxrss would begin at the peak of the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe what was measured on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    found: dict[str, Any] = {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device != "cpu":
        found["device"] = torch.cuda.get_device_name()
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; floats with three significant digits."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finish(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Print the rows, and write them with the machine if ``--json`` asks for it."""
    print(table(rows))
    if options.json is None:
        return
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    record = {"command": command, "machine": machine(options.device), "rows": rows, **more}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

"""Size, speed and memory of a connectome's file beside safetensors' file of the dense weights.

    python benchmarks/file.py [--connectomes FOLDER ...] [--rounds 5] [--json]

Sizes: of a random 25 % connectome of GPT-2 small (50 matrices, 124,318,464 weights) and of the
connectomes in the folders given, as ratios to bf16 (how often smaller) and to the entropy floor of
independent weights, sum of n (H(d) + d) over the tensors. Times: of the random one, medians over
interleaved rounds, as ratios to the dense float32 file. To load is to check all of a connectome,
and to have read every byte of a dense file, which safetensors itself only maps. Memory: what a
child process takes for one load beyond what it has after its imports (Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_connectome import Connectome, ConnectomeConfig
from hf_connectome.architecture import build_host
from hf_connectome.codecs import CODECS
from hf_connectome.hosts import describe
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.storage import WEIGHTS_FILE, read, read_config, to_bytes, write
from hf_connectome.wirings import wirings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def gpt2_connectome(density: float) -> Connectome:
    """Draw a connectome over all matrices of GPT-2 small."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    scope = resolve(model)
    drawn = wirings.get("random")().build(scope, density, seed=0)
    return drawn.replace(config=describe(model, ConnectomeConfig(density=density), scope))


def floor_bytes(connectome: Connectome) -> float:
    """Return the bytes that no code goes below where weights and signs are independent."""
    bits = 0.0
    for entry in connectome.values():
        d = entry.density
        entropy = -sum(p * math.log2(p) for p in (d, 1 - d) if p)
        bits += entry.num_weights * (entropy + (d if entry.sign_bits is not None else 0.0))
    return bits / 8


def sizes(name: str, connectome: Connectome) -> list[dict[str, object]]:
    """Return a row a codec; whole files, header included."""
    weights, floor = connectome.num_weights, floor_bytes(connectome)
    rows: list[dict[str, object]] = []
    for codec in CODECS:
        count = len(to_bytes(connectome, codec=codec))
        rows.append(
            {
                "connectome": name,
                "weights": weights,
                "density": connectome.density,
                "codec": codec,
                "bytes": count,
                "bits_per_weight": 8 * count / weights,
                "smaller_than_bf16": 2 * weights / count,
                "to_floor": count / floor,
            }
        )
    return rows


def read_whole(file: Path) -> dict[str, torch.Tensor]:
    """Load a dense file as its user would: into memory of its own."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def prepared(connectome: Connectome, folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """Return what is timed: 'save' and 'load' -> kind of file -> function."""
    assert connectome.config is not None
    host = build_host(connectome.config, seed=0)
    dense = {name: p.detach().clone() for name, p in parameters_of(host).items()}
    jobs: dict[str, dict[str, Callable[[], object]]] = {"save": {}, "load": {}}
    for name, dtype in DTYPES.items():
        tensors = {key: tensor.to(dtype) for key, tensor in dense.items()}
        file = folder / f"{name}.safetensors"
        jobs["save"][name] = lambda tensors=tensors, file=file: save_file(tensors, file)
        jobs["load"][name] = lambda file=file: read_whole(file)
        if name == "float32":
            jobs["load"]["float32, mapped only"] = lambda file=file: load_file(file)
    for codec in CODECS:
        path = folder / codec
        jobs["save"][codec] = lambda path=path, codec=codec: write(connectome, path, codec=codec)
        jobs["load"][codec] = lambda path=path: read(path)
        # The library's own part: the bytes in memory, no disk that others share.
        jobs["save"][f"{codec}, encode only"] = lambda codec=codec: to_bytes(
            connectome, codec=codec
        )
        jobs["load"][f"{codec}, host given"] = lambda path=path, host=host: read(path, host=host)
    return jobs


def times(connectome: Connectome, folder: Path, rounds: int) -> list[dict[str, object]]:
    """Return a row an operation and kind of file: medians, and their ratios to float32."""
    jobs = prepared(connectome, folder)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        for operation, kinds in jobs.items():
            for kind, job in kinds.items():
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                spent = (time.perf_counter() - wall, time.process_time() - cpu)
                if number:  # the first round warms up
                    taken.setdefault((operation, kind), []).append(spent)
    rows: list[dict[str, object]] = []
    for (operation, kind), spent in taken.items():
        dense = taken[operation, "float32"]
        wall, cpu = (statistics.median(s[i] for s in spent) for i in (0, 1))
        ratio = [
            statistics.median(s[i] / d[i] for s, d in zip(spent, dense, strict=True))
            for i in (0, 1)
        ]
        rows.append(
            {
                "operation": operation,
                "kind": kind,
                "wall_seconds": wall,
                "cpu_seconds": cpu,
                "wall_to_float32": ratio[0],
                "cpu_to_float32": ratio[1],
                "weights_per_cpu_second": connectome.num_weights / cpu,
            }
        )
    return rows


def taken_by_load(path: Path) -> None:
    """Print how many bytes one load takes; runs in a process of its own."""
    if path.is_dir():
        build_host(read_config(path), device="meta")  # imports the model's module
    before = highest_memory()
    kept = read(path) if path.is_dir() else read_whole(path)
    print(highest_memory() - before, len(kept))


def highest_memory() -> int:
    """Return the peak of resident bytes. ru_maxrss would begin at that of the parent process."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def memory(folder: Path) -> list[dict[str, object]]:
    """Return a row a kind of file, once each was saved."""
    rows: list[dict[str, object]] = []
    files = [folder / f"{name}.safetensors" for name in DTYPES]
    for path in [*files, *(folder / codec for codec in CODECS)]:
        command = [sys.executable, __file__, "--memory-of-load", str(path)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        size = (path / WEIGHTS_FILE if path.is_dir() else path).stat().st_size
        peak = int(ran.stdout.split()[0])
        rows.append({"kind": path.stem, "peak_bytes": peak, "to_file": peak / size})
    return rows


def show(found: dict[str, list[dict[str, object]]]) -> None:
    """Print a table each."""
    for title, rows in found.items():
        print(f"\n{title}")
        cells = [list(rows[0])]
        cells += [
            [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    """Print three tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connectomes", nargs="*", type=Path, default=[], help="for sizes")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes-only", action="store_true")
    parser.add_argument("--memory-of-load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.memory_of_load is not None:
        taken_by_load(options.memory_of_load)
        return
    random = gpt2_connectome(options.density)
    found = {"sizes": sizes("random GPT-2 small", random)}
    for path in options.connectomes:
        found["sizes"] += sizes(os.fspath(path), read(path))
    if not options.sizes_only:
        with tempfile.TemporaryDirectory() as folder:
            found["times"] = times(random, Path(folder), options.rounds)
            found["memory"] = memory(Path(folder))
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if options.json:
        print(json.dumps({"about": about, **found}, indent=1))
        return
    print(about)
    show(found)


if __name__ == "__main__":
    main()

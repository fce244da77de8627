"""Size and speed of a connectome's file beside safetensors' file of the dense weights.

    python benchmarks/file.py [--connectomes FOLDER ...] [--run RUN] [--rounds 3] [--json FILE]

Sizes: of a random 25 % connectome (4 layers of GPT-2 small's width without embeddings, and the two
evolved ones in model_cards/), of the connectomes in the folders given, and of a run's generations
apart beside its lineage in one file. They are ratios to bf16 (how often smaller) and to the
entropy floor of independent weights, per layer: the sum of n (H(d) + d) over the tensors. Each is
a whole file; "planes" leaves out the header. Speed: of the random one, CPU time, medians over
interleaved rounds. To load is to check all of a connectome, and to have read every byte of a dense
file, which safetensors itself only maps. Nothing here runs on an accelerator.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import finish, interleaved, parser_of, peak_memory, ratio, table
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_connectome import Connectome, ConnectomeConfig
from hf_connectome.architecture import build_host
from hf_connectome.arrays import to_arrays
from hf_connectome.cards.facts import floor_bits
from hf_connectome.codecs import CODECS, decode, encode
from hf_connectome.hosts import describe
from hf_connectome.lineages import read_lineage, read_run, write_lineage
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.storage import read, to_bytes, write
from hf_connectome.wirings import wirings

if TYPE_CHECKING:
    from collections.abc import Callable

CARDS = Path(__file__).parents[1] / "model_cards"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_connectome(density: float, num_layers: int) -> Connectome:
    """Draw a connectome over the matrices of a GPT-2 of small's width and a small vocabulary."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(
            GPT2Config(n_layer=num_layers, vocab_size=4096, bos_token_id=0, eos_token_id=0)
        )
    scope = resolve(model)
    drawn = wirings.get("random")().build(scope, density, seed=0)
    return drawn.replace(config=describe(model, ConnectomeConfig(density=density), scope))


def sizes(name: str, connectome: Connectome) -> list[dict[str, Any]]:
    """Return a row a codec."""
    rows = []
    for codec in CODECS:
        planes = to_arrays(connectome, codec=codec).values()
        num_bytes, floor = len(to_bytes(connectome, codec=codec)), floor_bits(connectome)
        rows.append(
            {
                "connectome": name,
                "weights": connectome.num_weights,
                "density": connectome.density,
                "codec": codec,
                "bytes": num_bytes,
                "bits a weight": 8 * num_bytes / connectome.num_weights,
                "smaller than bf16": 2 * connectome.num_weights / num_bytes,
                "to the floor": 8 * num_bytes / floor,
                "planes to the floor": 8 * sum(plane.nbytes for plane in planes) / floor,
            }
        )
    return rows


def lineage_sizes(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Return a row a codec of the files apart: the one file of all generations beside them."""
    connectomes, file = read_run(run), folder / "lineage.safetensors"
    write_lineage(connectomes, file)
    found = list(read_lineage(file).values())
    assert [one.digest for one in found] == [one.digest for one in connectomes]
    rows = []
    for codec in CODECS:
        apart = sum(len(to_bytes(one, codec=codec)) for one in connectomes)
        one = file.stat().st_size
        row = {"run": run.name, "generations": len(found), "lineage bytes": one, "codec": codec}
        rows.append(row | {"bytes apart": apart, "lineage to apart": one / apart})
    return rows


def read_whole(file: Path) -> dict[str, torch.Tensor]:
    """Load a dense file as its user would: into memory of its own."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def jobs_of(connectome: Connectome, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed; 'encode' and 'decode' are the codec alone, from and to packed bits."""
    assert connectome.config is not None
    host = build_host(connectome.config, seed=0)
    dense = {name: p.detach().clone() for name, p in parameters_of(host).items()}
    jobs: dict[str, Callable[[], object]] = {}
    for name, dtype in DTYPES.items():
        tensors = {key: tensor.to(dtype) for key, tensor in dense.items()}
        file = folder / f"{name}.safetensors"
        jobs[f"save {name}"] = lambda tensors=tensors, file=file: save_file(tensors, file)
        jobs[f"load {name}"] = lambda file=file: read_whole(file)
    for codec in CODECS:
        path = folder / codec
        planes = {name: encode(entry, codec) for name, entry in connectome.items()}
        jobs[f"save {codec}"] = lambda path=path, codec=codec: write(connectome, path, codec=codec)
        jobs[f"load {codec}"] = lambda path=path: read(path, host=host)
        jobs[f"encode {codec}"] = lambda codec=codec: [
            encode(entry, codec) for entry in connectome.values()
        ]
        jobs[f"decode {codec}"] = lambda planes=planes: [
            decode(planes[name], entry.shape) for name, entry in connectome.items()
        ]
    return jobs


def times(connectome: Connectome, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row a job: its median, its speed, and its ratio to both dense files."""
    found = interleaved(jobs_of(connectome, folder), rounds)
    rows = []
    for job, spent in found.items():
        operation, seconds = job.split()[0], statistics.median(spent)
        row: dict[str, Any] = {"job": job, "CPU seconds": seconds}
        row["million weights a second"] = connectome.num_weights / seconds / 1e6
        for name in DTYPES:
            known = f"{operation} {name}" in found
            row[f"to {name}"] = ratio(found, job, f"{operation} {name}") if known else "-"
        rows.append(row)
    return rows


def main() -> None:
    """Print the tables, and write the record if asked."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--connectomes", nargs="*", type=Path, default=[], help="for sizes")
    parser.add_argument("--run", type=Path, help="folder of a run, for its lineage")
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--layers", type=int, default=4, help="of the random connectome")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random = random_connectome(options.density, options.layers)
    rows = sizes("random", random)
    for path in [CARDS / "example", CARDS / "openstax-small", *options.connectomes]:
        rows += sizes(path.name, read(path))
    more: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        more["times"] = times(random, Path(scratch), options.rounds)
        if options.run is not None:
            more["lineage"] = lineage_sizes(options.run, Path(scratch))
    for part in more.values():
        print(table(part) + "\n")
    finish(options, rows, **more, peak_bytes=peak_memory())


if __name__ == "__main__":
    main()

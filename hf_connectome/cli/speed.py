"""speed: what an export gains on this machine, measured, before anybody counts on it."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_connectome.cli.options import Json
from hf_connectome.cli.output import Facts, Result, Table, share

if TYPE_CHECKING:
    from hf_connectome.export.speed import Job

_MIB = 1 << 20
_Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder of a trained sparse checkpoint that decodes text.",
        show_default=False,
    ),
]


def speed(
    checkpoint: _Checkpoint,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    json: Json = False,
) -> Result:
    """Time a checkpoint on this CPU, dense and exported to CSR.

    Nothing is written: a model is exported when it is loaded (docs/EXPORT.md).
    """
    import copy

    import torch

    from hf_connectome.conversion import open_any
    from hf_connectome.export import export
    from hf_connectome.export.speed import jobs, weight_bytes
    from hf_connectome.trained import load_trained

    connectome, _ = open_any(checkpoint)
    dense: Any = load_trained(checkpoint).eval()
    models = {"dense": dense, "exported": export(copy.deepcopy(dense), connectome, to="csr")}
    work = {name: jobs(model) for name, model in models.items()}
    document: dict[str, Any] = {
        "path": str(checkpoint),
        "dtype": str(dense.dtype).removeprefix("torch."),
        "density": connectome.density,
        "num_threads": torch.get_num_threads(),
        "tokens_per_second": {
            job: _rates({name: found[job] for name, found in work.items()}, rounds)
            for job in work["dense"]
        },
        "weight_bytes": {name: weight_bytes(model) for name, model in models.items()},
    }
    return Result(document, [_facts(document), _table(document)], json)


def _rates(work: "Mapping[str, Job]", rounds: int) -> dict[str, float]:
    """Return tokens a second: medians of rounds in which the models take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, (job, _) in work.items():
            began = time.perf_counter()
            job()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: work[name][1] / statistics.median(seconds[name]) for name in work}


def _facts(document: Mapping[str, Any]) -> Facts:
    return Facts(
        [
            ("path", document["path"]),
            ("density", share(document["density"])),
            ("dtype", document["dtype"]),
            ("threads", document["num_threads"]),
        ]
    )


def _table(document: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for job, rate in document["tokens_per_second"].items():
        gain = rate["exported"] / rate["dense"]
        both = (f"{rate[name]:,.0f}" for name in ("dense", "exported"))
        rows.append((f"{job}, tokens/s", *both, f"{gain:.2f}"))
    dense, exported = (document["weight_bytes"][name] for name in ("dense", "exported"))
    mib = (f"{num / _MIB:,.1f}" for num in (dense, exported))
    rows.append(("weights, MiB", *mib, f"{dense / exported:.2f}"))
    return Table(("", "dense", "exported", "times better"), rows)

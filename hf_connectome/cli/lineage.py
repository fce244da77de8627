"""lineage: all generations of a run in one file, and out of it again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_connectome.cli.options import Json
from hf_connectome.cli.output import Facts, Result, Table, count, share
from hf_connectome.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hf_connectome.connectome import Connectome


def lineage(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Run (folder with generation-0, …), or a lineage file.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DST]",
            help="Of a run: the file to write. Of a file: the folder that the generations go to; "
            "without it they are only listed.",
            show_default=False,
        ),
    ] = None,
    generation: Annotated[
        int | None,
        typer.Option(help="Of a file: take this one alone, straight into DST.", show_default=False),
    ] = None,
    json: Json = False,
) -> Result:
    """Store a run in one file, list it, or take it out."""
    document: dict[str, Any] = {"source": str(path), "path": None if to is None else str(to)}
    if path.is_dir():
        document |= _stored(path, to, generation)
    else:
        document |= _taken(path, to, generation)
    facts = Facts(
        [
            ("from", document["source"]),
            ("to", document["path"]),
            ("file", f"{count(document['bytes'])} bytes"),
            ("", _compared(document)),
        ]
    )
    rows = [
        (r["generation"], share(r["density"]), count(r["num_survivors"]), r["digest"][:12])
        for r in document["generations"]
    ]
    header = ("generation", "density", "survivors", "digest")
    return Result(document, [facts, Table(header, rows, frozenset({"digest"}))], json)


def _stored(run: Path, to: Path | None, generation: int | None) -> dict[str, Any]:
    from hf_connectome.lineages import read_run, write_lineage
    from hf_connectome.runs import generations
    from hf_connectome.storage import WEIGHTS_FILE

    if to is None or generation is not None:
        raise ConfigError(
            f"{run} is a folder, so DST is needed, the file for all of its generations, and "
            "--generation is not: hf-connectome lineage RUN lineage.safetensors"
        )
    connectomes = read_run(run)
    write_lineage(connectomes, to)
    separate = sum((folder / WEIGHTS_FILE).stat().st_size for folder in generations(run))
    return {
        "bytes": to.stat().st_size,
        "bytes_apart": separate,
        "generations": _rows(connectomes),
    }


def _taken(file: Path, to: Path | None, generation: int | None) -> dict[str, Any]:
    from hf_connectome.lineages import read_lineage
    from hf_connectome.storage import write

    found = read_lineage(file, last=generation)
    if generation is not None:
        found = {generation: found[generation]}
    if to is not None:
        for number, connectome in found.items():
            write(connectome, to if generation is not None else to / f"generation-{number}")
    return {"bytes": file.stat().st_size, "generations": _rows(found.values())}


def _rows(connectomes: "Iterable[Connectome]") -> list[dict[str, Any]]:
    return [
        {
            "generation": None if connectome.config is None else connectome.config.generation,
            "density": connectome.density,
            "num_survivors": connectome.num_survivors,
            "digest": connectome.digest,
        }
        for connectome in connectomes
    ]


def _compared(document: dict[str, Any]) -> str | None:
    if "bytes_apart" not in document:
        return None
    times = document["bytes"] / document["bytes_apart"]
    return f"{times:.2f} of the {count(document['bytes_apart'])} bytes that the files have apart"
